//! Tables of which the source keeps unacknowledged changes only, and asks the application's enumerator for the rest.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use crate::common::{
    self, PATIENCE, contents, follow, only_destination, quick_resend, replica, source_options,
    synced_replica, until,
};
use shmirror::{
    Event, Flushed, Opcode, Replica, Retention, Source, SourceOptions, Subscription, Table, ToOpcode,
};
use tempfile::TempDir;

type Items = BTreeMap<u32, Vec<u8>>;

/// An application with items of its own, and a table for them.
struct Application {
    items: Arc<Mutex<Items>>,
    table: Table,
}

impl Application {
    fn new(source: &Source, items: impl IntoIterator<Item = (u32, Vec<u8>)>) -> Application {
        let items = Arc::new(Mutex::new(Items::from_iter(items)));
        let all = items.clone();
        let retention = Retention::unacked(move || all.lock().unwrap().clone());
        Application { items, table: source.table_with("t", retention).unwrap() }
    }

    /// Its own state first, then the source.
    fn set(&self, opcode: u32, value: &[u8]) {
        self.items.lock().unwrap().insert(opcode, value.to_vec());
        self.table.set(opcode, value).unwrap();
    }

    fn remove(&self, opcode: u32) {
        self.items.lock().unwrap().remove(&opcode);
        self.table.remove(opcode).unwrap();
    }

    fn is_mirrored_in(&self, replica: &Replica) -> bool {
        let items = self.items.lock().unwrap();
        let items = items.iter().map(|(opcode, value)| (opcode.to_opcode().unwrap(), value.clone()));
        contents(replica, "t") == items.collect::<BTreeMap<Opcode, _>>()
    }
}

fn old_items(count: u32) -> impl Iterator<Item = (u32, Vec<u8>)> {
    (0..count).map(|n| (n, b"old".to_vec()))
}

/// Says when the first of its items is asked for, and then waits for leave.
struct Stalling {
    items: std::collections::btree_map::IntoIter<u32, Vec<u8>>,
    stall: Option<(Sender<()>, Receiver<()>)>,
}

impl Iterator for Stalling {
    type Item = (u32, Vec<u8>);

    fn next(&mut self) -> Option<Self::Item> {
        if let Some((asked, leave)) = self.stall.take() {
            let _ = asked.send(());
            let _ = leave.recv_timeout(PATIENCE);
        }
        self.items.next()
    }
}

/// An application whose first enumeration stalls, with the items that there were at its beginning.
fn stalling(source: &Source, count: u32) -> (Application, Receiver<()>, Sender<()>) {
    let items = Arc::new(Mutex::new(Items::from_iter(old_items(count))));
    let ((asked, is_asked), (leave, has_leave)) = (channel(), channel());
    let (all, stall) = (items.clone(), Mutex::new(Some((asked, has_leave))));
    let retention = Retention::unacked(move || Stalling {
        items: all.lock().unwrap().clone().into_iter(),
        stall: stall.lock().unwrap().take(),
    });
    let table = source.table_with("t", retention).unwrap();
    table.ready();
    (Application { items, table }, is_asked, leave)
}

fn options(dir: &TempDir) -> SourceOptions {
    source_options(dir.path()).ring_bytes(4096)
}

#[test]
fn source_serves_all_items_and_keeps_none_that_is_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let source = options(&dir).create("s").unwrap();
    let application = Application::new(&source, old_items(1000));
    application.set(1, b"nobody is attached");
    assert_eq!((source.stats().items, application.table.len(), application.table.get(1u32)), (0, 0, None));
    application.table.ready();
    let mut replica = synced_replica(dir.path());
    assert!(application.is_mirrored_in(&replica));
    follow(&mut replica, "the acks", |_| only_destination(&source).unacked == 0);
    assert_eq!((source.stats().items, only_destination(&source).replaying), (0, false));

    application.set(7, b"new");
    application.set(5000, b"new");
    application.remove(8); // of which the source knows nothing
    assert_eq!((source.stats().items, only_destination(&source).tombstones), (2, 1));
    follow(&mut replica, "the changes", |replica| application.is_mirrored_in(replica));
    follow(&mut replica, "the acks", |_| only_destination(&source).unacked == 0);
    assert_eq!(source.stats().items, 0);
    assert_eq!(only_destination(&source).resent, 0);
}

#[test]
fn changes_during_an_enumeration_outdo_what_it_says() {
    for acknowledged_before in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let source = options(&dir).create("s").unwrap();
        let (application, asked, leave) = stalling(&source, 300);
        let mut replica = replica(dir.path(), "s");
        follow(&mut replica, "the enumeration", |_| asked.try_recv().is_ok());
        for n in (0..300).step_by(10) {
            application.set(n, b"new");
            application.remove(n + 1);
            application.set(n + 2, b"short-lived");
            application.remove(n + 2);
            application.remove(n + 3);
            application.set(n + 3, b"new life");
            application.set(1000 + n, b"new item");
            application.set(2000 + n, b"short-lived");
            application.remove(2000 + n);
        }
        if acknowledged_before {
            // only publishers and the replica are awake: the timer thread waits for the enumerator
            until("the source to forget the changes", || {
                application.table.set(9999u32, b"to send what waits").unwrap();
                application.table.remove(9999u32).unwrap();
                replica.update().unwrap();
                let stats = only_destination(&source);
                (stats.unacked, source.stats().items, stats.tombstones) == (0, 0, 0)
            });
            assert!(!replica.is_synced());
        }
        leave.send(()).unwrap();
        let mut seen = Vec::new();
        until("the end marker", || {
            replica
                .wait_observed(PATIENCE, |event| {
                    if let Event::Set { opcode, .. } = event {
                        seen.push(opcode.clone());
                    }
                })
                .unwrap();
            replica.is_synced()
        });
        seen.sort_unstable();
        assert!(seen.is_sorted_by(|a, b| a < b), "an item came twice: {seen:?}");
        assert!(application.is_mirrored_in(&replica), "acknowledged before: {acknowledged_before}");
        follow(&mut replica, "the acks", |_| only_destination(&source).unacked == 0);
        assert_eq!(source.stats().items, 0);
    }
}

#[test]
fn restarted_source_sweeps_at_the_end_of_the_enumeration_and_not_before_ready() {
    let dir = tempfile::tempdir().unwrap();
    let source = options(&dir).create("s").unwrap();
    let application = Application::new(&source, old_items(200));
    application.table.ready();
    let mut replica = synced_replica(dir.path());
    drop((application, source));

    let source = options(&dir).create("s").unwrap();
    let application = Application::new(&source, (100..300).map(|n| (n, b"new".to_vec())));
    follow(&mut replica, "the link", |_| source.stats().destinations.len() == 1);
    application.set(400, b"the first of the new life");
    follow(&mut replica, "the new life", |replica| replica.table("t").get(400u32).is_some());
    assert_eq!((replica.table("t").len(), replica.stats().swept, replica.is_synced()), (201, 0, false));
    application.table.ready();
    replica.wait_synced(PATIENCE).unwrap();
    assert!(application.is_mirrored_in(&replica));
    assert_eq!(replica.stats().swept, 100);
}

#[test]
fn enumerator_that_fails_costs_the_link_and_is_asked_again_by_the_next() {
    type Failure = fn() -> Option<(Vec<u8>, Vec<u8>)>;
    let failures: [(Failure, &str); 2] = [
        // without a word on standard error, unlike `panic!`
        (|| std::panic::resume_unwind(Box::new("half way")), "it panicked: half way"),
        (|| Some((vec![0; 256], Vec::new())), "opcode of 256 bytes is longer than the largest, 255 bytes"),
    ];
    for (failure, why) in failures {
        let dir = tempfile::tempdir().unwrap();
        let source = options(&dir).create("s").unwrap();
        let fails = Arc::new(AtomicBool::new(true));
        let is_failing = fails.clone();
        let enumerate = move || {
            let (mut left, is_failing) = (0..100u8, is_failing.clone());
            std::iter::from_fn(move || match left.next() {
                Some(70) if is_failing.load(Ordering::SeqCst) => failure(),
                n => n.map(|n| (vec![n], vec![n])),
            })
        };
        let table = source.table_with("t", Retention::unacked(enumerate)).unwrap();
        let other = source.table("other").unwrap();
        other.set("kept", b"x").unwrap();
        other.ready();
        table.ready();
        let mut replica = replica(dir.path(), "s");
        follow(&mut replica, "several tries", |replica| replica.stats().attaches > 2);
        let expected = format!("process {}: the enumerator of table t failed: {why}", std::process::id());
        assert_eq!(source.stats().last_error, Some(expected));
        assert_eq!(source.stats().broken, 0, "that is no fault of the destination");
        assert!(!replica.is_synced());
        table.set([200u8], b"live").unwrap();
        fails.store(false, Ordering::SeqCst);
        replica.wait_synced(PATIENCE).unwrap();
        assert!((100..=101).contains(&replica.table("t").len()));
        assert_eq!(replica.table("other").len(), 1);
    }
}

#[test]
fn enumerated_value_that_no_record_holds_makes_its_item_fail_and_holds_up_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let source = options(&dir).resend(quick_resend()).create("s").unwrap();
    let application = Application::new(&source, old_items(200));
    application.items.lock().unwrap().insert(100, vec![0; 5000]);
    application.table.ready();
    let mut replica = synced_replica(dir.path());
    assert_eq!(replica.table("t").len(), 199);
    follow(&mut replica, "the item to fail", |_| only_destination(&source).failing == 1);
    let stats = only_destination(&source);
    assert_eq!(stats.failing_items[0].opcode, 100u32.to_opcode().unwrap());
    let opcode = 100u32.to_opcode().unwrap();
    let why = "it has 5000 bytes, expected at most 988; use a larger ring_bytes";
    let expected = format!("item {opcode} of table t could not be read: {why}");
    assert_eq!(source.stats().last_error, Some(expected));
    application.set(100, b"short");
    follow(&mut replica, "the item", |replica| application.is_mirrored_in(replica));
    follow(&mut replica, "the acks", |_| only_destination(&source).unacked == 0);
    assert_eq!(source.stats().items, 0);
}

#[test]
fn two_destinations_are_served_side_by_side_each_with_what_it_wants() {
    let dir = tempfile::tempdir().unwrap();
    let source = options(&dir).create("s").unwrap();
    let application = Application::new(&source, old_items(1000));
    application.table.ready();
    let mut first = replica(dir.path(), "s");
    let wanted = Subscription::none().prefix("t", [0u8, 0, 1]).unwrap(); // 256 to 511
    let mut second = Replica::options().runtime_dir(dir.path()).subscribe(wanted).connect("s").unwrap();
    for round in 0..200u32 {
        application.set(round * 5, &round.to_ne_bytes());
        application.remove(round * 5 + 1);
        first.wait(common::MOMENT).unwrap();
        second.update().unwrap();
    }
    first.wait_synced(PATIENCE).unwrap();
    follow(&mut first, "all changes", |first| application.is_mirrored_in(first));
    second.wait_synced(PATIENCE).unwrap();
    let expected = |first: &Replica| {
        let mut contents = contents(first, "t");
        contents.retain(|opcode, _| opcode.as_bytes().starts_with(&[0, 0, 1]));
        contents
    };
    follow(&mut second, "its part", |second| contents(second, "t") == expected(&first));
    let flushed = std::thread::scope(|scope| {
        let flush = scope.spawn(|| source.flush(PATIENCE).unwrap());
        until("the flush", || {
            first.update().unwrap();
            second.update().unwrap();
            flush.is_finished()
        });
        flush.join().unwrap()
    });
    assert_eq!((flushed, source.stats().items), (Flushed::Acked(2), 0));
}

#[test]
fn too_many_changes_during_an_enumeration_give_the_destination_up_and_it_comes_again() {
    let dir = tempfile::tempdir().unwrap();
    let source = options(&dir).max_tombstones(20).create("s").unwrap();
    let (application, asked, leave) = stalling(&source, 100);
    let mut replica = replica(dir.path(), "s");
    follow(&mut replica, "the enumeration", |_| asked.try_recv().is_ok());
    for n in 0..20 {
        application.set(n, b"new");
    }
    assert_eq!(source.stats().overruns, 0);
    application.set(20, b"new");
    application.remove(21);
    let stats = source.stats();
    assert_eq!((stats.overruns, stats.broken, stats.items), (1, 0, 0));
    leave.send(()).unwrap();
    follow(&mut replica, "the second attachment", |replica| {
        replica.stats().attaches == 2 && replica.is_synced() && application.is_mirrored_in(replica)
    });
    let told = source.stats().last_error.unwrap();
    assert!(told.contains("more than 20 removes are unacknowledged"), "{told}");
    assert_eq!((source.stats().overruns, source.stats().broken), (1, 0));
}
