//! The records of the change ring.
//!
//! ```text
//!  0       8        16        20      22     23           24
//!  +-------+--------+---------+-------+------+------------+--------+-------+
//!  |change | created| ordinal | table | kind | opcode len | opcode | value |
//!  +-------+--------+---------+-------+------+------------+--------+-------+
//!     u64     u64       u32      u16     u8       u8        0..=255   rest
//! ```
//!
//! `change` is the change's full number, its low half the sync sequence number. `created` is the number of the change
//! that began this life of the item (kind end: the oldest ordinal that is still unacknowledged; kind table: the number of its
//! items). `ordinal` is the low
//! half of the record's place in this link; a ring holds far fewer than 2^31 records, so the receiver knows the rest.

use super::{WireError, u16_at, u32_at, u64_at};
use crate::seq::ChangeNumber;

/// The bytes before the opcode.
pub(crate) const HEADER_BYTES: usize = 24;

const SET: u8 = 1;
const REMOVE: u8 = 2;
const TABLE: u8 = 3;
const END: u8 = 4;
const NAMED: u8 = 5;

/// One record of the change ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) change: ChangeNumber,
    pub(crate) ordinal: u64,
    pub(crate) table: u16,
    pub(crate) payload: Payload<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Payload<'a> {
    /// The item has this value.
    Set { opcode: &'a [u8], value: &'a [u8], created: ChangeNumber },
    /// The item is gone.
    Remove { opcode: &'a [u8] },
    /// The table's number stands for this name on this link. It holds so many items now: a hint.
    Table { name: &'a str, items: u64 },
    /// The item is there, but its value could not be had when it was to be sent.
    Named { opcode: &'a [u8] },
    /// All that the table held was named; `oldest_unacked` is the lowest ordinal that still waits for its ack.
    End { oldest_unacked: u64 },
}

impl<'a> Frame<'a> {
    /// The length of the encoded frame, in bytes.
    #[inline(always)]
    pub(crate) fn len_bytes(&self) -> usize {
        let (opcode, value) = self.body();
        HEADER_BYTES + opcode.len() + value.len()
    }

    /// The first bytes of the encoded frame, before its [`body`](Frame::body), in words.
    #[inline(always)]
    pub(crate) fn header(&self) -> [[u8; 8]; HEADER_BYTES / 8] {
        let (kind, extra) = match self.payload {
            Payload::Set { created, .. } => (SET, created.value()),
            Payload::Remove { .. } => (REMOVE, 0),
            Payload::Named { .. } => (NAMED, 0),
            Payload::Table { items, .. } => (TABLE, items),
            Payload::End { oldest_unacked } => (END, oldest_unacked),
        };
        let (opcode, _) = self.body();
        let opcode_len = u8::try_from(opcode.len()).expect("an Opcode has at most 255 bytes");
        // Put together in a register, as a ring's header is.
        let (ordinal, table) = (u64::from(self.ordinal as u32), u64::from(self.table));
        let (kind, opcode_len) = (u64::from(kind), u64::from(opcode_len));
        let last = if cfg!(target_endian = "little") {
            ordinal | table << 32 | kind << 48 | opcode_len << 56
        } else {
            ordinal << 32 | table << 16 | kind << 8 | opcode_len
        };
        let last = last.to_ne_bytes();
        [self.change.value().to_ne_bytes(), extra.to_ne_bytes(), last]
    }

    /// The encoded frame, in one piece.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let (opcode, value) = self.body();
        [self.header().as_flattened(), opcode, value].concat()
    }

    /// Decodes a record; `expected` is the ordinal that comes next if none was lost.
    #[inline(always)]
    pub(crate) fn decode(bytes: &'a [u8], expected: u64) -> Result<Frame<'a>, WireError> {
        let opcode_end = match bytes.get(HEADER_BYTES - 1) {
            Some(&opcode_len) => HEADER_BYTES + usize::from(opcode_len),
            None => HEADER_BYTES,
        };
        if bytes.len() < opcode_end {
            return Err(WireError::Length {
                what: "change record",
                found: bytes.len(),
                expected: format!("at least {opcode_end}"),
            });
        }
        let extra = u64_at(bytes, 8);
        let opcode = &bytes[HEADER_BYTES..opcode_end];
        let value = &bytes[opcode_end..];
        let payload = match bytes[22] {
            SET => Payload::Set { opcode, value, created: ChangeNumber::from_wire(extra) },
            kind => Payload::decode_rare(kind, opcode, value, extra)?,
        };
        let ahead = u32_at(bytes, 16).wrapping_sub(expected as u32) as i32;
        let ordinal = expected.saturating_add_signed(ahead.into());
        // So that there is always a next one.
        if ordinal == u64::MAX {
            return Err(WireError::Field {
                what: "change record",
                field: "ordinal",
                found: ordinal,
                expected: "less".into(),
            });
        }
        Ok(Frame {
            change: ChangeNumber::from_wire(u64_at(bytes, 0)),
            ordinal,
            table: u16_at(bytes, 20),
            payload,
        })
    }

    /// The opcode and the value.
    #[inline(always)]
    pub(crate) fn body(&self) -> (&'a [u8], &'a [u8]) {
        match self.payload {
            Payload::Set { opcode, value, .. } => (opcode, value),
            Payload::Remove { opcode } | Payload::Named { opcode } => (opcode, &[]),
            Payload::Table { name, .. } => (&[], name.as_bytes()),
            Payload::End { .. } => (&[], &[]),
        }
    }
}

impl<'a> Payload<'a> {
    /// Of another kind than nearly all records are.
    #[cold]
    fn decode_rare(
        kind: u8,
        opcode: &'a [u8],
        value: &'a [u8],
        extra: u64,
    ) -> Result<Payload<'a>, WireError> {
        Ok(match kind {
            REMOVE => Payload::Remove { opcode },
            NAMED => Payload::Named { opcode },
            TABLE => Payload::Table { name: table_name(value)?, items: extra },
            END => Payload::End { oldest_unacked: extra },
            kind => {
                return Err(WireError::Field {
                    what: "change record",
                    field: "kind",
                    found: kind.into(),
                    expected: format!("{SET} to {NAMED}"),
                });
            }
        })
    }
}

fn table_name(bytes: &[u8]) -> Result<&str, WireError> {
    std::str::from_utf8(bytes).map_err(|error| WireError::Field {
        what: "table record",
        field: "byte",
        found: bytes[error.valid_up_to()].into(),
        expected: format!("UTF-8 at offset {}", error.valid_up_to()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(frame: &Frame<'_>) -> Vec<u8> {
        let bytes = frame.to_bytes();
        assert_eq!(bytes.len(), frame.len_bytes());
        bytes
    }

    fn payloads() -> [Payload<'static>; 6] {
        let created = ChangeNumber::from_wire(9);
        [
            Payload::Set { opcode: b"key", value: b"value", created },
            Payload::Set { opcode: &[7; 255], value: b"", created },
            Payload::Remove { opcode: b"" },
            Payload::Named { opcode: b"key" },
            Payload::Table { name: "ipv4", items: 7 },
            Payload::End { oldest_unacked: u64::MAX },
        ]
    }

    #[test]
    fn frames_come_back_as_they_went_in() {
        for ordinal in [1, 77, u64::from(u32::MAX), 1 << 32, (5 << 32) + 3] {
            for payload in payloads() {
                let frame = Frame { change: ChangeNumber::from_wire(1 << 40), ordinal, table: 3, payload };
                assert_eq!(Frame::decode(&encoded(&frame), ordinal), Ok(frame));
                assert_eq!(Frame::decode(&encoded(&frame), ordinal - 1), Ok(frame), "one frame was lost");
                assert_eq!(
                    Frame::decode(&encoded(&frame), ordinal + 5),
                    Ok(frame),
                    "an old frame came again"
                );
            }
        }
    }

    #[test]
    fn there_is_an_ordinal_behind_each_that_is_taken() {
        let frame = |ordinal| {
            let payload = Payload::End { oldest_unacked: 0 };
            Frame { change: ChangeNumber::from_wire(1), ordinal, table: 0, payload }
        };
        let last = u64::MAX - 1;
        assert_eq!(Frame::decode(&encoded(&frame(last)), last), Ok(frame(last)));
        for (ordinal, expected) in [(u64::MAX, last), (u64::MAX, u64::MAX), (1000, last)] {
            let error = Frame::decode(&encoded(&frame(ordinal)), expected).unwrap_err().to_string();
            assert_eq!(error, "ordinal 0xffffffffffffffff of a change record, expected less");
        }
    }

    #[test]
    fn cut_frames_and_unknown_kinds_are_errors() {
        for payload in payloads() {
            let bytes = encoded(&Frame { change: ChangeNumber::from_wire(1), ordinal: 0, table: 0, payload });
            for length in 0..HEADER_BYTES {
                assert!(matches!(Frame::decode(&bytes[..length], 0), Err(WireError::Length { .. })));
            }
            let mut unknown = bytes;
            unknown[22] = 200;
            let error = Frame::decode(&unknown, 0).unwrap_err().to_string();
            assert_eq!(error, "kind 0xc8 of a change record, expected 1 to 5");
        }
        let error = Frame::decode(&[0xff; HEADER_BYTES], 0).unwrap_err().to_string();
        assert_eq!(error, "change record of 24 bytes, expected at least 279");
    }
}
