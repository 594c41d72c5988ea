//! Batches: events in a buffer of the caller's own (`Destination::recv_batch`).

use std::collections::BTreeMap;

use crate::common::{self, MOMENT, PATIENCE, only_destination, quick_resend, source_options, until};
use shmirror::{Batch, Destination, Event, Flushed, Source, Subscription, Table};
use tempfile::TempDir;

struct Rig {
    source: Source,
    table: Table,
    destination: Destination,
    _dir: TempDir,
}

/// A source with a table and a destination that has it, and whether what is refused comes again soon.
fn rig(resend: bool) -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let options = source_options(dir.path());
    let options = if resend { options.resend(quick_resend()) } else { options };
    let source = options.create("s").unwrap();
    let table = source.table("t").unwrap();
    table.ready();
    let mut destination = common::destination(dir.path());
    common::receive(&mut destination, "the end marker", |_| Ok(()), Destination::is_all_synced);
    Rig { source, table, destination, _dir: dir }
}

impl Rig {
    fn unacked(&self) -> u64 {
        only_destination(&self.source).unacked
    }

    /// Receives until there are events.
    fn fill(&mut self, batch: &mut Batch) {
        until("events", || {
            self.destination.recv_batch_timeout(batch, MOMENT).unwrap();
            !batch.is_empty()
        });
    }
}

/// What a batch says, in short.
fn told(batch: &Batch) -> Vec<String> {
    let text = |event| match event {
        Event::Set { opcode, value, .. } => format!("{opcode}={}", String::from_utf8_lossy(value)),
        Event::Removed { opcode, .. } => format!("{opcode} removed"),
        other => format!("{other:?}").split([' ', '{']).next().unwrap().to_string(),
    };
    batch.events().map(text).collect()
}

#[test]
fn values_lie_in_the_callers_buffer_and_are_acknowledged_when_the_batch_comes_back() {
    let mut rig = rig(false);
    rig.table.set_many((0..10u32).map(|n| (n, [n as u8; 100]))).unwrap();
    let buffer = Vec::with_capacity(8192);
    let place = buffer.as_ptr();
    let mut batch = Batch::new(buffer);
    rig.fill(&mut batch);
    assert_eq!((batch.len(), batch.buffer().as_ptr()), (10, place), "it was room enough");
    for (at, event) in batch.events().enumerate() {
        let Event::Set { table: "t", opcode, value, .. } = event else { panic!("{event:?}") };
        assert_eq!((opcode.decode::<u32>().unwrap(), value), (at as u32, &[at as u8; 100][..]));
        assert_eq!(&batch.buffer()[batch.value_range(at).unwrap()], value);
        assert_eq!(event.defer_ack(), None);
    }
    assert_eq!((rig.unacked(), rig.destination.stats().owed), (10, 10), "not before it comes back");
    assert_eq!(rig.destination.ack_batch(&mut batch).unwrap(), 10);
    assert_eq!(rig.source.flush(PATIENCE).unwrap(), Flushed::Acked(1));
    assert_eq!((batch.len(), batch.value_range(0), rig.unacked()), (0, None, 0));

    // Or when it is filled again.
    rig.table.set(0u32, "again").unwrap();
    rig.fill(&mut batch);
    rig.table.remove(1u32).unwrap();
    let mut heard = told(&batch);
    rig.fill(&mut batch);
    heard.extend(told(&batch));
    assert_eq!(heard, ["00000000=again", "00000001 removed"]);
    assert_eq!(batch.buffer().as_ptr(), place);
    assert_eq!(rig.destination.try_recv_batch(&mut batch).unwrap(), 0);
    assert!(batch.is_empty());
    until("the acks", || rig.unacked() == 0);
    assert_eq!((rig.destination.stats().owed, rig.destination.stats().items), (0, 9));
}

#[test]
fn full_batch_leaves_the_rest_in_the_ring_and_a_long_record_makes_it_grow() {
    let mut rig = rig(false);
    rig.table.set_many((0..100u32).map(|n| (n, vec![n as u8; 1 + n as usize]))).unwrap();
    rig.table.set(100u32, vec![100; 101_000]).unwrap();
    let mut batch = Batch::with_capacity(500);
    let mut items = BTreeMap::new();
    let mut batches = 0;
    while items.len() < 101 {
        rig.fill(&mut batch);
        batches += 1;
        for event in batch.events() {
            let Event::Set { opcode, value, .. } = event else { panic!("{event:?}") };
            assert!(items.insert(opcode.decode::<u32>().unwrap(), value.to_vec()).is_none());
        }
        let used: usize =
            (0..batch.len()).filter_map(|at| batch.value_range(at)).map(|range| range.len()).sum();
        assert!(
            used < 500 + 101 || batch.len() == 1 || items.len() == 101,
            "{used} bytes in {}",
            batch.len()
        );
    }
    // 100 records of 28 + 1 to 28 + 100 bytes
    assert!(batches >= 14, "{batches}");
    let good = |(n, value): (&u32, &Vec<u8>)| value.iter().all(|byte| *byte == *n as u8);
    assert!(items.iter().all(good) && items[&99].len() == 100 && items[&100].len() == 101_000);
    rig.destination.ack_batch(&mut batch).unwrap();
    until("the acks", || rig.unacked() == 0);
}

#[test]
fn refused_change_comes_again_and_one_whose_ack_was_taken_waits_for_it() {
    let mut rig = rig(true);
    rig.table.set_many([("kept", "1"), ("later", "1"), ("poison", "1")]).unwrap();
    let mut batch = Batch::with_capacity(4096);
    rig.fill(&mut batch);
    assert_eq!(told(&batch), ["kept=1", "later=1", "poison=1"]);
    let token = batch.take_ack(1).unwrap();
    assert!(batch.refuse(2) && !batch.refuse(1) && !batch.refuse(3) && batch.take_ack(1).is_none());
    rig.fill(&mut batch);
    assert_eq!(told(&batch), ["poison=1"], "and nothing else again");
    assert_eq!((rig.destination.stats().failed, rig.destination.stats().owed), (1, 2));
    rig.destination.ack_batch(&mut batch).unwrap();
    assert!(rig.destination.ack(token).unwrap());
    until("the acks", || {
        rig.destination.try_recv_batch(&mut batch).unwrap();
        assert!(batch.is_empty());
        rig.unacked() == 0
    });
}

#[test]
fn what_came_before_the_source_went_is_in_the_batch_with_its_values() {
    let Rig { source, table, mut destination, _dir } = rig(false);
    let mut batch = Batch::with_capacity(1 << 16);
    table.set("a", "last words").unwrap();
    drop((table, source));
    let mut heard = Vec::new();
    until("the loss", || {
        destination.recv_batch_timeout(&mut batch, MOMENT).unwrap();
        heard.extend(told(&batch));
        heard.last().is_some_and(|last| last == "SourceLost")
    });
    assert_eq!(heard, ["a=last words", "SourceLost"]);
    let source = source_options(_dir.path()).create("s").unwrap();
    source.table("t").unwrap().ready();
    until("the sweep", || {
        destination.recv_batch_timeout(&mut batch, MOMENT).unwrap();
        heard.extend(told(&batch));
        heard.last().is_some_and(|last| last == "Synced")
    });
    assert_eq!(heard[2..], ["SourceFound", "a removed", "Synced"]);
    // The buffer is still the caller's, and the handler's way works beside it.
    destination.ack_batch(&mut batch).unwrap();
    source.table("t").unwrap().set("b", "by handler").unwrap();
    let mut values = Vec::new();
    until("the value", || {
        let note = |event: Event<'_>| {
            if let Event::Set { value, .. } = event {
                values.push(value.to_vec());
            }
            Ok(())
        };
        destination.recv_timeout(MOMENT, note).unwrap();
        !values.is_empty()
    });
    assert_eq!(values, [b"by handler"]);
}

#[test]
fn batch_goes_to_another_thread_while_the_next_is_received() {
    let mut rig = rig(false);
    let (done, returned) = std::sync::mpsc::channel::<Batch>();
    let mut work = Vec::new();
    let mut spare = vec![Batch::with_capacity(1000), Batch::with_capacity(1000)];
    let mut received = 0;
    for round in 0..20u32 {
        rig.table.set(round, round.to_be_bytes()).unwrap();
        let mut batch = spare.pop().unwrap_or_else(|| returned.recv_timeout(PATIENCE).unwrap());
        rig.fill(&mut batch);
        received += batch.len();
        let done = done.clone();
        work.push(std::thread::spawn(move || {
            for event in batch.events() {
                let Event::Set { opcode, value, .. } = event else { panic!("{event:?}") };
                assert_eq!(opcode.as_bytes(), value);
            }
            done.send(batch).unwrap();
        }));
    }
    work.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(received, 20);
    for mut batch in returned.try_iter() {
        rig.destination.ack_batch(&mut batch).unwrap();
    }
    until("the acks", || rig.unacked() == 0);
}

/// A destination of tables `a` and `b`, with their items, that wants only `a` from then on.
fn wants_only_a() -> (Source, Destination, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let source = source_options(dir.path()).create("s").unwrap();
    for name in ["a", "b"] {
        let table = source.table(name).unwrap();
        table.set_many((0..ITEMS).map(|n| (n, "x"))).unwrap();
        table.ready();
    }
    let mut destination = common::destination(dir.path());
    common::receive(
        &mut destination,
        "the items",
        |_| Ok(()),
        |one| ["a", "b"].iter().all(|table| one.is_synced(table)),
    );
    destination.subscribe(Subscription::none().table("a")).unwrap();
    (source, destination, dir)
}

const ITEMS: u32 = 30;

/// Adds the items of `b` that this batch says are gone.
fn add_removed(batch: &Batch, removed: &mut Vec<u32>) {
    for event in batch.events() {
        if let Event::Removed { table, opcode, .. } = event {
            assert_eq!(table, "b");
            removed.push(opcode.decode().unwrap());
        }
    }
}

#[test]
fn batch_of_nothing_but_items_that_are_given_up_is_not_told_as_empty() {
    let (source, mut destination, _dir) = wants_only_a();
    let mut batch = Batch::with_capacity(4096);
    let mut removed = Vec::new();
    until("the removes", || {
        let received = destination.try_recv_batch(&mut batch).unwrap();
        assert!(received > 0 || batch.is_empty(), "{:?}", told(&batch));
        add_removed(&batch, &mut removed);
        removed.len() >= ITEMS as usize && destination.is_synced("a")
    });
    removed.sort_unstable();
    assert_eq!(removed, (0..ITEMS).collect::<Vec<_>>());
    drop(source);
}

#[test]
fn items_that_are_given_up_at_a_second_attempt_come_in_a_batch_while_the_source_is_silent() {
    let (_source, mut destination, _dir) = wants_only_a();
    let let_go_of_nothing = |event: Event<'_>| match event {
        Event::Removed { .. } => Err("not yet".into()),
        _ => Ok(()),
    };
    common::receive(&mut destination, "the attempt", let_go_of_nothing, |one| {
        one.is_synced("a") && one.stats().failed >= u64::from(ITEMS)
    });
    let mut batch = Batch::with_capacity(4096);
    let mut removed = Vec::new();
    until("the removes", || {
        let received = destination.recv_batch_timeout(&mut batch, MOMENT).unwrap();
        assert!(received > 0 || batch.is_empty(), "{:?}", told(&batch));
        add_removed(&batch, &mut removed);
        removed.len() >= ITEMS as usize
    });
    removed.sort_unstable();
    assert_eq!(removed, (0..ITEMS).collect::<Vec<_>>());
    assert_eq!(destination.stats().swept, u64::from(ITEMS));
}

#[test]
fn events_of_tables_that_take_turns_are_told_with_their_own() {
    let mut rig = rig(false);
    let [t, u, v] = ["t", "u", "v"].map(|name| rig.source.table(name).unwrap());
    let turns = [&t, &u, &u, &t, &v, &u, &v, &v, &t];
    for (n, table) in (0u32..).zip(turns) {
        table.set(n, table.name()).unwrap();
    }
    let mut batch = Batch::with_capacity(4096);
    let mut seen = 0;
    while seen < turns.len() {
        rig.fill(&mut batch);
        for event in batch.events() {
            let Event::Set { table, opcode, value, .. } = event else { panic!("{event:?}") };
            assert_eq!(value, table.as_bytes(), "{opcode}");
            seen += 1;
        }
    }
    assert_eq!(seen, turns.len());
}
