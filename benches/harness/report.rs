//! Results: distributions, medians, targets, as text and as JSON.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::floor::FAR_NS;

/// Collects durations, from 1 ns to a minute with three digits.
#[derive(Debug)]
pub(crate) struct Recorder(Histogram<u64>);

/// A distribution, in ns.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Distribution {
    pub(crate) count: u64,
    pub(crate) p50: u64,
    pub(crate) p90: u64,
    pub(crate) p99: u64,
    pub(crate) p99_9: u64,
    pub(crate) p99_99: u64,
    pub(crate) max: u64,
    /// Percentile and value, for a plot.
    pub(crate) curve: Vec<(f64, u64)>,
}

/// What round trips take, in ns.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Latency {
    /// From a loop without timing calls.
    pub(crate) mean: f64,
    /// From a loop with one in each round trip.
    pub(crate) distribution: Distribution,
}

/// All that a bench has found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) machine: String,
    pub(crate) cells: Vec<Cell>,
}

/// One thing measured, several times.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Cell {
    /// What it is found by, and what a person reads.
    pub(crate) id: String,
    pub(crate) what: String,
    pub(crate) unit: Unit,
    pub(crate) runs: Vec<Run>,
    /// What the value is compared with, in the same run, if it is.
    pub(crate) against: Option<String>,
    pub(crate) target: Option<Target>,
    /// The place in a series, for a plot: what varies, and its value here.
    pub(crate) x: Option<(String, f64)>,
    /// What else is to be known.
    pub(crate) notes: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) value: f64,
    /// What it is compared with.
    pub(crate) other: Option<f64>,
    /// The cache line floor just before or just after, in ns, whichever is larger.
    pub(crate) floor_ns: f64,
    pub(crate) distribution: Option<Distribution>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Unit {
    Nanoseconds,
    Milliseconds,
    PerSecond,
    Bytes,
    /// Of one, as of cpu time.
    Share,
    Ratio,
}

/// What a cell is to reach: of its value, or of its ratio if it is compared with something.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Target {
    AtMost { target: f64, stretch: Option<f64> },
    AtLeast { target: f64, stretch: Option<f64> },
}

impl Latency {
    /// Makes so many round trips twice, once for the mean, once for the distribution, after a warm-up: [`made`](Self::made) in all.
    pub(crate) fn of(round_trips: u64, mut once: impl FnMut()) -> Latency {
        let mean = mean_of(round_trips, &mut once);
        let mut recorder = Recorder::new();
        let mut before = Instant::now();
        for _ in 0..round_trips {
            once();
            let now = Instant::now();
            recorder.record(now - before);
            before = now;
        }
        Latency { mean, distribution: recorder.distribution() }
    }

    /// All the round trips that are made for the latency of so many.
    pub(crate) fn made(round_trips: u64) -> u64 {
        made_for_mean(round_trips) + round_trips
    }
}

/// The mean of so many round trips in ns, after a warm-up, in which the peer starts, too: [`made_for_mean`] in all.
pub(crate) fn mean_of(round_trips: u64, mut once: impl FnMut()) -> f64 {
    (0..warm_up(round_trips)).for_each(|_| once());
    let start = Instant::now();
    (0..round_trips).for_each(|_| once());
    start.elapsed().as_nanos() as f64 / round_trips as f64
}

/// All the round trips that are made for the mean of so many.
pub(crate) fn made_for_mean(round_trips: u64) -> u64 {
    warm_up(round_trips) + round_trips
}

fn warm_up(round_trips: u64) -> u64 {
    round_trips / 10 + 1
}

impl Recorder {
    pub(crate) fn new() -> Recorder {
        Recorder(Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are good"))
    }

    #[inline]
    pub(crate) fn record(&mut self, duration: Duration) {
        self.0.saturating_record(duration.as_nanos() as u64);
    }

    pub(crate) fn distribution(&self) -> Distribution {
        let at = |quantile| self.0.value_at_quantile(quantile);
        let curve = self.0.iter_quantiles(4).map(|step| (step.percentile(), step.value_iterated_to()));
        Distribution {
            count: self.0.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            max: self.0.max(),
            curve: curve.collect(),
        }
    }
}

impl Run {
    /// Whether the host had moved the cpus apart.
    pub(crate) fn is_far(&self) -> bool {
        self.floor_ns > FAR_NS
    }

    fn ratio(&self) -> Option<f64> {
        Some(self.value / self.other?)
    }
}

impl Cell {
    /// The runs that count: those with the cpus near each other, if there are any.
    fn counted(&self) -> Vec<&Run> {
        let near: Vec<&Run> = self.runs.iter().filter(|run| !run.is_far()).collect();
        if near.is_empty() { self.runs.iter().collect() } else { near }
    }

    /// Whether every run was taken with the cpus apart.
    pub(crate) fn is_far(&self) -> bool {
        self.runs.iter().all(Run::is_far)
    }

    /// The median of what counts.
    pub(crate) fn value(&self) -> f64 {
        median(self.counted().iter().map(|run| run.value))
    }

    /// The median of the ratios, if the cell is compared with something.
    pub(crate) fn ratio(&self) -> Option<f64> {
        let ratios: Option<Vec<f64>> = self.counted().iter().map(|run| run.ratio()).collect();
        Some(median(ratios?))
    }

    /// The distribution of a run whose value is next to the median.
    pub(crate) fn median_distribution(&self) -> Option<Distribution> {
        let value = self.value();
        let away = |run: &&Run| (run.value - value).abs();
        let run = self.counted().into_iter().min_by(|a, b| away(a).total_cmp(&away(b)))?;
        run.distribution.clone()
    }

    /// How the target was met; empty without one.
    pub(crate) fn verdict(&self) -> String {
        let found = self.ratio().unwrap_or_else(|| self.value());
        let unit = if self.against.is_some() { Unit::Ratio } else { self.unit };
        let (sign, target, stretch, reached): (_, _, _, fn(f64, f64) -> bool) = match self.target {
            None => return String::new(),
            Some(Target::AtMost { target, stretch }) => {
                ("≤", target, stretch, |found, limit| found <= limit)
            }
            Some(Target::AtLeast { target, stretch }) => {
                ("≥", target, stretch, |found, limit| found >= limit)
            }
        };
        let outcome = match stretch {
            _ if !reached(found, target) => "missed",
            Some(stretch) if reached(found, stretch) => "met, and the stretch",
            _ => "met",
        };
        let stretch = stretch.map_or(String::new(), |stretch| format!(" ({})", unit.text(stretch)));
        format!("{sign} {}{stretch}: {outcome}", unit.text(target))
    }
}

impl Unit {
    pub(crate) fn text(self, value: f64) -> String {
        match self {
            Unit::Nanoseconds if value >= 100_000.0 => format!("{:.0} us", value / 1e3),
            Unit::Nanoseconds if value >= 10_000.0 => format!("{:.1} us", value / 1e3),
            Unit::Nanoseconds if value >= 100.0 => format!("{value:.0} ns"),
            Unit::Nanoseconds => format!("{value:.1} ns"),
            Unit::Milliseconds => format!("{value:.2} ms"),
            Unit::PerSecond if value >= 1e6 => format!("{:.1} M/s", value / 1e6),
            Unit::PerSecond => format!("{:.0} k/s", value / 1e3),
            Unit::Bytes => format!("{value:.0} B"),
            Unit::Share => format!("{:.2} %", value * 100.0),
            Unit::Ratio => format!("{value:.2} x"),
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = self.unit;
        write!(f, "{:<64} {:>10}", self.what, unit.text(self.value()))?;
        if let (Some(against), Some(ratio)) = (&self.against, self.ratio()) {
            write!(f, "  {ratio:.2} x {against}")?;
        }
        let verdict = self.verdict();
        if !verdict.is_empty() {
            write!(f, "  {verdict}")?;
        }
        if self.is_far() {
            write!(f, "  [cpus apart]")?;
        }
        let runs: Vec<String> = self.runs.iter().map(|run| unit.text(run.value)).collect();
        let floors: Vec<String> = self.runs.iter().map(|run| format!("{:.0}", run.floor_ns)).collect();
        write!(f, "\n    runs {}; floor {} ns", runs.join(", "), floors.join(", "))?;
        if let Some(at) = self.median_distribution() {
            let text = |value: u64| Unit::Nanoseconds.text(value as f64);
            let Distribution { p50, p90, p99, p99_9, p99_99, max, .. } = at;
            write!(
                f,
                "\n    p50 {}, p90 {}, p99 {}, p99.9 {}, p99.99 {}, max {}",
                text(p50),
                text(p90),
                text(p99),
                text(p99_9),
                text(p99_99),
                text(max)
            )?;
        }
        self.notes.iter().try_for_each(|note| write!(f, "\n    {note}"))
    }
}

impl Report {
    pub(crate) fn new() -> Report {
        Report { machine: machine(), cells: Vec::new() }
    }

    /// Takes a cell in, and shows it.
    pub(crate) fn add(&mut self, cell: Cell) {
        println!("{cell}");
        self.cells.push(cell);
    }

    pub(crate) fn write(&self, path: &Path) {
        let file = std::fs::File::create(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_json::to_writer_pretty(file, self)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        println!("written to {}", path.display());
    }
}

/// The middle one, or what lies between the middle two.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_unstable_by(f64::total_cmp);
    let (below, above) = ((values.len() - 1) / 2, values.len() / 2);
    f64::midpoint(values[below], values[above])
}

/// The machine, in a line.
fn machine() -> String {
    let field = |file: &str, name: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or_else(|| "unknown".into(), |(_, value)| value.trim().to_string())
    };
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let flags = field("/proc/cpuinfo", "flags");
    let kind =
        if flags.split(' ').any(|flag| flag == "hypervisor") { "virtual machine" } else { "bare metal" };
    let cpus = super::cpu::allowed().len();
    format!("{cpus} cpus, {}, {kind}, Linux {}", field("/proc/cpuinfo", "model name"), kernel.trim())
}

#[cfg(test)]
mod tests {
    // Named in full, as in `floor`.
    #[test]
    fn a_median_is_the_middle_one_or_lies_between_two() {
        assert_eq!(super::median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(super::median([4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(super::median([7.0]), 7.0);
    }
}
