//! What is acknowledged when, and what a flush says.

use std::time::Duration;

use shmirror::Flushed;

use crate::app::{Answer, Told};
use crate::combination::Combination;
use crate::common::{PATIENCE, quick_resend};
use crate::world::World;

pub(crate) fn change_that_was_refused_comes_again(combination: Combination) {
    let mut world = World::new(combination);
    world.create_source_with(|options| options.resend(quick_resend()));
    let table = world.table("t");
    for key in ["bad", "good"] {
        table.set(key, key).unwrap();
    }
    table.ready();
    let reader = world.connect();
    let mut refusals = 2;
    world.readers[reader].app.answer = Box::new(move |told| {
        if refusals > 0 && told.opcode().is_some_and(|opcode| opcode.as_bytes() == b"bad") {
            refusals -= 1;
            return Answer::Refuse;
        }
        Answer::Apply
    });
    world.until_all_mirror(&table);
    assert_eq!(world.readers[reader].side.stats().failed, 2);
    world.until("the acks", |world| world.stats().destinations[0].unacked == 0);
    assert_eq!(world.readers[reader].app.count(|told| matches!(told, Told::Set { .. })), 2, "nothing twice");
}

pub(crate) fn change_whose_ack_is_put_off_is_kept_until_it_is_given(combination: Combination) {
    let mut world = World::new(combination);
    world.create_source();
    let table = world.table("t");
    table.ready();
    let reader = world.connect_synced();
    world.readers[reader].app.answer = Box::new(|_| Answer::Defer);
    table.set("a", "1").unwrap();
    table.set("b", "1").unwrap();
    world.until("both", |world| world.readers[reader].app.owed.len() == 2);
    let Flushed::TimedOut(left) = world.flush(Duration::from_millis(20)) else {
        panic!("nothing was acknowledged")
    };
    assert_eq!((left.len(), left[0].1), (1, 2));
    let Some(b) = world.readers[reader].app.owed.pop() else { panic!("two are owed") };
    assert!(world.readers[reader].side.ack(b.clone()));
    world.until("the ack", |world| world.stats().destinations[0].unacked == 1);
    assert!(!world.readers[reader].side.ack(b), "given before");
    let Some(a) = world.readers[reader].app.owed.pop() else { panic!("one is owed") };
    assert!(world.readers[reader].side.ack(a));
    assert_eq!(world.flush(PATIENCE), Flushed::Acked(1));
    assert_eq!(world.readers[reader].app.count(|told| matches!(told, Told::Set { .. })), 2, "nothing twice");
}

pub(crate) fn flush_says_who_has_applied_everything_and_who_has_not(combination: Combination) {
    let mut world = World::new(combination);
    world.create_source();
    let table = world.table("t");
    table.ready();
    assert_eq!(world.flush(PATIENCE), Flushed::NoDestination);
    let (quick, stopped) = (world.connect_synced(), world.connect_synced());
    assert_eq!(world.flush(PATIENCE), Flushed::Acked(2));
    world.readers[stopped].stopped = true;
    for n in 0..3u8 {
        table.set(n, "1").unwrap();
    }
    world.until("the acks of the other", |world| world.stats().destinations[0].unacked == 0);
    let Flushed::TimedOut(left) = world.flush(Duration::from_millis(50)) else { panic!("one stands still") };
    let stopped_id = world.stats().destinations[1].id;
    assert_eq!(left, [(stopped_id, 3)]);
    assert!(world.readers[quick].app.mirrors(&table));
    world.readers[stopped].stopped = false;
    assert_eq!(world.flush(PATIENCE), Flushed::Acked(2));
    assert!(world.readers[stopped].app.mirrors(&table));
}

pub(crate) fn flush_ends_when_its_destination_goes(combination: Combination) {
    let mut world = World::new(combination);
    world.create_source();
    let table = world.table("t");
    table.ready();
    world.connect_synced();
    // Whether a flush on a thread of its own has begun by its third round is the scheduler's; sooner or later it has.
    for attempt in 0u32.. {
        let goes = world.connect_synced();
        world.readers[goes].stopped = true;
        table.set("a", attempt.to_ne_bytes()).unwrap();
        let ids = world.stats().destinations.into_iter().map(|destination| destination.id);
        let gone = ids.max_by_key(|id| id.attachment).expect("two are attached");
        let mut rounds = 0;
        let flushed = world.flush_while(PATIENCE, |readers| {
            rounds += 1;
            if rounds == 3 {
                readers.truncate(goes);
            }
        });
        world.until_all_mirror(&table);
        if flushed == Flushed::Gone(vec![gone]) {
            return;
        }
        assert_eq!(flushed, Flushed::Acked(1), "it went before the flush began");
        assert!(attempt < 100, "no flush has begun within three rounds");
        world.until("it is forgotten", |world| world.stats().destinations.len() == 1);
    }
}
