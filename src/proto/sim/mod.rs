//! Both ends in one process, on a fake clock, under faults drawn from a seed.
//!
//! The ring between them loses, repeats and delays records and acks, which no ring does: what converges under that
//! converges over a link. Values carry a version that only grows, so that an old value after a newer one is seen at once.
//!
//! [`world`] draws what happens, [`owner`] is the application that has the items, [`node`] a destination, [`channel`] what
//! becomes of records and acks on their way, [`app`] the destination's application, which checks what it is told, [`seen`]
//! counts what really happened.

mod app;
mod channel;
mod node;
mod owner;
mod seen;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::opcode::Opcode;
use seen::Seen;
use world::World;

const TABLES: [&str; 3] = ["routes", "neighbours", "sessions"];
/// Opcodes of each table: so many groups of so many.
const GROUPS: u8 = 4;
const KEYS: u16 = 6;
/// Steps with faults, and changes within them at least.
const STEPS: u32 = 500;
const CHANGES: u32 = 200;
/// Rounds without faults within which everything must be equal and acknowledged.
const QUIET_ROUNDS: u32 = 500;
/// So many runs meet every hazard at least so often.
const FULL_RUNS: u64 = 10_000;
const LEAST_SEEN: u64 = 1_000;

/// An item: its table and its opcode.
type Item = (&'static str, Opcode);

fn item_of(table: &str, opcode: &Opcode) -> Item {
    (TABLES.into_iter().find(|name| *name == table).unwrap(), opcode.clone())
}

#[test]
fn replicas_converge_whatever_is_lost_repeated_delayed_or_restarted() {
    let seeds = seeds();
    let next = AtomicU64::new(seeds.start);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let total = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| run_seeds(&next, seeds.end))).collect();
        let mut total = Seen::default();
        for worker in workers {
            match worker.join() {
                Ok(seen) => total.add(&seen),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        total
    });
    println!("{} runs of at least {CHANGES} changes; it happened that\n{total}", seeds.end - seeds.start);
    if seeds.end - seeds.start >= FULL_RUNS {
        let rare: Vec<_> = total.rarer_than(LEAST_SEEN).collect();
        assert!(
            rare.is_empty(),
            "each fault and each hazard must really occur, {LEAST_SEEN} times: {rare:?}"
        );
    }
}

/// The seeds of this run: so many from 0 on as SHMIRROR_SIM_RUNS says, or the one that SHMIRROR_SIM_SEED says.
fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is no number: {value}")))
    };
    match number("SHMIRROR_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SHMIRROR_SIM_RUNS").unwrap_or(FULL_RUNS),
    }
}

/// Takes seeds until there are none left, or one fails.
fn run_seeds(next: &AtomicU64, end: u64) -> Seen {
    let mut total = Seen::default();
    loop {
        // Relaxed: a counter.
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= end {
            return total;
        }
        let mut world = World::new(seed, false);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| world.run())) {
            next.store(end, Ordering::Relaxed);
            tell(seed);
            std::panic::resume_unwind(panic);
        }
        total.add(&world.seen);
    }
}

/// Runs a seed that has failed again, and prints the last of what happened in it.
fn tell(seed: u64) {
    let mut world = World::new(seed, true);
    let again = catch_unwind(AssertUnwindSafe(|| world.run())).is_err();
    let told = if again { "the last of what happened" } else { "it does not fail when it is run again" };
    eprintln!("seed {seed} failed; SHMIRROR_SIM_SEED={seed} runs it alone; {told}:\n{}", world.trace);
}
