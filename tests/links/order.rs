//! The order in which changes arrive: that of the calls for each item, and no table waits for another to be done.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::common::{
    self, PATIENCE, contents_of_source, destination, only_destination, receive, source_options, until,
};
use shmirror::{Destination, Event, Opcode, Retention, Source, Table};
use tempfile::TempDir;

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// A source with five tables and a ring that holds some sixty records of theirs.
fn five_tables(make: impl Fn(&Source, &str) -> Table) -> (TempDir, Source, [Table; 5]) {
    let dir = tempfile::tempdir().unwrap();
    let source = source_options(dir.path()).ring_bytes(4096).create("s").unwrap();
    let tables = NAMES.map(|name| make(&source, name));
    (dir, source, tables)
}

/// The tables of so many items, in the order in which they arrive.
fn tables_in_order(destination: &mut Destination, count: usize) -> Vec<String> {
    let mut order = Vec::new();
    until("all items", || {
        destination
            .recv_timeout(PATIENCE, |event| {
                if let Event::Set { table, .. } = event {
                    order.push(table.to_string());
                }
                Ok(())
            })
            .unwrap();
        order.len() >= count
    });
    order
}

/// As long as all tables have something left, no more than so many records lie between two of one table.
fn assert_turns(order: &[String], most: usize) {
    let done = NAMES.map(|name| order.iter().rposition(|table| table == name).unwrap());
    let all_wait = &order[..=*done.iter().min().unwrap()];
    assert!(all_wait.len() > order.len() / 2, "{} of {} records", all_wait.len(), order.len());
    for name in NAMES {
        let places = all_wait.iter().enumerate().filter(|(_, table)| *table == name);
        let places: Vec<usize> = places.map(|(at, _)| at).collect();
        let gap = places.windows(2).map(|pair| pair[1] - pair[0] - 1).max().unwrap().max(places[0]);
        assert!(gap <= most, "{gap} records of others between two of {name}: {all_wait:?}");
    }
}

#[test]
fn tables_with_a_backlog_take_turns() {
    let (dir, source, tables) = five_tables(|source, name| source.table(name).unwrap());
    tables.iter().for_each(Table::ready);
    let mut destination = destination(dir.path());
    receive(&mut destination, "the end markers", |_| Ok(()), Destination::is_all_synced);
    // table by table, far more than the ring holds; the destination stands still
    for table in &tables {
        table.set_many((0..200u32).map(|n| (n, b"x"))).unwrap();
    }
    let in_ring = only_destination(&source).sent as usize - 2 * NAMES.len();
    assert!(in_ring < 150, "{in_ring}");
    let order = tables_in_order(&mut destination, 1000);
    assert_turns(&order[in_ring..], 2 * NAMES.len());
}

#[test]
fn tables_of_a_replay_take_turns() {
    let (dir, _source, tables) = five_tables(|source, name| source.table(name).unwrap());
    for table in &tables {
        table.set_many((0..200u32).map(|n| (n, b"x"))).unwrap();
        table.ready();
    }
    let order = tables_in_order(&mut destination(dir.path()), 1000);
    assert_turns(&order, 2 * NAMES.len());
}

#[test]
fn tables_of_pointers_take_turns() {
    let (dir, _source, tables) = five_tables(|source, name| source.table(name).unwrap());
    let pointer = Arc::new(Mutex::new(b"x".to_vec()));
    for table in &tables {
        for n in 0..200u32 {
            table.set_shared(n, &pointer).unwrap();
        }
        table.ready();
    }
    let order = tables_in_order(&mut destination(dir.path()), 1000);
    assert_turns(&order, 2 * NAMES.len());
}

#[test]
fn tables_that_are_enumerated_take_turns() {
    let items = || (0..200u32).map(|n| (n, b"x"));
    let retention = Retention::unacked(items);
    let (dir, _source, tables) =
        five_tables(|source, name| source.table_with(name, retention.clone()).unwrap());
    tables.iter().for_each(Table::ready);
    let order = tables_in_order(&mut destination(dir.path()), 1000);
    // drawn some dozens at a time
    assert_turns(&order, 64 * NAMES.len());
}

#[test]
fn replay_and_live_changes_both_go_forward() {
    let (dir, _source, tables) = five_tables(|source, name| source.table(name).unwrap());
    let [live, late, ..] = &tables;
    late.set_many((0..2000u32).map(|n| (n, b"x"))).unwrap();
    let mut destination = destination(dir.path());
    let (mut round, mut of_live, mut of_late) = (0u32, 0, 0);
    until("the replay, while a publisher fills the ring again and again", || {
        round += 1;
        live.set_many((0..200u32).map(|n| (n, round.to_ne_bytes()))).unwrap();
        destination
            .try_recv(|event| {
                match event {
                    Event::Set { table: "a", .. } => of_live += 1,
                    Event::Set { .. } => of_late += 1,
                    _ => {}
                }
                Ok(())
            })
            .unwrap();
        of_late == 2000
    });
    // Whenever both wait they take turns; how often the publisher waits for the scheduler is not ours to say.
    assert!(of_live > 200 && of_live < 4000, "{of_live} live changes beside 2000 of the replay");
}

/// What a thread has set an item to: so many times in so many lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Value {
    count: u32,
    life: u32,
}

impl Value {
    fn to_bytes(self) -> [u8; 8] {
        [self.count.to_ne_bytes(), self.life.to_ne_bytes()].concat().try_into().unwrap()
    }

    fn from_bytes(bytes: &[u8]) -> Value {
        let number = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        Value { count: number(0), life: number(4) }
    }
}

/// Sets, removes and makes anew its own items of every table; the values count up.
fn publish(table: &Table, thread: u8, rounds: u32) {
    let mut random = fastrand::Rng::with_seed(thread.into());
    let mut values = [Value { count: 0, life: 0 }; 20];
    for _ in 0..rounds {
        let item = random.usize(..values.len());
        let (opcode, value) = ((thread, item as u32), &mut values[item]);
        if random.u8(..4) == 0 {
            table.remove(opcode).unwrap();
            value.life += 1;
        } else {
            value.count += 1;
            table.set(opcode, value.to_bytes()).unwrap();
        }
    }
}

/// What the destination knows of each item.
#[derive(Default)]
struct Seen(BTreeMap<Opcode, (Value, bool)>);

impl Seen {
    fn check(&mut self, event: Event<'_>) {
        match event {
            Event::Set { opcode, value, replaced, .. } => {
                let value = Value::from_bytes(value);
                let before = self.0.insert(opcode.clone(), (value, true));
                let Some((before, was_there)) = before else { return assert!(!replaced) };
                assert!(
                    before.count < value.count && before.life <= value.life,
                    "{before:?}, then {value:?}"
                );
                assert_eq!(replaced, was_there && before.life < value.life, "{before:?}, then {value:?}");
            }
            Event::Removed { opcode, .. } => {
                let (_, is_there) = self.0.get_mut(opcode).expect("no item is removed that never was");
                assert!(std::mem::take(is_there), "removed twice");
            }
            _ => {}
        }
    }

    fn items(&self) -> BTreeMap<Opcode, Vec<u8>> {
        let there = self.0.iter().filter(|(_, (_, is_there))| *is_there);
        there.map(|(opcode, (value, _))| (opcode.clone(), value.to_bytes().to_vec())).collect()
    }
}

#[test]
fn items_of_several_publishing_threads_arrive_in_the_order_of_the_calls() {
    const THREADS: u8 = 4;
    for ring_bytes in [4096, 1 << 20] {
        let dir = tempfile::tempdir().unwrap();
        let options = source_options(dir.path()).ring_bytes(ring_bytes).first_sync_seq(u32::MAX - 1000);
        let source = options.create("s").unwrap();
        let table = source.table("t").unwrap();
        table.ready();
        let mut destination = destination(dir.path());
        receive(&mut destination, "the end marker", |_| Ok(()), Destination::is_all_synced);
        let mut seen = Seen::default();
        let mut failure = None;
        std::thread::scope(|scope| {
            let publishers: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let table = table.clone();
                    scope.spawn(move || publish(&table, thread, 20_000))
                })
                .collect();
            until("the publishers and the acks", || {
                let handle = |event: Event<'_>| {
                    seen.check(event);
                    Ok(())
                };
                destination.recv_timeout(common::MOMENT, handle).unwrap();
                failure = destination.last_failure().map(String::from);
                let done = publishers.iter().all(|publisher| publisher.is_finished());
                failure.is_some() || (done && only_destination(&source).unacked == 0)
            });
        });
        assert_eq!(failure, None);
        assert_eq!(seen.items(), contents_of_source(&table));
        println!("{:?}, {:?}", destination.stats(), only_destination(&source));
    }
}
