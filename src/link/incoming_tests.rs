//! A destination that breaks the rules, against a real source whose resend timer never helps.

use std::time::{Duration, Instant};

use super::*;
use crate::link::greeting::{AllowedUsers, Greeting};
use crate::link::rendezvous;
use crate::link::rendezvous::place::{Place, RuntimeDir};
use crate::source::{Flushed, Source};
use crate::wire::Ack;

const PATIENCE: Duration = Duration::from_secs(30);

fn until(what: &str, mut step: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !step() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn source(dir: &tempfile::TempDir) -> Source {
    let hour = Duration::from_secs(3600);
    let policy = crate::ResendPolicy { interval: hour, ..Default::default() };
    Source::options().runtime_dir(dir.path()).resend(policy).create("s").unwrap()
}

/// A bare link, whose rings and descriptors the test plays with.
fn attach(dir: &tempfile::TempDir) -> IncomingLink {
    let place = Place::new(RuntimeDir::locate(Some(dir.path())).unwrap(), "s").unwrap();
    let socket = rendezvous::connect(&place).unwrap();
    let mut greeting = Greeting::start(socket, 1, &AllowedUsers::new(&[])).unwrap();
    loop {
        greeting = match greeting.finish().unwrap() {
            Ok(attached) => return attached.link,
            Err(greeting) => greeting,
        };
        std::thread::yield_now();
    }
}

/// Acknowledges what was never sent.
fn write_bad_ack(link: &mut IncomingLink) {
    let ack = Ack { first: 0, last: 1000, first_seq: 1.into(), last_seq: 1.into() };
    assert!(link.acks.try_write(Ack::BYTES, |record| record.put(&ack.encode())).unwrap());
    link.acks.publish();
}

#[test]
fn a_bad_ack_during_a_flush_closes_that_link_and_harms_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let source = source(&dir);
    let table = source.table("t").unwrap();
    let mut hostile = attach(&dir);
    until("the attach", || source.stats().destinations.len() == 1);
    table.set(1u8, b"x").unwrap();
    std::thread::scope(|scope| {
        let flush = scope.spawn(|| source.flush(PATIENCE).unwrap());
        std::thread::sleep(Duration::from_millis(50)); // it waits by now, most likely
        write_bad_ack(&mut hostile);
        hostile.ringer.ring().unwrap();
        assert!(matches!(flush.join().unwrap(), Flushed::Gone(gone) if gone.len() == 1));
    });
    assert_eq!(source.stats().broken, 1);
    drop(hostile);
    let _good = attach(&dir);
    until("another attach", || source.stats().destinations.len() == 1);
}

#[test]
fn a_bad_ack_that_a_flush_or_stats_finds_closes_the_link_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let source = source(&dir);
    let mut hostile = attach(&dir);
    until("the attach", || source.stats().destinations.len() == 1);
    std::thread::sleep(Duration::from_millis(50)); // the timer thread has gone to sleep
    write_bad_ack(&mut hostile); // and is not rung
    until("the source sees it", || source.stats().destinations.is_empty());
    assert_eq!(source.stats().broken, 1);
}

#[test]
fn a_destination_that_gives_up_its_bell_is_gone_and_costs_no_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let source = source(&dir);
    let IncomingLink { socket: _socket, pidfd: _pidfd, bell: _bell, ringer, .. } = attach(&dir);
    until("the attach", || source.stats().destinations.len() == 1);
    drop(ringer);
    until("the source gives it up", || source.stats().destinations.is_empty());
}

#[test]
fn a_source_that_gives_up_its_bell_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let source = source(&dir);
    let link = attach(&dir);
    until("the attach", || source.stats().destinations.len() == 1);
    let mut set = PollSet::new();
    assert!(!link.is_source_gone(&mut set).unwrap());
    // on our own end, as the source's is out of reach; it shows in the same way
    let bell = std::os::fd::AsRawFd::as_raw_fd(&link.bell.as_fd());
    nix::sys::socket::shutdown(bell, nix::sys::socket::Shutdown::Both).unwrap();
    assert!(link.is_source_gone(&mut set).unwrap());
}
