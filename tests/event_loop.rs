//! Sources and destinations in an epoll loop of the application's, and no thread of the library's.

mod common;
#[path = "common/process.rs"]
mod process;

use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{PATIENCE, contents, contents_of_source, source_options, until};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use process::{Process, say};
use shmirror::{
    DriveError, Event, FlushError, Flushed, Next, Replica, SetError, SnapshotFn, Source, SourceDriver, Table,
    ThreadOptions,
};
use tempfile::TempDir;

/// Descriptors by number, as a loop of an application knows them.
struct Loop(Epoll);

impl Loop {
    fn new() -> Loop {
        Loop(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap())
    }

    fn watching(fd: &impl AsFd) -> Loop {
        let new = Loop::new();
        new.add(fd, 0);
        new
    }

    fn add(&self, fd: &impl AsFd, number: usize) {
        self.0.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, number as u64)).unwrap();
    }

    /// Who is ready, at the latest after so many milliseconds.
    fn wait(&self, millis: u16) -> Vec<usize> {
        let mut events = [EpollEvent::empty(); 64];
        let ready = self.0.wait(&mut events, millis).unwrap();
        events[..ready].iter().map(|event| event.data() as usize).collect()
    }
}

/// A source and a replica of it, both polled.
struct Pair {
    source: Source,
    driver: SourceDriver,
    table: Table,
    replica: Replica,
}

impl Pair {
    fn new(dir: &Path, number: usize) -> Pair {
        let name = format!("s{number}");
        let (source, driver) = source_options(dir).ring_bytes(4096).create_polled(&name).unwrap();
        let table = source.table("t").unwrap();
        for n in 0..20usize {
            table.set(n as u32, (number + n).to_ne_bytes()).unwrap();
        }
        table.ready();
        Pair { source, driver, table, replica: common::replica(dir, &name) }
    }

    fn is_equal(&self) -> bool {
        self.replica.is_synced() && contents(&self.replica, "t") == contents_of_source(&self.table)
    }
}

const PAIRS: usize = 100;
/// Three and three notifiers of three, five per end of the link, and what the tests of this file need besides.
const DESCRIPTORS: u64 = 19 * PAIRS as u64 + 300;

fn go_round(driver: &mut SourceDriver) {
    let _ = driver.dispatch().unwrap();
}

fn update(replica: &mut Replica) {
    replica.dispatch().unwrap();
}

/// A source with a thread, which is not called as one of the library's: no other source here has one.
fn threaded_source(dir: &Path) -> Source {
    let thread = ThreadOptions { name: Some("other-side".into()), ..ThreadOptions::default() };
    source_options(dir).timer_thread(thread).create("s").unwrap()
}

/// Even numbers are sources, odd ones their replicas.
fn dispatch(pairs: &mut [Pair], number: usize) {
    let pair = &mut pairs[number / 2];
    if number.is_multiple_of(2) {
        go_round(&mut pair.driver);
    } else {
        update(&mut pair.replica);
    }
}

#[test]
fn hundred_sources_and_destinations_share_a_loop_which_sleeps_when_there_is_nothing_to_do() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(DESCRIPTORS.max(soft)), hard).unwrap();
    assert!(hard >= DESCRIPTORS, "{hard} descriptors are allowed, this test takes {DESCRIPTORS}");
    let dir = tempfile::tempdir().unwrap();
    let mut pairs: Vec<Pair> = (0..PAIRS).map(|number| Pair::new(dir.path(), number)).collect();
    let all = Loop::new();
    for (number, pair) in pairs.iter().enumerate() {
        all.add(&pair.driver, 2 * number);
        all.add(&pair.replica, 2 * number + 1);
    }
    let go_on = |pairs: &mut Vec<Pair>, what: &str, done: fn(&Pair) -> bool| {
        until(what, || {
            all.wait(10).into_iter().for_each(|number| dispatch(pairs, number));
            pairs.iter().all(done)
        });
    };
    go_on(&mut pairs, "the full state", Pair::is_equal);
    for round in 0..3u32 {
        for pair in &pairs {
            // More than a ring holds.
            pair.table.set_many((0..200u32).map(|n| (n, [round + 1; 20].map(|n| n as u8)))).unwrap();
            pair.table.remove(round).unwrap();
        }
        go_on(&mut pairs, "the changes", Pair::is_equal);
    }
    go_on(&mut pairs, "the acks", |pair| pair.source.stats().destinations[0].unacked == 0);
    let resent: u64 = pairs.iter().map(|pair| pair.source.stats().destinations[0].resent).sum();
    assert_eq!(resent, 0);

    // A wake-up for nothing, from a deadline that moved away, may still come: then there is silence.
    until("silence", || {
        let ready = all.wait(300);
        ready.iter().for_each(|number| dispatch(&mut pairs, *number));
        ready.is_empty()
    });
    assert_eq!(all.wait(1000), [], "nobody has anything to do");
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let names =
        threads.filter_map(|thread| std::fs::read_to_string(thread.unwrap().path().join("comm")).ok());
    assert_eq!(names.filter(|name| name.starts_with("shmirror")).count(), 0, "no thread of the library's");

    // One change wakes its own two ends, and nobody else.
    pairs[7].table.set(0u32, "new").unwrap();
    let mut woken = Vec::new();
    until("that change", || {
        let ready = all.wait(10);
        ready.iter().for_each(|number| dispatch(&mut pairs, *number));
        woken.extend(ready);
        pairs[7].is_equal()
    });
    assert!(woken.iter().all(|number| number / 2 == 7), "{woken:?}");
}

#[test]
fn death_of_either_side_wakes_the_other_and_a_loop_without_a_source_hardly_works() {
    let dir = tempfile::tempdir().unwrap();
    let Pair { source, mut driver, table, mut replica } = Pair::new(dir.path(), 0);
    let both = Loop::new();
    both.add(&driver, 0);
    both.add(&replica, 1);
    until("the full state", || {
        for number in both.wait(10) {
            if number == 0 { go_round(&mut driver) } else { update(&mut replica) }
        }
        replica.is_synced()
    });
    drop(replica);
    let alone = Loop::watching(&driver);
    until("the source forgets it", || {
        alone.wait(10).iter().for_each(|_| go_round(&mut driver));
        source.stats().destinations.is_empty()
    });
    let mut replica = common::replica(dir.path(), "s0");
    let of_replica = Loop::watching(&replica);
    until("the next one", || {
        alone.wait(1).iter().for_each(|_| go_round(&mut driver));
        of_replica.wait(1).iter().for_each(|_| update(&mut replica));
        replica.is_synced()
    });
    drop((table, source, driver));
    until("the loss", || {
        of_replica.wait(10).iter().for_each(|_| update(&mut replica));
        !replica.is_attached()
    });
    assert_eq!(replica.table("t").len(), 20, "the items stay");
    let rounds = rounds_within(Duration::from_millis(2500), &of_replica, || update(&mut replica));
    assert!(rounds <= 30, "{rounds} rounds in 2.5 s without a source");
}

/// How often a loop has to dispatch within that time.
fn rounds_within(time: Duration, of: &Loop, mut dispatch: impl FnMut()) -> usize {
    let until = Instant::now() + time;
    let mut rounds = 0;
    while Instant::now() < until {
        if !of.wait(50).is_empty() {
            dispatch();
            rounds += 1;
        }
    }
    rounds
}

#[test]
fn destination_that_meets_something_else_under_its_name_says_so_and_does_not_spin() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("s.sock"), "a file").unwrap();
    let mut destination = common::destination(dir.path());
    let watched = Loop::watching(&destination);
    let mut errors = Vec::new();
    let rounds = rounds_within(Duration::from_millis(1000), &watched, || {
        errors.extend(destination.dispatch(|_| Ok(())).err().map(|error| error.to_string()));
    });
    assert!(errors.iter().all(|error| error.contains("a regular file, expected the socket")), "{errors:?}");
    // After 20 ms, 40, 80, 160, 320, 640; and once or twice in each pause for its directory.
    assert!((3..=30).contains(&errors.len()) && rounds <= 60, "{rounds} rounds, {} errors", errors.len());
    std::fs::remove_file(dir.path().join("s.sock")).unwrap();
    let (source, mut driver) = source_options(dir.path()).create_polled("s").unwrap();
    source.table("t").unwrap().ready();
    let of_driver = Loop::watching(&driver);
    until("the source", || {
        of_driver.wait(1).iter().for_each(|_| go_round(&mut driver));
        watched.wait(1).iter().for_each(|_| _ = destination.dispatch(|_| Ok(())));
        destination.is_all_synced()
    });
}

/// A process of its own, as its limit is.
#[test]
fn destination_without_descriptors_left_does_not_spin_and_attaches_when_there_are_some() {
    let dir = tempfile::tempdir().unwrap();
    let source = threaded_source(dir.path());
    source.table("t").unwrap().ready();
    let mut starving = Process::start("starve", dir.path());
    starving.expect("starved");
    starving.expect("synced");
    starving.finish();
}

fn starve(dir: &Path) {
    let mut destination = common::destination(dir);
    let watched = Loop::watching(&destination);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let lowest_free = std::fs::File::open("/dev/null").unwrap().as_raw_fd();
    setrlimit(Resource::RLIMIT_NOFILE, lowest_free as u64, hard).unwrap();
    let mut errors = 0;
    let rounds = rounds_within(Duration::from_millis(700), &watched, || {
        errors += usize::from(destination.dispatch(|_| Ok(())).is_err());
    });
    assert!(errors > 2 && rounds < 100, "{rounds} rounds, {errors} errors");
    assert!(!destination.is_attached());
    say("starved");
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    until("the source", || {
        watched.wait(10).iter().for_each(|_| _ = destination.dispatch(|_| Ok(())));
        destination.is_all_synced()
    });
    say("synced");
}

#[test]
#[ignore = "a process of the other tests"]
fn child() {
    match process::role() {
        Some((role, dir)) if role == "starve" => starve(&dir),
        Some((role, _)) => panic!("no such role: {role}"),
        None => {}
    }
}

#[test]
fn publishers_of_other_threads_wake_the_loop() {
    const ROUNDS: u32 = 300;
    let dir = tempfile::tempdir().unwrap();
    let mut pair = Pair::new(dir.path(), 0);
    let of_both = Loop::new();
    of_both.add(&pair.driver, 0);
    of_both.add(&pair.replica, 1);
    let publishers: Vec<_> = (0..2u32)
        .map(|publisher| {
            let table = pair.table.clone();
            std::thread::spawn(move || {
                let value = Arc::new(SnapshotFn(move |out: &mut Vec<u8>| {
                    out.extend([7; 40]);
                    Ok(())
                }));
                for round in 0..ROUNDS {
                    for n in 0..20u32 {
                        table.set((publisher, n), [round as u8; 50]).unwrap();
                    }
                    // Read on the loop's thread, which must be told.
                    table.set_shared((publisher, round), &value).unwrap();
                    table.remove((publisher, round % 20)).unwrap();
                }
            })
        })
        .collect();
    let mut pairs = [pair];
    until("all that they publish", || {
        // Without resends, who is not woken when there is reason to stays behind for ever.
        of_both.wait(20).into_iter().for_each(|number| dispatch(&mut pairs, number));
        publishers.iter().all(|publisher| publisher.is_finished()) && pairs[0].is_equal_but_pointers()
    });
    publishers.into_iter().for_each(|publisher| publisher.join().unwrap());
    [pair] = pairs;
    let state = &pair.source.stats().destinations[0];
    assert_eq!((state.resent, state.unreadable), (0, 0));
}

impl Pair {
    fn is_equal_but_pointers(&self) -> bool {
        self.replica.is_synced()
            && self.replica.table("t").len() == self.table.len()
            && self
                .table
                .items()
                .iter()
                .all(|(opcode, value)| self.replica.table("t").get(opcode) == Some(&value[..]))
    }
}

/// The source's end of [`Pair`], and a destination on a thread that ends when the source does.
fn with_threaded_destination(dir: &TempDir) -> (Source, SourceDriver, Table, std::thread::JoinHandle<()>) {
    let (source, driver) = source_options(dir.path()).create_polled("s").unwrap();
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

#[test]
fn flush_in_the_loops_own_thread_drives_the_source_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let (source, driver, table, reader) = with_threaded_destination(&dir);
    // Nobody else drives it: not even that the destination comes in would be seen otherwise.
    let begin = Instant::now();
    while source.flush(PATIENCE).unwrap() != Flushed::NoDestination {
        assert!(begin.elapsed() < PATIENCE);
    }
    let mut driver = driver;
    until("the destination", || {
        let _ = driver.dispatch().unwrap();
        !source.stats().destinations.is_empty()
    });
    for round in 0..100u32 {
        table.set_many((0..3000u32).map(|n| (n, [round as u8; 100]))).unwrap();
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
fn flush_from_within_a_snapshot_ends_with_its_time_and_nothing_stays_locked() {
    let dir = tempfile::tempdir().unwrap();
    let mut pairs = [Pair::new(dir.path(), 0)];
    let of_both = Loop::new();
    of_both.add(&pairs[0].driver, 0);
    of_both.add(&pairs[0].replica, 1);
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
}

#[test]
fn flushes_that_are_given_up_leave_their_places() {
    let dir = tempfile::tempdir().unwrap();
    let mut pairs = [Pair::new(dir.path(), 0)];
    let of_both = Loop::new();
    of_both.add(&pairs[0].driver, 0);
    of_both.add(&pairs[0].replica, 1);
    until("the full state", || {
        of_both.wait(10).into_iter().for_each(|number| dispatch(&mut pairs, number));
        pairs[0].is_equal() && pairs[0].source.stats().destinations[0].unacked == 0
    });
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

#[test]
fn source_that_is_dropped_ends_its_driver_and_a_driver_its_source() {
    let dir = tempfile::tempdir().unwrap();
    let (source, mut driver) = source_options(dir.path()).create_polled("s").unwrap();
    let of_driver = Loop::watching(&driver);
    assert_eq!(of_driver.wait(10_000), [0], "nothing was looked at yet");
    assert_eq!(driver.dispatch(), Ok(Next::Readable));
    assert_eq!(of_driver.wait(0), []);
    let table = source.table("t").unwrap();
    drop(source);
    assert_eq!(table.set(1u8, "x"), Err(SetError::Closed));
    assert_eq!(of_driver.wait(10_000), [0], "the loop is told");
    assert_eq!(driver.dispatch(), Err(DriveError::Closed));
    assert_eq!(of_driver.wait(0), [], "once");
    assert_eq!(common::entries(dir.path()), [""; 0], "the name is free while the driver is there");

    let (source, driver) = source_options(dir.path()).create_polled("s").unwrap();
    let table = source.table("t").unwrap();
    drop(driver);
    assert_eq!(table.set(1u8, "x"), Err(SetError::Closed));
    assert_eq!(common::entries(dir.path()), [""; 0]);
    assert!(matches!(source.flush(PATIENCE), Ok(Flushed::NoDestination)));
}

#[test]
fn blocking_calls_between_dispatches_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let source = threaded_source(dir.path());
    let table = source.table("t").unwrap();
    table.ready();
    let mut destination = common::destination(dir.path());
    let watched = Loop::watching(&destination);
    let mut count = 0u32;
    for round in 0..300u32 {
        table.set(round, "x").unwrap();
        let mut handler = |event: Event<'_>| {
            count += u32::from(matches!(event, Event::Set { .. }));
            Ok(())
        };
        match round % 3 {
            0 => _ = destination.recv_timeout(Duration::from_millis(1), &mut handler).unwrap(),
            1 => _ = destination.try_recv(&mut handler).unwrap(),
            _ => watched.wait(1).iter().for_each(|_| _ = destination.dispatch(&mut handler).unwrap()),
        }
    }
    until("all", || {
        let mut handler = |event: Event<'_>| {
            count += u32::from(matches!(event, Event::Set { .. }));
            Ok(())
        };
        watched.wait(20).iter().for_each(|_| _ = destination.dispatch(&mut handler).unwrap());
        count == 300
    });
}
