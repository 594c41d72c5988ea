//! One link joins one source to one destination: two regions, two doorbells, a socket that tells of the peer's death.
//!
//! [`rendezvous`] is where they find each other, [`greeting`] how they agree on a link, [`outgoing`] and [`incoming`] the
//! link itself as the source and the destination see it, [`service`] the source's timer thread.

pub(crate) mod greeting;
pub(crate) mod incoming;
pub(crate) mod outgoing;
pub(crate) mod rendezvous;
pub(crate) mod service;

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
    /// A doorbell or a wait failed.
    #[error("a system call on the link failed: {0}")]
    Io(#[from] std::io::Error),
}
