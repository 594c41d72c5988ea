//! Tests in real processes: the test binary calls itself for its test `child`, which plays a role.

#![allow(dead_code, reason = "several tests have this, each uses its part")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use shmirror::{DestinationState, Opcode, Source};

use crate::common::{PATIENCE, contents, entries, replica, until};

pub(crate) type Contents = BTreeMap<Opcode, Vec<u8>>;

/// A runtime directory of one test.
pub(crate) struct Place(tempfile::TempDir);

impl Place {
    pub(crate) fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    pub(crate) fn dir(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn check_nothing_left(&self) {
        assert_eq!(entries(self.dir()), [""; 0], "in the runtime directory");
        // tests of named regions that run elsewhere on this host have some there for a moment
        until("no segment in /dev/shm", || {
            !entries(Path::new("/dev/shm")).iter().any(|name| name.contains("shmirror"))
        });
        // those that this thread has started and not waited for
        let children = std::fs::read_to_string("/proc/thread-self/children").unwrap();
        assert_eq!(children, "", "child processes");
    }
}

const ROLE: &str = "SHMIRROR_TEST_ROLE";
const DIR: &str = "SHMIRROR_TEST_DIR";
/// Tells our children's lines from the test harness's.
const MARK: &str = "@ ";

/// A child process, which is killed and waited for at the latest when this is dropped.
pub(crate) struct Process {
    child: Child,
    /// The child ends when it is closed.
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Process {
    pub(crate) fn start(role: &str, dir: &Path) -> Process {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child", "--ignored", "--nocapture"]).env(ROLE, role).env(DIR, dir);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().unwrap());
        let (line, lines) = channel();
        std::thread::spawn(move || {
            for text in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some((_, text)) = text.split_once(MARK) {
                    let _ = line.send(text.to_string()); // the test may be over
                }
            }
        });
        Process { child, stdin, lines }
    }

    /// Waits for that line, over others.
    pub(crate) fn expect(&mut self, expected: &str) {
        self.wait_for(expected, |line| line == expected);
    }

    pub(crate) fn expect_start(&mut self, expected: &str) {
        self.wait_for(expected, |line| line.starts_with(expected));
    }

    fn wait_for(&mut self, what: &str, is_it: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut said = Vec::new();
        while !said.last().is_some_and(|line: &String| is_it(line)) {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => said.push(line),
                Err(error) => panic!("{error} for {what:?} of child {}; it said {said:?}", self.id()),
            }
        }
        said.pop().unwrap()
    }

    /// Whatever it says next.
    pub(crate) fn next_line(&mut self) -> String {
        self.wait_for("a line", |_| true)
    }

    /// What a replica says that it holds, when it is asked.
    pub(crate) fn report(&mut self) -> String {
        self.tell("report");
        self.wait_for("a report", |_| true)
    }

    pub(crate) fn tell(&mut self, line: &str) {
        writeln!(self.stdin.as_ref().unwrap(), "{line}").unwrap();
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
        if signal == Signal::SIGSTOP {
            let stopped = waitpid(self.pid(), Some(WaitPidFlag::WUNTRACED)).unwrap();
            assert_eq!(stopped, WaitStatus::Stopped(self.pid(), signal));
        }
    }

    /// As `kill -9` does; tells when.
    pub(crate) fn kill(&mut self) -> Instant {
        let since = Instant::now();
        self.child.kill().unwrap();
        assert_eq!(self.child.wait().unwrap().signal(), Some(Signal::SIGKILL as i32));
        since
    }

    /// Lets it end by itself.
    pub(crate) fn finish(mut self) {
        self.close_input();
        assert!(self.child.wait().unwrap().success());
    }

    /// Whether it, and every child that it forked, has closed its output.
    pub(crate) fn is_silent(&self) -> bool {
        self.lines.recv_timeout(Duration::from_millis(10)) == Err(RecvTimeoutError::Disconnected)
    }

    /// It is to end by itself; [`Process::finish`] also waits until it has.
    pub(crate) fn close_input(&mut self) {
        self.stdin.take();
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // ended and waited for already, unless the test has failed
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The role and the directory of this process, if it is a child of a test.
pub(crate) fn role() -> Option<(String, PathBuf)> {
    Some((std::env::var(ROLE).ok()?, std::env::var_os(DIR)?.into()))
}

/// Plays a replica of the source "s": says what it holds in the table "t" when it is in step for the first time, and
/// whenever it is asked. It ends when its standard input is closed.
pub(crate) fn run_replica(dir: &Path) {
    let (asked, asks) = channel();
    std::thread::spawn(move || {
        while let Some(line) = heard() {
            asked.send(line).unwrap();
        }
    });
    let mut replica = replica(dir, "s");
    replica.wait_synced(PATIENCE).unwrap();
    say(&digest(&contents(&replica, "t")));
    loop {
        match asks.try_recv() {
            Ok(_) => say(&digest(&contents(&replica, "t"))),
            Err(TryRecvError::Disconnected) => return,
            Err(TryRecvError::Empty) => {}
        }
        replica.wait(Duration::from_millis(10)).unwrap();
    }
}

/// Tells the parent.
pub(crate) fn say(line: &str) {
    println!("{MARK}{line}");
}

/// The next line of the parent; `None` once it has closed our standard input.
pub(crate) fn heard() -> Option<String> {
    let mut line = String::new();
    (std::io::stdin().read_line(&mut line).unwrap() > 0).then(|| line.trim_end().to_string())
}

/// Contents in one line: their number and a sum over all bytes and their places.
pub(crate) fn digest(contents: &Contents) -> String {
    let mut sum = 0u64;
    for (opcode, value) in contents {
        for byte in opcode.as_bytes().iter().chain(value) {
            sum = (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3).rotate_left(5);
        }
    }
    format!("equal {} {sum:016x}", contents.len())
}

/// What the source keeps and counts for that destination.
pub(crate) fn state_of(source: &Source, destination: &Process) -> DestinationState {
    let mut states = source.stats().destinations.into_iter();
    states.find(|state| state.id.pid == destination.id()).expect("it is attached")
}
