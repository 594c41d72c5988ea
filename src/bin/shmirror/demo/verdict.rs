//! The comparison at the end, for people and for programs.

use std::fmt;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::part::Listing;
use super::scene::{Scene, name_of};
use super::source::SYNTHETIC;
use super::view::{duration, grouped};

/// What came out. The names of the fields are those of the JSON object.
#[derive(Debug, Serialize)]
pub(crate) struct Verdict {
    /// Every replica is equal to the source, and its kernel tables to a fresh dump.
    pub(crate) equal: bool,
    items: usize,
    kernel_items: usize,
    kernel_equal: bool,
    changes: u64,
    resent: u64,
    /// Items that a replica does not have as the source has them.
    lost: usize,
    destinations: Vec<Compared>,
    kills: Vec<KillReport>,
    latency_ns: Latencies,
    seconds: f64,
    /// What is wrong, for a person.
    trouble: Vec<String>,
}

/// One replica beside the source.
#[derive(Debug, Serialize)]
struct Compared {
    pid: u32,
    items: usize,
    equal: bool,
    /// Items of the source that it does not have.
    missing: usize,
    /// Items with another value.
    different: usize,
    /// Items that the source does not have.
    stale: usize,
}

#[derive(Debug, Serialize)]
struct KillReport {
    what: String,
    pid: u32,
    back_pid: u32,
    at_ms: u64,
    equal_again_ms: Option<f64>,
}

/// From the call that made a change until a replica had it.
#[derive(Debug, Serialize)]
struct Latencies {
    count: u64,
    p50: u64,
    p90: u64,
    p99: u64,
    #[serde(rename = "p99.9")]
    p99_9: u64,
    max: u64,
}

/// What is wrong is told in no more lines than this.
const MAX_TROUBLE: usize = 20;

impl Verdict {
    pub(crate) fn new(scene: &Scene) -> Verdict {
        let nothing = Listing::new();
        let source = scene.source.listing.as_ref().unwrap_or(&nothing);
        let destinations: Vec<Compared> = scene
            .destinations
            .iter()
            .map(|destination| {
                Compared::new(destination.pid, source, destination.listing.as_ref().unwrap_or(&nothing))
            })
            .collect();
        let mut trouble = Vec::new();
        let mut kernel_equal = false;
        match &scene.frozen {
            Some(frozen) => {
                kernel_equal = frozen.kernel_differences.is_empty();
                trouble.extend(frozen.kernel_differences.iter().map(|line| format!("kernel: {line}")));
                trouble.extend(frozen.trouble.iter().map(|line| format!("flush: {line}")));
                if frozen.acked != destinations.len() {
                    trouble.push(format!("{} of {} acknowledged all", frozen.acked, destinations.len()));
                }
            }
            None => trouble.push("the source has not come to rest".into()),
        }
        if source.is_empty() {
            trouble.push("the source listed nothing".into());
        }
        for compared in destinations.iter().filter(|compared| !compared.equal) {
            trouble.push(format!("{compared:?}"));
        }
        let kills: Vec<KillReport> = scene.kills.iter().map(KillReport::new).collect();
        let unrecovered = kills.iter().filter(|kill| kill.equal_again_ms.is_none());
        trouble.extend(unrecovered.map(|kill| format!("{} was never equal again", kill.what)));
        let equal = trouble.is_empty();
        if trouble.len() > MAX_TROUBLE {
            let more = trouble.len() - MAX_TROUBLE;
            trouble.truncate(MAX_TROUBLE);
            trouble.push(format!("and {more} more"));
        }
        let synthetic = format!("{SYNTHETIC} ");
        Verdict {
            equal,
            items: source.len(),
            kernel_items: source.keys().filter(|key| !key.starts_with(&synthetic)).count(),
            kernel_equal,
            changes: scene.changes(),
            resent: scene.resent(),
            lost: destinations.iter().map(|compared| compared.missing + compared.different).sum(),
            destinations,
            kills,
            latency_ns: Latencies::new(&scene.latencies),
            seconds: (scene.elapsed().as_secs_f64() * 1000.0).round() / 1000.0,
            trouble,
        }
    }
}

impl Compared {
    fn new(pid: u32, source: &Listing, replica: &Listing) -> Compared {
        let missing = source.keys().filter(|key| !replica.contains_key(*key)).count();
        let stale = replica.keys().filter(|key| !source.contains_key(*key)).count();
        let in_both = source.iter().filter_map(|(key, value)| Some((value, replica.get(key)?)));
        let different = in_both.filter(|(value, other)| value != other).count();
        let equal = missing + stale + different == 0;
        Compared { pid, items: replica.len(), equal, missing, different, stale }
    }
}

impl KillReport {
    fn new(kill: &super::scene::Kill) -> KillReport {
        KillReport {
            what: name_of(kill.role),
            pid: kill.pid,
            back_pid: kill.back_pid,
            at_ms: kill.at.as_millis() as u64,
            equal_again_ms: kill.equal_again.map(|time| time.as_micros() as f64 / 1000.0),
        }
    }
}

impl Latencies {
    fn new(histogram: &Histogram<u64>) -> Latencies {
        Latencies {
            count: histogram.len(),
            p50: histogram.value_at_quantile(0.5),
            p90: histogram.value_at_quantile(0.9),
            p99: histogram.value_at_quantile(0.99),
            p99_9: histogram.value_at_quantile(0.999),
            max: histogram.max(),
        }
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.count == 0 {
            return f.write_str("no latency was measured");
        }
        let [p50, p99, max] = [self.p50, self.p99, self.max].map(duration);
        write!(f, "latency p50 {p50}, p99 {p99}, max {max}")
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for compared in &self.destinations {
            let word = if compared.equal { "equal" } else { "NOT equal" };
            write!(
                f,
                "replica of process {}: {} items, {word}",
                compared.pid,
                grouped(compared.items as u64)
            )?;
            writeln!(
                f,
                " ({} missing, {} different, {} stale)",
                compared.missing, compared.different, compared.stale
            )?;
        }
        let kernel = if self.kernel_equal { "equal to a fresh dump" } else { "NOT equal to a fresh dump" };
        writeln!(f, "kernel tables: {} items, {kernel}", grouped(self.kernel_items as u64))?;
        for kill in &self.kills {
            let again = kill.equal_again_ms.map_or("never".into(), |ms| format!("after {ms:.1} ms"));
            writeln!(f, "{} killed with SIGKILL: equal again {again}", kill.what)?;
        }
        writeln!(
            f,
            "{} changes, {} sent again, {} lost; {}",
            grouped(self.changes),
            grouped(self.resent),
            grouped(self.lost as u64),
            self.latency_ns,
        )?;
        for line in &self.trouble {
            writeln!(f, "! {line}")?;
        }
        let verdict = if self.equal { "EQUAL" } else { "NOT EQUAL" };
        let total = grouped(self.items as u64);
        writeln!(f, "{verdict}: {total} items in {} replicas and the source", self.destinations.len())
    }
}
