//! Items whose data stays the application's, over real links: a consistent copy is read when it is sent.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, RwLock};

use crate::common::{
    self, PATIENCE, contents, follow, only_destination, source_options, synced_replica, until,
};
use shmirror::{EntryHolds, Event, Flushed, Sent, Snapshot, SnapshotFn, SnapshotResult, Source, Table};
use tempfile::TempDir;

fn source() -> (TempDir, Source, Table) {
    let dir = tempfile::tempdir().unwrap();
    let source = source_options(dir.path()).create("s").unwrap();
    let table = source.table("t").unwrap();
    table.ready();
    (dir, source, table)
}

/// Data that answers only once it was given leave.
fn hesitant(value: &'static [u8]) -> (Arc<impl Snapshot>, Receiver<()>, Sender<()>) {
    let (asked, is_asked) = channel();
    let (leave, has_leave) = channel();
    let has_leave = Mutex::new(has_leave);
    let snapshot = SnapshotFn(move |out: &mut Vec<u8>| {
        // Whether anybody still wants to know is the test's business.
        let _ = asked.send(());
        has_leave.lock().unwrap().recv_timeout(PATIENCE)?;
        out.extend_from_slice(value);
        Ok(())
    });
    (Arc::new(snapshot), is_asked, leave)
}

/// What is sent is what the data is then: late, live, and after a change that was told or not.
fn arrives_as_it_is_when_it_is_sent<S: Snapshot>(data: &Arc<S>, change: impl Fn(&'static [u8])) {
    let (dir, source, table) = source();
    change(b"1");
    assert_eq!(table.set_shared("p", data).unwrap(), Sent::Now, "nobody is attached");
    change(b"2, not touched");
    let mut replica = synced_replica(dir.path());
    assert_eq!(replica.table("t").get("p"), Some(&b"2, not touched"[..]));
    assert_eq!(table.get("p").as_deref(), Some(&b"2, not touched"[..]));

    change(b"3");
    assert_eq!(table.touch("p").unwrap(), Sent::Deferred);
    follow(&mut replica, "the touched value", |replica| replica.table("t").get("p") == Some(b"3"));
    assert_eq!(source.stats().pointers, 1);
    until("the ack", || only_destination(&source).unacked == 0);
}

#[test]
fn value_behind_a_mutex_arrives_as_it_is_when_it_is_sent() {
    let data = Arc::new(Mutex::new(Vec::new()));
    arrives_as_it_is_when_it_is_sent(&data, |value| *data.lock().unwrap() = value.to_vec());
}

#[test]
fn value_behind_a_read_write_lock_arrives_as_it_is_when_it_is_sent() {
    let data = Arc::new(RwLock::new(String::new()));
    let change = |value: &[u8]| *data.write().unwrap() = String::from_utf8(value.to_vec()).unwrap();
    arrives_as_it_is_when_it_is_sent(&data, change);
}

#[test]
fn value_that_a_function_writes_arrives_as_it_is_when_it_is_sent() {
    let inner = Arc::new(Mutex::new(Vec::new()));
    let read = inner.clone();
    let data = Arc::new(SnapshotFn(move |out: &mut Vec<u8>| -> SnapshotResult {
        assert!(out.is_empty());
        out.extend_from_slice(&read.lock().unwrap());
        Ok(())
    }));
    arrives_as_it_is_when_it_is_sent(&data, |value| *inner.lock().unwrap() = value.to_vec());
}

#[cfg(feature = "arc-swap")]
#[test]
fn value_that_is_swapped_arrives_as_it_is_when_it_is_sent() {
    let data = Arc::new(arc_swap::ArcSwap::from_pointee(Vec::new()));
    arrives_as_it_is_when_it_is_sent(&data, |value| data.store(Arc::new(value.to_vec())));
}

#[test]
fn lock_that_a_snapshot_takes_may_be_held_by_whoever_publishes() {
    let (dir, source, table) = source();
    let mut replica = synced_replica(dir.path());
    let data = Arc::new(Mutex::new(b"old".to_vec()));
    let mut held = data.lock().unwrap();
    assert_eq!(table.set_shared("p", &data).unwrap(), Sent::Deferred);
    assert_eq!(table.touch("p").unwrap(), Sent::Deferred);
    table.set("data", b"x").unwrap();
    table.remove("none").unwrap();
    table.ready();
    assert_eq!(source.stats().pointers, 1);
    assert_eq!(source.unacked(only_destination(&source).id, 10).len(), 2);
    follow(&mut replica, "what needs no lock", |replica| replica.table("t").get("data") == Some(b"x"));
    assert_eq!(replica.table("t").get("p"), None);
    *held = b"new".to_vec();
    drop(held);
    let mut seen = Vec::new();
    until("the value", || {
        replica
            .wait_observed(PATIENCE, |event| {
                if let Event::Set { value, .. } = event {
                    seen.push(value.to_vec());
                }
            })
            .unwrap();
        !seen.is_empty()
    });
    assert_eq!(seen[0], b"new", "no value from before");
}

#[test]
fn data_that_is_longer_than_the_room_left_follows_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let source = source_options(dir.path()).ring_bytes(4096).create("s").unwrap();
    let table = source.table("t").unwrap();
    table.ready();
    let mut replica = synced_replica(dir.path());
    for n in 0..8u32 {
        assert_eq!(table.set(n, [1; 400]).unwrap(), Sent::Now, "all of them fit");
    }
    let reads = Arc::new(AtomicU64::new(0));
    let counter = reads.clone();
    let data = Arc::new(SnapshotFn(move |out: &mut Vec<u8>| -> SnapshotResult {
        counter.fetch_add(1, Ordering::Relaxed);
        out.extend_from_slice(&[2; 900]);
        Ok(())
    }));
    assert_eq!(table.set_shared("p", &data).unwrap(), Sent::Deferred);
    until("a read for which there is no room", || reads.load(Ordering::Relaxed) > 0);
    follow(&mut replica, "the pointer's data", |replica| replica.table("t").get("p") == Some(&[2; 900]));
    assert_eq!(replica.table("t").len(), 9);
    // Once in vain, and then as room is made: not all the time.
    let reads = reads.load(Ordering::Relaxed);
    assert!(reads <= 10, "{reads} reads");
}

#[test]
fn an_entry_says_what_it_holds() {
    let (dir, source, table) = source();
    table.set_shared("p", &Arc::new(Mutex::new(b"sent before".to_vec()))).unwrap();
    let mut replica = synced_replica(dir.path());
    until("the acks", || only_destination(&source).unacked == 0);
    let id = only_destination(&source).id;
    assert_eq!(source.unacked(id, 10), []);
    let held = |most: usize| {
        let entries = source.unacked(id, most);
        entries.into_iter().map(|entry| (entry.opcode.to_string(), entry.holds)).collect::<Vec<_>>()
    };
    let opcode = |text: &str| shmirror::ToOpcode::to_opcode(&text).unwrap().to_string();
    let pointer = Arc::new(Mutex::new(b"a".to_vec()));

    // The replica reads nothing meanwhile.
    table.touch("p").unwrap();
    assert_eq!(held(10), [(opcode("p"), EntryHolds::Pointer)]);
    assert_eq!((only_destination(&source).pointers, source.stats().pointers), (1, 1));
    table.set("p", b"data").unwrap();
    assert_eq!(held(10), [(opcode("p"), EntryHolds::Data)]);
    assert_eq!((only_destination(&source).pointers, source.stats().pointers), (0, 0));
    table.set_shared("p", &pointer).unwrap();
    assert_eq!(held(10), [(opcode("p"), EntryHolds::Pointer)]);
    table.remove("p").unwrap();
    assert_eq!(held(10), [(opcode("p"), EntryHolds::Remove)]);
    let stats = only_destination(&source);
    assert_eq!((stats.pointers, stats.tombstones, source.stats().pointers), (0, 1, 0));
    for n in 0..5u8 {
        table.set(n, b"x").unwrap();
    }
    assert_eq!((held(3).len(), held(10).len()), (3, 6));
    assert_eq!(source.unacked(id, 1)[0].table, "t");
    follow(&mut replica, "all of it", |replica| contents(replica, "t").len() == 5);
    until("the acks", || only_destination(&source).unacked == 0);
}

#[test]
fn data_replaces_a_pointer_and_a_pointer_data_whichever_is_on_its_way() {
    let (dir, _source, table) = source();
    let mut replica = synced_replica(dir.path());
    let pointer = Arc::new(Mutex::new(b"pointed to".to_vec()));
    for round in 0..50u8 {
        table.set("item", [round]).unwrap();
        table.set_shared("item", &pointer).unwrap();
        if round % 2 == 0 {
            follow(&mut replica, "the pointer's data", |replica| {
                replica.table("t").get("item") == Some(b"pointed to")
            });
        }
        table.set("item", [round, round]).unwrap();
        follow(&mut replica, "the data", |replica| replica.table("t").get("item") == Some(&[round, round]));
    }
}

#[test]
fn copy_that_was_overtaken_while_it_was_taken_is_not_sent() {
    let (dir, source, table) = source();
    let mut replica = synced_replica(dir.path());
    type Overtake = fn(&Table) -> Sent;
    let overtakes: [(Overtake, Option<&[u8]>); 3] = [
        (|table| table.set("item", b"data").unwrap(), Some(b"data")),
        (|table| table.remove("item").unwrap(), None),
        (|table| table.set_shared("item", &Arc::new(Mutex::new(b"other".to_vec()))).unwrap(), Some(b"other")),
    ];
    for (overtake, expected) in overtakes {
        let (old, asked, leave) = hesitant(b"old");
        table.set_shared("item", &old).unwrap();
        asked.recv_timeout(PATIENCE).unwrap();
        overtake(&table);
        leave.send(()).unwrap();
        table.set("marker", [0]).unwrap();
        table.set_shared("behind", &Arc::new(Mutex::new(b"x".to_vec()))).unwrap();
        let mut seen = Vec::new();
        until("what comes behind", || {
            replica
                .wait_observed(PATIENCE, |event| {
                    if let Event::Set { value, .. } = event {
                        seen.push(value.to_vec());
                    }
                })
                .unwrap();
            seen.contains(&b"x".to_vec()) && replica.table("t").get("item") == expected
        });
        assert!(!seen.contains(&b"old".to_vec()), "{seen:?}");
        for opcode in ["item", "behind", "marker"] {
            table.remove(opcode).unwrap();
        }
        follow(&mut replica, "the removes", |replica| replica.table("t").is_empty());
    }
    until("the acks", || only_destination(&source).unacked == 0);
}

#[test]
fn pointer_that_is_removed_goes_from_the_destination() {
    let (dir, source, table) = source();
    for n in 0..10u8 {
        table.set_shared(n, &Arc::new(Mutex::new(vec![n]))).unwrap();
    }
    let mut replica = synced_replica(dir.path());
    assert_eq!(replica.table("t").len(), 10);
    for n in 0..10u8 {
        table.remove(n).unwrap();
    }
    follow(&mut replica, "the removes", |replica| replica.table("t").is_empty());
    until("the acks", || only_destination(&source).unacked == 0);
    assert_eq!((source.stats().items, source.stats().pointers), (0, 0));
}

#[test]
fn late_destination_gets_pointers_before_the_end_marker() {
    let dir = tempfile::tempdir().unwrap();
    let source = source_options(dir.path()).ring_bytes(4096).create("s").unwrap();
    let tables = ["a", "b", "c"].map(|name| source.table(name).unwrap());
    for (n, table) in (0..600u32).zip(tables.iter().cycle()) {
        let value = n.to_ne_bytes();
        match n % 5 {
            0 | 1 => table.set_shared(n, &Arc::new(Mutex::new(value.to_vec()))).unwrap(),
            _ => table.set(n, value).unwrap(),
        };
    }
    tables.iter().for_each(Table::ready);
    let mut replica = synced_replica(dir.path());
    for table in &tables {
        assert_eq!(contents(&replica, table.name()), common::contents_of_source(table));
        assert_eq!(replica.table(table.name()).len(), 200);
    }
    let flushed = std::thread::scope(|scope| {
        let flush = scope.spawn(|| source.flush(PATIENCE).unwrap());
        follow(&mut replica, "the flush", |_| flush.is_finished());
        flush.join().unwrap()
    });
    assert_eq!(flushed, Flushed::Acked(1));
}

#[test]
fn saturated_ring_carries_both_data_and_pointers() {
    let dir = tempfile::tempdir().unwrap();
    let source = source_options(dir.path()).ring_bytes(4096).create("s").unwrap();
    let table = source.table("t").unwrap();
    let counter = Arc::new(AtomicU64::new(0));
    let read = counter.clone();
    let pointer = Arc::new(SnapshotFn(move |out: &mut Vec<u8>| {
        out.extend_from_slice(&read.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        Ok(())
    }));
    table.set_shared("pointer", &pointer).unwrap();
    table.ready();
    let mut replica = synced_replica(dir.path());
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..2u8 {
            let (table, over) = (table.clone(), &over);
            scope.spawn(move || {
                for round in 0u64.. {
                    for n in 0..100u8 {
                        table.set((thread, n), round.to_be_bytes()).unwrap();
                    }
                    table.touch("pointer").unwrap();
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
        }
        let (mut pointers, mut data) = (0, 0);
        let followed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            until("data and pointers", || {
                replica
                    .wait_observed(PATIENCE, |event| match event {
                        Event::Set { opcode, .. } if opcode.as_bytes() == b"pointer" => pointers += 1,
                        Event::Set { .. } => data += 1,
                        _ => {}
                    })
                    .unwrap();
                pointers >= 100 && data >= 5000
            });
        }));
        over.store(true, Ordering::Relaxed);
        println!("{pointers} of pointers, {data} of data");
        followed.unwrap();
    });
    follow(&mut replica, "the end", |_| only_destination(&source).unacked == 0);
}

#[test]
fn touch_of_what_is_no_pointer_is_an_error_that_says_so() {
    let (_dir, source, table) = source();
    table.set(7u8, b"x").unwrap();
    table.set_shared(8u8, &Arc::new(Mutex::new(b"x".to_vec()))).unwrap();
    table.touch(8u8).unwrap();
    table.set(8u8, b"data").unwrap();
    for (opcode, name) in [(7u8, "07"), (8, "08"), (9, "09")] {
        let error = table.touch(opcode).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("item {name} holds no pointer that could have changed; use set_shared first")
        );
    }
    assert_eq!(source.stats().changes, 4);
}
