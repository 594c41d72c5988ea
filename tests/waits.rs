//! The ways in which a destination waits: each wakes, and each uses the cpu as it says.

mod common;
#[path = "common/process.rs"]
mod process;

use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use common::{PATIENCE, SPIN, WAITS, receive, source_options, until};
use nix::sys::resource::{UsageWho, getrusage};
use process::{Place, Process, heard, say};
use shmirror::{Destination, Event, Source, Table, Wait};

/// Plays a role if the test binary was called for that.
#[test]
#[ignore = "played by other tests"]
fn child() {
    let Some((role, dir)) = process::role() else { return };
    assert_eq!(role, "source");
    let source = source_options(&dir).create("s").unwrap();
    let table = source.table("t").unwrap();
    table.ready();
    say("ready");
    while let Some(value) = heard() {
        table.set(1u32, value).unwrap();
    }
}

fn destination(dir: &std::path::Path, wait: Wait) -> Destination {
    let mut destination = Destination::options().runtime_dir(dir).wait(wait).connect("s").unwrap();
    receive(&mut destination, "the end marker", |_| Ok(()), Destination::is_all_synced);
    destination
}

fn source(place: &Place) -> (Source, Table) {
    let source = source_options(place.dir()).create("s").unwrap();
    let table = source.table("t").unwrap();
    table.ready();
    (source, table)
}

#[test]
fn data_and_death_end_every_wait_whether_it_still_spins_or_does_not_any_more() {
    for wait in WAITS {
        for pause in [Duration::ZERO, 4 * SPIN] {
            let place = Place::new();
            let mut peer = Process::start("source", place.dir());
            peer.expect("ready");
            let mut destination = destination(place.dir(), wait);
            let (arrived, arrives) = channel();
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    std::thread::sleep(pause);
                    peer.tell("a value");
                    arrives.recv().unwrap();
                    std::thread::sleep(pause);
                    peer.kill();
                });
                let mut log = Vec::new();
                // Each is one call, that waits for as long as it takes: nothing but the wait itself ends it.
                while log.len() < 2 {
                    let note = |event: Event<'_>| {
                        log.push(match event {
                            Event::Set { value, .. } => String::from_utf8_lossy(value).into_owned(),
                            other => format!("{other:?}"),
                        });
                        Ok(())
                    };
                    assert!(destination.recv_timeout(PATIENCE, note).unwrap() > 0, "{wait:?}: {log:?}");
                    let _told = arrived.send(()); // the second time nobody listens
                }
                assert_eq!(log, ["a value", "SourceLost"], "{wait:?}");
            });
            // What a killed source leaves goes with the next one.
            drop(source(&place));
            place.check_nothing_left();
        }
    }
}

/// How often this thread has slept, and the cpu time that it has used.
fn usage() -> (i64, Duration) {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
    let time = |value: nix::sys::time::TimeVal| {
        Duration::from_secs(value.tv_sec() as u64) + Duration::from_micros(value.tv_usec() as u64)
    };
    (usage.voluntary_context_switches(), time(usage.user_time()) + time(usage.system_time()))
}

/// What one wait for nothing took: how often it slept, and cpu time.
fn used_by(destination: &mut Destination, timeout: Duration) -> (i64, Duration) {
    let (slept, time) = usage();
    let begin = Instant::now();
    let received = destination.recv_timeout(timeout, |event| panic!("{event:?}")).unwrap();
    assert!(received == 0 && begin.elapsed() >= timeout);
    let (slept_then, time_then) = usage();
    (slept_then - slept, time_then - time)
}

#[test]
fn wait_that_is_to_sleep_sleeps_and_one_that_is_not_does_not() {
    let place = Place::new();
    let (_source, _table) = source(&place);
    for wait in WAITS {
        let mut destination = destination(place.dir(), wait);
        // Late acks and looks of the timer thread must be over.
        until("silence", || destination.recv_timeout(Duration::from_millis(50), |_| Ok(())).unwrap() == 0);
        match wait {
            Wait::Block | Wait::SpinThenSleep { .. } => {
                let (slept, time) = used_by(&mut destination, Duration::from_millis(600));
                assert!(slept >= 1, "{wait:?} has not slept");
                assert!(time < Duration::from_millis(100), "{wait:?}: {time:?} of cpu time in 600 ms");
            }
            // The kernel may put a thread to sleep for reasons of its own, but not each time.
            _ => {
                let slept = [(); 5].map(|()| used_by(&mut destination, Duration::from_millis(20)).0);
                assert!(slept.iter().filter(|slept| **slept > 0).count() <= 1, "{wait:?}: {slept:?}");
            }
        }
    }
}

#[test]
fn spinning_ends_with_its_time() {
    let place = Place::new();
    let (_source, _table) = source(&place);
    let mut destination = destination(place.dir(), Wait::SpinThenSleep { spin: PATIENCE });
    // Within its time it is as one that only spins.
    until("a wait without a sleep", || used_by(&mut destination, Duration::from_millis(20)).0 == 0);
    let mut destination = self::destination(place.dir(), Wait::SpinThenSleep { spin: Duration::ZERO });
    let (slept, _) = used_by(&mut destination, Duration::from_millis(20));
    assert!(slept >= 1);
}
