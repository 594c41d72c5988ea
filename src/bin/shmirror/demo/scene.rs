//! What the demo knows of its parts.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::part::{
    DestinationReport, Failure, FrozenReport, LinkReport, Listing, Report, Said, SourceReport,
    latency_histogram, monotonic_ns,
};

/// What a part is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Source,
    /// Counted from 0.
    Destination(usize),
}

#[derive(Debug)]
pub(crate) struct Scene {
    /// The roles of all parts that were started, in that order.
    roles: Vec<Role>,
    began: Instant,
    began_ns: u64,
    pub(crate) length: Duration,
    pub(crate) loaded: bool,
    pub(crate) source: SourceState,
    pub(crate) destinations: Vec<DestinationState>,
    pub(crate) kills: Vec<Kill>,
    pub(crate) frozen: Option<FrozenReport>,
    pub(crate) latencies: Histogram<u64>,
}

#[derive(Debug, Default)]
pub(crate) struct SourceState {
    /// The number of the part that plays the source now.
    part: usize,
    pub(crate) pid: u32,
    pub(crate) report: SourceReport,
    pub(crate) changes_per_second: Rate,
    /// Counted in earlier lives.
    earlier_changes: u64,
    earlier_resent: u64,
    pub(crate) listing: Option<Listing>,
}

#[derive(Debug, Default)]
pub(crate) struct DestinationState {
    part: usize,
    pub(crate) pid: u32,
    pub(crate) report: DestinationReport,
    pub(crate) applied_per_second: Rate,
    pub(crate) synced_at_ns: Option<u64>,
    pub(crate) listing: Option<Listing>,
}

/// A part that was killed, and its successor.
#[derive(Debug)]
pub(crate) struct Kill {
    pub(crate) role: Role,
    pub(crate) pid: u32,
    pub(crate) back_pid: u32,
    /// Since the beginning.
    pub(crate) at: Duration,
    at_ns: u64,
    /// Destinations that are not in step again yet.
    missing: BTreeSet<usize>,
    pub(crate) equal_again: Option<Duration>,
}

impl Scene {
    pub(crate) fn new(destinations: usize, length: Duration) -> Scene {
        Scene {
            roles: Vec::new(),
            began: Instant::now(),
            began_ns: monotonic_ns(),
            length,
            loaded: false,
            source: SourceState::default(),
            destinations: (0..destinations).map(|_| DestinationState::default()).collect(),
            kills: Vec::new(),
            frozen: None,
            latencies: latency_histogram(),
        }
    }

    /// The time begins.
    pub(crate) fn begin(&mut self) {
        self.began = Instant::now();
        self.began_ns = monotonic_ns();
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// The number of the part that is started next.
    pub(crate) fn next_part(&self) -> usize {
        self.roles.len()
    }

    /// How often the source was started before.
    pub(crate) fn source_lives(&self) -> u32 {
        self.roles.iter().filter(|role| **role == Role::Source).count() as u32
    }

    pub(crate) fn handle_start(&mut self, role: Role, pid: u32) {
        let part = self.roles.len();
        self.roles.push(role);
        match role {
            Role::Source => {
                let before = &self.source;
                self.source = SourceState {
                    part,
                    pid,
                    earlier_changes: before.earlier_changes + before.report.changes,
                    earlier_resent: self.resent(),
                    ..SourceState::default()
                };
            }
            Role::Destination(n) => {
                self.destinations[n] = DestinationState { part, pid, ..DestinationState::default() };
            }
        }
    }

    pub(crate) fn handle_kill(&mut self, role: Role, pid: u32, back_pid: u32, at_ns: u64) {
        let missing = match role {
            Role::Source => (0..self.destinations.len()).collect(),
            Role::Destination(n) => BTreeSet::from([n]),
        };
        let at = Duration::from_nanos(at_ns.saturating_sub(self.began_ns));
        self.kills.push(Kill { role, pid, back_pid, at, at_ns, missing, equal_again: None });
    }

    /// Takes in what a part has said; what one that was killed has said last is of no interest.
    pub(crate) fn handle_said(&mut self, part: usize, said: Said) -> Result<(), Failure> {
        let role = self.roles[part];
        let present = match role {
            Role::Source => self.source.part,
            Role::Destination(n) => self.destinations[n].part,
        };
        if part != present {
            return Ok(());
        }
        match said {
            Said::Report(report) => self.handle_report(role, report),
            Said::Listing(listing) => {
                match role {
                    Role::Source => self.source.listing = Some(listing),
                    Role::Destination(n) => self.destinations[n].listing = Some(listing),
                }
                Ok(())
            }
            Said::Ended => Err(format!("{} has ended", name_of(role)).into()),
        }
    }

    pub(crate) fn is_recovered(&self) -> bool {
        self.kills.iter().all(|kill| kill.equal_again.is_some())
    }

    pub(crate) fn is_all_synced(&self) -> bool {
        self.destinations.iter().all(|destination| destination.report.synced)
    }

    pub(crate) fn is_all_listed(&self) -> bool {
        self.source.listing.is_some() && self.destinations.iter().all(|other| other.listing.is_some())
    }

    /// Changes in all lives of the source, as far as they were reported.
    pub(crate) fn changes(&self) -> u64 {
        self.source.earlier_changes + self.source.report.changes
    }

    /// Records that were sent again in all lives of the source, as far as they were reported.
    pub(crate) fn resent(&self) -> u64 {
        let now: u64 = self.source.report.destinations.iter().map(|link| link.resent).sum();
        self.source.earlier_resent + now
    }

    /// What the source has reported of a destination last.
    pub(crate) fn link(&self, destination: &DestinationState) -> Option<&LinkReport> {
        self.source.report.destinations.iter().find(|link| link.pid == destination.pid)
    }

    fn handle_report(&mut self, role: Role, report: Report) -> Result<(), Failure> {
        match (role, report) {
            (_, Report::Failed(why)) => return Err(format!("{}: {why}", name_of(role)).into()),
            (Role::Source, Report::Loaded) => self.loaded = true,
            (Role::Source, Report::Source(report)) => {
                self.source.changes_per_second.update(report.changes);
                self.source.report = report;
            }
            (Role::Source, Report::Frozen(report)) => self.frozen = Some(report),
            (Role::Destination(n), Report::Destination(report)) => {
                self.destinations[n].applied_per_second.update(report.applied);
                self.destinations[n].report = report;
            }
            (Role::Destination(n), Report::Synced { at_ns }) => {
                self.destinations[n].synced_at_ns = Some(at_ns);
                self.handle_synced(n, at_ns);
            }
            (Role::Destination(_), Report::Latencies(counts)) => {
                for (value, count) in counts {
                    self.latencies.saturating_record_n(value, count);
                }
            }
            (_, report) => return Err(format!("{} has no reason to say {report:?}", name_of(role)).into()),
        }
        Ok(())
    }

    fn handle_synced(&mut self, destination: usize, at_ns: u64) {
        for kill in self.kills.iter_mut().filter(|kill| kill.at_ns < at_ns) {
            let removed = kill.missing.remove(&destination);
            if removed && kill.missing.is_empty() {
                kill.equal_again = Some(Duration::from_nanos(at_ns - kill.at_ns));
            }
        }
    }
}

/// How a person calls a part.
pub(crate) fn name_of(role: Role) -> String {
    match role {
        Role::Source => "source".to_string(),
        Role::Destination(n) => format!("destination {}", n + 1),
    }
}

/// How quickly a counter grows.
#[derive(Debug, Default)]
pub(crate) struct Rate {
    last: Option<(Instant, u64)>,
    pub(crate) per_second: f64,
}

impl Rate {
    fn update(&mut self, count: u64) {
        let now = Instant::now();
        if let Some((then, before)) = self.last {
            let elapsed = now.duration_since(then).as_secs_f64();
            if elapsed < 0.4 {
                return;
            }
            self.per_second = count.saturating_sub(before) as f64 / elapsed;
        }
        self.last = Some((now, count));
    }
}
