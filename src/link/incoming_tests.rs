//! A destination that breaks the rules, against a real source whose resend timer never helps.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::*;
use crate::link::greeting::{AllowedUsers, Greeting};
use crate::link::peer::{Doorbells, LinuxPeer};
use crate::link::rendezvous;
use crate::link::rendezvous::place::{Place, RuntimeDir};
use crate::source::{Flushed, Source};
use crate::subscription::Subscription;
use crate::sys::bell::{Bell, Ringer};
use crate::sys::poll::PollSet;
use crate::wire::{Ack, Hello, Offer};

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
    attach_with(dir, 4096)
}

fn attach_with(dir: &tempfile::TempDir, ack_ring_bytes: u64) -> IncomingLink {
    let place = Place::new(RuntimeDir::locate(Some(dir.path())).unwrap(), "s").unwrap();
    let socket = rendezvous::connect(&place).unwrap();
    let hello = Hello {
        incarnation: 1,
        ack_ring_bytes,
        offer: Offer::Descriptors,
        subscription: Subscription::all(),
    };
    let mut greeting = Greeting::start(socket, &hello, &AllowedUsers::new(&[])).unwrap();
    loop {
        greeting = match greeting.finish().unwrap() {
            Ok(attached) => return attached.link,
            Err(greeting) => greeting,
        };
        std::thread::yield_now();
    }
}

/// A source, and a bare link that it knows of.
fn attached() -> (tempfile::TempDir, Source, IncomingLink) {
    let dir = tempfile::tempdir().unwrap();
    let source = source(&dir);
    let link = attach(&dir);
    until("the attach", || source.stats().destinations.len() == 1);
    (dir, source, link)
}

/// The core of a destination of everything, attached for the first time.
fn core_of_attached() -> DestinationCore {
    let mut core = DestinationCore::new(false, Subscription::all());
    core.attach(1);
    core
}

/// The doorbells of a link that has passed them.
#[allow(clippy::infallible_destructuring_match, reason = "there are others with other features")]
fn passed(doorbells: Doorbells) -> (Bell, Ringer) {
    match doorbells {
        Doorbells::Passed { bell, ringer } => (bell, ringer),
        #[cfg(feature = "named-region")]
        other => panic!("{other:?}"),
    }
}

/// Acknowledges what was never sent.
fn write_bad_ack(link: &mut IncomingLink) {
    let ack = Ack { first: 0, last: 1000, first_seq: 1.into(), last_seq: 1.into() };
    assert!(link.acks.try_write_headed(ack.encode(), []).unwrap());
    link.acks.publish();
}

#[test]
fn a_bad_ack_during_a_flush_closes_that_link_and_harms_nothing_else() {
    let (dir, source, mut hostile) = attached();
    let table = source.table("t").unwrap();
    table.set(1u8, b"x").unwrap();
    std::thread::scope(|scope| {
        let flush = scope.spawn(|| source.flush(PATIENCE).unwrap());
        until("the flush to wait", || table.lock().unwrap().is_flushing());
        write_bad_ack(&mut hostile);
        hostile.peer.ring().unwrap();
        assert!(matches!(flush.join().unwrap(), Flushed::Gone(gone) if gone.len() == 1));
    });
    assert_eq!(source.stats().broken, 1);
    drop(hostile);
    let _good = attach(&dir);
    until("another attach", || source.stats().destinations.len() == 1);
}

#[test]
fn a_full_ack_ring_stops_the_destination_at_a_bound_and_goes_on_when_the_source_drains() {
    const ITEMS: u32 = 4000;
    let dir = tempfile::tempdir().unwrap();
    let source = source(&dir);
    let table = source.table("t").unwrap();
    for key in 0..ITEMS {
        table.set(key, b"x").unwrap();
    }
    let mut link = attach_with(&dir, 256); // room for eight acks
    until("the replay", || source.stats().destinations.first().is_some_and(|one| !one.replaying));

    // Every second change fails, so that no two acks can merge.
    let mut core = core_of_attached();
    let mut applied = 0;
    let mut handler = |event: Event<'_>| {
        let Event::Set { opcode, .. } = event else { return true };
        let even = opcode.decode::<u32>().unwrap() % 2 == 0;
        applied += u32::from(even);
        even
    };
    {
        let _nobody_drains = table.lock().unwrap();
        let first = link.receive(&mut core, usize::MAX, &mut handler).unwrap();
        assert!(core.is_congested(), "{first} records without room for their acks");
        assert_eq!(
            link.receive(&mut core, usize::MAX, &mut handler).unwrap(),
            0,
            "no more until there is room"
        );
        assert!(first < ITEMS as usize);
    }
    let mut set = PollSet::new();
    until("the rest", || {
        link.wait(&core, Some(Instant::now() + PATIENCE), &mut set).unwrap();
        link.receive(&mut core, usize::MAX, &mut handler).unwrap();
        core.stats().received == u64::from(ITEMS) + 1
    });
    assert_eq!(applied, ITEMS / 2);
    until("the acks", || {
        link.receive(&mut core, usize::MAX, &mut |_| true).unwrap();
        source.stats().destinations[0].unacked == u64::from(ITEMS / 2)
    });
}

#[test]
fn changes_that_come_one_by_one_lie_in_the_same_lines_and_so_do_their_acks() {
    let (_dir, source, mut link) = attached();
    let mut core = core_of_attached();
    let table = source.table("t").unwrap();
    for change in 0..50u64 {
        table.set(1u8, change.to_ne_bytes()).unwrap();
        until("the change", || link.receive(&mut core, usize::MAX, &mut |_| true).unwrap() > 0);
        assert_eq!(link.receive(&mut core, usize::MAX, &mut |_| true).unwrap(), 0, "it comes alone");
        until("its ack", || source.stats().destinations[0].unacked == 0);
    }
    // Two lines, and a record that begins in them.
    assert!(link.changes.read_since_start() < 200, "{} bytes", link.changes.read_since_start());
    assert!(link.acks.written_since_start() < 200, "{} bytes", link.acks.written_since_start());
}

#[test]
fn change_that_comes_alone_is_acknowledged_before_another_look_and_what_was_seen_is_taken_in() {
    let (_dir, source, mut link) = attached();
    let mut core = core_of_attached();
    let table = source.table("t").unwrap();
    table.set(0u8, b"").unwrap();
    until("the replay", || link.receive(&mut core, usize::MAX, &mut |_| true).unwrap() > 0);
    until("its end", || {
        link.receive(&mut core, usize::MAX, &mut |_| true).unwrap() == 0 && core.stats().items == 1
    });

    table.set(1u8, b"").unwrap();
    let mut set_another = |_: Event<'_>| table.set(2u8, b"").is_ok();
    assert_eq!(
        link.receive(&mut core, usize::MAX, &mut set_another).unwrap(),
        1,
        "another has come meanwhile"
    );
    assert_eq!(core.acks_due(), 0);
    assert_eq!(link.receive(&mut core, usize::MAX, &mut |_| true).unwrap(), 1);
    assert_eq!(link.receive(&mut core, usize::MAX, &mut |_| true).unwrap(), 0);

    // Each by itself is as much as is copied at a time.
    let large = vec![0; BYTES_PER_BATCH];
    table.set_many((3..6u8).map(|opcode| (opcode, &large))).unwrap();
    assert_eq!(link.receive(&mut core, usize::MAX, &mut |_| true).unwrap(), 3, "all were there");
    assert_eq!(link.receive(&mut core, usize::MAX, &mut |_| true).unwrap(), 0);

    // No ack is due of what is not applied.
    table.set(6u8, b"").unwrap();
    let mut refuse_and_set_another = |_: Event<'_>| table.set(7u8, b"").is_err();
    assert_eq!(link.receive(&mut core, 2, &mut refuse_and_set_another).unwrap(), 2);
}

#[test]
fn room_of_what_was_consumed_goes_back_with_acks_and_without() {
    let (_dir, source, mut link) = attached();
    let mut core = core_of_attached();
    let table = source.table("t").unwrap();
    for change in 0..6u64 {
        table.set(1u8, change.to_ne_bytes()).unwrap();
        // What is not applied is not acknowledged.
        let applies = change % 2 == 0;
        until("the change", || link.receive(&mut core, usize::MAX, &mut |_| applies).unwrap() > 0);
        let mut state = table.lock().unwrap();
        let (written, released) = state.links.iter_mut().flatten().next().unwrap().positions().unwrap();
        assert_eq!(released, written, "change {change}");
    }
}

#[test]
fn a_bad_ack_that_a_flush_or_stats_finds_closes_the_link_at_once() {
    let (_dir, source, mut hostile) = attached();
    std::thread::sleep(Duration::from_millis(50)); // the timer thread has gone to sleep
    write_bad_ack(&mut hostile); // and is not rung
    until("the source sees it", || source.stats().destinations.is_empty());
    assert_eq!(source.stats().broken, 1);
}

#[test]
fn a_destination_that_gives_up_its_bell_is_gone_and_costs_no_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let source = source(&dir);
    let LinuxPeer { socket: _socket, pidfd: _pidfd, doorbells } = attach(&dir).peer;
    let (_bell, ringer) = passed(doorbells);
    until("the attach", || source.stats().destinations.len() == 1);
    drop(ringer);
    until("the source gives it up", || source.stats().destinations.is_empty());
}

#[test]
fn a_source_that_gives_up_its_bell_is_gone() {
    let (_dir, _source, link) = attached();
    let mut set = PollSet::new();
    assert!(!link.is_source_gone(&mut set).unwrap());
    // on our own end, as the source's is out of reach; it shows in the same way
    #[allow(irrefutable_let_patterns, reason = "there are others with other features")]
    let Doorbells::Passed { bell, .. } = &link.peer.doorbells else { unreachable!("they were passed") };
    let bell = std::os::fd::AsRawFd::as_raw_fd(&bell.as_fd());
    nix::sys::socket::shutdown(bell, nix::sys::socket::Shutdown::Both).unwrap();
    assert!(link.is_source_gone(&mut set).unwrap());
}

/// A descriptor that shows it would be readable for ever, where no sleep ends that an event loop began.
#[test]
fn ring_that_came_while_nobody_slept_is_forgotten_by_the_look_for_the_sources_death() {
    let (_dir, source, mut link) = attached();
    let table = source.table("t").unwrap();
    let mut set = PollSet::new();
    link.changes.start_waiting();
    table.set(1u8, b"x").unwrap();
    until("the ring", || link.peer.hear(Some(Instant::now()), &mut set).unwrap().rung);
    link.changes.stop_waiting();
    assert!(!link.is_source_gone(&mut set).unwrap());
    assert!(!link.peer.hear(Some(Instant::now()), &mut set).unwrap().rung);
}

#[test]
fn only_in_a_stream_is_it_looked_away() {
    let pauses = |looks: &[usize]| {
        let mut stream = Stream::default();
        let pauses = looks.iter().map(|&found| {
            stream.handle_look(found);
            stream.pause()
        });
        pauses.collect::<Vec<u32>>()
    };
    assert_eq!(pauses(&[1, 0, 1, 0, 1, 0, 1, 0, 1]), [0; 9], "changes that come alone");
    assert_eq!(pauses(&[1, 1, 1, 1, 1, 0, 1]), [0, 0, 0, 32, 32, 0, 0], "a burst, and what comes after it");
    assert_eq!(pauses(&[90, 9, 1, 9, 0, 1, 1, 1, 1]), [0, 0, 0, 109, 0, 0, 0, 0, 32], "each begins anew");
    assert_eq!(pauses(&[100, 30, 10, 10, 20, 200]), [0, 0, 0, 150, 170, 370], "longer with the stream");
    assert_eq!(pauses(&[800, usize::MAX, 600, 600, 1]), [0, 0, 0, 750, 750], "to a bound");
}

#[test]
fn it_is_not_looked_away_from_what_was_seen() {
    let dir = tempfile::tempdir().unwrap();
    let source = source(&dir);
    source.table("t").unwrap().set_many((0..20u32).map(|n| (n, "x"))).unwrap();
    let mut link = attach(&dir);
    until("the replay", || source.stats().destinations.first().is_some_and(|one| !one.replaying));

    let mut core = core_of_attached();
    let mut receive = |link: &mut IncomingLink, most| link.receive(&mut core, most, &mut |_| true).unwrap();
    for _ in 0..10 {
        assert_eq!((receive(&mut link, 1), link.pause()), (1, 0), "there is more");
    }
    assert_eq!((receive(&mut link, 100), link.pause()), (11, 32), "the table's name and the items are there");
    assert_eq!((receive(&mut link, 100), link.pause()), (0, 0), "it is over");
}

#[test]
fn in_a_stream_it_is_tried_whether_lines_are_better_evicted() {
    let (_dir, source, mut link) = attached();
    let table = source.table("t").unwrap();
    if link.changes.is_on_trial().is_none() {
        eprintln!("skipped: nothing can be evicted on this processor");
        return;
    }
    let mut core = core_of_attached();
    const LONG: usize = 200_000;
    let mut value = vec![0; LONG];
    let mut receive_one = |link: &mut IncomingLink, bytes, records| {
        value[0] ^= 1;
        table.set(1u8, &value[..bytes]).unwrap();
        let mut received = 0;
        until("the change", || {
            received += link.receive(&mut core, 100, &mut |_| true).unwrap();
            received == records
        });
    };

    // With the table's name and its end.
    table.ready();
    receive_one(&mut link, LONG, 3);
    assert_eq!(link.changes.evicted_lines(), 0, "nothing is evicted before it was tried");
    for _ in 0..19 {
        receive_one(&mut link, LONG, 1);
    }
    assert_eq!(link.changes.is_on_trial(), Some(false), "4 MB are too few to try it");
    for _ in 0..3 {
        receive_one(&mut link, LONG, 1);
    }
    assert_eq!(link.changes.is_on_trial(), Some(true));
    let before = link.changes.evicted_lines();
    receive_one(&mut link, LONG, 1);
    let evicted = link.changes.evicted_lines();
    assert_eq!(
        evicted - before,
        (LONG as u64 + 40) / 64 - 16384 / 64,
        "all lines of it but those at the start"
    );
    receive_one(&mut link, 1000, 1);
    assert_eq!(link.changes.evicted_lines(), evicted, "lines at the start stay: the ring begins anew there");
    // A pause of the source, which this side has noticed.
    link.spin(1000).unwrap();
    std::thread::sleep(Duration::from_millis(11));
    receive_one(&mut link, LONG, 1);
    assert_eq!(link.changes.is_on_trial(), Some(false), "the trial is given up");
}
