//! The demo's source: the kernel's tables, and a synthetic one that changes at a steady rate.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use shmirror::{Flushed, Source, Table, ToOpcode};

use super::part::{Failure, FrozenReport, Line, LinkReport, Order, Report, SourceReport, monotonic_ns};
use crate::kernel::{self, Change, Kernel, KernelTable, Objects, Outcome, describe};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    pub(crate) name: String,
    #[arg(long)]
    pub(crate) runtime_dir: Option<PathBuf>,
    #[arg(long)]
    pub(crate) items: u32,
    #[arg(long)]
    pub(crate) rate: u32,
    /// Counts the lives of the source.
    #[arg(long)]
    pub(crate) life: u32,
}

/// The name of the synthetic table.
pub(crate) const SYNTHETIC: &str = "synthetic";

/// How often the state is reported.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);
/// The longest sleep, after which orders and churn are looked at.
const TICK: Duration = Duration::from_millis(1);
/// How long to wait for the kernel's tables to be as in a fresh dump, and for the last acks.
const SETTLE: Duration = Duration::from_secs(10);
/// So many items of the synthetic table are new in each life, and as many of the old are gone.
const ITEMS_PER_LIFE: u32 = 100;

pub(crate) fn run(options: &Options) -> Result<ExitCode, Failure> {
    let line = Line::open();
    line.end(serve(options, &line))
}

fn serve(options: &Options, line: &Line) -> Result<(), Failure> {
    let mut source_options = Source::options();
    if let Some(dir) = &options.runtime_dir {
        source_options = source_options.runtime_dir(dir);
    }
    let source = source_options.create(&options.name)?;
    let mut kernel = Mirror::open(&source)?;
    let mut churn = Churn::load(&source, options)?;
    kernel.tables.iter().for_each(Table::ready);
    churn.table.ready();
    line.report(&Report::Loaded)?;

    let mut next_report = Instant::now();
    let mut frozen = false;
    loop {
        match line.next() {
            Some(Order::Quit) => return Ok(()),
            Some(Order::List) => list(&source, line)?,
            Some(Order::Freeze) => {
                frozen = true;
                line.report(&Report::Frozen(freeze(&source, &mut kernel)?))?;
            }
            None => {}
        }
        if !frozen {
            kernel.update()?;
            churn.proceed()?;
        }
        if Instant::now() >= next_report {
            next_report = Instant::now() + REPORT_INTERVAL;
            line.report(&Report::Source(state(&source, &kernel)))?;
        }
        kernel.wait(TICK)?;
    }
}

/// The kernel's tables in the source.
struct Mirror {
    kernel: Kernel,
    /// In the order of [`KernelTable::ALL`].
    tables: Vec<Table>,
    events: u64,
    resyncs: u64,
}

impl Mirror {
    fn open(source: &Source) -> Result<Mirror, Failure> {
        let kernel = Kernel::open()?;
        let tables = KernelTable::ALL.iter().map(|table| source.table(table.name()));
        let mirror = Mirror { tables: tables.collect::<Result<_, _>>()?, kernel, events: 0, resyncs: 0 };
        for ((table, opcode), value) in mirror.kernel.objects() {
            mirror.tables[place(*table)].set(&opcode[..], value)?;
        }
        Ok(mirror)
    }

    /// Takes in what has changed in the kernel.
    fn update(&mut self) -> Result<(), Failure> {
        let Mirror { kernel, tables, .. } = self;
        let mut failed = None;
        let outcome: Outcome = kernel.poll(|change| {
            let outcome = match change {
                Change::Set(object) => {
                    tables[place(object.table)].set(&object.opcode[..], &object.value).map(drop)
                }
                Change::Removed { table, opcode } => tables[place(table)].remove(&opcode[..]).map(drop),
            };
            if let Err(error) = outcome {
                failed = Some(error);
            }
        })?;
        self.events += outcome.events as u64;
        self.resyncs += outcome.overruns as u64;
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Sleeps until the kernel has something to say, or for so long.
    fn wait(&self, longest: Duration) -> Result<(), Failure> {
        let longest = self.kernel.wake_in().map_or(longest, |due| due.min(longest));
        let timeout = PollTimeout::try_from(longest.as_millis().max(1))?;
        match poll(&mut [PollFd::new(self.kernel.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn items(&self) -> u64 {
        self.kernel.objects().len() as u64
    }
}

fn place(table: KernelTable) -> usize {
    KernelTable::ALL.iter().position(|other| *other == table).expect("ALL has them all")
}

/// The synthetic table: host routes of a made-up network, one of which changes at each step.
struct Churn {
    table: Table,
    first: u32,
    items: u32,
    life: u32,
    rate: u32,
    began: Instant,
    done: u64,
    random: u64,
    gone: Option<u32>,
}

impl Churn {
    fn load(source: &Source, options: &Options) -> Result<Churn, Failure> {
        let churn = Churn {
            table: source.table(SYNTHETIC)?,
            first: options.life * ITEMS_PER_LIFE,
            items: options.items,
            life: options.life,
            rate: if options.items > 0 { options.rate } else { 0 },
            began: Instant::now(),
            done: 0,
            random: u64::from(options.life) + 1,
            gone: None,
        };
        for n in 0..churn.items {
            churn.table.set(churn.opcode(n), churn.value(0))?;
        }
        Ok(Churn { began: Instant::now(), ..churn })
    }

    /// Makes the changes that are due by now.
    fn proceed(&mut self) -> Result<(), Failure> {
        let due = (self.began.elapsed().as_secs_f64() * f64::from(self.rate)) as u64;
        while self.done < due {
            self.done += 1;
            // xorshift64: any spread will do.
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let n = (self.random % u64::from(self.items)) as u32;
            // Now and then an item goes, and with the next change it is back.
            if let Some(gone) = self.gone.take() {
                self.table.set(self.opcode(gone), self.value(self.done))?;
            } else if self.done.is_multiple_of(10) {
                self.table.remove(self.opcode(n))?;
                self.gone = Some(n);
            } else {
                self.table.set(self.opcode(n), self.value(self.done))?;
            }
        }
        Ok(())
    }

    fn opcode(&self, n: u32) -> impl ToOpcode + use<> {
        const MAIN_TABLE: u32 = 254;
        const NETWORK: u32 = 10 << 24;
        (MAIN_TABLE, std::net::Ipv4Addr::from(NETWORK + self.first + n), 32u8)
    }

    /// 64 bytes: when, in which life and in which change the value was made.
    fn value(&self, change: u64) -> [u8; 64] {
        let mut value = [0; 64];
        value[..8].copy_from_slice(&monotonic_ns().to_ne_bytes());
        value[8..16].copy_from_slice(&u64::from(self.life).to_ne_bytes());
        value[16..24].copy_from_slice(&change.to_ne_bytes());
        value
    }
}

/// When a value of the synthetic table was made.
pub(crate) fn made_at_ns(value: &[u8]) -> Option<u64> {
    value.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes))
}

/// Brings the kernel's tables in step with a fresh dump, and then everything to the destinations.
fn freeze(source: &Source, kernel: &mut Mirror) -> Result<FrozenReport, Failure> {
    let deadline = Instant::now() + SETTLE;
    let kernel_differences = loop {
        kernel.update()?;
        let differences = differences(kernel.kernel.objects(), &kernel::dump()?);
        if differences.is_empty() || Instant::now() >= deadline {
            break differences;
        }
        // The kernel is alive: something happened between the last event and the dump.
        kernel.wait(Duration::from_millis(10))?;
    };
    let (acked, trouble) = match source.flush(SETTLE)? {
        Flushed::Acked(destinations) => (destinations, None),
        other => (0, Some(format!("{other:?}"))),
    };
    Ok(FrozenReport { acked, trouble, kernel_differences })
}

fn differences(ours: &Objects, kernels: &Objects) -> Vec<String> {
    let line = |what: &str, (table, opcode): &(KernelTable, Vec<u8>), value: &[u8]| {
        format!("{what} in {}: {}", table.name(), describe(*table, opcode, value))
    };
    let missing = kernels.iter().filter(|(key, value)| ours.get(*key) != Some(*value));
    let missing = missing.map(|(key, value)| line("missing or different", key, value));
    let stale = ours.iter().filter(|(key, _)| !kernels.contains_key(*key));
    missing.chain(stale.map(|(key, value)| line("stale", key, value))).collect()
}

fn state(source: &Source, kernel: &Mirror) -> SourceReport {
    let stats = source.stats();
    let link = |destination: &shmirror::DestinationState| LinkReport {
        pid: destination.id.pid,
        unacked: destination.unacked,
        resent: destination.resent,
        coalesced: destination.coalesced,
    };
    SourceReport {
        items: stats.items,
        kernel_items: kernel.items(),
        kernel_events: kernel.events,
        kernel_resyncs: kernel.resyncs,
        changes: stats.changes,
        destinations: stats.destinations.iter().map(link).collect(),
    }
}

fn list(source: &Source, line: &Line) -> Result<(), Failure> {
    let names = KernelTable::ALL.iter().map(|table| table.name()).chain([SYNTHETIC]);
    let mut tables = Vec::new();
    for name in names {
        tables.push((name, source.table(name)?.items()));
    }
    line.list(tables.iter().flat_map(|(name, items)| {
        items.iter().map(move |(opcode, value)| (*name, opcode.as_bytes(), &value[..]))
    }))
}
