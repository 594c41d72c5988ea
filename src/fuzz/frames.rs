//! Decoding of frames and acks.
//!
//! An input is the ordinal that is expected, and the record.

use super::{Choices, Saw};
use crate::wire::{Ack, Frame, Payload, WireError};

/// Of a frame, before the opcode.
const HEADER: usize = 24;
const SET: u8 = 1;
const NAMED: u8 = 5;

pub(super) fn run(input: &[u8], saw: Saw<'_>) {
    let mut choices = Choices::new(input);
    let expected = choices.number(8);
    let record = choices.bytes(usize::MAX);
    check_frame(record, expected, saw);
    check_ack(record, saw);
}

fn check_frame(record: &[u8], expected: u64, saw: Saw<'_>) {
    let needed = record.get(HEADER - 1).map_or(HEADER, |&opcode| HEADER + usize::from(opcode));
    let decoded = Frame::decode(record, expected);
    let frame = match decoded {
        Ok(frame) => frame,
        Err(WireError::Length { what, found, expected }) => {
            assert_eq!((what, found), ("change record", record.len()));
            assert!(record.len() < needed && expected == format!("at least {needed}"), "{found}, {expected}");
            return saw("frame too short");
        }
        Err(WireError::Field { field: "kind", found, .. }) => {
            assert!(found == u64::from(record[22]) && !(1..=5).contains(&found), "kind {found}");
            return saw("frame of unknown kind");
        }
        Err(WireError::Field { field: "ordinal", found, .. }) => {
            assert!(found == u64::MAX && expected > u64::MAX - (1 << 31), "{expected}");
            return saw("no ordinal behind it");
        }
        Err(WireError::Field { field: "byte", found, .. }) => {
            let name = &record[needed..];
            let valid = std::str::from_utf8(name).expect_err("the name is UTF-8").valid_up_to();
            assert_eq!(found, u64::from(name[valid]));
            return saw("table name that is no text");
        }
        Err(error) => panic!("{error} is no error of a frame"),
    };

    assert!(record.len() >= needed, "a frame of {} bytes, of which there should be {needed}", record.len());
    let kind = record[22];
    let (opcode, rest) = (&record[HEADER..needed], &record[needed..]);
    let extra = u64::from_ne_bytes(record[8..16].try_into().expect("eight bytes"));
    match frame.payload {
        Payload::Set { opcode: found, value, created } => {
            assert_eq!((kind, found, value, created.value()), (1, opcode, rest, extra));
            saw("set");
        }
        Payload::Remove { opcode: found } => {
            assert_eq!((kind, found), (2, opcode));
            saw("remove");
        }
        Payload::Table { name, items } => {
            assert_eq!((kind, name.as_bytes(), items), (3, rest, extra));
            saw("table");
        }
        Payload::End { oldest_unacked } => {
            assert_eq!((kind, oldest_unacked), (4, extra));
            saw("end");
        }
        Payload::Named { opcode: found } => {
            assert_eq!((kind, found), (5, opcode));
            saw("named");
        }
    }
    assert_eq!(frame.change.value(), u64::from_ne_bytes(record[..8].try_into().expect("eight bytes")));
    assert_eq!(frame.table, u16::from_ne_bytes([record[20], record[21]]));

    // The place in the link is the one of these low bits that is nearest; there is none before the first.
    let low = u32::from_ne_bytes(record[16..20].try_into().expect("four bytes"));
    let exact = frame.ordinal as u32 == low;
    assert!(frame.ordinal.abs_diff(expected) <= 1 << 31, "{} is far from {expected}", frame.ordinal);
    assert!(exact || frame.ordinal == 0, "{} is not {low:#x}", frame.ordinal);
    assert!(frame.ordinal < u64::MAX, "there is a next one");

    let again = frame.to_bytes();
    assert!(again.len() == frame.len_bytes() && again.len() <= record.len());
    let decoded_again = Frame::decode(&again, frame.ordinal);
    assert_eq!(decoded_again, Ok(frame));
    if exact && kind == SET {
        assert_eq!(again, record);
    }
    if exact && kind == NAMED && extra == 0 && rest.is_empty() {
        assert_eq!(again, record);
    }
}

fn check_ack(record: &[u8], saw: Saw<'_>) {
    match Ack::decode(record) {
        Ok(ack) => {
            assert_eq!(ack.encode().as_flattened(), record);
            saw("ack");
        }
        Err(error) => {
            let length = WireError::Length { what: "ack record", found: record.len(), expected: "24".into() };
            assert_eq!(error, length);
            assert_ne!(record.len(), 24);
            saw("ack of another length");
        }
    }
}
