//! The greetings on the rendezvous socket, each one datagram of a sequential-packet Unix socket.
//!
//! The destination says [`Hello`] and passes its ack region and the end by which its doorbell is rung. The source answers
//! [`Reply`]: accepted, with its change region and the end by which its own doorbell is rung, or refused, with a reason.
//! Where no descriptors can be passed, both name their regions instead, and ring on the socket itself.
//! Both begin alike in every version, so that a peer of another version can be told so:
//!
//! ```text
//!  0       8         12     16
//!  +-------+---------+------+-----------------------------------------------------------------+
//!  | magic | version | kind | 1 hello:  incarnation u64, ack ring bytes u64, what is wanted    |
//!  |       |         |      | 2 accept: epoch u64, change ring bytes u64                      |
//!  |       |         |      | 3 refuse: reason, UTF-8                                         |
//!  |       |         |      | 4 hello by name:  as 1, but before what is wanted the segment's |
//!  |       |         |      |   number u64 and the destination's bell u32 (0 socket, 1 event) |
//!  |       |         |      | 5 accept by name: as 2, then the segment's number u64           |
//!  +-------+---------+------+-----------------------------------------------------------------+
//!     u64      u32     u32
//!
//! what is wanted: number of tables u32 (all ones: every table in full), then for each
//!   name length u8, name (UTF-8), number of prefixes u16 (all ones: the table in full), then for each
//!     length u8, bytes
//! ```

use super::{PROTOCOL_VERSION, WireError, u32_at, u64_at};
use crate::opcode::Opcode;
use crate::subscription::{Selection, Subscription, SubscriptionError};

/// `shmirror` on a little-endian host; anything else on a host of the other order.
const MAGIC: u64 = u64::from_le_bytes(*b"shmirror");
const PREFIX_BYTES: usize = 16;
const BODY_BYTES: usize = 16;
const HELLO: u32 = 1;
const ACCEPT: u32 = 2;
const REFUSE: u32 = 3;
const NAMED_HELLO: u32 = 4;
const NAMED_ACCEPT: u32 = 5;
/// What a hello by name has beyond a hello.
const SEGMENT_BYTES: usize = 12;
const BELL_SOCKET: u32 = 0;
const BELL_EVENT: u32 = 1;
/// In place of a number of tables or prefixes: all that there is.
const ALL_TABLES: u32 = u32::MAX;
const ALL_ITEMS: u16 = u16::MAX;

/// What a destination says first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hello {
    /// This life of the destination.
    pub(crate) incarnation: u64,
    pub(crate) ack_ring_bytes: u64,
    pub(crate) offer: Offer,
    pub(crate) subscription: Subscription,
}

/// How a destination's region and doorbell reach its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offer {
    /// As descriptors that come with the hello.
    Descriptors,
    /// The region is a named segment with this number; rung is on the socket, or at an event in that region.
    Segment { number: u64, event: bool },
}

/// What the source answers if it takes the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Accept {
    /// This life of the source.
    pub(crate) epoch: u64,
    pub(crate) change_ring_bytes: u64,
    /// The number of the segment that is the source's region, unless that comes as a descriptor.
    pub(crate) segment: Option<u64>,
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
    /// The longest with descriptors.
    pub(crate) const MAX_BYTES: usize = 32 * 1024;
    /// The longest that is sent or read: what can be wanted does not depend on how regions are passed.
    pub(crate) const LONGEST_BYTES: usize = Hello::MAX_BYTES + SEGMENT_BYTES;

    /// Whether a source can be told of this subscription.
    pub(crate) fn check(subscription: &Subscription) -> Result<(), SubscriptionError> {
        let mut names = subscription.named().into_iter().flatten().map(|(name, _)| name.len());
        if let Some(bytes) = names.find(|&bytes| bytes > 255) {
            return Err(SubscriptionError::NameTooLong { bytes });
        }
        let (bytes, max) = (Hello::len_bytes(subscription), Hello::MAX_BYTES);
        if bytes > max { Err(SubscriptionError::TooLong { bytes, max }) } else { Ok(()) }
    }

    fn len_bytes(subscription: &Subscription) -> usize {
        let tables = subscription.named().into_iter().flatten().map(|(name, selection)| {
            let prefixes = match selection {
                Selection::All => 0,
                Selection::Prefixes(prefixes) => prefixes.iter().map(|p| 1 + p.as_bytes().len()).sum(),
            };
            1 + name.len() + 2 + prefixes
        });
        PREFIX_BYTES + BODY_BYTES + 4 + tables.sum::<usize>()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let numbers = [self.incarnation, self.ack_ring_bytes];
        let mut bytes = match self.offer {
            Offer::Descriptors => message(HELLO, numbers),
            Offer::Segment { number, event } => {
                let mut bytes = message(NAMED_HELLO, numbers);
                bytes.extend_from_slice(&number.to_ne_bytes());
                bytes.extend_from_slice(&(if event { BELL_EVENT } else { BELL_SOCKET }).to_ne_bytes());
                bytes
            }
        };
        encode_subscription(&self.subscription, &mut bytes);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Hello, WireError> {
        let kind = prefix(bytes)?;
        if kind != HELLO && kind != NAMED_HELLO {
            return Err(unknown_kind(kind, format!("{HELLO} or {NAMED_HELLO}")));
        }
        let mut rest = Fields { bytes, at: PREFIX_BYTES };
        let incarnation = u64_at(rest.take(8)?, 0);
        let ack_ring_bytes = u64_at(rest.take(8)?, 0);
        let offer = if kind == HELLO { Offer::Descriptors } else { decode_segment(&mut rest)? };
        let subscription = decode_subscription(&mut rest)?;
        if rest.at != bytes.len() {
            return Err(length(bytes.len(), rest.at.to_string()));
        }
        Ok(Hello { incarnation, ack_ring_bytes, offer, subscription })
    }
}

impl Accept {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let numbers = [self.epoch, self.change_ring_bytes];
        let Some(segment) = self.segment else { return message(ACCEPT, numbers) };
        let mut bytes = message(NAMED_ACCEPT, numbers);
        bytes.extend_from_slice(&segment.to_ne_bytes());
        bytes
    }
}

impl Refusal {
    /// The longest that is sent.
    const MAX_BYTES: usize = 1024;

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = start(REFUSE);
        bytes.extend_from_slice(self.0.as_bytes());
        bytes.truncate(Self::MAX_BYTES);
        bytes
    }
}

impl Reply {
    pub(crate) fn decode(bytes: &[u8]) -> Result<Reply, WireError> {
        match prefix(bytes)? {
            kind @ (ACCEPT | NAMED_ACCEPT) => {
                let expected = PREFIX_BYTES + BODY_BYTES + if kind == ACCEPT { 0 } else { 8 };
                if bytes.len() != expected {
                    return Err(length(bytes.len(), expected.to_string()));
                }
                let (epoch, change_ring_bytes) =
                    (u64_at(bytes, PREFIX_BYTES), u64_at(bytes, PREFIX_BYTES + 8));
                let segment = (kind == NAMED_ACCEPT).then(|| u64_at(bytes, PREFIX_BYTES + BODY_BYTES));
                Ok(Reply::Accepted(Accept { epoch, change_ring_bytes, segment }))
            }
            REFUSE => {
                Ok(Reply::Refused(Refusal(String::from_utf8_lossy(&bytes[PREFIX_BYTES..]).into_owned())))
            }
            kind => Err(unknown_kind(kind, format!("{ACCEPT}, {REFUSE} or {NAMED_ACCEPT}"))),
        }
    }
}

fn decode_segment(rest: &mut Fields<'_>) -> Result<Offer, WireError> {
    let number = u64_at(rest.take(8)?, 0);
    match u32_at(rest.take(4)?, 0) {
        BELL_SOCKET => Ok(Offer::Segment { number, event: false }),
        BELL_EVENT => Ok(Offer::Segment { number, event: true }),
        found => Err(WireError::Field {
            what: "greeting",
            field: "bell",
            found: found.into(),
            expected: format!("{BELL_SOCKET} or {BELL_EVENT}"),
        }),
    }
}

fn encode_subscription(subscription: &Subscription, bytes: &mut Vec<u8>) {
    let Some(tables) = subscription.named() else {
        bytes.extend_from_slice(&ALL_TABLES.to_ne_bytes());
        return;
    };
    bytes.extend_from_slice(&(tables.len() as u32).to_ne_bytes());
    for (name, selection) in tables {
        encode_short(name.as_bytes(), bytes);
        match selection {
            Selection::All => bytes.extend_from_slice(&ALL_ITEMS.to_ne_bytes()),
            Selection::Prefixes(prefixes) => {
                let count = u16::try_from(prefixes.len()).expect("a hello has no room for so many");
                bytes.extend_from_slice(&count.to_ne_bytes());
                prefixes.iter().for_each(|prefix| encode_short(prefix.as_bytes(), bytes));
            }
        }
    }
}

fn encode_short(short: &[u8], bytes: &mut Vec<u8>) {
    bytes.push(u8::try_from(short.len()).expect("names and opcodes have at most 255 bytes"));
    bytes.extend_from_slice(short);
}

fn decode_subscription(rest: &mut Fields<'_>) -> Result<Subscription, WireError> {
    let tables = u32_at(rest.take(4)?, 0);
    if tables == ALL_TABLES {
        return Ok(Subscription::all());
    }
    let mut subscription = Subscription::none();
    // Each has some bytes of its own, so that a large number alone ends the loop.
    for _ in 0..tables {
        let name = rest.take_short()?;
        let name = std::str::from_utf8(name).map_err(|error| WireError::Field {
            what: "greeting",
            field: "byte of a table name",
            found: name[error.valid_up_to()].into(),
            expected: "UTF-8".into(),
        })?;
        let count = u16::from_ne_bytes(rest.take(2)?.try_into().expect("two bytes"));
        if count == ALL_ITEMS {
            subscription = subscription.table(name);
            continue;
        }
        for _ in 0..count {
            let prefix = Opcode::from_bytes(rest.take_short()?).expect("its length is one byte");
            subscription = subscription.raw_prefix(name, prefix);
        }
    }
    Ok(subscription)
}

/// Bytes that are taken one after the other.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let end = self.at + count;
        let taken = self.bytes.get(self.at..end);
        let taken = taken.ok_or_else(|| length(self.bytes.len(), format!("at least {end}")))?;
        self.at = end;
        Ok(taken)
    }

    fn take_short(&mut self) -> Result<&'a [u8], WireError> {
        let count = self.take(1)?[0];
        self.take(count.into())
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
        return Err(length(bytes.len(), format!("at least {PREFIX_BYTES}")));
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

fn length(found: usize, expected: String) -> WireError {
    WireError::Length { what: "greeting", found, expected }
}

fn unknown_kind(found: u32, expected: String) -> WireError {
    WireError::Field { what: "greeting", field: "kind", found: found.into(), expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hellos() -> Vec<Hello> {
        let some = Subscription::none()
            .table("a")
            .prefix("b", ("red", ""))
            .and_then(|some| some.prefix("b", 7u32))
            .and_then(|some| some.prefix("", ""))
            .unwrap();
        let offers = [
            Offer::Descriptors,
            Offer::Segment { number: u64::MAX - 1, event: false },
            Offer::Segment { number: 0, event: true },
        ];
        let of = |offer| {
            [Subscription::all(), Subscription::none(), some.clone()].map(|subscription| Hello {
                incarnation: 5,
                ack_ring_bytes: 1 << 16,
                offer,
                subscription,
            })
        };
        offers.into_iter().flat_map(of).collect()
    }

    #[test]
    fn greetings_come_back_as_they_went_in() {
        for hello in hellos() {
            let bytes = hello.encode();
            let segment = if hello.offer == Offer::Descriptors { 0 } else { SEGMENT_BYTES };
            assert_eq!(bytes.len(), Hello::len_bytes(&hello.subscription) + segment);
            assert_eq!(Hello::decode(&bytes), Ok(hello));
        }
        for segment in [None, Some(7)] {
            let accept = Accept { epoch: u64::MAX, change_ring_bytes: 1 << 20, segment };
            let bytes = accept.encode();
            assert_eq!(Reply::decode(&bytes), Ok(Reply::Accepted(accept)));
            assert!(Reply::decode(&bytes[..bytes.len() - 1]).is_err());
        }
        let refusal = Refusal("wrong user".into());
        assert_eq!(Reply::decode(&refusal.encode()), Ok(Reply::Refused(refusal)));
    }

    #[test]
    fn another_version_is_named_beside_ours_and_its_refusal_is_still_read() {
        let mut hello = hellos()[0].encode();
        hello[8..12].copy_from_slice(&7u32.to_ne_bytes());
        let error = Hello::decode(&hello).unwrap_err().to_string();
        assert_eq!(error, "the peer speaks version 7 of the protocol, this side version 1");

        let mut refusal = Refusal("too old".into()).encode();
        refusal[8..12].copy_from_slice(&7u32.to_ne_bytes());
        assert_eq!(Reply::decode(&refusal), Ok(Reply::Refused(Refusal("too old".into()))));
    }

    #[test]
    fn greetings_of_wrong_length_magic_or_kind_are_errors() {
        for hello in hellos() {
            let mut bytes = hello.encode();
            for length in 0..bytes.len() {
                assert!(Hello::decode(&bytes[..length]).is_err(), "{length}");
            }
            assert!(Reply::decode(&bytes).is_err());
            bytes.push(0);
            assert!(Hello::decode(&bytes).is_err(), "one byte too many");
        }
        assert!(Hello::decode(b"GET / HTTP/1.1\r\n\r\n.............").is_err());
    }

    #[test]
    fn a_bell_of_an_unknown_kind_is_an_error() {
        let mut bytes = hellos()[3].encode();
        bytes[40..44].copy_from_slice(&2u32.to_ne_bytes());
        let error = Hello::decode(&bytes).unwrap_err().to_string();
        assert_eq!(error, "bell 0x2 of a greeting, expected 0 or 1");
    }

    #[test]
    fn a_subscription_that_counts_more_than_it_holds_is_an_error() {
        let mut bytes = hellos()[1].encode();
        bytes.truncate(PREFIX_BYTES + BODY_BYTES);
        bytes.extend_from_slice(&(ALL_TABLES - 1).to_ne_bytes());
        let error = Hello::decode(&bytes).unwrap_err().to_string();
        assert_eq!(error, "greeting of 36 bytes, expected at least 37");
        bytes.extend_from_slice(&[1, 0xff]);
        let error = Hello::decode(&bytes).unwrap_err().to_string();
        assert_eq!(error, "byte of a table name 0xff of a greeting, expected UTF-8");
    }
}
