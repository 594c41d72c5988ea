//! Values of the application's own types.

use std::cell::Cell;

use crate::common::{self, MOMENT, only_destination, quick_resend, source_options, synced_replica, until};
use serde::{Deserialize, Serialize};
use shmirror::{Destination, Event, Replica, SetError, Source, Table, ValueError};
use tempfile::TempDir;
use zerocopy::byteorder::network_endian::U32;
use zerocopy::{Immutable, IntoBytes, KnownLayout, TryFromBytes, Unaligned};

/// Aligned to four bytes.
#[derive(Debug, Clone, Copy, PartialEq, TryFromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Port {
    index: u32,
    mtu: u16,
    up: bool,
    lanes: u8,
}

#[derive(Debug, PartialEq, TryFromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Label {
    value: U32,
    bottom: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Session {
    name: String,
    flows: Vec<u32>,
    state: State,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum State {
    Idle,
    Active { since: u64 },
}

fn rig() -> (TempDir, Source, Table, Replica) {
    let dir = tempfile::tempdir().unwrap();
    let source = source_options(dir.path()).resend(quick_resend()).create("s").unwrap();
    let table = source.table("t").unwrap();
    table.ready();
    let replica = synced_replica(dir.path());
    (dir, source, table, replica)
}

const PORT: Port = Port { index: 7, mtu: 9000, up: true, lanes: 4 };

fn session() -> Session {
    Session { name: "enb-1".into(), flows: vec![1, 300, 70_000], state: State::Active { since: 12 } }
}

#[test]
fn structs_arrive_at_any_alignment() {
    let (_dir, _source, table, mut replica) = rig();
    let opcodes: Vec<&str> = (1..=9).map(|len| &"opcodes!!"[..len]).collect();
    for opcode in &opcodes {
        table.set_struct(opcode, &PORT).unwrap();
        assert_eq!(table.get_struct::<Port>(opcode).unwrap(), Some(PORT));
    }
    let label = Label { value: U32::new(0x0102_0304), bottom: true };
    table.set_struct("label", &label).unwrap();
    assert_eq!(table.get("label").unwrap(), [1, 2, 3, 4, 1], "the bytes are those of the struct");
    common::follow(&mut replica, "the items", |replica| replica.table("t").len() == 10);
    for opcode in opcodes {
        assert_eq!(replica.table("t").get_struct::<Port>(opcode).unwrap(), Some(PORT));
    }
    assert_eq!(replica.table("t").view_struct::<Label>("label").unwrap(), Some(&label));
    assert_eq!(replica.table("t").view_struct::<Label>("none").unwrap(), None);
    assert_eq!(table.get_struct::<Port>("none").unwrap(), None);
}

#[test]
fn encoded_values_arrive() {
    let (_dir, _source, table, mut replica) = rig();
    table.encode(1u32, &session()).unwrap();
    assert_eq!(table.decode::<Session>(1u32).unwrap(), Some(session()));
    common::follow(&mut replica, "the item", |replica| replica.table("t").len() == 1);
    assert_eq!(replica.table("t").decode(1u32).unwrap(), Some(session()));
    assert_eq!(replica.table("t").decode::<Session>(2u32).unwrap(), None);
    let error = table.encode(2u32, &Unserialisable).unwrap_err();
    assert!(matches!(&error, SetError::NotWritten { why, .. } if why.contains("Unserialisable")), "{error}");
    assert_eq!(table.len(), 1);
}

/// As data behind a lock that others change: it has another length each time.
#[test]
fn encoded_value_that_changes_while_it_is_written_is_written_whole() {
    let (_dir, _source, table, _replica) = rig();
    for lengths in [[1, 5, 3], [5, 1, 3], [4, 4, 9]] {
        let changing = Changing { lengths, times: Cell::new(0) };
        table.encode(1u32, &changing).unwrap();
        let value = table.decode::<String>(1u32).unwrap().unwrap();
        let expected = if lengths[0] == lengths[1] { lengths[1] } else { lengths[2] };
        assert_eq!(value, "x".repeat(expected), "{lengths:?}");
    }
}

struct Changing {
    lengths: [usize; 3],
    times: Cell<usize>,
}

impl Serialize for Changing {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let time = self.times.replace(self.times.get() + 1);
        to.serialize_str(&"x".repeat(self.lengths[time]))
    }
}

struct Unserialisable;

impl Serialize for Unserialisable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("not this one"))
    }
}

#[test]
fn value_of_another_definition_is_an_error_that_says_so() {
    let (_dir, _source, table, _replica) = rig();
    let end = "source and destination must be built with the same definition of it";
    table.set("short", [1; 7]).unwrap();
    let error = table.get_struct::<Port>("short").unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("value of 7 bytes, expected 8 bytes, the size of links::typed::Port; {end}")
    );
    table.set("field", [1, 2, 3, 4, 5, 6, 2, 8]).unwrap();
    let error = table.get_struct::<Port>("field").unwrap_err();
    assert_eq!(error, ValueError::Field { bytes: 8, of: "links::typed::Port" });

    let mut bytes = postcard_bytes(&table);
    let whole = bytes.len();
    bytes.push(0);
    table.set("long", &bytes).unwrap();
    let error = table.decode::<Session>("long").unwrap_err();
    assert_eq!(
        error,
        ValueError::Trailing { found: whole + 1, expected: whole, of: "links::typed::Session" }
    );
    for len in 0..whole {
        table.set("cut", &bytes[..len]).unwrap();
        let error = table.decode::<Session>("cut").unwrap_err();
        assert!(
            matches!(&error, ValueError::Encoding { bytes, of: "links::typed::Session", .. } if *bytes == len),
            "{error}"
        );
    }
}

fn postcard_bytes(table: &Table) -> Vec<u8> {
    table.encode("whole", &session()).unwrap();
    table.get("whole").unwrap()
}

#[test]
fn event_with_a_wrong_value_fails_shows_in_stats_and_holds_up_nothing() {
    let (dir, source, table, replica) = rig();
    drop(replica);
    until("the end of the replica", || source.stats().destinations.is_empty());
    table.set("wrong", [0; 3]).unwrap();
    table.set_struct("right", &PORT).unwrap();
    let mut destination = common::destination(dir.path());
    let mut ports = Vec::new();
    let mut label = None;
    let mut handler = |event: Event<'_>| {
        if let Event::Set { .. } = event {
            ports.push(event.read_struct::<Port>()?);
        } else {
            assert!(matches!(
                event.read_struct::<Port>(),
                Err(ValueError::NoValue { of: "links::typed::Port" })
            ));
            assert!(matches!(event.decode::<Session>(), Err(ValueError::NoValue { .. })));
        }
        Ok(())
    };
    common::receive(&mut destination, "failures", &mut handler, |destination| {
        destination.stats().failed >= 4
    });
    assert!(destination.last_failure().unwrap().contains("value of 3 bytes, expected 8 bytes"));
    assert_eq!(destination.stats().items, 1);
    let state = only_destination(&source);
    assert_eq!((state.failing, &*state.failing_items[0].opcode.to_string()), (1, "wrong"));
    // Another version of the source says it as it should be.
    table.set_struct("wrong", &Label { value: U32::new(9), bottom: false }).unwrap();
    table.encode("session", &session()).unwrap();
    until("what can be read", || {
        let note = |event: Event<'_>| {
            if let Event::Set { opcode, .. } = event {
                match &*opcode.to_string() {
                    "wrong" => label = Some(event.view_struct::<Label>()?.value.get()),
                    "session" => assert_eq!(event.decode::<Session>()?, session()),
                    _ => {}
                }
            }
            Ok(())
        };
        destination.recv_timeout(MOMENT, note).unwrap();
        destination.stats().items == 3 && Destination::is_attached(&destination)
    });
    assert_eq!((ports, label), (vec![PORT], Some(9)));
}
