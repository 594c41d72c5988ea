//! The synchronisation protocol, sans-IO: no clock, thread, file, memory map or atomic.
//!
//! Time comes in as an argument, frames go out as return values, so that a test can run both ends under loss,
//! duplication, crashes and sequence wrap, from a seed. (What it does give are hints, of memory that will be needed:
//! [`cpu_cache`](crate::cpu_cache), [`huge_pages`](crate::huge_pages).) [`source::SourceCore`] is the end that owns the items,
//! [`destination::DestinationCore`] the end that must come to hold the same.
//!
//! The words: a *link* is one attachment of one destination; an *ordinal* is a record's place in the change ring of its
//! link, counted from 0; a *change number* is a change's place in the life of its source.

pub(crate) mod cache;
pub(crate) mod destination;
mod index;
#[cfg(test)]
mod models;
mod replay;
mod resend;
mod segments;
#[cfg(test)]
mod sim;
pub(crate) mod source;
pub(crate) mod store;
#[cfg(test)]
mod tests;

pub use resend::ResendPolicy;

/// A value as either end keeps it. A short one lies in the item itself: one allocation less for each, and one place in memory
/// less to wait for when the item is changed. 64 bytes hold a route's next hops, a neighbour, a lease.
pub(crate) type ValueBytes = smallvec::SmallVec<[u8; 64]>;

/// The peer said something that no correct peer says. The link closes, others go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// An ack for records that were never sent, or that end before they begin.
    #[error("ack of the records {first}..={last}, of which {sent} were sent")]
    AckOutOfRange {
        /// First ordinal acked.
        first: u64,
        /// Last ordinal acked.
        last: u64,
        /// Number of records that were sent on this link.
        sent: u64,
    },
    /// An ack whose sequence number is not the one that was sent at that ordinal.
    #[error("ack of record {ordinal} with sync sequence number {found}, sent with {expected}")]
    AckOfOther {
        /// The ordinal acked.
        ordinal: u64,
        /// The sequence number in the ack.
        found: crate::SyncSeq,
        /// The sequence number that was sent.
        expected: crate::SyncSeq,
    },
}
