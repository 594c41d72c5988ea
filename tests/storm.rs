//! A storm of changes over a destination that stands still: what that costs the source, and what the destination is sent
//! once it goes on. The destinations are processes of their own, so that this one's memory is the source's.

mod common;
#[path = "common/process.rs"]
mod process;

use std::time::{Duration, Instant};

use common::{PATIENCE, contents_of_source, until};
use nix::sys::signal::Signal;
use process::{Place, Process, digest, state_of};
use shmirror::{DestinationState, Flushed, Source, Table};

const ITEMS: u32 = 10_000;
/// Items that come in each round and go in the next, never to come again.
const SHORT_LIVED: u32 = 500;
/// Changes of each item in a round.
const CHANGES: u32 = 7;
/// What a round takes, unless the machine takes longer.
const ROUND: Duration = Duration::from_millis(10);

/// How long the destination stands still, and longer if it takes longer to make [`LEAST_STALL_ROUNDS`].
const STALL: Duration = Duration::from_millis(2500);
/// As many rounds as this time has room for.
const STALL_ROUNDS: u32 = 250;
/// A debug build makes about ten in this time.
const LEAST_STALL_ROUNDS: u32 = if cfg!(debug_assertions) { 20 } else { STALL_ROUNDS };
/// Rounds before the stall, and as many after it.
const OTHER_ROUNDS: u32 = 2;
/// How often the destination that goes on is waited for during the stall.
const ROUNDS_PER_CHECK: u32 = 10;

const RING_BYTES: u64 = 64 * 1024;
/// What the shortest record here takes up in the ring: two headers, and 8 bytes of opcode and value.
const RECORD_BYTES: u64 = 8 + 24 + 8;
const RING_RECORDS: u64 = RING_BYTES / RECORD_BYTES;

/// Entries that a destination's sync cache may have: one for each item that is there; for each short-lived item that was
/// there before and is known to the destination, its remove; and such removes for what is just in the ring.
const MOST_UNACKED: u64 = (ITEMS + 2 * SHORT_LIVED) as u64 + RING_RECORDS;

/// By how much the source's memory may grow while one of its two destinations stands still: for each of them, the entries
/// and their places in a queue, not over 16 bytes each, and 32 bytes for each record of the ring in the list of what is in
/// flight; all that twice, as a growing list may be half empty. And a quarter of a megabyte for what is not counted here:
/// the store's places for items that are gone, shorter lists whose memory has not been used again.
///
/// A queue that got a place for each change would take half a megabyte more in every round.
const MOST_GROWTH_BYTES: u64 = 2 * 2 * (MOST_UNACKED * (16 + 16) + RING_RECORDS * 32) + 256 * 1024;

#[test]
fn destination_stopped_in_a_storm_costs_memory_per_item_and_not_per_change() {
    // The source's memory shall be what it has touched, and not go up by two megabytes for one byte.
    nix::sys::prctl::set_thp_disable(true).unwrap();
    let place = Place::new();
    let source = Source::options().runtime_dir(place.dir()).ring_bytes(RING_BYTES).create("s").unwrap();
    let mut storm = Storm::new(&source);
    let mut live = Process::start("replica", place.dir());
    let mut stopped = Process::start("replica", place.dir());
    // What they hold is compared later: it takes memory here, and once that is free again it would hide a growth.
    live.expect_start("equal ");
    stopped.expect_start("equal ");
    storm.rounds(OTHER_ROUNDS);
    // After this both have the short-lived items of the last round, and the rings are empty. So their removes lie in the
    // ring of the one that stands still, in flight and unacknowledged, as long as it does.
    println!("lag {:?} before the stall", flush(&source, Instant::now()));
    let memory = memory_bytes();
    stopped.signal(Signal::SIGSTOP);
    let before = state_of(&source, &stopped);
    let most_memory = storm_over(&mut storm, &source, &live, &stopped);
    let growth = most_memory.saturating_sub(memory);
    println!("memory {memory} bytes, grew by {growth}, may by {MOST_GROWTH_BYTES}");
    assert!(growth <= MOST_GROWTH_BYTES, "grew by {growth} bytes, expected at most {MOST_GROWTH_BYTES}");
    assert_eq!(live.report(), storm.digest(), "the one that goes on");

    // The storm makes a pause, so that what is sent is owed to the stall and to nothing else.
    go_on_after(&before, &source, &mut stopped);
    assert_eq!(stopped.report(), storm.digest(), "the one that stood still");

    // It stops once more, and this time both are in the middle of the storm.
    std::thread::scope(|scope| {
        scope.spawn(|| storm.rounds(OTHER_ROUNDS));
        stopped.signal(Signal::SIGSTOP);
        until("a full ring", || state_of(&source, &stopped).unacked > RING_RECORDS);
        stopped.signal(Signal::SIGCONT);
    });
    flush(&source, Instant::now());
    assert_eq!(live.report(), storm.digest(), "the one that never stopped");
    assert_eq!(stopped.report(), storm.digest(), "the one that stopped twice");

    let stats = source.stats();
    assert_eq!((stats.items, stats.changes), (u64::from(ITEMS + SHORT_LIVED), storm.changes));
    assert_eq!((stats.attached, stats.broken, stats.refused), (2, 0, 0), "nobody had to attach again");
    live.finish();
    stopped.finish();
    drop((storm, source));
    place.check_nothing_left();
}

/// A process of the role that its environment names. It ends when its standard input is closed.
#[test]
#[ignore = "a process of the other test"]
fn child() {
    let Some((role, dir)) = process::role() else { return };
    assert_eq!(role, "replica");
    process::run_replica(&dir);
}

/// The storm while one destination stands still, until the other has everything. Answers the most memory that was taken.
fn storm_over(storm: &mut Storm, source: &Source, live: &Process, stopped: &Process) -> u64 {
    let before = state_of(source, stopped);
    let changes = storm.changes;
    let started = Instant::now();
    let (mut rounds, mut most_memory, mut most_unacked) = (0, 0, 0);
    while rounds < LEAST_STALL_ROUNDS || (rounds < STALL_ROUNDS && started.elapsed() < STALL) {
        storm.rounds(1);
        rounds += 1;
        most_memory = memory_bytes().max(most_memory);
        let state = state_of(source, stopped);
        most_unacked = state.unacked.max(most_unacked);
        assert!(state.unacked <= MOST_UNACKED, "{} entries, expected at most {MOST_UNACKED}", state.unacked);
        assert!(state.tombstones >= u64::from(SHORT_LIVED), "it knew these, and they are gone");
        let sent = state.sent - before.sent;
        assert!(sent <= RING_RECORDS, "{sent} records in a ring that holds {RING_RECORDS}");
        if rounds % ROUNDS_PER_CHECK == 0 {
            await_acks(source, live);
        }
    }
    await_acks(source, live);
    let changes = storm.changes - changes;
    println!("{rounds} rounds, {changes} changes in {:?}: at most {most_unacked} entries", started.elapsed());
    most_memory
}

/// The destination goes on and takes in what was kept for it. `before` is the state when it stopped.
fn go_on_after(before: &DestinationState, source: &Source, stopped: &mut Process) {
    let owed = state_of(source, stopped);
    let continued = Instant::now();
    stopped.signal(Signal::SIGCONT);
    let lag = flush(source, continued);
    let after = state_of(source, stopped);
    let (sent, resent) = (after.sent - before.sent, after.resent - before.resent);
    println!("lag {lag:?} after the stall: {sent} records sent, {resent} of them again");
    let most = RING_RECORDS + 2 * u64::from(ITEMS);
    assert!(sent <= most, "{sent} records sent, {resent} of them again, expected at most {most}");
    // Sharper, but blind to what is sent again.
    let first = (after.sent - after.resent) - (owed.sent - owed.resent);
    assert!(first <= owed.unacked, "{first} records sent for {} entries", owed.unacked);
    assert_eq!((after.unacked, after.tombstones), (0, 0));
}

fn await_acks(source: &Source, destination: &Process) {
    until("every ack of the one that goes on", || state_of(source, destination).unacked == 0);
}

/// Waits until both destinations have everything; answers how long ago `since` is then.
fn flush(source: &Source, since: Instant) -> Duration {
    assert_eq!(source.flush(PATIENCE).unwrap(), Flushed::Acked(2));
    since.elapsed()
}

/// The memory of this process that is no file's and not shared, to the page.
fn memory_bytes() -> u64 {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
    let kilobytes: u64 = line.trim().strip_suffix(" kB").unwrap().parse().unwrap();
    kilobytes * 1024
}

/// Changes a table all the time.
struct Storm {
    table: Table,
    /// How often each item was set.
    sets: u32,
    /// How often the short-lived items were replaced.
    generation: u32,
    changes: u64,
}

impl Storm {
    /// All items are there, and the table is loaded.
    fn new(source: &Source) -> Storm {
        let table = source.table("t").unwrap();
        let mut storm = Storm { table, sets: 0, generation: 0, changes: 0 };
        storm.change_items();
        storm.replace_short_lived();
        storm.table.ready();
        storm
    }

    /// Rounds that take [`ROUND`] each, or longer if the machine is slow: lost time is not made up for.
    fn rounds(&mut self, count: u32) {
        for _ in 0..count {
            let started = Instant::now();
            self.replace_short_lived();
            self.change_items();
            std::thread::sleep(ROUND.saturating_sub(started.elapsed()));
        }
    }

    fn change_items(&mut self) {
        for _ in 0..CHANGES {
            self.sets += 1;
            let values = (0..ITEMS).map(|item| (item, (self.sets << 16 | item).to_ne_bytes()));
            self.table.set_many(values).unwrap();
        }
        self.changes += u64::from(CHANGES * ITEMS);
    }

    /// New ones come, and those that came before go.
    fn replace_short_lived(&mut self) {
        self.generation += 1;
        for item in 0..SHORT_LIVED {
            self.table.set((self.generation, item), b"here").unwrap();
            if self.generation > 1 {
                self.table.remove((self.generation - 1, item)).unwrap();
                self.changes += 1;
            }
        }
        self.changes += u64::from(SHORT_LIVED);
    }

    fn digest(&self) -> String {
        digest(&contents_of_source(&self.table))
    }
}

const _: () = assert!(ITEMS <= 1 << 16, "an item's value holds its number in 16 bits");
