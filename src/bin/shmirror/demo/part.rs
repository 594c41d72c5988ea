//! What the demo's processes say to each other, and the handle of one of them.
//!
//! A part is this program again, started with a hidden subcommand. It reads one command per line on its standard input
//! and ends at the end of that, so that no part outlives the demo, however that dies. On its standard output it writes
//! one [`Report`] per line as JSON; the lines of a listing are plain, as there are many.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// What can go wrong in the demo; a person reads it.
pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// What a part can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// To the source: change nothing more, and wait until everything is acknowledged.
    Freeze,
    /// List all items.
    List,
    /// Come to an end.
    Quit,
}

/// What a part tells.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The source is loaded.
    Loaded,
    /// The state of the source.
    Source(SourceReport),
    /// The state of a destination.
    Destination(DestinationReport),
    /// A destination is in step with its source, since this time of the monotonic clock.
    Synced { at_ns: u64 },
    /// The source has stopped to change.
    Frozen(FrozenReport),
    /// The latencies that a destination has seen, as value in nanoseconds and count.
    Latencies(Vec<(u64, u64)>),
    /// The end of a listing.
    Listed,
    /// The part cannot go on.
    Failed(String),
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct SourceReport {
    pub(crate) items: u64,
    pub(crate) kernel_items: u64,
    pub(crate) kernel_events: u64,
    pub(crate) kernel_resyncs: u64,
    pub(crate) changes: u64,
    pub(crate) destinations: Vec<LinkReport>,
}

/// What the source says of one destination.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct LinkReport {
    pub(crate) pid: u32,
    pub(crate) unacked: u64,
    pub(crate) resent: u64,
    pub(crate) coalesced: u64,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct DestinationReport {
    pub(crate) attached: bool,
    pub(crate) synced: bool,
    pub(crate) items: u64,
    pub(crate) applied: u64,
    /// The age of the newest change of the synthetic table that the replica has.
    pub(crate) lag_ns: Option<u64>,
    pub(crate) p50_ns: u64,
    pub(crate) p99_ns: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct FrozenReport {
    /// Destinations that have acknowledged everything.
    pub(crate) acked: usize,
    /// What the flush said if that is not all of them.
    pub(crate) trouble: Option<String>,
    /// What differs between the source's kernel tables and a fresh dump; empty if they are equal.
    pub(crate) kernel_differences: Vec<String>,
}

/// A listing: the value of every table and opcode, in hexadecimal.
pub(crate) type Listing = BTreeMap<String, String>;

/// Something that a part said.
#[derive(Debug)]
pub(crate) enum Said {
    Report(Report),
    Listing(Listing),
    /// Its output has ended.
    Ended,
}

/// How long a part that the demo gives up may take to end by itself.
const QUIT_PATIENCE: Duration = Duration::from_secs(5);

/// A running part, as the demo sees it. Ended when it is dropped.
#[derive(Debug)]
pub(crate) struct Part {
    child: Child,
    orders: Option<ChildStdin>,
    reader: Option<JoinHandle<()>>,
}

impl Part {
    /// Starts this program again with these arguments. What it says arrives at `said` with its number.
    pub(crate) fn start(
        arguments: &[String],
        number: usize,
        said: mpsc::Sender<(usize, Said)>,
    ) -> Result<Part, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        // A group of its own: a Ctrl-C is for the demo, whose end ends the parts in good order.
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn()?;
        let orders = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("standard output is a pipe"));
        let reader = std::thread::spawn(move || read_reports(output, number, &said));
        Ok(Part { child, orders, reader: Some(reader) })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells the part something. A part that has died cannot be told anything; that shows as its end.
    pub(crate) fn order(&mut self, order: Order) {
        if let Some(orders) = &mut self.orders {
            let line = match order {
                Order::Freeze => "freeze\n",
                Order::List => "list\n",
                Order::Quit => "quit\n",
            };
            if orders.write_all(line.as_bytes()).is_err() {
                self.orders = None;
            }
        }
    }

    /// SIGKILL, and what it leaves.
    pub(crate) fn kill(&mut self) -> Result<ExitStatus, Failure> {
        self.child.kill()?;
        Ok(self.child.wait()?)
    }

    /// Ends the part in good order, or after `patience` with SIGKILL; answers whether it ended well.
    pub(crate) fn quit(&mut self, patience: Duration) -> Result<bool, Failure> {
        self.order(Order::Quit);
        self.orders = None;
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.success());
            }
            if Instant::now() >= deadline {
                self.kill()?;
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // In good order if it can: a source that is killed leaves its socket.
        if let Err(error) = self.quit(QUIT_PATIENCE) {
            eprintln!("shmirror: process {} could not be ended: {error}", self.pid());
        }
        if let Some(reader) = self.reader.take()
            && reader.join().is_err()
        {
            eprintln!("shmirror: the output of process {} could not be read", self.pid());
        }
    }
}

/// Passes on what a part says until its output ends or nobody listens.
fn read_reports(output: impl BufRead, number: usize, said: &mpsc::Sender<(usize, Said)>) {
    let mut listing = Listing::new();
    for line in output.lines() {
        let Ok(line) = line else { break };
        let what = if let Some((key, value)) = line.strip_prefix("i ").and_then(|item| item.rsplit_once(' '))
        {
            listing.insert(key.to_string(), value.to_string());
            continue;
        } else {
            match serde_json::from_str(&line) {
                Ok(Report::Listed) => Said::Listing(std::mem::take(&mut listing)),
                Ok(report) => Said::Report(report),
                Err(error) => Said::Report(Report::Failed(format!("unreadable report {line:?}: {error}"))),
            }
        };
        if said.send((number, what)).is_err() {
            return;
        }
    }
    // Nobody listening means that the demo is at its end.
    let _ = said.send((number, Said::Ended));
}

/// The other side of a [`Part`]: what a part is told, and how it reports.
#[derive(Debug)]
pub(crate) struct Line {
    orders: mpsc::Receiver<Order>,
}

impl Line {
    /// Reads standard input from now on.
    pub(crate) fn open() -> Line {
        let (send, orders) = mpsc::channel();
        std::thread::spawn(move || {
            for line in std::io::stdin().lines() {
                let order = match line.as_deref() {
                    Ok("freeze") => Order::Freeze,
                    Ok("list") => Order::List,
                    _ => break,
                };
                if send.send(order).is_err() {
                    return;
                }
            }
            // The part may have ended by itself.
            let _ = send.send(Order::Quit);
        });
        Line { orders }
    }

    /// The next order, if there is one.
    pub(crate) fn next(&self) -> Option<Order> {
        match self.orders.try_recv() {
            Ok(order) => Some(order),
            Err(mpsc::TryRecvError::Empty) => None,
            Err(mpsc::TryRecvError::Disconnected) => Some(Order::Quit),
        }
    }

    pub(crate) fn report(&self, report: &Report) -> Result<(), Failure> {
        let mut line = serde_json::to_vec(report)?;
        line.push(b'\n');
        std::io::stdout().lock().write_all(&line)?;
        Ok(())
    }

    /// Ends the part. What went wrong is told to the demo, which tells the person.
    pub(crate) fn end(&self, outcome: Result<(), Failure>) -> Result<ExitCode, Failure> {
        let Err(error) = outcome else { return Ok(ExitCode::SUCCESS) };
        self.report(&Report::Failed(error.to_string()))?;
        Ok(ExitCode::FAILURE)
    }

    /// Lists items, and says so.
    pub(crate) fn list<'a>(
        &self,
        items: impl Iterator<Item = (&'a str, &'a [u8], &'a [u8])>,
    ) -> Result<(), Failure> {
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        for (table, opcode, value) in items {
            writeln!(out, "i {table} {} {}", hex(opcode), hex(value))?;
        }
        out.flush()?;
        drop(out);
        self.report(&Report::Listed)
    }
}

/// CLOCK_MONOTONIC, which all processes of a host share.
pub(crate) fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has a monotonic clock");
    Duration::from(now).as_nanos() as u64
}

/// Counts latencies from a nanosecond to an hour, to three digits.
pub(crate) fn latency_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 3_600_000_000_000, 3).expect("bounds and digits are in range")
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}
