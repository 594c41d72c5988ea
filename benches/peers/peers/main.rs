//! Measures shmirror beside other means of inter-process communication, in one run on one machine.
//!
//! Each cell is a pair of processes of its own, pinned: streams and spinning round trips to two different cpus, round trips
//! that sleep to the same one, since across cpus the wake-up of a halted cpu hides everything else. Records are 64 bytes (and
//! 1 KiB), and every one is verified. Before and after each cell the floor is measured, the round trip of a cache line; where
//! that was far from what near cpus give, the host has moved the cpus apart (or somebody else uses them), and the cell is
//! flagged. The table shows with each means' numbers what it promises, since the numbers alone compare unlike things.
//!
//! `cargo run --release --bin peers -- --help` says how to choose.

#[cfg(feature = "aeron")]
mod aeron;
mod crates;
mod direction;
mod futex;
mod guarantees;
mod iceoryx;
mod kernel;
mod peers;
mod redis;
mod scratch;
mod table;

#[path = "../../harness/mod.rs"]
mod harness;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use harness::Effort;
use harness::floor::{Beside, Patience};
use harness::peer::{isolated, try_isolated};
use harness::report::{Cell, Report, Run, Unit};
use harness::{cpu, floor};
use peers::{Measure, Outcome, Peer};
use scratch::Scratch;

/// Bytes of a ring, of each means that has one whose size can be chosen.
pub(crate) const RING_BYTES: usize = 1 << 20;

/// Measures shmirror beside other means of inter-process communication.
#[derive(Debug, Parser)]
struct Options {
    /// Runs of each cell; shown is the median
    #[arg(long, default_value_t = Effort::FULL.runs, value_parser = positive)]
    runs: usize,
    /// Runs everything once, quickly: a test, not a measurement
    #[arg(long, conflicts_with = "runs")]
    test: bool,
    /// How long to wait, in all, for the host to move the cpus near each other, before a run is made nevertheless
    #[arg(long, value_name = "MINUTES", default_value_t = 0)]
    patience: u32,
    /// Only the means whose names begin so, as in `--only shmirror,pipe`
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Writes all results to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least 1".into()),
        Ok(runs) => Ok(runs),
        Err(error) => Err(format!("{error}")),
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let effort = if options.test { Effort::TEST } else { Effort { runs: options.runs, ..Effort::FULL } };
    let cpus = cpu::allowed();
    let [first, second, ..] = cpus[..] else {
        eprintln!("two cpus are needed; this process may use {}", cpus.len());
        return ExitCode::FAILURE;
    };
    let (chosen, missing) = choose(&options.only);
    if chosen.is_empty() {
        missing.iter().for_each(|missing| eprintln!("{missing}"));
        let ids: Vec<_> = peers::all().iter().map(|peer| peer.id).collect();
        eprintln!("nothing to measure; there are {}", ids.join(", "));
        return ExitCode::FAILURE;
    }
    let _scratch = match Scratch::new() {
        Ok(scratch) => scratch,
        Err(error) => {
            eprintln!("no directory for what is measured: {error}");
            return ExitCode::FAILURE;
        }
    };

    let mut patience = Patience::of_minutes(options.patience);
    let mut cells: Vec<Vec<Cell>> = chosen.iter().map(Peer::cells).collect();
    for number in 1..=effort.runs {
        for (peer, cells) in chosen.iter().zip(&mut cells) {
            eprintln!("run {number} of {}: {}", effort.runs, peer.name);
            for (measure, cell) in peer.measures.iter().zip(cells) {
                patience.await_near([first, second]);
                match measured(measure, cell, [first, second], effort) {
                    Ok(run) => cell.runs.push(run),
                    Err(why) => {
                        eprintln!("{}: {why}", cell.what);
                        cell.notes.push(format!("run {number} has no result: {why}"));
                    }
                }
            }
        }
    }

    let mut report = Report::new();
    let (measured, without): (Vec<Cell>, Vec<Cell>) =
        cells.into_iter().flatten().partition(|cell| !cell.runs.is_empty());
    measured.into_iter().for_each(|cell| report.add(cell));
    println!("\n{}", report.machine);
    table::print(&chosen, &report.cells);
    missing.iter().for_each(|missing| println!("\n{missing}"));
    without.iter().for_each(|cell| println!("\nNo run of this has a result: {}", cell.what));
    if let Some(path) = &options.json {
        report.write(path);
    }
    if without.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One run of a cell, with what it is compared with, or why there is none.
fn measured(measure: &Measure, cell: &Cell, cpus: [usize; 2], effort: Effort) -> Result<Run, String> {
    let run = || try_isolated(&cpus, || (measure.run)(cpus, effort));
    let (outcome, beside) = Beside::of(cpus, FLOOR_ROUND_TRIPS, run);
    let Outcome { value, distribution } = outcome?;
    let other = match cell.against.as_deref() {
        Some(peers::EVENTFD) => Some(isolated(&cpus, || floor::eventfd(cpus[0], FLOOR_ROUND_TRIPS))),
        Some(peers::CACHE_LINE) => Some(beside.mean()),
        _ => None,
    };
    Ok(Run { value, other, floor_ns: beside.worst(), distribution })
}

/// Of the floor beside each cell: some milliseconds.
const FLOOR_ROUND_TRIPS: u64 = 20_000;

/// The peers that are to be measured and can be, and why others cannot.
fn choose(only: &[String]) -> (Vec<Peer>, Vec<String>) {
    let is_wanted = |id: &str| only.is_empty() || only.iter().any(|prefix| id.starts_with(prefix));
    let mut chosen = peers::all();
    chosen.retain(|peer| is_wanted(peer.id));
    let mut missing = Vec::new();
    if is_wanted(peers::REDIS) && redis::version().is_none() {
        chosen.retain(|peer| peer.id != peers::REDIS);
        missing.push(
            "Redis was not measured: redis-server is not installed (Debian: apt-get install redis-server)."
                .into(),
        );
    }
    if is_wanted(peers::AERON)
        && let Err(why) = aeron_can_be_measured()
    {
        chosen.retain(|peer| peer.id != peers::AERON);
        missing.push(format!("Aeron was not measured: {why}."));
    }
    (chosen, missing)
}

#[cfg(not(feature = "aeron"))]
fn aeron_can_be_measured() -> Result<(), String> {
    Err("README.md says what `--features aeron` needs".into())
}

#[cfg(feature = "aeron")]
fn aeron_can_be_measured() -> Result<(), String> {
    let free = scratch::free_shared().map_err(|error| format!("/dev/shm cannot be looked at: {error}"))?;
    if free < aeron::NEEDED_BYTES {
        return Err(format!(
            "/dev/shm has room for {} MiB, and its logs take {}",
            free >> 20,
            aeron::NEEDED_BYTES >> 20
        ));
    }
    Ok(())
}

/// A cell that was not measured yet.
fn cell(id: String, what: String, unit: Unit, against: Option<&str>, notes: Vec<String>) -> Cell {
    Cell { id, what, unit, runs: Vec::new(), against: against.map(Into::into), target: None, x: None, notes }
}
