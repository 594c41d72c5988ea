//! One process per mutant, and what it says.

use std::fmt;
use std::fs::File;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The tests that have to catch a mutant.
const TESTS: [&str; 1] = ["proto::sim::"];

/// Seeds that the simulation tries. What is not found within these is not found often enough.
const SIMULATION_RUNS: u32 = 5000;

/// A run takes a few seconds, on a busy machine more.
const LONGEST_RUN: Duration = Duration::from_secs(120);

#[derive(Debug)]
pub(crate) enum Outcome {
    Passed,
    Caught {
        by: String,
        says: String,
    },
    /// It ended in another way than by a failed test, or not at all.
    Lost(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Passed => write!(f, "**nothing** | "),
            Outcome::Caught { by, says } => write!(f, "{by} | {says}"),
            Outcome::Lost(how) => write!(f, "**lost** | {how}"),
        }
    }
}

/// Runs a mutant, or the protocol without a fault as number 0.
pub(crate) fn run(binary: &Path, mutant: usize) -> Outcome {
    let log = binary.with_file_name(format!("mutant-{mutant}.log"));
    let output = File::create(&log).unwrap();
    let child = Command::new(binary)
        .args(TESTS)
        .args(["--nocapture", "--test-threads=1"])
        .env("SHMIRROR_MUTANT", mutant.to_string())
        .env("SHMIRROR_SIM_RUNS", SIMULATION_RUNS.to_string())
        .env_remove("SHMIRROR_SIM_SEED")
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .spawn()
        .expect("the test binary runs");
    match wait(child) {
        Some(status) => outcome(status, &String::from_utf8_lossy(&std::fs::read(log).unwrap())),
        None => Outcome::Lost(format!("killed after {LONGEST_RUN:?}")),
    }
}

/// Waits for a process; kills it and answers `None` if it takes too long.
fn wait(mut child: std::process::Child) -> Option<ExitStatus> {
    let end = Instant::now() + LONGEST_RUN;
    while Instant::now() < end {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    None
}

/// How the test binary exits if a test has failed.
const TEST_FAILED: i32 = 101;

fn outcome(status: ExitStatus, said: &str) -> Outcome {
    let tests_passed =
        said.lines().any(|line| line.starts_with("test result: ok. ") && !line.contains(" 0 passed"));
    if status.success() && tests_passed {
        return Outcome::Passed;
    }
    if status.code() != Some(TEST_FAILED) {
        return Outcome::Lost(format!("{status}"));
    }
    let failed = said.rsplit("failures:\n").next().unwrap_or_default();
    let failed = failed.lines().find_map(|line| line.trim().strip_prefix("proto::"));
    let seed = said.lines().find_map(|line| line.strip_prefix("seed ")?.split(' ').next());
    let by = match (failed, seed) {
        (Some(test), Some(seed)) if test.starts_with("sim::") => format!("simulation, seed {seed}"),
        (Some(test), _) => test.to_string(),
        (None, _) => return Outcome::Lost("no test has failed".to_string()),
    };
    let mut lines = said.lines().skip_while(|line| !line.contains(" panicked at "));
    let says = lines.nth(1).unwrap_or_default().to_string();
    Outcome::Caught { by, says }
}
