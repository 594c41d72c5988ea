//! A destination of the demo: a replica, and how long changes take to reach it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use shmirror::{Event, Replica};

use super::part::{DestinationReport, Failure, Line, Order, Report, latency_histogram, monotonic_ns};
use super::source::{SYNTHETIC, made_at_ns};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    pub(crate) name: String,
    #[arg(long)]
    pub(crate) runtime_dir: Option<PathBuf>,
}

/// How often the state is reported.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);
/// The longest sleep, after which orders are looked at.
const TICK: Duration = Duration::from_millis(20);

pub(crate) fn run(options: &Options) -> Result<ExitCode, Failure> {
    let line = Line::open();
    let mut replica_options = Replica::options();
    if let Some(dir) = &options.runtime_dir {
        replica_options = replica_options.runtime_dir(dir);
    }
    let outcome = replica_options.connect(&options.name).map_err(Failure::from);
    line.end(outcome.and_then(|mut replica| follow(&mut replica, &line)))
}

fn follow(replica: &mut Replica, line: &Line) -> Result<(), Failure> {
    let mut latencies = latency_histogram();
    let mut next_report = Instant::now();
    let mut was_synced = false;
    let mut newest_made_at = None;
    loop {
        match line.next() {
            Some(Order::Quit) => return Ok(()),
            Some(Order::List) => {
                let counts =
                    latencies.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value()));
                line.report(&Report::Latencies(counts.collect()))?;
                list(replica, line)?;
            }
            Some(Order::Freeze) | None => {}
        }
        // A replayed value was made long ago: only what comes once the table is complete was under way until now.
        let live = replica.table(SYNTHETIC).is_synced();
        replica.wait_observed(TICK, |event| {
            let Event::Set { table: SYNTHETIC, value, .. } = event else { return };
            let Some(made_at) = made_at_ns(value) else { return };
            newest_made_at = newest_made_at.max(Some(made_at));
            if live {
                latencies.saturating_record(monotonic_ns().saturating_sub(made_at).max(1));
            }
        })?;
        let synced = replica.is_synced();
        if synced && !was_synced {
            line.report(&Report::Synced { at_ns: monotonic_ns() })?;
        }
        was_synced = synced;
        if Instant::now() >= next_report {
            next_report = Instant::now() + REPORT_INTERVAL;
            let stats = replica.stats();
            line.report(&Report::Destination(DestinationReport {
                attached: replica.is_attached(),
                synced,
                items: stats.items,
                applied: stats.applied,
                lag_ns: newest_made_at.map(|made_at| monotonic_ns().saturating_sub(made_at)),
                p50_ns: latencies.value_at_quantile(0.5),
                p99_ns: latencies.value_at_quantile(0.99),
            }))?;
        }
    }
}

fn list(replica: &Replica, line: &Line) -> Result<(), Failure> {
    line.list(replica.tables().flat_map(|name| {
        let items = replica.table(name).iter();
        items.map(move |(opcode, value)| (name, opcode.as_bytes(), value))
    }))
}
