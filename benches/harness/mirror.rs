//! The cells of shmirror: the whole protocol each time, with the library's public interface.
//!
//! The source's process sets; the destination's process applies to its own table, and verifies every record.

use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use shmirror::{Event, Flushed, Replica, Sent, Source, Table, Wait};

use super::peer::{Peer, Words, fork_on};
use super::report::{Distribution, Latency, Recorder};
use super::{BOUND, cpu, record};

/// What a destination's process tells, by word.
pub(crate) const SYNCED: usize = 0;
pub(crate) const APPLIED: usize = 1;
pub(crate) const STOP: usize = 2;

/// A table's name, everywhere here.
pub(crate) const TABLE: &str = "t";

/// A source whose destinations run in processes of their own.
pub(crate) struct Mirror {
    pub(crate) source: Source,
    pub(crate) table: Table,
    destinations: Vec<(Peer, Words)>,
    _dir: tempfile::TempDir,
}

/// How a mirror is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup<'a> {
    /// The cpus of the source's process.
    pub(crate) source: &'a [usize],
    /// The cpus of each destination.
    pub(crate) destinations: &'a [&'a [usize]],
    pub(crate) wait: Wait,
    pub(crate) ring_bytes: u64,
}

impl Mirror {
    /// Forks the destinations, then makes the source here, and waits until all are in step.
    pub(crate) fn new(setup: Setup<'_>) -> Mirror {
        let dir = tempfile::tempdir().expect("a directory for the socket");
        let destinations: Vec<_> = setup
            .destinations
            .iter()
            .map(|cpus| {
                let words = Words::new(4);
                let peer = fork_on(cpus, || follow(dir.path(), &words, setup.wait));
                (peer, words)
            })
            .collect();
        cpu::pin_all(setup.source);
        let options = Source::options().runtime_dir(dir.path()).ring_bytes(setup.ring_bytes);
        let source = options.create("bench").expect("a source");
        let table = source.table(TABLE).expect("a table");
        table.ready();
        destinations.iter().for_each(|(_, words)| words.wait_for(SYNCED, 1));
        Mirror { source, table, destinations, _dir: dir }
    }

    /// Waits until all destinations have applied everything.
    pub(crate) fn flush(&self) {
        let flushed = self.source.flush(BOUND).expect("a flush");
        assert_eq!(flushed, Flushed::Acked(self.destinations.len()));
    }

    /// Ends the destinations; answers how many changes each has applied, all of them verified.
    pub(crate) fn finish(mut self) -> Vec<u64> {
        self.flush();
        let destinations = std::mem::take(&mut self.destinations);
        let applied = destinations.into_iter().map(|(peer, words)| {
            words.set(STOP, 1);
            peer.join();
            words.get(APPLIED)
        });
        applied.collect()
    }

    pub(crate) fn coalesced(&self) -> u64 {
        self.source.stats().destinations.iter().map(|destination| destination.coalesced).sum()
    }
}

/// A destination's process: applies and verifies what comes until it is told to stop.
pub(crate) fn follow(dir: &Path, words: &Words, wait: Wait) {
    let options = Replica::options().runtime_dir(dir).wait(wait);
    let mut replica = options.connect("bench").expect("a replica");
    let verify = |event: Event<'_>| {
        if let Event::Set { value, .. } = event {
            record::verify(value);
        }
    };
    while words.word(STOP).load(Relaxed) == 0 {
        let received = replica.wait_observed(Duration::from_millis(20), verify).expect("a good link");
        if received > 0 && words.word(SYNCED).load(Relaxed) == 0 && replica.is_synced() {
            words.set(SYNCED, 1);
        }
    }
    words.set(APPLIED, replica.stats().applied);
}

/// One change there and its ack back.
pub(crate) fn round_trip(setup: Setup<'_>, round_trips: u64, opcodes: u64) -> Latency {
    let mirror = Mirror::new(setup);
    let mut value = [0; 64];
    let mut n = 0;
    let mut once = || {
        n += 1;
        record::fill(&mut value, n);
        let sent = mirror.table.set(n % opcodes, value).expect("a good value");
        assert_eq!(sent, Sent::Now);
        mirror.flush();
    };
    (0..opcodes).for_each(|_| once());
    let latency = Latency::of(round_trips, once);
    assert_eq!(mirror.finish(), [n], "every change was applied");
    latency
}

/// So many changes one after the other, until all are acknowledged; then a rest, in which the destination sees that it is over.
pub(crate) fn bursts(setup: Setup<'_>, bursts: u64, changes: u64) -> Distribution {
    const REST: Duration = Duration::from_micros(20);
    let mirror = Mirror::new(setup);
    let mut value = [0; 64];
    let mut n = 0;
    let mut recorder = Recorder::new();
    let warm_up = bursts / 10 + 1;
    for burst in 0..warm_up + bursts {
        let start = Instant::now();
        for _ in 0..changes {
            n += 1;
            record::fill(&mut value, n);
            let sent = mirror.table.set(n % changes, value).expect("a good value");
            assert_eq!(sent, Sent::Now);
        }
        mirror.flush();
        let end = Instant::now();
        if burst >= warm_up {
            recorder.record(end - start);
        }
        while end.elapsed() < REST {
            std::hint::spin_loop();
        }
    }
    assert_eq!(mirror.finish(), [n], "every change was applied");
    recorder.distribution()
}

/// What a stream is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    pub(crate) value_bytes: usize,
    pub(crate) opcodes: u64,
    pub(crate) order: Order,
    /// Changes of one `set_many`; 1 for `set`.
    pub(crate) batch: usize,
    pub(crate) duration: Duration,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    /// One opcode after the other.
    Cyclic,
    /// As a generator has it, the same in each run.
    Random,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Streamed {
    /// Changes that each destination has applied, a second.
    pub(crate) applied_per_s: f64,
    /// The share of the changes that were coalesced.
    pub(crate) coalesced: f64,
}

/// Changes as fast as they can be applied. A change that was deferred makes the publisher wait until all is acknowledged.
pub(crate) fn stream(setup: Setup<'_>, stream: Stream) -> Streamed {
    let mirror = Mirror::new(setup);
    let mut publisher = Publisher::new(&mirror, stream);
    // Every opcode is there before the time counts.
    publisher.run_for(stream.duration / 5);
    while publisher.changes < stream.opcodes {
        publisher.batch();
    }
    mirror.flush();
    let (changes, coalesced) = (publisher.changes, mirror.coalesced());
    let start = Instant::now();
    publisher.run_for(stream.duration);
    mirror.flush();
    let elapsed = start.elapsed().as_secs_f64();
    let (all, all_coalesced) = (publisher.changes, mirror.coalesced());
    let destinations = setup.destinations.len() as u64;
    let applied = (all - changes) * destinations - (all_coalesced - coalesced);
    let total: u64 = mirror.finish().iter().sum();
    assert_eq!(total, all * destinations - all_coalesced, "what was not coalesced was applied");
    Streamed {
        applied_per_s: applied as f64 / destinations as f64 / elapsed,
        coalesced: (all_coalesced - coalesced) as f64 / ((all - changes) * destinations) as f64,
    }
}

struct Publisher<'a> {
    mirror: &'a Mirror,
    stream: Stream,
    values: Vec<u8>,
    opcodes: Vec<u64>,
    changes: u64,
    opcode: u64,
    random: u64,
}

impl<'a> Publisher<'a> {
    fn new(mirror: &'a Mirror, stream: Stream) -> Publisher<'a> {
        Publisher {
            mirror,
            stream,
            values: vec![0; stream.value_bytes * stream.batch],
            opcodes: vec![0; stream.batch],
            changes: 0,
            opcode: 0,
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }

    fn run_for(&mut self, duration: Duration) {
        let start = Instant::now();
        while start.elapsed() < duration {
            for _ in 0..256usize.div_ceil(self.stream.batch) {
                self.batch();
            }
        }
    }

    fn batch(&mut self) {
        let table = &self.mirror.table;
        let sent = if self.stream.batch == 1 {
            record::fill(&mut self.values, self.changes);
            table.set(self.next_opcode(), &self.values)
        } else {
            for at in 0..self.stream.batch {
                let value = &mut self.values[at * self.stream.value_bytes..][..self.stream.value_bytes];
                record::fill(value, self.changes);
                self.opcodes[at] = self.next_opcode();
            }
            let values = self.values.chunks_exact(self.stream.value_bytes);
            table.set_many(self.opcodes.iter().zip(values))
        };
        if sent.expect("a good value") == Sent::Deferred {
            self.mirror.flush();
        }
    }

    /// That of the next change. There is no division in it, which would take a part of the time that is measured.
    #[inline(always)]
    fn next_opcode(&mut self) -> u64 {
        self.changes += 1;
        match self.stream.order {
            // The first round is in order: so every opcode is there.
            Order::Random if self.changes > self.stream.opcodes => {
                // xorshift64*, whose high bits are the better ones
                self.random ^= self.random >> 12;
                self.random ^= self.random << 25;
                self.random ^= self.random >> 27;
                let random = self.random.wrapping_mul(0x2545_f491_4f6c_dd1d);
                ((u128::from(random) * u128::from(self.stream.opcodes)) >> 64) as u64
            }
            _ => {
                let opcode = self.opcode;
                self.opcode = if opcode + 1 == self.stream.opcodes { 0 } else { opcode + 1 };
                opcode
            }
        }
    }
}
