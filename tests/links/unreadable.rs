//! Data of the application that cannot be read when it is to be sent: its item is named, keeps what destinations have of it,
//! shows in the numbers, and holds nothing else up.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use crate::common::{
    PATIENCE, follow, only_destination, quick_resend, source_options, synced_replica, until,
};
use shmirror::{EntryHolds, Replica, Snapshot, SnapshotResult, Source, SourceOptions, Subscription, Table};
use tempfile::TempDir;

/// Data that can be read or not.
#[derive(Default)]
struct Moody {
    mood: AtomicU8,
    value: Mutex<Vec<u8>>,
}

const READABLE: u8 = 0;
const FAILS: u8 = 1;
const PANICS: u8 = 2;
const TOO_LONG: u8 = 3;

impl Moody {
    fn new(value: &[u8]) -> Arc<Moody> {
        Arc::new(Moody { mood: AtomicU8::new(READABLE), value: Mutex::new(value.to_vec()) })
    }

    fn become_(&self, mood: u8, value: &[u8]) {
        *self.value.lock().unwrap() = value.to_vec();
        self.mood.store(mood, Ordering::SeqCst);
    }
}

impl Snapshot for Moody {
    fn snapshot(&self, out: &mut Vec<u8>) -> SnapshotResult {
        out.extend_from_slice(&self.value.lock().unwrap());
        match self.mood.load(Ordering::SeqCst) {
            FAILS => Err("it is being rebuilt".into()),
            // without a word on standard error, unlike `panic!`
            PANICS => std::panic::resume_unwind(Box::new("half way")),
            TOO_LONG => {
                out.resize(5000, 0);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

const MOODS: [(u8, &str); 3] = [
    (FAILS, "it is being rebuilt"),
    (PANICS, "it panicked: half way"),
    (TOO_LONG, "it has 5000 bytes, expected at most 989; use a larger ring_bytes"),
];

fn options(dir: &TempDir) -> SourceOptions {
    source_options(dir.path()).ring_bytes(4096).resend(quick_resend())
}

fn source() -> (TempDir, Source, Table) {
    let dir = tempfile::tempdir().unwrap();
    let source = options(&dir).create("s").unwrap();
    let table = source.table("t").unwrap();
    (dir, source, table)
}

fn get(replica: &Replica, opcode: &str) -> Option<Vec<u8>> {
    replica.table("t").get(opcode).map(<[u8]>::to_vec)
}

#[test]
fn unreadable_item_keeps_its_old_value_shows_in_the_numbers_and_comes_once_it_can_be_read() {
    for (mood, why) in MOODS {
        let (dir, source, table) = source();
        let bad = Moody::new(b"old");
        table.set_shared("bad", &bad).unwrap();
        table.set_shared("good", &Moody::new(b"good")).unwrap();
        table.ready();
        let mut replica = synced_replica(dir.path());
        until("the acks", || only_destination(&source).unacked == 0);
        assert_eq!((only_destination(&source).unreadable, source.stats().last_error), (0, None));

        bad.become_(mood, b"half made");
        table.touch("bad").unwrap();
        follow(&mut replica, "the item to count as failing", |_| only_destination(&source).failing == 1);
        // It does as soon as it is due for the third time; the lock is free until it has been read.
        follow(&mut replica, "sent once and again three times", |_| {
            only_destination(&source).unreadable >= 4
        });
        let stats = only_destination(&source);
        assert!(replica.stats().unreadable >= 1);
        let failing = &stats.failing_items[0];
        assert_eq!(
            (stats.failing_items.len(), failing.table.as_str(), failing.holds),
            (1, "t", EntryHolds::Pointer)
        );
        assert_eq!(failing.opcode.to_string(), "bad");
        assert!(failing.resent >= 3);
        let expected = format!("item bad of table t could not be read: {why}");
        assert_eq!(source.stats().last_error, Some(expected));
        assert_eq!(get(&replica, "bad").as_deref(), Some(&b"old"[..]));
        let is_readable_here = mood == TOO_LONG;
        assert_eq!(
            (table.get("bad").is_some(), table.items().len() == 2),
            (is_readable_here, is_readable_here)
        );

        // the others go on
        table.set("data", b"x").unwrap();
        table.touch("good").unwrap();
        table.set_shared("another", &Moody::new(b"y")).unwrap();
        follow(&mut replica, "the others", |replica| {
            get(replica, "data").is_some() && get(replica, "another").is_some()
        });
        follow(&mut replica, "their acks", |_| only_destination(&source).unacked == 1);

        bad.become_(READABLE, b"new");
        follow(&mut replica, "the item", |replica| get(replica, "bad").as_deref() == Some(b"new"));
        follow(&mut replica, "its ack", |_| only_destination(&source).unacked == 0);
        let stats = only_destination(&source);
        assert_eq!((stats.failing, stats.failing_items), (0, Vec::new()));
    }
}

#[test]
fn replay_names_an_unreadable_item_so_that_nobody_sweeps_it_and_ends_all_the_same() {
    for (mood, _) in MOODS {
        let (dir, source, table) = source();
        let bad = Moody::new(b"old");
        table.set_shared("bad", &bad).unwrap();
        table.set("data", b"x").unwrap();
        table.ready();
        let mut replica = synced_replica(dir.path());
        bad.become_(mood, b"new");
        table.touch("bad").unwrap();

        // attached anew
        replica.subscribe(Subscription::all()).unwrap();
        assert!(!replica.is_synced());
        replica.wait_synced(PATIENCE).unwrap();
        assert_eq!((replica.stats().attaches, replica.stats().swept), (2, 0));
        assert_eq!(get(&replica, "bad").as_deref(), Some(&b"old"[..]));
        assert!(replica.stats().unreadable >= 1);

        // and one that never had it
        let mut late = synced_replica(dir.path());
        assert_eq!((get(&late, "bad"), late.table("t").len()), (None, 1));
        bad.become_(READABLE, b"new");
        for replica in [&mut replica, &mut late] {
            follow(replica, "the item", |replica| get(replica, "bad").as_deref() == Some(b"new"));
        }

        // a source that has been restarted cannot read it either
        bad.become_(mood, b"newer");
        drop((table, source));
        let source = options(&dir).create("s").unwrap();
        let table = source.table("t").unwrap();
        table.set_shared("bad", &bad).unwrap();
        table.ready();
        follow(&mut replica, "the new life", |replica| replica.stats().attaches == 3 && replica.is_synced());
        assert_eq!((replica.stats().swept, replica.table("t").len()), (1, 1));
        assert_eq!(get(&replica, "bad").as_deref(), Some(&b"new"[..]));
        table.remove("bad").unwrap();
        follow(&mut replica, "the remove", |replica| replica.table("t").is_empty());
    }
}

#[test]
fn many_unreadable_items_hold_up_no_other_and_some_of_them_are_always_named() {
    let (dir, source, table) = source();
    let moody: Vec<_> = (0..40u8).map(|n| Moody::new(&[n])).collect();
    moody.iter().for_each(|bad| bad.become_(FAILS, b""));
    for (n, bad) in (0u8..).zip(&moody) {
        table.set_shared(n, bad).unwrap();
        table.set((n, "data"), [n]).unwrap();
    }
    table.ready();
    let mut replica = synced_replica(dir.path());
    assert_eq!(replica.table("t").len(), 40);
    follow(&mut replica, "all of them to fail", |_| only_destination(&source).failing == 40);
    assert_eq!(only_destination(&source).failing_items.len(), 8);
    // Those that are named recover, again and again, and others take their place.
    for left in (0..40u32).step_by(8).rev() {
        for item in only_destination(&source).failing_items {
            let n: u8 = item.opcode.decode().unwrap();
            moody[usize::from(n)].become_(READABLE, &[n]);
        }
        follow(&mut replica, "some to recover", |_| only_destination(&source).failing == u64::from(left));
        follow(&mut replica, "others to be named", |_| {
            only_destination(&source).failing_items.len() == left.min(8) as usize
        });
    }
    follow(&mut replica, "the acks", |_| only_destination(&source).unacked == 0);
    assert_eq!(replica.table("t").len(), 80);
}

#[test]
fn value_whose_lock_is_poisoned_is_unreadable_until_that_is_cleared() {
    let (dir, source, table) = source();
    let value = Arc::new(Mutex::new(b"old".to_vec()));
    table.set_shared("item", &value).unwrap();
    table.ready();
    let mut replica = synced_replica(dir.path());
    let poison = std::thread::spawn({
        let value = value.clone();
        move || {
            let mut half = value.lock().unwrap();
            half.clear();
            std::panic::resume_unwind(Box::new("half way"))
        }
    });
    assert!(poison.join().is_err());
    table.touch("item").unwrap();
    follow(&mut replica, "that it is unreadable", |replica| replica.stats().unreadable > 0);
    let expected = "item item of table t could not be read: the value's lock is poisoned";
    assert_eq!(source.stats().last_error.as_deref(), Some(expected));
    assert_eq!(get(&replica, "item").as_deref(), Some(&b"old"[..]));
    value.clear_poison();
    follow(&mut replica, "the value", |replica| get(replica, "item").as_deref() == Some(b""));
}

#[test]
fn item_that_has_changed_before_it_proved_unreadable_is_not_complained_of_and_hides_no_older_complaint() {
    let (dir, source, table) = source();
    table.ready();
    let mut replica = synced_replica(dir.path());
    let bad = Moody::new(b"");
    bad.become_(FAILS, b"");
    table.set_shared("bad", &bad).unwrap();
    follow(&mut replica, "the complaint", |_| source.stats().last_error.is_some());
    let complaint = source.stats().last_error;
    table.remove("bad").unwrap();

    let (asked, is_asked) = channel();
    let (leave, has_leave) = channel();
    let has_leave = Mutex::new(has_leave);
    let hesitant = Arc::new(shmirror::SnapshotFn(move |_: &mut Vec<u8>| {
        let _ = asked.send(());
        has_leave.lock().unwrap().recv_timeout(PATIENCE)?;
        Err("not now".into())
    }));
    table.set_shared("item", &hesitant).unwrap();
    is_asked.recv_timeout(PATIENCE).unwrap();
    table.set("item", b"data").unwrap();
    leave.send(()).unwrap();
    // It is the next one's turn once the answer was taken in.
    table.set_shared("behind", &Moody::new(b"x")).unwrap();
    follow(&mut replica, "what comes behind", |replica| get(replica, "behind").is_some());
    assert_eq!(source.stats().last_error, complaint);
    assert_eq!(get(&replica, "item").as_deref(), Some(&b"data"[..]));
}
