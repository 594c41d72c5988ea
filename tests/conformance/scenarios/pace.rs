//! Full rings and destinations that stand still.

use shmirror::Sent;

use crate::app::Told;
use crate::combination::Combination;
use crate::world::World;

const RING_BYTES: u64 = 4096;

pub(crate) fn full_ring_defers_and_everything_follows_without_the_timer(combination: Combination) {
    let mut world = World::new(combination);
    world.create_source_with(|options| options.ring_bytes(RING_BYTES));
    let table = world.table("t");
    table.ready();
    world.connect_synced();
    let mut deferred = 0;
    for round in 0..50u32 {
        for n in 0..200u32 {
            let value = [round.to_ne_bytes(), n.to_ne_bytes()].concat();
            deferred += u32::from(table.set(n, value).unwrap() == Sent::Deferred);
        }
    }
    assert!(deferred > 0, "the ring is too small for this");
    world.until_all_mirror(&table);
    world.until("all acks", |world| world.stats().destinations[0].unacked == 0);
    assert_eq!(world.stats().destinations[0].resent, 0);
}

pub(crate) fn stopped_destination_costs_the_other_nothing(combination: Combination) {
    let mut world = World::new(combination);
    world.create_source_with(|options| options.ring_bytes(RING_BYTES));
    let table = world.table("t");
    table.ready();
    let stopped = world.connect_synced();
    world.connect_synced();
    world.readers[stopped].stopped = true;
    for round in 0..20u32 {
        for n in 0..100u32 {
            table.set(n, round.to_ne_bytes()).unwrap();
            table.set((round, n), "short-lived").unwrap();
            table.remove((round, n)).unwrap();
        }
        world.until_all_mirror(&table);
    }
    let most = world.stats().destinations.iter().map(|destination| destination.unacked).max().unwrap();
    assert!(most <= 100 + RING_BYTES / 32, "{most} entries for 100 items and a ring of {RING_BYTES} bytes");
    world.readers[stopped].stopped = false;
    world.until_all_mirror(&table);
}

pub(crate) fn full_state_larger_than_the_ring_comes_while_the_source_changes_it(combination: Combination) {
    const ITEMS: u32 = 3000;
    let mut world = World::new(combination);
    world.create_source_with(|options| options.ring_bytes(RING_BYTES));
    let table = world.table("t");
    for n in 0..ITEMS {
        table.set(n, [1; 40]).unwrap();
    }
    table.ready();
    let reader = world.connect();
    let mut next = 0;
    world.until("everything", |world| {
        for n in next..next + 10 {
            table.set(n % ITEMS, n.to_ne_bytes()).unwrap();
            table.remove((n * 7) % ITEMS).ok();
        }
        next += 10;
        world.readers[reader].side.is_all_synced()
    });
    world.until_all_mirror(&table);
    assert_eq!(world.readers[reader].app.count(|told| matches!(told, Told::Synced { .. })), 1);
    assert_eq!(world.stats().destinations[0].resent, 0);
}
