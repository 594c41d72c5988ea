//! Destinations that want a part, over real links: they get that, and what they do not want any more goes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::common::{self, PATIENCE, destination, follow, only_destination, receive, source_options, until};
use shmirror::{Destination, Event, Replica, Source, Subscription, SyncError, Table};
use tempfile::TempDir;

/// A source with tables `a`, `b` and `c`, each with ten items of "red", "reddish" and "blue".
fn colours() -> (TempDir, Source, [Table; 3]) {
    let dir = tempfile::tempdir().unwrap();
    let source = source_options(dir.path()).ring_bytes(4096).create("s").unwrap();
    let tables = ["a", "b", "c"].map(|name| source.table(name).unwrap());
    for table in &tables {
        for colour in ["red", "reddish", "blue"] {
            table.set_many((0..10u8).map(|n| ((colour, n), b"x"))).unwrap();
        }
        table.ready();
    }
    (dir, source, tables)
}

fn replica_of(dir: &TempDir, wanted: Subscription) -> Replica {
    let mut replica = Replica::options().runtime_dir(dir.path()).subscribe(wanted).connect("s").unwrap();
    replica.wait_synced(PATIENCE).unwrap();
    replica
}

fn lengths(replica: &Replica) -> [usize; 3] {
    ["a", "b", "c"].map(|name| replica.table(name).len())
}

fn is_settled(source: &Source) -> bool {
    source.stats().destinations.iter().all(|destination| destination.unacked == 0)
}

#[test]
fn what_is_not_wanted_is_not_sent() {
    let (dir, source, tables) = colours();
    let wanted = Subscription::none().table("a").prefix("b", ("red", "")).unwrap();
    let mut replica = replica_of(&dir, wanted);
    assert_eq!(lengths(&replica), [30, 10, 0]);
    assert_eq!(replica.tables().collect::<Vec<_>>(), ["a", "b"]);
    follow(&mut replica, "the acks", |_| is_settled(&source));
    let sent = only_destination(&source).sent;
    assert_eq!(sent, 30 + 10 + 2 * 2, "items, and the names and end markers of two tables");

    for table in &tables {
        for colour in ["red", "reddish", "blue"] {
            table.set((colour, 1u8), b"new").unwrap();
            table.set((colour, 100u8), b"made").unwrap();
            table.remove((colour, 2u8)).unwrap();
            table.set((colour, 3u8), b"p").unwrap();
        }
    }
    source.table("d").unwrap().set("of a table to come", b"x").unwrap();
    follow(&mut replica, "the acks", |_| is_settled(&source));
    assert_eq!(only_destination(&source).sent, sent + 4 * 4);
    assert_eq!(lengths(&replica), [30, 10, 0]);
    let (b, red) = (replica.table("b"), |n: u8| ("red", n));
    assert_eq!((b.get(red(1)), b.get(red(2)), b.get(red(3))), (Some(&b"new"[..]), None, Some(&b"p"[..])));
    assert_eq!((b.get(("reddish", 1u8)), replica.stats().received), (None, sent + 16));
}

#[test]
fn tables_that_are_named_are_waited_for_and_the_one_that_is_missing_is_named() {
    let (dir, source, _tables) = colours();
    let loading = source.table("loading").unwrap();
    let wanted = Subscription::none().table("a").table("missing");
    let mut replica = Replica::options().runtime_dir(dir.path()).subscribe(wanted).connect("s").unwrap();
    follow(&mut replica, "the table that is there", |replica| replica.table("a").is_synced());
    let error = replica.wait_synced(Duration::from_millis(20)).unwrap_err();
    assert!(matches!(error, SyncError::TimedOut { .. }));
    assert_eq!(
        error.to_string(),
        "not complete within 20ms: tables [\"missing\"] are still loading (none named: the source has no table)"
    );
    assert!(!replica.is_synced());
    let missing = source.table("missing").unwrap();
    missing.set(1u8, b"x").unwrap();
    missing.ready();
    replica.wait_synced(PATIENCE).unwrap();
    assert_eq!((replica.table("missing").len(), replica.stats().attaches), (1, 1));
    // nobody waits for one that was not asked for
    assert!(loading.is_empty());

    let mut nothing = replica_of(&dir, Subscription::none());
    source.table("a").unwrap().set(("blue", 1u8), b"new").unwrap();
    assert_eq!(nothing.wait(Duration::from_millis(20)).unwrap(), 0);
    assert_eq!(lengths(&nothing), [0, 0, 0]);
}

#[test]
fn what_is_wanted_no_more_is_swept_and_the_rest_stays() {
    let (dir, source, tables) = colours();
    let mut replica = replica_of(&dir, Subscription::all());
    assert_eq!(lengths(&replica), [30, 30, 30]);
    let prefix = |colour| Subscription::none().table("a").prefix("b", (colour, "")).unwrap();

    replica.subscribe(prefix("red")).unwrap();
    assert_eq!(lengths(&replica), [30, 30, 30], "nothing is told before the next attach");
    let mut removed = Vec::new();
    until("the new link", || {
        replica
            .wait_observed(PATIENCE, |event| match event {
                Event::Removed { table, opcode, .. } => removed.push((table.to_string(), opcode.clone())),
                Event::Set { replaced, .. } => assert!(!replaced),
                _ => {}
            })
            .unwrap();
        replica.stats().attaches == 2 && replica.is_synced()
    });
    assert_eq!(lengths(&replica), [30, 10, 0]);
    assert_eq!((removed.len(), replica.stats().swept, replica.stats().failed), (50, 50, 0));
    let tables_of_removed: Vec<&str> = removed.iter().map(|(table, _)| table.as_str()).collect();
    assert!(tables_of_removed[..30].iter().all(|table| *table == "c"), "a whole table goes at once");
    assert!(tables_of_removed[30..].iter().all(|table| *table == "b"));

    // wider, and another part; what is kept was not told again but for its confirmation
    replica.subscribe(prefix("blue").table("c")).unwrap();
    replica.wait_synced(PATIENCE).unwrap();
    assert_eq!(lengths(&replica), [30, 10, 30]);
    assert!(replica.table("b").get(("blue", 1u8)).is_some());
    assert_eq!(replica.stats().swept, 60);

    // a table that is loading at its source is not swept in parts, for its marker does not come
    let late = source.table("late").unwrap();
    late.set(("red", 1u8), b"x").unwrap();
    late.set(("blue", 1u8), b"x").unwrap();
    replica.subscribe(Subscription::none().table("late")).unwrap();
    follow(&mut replica, "the items of the late table", |replica| replica.table("late").len() == 2);
    assert_eq!(lengths(&replica), [0, 0, 0]);
    replica.subscribe(Subscription::none().prefix("late", ("red", "")).unwrap()).unwrap();
    until("the next link", || {
        replica.wait(common::MOMENT).unwrap();
        replica.stats().attaches == 5 && source.stats().destinations.len() == 1 && is_settled(&source)
    });
    assert_eq!((replica.table("late").len(), replica.is_synced()), (2, false));
    late.ready();
    replica.wait_synced(PATIENCE).unwrap();
    assert_eq!(replica.table("late").len(), 1);
    drop(tables);
}

#[test]
fn handler_that_fails_in_the_sweep_gets_its_item_again() {
    let (dir, _source, _tables) = colours();
    let mut destination = destination(dir.path());
    receive(&mut destination, "the items", |_| Ok(()), Destination::is_all_synced);
    assert_eq!(destination.stats().items, 90);

    destination.subscribe(Subscription::none().table("a")).unwrap();
    let (mut removed, mut tries) = (BTreeSet::new(), 0);
    receive(
        &mut destination,
        "the sweep",
        |event| {
            if let Event::Removed { table, opcode, .. } = event {
                if (table, opcode.decode()?) == ("b", ("blue".to_string(), 7u8)) {
                    tries += 1;
                    if tries <= 2 {
                        return Err("not now".into());
                    }
                }
                assert!(
                    removed.insert((table.to_string(), opcode.clone())),
                    "told twice: {opcode} of {table}"
                );
            }
            Ok(())
        },
        |destination| destination.is_all_synced() && destination.stats().items == 30,
    );
    assert_eq!((removed.len(), tries), (60, 3));
    assert_eq!((destination.stats().swept, destination.stats().failed), (60, 2));
    assert!(destination.last_failure().unwrap().ends_with("not now"));
}

#[test]
fn handler_that_fails_in_the_sweep_at_the_marker_gets_its_item_again() {
    let dir = tempfile::tempdir().unwrap();
    let options = source_options(dir.path()).resend(common::quick_resend());
    let source = options.create("s").unwrap();
    let table = source.table("t").unwrap();
    table.set_many((0..30u8).map(|n| ([n % 3, n], b"x"))).unwrap();
    table.ready();
    let mut destination = destination(dir.path());
    receive(&mut destination, "the items", |_| Ok(()), Destination::is_all_synced);

    destination.subscribe(Subscription::none().prefix("t", [1u8]).unwrap()).unwrap();
    let (mut removed, mut tries) = (BTreeSet::new(), 0);
    receive(
        &mut destination,
        "the sweep",
        |event| {
            match event {
                Event::Removed { opcode, .. } if opcode.as_bytes() == [2, 5] && tries < 2 => {
                    tries += 1;
                    return Err("not now".into());
                }
                Event::Removed { opcode, .. } => assert!(removed.insert(opcode.clone())),
                Event::Synced { .. } => assert_eq!((removed.len(), tries), (20, 2), "synced after the sweep"),
                _ => {}
            }
            Ok(())
        },
        Destination::is_all_synced,
    );
    assert_eq!((destination.stats().items, destination.stats().failed), (10, 2));
}

#[test]
fn subscription_may_change_before_there_is_a_source_and_while_it_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let mut replica = Replica::options().runtime_dir(dir.path()).connect("s").unwrap();
    replica.subscribe(Subscription::none().table("a")).unwrap();
    assert_eq!(replica.wait(Duration::from_millis(1)).unwrap(), 0);
    let source = source_options(dir.path()).create("s").unwrap();
    for name in ["a", "b"] {
        let table = source.table(name).unwrap();
        table.set(1u8, b"x").unwrap();
        table.ready();
    }
    // in whatever state the attach is: not begun, greeting, attached
    for round in 0..100 {
        let wanted = if round % 2 == 0 { "b" } else { "a" };
        replica.subscribe(Subscription::none().table(wanted)).unwrap();
        for _ in 0..round % 7 {
            replica.update().unwrap();
        }
    }
    replica.wait_synced(PATIENCE).unwrap();
    assert_eq!((replica.table("a").len(), replica.table("b").len()), (1, 0));
    until("the links given up", || source.stats().destinations.len() == 1);
    assert_eq!(source.stats().broken, 0);
}

#[test]
fn item_that_the_application_did_not_let_go_of_is_given_up_again_by_a_recv_that_waits() {
    let (dir, _source, _tables) = colours();
    let mut destination = destination(dir.path());
    receive(
        &mut destination,
        "the items",
        |_| Ok(()),
        |one| ["a", "b", "c"].iter().all(|table| one.is_synced(table)),
    );
    destination.subscribe(Subscription::none().table("a").table("b")).unwrap();
    let mut refusals = 1;
    let refuse_one = |event: Event<'_>| match event {
        Event::Removed { .. } if refusals > 0 => {
            refusals -= 1;
            Err("not yet".into())
        }
        _ => Ok(()),
    };
    receive(&mut destination, "the first attempt", refuse_one, |one| {
        one.is_synced("a") && one.is_synced("b") && one.stats().failed == 1
    });
    let mut removed = Vec::new();
    let since = Instant::now();
    while removed.is_empty() && since.elapsed() < PATIENCE {
        let note = |event: Event<'_>| {
            if let Event::Removed { table, .. } = event {
                removed.push(table.to_string());
            }
            Ok(())
        };
        destination.recv_timeout(PATIENCE, note).unwrap();
    }
    assert_eq!(removed, ["c"]);
    assert!(since.elapsed() < PATIENCE / 2, "after {:?}, although nobody else woke it", since.elapsed());
}
