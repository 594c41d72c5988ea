//! The state that a destination comes to hold.

use shmirror::{Flushed, SetError, Subscription, ToOpcode};

use crate::app::Told;
use crate::combination::Combination;
use crate::common::PATIENCE;
use crate::world::World;

pub(crate) fn destination_that_comes_late_gets_everything_and_then_the_end_marker(combination: Combination) {
    let mut world = World::new(combination);
    world.create_source();
    let (full, empty) = (world.table("full"), world.table("empty"));
    for n in 0..1000u32 {
        full.set((n, "x"), n.to_ne_bytes()).unwrap();
    }
    full.ready();
    empty.ready();
    let late = world.connect_synced();
    let app = &world.readers[late].app;
    assert!(app.mirrors(&full));
    assert_eq!(app.log[0], Told::Found { restarted: false });
    let marker = |table: &str| Told::Synced { table: table.into() };
    let end = app.log.iter().position(|told| *told == marker("full")).unwrap();
    assert_eq!(app.log[..end].iter().filter(|told| matches!(told, Told::Set { .. })).count(), 1000);
    assert_eq!(app.count(|told| *told == marker("full")), 1);
    assert_eq!(app.count(|told| *told == marker("empty")), 1);
    assert_eq!(app.log.len(), 1003, "nothing twice");
    assert_eq!(world.flush(PATIENCE), Flushed::Acked(1));
    assert_eq!(world.stats().destinations[0].unacked, 0);
}

pub(crate) fn sets_and_removes_arrive_and_a_remove_that_was_overtaken_shows(combination: Combination) {
    let mut world = World::new(combination);
    world.create_source();
    let table = world.table("t");
    table.set("goes", "1").unwrap();
    table.set("changes", "1").unwrap();
    table.ready();
    let reader = world.connect_synced();
    table.remove("goes").unwrap();
    table.set("changes", "2").unwrap();
    table.set("comes", "1").unwrap();
    world.until_all_mirror(&table);
    // The remove is not acknowledged yet when the item is there again: whether it is told of by itself or by what replaces
    // it, it does not stay hidden.
    world.readers[reader].app.log.clear();
    for round in 0..20u8 {
        table.remove("changes").unwrap();
        table.set("changes", [round]).unwrap();
    }
    world.until_all_mirror(&table);
    let app = &world.readers[reader].app;
    let mut held = true;
    for told in &app.log {
        match told {
            Told::Removed { .. } => held = false,
            Told::Set { replaced, .. } => {
                assert!(!held || *replaced, "{:?}", app.log);
                held = true;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(held && !app.log.is_empty());
}

pub(crate) fn table_that_is_loading_wipes_nobody_and_ready_does(combination: Combination) {
    let mut world = World::new(combination);
    world.create_source();
    let table = world.table("t");
    table.set("stays", "1").unwrap();
    table.set("goes", "1").unwrap();
    table.ready();
    let reader = world.connect_synced();
    drop(table);
    world.drop_source();
    world.create_source();
    let table = world.table("t");
    table.set("stays", "2").unwrap();
    world.until("the first item of the next life", |world| {
        world.readers[reader].app.value("t", "stays") == Some(b"2")
    });
    assert_eq!(world.readers[reader].app.value("t", "goes"), Some(&b"1"[..]), "no end marker, no sweep");
    assert!(!world.readers[reader].side.is_all_synced());
    table.ready();
    world.until("the end marker", |world| world.readers[reader].side.is_all_synced());
    assert!(world.readers[reader].app.mirrors(&table));
}

pub(crate) fn values_of_all_lengths_up_to_the_largest_arrive(combination: Combination) {
    const RING_BYTES: usize = 8192;
    let mut world = World::new(combination);
    world.create_source_with(|options| options.ring_bytes(RING_BYTES as u64));
    let table = world.table("t");
    table.ready();
    world.connect_synced();
    let largest = RING_BYTES / 4 - 32 - 2;
    for length in [0, 1, 7, 8, 9, 1000, largest - 1, largest] {
        table.set(length as u16, vec![length as u8; length]).unwrap();
    }
    let longest_opcode = "o".repeat(255).to_opcode().unwrap();
    table.set(&longest_opcode, vec![7; RING_BYTES / 4 - 32 - 255]).unwrap();
    let error = table.set(1u16, vec![0; largest + 1]).unwrap_err();
    assert!(matches!(error, SetError::ValueTooLong { .. }), "{error}");
    world.until_all_mirror(&table);
}

pub(crate) fn what_is_not_wanted_does_not_come(combination: Combination) {
    let mut world = World::new(combination);
    world.create_source();
    let (wanted, other) = (world.table("wanted"), world.table("other"));
    for n in 0..50u32 {
        wanted.set((n % 2, n), "1").unwrap();
        other.set(n, "1").unwrap();
    }
    wanted.ready();
    other.ready();
    let odd = Subscription::none().prefix("wanted", 1u32).unwrap();
    let reader = world.connect_with(|options| options.subscribe(odd));
    world.until("the odd ones", |world| world.readers[reader].side.is_all_synced());
    wanted.set((0u32, 1000u32), "1").unwrap();
    wanted.set((1u32, 1001u32), "1").unwrap();
    world
        .until("a new odd one", |world| world.readers[reader].app.value("wanted", (1u32, 1001u32)).is_some());
    let app = &world.readers[reader].app;
    assert_eq!(app.items.len(), 26);
    assert!(app.items.keys().all(|(table, opcode)| table == "wanted" && opcode.as_bytes()[3] == 1));
}
