//! A source and its destinations over real links, in one process.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::common::{self, PATIENCE, contents, contents_of_source, until};
use shmirror::{
    Destination, Event, Flushed, OnSourceLost, Replica, ResendPolicy, Sent, SetError, Source, SourceOptions,
    ToOpcode, Wait,
};

fn options(dir: &tempfile::TempDir) -> SourceOptions {
    common::source_options(dir.path())
}

fn replica(dir: &tempfile::TempDir) -> Replica {
    common::replica(dir.path(), "s")
}

fn destination(dir: &tempfile::TempDir) -> Destination {
    Destination::options().runtime_dir(dir.path()).connect("s").unwrap()
}

#[test]
fn a_late_replica_gets_the_full_state_and_then_every_change() {
    let dir = tempfile::tempdir().unwrap();
    let source = options(&dir).create("s").unwrap();
    let table = source.table("routes").unwrap();
    for n in 0..1000u32 {
        table.set((n, "x"), n.to_ne_bytes()).unwrap();
    }
    table.ready();
    let mut replica = replica(&dir);
    replica.wait_synced(PATIENCE).unwrap();
    assert_eq!(contents(&replica, "routes"), contents_of_source(&table));

    table.set((7u32, "x"), b"new").unwrap();
    table.remove((8u32, "x")).unwrap();
    until("the changes", || {
        replica.wait(Duration::from_secs(1)).unwrap();
        replica.table("routes").len() == 999
    });
    assert_eq!(replica.table("routes").get((7u32, "x")), Some(&b"new"[..]));
    assert_eq!(source.flush(PATIENCE).unwrap(), Flushed::Acked(1));
    assert_eq!(source.stats().destinations[0].unacked, 0);
}

#[test]
fn a_full_ring_defers_and_everything_converges_without_the_timer() {
    let dir = tempfile::tempdir().unwrap();
    let source = options(&dir).ring_bytes(4096).create("s").unwrap();
    let table = source.table("t").unwrap();
    table.ready();
    let mut replica = replica(&dir);
    replica.wait_synced(PATIENCE).unwrap();
    let mut deferred = 0;
    for round in 0..50u32 {
        for n in 0..200u32 {
            deferred += u32::from(table.set(n, (round, n).to_opcode().unwrap()).unwrap() == Sent::Deferred);
        }
    }
    assert!(deferred > 0, "the ring is too small for this");
    until("all values", || {
        replica.wait(Duration::from_secs(1)).unwrap();
        contents(&replica, "t") == contents_of_source(&table)
    });
    assert_eq!(source.stats().destinations[0].resent, 0);
}

#[test]
fn a_table_that_is_loading_wipes_nobody_and_ready_does() {
    let dir = tempfile::tempdir().unwrap();
    let source = options(&dir).create("s").unwrap();
    let table = source.table("t").unwrap();
    table.set("stays", b"1").unwrap();
    table.set("goes", b"1").unwrap();
    table.ready();
    let mut replica = replica(&dir);
    replica.wait_synced(PATIENCE).unwrap();
    drop(source);

    let source = options(&dir).create("s").unwrap();
    let table = source.table("t").unwrap();
    table.set("stays", b"2").unwrap();
    until("the restarted source's first item", || {
        replica.wait(Duration::from_secs(1)).unwrap();
        replica.table("t").get("stays") == Some(b"2")
    });
    assert_eq!(replica.table("t").get("goes"), Some(&b"1"[..]), "no end marker, no sweep");
    assert!(!replica.is_synced());
    table.ready();
    replica.wait_synced(PATIENCE).unwrap();
    assert_eq!(replica.table("t").get("goes"), None);
    assert_eq!(replica.table("t").len(), 1);
}

#[test]
fn a_failed_change_comes_again_and_a_panic_is_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let policy = ResendPolicy { interval: Duration::from_millis(20), ..ResendPolicy::default() };
    let source = Source::options().runtime_dir(dir.path()).resend(policy).create("s").unwrap();
    let table = source.table("t").unwrap();
    for key in ["bad", "good", "ugly"] {
        table.set(key, key).unwrap();
    }
    table.ready();
    let mut destination = destination(&dir);
    let mut tries = BTreeMap::<String, u32>::new();
    until("all items applied", || {
        destination
            .recv_timeout(Duration::from_secs(1), |event| {
                let Event::Set { opcode, .. } = event else { return Ok(()) };
                let tried = tries.entry(opcode.to_string()).or_default();
                *tried += 1;
                match (opcode.to_string().as_str(), *tried) {
                    ("bad", 1 | 2) => Err("not now".into()),
                    ("ugly", 1) => std::panic::resume_unwind(Box::new("ugly")),
                    _ => Ok(()),
                }
            })
            .unwrap();
        destination.stats().applied == 3
    });
    let expected = [("bad", 3), ("good", 1), ("ugly", 2)].map(|(key, n)| (key.to_string(), n));
    assert_eq!(tries, BTreeMap::from(expected));
    assert_eq!(destination.stats().failed, 3);
    until("the acks", || source.stats().destinations[0].unacked == 0);
}

#[test]
fn a_stopped_destination_costs_the_others_nothing_and_memory_stays_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let source = options(&dir).ring_bytes(4096).create("s").unwrap();
    let table = source.table("t").unwrap();
    table.ready();
    let (mut stopped, mut live) = (replica(&dir), replica(&dir));
    for replica in [&mut stopped, &mut live] {
        replica.wait_synced(PATIENCE).unwrap();
    }
    for round in 0..20u32 {
        for n in 0..100u32 {
            table.set(n, round.to_ne_bytes()).unwrap();
            table.set((round, n), b"short-lived").unwrap();
            table.remove((round, n)).unwrap();
        }
        until("the live one", || {
            live.wait(Duration::from_secs(1)).unwrap();
            contents(&live, "t") == contents_of_source(&table)
        });
    }
    let stats = source.stats();
    let most = stats.destinations.iter().map(|destination| destination.unacked).max().unwrap();
    assert!(most <= 100 + 4096 / 32, "{most} entries for 100 items and a ring of 4096 bytes");
    until("the stopped one", || {
        stopped.wait(Duration::from_secs(1)).unwrap();
        contents(&stopped, "t") == contents_of_source(&table)
    });
}

#[test]
fn a_spinning_and_a_blocking_destination_see_the_source_go_and_come() {
    for wait in common::WAITS {
        let dir = tempfile::tempdir().unwrap();
        let mut destination = Destination::options().runtime_dir(dir.path()).wait(wait).connect("s").unwrap();
        assert_eq!(destination.recv_timeout(Duration::from_millis(1), |_| Ok(())).unwrap(), 0);
        let mut log = Vec::new();
        let mut receive_until = |what: &str| {
            until(what, || {
                destination
                    .recv_timeout(Duration::from_secs(1), |event| {
                        log.push(format!("{event:?}").split([' ', '{']).next().unwrap().to_string());
                        Ok(())
                    })
                    .unwrap();
                log.last().is_some_and(|last| last == what)
            });
        };
        let source = options(&dir).create("s").unwrap();
        source.table("t").unwrap().ready();
        receive_until("Synced");
        drop(source);
        receive_until("SourceLost");
        let source = options(&dir).create("s").unwrap();
        source.table("t").unwrap().set(1u8, b"").unwrap();
        receive_until("Set");
        source.table("t").unwrap().ready();
        receive_until("Synced");
        assert_eq!(log, ["SourceFound", "Synced", "SourceLost", "SourceFound", "Set", "Synced"]);
    }
}

#[test]
fn a_spinning_destination_takes_in_what_comes_later_and_gives_up_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let source = options(&dir).create("s").unwrap();
    let table = source.table("t").unwrap();
    table.ready();
    let mut destination =
        Destination::options().runtime_dir(dir.path()).wait(Wait::Spin).connect("s").unwrap();
    common::receive(&mut destination, "the table", |_| Ok(()), |destination| destination.is_synced("t"));
    let (begin, timeout) = (Instant::now(), Duration::from_millis(20));
    while destination.recv_timeout(timeout, |_| Ok(())).unwrap() > 0 {}
    assert!(begin.elapsed() >= timeout);
    let later = std::thread::spawn(move || {
        std::thread::sleep(timeout);
        table.set("k", b"v").unwrap()
    });
    let mut values = Vec::new();
    while values.is_empty() {
        let collect = |event: Event<'_>| {
            if let Event::Set { value, .. } = event {
                values.push(value.to_vec());
            }
            Ok(())
        };
        destination.recv(collect).unwrap();
    }
    assert_eq!(values, [b"v"]);
    assert_eq!(later.join().unwrap(), Sent::Now);
}

#[test]
fn an_equal_value_is_no_change_unless_the_source_is_to_send_it() {
    for send_equal in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let source = options(&dir).send_equal(send_equal).create("s").unwrap();
        let table = source.table("t").unwrap();
        table.set("k", b"v").unwrap();
        let outcome = table.set("k", b"v").unwrap();
        assert_eq!(outcome, if send_equal { Sent::Now } else { Sent::Unchanged });
        assert_eq!(table.set("k", b"w").unwrap(), Sent::Now);
    }
}

#[test]
fn values_of_all_lengths_up_to_the_largest_arrive() {
    let dir = tempfile::tempdir().unwrap();
    let source = options(&dir).ring_bytes(8192).create("s").unwrap();
    let table = source.table("t").unwrap();
    table.ready();
    let largest = 8192 / 4 - 32 - 2;
    let lengths = [0, 1, 7, 8, 9, 1000, largest - 1, largest];
    for length in lengths {
        table.set(length as u16, vec![length as u8; length]).unwrap();
    }
    let error = table.set(1u16, vec![0; largest + 1]).unwrap_err().to_string();
    assert_eq!(
        error,
        "value of 2015 bytes is longer than this ring's largest for its opcode, 2014 bytes \
         (ring_bytes = 8192); use a larger ring_bytes"
    );
    let mut replica = replica(&dir);
    replica.wait_synced(PATIENCE).unwrap();
    for length in lengths {
        let value = replica.table("t").get(length as u16).unwrap();
        assert!(value.len() == length && value.iter().all(|&byte| byte == length as u8));
    }
}

#[test]
fn flush_says_who_has_not_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let source = options(&dir).create("s").unwrap();
    let table = source.table("t").unwrap();
    assert_eq!(source.flush(PATIENCE).unwrap(), Flushed::NoDestination);
    let mut replica = replica(&dir);
    table.ready();
    replica.wait_synced(PATIENCE).unwrap();
    table.set(1u8, b"a").unwrap();
    let Flushed::TimedOut(left) = source.flush(Duration::from_millis(20)).unwrap() else {
        panic!("nobody acked")
    };
    assert_eq!((left.len(), left[0].1), (1, 1));
    assert_eq!(left[0].0.pid, std::process::id());
    let waiter = std::thread::scope(|scope| {
        let flush = scope.spawn(|| source.flush(PATIENCE).unwrap());
        until("the flush", || {
            replica.wait(Duration::from_millis(10)).unwrap();
            flush.is_finished()
        });
        flush.join().unwrap()
    });
    assert_eq!(waiter, Flushed::Acked(1));
    table.set(1u8, b"b").unwrap();
    // Whether the destination goes before or during the flush is the scheduler's; during it must happen.
    until("a destination that goes during a flush", || {
        let outcome = std::thread::scope(|scope| {
            let flush = scope.spawn(|| source.flush(PATIENCE).unwrap());
            std::thread::yield_now();
            drop(std::mem::replace(&mut replica, self::replica(&dir)));
            flush.join().unwrap()
        });
        let gone = match outcome {
            Flushed::Gone(gone) => gone.len() == 1,
            other => {
                assert_eq!(other, Flushed::NoDestination);
                false
            }
        };
        until("the next destination", || {
            replica.wait(Duration::from_secs(1)).unwrap();
            !source.stats().destinations.is_empty()
        });
        table.set(1u8, b"c").unwrap();
        table.set(1u8, b"b").unwrap();
        gone
    });
    drop(replica);
    until("the source forgets it", || source.stats().destinations.is_empty());
}

#[test]
fn the_longest_durations_mean_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let never = ResendPolicy { interval: Duration::MAX, max_interval: Duration::MAX, ..Default::default() };
    let source = Source::options().runtime_dir(dir.path()).resend(never).create("s").unwrap();
    let table = source.table("t").unwrap();
    table.set(1u8, b"a").unwrap();
    table.ready();
    let mut replica = replica(&dir);
    replica.wait_synced(Duration::MAX).unwrap();
    table.set(1u8, b"b").unwrap();
    replica.wait(Duration::MAX).unwrap();
    assert_eq!(replica.table("t").get(1u8), Some(&b"b"[..]));
    assert_eq!(source.flush(Duration::MAX).unwrap(), Flushed::Acked(1));
}

#[test]
fn items_are_flushed_when_the_source_is_lost_if_that_is_the_policy() {
    let dir = tempfile::tempdir().unwrap();
    let source = options(&dir).create("s").unwrap();
    let table = source.table("t").unwrap();
    table.set_many((0..100u32).map(|n| (n, b"x"))).unwrap();
    table.ready();
    let policy = OnSourceLost::Flush;
    let mut destination =
        Destination::options().runtime_dir(dir.path()).on_source_lost(policy).connect("s").unwrap();
    let (mut lost, mut removed) = (false, Vec::new());
    let mut receive = |destination: &mut Destination| {
        let outcome = destination.recv_timeout(Duration::from_secs(1), |event| {
            match event {
                Event::SourceLost => lost = true,
                Event::Removed { opcode, .. } => {
                    assert!(lost, "the reason comes first");
                    let n: u32 = opcode.decode()?;
                    if n == 7 {
                        return Err("not this one".into());
                    }
                    removed.push(n);
                }
                _ => {}
            }
            Ok(())
        });
        outcome.unwrap();
    };
    until("the replay", || {
        receive(&mut destination);
        destination.is_all_synced()
    });
    drop(source);
    until("the loss", || {
        receive(&mut destination);
        !destination.is_attached()
    });
    removed.sort_unstable();
    assert_eq!(removed, (0..100).filter(|n| *n != 7).collect::<Vec<_>>());
    assert_eq!((destination.stats().items, destination.stats().failed), (1, 1));
}

#[test]
fn a_batch_is_as_good_as_single_calls_and_stops_at_the_first_wrong_one() {
    let dir = tempfile::tempdir().unwrap();
    let source = options(&dir).ring_bytes(4096).create("s").unwrap();
    let table = source.table("t").unwrap();
    table.ready();
    let items = |value: u32| (0..1000u32).map(move |n| (n, value.to_ne_bytes()));
    assert_eq!(table.set_many(items(1)).unwrap(), Sent::Now, "nobody is attached");
    assert_eq!(table.set_many(items(1)).unwrap(), Sent::Unchanged);
    let mut replica = replica(&dir);
    replica.wait_synced(PATIENCE).unwrap();
    assert_eq!(table.set_many(items(2)).unwrap(), Sent::Deferred, "more than the ring holds");
    until("all values", || {
        replica.wait(Duration::from_secs(1)).unwrap();
        contents(&replica, "t") == contents_of_source(&table)
    });
    let wrong = [("good", vec![1]), ("bad", vec![0; 5000]), ("behind", vec![1])];
    assert!(matches!(table.set_many(wrong), Err(SetError::ValueTooLong { bytes: 5000, .. })));
    assert_eq!((table.get("good"), table.get("behind")), (Some(vec![1]), None));
    assert_eq!(table.set_many(Vec::<(u8, Vec<u8>)>::new()).unwrap(), Sent::Unchanged);
}

#[test]
fn a_batch_takes_some_dozens_of_items_and_sets_them_before_it_takes_more() {
    let dir = tempfile::tempdir().unwrap();
    let source = options(&dir).create("s").unwrap();
    let table = source.table("t").unwrap();
    let mut most_taken = 0;
    let items = (0..1000u64).map(|n| {
        most_taken = most_taken.max(n - table.len() as u64);
        (n, b"value")
    });
    table.set_many(items).unwrap();
    assert_eq!(table.len(), 1000);
    assert!((1..64).contains(&most_taken), "{most_taken} items were held before they were set");
}

/// Bytes of which the second look panics, or finds more than the first.
struct Fickle {
    looks: std::cell::Cell<u32>,
    second: Option<Vec<u8>>,
}

impl AsRef<[u8]> for Fickle {
    fn as_ref(&self) -> &[u8] {
        self.looks.set(self.looks.get() + 1);
        match (&self.second, self.looks.get()) {
            (_, 1) => b"first",
            (Some(second), _) => second,
            (None, _) => panic!("looked at twice"),
        }
    }
}

#[test]
fn values_of_a_batch_that_misbehave_leave_source_and_destination_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let source = options(&dir).create("s").unwrap();
    let table = source.table("t").unwrap();
    let mut replica = replica(&dir);
    let value = |n: u32| Fickle { looks: n.into(), second: Some(n.to_ne_bytes().to_vec()) };
    table.set_many((0..20u32).map(|key| (key, value(1)))).unwrap();
    table.ready();
    replica.wait_synced(PATIENCE).unwrap();
    for second in [None, Some(vec![0; 10 << 20])] {
        let batch = (0..20u32).map(|key| {
            let is_fickle = key == 10;
            let fickle = Fickle { looks: 0.into(), second: second.clone() };
            (key, if is_fickle { fickle } else { value(2 + u32::from(second.is_some())) })
        });
        let batch: Vec<_> = batch.collect();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| table.set_many(batch)));
        assert!(outcome.is_err(), "{outcome:?}");
        // Whatever it has set is told, without another call.
        until("the changes", || {
            replica.wait(Duration::from_secs(1)).unwrap();
            contents(&replica, "t") == contents_of_source(&table)
        });
    }
    assert_eq!(table.get(9u32), Some(3u32.to_ne_bytes().to_vec()), "those before it were set");
    assert_eq!(table.get(10u32), Some(1u32.to_ne_bytes().to_vec()));
}
