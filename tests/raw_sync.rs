//! Waits through `raw_sync`: what goes with what, how long a death goes unnoticed, and what is known to fail in that crate,
//! shown by the crate alone. That everything else is as with other waits is in tests/conformance.

#![allow(unsafe_code, reason = "events in memory that a child shares")]

mod common;
#[path = "common/process.rs"]
mod process;

use std::path::Path;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::{PATIENCE, source_options, until};
use memmap2::MmapOptions;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pipe, read, write};
use process::{Place, Process, heard, say};
use raw_sync::Timeout;
use raw_sync::events::{Event, EventImpl, EventInit, EventState};
use raw_sync::locks::{LockInit, Mutex};
use shmirror::{ConnectionError, Destination, Region, Replica, Wait};

#[test]
fn waits_through_raw_sync_need_a_named_region() {
    let place = Place::new();
    let error = Destination::options().runtime_dir(place.dir()).wait(Wait::RawSync).connect("s").unwrap_err();
    assert!(matches!(error, ConnectionError::RawSyncRegion { found: Region::Memfd }));
    let text = "Wait::RawSync with Region::Memfd, expected Region::Named: both sides must be able to write to the event";
    assert_eq!(error.to_string(), text);
}

#[test]
fn destination_that_waits_through_raw_sync_is_refused_unless_the_source_allows_it() {
    let place = Place::new();
    let by_default = source_options(place.dir()).region(Region::Named);
    let forbidden = by_default.clone().allow_raw_sync(true).allow_raw_sync(false);
    for options in [by_default, forbidden] {
        let source = options.create("s").unwrap();
        source.table("t").unwrap().ready();
        let mut refused = replica(place.dir());
        let mut refusal = None;
        until("the refusal", || {
            refusal = refused.wait(common::MOMENT).err();
            refusal.is_some()
        });
        let expected = "the source refused: the destination waits through raw_sync, which the source does not allow \
                        (SourceOptions::allow_raw_sync, with the feature wait-raw-sync)";
        assert_eq!(refusal.unwrap().to_string(), expected);
        // others of the same source are taken
        let options = Replica::options().runtime_dir(place.dir()).region(Region::Named);
        options.connect("s").unwrap().wait_synced(PATIENCE).unwrap();
        assert_eq!(source.stats().attached, 1);
    }
}

#[test]
fn ring_at_the_event_wakes_a_destination_before_its_wait_would_end() {
    // Without rings a wait ends by itself every 20 ms, and twelve in a row below 8 ms are one case in sixty thousand.
    const QUICK: Duration = Duration::from_millis(8);
    let place = Place::new();
    let source = source_options(place.dir()).region(Region::Named).allow_raw_sync(true).create("s").unwrap();
    let table = source.table("t").unwrap();
    table.ready();
    let mut replica = replica(place.dir());
    replica.wait_synced(PATIENCE).unwrap();
    let (tell, told) = channel();
    let sleeper = std::thread::spawn(move || {
        while replica.table("t").get(0u32) != Some(b"the end") {
            if replica.wait(PATIENCE).unwrap() > 0 {
                tell.send(Instant::now()).unwrap();
            }
        }
    });
    let quick = |n: u32| {
        std::thread::sleep(Duration::from_millis(3 + u64::from(n % 17))); // it sleeps by now
        let since = Instant::now();
        table.set(0u32, n.to_ne_bytes()).unwrap();
        told.recv_timeout(PATIENCE).unwrap() - since < QUICK
    };
    let in_a_row = (0..40u32).any(|round| (0..12).all(|n| quick(12 * round + n)));
    table.set(0u32, "the end").unwrap();
    sleeper.join().unwrap();
    assert!(in_a_row, "nobody was rung");
}

#[test]
fn death_of_the_source_is_noticed_at_the_end_of_a_wait() {
    let place = Place::new();
    let mut source = Process::start("source", place.dir());
    let mut replica = replica(place.dir());
    replica.wait_synced(PATIENCE).unwrap();
    let since = source.kill();
    until("the loss", || {
        replica.wait(PATIENCE).unwrap();
        !replica.is_attached()
    });
    println!("noticed {:?} after the death", since.elapsed());
    assert!(since.elapsed() < PATIENCE / 2, "it was its timeout that woke it");
    drop(replica);
    // removes what the killed one left
    Process::start("source", place.dir()).finish();
    assert_eq!(common::entries(place.dir()), [""; 0]);
}

#[test]
fn known_failure_process_killed_while_it_holds_the_events_mutex_holds_up_who_rings_for_ever() {
    assert_eq!(outcome_of("killed holding the mutex"), "wedged");
}

#[test]
fn known_failure_process_stopped_while_it_holds_the_events_mutex_holds_up_who_rings_until_it_goes_on() {
    assert_eq!(outcome_of("stopped holding the mutex"), "wedged, then free");
}

#[test]
fn known_failure_next_waiter_after_one_that_was_killed_holds_up_who_rings_for_ever() {
    // That of glibc 2.36 does; 2.41 has another condition variable. Why the library never has two waiters at an event.
    match glibc_version() {
        Some((2, minor)) if minor < 41 => assert_eq!(outcome_of("killed waiting"), "wedged"),
        other => eprintln!("skipped: not known of this C library, {other:?}"),
    }
}

#[cfg(target_env = "gnu")]
fn glibc_version() -> Option<(u32, u32)> {
    // SAFETY: only answers.
    let version = unsafe { libc::gnu_get_libc_version() };
    // SAFETY: a string of the C library that ends in NUL and is never freed.
    let version = unsafe { std::ffi::CStr::from_ptr(version) };
    let (major, minor) = version.to_str().ok()?.split_once('.')?;
    Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
}

#[cfg(not(target_env = "gnu"))]
fn glibc_version() -> Option<(u32, u32)> {
    None
}

/// Says what a child found; who rings there is held up in that process, which ends all the same.
fn outcome_of(role: &str) -> String {
    let place = Place::new();
    let mut child = Process::start(role, place.dir());
    let outcome = child.next_line();
    child.finish();
    outcome
}

#[test]
fn known_failure_wait_that_ends_in_the_next_second_is_over_at_once() {
    let memory = MmapOptions::new().len(4096).map_anon().unwrap();
    let at = memory.as_ptr().cast_mut();
    // SAFETY: a page of our own, far larger than an event.
    let (event, _) = unsafe { Event::new(at, true) }.unwrap();
    let wait = Duration::from_millis(400);
    let took = || {
        let start = Instant::now();
        let outcome = event.wait(Timeout::Val(wait));
        assert!(outcome.is_err(), "nobody has rung");
        start.elapsed()
    };
    // within one second it is as long as it should be
    let within = in_part_of_second(0..300, took);
    assert!(within >= wait, "{within:?}");
    // and across the end of one it is not
    let across = in_part_of_second(700..900, took);
    assert!(
        across < wait / 2,
        "{across:?}: raw_sync has learned to carry, and `slice` in src/region/event.rs can go"
    );
}

/// Calls `act` in a part of a second, in milliseconds, and again until it was that.
fn in_part_of_second<T>(part: std::ops::Range<u32>, act: impl Fn() -> T) -> T {
    let millis = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_millis();
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "the machine is too busy");
        if !part.contains(&millis()) {
            std::thread::sleep(Duration::from_millis(10));
            continue;
        }
        let start = Instant::now();
        let outcome = act();
        // the clock may have gone on between the look and the call: a short call began when it was seen to
        if part.contains(&millis()) || start.elapsed() >= Duration::from_millis(100) {
            return outcome;
        }
    }
}

/// A process of the role that its environment names. It ends when its standard input is closed.
#[test]
#[ignore = "a process of the other tests"]
fn child() {
    let Some((role, dir)) = process::role() else { return };
    match role.as_str() {
        "source" => {
            let source = source_options(&dir).region(Region::Named).allow_raw_sync(true).create("s").unwrap();
            source.table("t").unwrap().ready();
            assert_eq!(heard(), None);
        }
        "killed holding the mutex" => ring_at_one_who(Signal::SIGKILL),
        "stopped holding the mutex" => ring_at_one_who(Signal::SIGSTOP),
        "killed waiting" => ring_at_one_who_was_killed_waiting(),
        other => panic!("no such role: {other}"),
    }
}

/// Rings at an event at which one child waits, and another did until it was killed.
fn ring_at_one_who_was_killed_waiting() {
    let at = shared_page();
    // SAFETY: of that page, far larger than an event.
    let (event, _) = unsafe { Event::new(at, true) }.unwrap();
    let dead = wait_at(at);
    kill(dead, Signal::SIGKILL).unwrap();
    waitpid(dead, None).unwrap();
    let event = Shared(event);
    let (tell, told) = channel();
    let at = at.expose_provenance();
    std::thread::spawn(move || {
        let event = event;
        for _ in 0..4 {
            let waiter = wait_at(std::ptr::with_exposed_provenance_mut(at));
            event.0.set(EventState::Signaled).unwrap();
            std::thread::sleep(Duration::from_millis(20));
            let _ = kill(waiter, Signal::SIGKILL);
            let _ = waitpid(waiter, None);
            tell.send(()).unwrap();
        }
    });
    let rung = (0..4).take_while(|_| told.recv_timeout(Duration::from_secs(2)).is_ok()).count();
    say(if rung < 4 { "wedged" } else { "free" });
    std::process::exit(0);
}

/// A child that waits at an event.
fn wait_at(at: *mut u8) -> Pid {
    // SAFETY: as in `hold_mutex_at`.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            // SAFETY: an event was made there.
            let (event, _) = unsafe { Event::from_existing(at) }.unwrap();
            let _ = event.wait(Timeout::Infinite);
            // SAFETY: as there.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            let stat = format!("/proc/{child}/stat");
            until("it waits", || std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") S ")));
            child
        }
    }
}

/// Rings at an event whose mutex is held by a child that got this signal, says what came of it, and ends this process.
fn ring_at_one_who(signal: Signal) {
    let at = shared_page();
    // SAFETY: of that page, far larger than an event.
    let (event, _) = unsafe { Event::new(at, true) }.unwrap();
    let holder = hold_mutex_at(at);
    kill(holder, signal).unwrap();
    if signal == Signal::SIGKILL {
        waitpid(holder, None).unwrap();
    }
    let event = Shared(event);
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let event = event;
        event.0.set(EventState::Signaled).unwrap();
        tell.send(()).unwrap();
    });
    let wedged = told.recv_timeout(Duration::from_millis(500)).is_err();
    if signal == Signal::SIGKILL {
        say(if wedged { "wedged" } else { "free" });
    } else {
        // it lets go when it goes on
        kill(holder, Signal::SIGCONT).unwrap();
        let free = told.recv_timeout(PATIENCE).is_ok();
        waitpid(holder, None).unwrap();
        say(if wedged && free { "wedged, then free" } else { "something else" });
    }
    // the thread that rings may never come back
    std::process::exit(0);
}

/// Memory that is shared with children.
fn shared_page() -> *mut u8 {
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    // SAFETY: new memory, that nothing else refers to.
    let at =
        unsafe { libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED);
    at.cast()
}

/// A child that holds the mutex with which an event begins, and lets go of it when it is stopped and goes on.
fn hold_mutex_at(at: *mut u8) -> Pid {
    let (hold, tell) = pipe().unwrap();
    // SAFETY: the child allocates little, in a process whose only other thread waits for the test to end.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            // SAFETY: an event begins with its mutex, and was made there.
            let (mutex, _) = unsafe { Mutex::from_existing(at, std::ptr::null_mut()) }.unwrap();
            let guard = mutex.lock().unwrap();
            write(&tell, b"x").unwrap();
            // two seconds: far longer than its parent takes to send the signal
            let end = Instant::now() + Duration::from_secs(2);
            while Instant::now() < end {
                std::hint::spin_loop();
            }
            drop(guard);
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            drop(tell);
            assert_eq!(read(&hold, &mut [0; 1]), Ok(1));
            child
        }
    }
}

/// An event, which may be used from any thread.
struct Shared(Box<dyn EventImpl>);

// SAFETY: two pointers to memory that is mapped until the process ends.
unsafe impl Send for Shared {}

fn replica(dir: &Path) -> Replica {
    let options = Replica::options().runtime_dir(dir).region(Region::Named).wait(Wait::RawSync);
    options.connect("s").unwrap()
}
