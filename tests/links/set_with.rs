//! Values that are written where they stay (`Table::set_with`).

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::common::{self, contents, contents_of_source, follow, source_options, synced_replica, until};
use shmirror::{Event, Replica, Retention, Sent, SetError, Source, Table};
use tempfile::TempDir;

struct Rig {
    dir: TempDir,
    source: Source,
    table: Table,
}

fn rig() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let source = source_options(dir.path()).create("s").unwrap();
    let table = source.table("t").unwrap();
    table.ready();
    Rig { dir, source, table }
}

impl Rig {
    fn replica(&self) -> Replica {
        synced_replica(self.dir.path())
    }

    /// The replica comes to hold what the source does.
    fn check(&self, replica: &mut Replica) {
        follow(replica, "the items", |replica| contents(replica, "t") == contents_of_source(&self.table));
    }
}

/// Sets `value` by way of `set_with`.
fn write(table: &Table, opcode: u32, value: &[u8]) -> Sent {
    table
        .set_with(opcode, value.len(), |out| {
            assert!(out.len() == value.len() && out.iter().all(|byte| *byte == 0), "{out:?}");
            out.copy_from_slice(value);
            Ok(())
        })
        .unwrap()
}

#[test]
fn written_values_arrive_whatever_was_there_before() {
    let rig = rig();
    let mut replica = rig.replica();
    let longest = vec![7; 200_000];
    for value in [&b"first"[..], b"other", b"shorter now", b"", b"again", &longest, &longest[1..], b"end"] {
        for opcode in [1u32, 2] {
            assert_eq!(write(&rig.table, opcode, value), Sent::Now);
            assert_eq!(rig.table.get(opcode).as_deref(), Some(value));
        }
        rig.check(&mut replica);
    }
    rig.table.remove(1u32).unwrap();
    assert_eq!(write(&rig.table, 1, b"a new life"), Sent::Now);
    rig.table.set_shared(2u32, &std::sync::Arc::new(std::sync::Mutex::new(*b"pointed to"))).unwrap();
    assert_eq!(rig.source.stats().pointers, 1);
    write(&rig.table, 2, b"data again");
    assert_eq!(rig.source.stats().pointers, 0);
    rig.check(&mut replica);
    assert_eq!(replica.table("t").get(2u32), Some(&b"data again"[..]));
}

#[test]
fn equal_value_that_is_written_is_no_change_unless_the_source_is_to_send_it() {
    for send_equal in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let source = source_options(dir.path()).send_equal(send_equal).create("s").unwrap();
        let table = source.table("t").unwrap();
        table.set(1u32, "value").unwrap();
        let expected = if send_equal { Sent::Now } else { Sent::Unchanged };
        assert_eq!(write(&table, 1, b"value"), expected);
        assert_eq!(write(&table, 1, b"value"), expected);
        assert_eq!(source.stats().changes, if send_equal { 3 } else { 1 });
        assert_eq!(table.get(1u32).as_deref(), Some(&b"value"[..]));
        assert_eq!(write(&table, 1, b"VALUE"), Sent::Now);
    }
}

#[test]
fn value_that_is_not_written_leaves_everything_as_it_was() {
    let rig = rig();
    let mut replica = rig.replica();
    rig.table.set(1u32, "as it was").unwrap();
    rig.check(&mut replica);
    let (changes, received) = (rig.source.stats().changes, replica.stats().received);

    let failed = rig.table.set_with(1u32, 9, |out| {
        out.fill(b'x');
        Err("no address yet".into())
    });
    let error = failed.unwrap_err();
    assert!(matches!(&error, SetError::NotWritten { why, .. } if why == "no address yet"));
    assert_eq!(error.to_string(), "the value of item 00000001 was not written: no address yet");
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        rig.table.set_with(1u32, 9, |out| {
            out.fill(b'x');
            panic!("half written")
        })
    }));
    assert!(panicked.is_err());
    let too_long = rig.table.set_with(1u32, usize::MAX, |_| unreachable!("it has no place"));
    assert!(matches!(too_long, Err(SetError::ValueTooLong { bytes: usize::MAX, .. })));

    assert_eq!(rig.table.get(1u32).as_deref(), Some(&b"as it was"[..]));
    assert_eq!(rig.source.stats().changes, changes);
    // Everything goes on, and what comes next is the next record.
    assert_eq!(write(&rig.table, 1, b"now it is"), Sent::Now);
    rig.check(&mut replica);
    assert_eq!(replica.stats().received, received + 1);
}

#[test]
fn writer_may_set_values_itself() {
    let rig = rig();
    write(&rig.table, 9, b"any"); // there is a buffer that could be given out twice
    write(&rig.table, 9, b"one");
    let sent = rig.table.set_with(1u32, 3, |out| {
        write(&rig.table, 2, b"two");
        assert_eq!(rig.table.set(1u32, "inner")?, Sent::Now);
        write(&rig.table, 3, b"333");
        out.copy_from_slice(b"111");
        Ok(())
    });
    assert_eq!(sent.unwrap(), Sent::Now);
    let mut replica = rig.replica();
    rig.check(&mut replica);
    let table = replica.table("t");
    let values = [1u32, 2, 3, 9].map(|opcode| table.get(opcode).unwrap());
    assert_eq!(values, [b"111", b"two", b"333", b"one"]);
}

#[test]
fn written_values_of_a_table_that_keeps_unacknowledged_ones_only_arrive() {
    let rig = rig();
    let retention = Retention::unacked(Vec::<(u32, Vec<u8>)>::new);
    let table = rig.source.table_with("unkept", retention).unwrap();
    table.ready();
    let mut replica = rig.replica();
    for value in [b"one", b"two", b"two"] {
        assert_eq!(write(&table, 1, value), Sent::Now);
    }
    follow(&mut replica, "the last", |replica| replica.table("unkept").get(1u32) == Some(b"two"));
    until("the acks", || rig.source.stats().items == 0);
    write(&table, 1, b"new");
    follow(&mut replica, "the next", |replica| replica.table("unkept").get(1u32) == Some(b"new"));
}

#[test]
fn values_written_by_several_threads_arrive_whole() {
    let rig = rig();
    let mut destination = common::destination(rig.dir.path());
    const THREADS: u8 = 3;
    const CHANGES: u32 = 2000;
    let mut events = 0;
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let table = &rig.table;
            scope.spawn(move || {
                for change in 0..CHANGES {
                    // All threads change the same items, to values of several lengths, each of one byte.
                    let byte = thread + THREADS * (change as u8 % 80);
                    write(table, change % 7, &vec![byte; 64 + change as usize % 3]);
                }
            });
        }
        common::receive(
            &mut destination,
            "the changes",
            |event| {
                if let Event::Set { value, .. } = event {
                    assert!(value.iter().all(|byte| *byte == value[0]), "{value:?}");
                    events += 1;
                }
                Ok(())
            },
            |destination| {
                let changes = u64::from(THREADS) * u64::from(CHANGES);
                let all_made = destination.is_all_synced() && rig.source.stats().changes == changes;
                all_made && rig.source.stats().destinations[0].unacked == 0
            },
        );
    });
    assert!(events >= 7 && destination.stats().failed == 0, "{:?}", destination.last_failure());
}
