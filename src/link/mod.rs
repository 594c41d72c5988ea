//! One link joins one source to one destination: two regions, two doorbells, a socket that tells of the peer's death.
//!
//! [`rendezvous`] is where they find each other, [`greeting`] how they agree on a link, [`outgoing`] and [`incoming`] the
//! link itself as the source and the destination see it. A source's links are [`shared`] by its publishers and its [`timer`],
//! which goes round in [`service`], on a thread of
//! its own or in a [`polled`] source; [`application`] is what that is asked for, [`flush`] how one waits for acks. [`platform`] is
//! what all of this stands on, with [`peer`] as the process at a link's other end and [`lock`] as what is held while a source's links are looked at.

pub(crate) mod application;
pub(crate) mod flush;
pub(crate) mod greeting;
pub(crate) mod incoming;
pub(crate) mod kept;
pub(crate) mod lock;
#[cfg(test)]
mod models;
pub(crate) mod outgoing;
pub(crate) mod peer;
pub(crate) mod platform;
pub(crate) mod polled;
pub(crate) mod rendezvous;
pub(crate) mod service;
pub(crate) mod shared;
pub(crate) mod timer;

use crate::proto::ProtocolError;
use crate::ring::RingError;
use crate::wire::WireError;

/// Why a link was closed by the side that noticed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The peer's ring holds nonsense.
    #[error("the peer's ring is damaged: {0}")]
    Ring(#[from] RingError),
    /// A record is no frame.
    #[error("the peer sent a damaged record: {0}")]
    Record(#[from] WireError),
    /// An ack makes no sense.
    #[error("the peer broke the protocol: {0}")]
    Protocol(#[from] ProtocolError),
    /// The peer said something on the socket, on which nothing is said after the greeting.
    #[error("the peer sent a message after the greeting, expected none")]
    Spoke,
    /// The destination left too many removes unacknowledged, or too much changed while it was given the full state.
    #[error(
        "more than {max} removes are unacknowledged or changes are to be remembered (max_tombstones); the destination is \
         given the full state when it attaches again"
    )]
    Overrun {
        /// The most that are kept.
        max: usize,
    },
    /// The full state cannot be had from the application.
    #[error("the enumerator of table {table} failed: {why}")]
    Enumerator {
        /// The table.
        table: String,
        /// What it said, or that it panicked.
        why: String,
    },
    /// A doorbell or a wait failed.
    #[error("a system call on the link failed: {0}")]
    Io(#[from] std::io::Error),
}
