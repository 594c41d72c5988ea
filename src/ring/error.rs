//! What a peer can have got wrong in the shared memory.

use super::layout::{HEADER_BYTES, Header, RECORD_ALIGNMENT};

/// The peer wrote something that no working peer writes: the link to it has to be closed.
///
/// After an error the ring may be asked again, and will answer without a panic, but what it says is worth
/// nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// The producer's cursor went backwards, or claims more than the ring holds.
    #[error("the producer's tail is {found}, expected {at_least} to {at_most}")]
    TailOutOfRange {
        /// The tail in shared memory.
        found: u64,
        /// The tail seen before.
        at_least: u64,
        /// One capacity beyond what has been released.
        at_most: u64,
    },

    /// The producer's cursor is not where a record can begin.
    #[error("the producer's tail is {found}, expected a multiple of {RECORD_ALIGNMENT}")]
    TailUnaligned {
        /// The tail in shared memory.
        found: u64,
    },

    /// The producer has begun the ring anew elsewhere than where all was read and released.
    #[error(
        "the ring was begun anew at {found}, expected at {position}, up to where it was read, and all of that released, \
         which is so up to {released}"
    )]
    StartOutOfPlace {
        /// The start in shared memory.
        found: u64,
        /// How far the consumer has read.
        position: u64,
        /// How far it has released.
        released: u64,
    },

    /// The consumer's cursor went backwards, or is beyond what was published.
    #[error("the consumer's head is {found}, expected {at_least} to {at_most}")]
    HeadOutOfRange {
        /// The head in shared memory.
        found: u64,
        /// The head seen before.
        at_least: u64,
        /// The published tail.
        at_most: u64,
    },

    /// The consumer's cursor is not where a record can begin.
    #[error("the consumer's head is {found}, expected a multiple of {RECORD_ALIGNMENT}")]
    HeadUnaligned {
        /// The head in shared memory.
        found: u64,
    },

    /// A header that is neither a record's nor padding, or padding that is followed by padding.
    #[error(
        "the record at position {position} is of kind {found}, \
         expected {record} (record) or, before the ring's end, {padding} (padding)",
        record = Header::RECORD,
        padding = Header::PADDING
    )]
    UnknownKind {
        /// Where the record begins.
        position: u64,
        /// The kind in its header.
        found: u32,
    },

    /// A length that no record of this ring has.
    #[error("the record at position {position} has {found} bytes of payload, expected at most {at_most}")]
    RecordTooLong {
        /// Where the record begins.
        position: u64,
        /// The length in its header.
        found: u32,
        /// The longest payload of this ring.
        at_most: usize,
    },

    /// A record that is longer than what was published.
    #[error(
        "the record at position {position} takes {found} bytes, \
         expected at most {available} before the tail"
    )]
    RecordBeyondTail {
        /// Where the record begins.
        position: u64,
        /// What it takes up in the ring, header included.
        found: u64,
        /// What was published from there on.
        available: u64,
    },

    /// A record that reaches over the end of the ring.
    #[error(
        "the record at position {position} takes {found} bytes, \
         expected at most {to_end} before the ring's end"
    )]
    RecordBeyondEnd {
        /// Where the record begins.
        position: u64,
        /// What it takes up in the ring, header included.
        found: u64,
        /// What there is up to the end of the ring.
        to_end: u64,
    },

    /// Padding that stops short of the end of the ring.
    #[error(
        "the padding at position {position} takes {found} bytes, expected {to_end}, up to the ring's end"
    )]
    PaddingShort {
        /// Where the padding begins.
        position: u64,
        /// What it takes up in the ring, header included.
        found: u64,
        /// What there is up to the end of the ring.
        to_end: u64,
    },

    /// Padding that was published without the record that it makes way for.
    #[error(
        "the padding before position {position} is the last thing published, \
         expected at least {HEADER_BYTES} bytes of a record behind it"
    )]
    PaddingAlone {
        /// Where the record should begin.
        position: u64,
    },
}
