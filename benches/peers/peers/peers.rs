//! What is measured, of whom.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use shmirror::Wait;

use crate::crates::{IpcChannel, Rtrb, ShmemIpc};
use crate::direction::{round_trip, round_trip_threads, stream, stream_threads};
use crate::guarantees::{self, Guarantees};
use crate::harness::mirror::{self, Order, Setup, Stream};
use crate::harness::report::{Cell, Distribution, Latency, Unit};
use crate::harness::{Effort, floor};
use crate::iceoryx::Iceoryx;
use crate::kernel::{MessageQueue, Pipe, SeqPacket};
use crate::redis::Redis;
use crate::{cell, futex};

/// A means of communication in one of its variants; a row of the table.
pub(crate) struct Peer {
    pub(crate) id: &'static str,
    pub(crate) name: &'static str,
    /// A floor promises nothing.
    pub(crate) guarantees: Option<&'static Guarantees>,
    pub(crate) measures: Vec<Measure>,
}

/// One thing that is measured of a peer.
pub(crate) struct Measure {
    pub(crate) kind: Kind,
    pub(crate) run: Box<dyn Fn([usize; 2], Effort) -> Outcome>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A round trip between two cpus, both ends spinning.
    Spinning,
    /// A round trip on one cpu, both ends sleeping.
    Sleeping,
    /// Records of 64 bytes, a second.
    Stream64,
    /// Records of 1 KiB, a second.
    Stream1024,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) value: f64,
    pub(crate) distribution: Option<Distribution>,
}

/// What a round trip is compared with.
pub(crate) const CACHE_LINE: &str = "the cache line";
pub(crate) const EVENTFD: &str = "an eventfd";

/// Those that need something installed.
pub(crate) const REDIS: &str = "redis";
pub(crate) const AERON: &str = "aeron";

/// As everywhere in the benches of shmirror.
const OPCODES: u64 = 1000;

/// Changes of a `set_many`, by the bytes of a value.
const SET_MANY: [(usize, usize); 2] = [(64, 256), (1024, 32)];

/// A record that sleeps takes microseconds: fewer of them than of those that spin.
const SLEEPING_SHARE: u64 = 10;

/// Bytes that the buffered pipe gathers.
const PIPE_BUFFER: usize = 16 << 10;

/// With Redis, another tenth of a millisecond.
const REDIS_SHARE: u64 = 50;

/// All, in the order of the table.
pub(crate) fn all() -> Vec<Peer> {
    let mut peers = shmirror();
    peers.extend(crates());
    #[cfg(feature = "aeron")]
    peers.push(peer(
        AERON,
        "Aeron IPC, spinning",
        Some(&guarantees::AERON),
        [Measure::spinning(round_trip::<crate::aeron::AeronIpc>)],
        Measure::streams(stream::<crate::aeron::AeronIpc>, stream::<crate::aeron::AeronIpc>),
    ));
    peers.extend(kernel());
    peers.push(peer(
        REDIS,
        "Redis: HSET, notification, HGET",
        Some(&guarantees::REDIS),
        [Measure::sleeping(round_trip::<Redis>, REDIS_SHARE)],
        Measure::streams(stream::<Redis>, stream::<Redis>),
    ));
    peers.extend(floors());
    peers
}

fn shmirror() -> Vec<Peer> {
    let streams = |wait, many| {
        [(Kind::Stream64, SET_MANY[0]), (Kind::Stream1024, SET_MANY[1])].map(
            |(kind, (value_bytes, batch))| {
                let batch = if many { batch } else { 1 };
                let run =
                    move |cpus, effort: Effort| mirror_stream(cpus, wait, value_bytes, batch, effort.stream);
                Measure { kind, run: Box::new(run) }
            },
        )
    };
    let spin = |cpus, effort: Effort| mirror_round_trip(cpus, Wait::Spin, effort.round_trips);
    let spin = Measure { kind: Kind::Spinning, run: Box::new(spin) };
    let block = |cpus: [usize; 2], effort: Effort| {
        mirror_round_trip([cpus[0]; 2], Wait::Block, effort.round_trips / SLEEPING_SHARE)
    };
    let block = Measure { kind: Kind::Sleeping, run: Box::new(block) };
    let guarantees = Some(&guarantees::SHMIRROR);
    vec![
        peer("shmirror-spin", "shmirror, spinning: set", guarantees, [spin], streams(Wait::Spin, false)),
        peer("shmirror-spin-many", "shmirror, spinning: set_many", guarantees, [], streams(Wait::Spin, true)),
        peer("shmirror-block", "shmirror, blocking: set", guarantees, [block], streams(Wait::Block, false)),
        peer(
            "shmirror-block-many",
            "shmirror, blocking: set_many",
            guarantees,
            [],
            streams(Wait::Block, true),
        ),
    ]
}

fn crates() -> Vec<Peer> {
    let iceoryx = Some(&guarantees::ICEORYX2);
    let shmem = Some(&guarantees::SHMEM_IPC);
    let rtrb = Some(&guarantees::RTRB);
    vec![
        peer(
            "iceoryx2",
            "iceoryx2, spinning",
            iceoryx,
            [Measure::spinning(round_trip::<Iceoryx<8, false>>)],
            Measure::streams(stream::<Iceoryx<8, false>>, stream::<Iceoryx<128, false>>),
        ),
        peer(
            "iceoryx2-events",
            "iceoryx2, with events",
            iceoryx,
            [Measure::sleeping(round_trip::<Iceoryx<8, true>>, SLEEPING_SHARE)],
            Measure::streams(stream::<Iceoryx<8, true>>, stream::<Iceoryx<128, true>>),
        ),
        peer(
            "shmem-ipc",
            "shmem-ipc, spinning",
            shmem,
            [Measure::spinning(round_trip::<ShmemIpc<8, 1, false>>)],
            Measure::streams(stream::<ShmemIpc<8, 1, false>>, stream::<ShmemIpc<128, 1, false>>),
        ),
        peer(
            "shmem-ipc-many",
            "shmem-ipc, spinning, 64 at a time",
            shmem,
            [],
            Measure::streams(stream::<ShmemIpc<8, 64, false>>, stream::<ShmemIpc<128, 64, false>>),
        ),
        peer(
            "shmem-ipc-block",
            "shmem-ipc, blocking",
            shmem,
            [Measure::sleeping(round_trip::<ShmemIpc<8, 1, true>>, SLEEPING_SHARE)],
            Measure::streams(stream::<ShmemIpc<8, 1, true>>, stream::<ShmemIpc<128, 1, true>>),
        ),
        peer(
            "rtrb",
            "rtrb, spinning (threads)",
            rtrb,
            [Measure::spinning(round_trip_threads::<Rtrb<8, 1>>)],
            Measure::streams(stream_threads::<Rtrb<8, 1>>, stream_threads::<Rtrb<128, 1>>),
        ),
        peer(
            "rtrb-many",
            "rtrb, spinning, 64 at a time (threads)",
            rtrb,
            [],
            Measure::streams(stream_threads::<Rtrb<8, 64>>, stream_threads::<Rtrb<128, 64>>),
        ),
        peer(
            "ipc-channel",
            "ipc-channel",
            Some(&guarantees::IPC_CHANNEL),
            [Measure::sleeping(round_trip::<IpcChannel>, SLEEPING_SHARE)],
            Measure::streams(stream::<IpcChannel>, stream::<IpcChannel>),
        ),
    ]
}

fn kernel() -> Vec<Peer> {
    vec![
        peer(
            "seqpacket",
            "Unix socket, SOCK_SEQPACKET",
            Some(&guarantees::SEQPACKET),
            [Measure::sleeping(round_trip::<SeqPacket>, SLEEPING_SHARE)],
            Measure::streams(stream::<SeqPacket>, stream::<SeqPacket>),
        ),
        peer(
            "pipe",
            "pipe, a write a record",
            Some(&guarantees::PIPE),
            [Measure::sleeping(round_trip::<Pipe<0>>, SLEEPING_SHARE)],
            Measure::streams(stream::<Pipe<0>>, stream::<Pipe<0>>),
        ),
        peer(
            "pipe-buffered",
            "pipe, 16 KiB at a time",
            Some(&guarantees::PIPE_BUFFERED),
            [],
            Measure::streams(stream::<Pipe<PIPE_BUFFER>>, stream::<Pipe<PIPE_BUFFER>>),
        ),
        peer(
            "mq",
            "POSIX message queue",
            Some(&guarantees::MESSAGE_QUEUE),
            [Measure::sleeping(round_trip::<MessageQueue>, SLEEPING_SHARE)],
            Measure::streams(stream::<MessageQueue>, stream::<MessageQueue>),
        ),
    ]
}

/// What the machine gives, for comparison.
fn floors() -> Vec<Peer> {
    let cache_line = |cpus, effort: Effort| floor::cache_line(cpus, effort.round_trips).into();
    let cache_line = Measure { kind: Kind::Spinning, run: Box::new(cache_line) };
    let eventfd = |cpus: [usize; 2], effort: Effort| Outcome {
        value: floor::eventfd(cpus[0], effort.round_trips / SLEEPING_SHARE),
        distribution: None,
    };
    let eventfd = Measure { kind: Kind::Sleeping, run: Box::new(eventfd) };
    let futex = Measure::sleeping(|cpus, _, n| futex::round_trip(cpus[0], n), SLEEPING_SHARE);
    vec![
        peer("floor-cache-line", "floor: one cache line, spinning", None, [cache_line], []),
        peer("floor-eventfd", "floor: eventfd", None, [eventfd], []),
        peer("floor-futex", "floor: futex", None, [futex], []),
    ]
}

fn peer<const ROUND_TRIPS: usize, const STREAMS: usize>(
    id: &'static str,
    name: &'static str,
    guarantees: Option<&'static Guarantees>,
    round_trips: [Measure; ROUND_TRIPS],
    streams: [Measure; STREAMS],
) -> Peer {
    Peer { id, name, guarantees, measures: round_trips.into_iter().chain(streams).collect() }
}

impl Measure {
    /// Of a round trip of 64 bytes between two cpus.
    fn spinning(round_trip: fn([usize; 2], usize, u64) -> Latency) -> Measure {
        let run = move |cpus, effort: Effort| round_trip(cpus, 64, effort.round_trips).into();
        Measure { kind: Kind::Spinning, run: Box::new(run) }
    }

    /// Of a round trip of 64 bytes on one cpu, so many times fewer.
    fn sleeping(round_trip: fn([usize; 2], usize, u64) -> Latency, share: u64) -> Measure {
        let run = move |cpus: [usize; 2], effort: Effort| {
            round_trip([cpus[0]; 2], 64, effort.round_trips / share).into()
        };
        Measure { kind: Kind::Sleeping, run: Box::new(run) }
    }

    /// Of streams of both sizes.
    fn streams(
        stream_64: fn([usize; 2], usize, Duration) -> f64,
        stream_1024: fn([usize; 2], usize, Duration) -> f64,
    ) -> [Measure; 2] {
        [(Kind::Stream64, stream_64, 64), (Kind::Stream1024, stream_1024, 1024)].map(
            |(kind, stream, value_bytes)| {
                let run = move |cpus, effort: Effort| Outcome {
                    value: stream(cpus, value_bytes, effort.stream),
                    distribution: None,
                };
                Measure { kind, run: Box::new(run) }
            },
        )
    }
}

impl From<Latency> for Outcome {
    fn from(Latency { mean, distribution }: Latency) -> Outcome {
        Outcome { value: mean, distribution: Some(distribution) }
    }
}

impl Kind {
    /// The columns of the table.
    pub(crate) const ALL: [Kind; 4] = [Kind::Spinning, Kind::Sleeping, Kind::Stream64, Kind::Stream1024];

    /// What cells of this kind are called: the series of a plot.
    pub(crate) fn id(self) -> &'static str {
        match self {
            Kind::Spinning => "round-trip-spinning",
            Kind::Sleeping => "round-trip-sleeping",
            Kind::Stream64 => "stream-64",
            Kind::Stream1024 => "stream-1024",
        }
    }

    fn what(self) -> &'static str {
        match self {
            Kind::Spinning => "round trip, spinning, two cpus",
            Kind::Sleeping => "round trip, sleeping, one cpu",
            Kind::Stream64 => "stream, 64 B",
            Kind::Stream1024 => "stream, 1 KiB",
        }
    }

    fn unit(self) -> Unit {
        match self {
            Kind::Spinning | Kind::Sleeping => Unit::Nanoseconds,
            Kind::Stream64 | Kind::Stream1024 => Unit::PerSecond,
        }
    }

    /// The floor that the value is compared with.
    fn against(self) -> Option<&'static str> {
        match self {
            Kind::Spinning => Some(CACHE_LINE),
            Kind::Sleeping => Some(EVENTFD),
            Kind::Stream64 | Kind::Stream1024 => None,
        }
    }
}

impl Peer {
    /// The cells, without runs yet, in the order of the measures.
    pub(crate) fn cells(&self) -> Vec<Cell> {
        let cell = |Measure { kind, .. }: &Measure| {
            let what = format!("{}; {}", self.name, kind.what());
            // A floor is what others are compared with.
            let against = self.guarantees.and(kind.against());
            cell(self.cell_id(*kind), what, kind.unit(), against, self.notes())
        };
        self.measures.iter().map(cell).collect()
    }

    pub(crate) fn cell_id(&self, kind: Kind) -> String {
        format!("peers/{}/{}", kind.id(), self.id)
    }

    /// The guarantees in one line, for who reads the results alone.
    fn notes(&self) -> Vec<String> {
        let titles = Guarantees::TITLES.into_iter();
        let answers = self.guarantees.map(|guarantees| {
            titles
                .zip(guarantees.answers())
                .map(|(title, answer)| format!("{title}: {answer}"))
                .collect::<Vec<_>>()
        });
        answers.map(|answers| answers.join("; ")).into_iter().collect()
    }
}

fn mirror_round_trip(cpus: [usize; 2], wait: Wait, round_trips: u64) -> Outcome {
    let [source, destination] = cpus.map(|cpu| [cpu]);
    let destinations: [&[usize]; 1] = [&destination];
    let setup =
        Setup { source: &source, destinations: &destinations, wait, ring_bytes: crate::RING_BYTES as u64 };
    mirror::round_trip(setup, round_trips, OPCODES).into()
}

fn mirror_stream(
    cpus: [usize; 2],
    wait: Wait,
    value_bytes: usize,
    batch: usize,
    duration: Duration,
) -> Outcome {
    let [source, destination] = cpus.map(|cpu| [cpu]);
    let destinations: [&[usize]; 1] = [&destination];
    let setup =
        Setup { source: &source, destinations: &destinations, wait, ring_bytes: crate::RING_BYTES as u64 };
    let stream = Stream { value_bytes, opcodes: OPCODES, order: Order::Cyclic, batch, duration };
    Outcome { value: mirror::stream(setup, stream).applied_per_s, distribution: None }
}
