//! Sources and destinations in an epoll loop of the application's, and no thread of the library's.

mod common;
#[path = "common/event_loop.rs"]
mod event_loop;
#[path = "common/process.rs"]
mod process;

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{source_options, until};
use event_loop::{Loop, Pair, dispatch, go_round, update};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use process::{Process, heard, say};
use shmirror::{Batch, Destination, Event, SnapshotFn, Source, ThreadOptions};

const PAIRS: usize = 100;
/// A source has 3, a destination 5, the other end of their link 5, each of both an event descriptor of 3; and there are others.
const DESCRIPTORS: u64 = 19 * PAIRS as u64 + 300;

/// A source with a thread, which is not called as one of the library's: no other source here has one.
fn threaded_source(dir: &Path) -> Source {
    let thread = ThreadOptions { name: Some("other-side".into()), ..ThreadOptions::default() };
    source_options(dir).timer_thread(thread).create("s").unwrap()
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
    without_descriptors(|| {
        let mut errors = 0;
        let rounds = rounds_within(Duration::from_millis(700), &watched, || {
            errors += usize::from(destination.dispatch(|_| Ok(())).is_err());
        });
        assert!(errors > 2 && rounds < 100, "{rounds} rounds, {errors} errors");
        assert!(!destination.is_attached());
        say("starved");
    });
    until("the source", || {
        watched.wait(10).iter().for_each(|_| _ = destination.dispatch(|_| Ok(())));
        destination.is_all_synced()
    });
    say("synced");
}

/// Has none left while this is called.
fn without_descriptors(call: impl FnOnce()) {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let lowest_free = std::fs::File::open("/dev/null").unwrap().as_raw_fd();
    setrlimit(Resource::RLIMIT_NOFILE, lowest_free as u64, hard).unwrap();
    call();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
}

/// Each in a process of its own, as its limit is.
#[test]
fn source_without_descriptors_left_does_not_spin_and_takes_a_destination_in_when_there_are_some() {
    for role in ["starve a source of a loop", "starve a source with a thread"] {
        let dir = tempfile::tempdir().unwrap();
        let mut starving = Process::start(role, dir.path());
        starving.expect("starved");
        let mut destination = common::destination(dir.path());
        assert_eq!(destination.try_recv(|event| panic!("{event:?}")).unwrap(), 0, "it knocks");
        starving.tell("knocked");
        starving.expect("left alone");
        if role.ends_with("thread") {
            let before = sleeps_of_timer(starving.id());
            until("sleeps between its tries", || sleeps_of_timer(starving.id()) >= before + 3);
        }
        starving.tell("go on");
        common::receive(&mut destination, "the end marker", |_| Ok(()), Destination::is_all_synced);
        starving.expect("taken in");
        starving.finish();
    }
}

fn starve_source_of_loop(dir: &Path) {
    let (source, mut driver) = source_options(dir).create_polled("s").unwrap();
    source.table("t").unwrap().ready();
    let watched = Loop::watching(&driver);
    without_descriptors(|| {
        say("starved");
        assert_eq!(heard().as_deref(), Some("knocked"));
        let rounds = rounds_within(Duration::from_millis(700), &watched, || go_round(&mut driver));
        // It can neither accept nor watch another set, and looks again every 20 ms.
        assert!((3..100).contains(&rounds), "{rounds} rounds");
        assert_eq!(source.stats().destinations.len(), 0);
        say("left alone");
        assert_eq!(heard().as_deref(), Some("go on"));
    });
    until("the destination", || {
        watched.wait(10).iter().for_each(|_| go_round(&mut driver));
        has_taken_in(&source)
    });
    say("taken in");
}

fn starve_source_with_thread(dir: &Path) {
    let source = source_options(dir).create("s").unwrap();
    source.table("t").unwrap().ready();
    without_descriptors(|| {
        say("starved");
        assert_eq!(heard().as_deref(), Some("knocked"));
        until("somebody at the door", || {
            let error = source.stats().last_error;
            error.is_some_and(|error| error.starts_with("a destination could not be accepted"))
        });
        say("left alone");
        assert_eq!(heard().as_deref(), Some("go on"));
    });
    until("the destination", || has_taken_in(&source));
    say("taken in");
}

/// How often the timer thread of a process has gone to sleep: with nobody else about the lock, one that spins never does.
fn sleeps_of_timer(pid: u32) -> u64 {
    let mut threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let status = threads.find_map(|thread| {
        let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        status.starts_with("Name:\tshmirror-timer\n").then_some(status)
    });
    let status = status.unwrap();
    let sleeps = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    sleeps.trim().parse().unwrap()
}

fn has_taken_in(source: &Source) -> bool {
    source.stats().destinations.iter().any(|destination| !destination.replaying && destination.unacked == 0)
}

#[test]
#[ignore = "a process of the other tests"]
fn child() {
    match process::role() {
        Some((role, dir)) if role == "starve" => starve(&dir),
        Some((role, dir)) if role == "starve a source of a loop" => starve_source_of_loop(&dir),
        Some((role, dir)) if role == "starve a source with a thread" => starve_source_with_thread(&dir),
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
    // With rings that are empty and no acks to come, nothing but the publisher can wake the loop for this.
    for round in 0..20u8 {
        until("silence", || {
            let ready = of_both.wait(20);
            ready.iter().for_each(|number| dispatch(&mut pairs, *number));
            ready.is_empty()
        });
        let table = pairs[0].table.clone();
        let late = std::thread::spawn(move || {
            let value = Arc::new(SnapshotFn(move |out: &mut Vec<u8>| {
                out.push(round);
                Ok(())
            }));
            table.set_shared("late", &value).unwrap()
        });
        until("a pointer's data", || {
            of_both.wait(20).into_iter().for_each(|number| dispatch(&mut pairs, number));
            pairs[0].replica.table("t").get("late") == Some(&[round])
        });
        late.join().unwrap();
    }
    [pair] = pairs;
    let state = &pair.source.stats().destinations[0];
    assert_eq!((state.resent, state.unreadable), (0, 0));
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

#[test]
fn batches_in_an_event_loop_bring_everything_and_then_the_loop_sleeps() {
    let dir = tempfile::tempdir().unwrap();
    let source = threaded_source(dir.path());
    let table = source.table("t").unwrap();
    table.set_many((0..1000u32).map(|n| (n, n.to_be_bytes()))).unwrap();
    table.ready();
    let mut destination = common::destination(dir.path());
    let watched = Loop::watching(&destination);
    // So small that it is full again and again.
    let mut batch = Batch::with_capacity(1000);
    let mut items = BTreeMap::new();
    let mut round = |destination: &mut Destination, batch: &mut Batch| {
        let dispatched = destination.dispatch_batch(batch).unwrap();
        assert!(dispatched.received > 0 || batch.is_empty());
        for event in batch.events() {
            if let Event::Set { opcode, value, .. } = event {
                assert_eq!(opcode.as_bytes(), value);
                items.insert(opcode.clone(), value.to_vec());
            }
        }
        items.len()
    };
    until("the items", || {
        let rounds = watched.wait(10).into_iter().map(|_| round(&mut destination, &mut batch));
        rounds.last() == Some(1000) && destination.is_synced("t")
    });
    destination.ack_batch(&mut batch).unwrap();
    until("the acks", || common::only_destination(&source).unacked == 0);
    until("silence", || {
        let ready = watched.wait(300);
        ready.iter().for_each(|_| _ = round(&mut destination, &mut batch));
        ready.is_empty()
    });
    assert_eq!(watched.wait(500), [], "nobody has anything to do");
    table.set(1000u32, 1000u32.to_be_bytes()).unwrap();
    until("the change", || {
        watched.wait(10).into_iter().map(|_| round(&mut destination, &mut batch)).last() == Some(1001)
    });
}
