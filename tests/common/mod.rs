//! What the tests share.

#![allow(dead_code, reason = "several tests have this, each uses its part")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use shmirror::{
    Destination, DestinationState, Event, HandlerResult, Opcode, Replica, ResendPolicy, Source,
    SourceOptions, Table, Wait,
};

/// Far longer than anything takes here, however busy the machine is.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How long one of many looks waits.
pub(crate) const MOMENT: Duration = Duration::from_millis(5);

/// How long those spin that then do something else.
pub(crate) const SPIN: Duration = Duration::from_millis(3);

/// Every way to wait.
pub(crate) const WAITS: [Wait; 4] =
    [Wait::Block, Wait::Spin, Wait::SpinThenYield { spin: SPIN }, Wait::SpinThenSleep { spin: SPIN }];

/// Calls `step` until it is true.
pub(crate) fn until(what: &str, mut step: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !step() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for: {what}");
        std::thread::yield_now();
    }
}

/// A resend that no test can wait for: what converges, converges without the timer.
pub(crate) fn no_resend() -> ResendPolicy {
    ResendPolicy { interval: Duration::from_secs(3600), ..ResendPolicy::default() }
}

/// A resend within a few milliseconds, for tests of what is sent again.
pub(crate) fn quick_resend() -> ResendPolicy {
    let interval = Duration::from_millis(4);
    ResendPolicy { interval, max_interval: 4 * interval, ..ResendPolicy::default() }
}

/// A source in `dir` without resends.
pub(crate) fn source_options(dir: &Path) -> SourceOptions {
    Source::options().runtime_dir(dir).resend(no_resend())
}

/// A replica of the source `name` in `dir`.
pub(crate) fn replica(dir: &Path, name: &str) -> Replica {
    Replica::options().runtime_dir(dir).connect(name).unwrap()
}

/// A replica that has got all that its source `s` in `dir` has.
pub(crate) fn synced_replica(dir: &Path) -> Replica {
    let mut replica = replica(dir, "s");
    replica.wait_synced(PATIENCE).unwrap();
    replica
}

/// A destination of the source `s` in `dir`.
pub(crate) fn destination(dir: &Path) -> Destination {
    Destination::options().runtime_dir(dir).connect("s").unwrap()
}

/// Lets a replica take in what comes until `done`.
pub(crate) fn follow(replica: &mut Replica, what: &str, mut done: impl FnMut(&Replica) -> bool) {
    until(what, || {
        replica.wait(MOMENT).unwrap();
        done(replica)
    });
}

/// Lets a destination take in what comes until `done`; `handler` is told of each event.
pub(crate) fn receive(
    destination: &mut Destination,
    what: &str,
    mut handler: impl FnMut(Event<'_>) -> HandlerResult,
    mut done: impl FnMut(&Destination) -> bool,
) {
    until(what, || {
        destination.recv_timeout(MOMENT, &mut handler).unwrap();
        done(destination)
    });
}

/// What the only destination of a source has on its account.
pub(crate) fn only_destination(source: &Source) -> DestinationState {
    let mut destinations = source.stats().destinations;
    assert_eq!(destinations.len(), 1);
    destinations.remove(0)
}

pub(crate) fn contents(replica: &Replica, table: &str) -> BTreeMap<Opcode, Vec<u8>> {
    replica.table(table).iter().map(|(opcode, value)| (opcode.clone(), value.to_vec())).collect()
}

pub(crate) fn contents_of_source(table: &Table) -> BTreeMap<Opcode, Vec<u8>> {
    table.items().into_iter().collect()
}

/// The names in a directory, sorted.
pub(crate) fn entries(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
