//! One process per mutant and test, and what it says.

use std::fmt;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::package;

/// Seeds that the simulation tries. What is not found within these is not found often enough. With as many as it takes by
/// itself it would also ask whether each hazard occurred, which is no way to catch a fault.
const SIMULATION_RUNS: u32 = 5000;

/// A run takes seconds, a minute on a busy machine.
const LONGEST_RUN: Duration = Duration::from_secs(600);

/// The most of a message that is shown.
const SHOWN_CHARS: usize = 120;

#[derive(Debug)]
pub(crate) enum Outcome {
    /// All tests passed.
    Survived,
    Caught {
        test: String,
        seed: Option<String>,
        says: String,
    },
    /// A test ended in another way, or not at all. That catches nothing.
    Lost(String),
}

impl Outcome {
    pub(crate) fn is_caught(&self) -> bool {
        matches!(self, Outcome::Caught { .. })
    }

    pub(crate) fn is_caught_by(&self, name: &str) -> bool {
        matches!(self, Outcome::Caught { test, .. } if test == name)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Survived => write!(f, "**nothing** | "),
            Outcome::Caught { seed: Some(seed), says, .. } => write!(f, "simulation, seed {seed} | {says}"),
            Outcome::Caught { test, says, .. } => {
                write!(f, "`{}` | {says}", test.rsplit("::").next().unwrap_or(test))
            }
            Outcome::Lost(how) => write!(f, "**lost** | {how}"),
        }
    }
}

/// The names of the tests that begin like that.
pub(crate) fn tests(binary: &Path, begin: &str) -> Vec<String> {
    let listed = Command::new(binary).args(["--list", begin]).output().expect("the test binary runs");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let names = listed.lines().filter_map(|line| line.strip_suffix(": test"));
    let tests: Vec<String> = names.filter(|name| name.starts_with(begin)).map(str::to_string).collect();
    assert!(!tests.is_empty(), "there are tests named {begin}…");
    tests
}

/// Runs the tests one after the other, until one catches the mutant. Number 0 is no mutant. Models of the ring and the link
/// explore so many preemptions at most, if that is given.
pub(crate) fn run(binary: &Path, mutant: usize, tests: &[String], preemptions: Option<&str>) -> Outcome {
    let outcomes = tests.iter().map(|test| run_test(binary, mutant, test, preemptions));
    outcomes.into_iter().find(|outcome| !matches!(outcome, Outcome::Survived)).unwrap_or(Outcome::Survived)
}

pub(crate) fn run_test(binary: &Path, mutant: usize, test: &str, preemptions: Option<&str>) -> Outcome {
    let log = package::dir().join(format!("mutant-{mutant}-{}.log", test.replace("::", "-")));
    let output = File::create(&log).unwrap();
    let child = Command::new(binary)
        .env_remove("LOOM_MAX_PREEMPTIONS")
        .envs(preemptions.map(|most| ("LOOM_MAX_PREEMPTIONS", most)))
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env("SHMIRROR_MUTANT", mutant.to_string())
        .env("SHMIRROR_SIM_RUNS", SIMULATION_RUNS.to_string())
        .env_remove("SHMIRROR_SIM_SEED")
        .env_remove("SHMIRROR_MODEL_BUDGET")
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .spawn()
        .expect("the test binary runs");
    match wait(child) {
        Some(status) => outcome(test, status, &String::from_utf8_lossy(&std::fs::read(log).unwrap())),
        None => Outcome::Lost(format!("{test} was killed after {LONGEST_RUN:?}")),
    }
}

/// Waits for a process; kills it and answers `None` if it takes too long.
fn wait(mut child: Child) -> Option<ExitStatus> {
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

/// How a test binary exits if a test has failed.
const TEST_FAILED: i32 = 101;
/// And how if a model has failed: to unwind the threads that loom has suspended in the middle of their work may panic again.
const ABORTED: i32 = nix::libc::SIGABRT;

fn outcome(test: &str, status: ExitStatus, said: &str) -> Outcome {
    if status.success() && said.contains("test result: ok. 1 passed;") {
        return Outcome::Survived;
    }
    let mut after = said.lines().skip_while(|line| !line.contains(" panicked at "));
    let says =
        after.nth(1).filter(|_| status.code() == Some(TEST_FAILED) || status.signal() == Some(ABORTED));
    let Some(says) = says else { return Outcome::Lost(format!("{test}: {status}")) };
    let seed = said.lines().find_map(|line| line.strip_prefix("seed ")?.split(' ').next());
    Outcome::Caught {
        test: test.to_string(),
        seed: seed.map(str::to_string),
        says: says.chars().take(SHOWN_CHARS).collect(),
    }
}
