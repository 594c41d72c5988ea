//! What a destination that stands still may cost, and whom a flush waits for.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::{
    self, PATIENCE, contents, contents_of_source, destination, follow, only_destination, replica,
    source_options, synced_replica, until,
};
use shmirror::{
    Destination, DestinationId, Event, FlushError, Flushed, Opcode, Replica, SnapshotFn, Source, Table,
};

/// A destination and what its application made of the events.
struct Mirror {
    destination: Destination,
    items: BTreeMap<Opcode, Vec<u8>>,
    synced: u32,
}

impl Mirror {
    fn new(destination: Destination) -> Mirror {
        Mirror { destination, items: BTreeMap::new(), synced: 0 }
    }

    fn follow(&mut self, what: &str, mut done: impl FnMut(&Mirror) -> bool) {
        until(what, || {
            let Mirror { destination, items, synced } = self;
            destination
                .recv_timeout(common::MOMENT, |event| {
                    match event {
                        Event::Set { opcode, value, .. } => {
                            drop(items.insert(opcode.clone(), value.to_vec()))
                        }
                        Event::Removed { opcode, .. } => assert!(items.remove(opcode).is_some(), "{opcode}"),
                        Event::Synced { .. } => *synced += 1,
                        _ => {}
                    }
                    Ok(())
                })
                .unwrap();
            assert_eq!(destination.last_failure(), None);
            done(self)
        });
    }
}

/// The destinations that are attached, in the order in which they came.
fn ids(source: &Source) -> Vec<DestinationId> {
    source.stats().destinations.iter().map(|destination| destination.id).collect()
}

/// A flush that waits for a place among those that wait.
fn insist(flush: impl Fn() -> Result<Flushed, FlushError>) -> Flushed {
    loop {
        match flush() {
            Err(FlushError::TooMany) => std::thread::yield_now(),
            outcome => return outcome.unwrap(),
        }
    }
}

#[test]
fn destination_that_stands_still_is_given_up_at_the_bound_and_nobody_else_notices() {
    const MOST: u32 = 50;
    let dir = tempfile::tempdir().unwrap();
    let source = source_options(dir.path()).max_tombstones(MOST as usize).create("s").unwrap();
    let table = source.table("t").unwrap();
    table.set_many((0..500u32).map(|n| (n, n.to_ne_bytes()))).unwrap();
    table.ready();
    let mut stopped = Mirror::new(destination(dir.path()));
    stopped.follow("the end marker", |mirror| mirror.synced == 1);
    let mut live = synced_replica(dir.path());
    until("the acks", || source.stats().destinations.iter().all(|destination| destination.unacked == 0));
    let [id_of_stopped, _] = ids(&source)[..] else { panic!("two are attached") };

    std::thread::scope(|scope| {
        table.set(499u32, b"flushed").unwrap();
        // as many as can wait at a time, so that one more tells that they all do
        let flush = || insist(|| source.flush(PATIENCE));
        let flush_of_it = || insist(|| source.flush_destination(id_of_stopped, PATIENCE));
        let flushes: Vec<_> = (0..8).flat_map(|_| [scope.spawn(flush), scope.spawn(flush_of_it)]).collect();
        until("all of them to wait", || source.flush(Duration::ZERO) == Err(FlushError::TooMany));
        for n in 0..MOST {
            table.remove(n).unwrap();
            follow(&mut live, "the remove", |live| live.table("t").get(n).is_none());
        }
        let stats = source.stats();
        assert_eq!((stats.overruns, stats.destinations[0].tombstones), (0, u64::from(MOST)));
        assert!(!flushes.iter().any(|flush| flush.is_finished()));
        table.remove(MOST).unwrap();
        assert_eq!(source.stats().overruns, 1);
        follow(&mut live, "the flushes", |_| flushes.iter().all(|flush| flush.is_finished()));
        for flush in flushes {
            assert_eq!(flush.join().unwrap(), Flushed::Gone(vec![id_of_stopped]));
        }
    });
    until("the link to be closed", || ids(&source).len() == 1);
    // what goes on costs nothing for the one that was given up
    table.remove(MOST + 1).unwrap();
    table.set(1000u32, b"new").unwrap();
    follow(&mut live, "the changes", |live| contents(live, "t") == contents_of_source(&table));
    assert_eq!((live.stats().attaches, live.stats().swept), (1, 0));

    stopped.follow("the second attachment", |mirror| mirror.synced == 2);
    assert_eq!(stopped.items, contents_of_source(&table));
    assert_eq!(stopped.destination.stats().attaches, 2);
    let stats = source.stats();
    assert_eq!((stats.overruns, stats.broken, stats.attached, stats.refused), (1, 0, 3, 0));
    let told = stats.last_error.unwrap();
    assert!(told.contains("more than 50 removes are unacknowledged"), "{told}");
}

/// A source with so many items, and this bound, and a replica that has acknowledged all of them.
fn acknowledged(dir: &Path, items: u32, max_tombstones: usize) -> (Source, Table, Replica) {
    let source = source_options(dir).max_tombstones(max_tombstones).create("s").unwrap();
    let table = source.table("t").unwrap();
    table.set_many((0..items).map(|n| (n, b"x"))).unwrap();
    table.ready();
    let replica = synced_replica(dir);
    until("the acks", || only_destination(&source).unacked == 0);
    (source, table, replica)
}

#[test]
fn destination_that_keeps_up_is_not_given_up_for_acks_that_nobody_has_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let (source, table, mut replica) = acknowledged(dir.path(), 50, 1);
    for n in 0..50u32 {
        table.remove(n).unwrap();
        follow(&mut replica, "the remove", |replica| replica.table("t").get(n).is_none());
    }
    assert_eq!((source.stats().overruns, replica.stats().attaches), (0, 1));
}

#[test]
fn flush_says_that_a_destination_is_gone_as_soon_as_it_was_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let (source, table, mut replica) = acknowledged(dir.path(), 10, 3);
    let id = only_destination(&source).id;
    // The timer thread, which closes links, is kept with the application meanwhile.
    let ((asked, is_asked), (leave, has_leave)) = (channel(), channel::<()>());
    let has_leave = Mutex::new(has_leave);
    let hesitant = Arc::new(SnapshotFn(move |_: &mut Vec<u8>| {
        let _ = asked.send(());
        // hangs up when the test lets go
        let _ = has_leave.lock().unwrap().recv_timeout(PATIENCE);
        Ok(())
    }));
    table.set_shared("hesitant", &hesitant).unwrap();
    is_asked.recv_timeout(PATIENCE).unwrap();
    for n in 0..4u32 {
        table.remove(n).unwrap();
    }
    assert_eq!(source.stats().overruns, 1);
    assert_eq!(source.flush(Duration::ZERO).unwrap(), Flushed::Gone(vec![id]));
    assert_eq!(source.flush_destination(id, Duration::ZERO).unwrap(), Flushed::Gone(vec![id]));
    assert_eq!((ids(&source), source.unacked(id, 9)), (vec![], vec![]));
    drop(leave);
    follow(&mut replica, "the second attachment", |replica| {
        replica.stats().attaches == 2 && replica.is_synced()
    });
    assert_eq!(contents(&replica, "t"), contents_of_source(&table));
}

#[test]
fn bound_of_zero_gives_everybody_up_at_each_remove_and_all_converge() {
    let dir = tempfile::tempdir().unwrap();
    let source = source_options(dir.path()).max_tombstones(0).create("s").unwrap();
    let table = source.table("t").unwrap();
    table.set_many((0..100u32).map(|n| (n, b"x"))).unwrap();
    table.ready();
    let mut replicas = [synced_replica(dir.path()), synced_replica(dir.path())];
    table.remove(7u32).unwrap();
    assert_eq!(source.stats().overruns, 2);
    for replica in &mut replicas {
        follow(replica, "the second attachment", |replica| {
            replica.stats().attaches == 2 && replica.is_synced()
        });
        assert_eq!((replica.table("t").len(), replica.stats().swept), (99, 1));
    }
    assert_eq!(source.stats().broken, 0);
}

#[test]
fn items_that_come_and_go_before_they_were_sent_count_for_no_bound() {
    let dir = tempfile::tempdir().unwrap();
    let source = source_options(dir.path()).ring_bytes(4096).max_tombstones(200).create("s").unwrap();
    let table = source.table("t").unwrap();
    table.ready();
    let mut replica = synced_replica(dir.path());
    for n in 0..10_000u32 {
        table.set(n, b"short-lived").unwrap();
        table.remove(n).unwrap();
    }
    assert_eq!(source.stats().overruns, 0, "a ring of 4096 bytes holds fewer than 200");
    table.set(0u32, b"stays").unwrap();
    follow(&mut replica, "the last", |replica| contents(replica, "t") == contents_of_source(&table));
    assert_eq!(replica.stats().attaches, 1);
}

#[test]
fn flush_of_one_destination_waits_for_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let source = source_options(dir.path()).create("s").unwrap();
    let table = source.table("t").unwrap();
    table.ready();
    let mut quick = synced_replica(dir.path());
    let slow = {
        let mut slow = replica(dir.path(), "s");
        slow.wait_synced(PATIENCE).unwrap();
        slow
    };
    until("the acks", || source.stats().destinations.iter().all(|destination| destination.unacked == 0));
    let [id_of_quick, id_of_slow] = ids(&source)[..] else { panic!("two are attached") };
    for id in [id_of_quick, id_of_slow] {
        assert_eq!(source.flush_destination(id, Duration::ZERO).unwrap(), Flushed::Acked(1));
    }

    table.set(1u8, b"x").unwrap();
    table.set(2u8, b"x").unwrap();
    let flushed = std::thread::scope(|scope| {
        let flush = scope.spawn(|| source.flush_destination(id_of_quick, PATIENCE).unwrap());
        follow(&mut quick, "the flush", |_| flush.is_finished());
        flush.join().unwrap()
    });
    assert_eq!(flushed, Flushed::Acked(1));
    let moment = Duration::from_millis(20);
    assert_eq!(source.flush(moment).unwrap(), Flushed::TimedOut(vec![(id_of_slow, 2)]));
    assert_eq!(
        source.flush_destination(id_of_slow, moment).unwrap(),
        Flushed::TimedOut(vec![(id_of_slow, 2)])
    );

    // one that goes meanwhile, and one that has gone
    let flushed = std::thread::scope(|scope| {
        let flush = scope.spawn(|| source.flush_destination(id_of_slow, PATIENCE).unwrap());
        drop(slow);
        flush.join().unwrap()
    });
    assert_eq!(flushed, Flushed::Gone(vec![id_of_slow]));
    until("the source to forget it", || ids(&source) == [id_of_quick]);
    assert_eq!(source.flush_destination(id_of_slow, PATIENCE).unwrap(), Flushed::Gone(vec![id_of_slow]));
    assert_eq!(source.flush(PATIENCE).unwrap(), Flushed::Acked(1));
    drop(quick);
    until("the source to forget the other", || ids(&source).is_empty());
    assert_eq!(source.flush(PATIENCE).unwrap(), Flushed::NoDestination);
}
