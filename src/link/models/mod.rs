//! Models of a source with its publishers, its timer thread and its destinations: loom runs them through their interleavings.
//!
//! They run the production code of this module's neighbours, with both protocol cores, on [`loom_platform`]. Where resends are
//! off, nothing but a wake-up can bring forward what waits: one that gets lost is a deadlock.

mod loom_platform;
mod world;

use std::sync::Arc;

use loom::sync::atomic::AtomicU8;
use loom_platform::FAR;
use std::sync::atomic::Ordering::Relaxed;
use world::{Resends, Thread, Told, World};

use crate::ring::models::explore;
use crate::source::{FlushError, Flushed};

const ALL_ACKED: Result<Flushed, FlushError> = Ok(Flushed::Acked(1));

/// Waits until all destinations have acknowledged what was changed before, or are gone.
fn flush(world: &World) -> Result<Flushed, FlushError> {
    world.shared.flush(None, 2 * FAR)
}

const THREADS: fn(Resends) -> World = World::new;
const EVENT_LOOPS: fn(Resends) -> World = World::in_event_loops;

#[test]
fn newest_values_arrive_and_nothing_stays_unacknowledged() {
    explore(1, || arrive_and_be_acknowledged(THREADS));
}

#[test]
fn newest_values_arrive_and_nothing_stays_unacknowledged_in_event_loops_too() {
    explore(1, || arrive_and_be_acknowledged(EVENT_LOOPS));
}

fn arrive_and_be_acknowledged(world: fn(Resends) -> World) {
    let world = world(Resends::Never);
    let destination = world.attach().start();
    let timer = world.start_timer();
    world.set(1, 1);
    world.set(1, 2);
    assert_eq!(flush(&world), ALL_ACKED);
    assert_eq!(world.shared.stats().destinations[0].unacked, 0);
    world.close(timer);
    check_two_values(&destination.join().unwrap());
}

/// The older value of an item may be left out, and never comes after the newer one.
fn check_two_values(told: &[Told]) {
    let [older, newer] = [Told::Set(1, 1), Told::Set(1, 2)];
    assert!(told == [older, newer] || told == [newer], "{told:?}");
}

/// The timer ticks and the destination receives three times, the first of which its application does not apply, while there is
/// a newer change. Whatever had its turn when: afterwards it takes a few rounds until everything is acknowledged.
#[test]
fn resend_does_not_overtake_a_newer_change_nor_does_its_ack_take_that_for_acknowledged() {
    explore(2, || {
        let world = World::new(Resends::Soon);
        let mut destination = world.attach();
        let mut timer = world.timer();
        world.set(1, 1);
        destination.refusals = 1;
        let receives = loom::thread::spawn(move || {
            for _ in 0..3 {
                destination.receive();
            }
            destination
        });
        let ticks = loom::thread::spawn(move || {
            timer.tick_three_times();
            timer
        });
        world.set(1, 2);
        let (mut destination, mut timer) = (receives.join().unwrap(), ticks.join().unwrap());
        let mut rounds = 0;
        while world.shared.stats().destinations[0].unacked > 0 {
            rounds += 1;
            assert!(rounds <= 3, "{:?}", world.shared.stats());
            timer.tick_three_times();
            destination.receive();
        }
        check_two_values(&destination.told);
    });
}

/// Where the destination is, is looked at before its acks: what has left the ring by then was acknowledged by then.
#[test]
fn what_was_applied_is_not_sent_again() {
    explore(4, || {
        let world = World::new(Resends::Soon);
        let mut destination = world.attach();
        let mut timer = world.timer();
        world.set(1, 1);
        let receives = loom::thread::spawn(move || {
            destination.receive();
            destination
        });
        timer.tick_three_times();
        let _attached = receives.join().unwrap();
        timer.tick_three_times();
        let state = &world.shared.stats().destinations[0];
        assert_eq!((state.sent, state.resent, state.unacked), (2, 0, 0));
    });
}

#[test]
fn removes_arrive_and_leave_no_tombstone() {
    explore(1, || {
        let world = World::new(Resends::Never);
        let destination = world.attach().start();
        let timer = world.start_timer();
        world.set(1, 1);
        world.remove(1);
        assert_eq!(flush(&world), ALL_ACKED);
        let stats = world.shared.stats();
        assert_eq!((stats.items, stats.destinations[0].unacked, stats.destinations[0].tombstones), (0, 0, 0));
        world.close(timer);
        assert_eq!(destination.join().unwrap(), [Told::Set(1, 1), Told::Removed(1)]);
    });
}

/// Of one item and of two.
#[test]
fn changes_of_two_publishers_arrive_in_their_order() {
    explore(3, || {
        let world = World::new(Resends::Never);
        let destination = world.attach().start();
        let other = world.clone();
        let other = loom::thread::spawn(move || {
            other.set(1, 11);
            other.set(2, 12);
        });
        world.set(1, 21);
        other.join().unwrap();
        world.shared.end();
        let told = destination.join().unwrap();
        let (first, second, other) = (Told::Set(1, 11), Told::Set(2, 12), Told::Set(1, 21));
        let orders = [[first, second, other], [first, other, second], [other, first, second]];
        assert!(orders.iter().any(|order| told == order), "{told:?}");
    });
}

#[test]
fn change_that_found_no_room_follows_when_there_is_some() {
    explore(2, || follow_when_there_is_room(THREADS, 1, |world, opcode| world.set(opcode, opcode)));
}

#[test]
fn change_that_found_no_room_follows_in_event_loops_too() {
    explore(2, || follow_when_there_is_room(EVENT_LOOPS, 1, |world, opcode| world.set(opcode, opcode)));
}

/// So many that the ring is full a second time.
#[test]
fn changes_that_found_no_room_follow_when_there_is_some() {
    explore(1, || follow_when_there_is_room(THREADS, 7, |world, opcode| world.set(opcode, opcode)));
}

/// The timer thread is woken to read it, and has to wait for room before it does.
#[test]
fn pointer_that_found_no_room_follows_when_there_is_some() {
    explore(2, || {
        follow_when_there_is_room(THREADS, 1, |world, opcode| {
            world.set_pointer(opcode, &Arc::new(AtomicU8::new(opcode)));
        });
    });
}

#[test]
fn pointer_that_found_no_room_follows_in_event_loops_too() {
    explore(1, || {
        follow_when_there_is_room(EVENT_LOOPS, 1, |world, opcode| {
            world.set_pointer(opcode, &Arc::new(AtomicU8::new(opcode)));
        });
    });
}

/// A full ring, and so many changes more, which `change` makes. Only the destination can tell of room: the timer thread has had its turn, and
/// sleeps.
fn follow_when_there_is_room(world: fn(Resends) -> World, more: u8, change: impl Fn(&World, u8)) {
    let world = world(Resends::Never);
    let destination = world.attach();
    for opcode in 0..5 {
        world.set(opcode, opcode);
    }
    let mut timer = world.timer();
    timer.turn(None);
    let all = 5 + more;
    let destination = destination.start_until(move |told| told.len() == usize::from(all));
    let timer = timer.start(None);
    for opcode in 5..all {
        change(&world, opcode);
    }
    assert_eq!(destination.join().unwrap(), (0..all).map(|n| Told::Set(n, n)).collect::<Vec<_>>());
    world.close(timer);
}

#[test]
fn destination_that_attaches_while_others_publish_gets_everything_and_the_end_marker() {
    explore(2, || {
        let world = World::new(Resends::Never);
        world.set(1, 1);
        let (rings, destination) = world.link();
        let destination = destination.start_until(|told| {
            told.contains(&Told::Synced) && told.contains(&Told::Set(2, 3)) && told.contains(&Told::Set(1, 2))
        });
        let timer = world.timer().start(Some(rings));
        world.set(1, 2);
        world.ready();
        world.set(2, 3);
        let told = destination.join().unwrap();
        world.close(timer);
        let newest = |item| told.iter().rfind(|told| matches!(told, Told::Set(opcode, _) if *opcode == item));
        assert_eq!(newest(1), Some(&Told::Set(1, 2)), "{told:?}");
        assert_eq!(newest(2), Some(&Told::Set(2, 3)), "{told:?}");
        assert_eq!(told.iter().filter(|told| **told == Told::Synced).count(), 1, "{told:?}");
    });
}

/// It dies asleep, awake, with records in its ring or after it has acknowledged them.
#[test]
fn death_of_a_destination_ends_a_flush_and_leaves_nothing_behind() {
    explore(2, || {
        let world = World::new(Resends::Never);
        let mut destination = world.attach();
        let dies = loom::thread::spawn(move || {
            destination.receive();
            drop(destination);
        });
        let timer = world.start_timer();
        world.set(1, 1);
        let flushed = flush(&world).unwrap();
        assert!(
            matches!(&flushed, Flushed::Acked(1) | Flushed::NoDestination) || is_gone(&flushed),
            "{flushed:?}"
        );
        dies.join().unwrap();
        world.set(1, 2);
        let flushed = flush(&world).unwrap();
        assert!(is_gone(&flushed) || flushed == Flushed::NoDestination, "{flushed:?}");
        assert!(world.shared.stats().destinations.is_empty());
        world.close(timer);
    });
}

fn is_gone(flushed: &Flushed) -> bool {
    matches!(flushed, Flushed::Gone(gone) if gone.len() == 1)
}

#[test]
fn flush_ends_when_the_source_is_closed() {
    explore(4, || {
        let world = World::new(Resends::Never);
        let _never_receives = world.attach();
        let timer = world.start_timer();
        let flushed = start_set_and_flush(&world);
        world.close(timer);
        assert!(is_closed(&flushed.join().unwrap()));
    });
}

/// The timer thread has panicked: what it does then is all that happens.
#[test]
fn flush_ends_when_the_timer_thread_is_dead() {
    explore(4, || {
        let world = World::new(Resends::Never);
        let _never_receives = world.attach();
        let flushed = start_set_and_flush(&world);
        world.shared.end();
        assert!(is_closed(&flushed.join().unwrap()));
    });
}

fn start_set_and_flush(world: &World) -> Thread<Result<Flushed, FlushError>> {
    let world = world.clone();
    loom::thread::spawn(move || {
        world.set(1, 1);
        flush(&world)
    })
}

/// Closed before the flush, there is no destination any more.
fn is_closed(flushed: &Result<Flushed, FlushError>) -> bool {
    matches!(flushed, Err(FlushError::Closed) | Ok(Flushed::NoDestination))
}

/// Whoever reads statistics sees those of one moment.
#[test]
fn statistics_are_whole_while_they_are_written() {
    explore(3, || {
        let world = World::new(Resends::Never);
        let destination = world.attach().start();
        let reader = world.clone();
        let reader = loom::thread::spawn(move || {
            let stats = reader.shared.stats();
            let destination = &stats.destinations[0];
            // The table has a number, too, and a record, which goes with the first change.
            assert_eq!(stats.changes + 1, u64::from(stats.last_seq.value()));
            assert_eq!(stats.items, stats.changes.min(1));
            let records = if stats.changes > 0 { stats.changes + 1 } else { 0 };
            assert_eq!(destination.sent, records, "{stats:?}");
            assert!(destination.acked <= records && destination.unacked <= 2, "{stats:?}");
            assert!(destination.acked + destination.unacked > stats.changes.min(1), "{stats:?}");
        });
        world.set(1, 1);
        world.set(1, 3);
        reader.join().unwrap();
        world.shared.end();
        destination.join().unwrap();
    });
}

/// The application changes what a pointer leads to, and then puts data in its place, while copies are made and sent.
#[test]
fn pointer_that_is_replaced_while_it_is_sent_ends_with_the_newest_data() {
    explore(1, || {
        let world = World::new(Resends::Never);
        let destination = world.attach().start_until(|told| told.contains(&Told::Set(1, 3)));
        let timer = world.start_timer();
        let data = Arc::new(AtomicU8::new(1));
        world.set_pointer(1, &data);
        // Relaxed: the touch says so under the source's lock.
        data.store(2, Relaxed);
        world.touch(1);
        world.set(1, 3);
        let told = destination.join().unwrap();
        world.close(timer);
        let values: Vec<u8> =
            told.iter().map(|told| if let Told::Set(1, value) = told { *value } else { 0 }).collect();
        assert!(values.is_sorted() && values.last() == Some(&3), "{told:?}");
    });
}

#[test]
fn pointer_whose_data_changes_while_it_is_sent_is_sent_again() {
    explore(2, || {
        let world = World::new(Resends::Never);
        let data = Arc::new(AtomicU8::new(1));
        let destination = world.attach();
        world.set_pointer(1, &data);
        let destination = destination.start_until(|told| told.contains(&Told::Set(1, 2)));
        let timer = world.start_timer();
        // Relaxed: the touch says so under the source's lock.
        data.store(2, Relaxed);
        world.touch(1);
        let told = destination.join().unwrap();
        world.close(timer);
        assert_eq!(told.last(), Some(&Told::Set(1, 2)), "{told:?}");
    });
}
