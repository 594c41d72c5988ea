//! What the benches across processes share: processes pinned to cpus, records that can be verified, floors, and
//! distributions.
//!
//! Every cell runs in a process of its own, forked from one that has a single thread, and forks its peers likewise.
//! All that the processes share besides what is measured is a page of words ([`Words`]).

// The crates that include this use different parts of it.
#![allow(dead_code)]

pub(crate) mod cpu;
pub(crate) mod floor;
pub(crate) mod mirror;
pub(crate) mod peer;
pub(crate) mod record;
pub(crate) mod report;

use std::time::Duration;

/// How long, and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Runs of each cell; reported is the median.
    pub(crate) runs: usize,
    /// Runs that are made beyond these while the host has the cpus apart.
    pub(crate) more_runs_if_apart: usize,
    /// Round trips of a run.
    pub(crate) round_trips: u64,
    /// The time of a stream.
    pub(crate) stream: Duration,
    /// Divides what is large: numbers of items, mostly.
    pub(crate) scale: u64,
}

impl Effort {
    /// For figures.
    pub(crate) const FULL: Effort = Effort {
        runs: 3,
        more_runs_if_apart: 6,
        round_trips: 500_000,
        stream: Duration::from_millis(1000),
        scale: 1,
    };
    /// For a look at one cell while working on it.
    pub(crate) const SHORT: Effort = Effort {
        runs: 1,
        more_runs_if_apart: 3,
        round_trips: 200_000,
        stream: Duration::from_millis(500),
        scale: 1,
    };
    /// As a test: everything runs once, nothing is to be concluded from the figures.
    pub(crate) const TEST: Effort = Effort {
        runs: 1,
        more_runs_if_apart: 0,
        round_trips: 2_000,
        stream: Duration::from_millis(20),
        scale: 100,
    };
}

/// No wait for a process or a word lasts longer; whoever is still waiting then has found a fault.
pub(crate) const BOUND: Duration = Duration::from_secs(60);

/// No run of a cell lasts longer, whatever it waits for: its process is ended then, and with it those that it has forked.
pub(crate) const CELL_BOUND: Duration = Duration::from_secs(120);
