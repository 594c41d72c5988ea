//! The greetings on the rendezvous socket, each one datagram of a sequential-packet Unix socket.
//!
//! The destination says [`Hello`] and passes its ack region and the end by which its doorbell is rung. The source answers
//! [`Reply`]: accepted, with its change region and the end by which its own doorbell is rung, or refused, with a reason.
//! Both begin alike in every version, so that a peer of another version can be told so:
//!
//! ```text
//!  0       8         12     16
//!  +-------+---------+------+-----------------------------------------------+
//!  | magic | version | kind | hello:  incarnation u64, ack ring bytes u64   |
//!  |       |         |      | accept: epoch u64, change ring bytes u64      |
//!  |       |         |      | refuse: reason, UTF-8                         |
//!  +-------+---------+------+-----------------------------------------------+
//!     u64      u32     u32
//! ```

use super::{PROTOCOL_VERSION, WireError, u32_at, u64_at};

/// `shmirror` on a little-endian host; anything else on a host of the other order.
const MAGIC: u64 = u64::from_le_bytes(*b"shmirror");
const PREFIX_BYTES: usize = 16;
const BODY_BYTES: usize = 16;
const HELLO: u32 = 1;
const ACCEPT: u32 = 2;
const REFUSE: u32 = 3;

/// What a destination says first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hello {
    /// This life of the destination.
    pub(crate) incarnation: u64,
    pub(crate) ack_ring_bytes: u64,
}

/// What the source answers if it takes the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Accept {
    /// This life of the source.
    pub(crate) epoch: u64,
    pub(crate) change_ring_bytes: u64,
}

/// Why the source does not take the destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal(pub(crate) String);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    Accepted(Accept),
    Refused(Refusal),
}

impl Hello {
    /// The longest greeting of either side that is read.
    pub(crate) const MAX_BYTES: usize = 1024;

    pub(crate) fn encode(&self) -> Vec<u8> {
        message(HELLO, [self.incarnation, self.ack_ring_bytes])
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Hello, WireError> {
        match prefix(bytes)? {
            HELLO => body(bytes).map(|[incarnation, ack_ring_bytes]| Hello { incarnation, ack_ring_bytes }),
            kind => Err(unknown_kind(kind, format!("{HELLO}"))),
        }
    }
}

impl Accept {
    pub(crate) fn encode(&self) -> Vec<u8> {
        message(ACCEPT, [self.epoch, self.change_ring_bytes])
    }
}

impl Refusal {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = start(REFUSE);
        bytes.extend_from_slice(self.0.as_bytes());
        bytes.truncate(Hello::MAX_BYTES);
        bytes
    }
}

impl Reply {
    pub(crate) fn decode(bytes: &[u8]) -> Result<Reply, WireError> {
        match prefix(bytes)? {
            ACCEPT => body(bytes)
                .map(|[epoch, change_ring_bytes]| Reply::Accepted(Accept { epoch, change_ring_bytes })),
            REFUSE => {
                Ok(Reply::Refused(Refusal(String::from_utf8_lossy(&bytes[PREFIX_BYTES..]).into_owned())))
            }
            kind => Err(unknown_kind(kind, format!("{ACCEPT} or {REFUSE}"))),
        }
    }
}

fn start(kind: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(PREFIX_BYTES + BODY_BYTES);
    bytes.extend_from_slice(&MAGIC.to_ne_bytes());
    bytes.extend_from_slice(&PROTOCOL_VERSION.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes
}

fn message(kind: u32, fields: [u64; 2]) -> Vec<u8> {
    let mut bytes = start(kind);
    for field in fields {
        bytes.extend_from_slice(&field.to_ne_bytes());
    }
    bytes
}

/// Checks what all versions share and answers the kind; a refusal is understood whatever its version.
fn prefix(bytes: &[u8]) -> Result<u32, WireError> {
    if bytes.len() < PREFIX_BYTES {
        return Err(WireError::Length {
            what: "greeting",
            found: bytes.len(),
            expected: format!("at least {PREFIX_BYTES}"),
        });
    }
    let magic = u64_at(bytes, 0);
    if magic != MAGIC {
        return Err(WireError::Field {
            what: "greeting",
            field: "magic",
            found: magic,
            expected: format!("{MAGIC:#x}"),
        });
    }
    let (version, kind) = (u32_at(bytes, 8), u32_at(bytes, 12));
    if version != PROTOCOL_VERSION && kind != REFUSE {
        return Err(WireError::Version { found: version, expected: PROTOCOL_VERSION });
    }
    Ok(kind)
}

fn body(bytes: &[u8]) -> Result<[u64; 2], WireError> {
    const EXPECTED: usize = PREFIX_BYTES + BODY_BYTES;
    if bytes.len() != EXPECTED {
        return Err(WireError::Length {
            what: "greeting",
            found: bytes.len(),
            expected: EXPECTED.to_string(),
        });
    }
    Ok([u64_at(bytes, PREFIX_BYTES), u64_at(bytes, PREFIX_BYTES + 8)])
}

fn unknown_kind(found: u32, expected: String) -> WireError {
    WireError::Field { what: "greeting", field: "kind", found: found.into(), expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greetings_come_back_as_they_went_in() {
        let hello = Hello { incarnation: 5, ack_ring_bytes: 1 << 16 };
        assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
        let accept = Accept { epoch: u64::MAX, change_ring_bytes: 1 << 20 };
        assert_eq!(Reply::decode(&accept.encode()), Ok(Reply::Accepted(accept)));
        let refusal = Refusal("wrong user".into());
        assert_eq!(Reply::decode(&refusal.encode()), Ok(Reply::Refused(refusal)));
    }

    #[test]
    fn another_version_is_named_beside_ours_and_its_refusal_is_still_read() {
        let mut hello = Hello { incarnation: 5, ack_ring_bytes: 1 << 16 }.encode();
        hello[8..12].copy_from_slice(&7u32.to_ne_bytes());
        let error = Hello::decode(&hello).unwrap_err().to_string();
        assert_eq!(error, "the peer speaks version 7 of the protocol, this side version 1");

        let mut refusal = Refusal("too old".into()).encode();
        refusal[8..12].copy_from_slice(&7u32.to_ne_bytes());
        assert_eq!(Reply::decode(&refusal), Ok(Reply::Refused(Refusal("too old".into()))));
    }

    #[test]
    fn greetings_of_wrong_length_magic_or_kind_are_errors() {
        let hello = Hello { incarnation: 5, ack_ring_bytes: 1 << 16 }.encode();
        for length in 0..hello.len() {
            assert!(Hello::decode(&hello[..length]).is_err(), "{length}");
        }
        assert!(Hello::decode(b"GET / HTTP/1.1\r\n\r\n.............").is_err());
        assert!(Reply::decode(&hello).is_err());
    }
}
