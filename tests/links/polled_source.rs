//! A source that an event loop drives: flushes in and beside that loop, and how either of the two ends.

use std::future::Future;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use crate::common::{self, PATIENCE, source_options, until};
use crate::event_loop::{Loop, Pair, dispatch, go_round, update};
use crate::raw;
use shmirror::{
    DriveError, Event, Flush, FlushError, Flushed, Next, Replica, SetError, SnapshotFn, Source, SourceDriver,
    Subscription, Table,
};
use tempfile::TempDir;

/// Less than the changes of a round take.
const RING_BYTES: u64 = 16 * 1024;

/// The source's end of [`Pair`], and a destination on a thread that ends when the source does.
fn with_threaded_destination(dir: &TempDir) -> (Source, SourceDriver, Table, std::thread::JoinHandle<()>) {
    let (source, driver) = source_options(dir.path()).ring_bytes(RING_BYTES).create_polled("s").unwrap();
    let table = source.table("t").unwrap();
    table.ready();
    let mut destination = common::destination(dir.path());
    let reader = std::thread::spawn(move || {
        let mut lost = false;
        while !lost {
            let collect = |event: Event<'_>| {
                lost |= matches!(event, Event::SourceLost);
                Ok(())
            };
            destination.recv_timeout(PATIENCE, collect).unwrap();
        }
    });
    (source, driver, table, reader)
}

/// A source and a destination, and the loop that both are in.
fn pair(dir: &TempDir) -> ([Pair; 1], Loop) {
    let pairs = [Pair::new(dir.path(), 0)];
    let of_both = Loop::new();
    of_both.add(&pairs[0].driver, 0);
    of_both.add(&pairs[0].replica, 1);
    (pairs, of_both)
}

/// As [`pair`], with nothing unacknowledged any more.
fn settled_pair(dir: &TempDir) -> ([Pair; 1], Loop) {
    let (mut pairs, of_both) = pair(dir);
    until("the full state", || {
        of_both.wait(10).into_iter().for_each(|number| dispatch(&mut pairs, number));
        pairs[0].is_equal() && pairs[0].source.stats().destinations[0].unacked == 0
    });
    (pairs, of_both)
}

#[test]
fn flush_in_the_loops_own_thread_drives_the_source_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let (source, _driver, table, reader) = with_threaded_destination(&dir);
    let begin = Instant::now();
    // Nobody else drives it, from the destination's greeting on.
    until("the destination", || source.flush(PATIENCE).unwrap() == Flushed::Acked(1));
    for round in 0..100u32 {
        table.set_many((0..1000u32).map(|n| (n, [round as u8; 100]))).unwrap();
        assert_eq!(source.flush(PATIENCE).unwrap(), Flushed::Acked(1), "more than the ring holds");
    }
    assert!(begin.elapsed() < PATIENCE, "it takes {:?}", begin.elapsed());
    let id = source.stats().destinations[0].id;
    assert_eq!(source.flush_destination(id, PATIENCE).unwrap(), Flushed::Acked(1));
    drop((source, table));
    reader.join().unwrap();
}

#[test]
fn flush_in_another_thread_ends_while_the_loop_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (source, mut driver, table, reader) = with_threaded_destination(&dir);
    let of_driver = Loop::watching(&driver);
    until("the destination", || {
        of_driver.wait(10).iter().for_each(|_| go_round(&mut driver));
        !source.stats().destinations.is_empty()
    });
    std::thread::scope(|scope| {
        let flushes = scope.spawn(|| {
            for round in 0..200u32 {
                table.set_many((0..300u32).map(|n| (n, [round as u8; 100]))).unwrap();
                assert_eq!(source.flush(PATIENCE).unwrap(), Flushed::Acked(1));
            }
        });
        until("200 flushes", || {
            of_driver.wait(10).iter().for_each(|_| go_round(&mut driver));
            flushes.is_finished()
        });
    });
    drop((source, table));
    reader.join().unwrap();
}

#[test]
fn destination_that_wants_few_of_many_items_is_taken_in_over_several_rounds() {
    const ITEMS: u32 = 200_000;
    const APART: u32 = 1000;
    let dir = tempfile::tempdir().unwrap();
    let (source, mut driver) = source_options(dir.path()).create_polled("s").unwrap();
    let table = source.table("t").unwrap();
    table.set_many((0..ITEMS).map(|n| ((n % APART, n), "x"))).unwrap();
    table.ready();
    let wanted = Subscription::none().prefix("t", (7u32,)).unwrap();
    let mut replica = Replica::options().runtime_dir(dir.path()).subscribe(wanted).connect("s").unwrap();
    let mut rounds = 0;
    until("the destination", || {
        replica.dispatch().unwrap();
        let next = driver.dispatch().unwrap();
        let has_attached = source.stats().attached > 0;
        rounds += u32::from(!has_attached && next == Next::Now);
        has_attached
    });
    assert!((20..60).contains(&rounds), "it was taken in after {rounds} rounds");
    until("what it wants", || {
        driver.dispatch().unwrap();
        replica.dispatch().unwrap();
        replica.is_synced()
    });
    assert_eq!(replica.table("t").len(), (ITEMS / APART) as usize);
}

#[test]
fn flush_from_within_a_snapshot_ends_with_its_time_and_nothing_stays_locked() {
    let dir = tempfile::tempdir().unwrap();
    let (mut pairs, of_both) = pair(&dir);
    let source = Arc::new(std::sync::OnceLock::<Source>::new());
    let (seen, outcomes) = std::sync::mpsc::channel();
    let inside = source.clone();
    let data = Arc::new(SnapshotFn(move |out: &mut Vec<u8>| {
        if let Some(source) = inside.get() {
            seen.send(source.flush(Duration::from_millis(20))).unwrap();
        }
        out.push(1);
        Ok(())
    }));
    until("the full state", || {
        of_both.wait(10).into_iter().for_each(|number| dispatch(&mut pairs, number));
        pairs[0].is_equal()
    });
    let [Pair { source: own, mut driver, table, mut replica }] = pairs;
    table.set_shared("pointer", &data).unwrap();
    source.set(own).ok().unwrap();
    until("the data", || {
        for number in of_both.wait(10) {
            if number == 0 { go_round(&mut driver) } else { update(&mut replica) }
        }
        replica.table("t").get("pointer").is_some()
    });
    let Ok(Flushed::TimedOut(left)) = outcomes.recv().unwrap() else { panic!("it waits for itself") };
    assert_eq!((left.len(), left[0].1), (1, 1));
    // Else the source would hold what holds the source.
    table.set("pointer", "data").unwrap();
}

#[test]
fn flushes_that_are_given_up_leave_their_places() {
    let dir = tempfile::tempdir().unwrap();
    let (mut pairs, of_both) = settled_pair(&dir);
    pairs[0].table.set(1u32, "not acknowledged yet").unwrap();
    for _ in 0..3 {
        let mut flushes: Vec<_> = (0..16).map(|_| pairs[0].source.start_flush().unwrap()).collect();
        assert_eq!(pairs[0].source.start_flush().unwrap_err(), FlushError::TooMany);
        assert_eq!(flushes[3].try_finish().unwrap(), None);
        assert_eq!(flushes[3].unfinished()[0].1, 1);
    }
    let mut flush = pairs[0].source.start_flush().unwrap();
    let mut flushed = None;
    until("the flush", || {
        of_both.wait(10_000).into_iter().for_each(|number| dispatch(&mut pairs, number));
        flushed = flush.try_finish().unwrap();
        flushed.is_some()
    });
    assert_eq!(flushed, Some(Flushed::Acked(1)));
    assert_eq!(flush.unfinished(), []);
    pairs[0].table.set(1u32, "never acknowledged").unwrap();
    let mut closed = pairs[0].source.start_flush().unwrap();
    drop(pairs);
    assert_eq!(closed.try_finish().unwrap_err(), FlushError::Closed);
}

/// A task whose executor has let go of it: the last of its wakers drops what it owns.
struct Task {
    _owned: Flush,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {}
}

#[test]
fn waker_that_is_the_last_to_hold_a_task_drops_it_without_harm() {
    let (tell, told) = channel();
    // all of it on that thread: if it hangs, what it has cannot be dropped either
    std::thread::spawn(move || {
        let dir = tempfile::tempdir().unwrap();
        let (mut pairs, _) = settled_pair(&dir);
        pairs[0].table.set(1u32, "not acknowledged yet").unwrap();
        let source = &pairs[0].source;
        let task = || Waker::from(Arc::new(Task { _owned: source.start_flush().unwrap() }));
        let poll = |flush: &mut Flush, task: &Waker| Pin::new(flush).poll(&mut Context::from_waker(task));
        let mut flush = source.start_flush().unwrap();
        assert_eq!(poll(&mut flush, &task()), Poll::Pending);
        tell.send("replaced by another").unwrap();
        assert_eq!(poll(&mut flush, &task()), Poll::Pending);
        tell.send("gone with its flush").unwrap();
        drop(flush);
        tell.send("gone at the end of its flush").unwrap();
        let mut flush = source.start_flush().unwrap();
        let last = task();
        assert_eq!(poll(&mut flush, &last), Poll::Pending);
        assert_eq!(poll(&mut flush, &last), Poll::Pending, "the same once more");
        drop(last);
        until("the flush", || {
            pairs[0].replica.dispatch().unwrap();
            flush.try_finish().unwrap() == Some(Flushed::Acked(1))
        });
        tell.send("all of it").unwrap();
        pairs[0].table.set(1u32, "nor is this").unwrap();
        let places: Vec<_> = (0..16).map(|_| pairs[0].source.start_flush()).collect();
        assert!(places.iter().all(Result::is_ok), "a place was not given back");
        tell.send("").unwrap();
    });
    let mut step = "the full state";
    while !step.is_empty() {
        step = told.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("stuck, or failed, at: {step}"));
    }
}

#[test]
fn source_that_is_dropped_ends_its_driver_and_a_driver_its_source() {
    let dir = tempfile::tempdir().unwrap();
    let (source, mut driver) = source_options(dir.path()).create_polled("s").unwrap();
    let of_driver = Loop::watching(&driver);
    assert_eq!(of_driver.wait(10_000), [0], "nothing was looked at yet");
    assert_eq!(driver.dispatch(), Ok(Next::Readable));
    assert_eq!(of_driver.wait(0), [0usize; 0]);
    let table = source.table("t").unwrap();
    drop(source);
    assert_eq!(table.set(1u8, "x"), Err(SetError::Closed));
    assert_eq!(of_driver.wait(10_000), [0], "the loop is told");
    assert_eq!(driver.dispatch(), Err(DriveError::Closed));
    assert_eq!(of_driver.wait(0), [0usize; 0], "once");
    assert_eq!(common::entries(dir.path()), [""; 0], "the name is free while the driver is there");

    let (source, driver) = source_options(dir.path()).create_polled("s").unwrap();
    let table = source.table("t").unwrap();
    drop(driver);
    assert_eq!(table.set(1u8, "x"), Err(SetError::Closed));
    assert_eq!(common::entries(dir.path()), [""; 0]);
    assert!(matches!(source.flush(PATIENCE), Ok(Flushed::NoDestination)));
}

#[test]
fn source_that_is_dropped_within_a_snapshot_ends_with_that_round() {
    let dir = tempfile::tempdir().unwrap();
    let Pair { source, mut driver, table, mut replica } = Pair::new(dir.path(), 0);
    let both = Loop::new();
    both.add(&driver, 0);
    both.add(&replica, 1);
    let source = Arc::new(std::sync::Mutex::new(Some(source)));
    let inside = source.clone();
    let data = Arc::new(SnapshotFn(move |_: &mut Vec<u8>| {
        drop(inside.lock().unwrap().take());
        Ok(())
    }));
    table.set_shared("pointer", &data).unwrap();
    until("the end", || {
        let mut ended = false;
        for number in both.wait(10) {
            match number {
                0 => ended = driver.dispatch() == Err(DriveError::Closed),
                _ => update(&mut replica),
            }
        }
        ended
    });
    assert_eq!(common::entries(dir.path()), [""; 0]);
    assert_eq!(table.set(1u8, "x"), Err(SetError::Closed));
}

/// Within one round the one hangs up and the other comes, and is given the descriptor's number that is free then.
#[test]
fn stranger_in_the_place_of_another_is_heard() {
    let dir = tempfile::tempdir().unwrap();
    let (source, mut driver) = source_options(dir.path()).create_polled("s").unwrap();
    let of_driver = Loop::watching(&driver);
    let mut settle = || {
        until("silence", || {
            let ready = of_driver.wait(20);
            ready.iter().for_each(|_| go_round(&mut driver));
            ready.is_empty()
        });
    };
    settle();
    for swaps in 1..=8 {
        let first = raw::knock(source.socket_path());
        settle();
        // The set that is watched is a descriptor, too, and has taken one that was free: so that the numbers meet now and then.
        let kept: Vec<_> = (0..swaps % 3).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        drop(first);
        let second = raw::knock(source.socket_path());
        settle();
        assert_eq!(source.stats().refused, 2 * swaps - 1, "the first has hung up");
        nix::sys::socket::send(second.as_raw_fd(), b"no greeting", nix::sys::socket::MsgFlags::empty())
            .unwrap();
        settle();
        assert_eq!(source.stats().refused, 2 * swaps, "the second was heard");
        drop(kept);
    }
}
