//! Frames and their bytes. Pure: no state, no I/O, no `unsafe`.
//!
//! Both ends run on one host, so integers have the host's byte order. Every decoder takes bytes that were copied into
//! private memory and treats them as hostile: it answers with a frame or with an error that says what was found.

mod ack;
mod frame;
mod hello;

pub(crate) use ack::Ack;
pub(crate) use frame::{Frame, HEADER_BYTES, Payload};
pub(crate) use hello::{Accept, Hello, Offer, Refusal, Reply};

/// The version of what two processes say to each other: greetings and frames. Regions have a version of their own.
pub(crate) const PROTOCOL_VERSION: u32 = 1;

/// Bytes that are no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// Too few or too many bytes.
    #[error("{what} of {found} bytes, expected {expected}")]
    Length {
        /// What was decoded.
        what: &'static str,
        /// The number of bytes found.
        found: usize,
        /// What it should have been.
        expected: String,
    },
    /// A field with a value that means nothing.
    #[error("{field} {found:#x} of a {what}, expected {expected}")]
    Field {
        /// What was decoded.
        what: &'static str,
        /// The field.
        field: &'static str,
        /// The value found.
        found: u64,
        /// What it should have been.
        expected: String,
    },
    /// The peer speaks another version of the protocol.
    #[error("the peer speaks version {found} of the protocol, this side version {expected}")]
    Version {
        /// The peer's version.
        found: u32,
        /// This side's version.
        expected: u32,
    },
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes(array_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(array_at(bytes, at))
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a slice of N bytes")
}
