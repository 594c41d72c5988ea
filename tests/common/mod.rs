//! What the tests share.

#![allow(dead_code, reason = "each test file is a crate of its own and uses its part")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use shmirror::{Opcode, Replica, ResendPolicy, Source, SourceOptions, Table};

/// Far longer than anything takes here, however busy the machine is.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

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

/// A source in `dir` without resends.
pub(crate) fn source_options(dir: &Path) -> SourceOptions {
    Source::options().runtime_dir(dir).resend(no_resend())
}

/// A replica of the source `name` in `dir`.
pub(crate) fn replica(dir: &Path, name: &str) -> Replica {
    Replica::options().runtime_dir(dir).connect(name).unwrap()
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
