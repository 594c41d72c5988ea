//! Instructions of the paths within one thread, counted by callgrind: the same whatever else the machine does.
//!
//! ```text
//! cargo bench --bench counts               counts, and compares with benches/counts/recorded.json
//! cargo bench --bench counts -- --record   counts, and records
//! ```
//!
//! A count that is more than [`TOLERANCE`] above the recorded one is a failure, so that a slow-down is seen by who causes it; one
//! that is as much below asks to be recorded. Another compiler makes other code: then the counts are compared
//! with [`TOLERANCE_OF_OTHER_COMPILER`].
//!
//! Each path runs in a process under valgrind, a hundred times to warm up and then [`TIMES`] times while it is counted; what is
//! done in between is not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shmirror::{Flushed, Replica, ResendPolicy, Source, Table, Wait};

/// Instructions per change, by path.
#[derive(Debug, Serialize, Deserialize)]
struct Counts {
    compiler: String,
    instructions: BTreeMap<String, u64>,
}

const TOLERANCE: f64 = 0.05;
const TOLERANCE_OF_OTHER_COMPILER: f64 = 0.30;
/// How often a path runs while it is counted, with [`BATCH`] changes each.
const TIMES: u64 = 200;
const BATCH: u64 = 32;
const OPCODES: u64 = 1000;
/// How often a path runs before it is counted: until each item is there, and a hundred times more.
const WARM_UP: u64 = OPCODES.div_ceil(BATCH) + 100;

/// Of an opcode that an item cannot hold, together with a number.
const LONG_NAME: &str = "instances/blue/routes/ipv4/unicast";

const PATHS: [&str; 10] = [
    "set/0",
    "set/1",
    "set/4",
    "set_long/1",
    "set_with/1",
    "set_many/1",
    "update",
    "update_long",
    "replay",
    "round_trip",
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [option, path] = &arguments[..]
        && option == "--path"
    {
        return run(path);
    }
    let has = |option: &str| arguments.iter().any(|argument| argument == option);
    if has("--test") {
        // As a test: each path runs once, uncounted.
        PATHS.iter().for_each(|path| run(path));
        return;
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        eprintln!("valgrind is not installed, and counts the instructions; Debian has it as `valgrind`");
        exit(2);
    }
    let counts = Counts { compiler: compiler(), instructions: PATHS.map(count).into() };
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/counts/recorded.json");
    if has("--record") {
        let text = serde_json::to_string_pretty(&counts).expect("plain data") + "\n";
        std::fs::write(&recorded, text).unwrap_or_else(|error| panic!("{}: {error}", recorded.display()));
        return println!("recorded in {}", recorded.display());
    }
    if !compare(&counts, &recorded) {
        exit(1);
    }
}

/// Runs a path under callgrind; answers the instructions of one change.
fn count(path: &str) -> (String, u64) {
    let outcome = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*counted*"])
        .arg(std::env::current_exe().expect("this file"))
        .args(["--path", path])
        .output()
        .expect("valgrind was there a moment ago");
    let said = String::from_utf8_lossy(&outcome.stderr);
    let collected =
        said.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse::<u64>().ok());
    let Some(collected) = collected.filter(|collected| outcome.status.success() && *collected > 0) else {
        panic!("callgrind has not counted {path}: {said}");
    };
    let each = collected / (TIMES * BATCH);
    println!("{path:<12} {each:>6} instructions");
    (path.to_string(), each)
}

fn compare(counts: &Counts, recorded: &PathBuf) -> bool {
    let text = std::fs::read_to_string(recorded)
        .unwrap_or_else(|error| panic!("{}: {error}; make it with --record", recorded.display()));
    let before: Counts =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", recorded.display()));
    let mut tolerance = TOLERANCE;
    if before.compiler != counts.compiler {
        println!("recorded with {}, this is {}: compared loosely", before.compiler, counts.compiler);
        tolerance = TOLERANCE_OF_OTHER_COMPILER;
    }
    let mut good = true;
    for (path, &found) in &counts.instructions {
        let Some(&expected) = before.instructions.get(path) else {
            println!("{path}: {found} instructions, none recorded; use --record");
            good = false;
            continue;
        };
        let change = found as f64 / expected as f64 - 1.0;
        if change > tolerance {
            println!(
                "{path}: {found} instructions, {:+.1} % of the recorded {expected}: slower",
                change * 100.0
            );
            good = false;
        } else if change < -tolerance {
            println!("{path}: {found} instructions, {:+.1} % of {expected}: record it", change * 100.0);
        }
    }
    println!(
        "{}",
        if good { "no path has become slower" } else { "slower: see above, or --record what is meant so" }
    );
    good
}

fn compiler() -> String {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let version = Command::new(rustc).arg("--version").output().map(|output| output.stdout);
    version.map_or_else(|_| "unknown".into(), |text| String::from_utf8_lossy(&text).trim().to_string())
}

/// What is inside is counted.
#[inline(never)]
fn counted<T>(work: impl FnOnce() -> T) -> T {
    work()
}

/// A source, and replicas of it in the same thread.
struct Mirror {
    table: Table,
    replicas: Vec<Replica>,
    changes: u64,
    source: Source,
    dir: tempfile::TempDir,
}

impl Mirror {
    fn new(destinations: usize) -> Mirror {
        let dir = tempfile::tempdir().expect("a directory for the socket");
        // No resend shall disturb the count.
        let policy = ResendPolicy { interval: Duration::from_secs(3600), ..ResendPolicy::default() };
        let options = Source::options().runtime_dir(dir.path()).resend(policy);
        let source = options.create("counts").expect("a source");
        let table = source.table("t").expect("a table");
        table.ready();
        let mut mirror = Mirror { table, replicas: Vec::new(), changes: 0, source, dir };
        mirror.replicas = (0..destinations).map(|_| mirror.replica(Wait::Spin)).collect();
        mirror
    }

    fn replica(&self, wait: Wait) -> Replica {
        let options = Replica::options().runtime_dir(self.dir.path()).wait(wait);
        let mut replica = options.connect("counts").expect("a replica");
        replica.wait_synced(Duration::from_secs(60)).expect("the whole state");
        replica
    }

    fn next(&mut self) -> (u64, [u8; 64]) {
        self.changes += 1;
        let mut value = [0; 64];
        value[..8].copy_from_slice(&self.changes.to_ne_bytes());
        (self.changes % OPCODES, value)
    }

    fn set(&mut self) {
        for _ in 0..BATCH {
            let (opcode, value) = self.next();
            self.table.set(opcode, value).expect("a good value");
        }
    }

    fn set_long(&mut self) {
        for _ in 0..BATCH {
            let (number, value) = self.next();
            self.table.set((LONG_NAME, number), value).expect("a good value");
        }
    }

    fn set_with(&mut self) {
        for _ in 0..BATCH {
            self.changes += 1;
            let change = self.changes;
            let write = |out: &mut [u8]| {
                out[..8].copy_from_slice(&change.to_ne_bytes());
                Ok(())
            };
            self.table.set_with(change % OPCODES, 64, write).expect("a good value");
        }
    }

    fn update(&mut self) {
        for replica in &mut self.replicas {
            let mut left = BATCH as usize;
            while left > 0 {
                left -= replica.update().expect("a good link");
            }
        }
    }

    /// One change at a time: set, received, applied, acknowledged, and the ack taken in.
    fn round_trip(&mut self) {
        for _ in 0..BATCH {
            let (opcode, value) = self.next();
            // It comes alone.
            assert_eq!(self.replicas[0].update().expect("a good link"), 0);
            counted(|| {
                self.table.set(opcode, value).expect("a good value");
                assert_eq!(self.replicas[0].update().expect("a good link"), 1);
                let flushed = self.source.flush(Duration::from_secs(60)).expect("a flush");
                assert_eq!(flushed, Flushed::Acked(1));
            });
        }
    }

    fn set_many(&mut self) {
        let batch: Vec<(u64, [u8; 64])> = (0..BATCH).map(|_| self.next()).collect();
        counted(|| self.table.set_many(batch.iter().map(|(opcode, value)| (opcode, value))))
            .expect("good values");
        self.update();
    }
}

fn run(path: &str) {
    match path {
        "set/0" | "set/1" | "set/4" => {
            run_setting(path[4..].parse().expect("a digit"), Mirror::set);
        }
        "set_long/1" => run_setting(1, Mirror::set_long),
        "set_with/1" => run_setting(1, Mirror::set_with),
        "set_many/1" => run_counting(Mirror::set_many),
        "round_trip" => run_counting(Mirror::round_trip),
        "update" => run_updating(Mirror::set),
        "update_long" => run_updating(Mirror::set_long),
        "replay" => {
            // A late destination, and what it does for each item.
            let mirror = Mirror::new(0);
            let items = (0..TIMES * BATCH).map(|n| (n, [n as u8; 64]));
            mirror.table.set_many(items).expect("good values");
            // How often one that polls would look in vain is a matter of time.
            let replica = counted(|| mirror.replica(Wait::Block));
            assert_eq!(replica.table("t").len() as u64, TIMES * BATCH);
        }
        other => panic!("no path {other}, expected one of {PATHS:?}"),
    }
}

/// Runs what counts a part of itself.
fn run_counting(changes: impl Fn(&mut Mirror)) {
    let mut mirror = Mirror::new(1);
    for _ in 0..WARM_UP {
        mirror.set();
        mirror.update();
    }
    (0..TIMES).for_each(|_| changes(&mut mirror));
}

/// Counts changes, with so many destinations.
fn run_setting(destinations: usize, set: impl Fn(&mut Mirror)) {
    let mut mirror = Mirror::new(destinations);
    for time in 0..WARM_UP + TIMES {
        if time < WARM_UP {
            set(&mut mirror)
        } else {
            counted(|| set(&mut mirror))
        }
        mirror.update();
    }
}

/// Counts what the destination does for a change.
fn run_updating(set: impl Fn(&mut Mirror)) {
    let mut mirror = Mirror::new(1);
    for time in 0..WARM_UP + TIMES {
        set(&mut mirror);
        if time < WARM_UP { mirror.update() } else { counted(|| mirror.update()) }
    }
}
