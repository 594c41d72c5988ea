//! Sources and destinations that end and come again.

use shmirror::{Flushed, OnSourceLost};

use crate::app::{Answer, Told};
use crate::combination::Combination;
use crate::common::PATIENCE;
use crate::world::World;

pub(crate) fn source_that_goes_is_missed_and_its_next_life_removes_what_is_gone(combination: Combination) {
    let mut world = World::new(combination);
    let reader = world.connect();
    world.turn();
    assert_eq!(world.readers[reader].app.log, [], "nobody is there");
    for life in 0..3u8 {
        world.create_source();
        let table = world.table("t");
        table.set("stays", [life]).unwrap();
        table.set(life, "of this life").unwrap();
        table.ready();
        world.until("this life", |world| world.readers[reader].side.is_all_synced());
        let app = &world.readers[reader].app;
        assert!(app.mirrors(&table), "life {life}");
        assert_eq!(app.count(|told| *told == Told::Found { restarted: true }), usize::from(life));
        drop(table);
        world.drop_source();
        world.until("the loss", |world| world.readers[reader].app.has_lost_its_source());
        assert_eq!(world.readers[reader].app.items.len(), 2, "the items stay");
    }
}

pub(crate) fn items_go_with_their_source_if_that_is_the_policy(combination: Combination) {
    let mut world = World::new(combination);
    world.create_source();
    let table = world.table("t");
    table.set_many((0..100u32).map(|n| (n, "x"))).unwrap();
    table.ready();
    let reader = world.connect_with(|options| options.on_source_lost(OnSourceLost::Flush));
    world.until("the items", |world| world.readers[reader].side.is_all_synced());
    drop(table);
    world.drop_source();
    world.until("the flush", |world| world.readers[reader].app.items.is_empty());
    let log = &world.readers[reader].app.log;
    let lost = log.iter().position(|told| *told == Told::Lost).expect("the reason");
    assert!(log[lost + 1..].iter().all(|told| matches!(told, Told::Removed { .. })));
    assert_eq!(log.len() - lost - 1, 100);
}

pub(crate) fn destination_that_goes_is_forgotten_and_comes_again(combination: Combination) {
    let mut world = World::new(combination);
    world.create_source();
    let table = world.table("t");
    table.ready();
    for round in 0..5u32 {
        let reader = world.connect();
        world.until("it is there", |world| world.readers[reader].side.is_all_synced());
        // It goes with changes in its ring, some of them unacknowledged.
        world.readers[reader].app.answer = Box::new(|_| Answer::Defer);
        for n in 0..100 {
            table.set(n, round.to_ne_bytes()).unwrap();
        }
        world.turn();
        world.readers.pop();
        world.until("it is forgotten", |world| world.stats().destinations.is_empty());
    }
    world.connect_synced();
    assert!(world.readers[0].app.mirrors(&table));
    assert_eq!(world.flush(PATIENCE), Flushed::Acked(1));
    let stats = world.stats();
    assert_eq!((stats.attached, stats.broken, stats.refused), (6, 0, 0));
}
