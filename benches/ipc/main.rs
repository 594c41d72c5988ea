//! shmirror between processes: round trips, streams, latency under load, resynchronisation, memory, idling.
//!
//! ```text
//! cargo bench --bench ipc                           all cells, three runs each
//! cargo bench --bench ipc -- stream/ --runs 1       only cells whose id begins so, one run
//! cargo bench --bench ipc -- --json results.json    and the results for the plots
//! cargo bench --bench ipc -- --patience 30          wait up to 30 minutes, in all, for the cpus to be near each other
//! cargo bench --bench ipc -- --test                 everything once and small, as a test
//! ```
//!
//! Each run of a cell is made in processes of its own, pinned to cpus, after a warm-up; every record is verified. Before and
//! after each run the cache line floor is measured; a run of which either says that the host has moved the cpus apart does not count
//! if there are others. Patience is spent on every run, whether it depends on where the cpus are or not; when it is at its end, runs are
//! made nevertheless.

// The ring and what it lies in are private to the library, so they are compiled once more here.
#[allow(dead_code, unused, unreachable_pub)]
#[path = "../../src/cpu_cache.rs"]
mod cpu_cache;
#[allow(dead_code, unused, unreachable_pub)]
#[path = "../../src/region/mod.rs"]
mod region;
#[allow(dead_code, unused, unreachable_pub)]
#[path = "../../src/ring/mod.rs"]
mod ring;
#[allow(dead_code, unused, unreachable_pub)]
#[path = "../../src/sys/mod.rs"]
mod sys;

mod bare;
mod doorbells;
mod latency;
mod state;
mod streams;

#[path = "../harness/mod.rs"]
mod harness;

use std::path::PathBuf;

use harness::floor::{Beside, Patience};
use harness::report::{Cell, Distribution, Report, Run, Target, Unit};
use harness::{Effort, cpu, peer};

/// What a bench is asked for, and the machine that it has.
pub(crate) struct Bench {
    effort: Effort,
    only: Vec<String>,
    /// The ids of all cells, measured or not.
    ids: Vec<String>,
    pub(crate) cpus: Vec<usize>,
    patience: Patience,
    report: Report,
}

/// What a cell is, before it is measured.
pub(crate) struct Plan<'a> {
    pub(crate) id: &'a str,
    pub(crate) what: &'a str,
    pub(crate) unit: Unit,
    pub(crate) against: Option<&'a str>,
    pub(crate) target: Option<Target>,
    pub(crate) x: Option<(&'a str, f64)>,
}

/// What one run has found.
#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct Found {
    pub(crate) value: f64,
    pub(crate) other: Option<f64>,
    pub(crate) distribution: Option<Distribution>,
    pub(crate) note: Option<String>,
}

impl Found {
    pub(crate) fn value(value: f64) -> Found {
        Found { value, other: None, distribution: None, note: None }
    }

    pub(crate) fn against(value: f64, other: f64) -> Found {
        Found { other: Some(other), ..Found::value(value) }
    }
}

impl Bench {
    pub(crate) fn effort(&self) -> Effort {
        self.effort
    }

    /// Two different cpus.
    pub(crate) fn pair(&self) -> [usize; 2] {
        [self.cpus[0], self.cpus[1]]
    }

    /// Measures a cell, if it is asked for: each run in a process of its own.
    pub(crate) fn cell(&mut self, plan: Plan<'_>, measure: impl Fn() -> Found) {
        self.cell_beside_floor(plan, measure, |found, _| found.other);
    }

    /// As [`Bench::cell`], for what is compared with the floor.
    pub(crate) fn cell_against_floor(&mut self, plan: Plan<'_>, measure: impl Fn() -> Found) {
        self.cell_beside_floor(plan, measure, |_, floor| Some(floor.mean()));
    }

    fn cell_beside_floor(
        &mut self,
        plan: Plan<'_>,
        measure: impl Fn() -> Found,
        other: impl Fn(&Found, Beside) -> Option<f64>,
    ) {
        self.ids.push(plan.id.into());
        if !self.only.is_empty() && !self.only.iter().any(|only| plan.id.starts_with(only.as_str())) {
            return;
        }
        let mut notes = Vec::new();
        let (pair, round_trips) = (self.pair(), self.effort.round_trips / 4);
        let mut run = || {
            self.patience.await_near(pair);
            let (found, floor) = Beside::of(pair, round_trips, || peer::isolated(&self.cpus, &measure));
            let other = other(&found, floor);
            notes.extend(found.note);
            Run { value: found.value, other, floor_ns: floor.worst(), distribution: found.distribution }
        };
        let mut runs: Vec<Run> = (0..self.effort.runs).map(|_| run()).collect();
        // The host moves the cpus together again sooner or later.
        for _ in 0..self.effort.more_runs_if_apart {
            if runs.iter().filter(|run| !run.is_far()).count() >= self.effort.runs.min(2) {
                break;
            }
            runs.push(run());
        }
        notes.dedup();
        self.report.add(Cell {
            id: plan.id.into(),
            what: plan.what.into(),
            unit: plan.unit,
            runs,
            against: plan.against.map(String::from),
            target: plan.target,
            x: plan.x.map(|(label, value)| (label.into(), value)),
            notes,
        });
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (mut effort, mut runs, mut minutes) = (Effort::FULL, None, 0);
    let (mut json, mut only) = (None::<PathBuf>, Vec::new());
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().unwrap_or_else(|| usage(&format!("{argument} needs a value")));
        match argument.as_str() {
            "--test" => effort = Effort::TEST,
            "--short" => effort = Effort::SHORT,
            "--runs" => {
                runs = value().parse().ok().filter(|runs| *runs > 0).or_else(|| usage("--runs of 1 or more"))
            }
            "--patience" => {
                minutes = value().parse().unwrap_or_else(|_| usage("--patience of a number of minutes"));
            }
            "--json" => json = Some(value().into()),
            "--bench" => {} // cargo says so
            option if option.starts_with('-') => usage(&format!("unknown option {option}")),
            id => only.push(id.to_string()),
        }
    }
    effort.runs = runs.unwrap_or(effort.runs);
    let cpus = cpu::allowed();
    if cpus.len() < 2 {
        println!("this process may run on one cpu only: what goes between two cannot be measured");
        return;
    }
    let ids = Vec::new();
    let mut bench =
        Bench { effort, only, ids, cpus, patience: Patience::of_minutes(minutes), report: Report::new() };
    println!("{}", bench.report.machine);
    latency::cells(&mut bench);
    doorbells::cells(&mut bench);
    streams::cells(&mut bench);
    state::cells(&mut bench);
    if let Some(json) = json {
        bench.report.write(&json);
    }
    if let Some(unknown) = bench.only.iter().find(|only| !bench.ids.iter().any(|id| id.starts_with(*only))) {
        eprintln!("no cell has an id that begins with {unknown}; there are: {}", bench.ids.join(", "));
        std::process::exit(2);
    }
}

fn usage(wrong: &str) -> ! {
    eprintln!(
        "{wrong}; usage: cargo bench --bench ipc -- [--test | --short] [--runs N] [--patience MINUTES] [--json FILE] [ID...]"
    );
    std::process::exit(2);
}
