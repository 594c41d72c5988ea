//! Ends without a farewell: the other side is a process of its own, and is killed.

#[cfg(feature = "wait-raw-sync")]
use std::io::Write;
use std::path::Path;

use nix::sys::signal::Signal;
use shmirror::Flushed;

use crate::app::Told;
use crate::combination::Combination;
#[cfg(feature = "wait-raw-sync")]
use crate::combination::{Driver, Waiting};
use crate::common::PATIENCE;
use crate::process::{Process, say};
use crate::world::World;

const ITEMS: u32 = 500;

pub(crate) fn killed_destination_is_forgotten_and_others_go_on(combination: Combination) {
    #[cfg(feature = "wait-raw-sync")]
    if (combination.waiting, combination.driver) == (Waiting::RawSync, Driver::Threaded) {
        // Past the harness, which keeps for itself what a test prints that passes.
        let why =
            "stopped while it holds the event's mutex, it would stop the publisher (docs/operations.md)";
        let mut shown = std::io::stderr();
        writeln!(shown, "{}: left out: {why}", combination.name).unwrap();
        return;
    }
    let mut world = World::new(combination);
    world.create_source();
    let table = world.table("t");
    table.set_many((0..ITEMS).map(|n| (n, "x"))).unwrap();
    table.ready();
    let lives = world.connect_synced();
    let mut dies = start(&world, "destination");
    world.until("both", |world| world.stats().destinations.len() == 2);
    world.until("both are complete", |world| {
        world.stats().destinations.iter().all(|destination| destination.unacked == 0)
    });
    let id =
        world.stats().destinations.iter().map(|destination| destination.id).find(|id| id.pid == dies.id());
    let id = id.expect("it is attached");
    // Stopped before, so that it acknowledges nothing of this.
    dies.signal(Signal::SIGSTOP);
    for n in 0..ITEMS {
        table.set(n, "y").unwrap();
    }
    dies.kill();
    let flushed = world.flush(PATIENCE);
    assert!(flushed == Flushed::Gone(vec![id]) || flushed == Flushed::Acked(1), "{flushed:?}");
    world.until("it is forgotten", |world| world.stats().destinations.len() == 1);
    assert!(world.readers[lives].app.mirrors(&table));
    assert_eq!(world.stats().broken, 0);
}

pub(crate) fn killed_source_is_missed_and_its_name_taken_over(combination: Combination) {
    let mut world = World::new(combination);
    let reader = world.connect();
    let mut dies = start(&world, "source");
    world.until("the source", |world| world.readers[reader].side.is_all_synced());
    dies.kill();
    world.until("the loss", |world| world.readers[reader].app.has_lost_its_source());
    assert_eq!(world.readers[reader].app.items.len(), ITEMS as usize, "the items stay");
    world.create_source();
    let table = world.table("t");
    table.set(0u32, "of the next").unwrap();
    table.ready();
    world.until("the next source", |world| world.readers[reader].side.is_all_synced());
    let app = &world.readers[reader].app;
    assert!(app.mirrors(&table));
    assert_eq!(app.count(|told| *told == Told::Found { restarted: true }), 1);
}

fn start(world: &World, role: &str) -> Process {
    Process::start(&format!("{role} {}", world.combination.name), world.dir())
}

/// What a child process does, until it is killed.
pub(crate) fn play(role: &str, combination: Combination, dir: &Path) {
    let mut world = World::at(combination, dir);
    match role {
        "destination" => {
            world.connect();
        }
        "source" => {
            world.create_source();
            let table = world.table("t");
            table.set_many((0..ITEMS).map(|n| (n, "x"))).unwrap();
            table.ready();
        }
        other => panic!("no such role: {other}"),
    }
    say("started");
    let parent = nix::unistd::getppid();
    // A test that fails leaves nobody behind.
    while nix::unistd::getppid() == parent {
        world.turn();
        if world.readers.is_empty() {
            std::thread::sleep(crate::common::MOMENT);
        }
    }
}
