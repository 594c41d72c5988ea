//! Round trips, and latency at a fixed rate while other destinations are in trouble.

use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use shmirror::{Destination, Event, Replica, Source, Wait};

use crate::harness::mirror::{self, STOP, SYNCED, Setup, TABLE};
use crate::harness::peer::{Peer, Words, fork_on};
use crate::harness::report::{Distribution, Recorder, Target, Unit};
use crate::harness::{cpu, floor, record};
use crate::{Bench, Found, Plan, bare};

const RING_BYTES: u64 = 1 << 20;

pub(crate) fn cells(bench: &mut Bench) {
    let (cpus, effort) = (bench.pair(), bench.effort());
    let round_trips = effort.round_trips;
    let (here, there) = ([cpus[0]], [cpus[1]]);
    let apart = Setup { source: &here, destinations: &[&there], wait: Wait::Spin, ring_bytes: RING_BYTES };
    let together = Setup { source: &here, destinations: &[&here], wait: Wait::Block, ring_bytes: RING_BYTES };

    let ring = Plan {
        id: "round-trip/ring",
        what: "round trip of the bare ring, two cpus, spinning",
        unit: Unit::Nanoseconds,
        against: Some("the floor"),
        target: None,
        x: None,
    };
    bench.cell_against_floor(ring, || Found::value(bare::round_trip(cpus, round_trips)));

    let target = Some(Target::AtMost { target: 1.7, stretch: Some(1.4) });
    let mean = Plan {
        id: "round-trip/mean",
        what: "round trip, set to acknowledged, two cpus, spinning, mean",
        unit: Unit::Nanoseconds,
        against: Some("the floor"),
        target,
        x: None,
    };
    bench.cell_against_floor(mean, || {
        let latency = mirror::round_trip(apart, round_trips, 1000);
        Found { distribution: Some(latency.distribution), ..Found::value(latency.mean) }
    });

    let p50 = Plan {
        id: "round-trip/p50",
        what: "the same, p50, a timing call in each, as in its floor",
        unit: Unit::Nanoseconds,
        against: Some("the floor's p50"),
        target,
        x: None,
    };
    bench.cell(p50, || {
        let floor = floor::cache_line(cpus, round_trips).distribution;
        let found = mirror::round_trip(apart, round_trips, 1000).distribution;
        Found::against(found.p50 as f64, floor.p50 as f64)
    });

    let one_cpu = Plan {
        id: "round-trip/one-cpu",
        what: "round trip, both ends on one cpu, both may sleep",
        unit: Unit::Nanoseconds,
        against: Some("the eventfd floor"),
        target: Some(Target::AtMost { target: 1.3, stretch: Some(1.1) }),
        x: None,
    };
    bench.cell(one_cpu, || {
        let floor = floor::eventfd(cpus[0], round_trips / 5);
        Found::against(mirror::round_trip(together, round_trips / 5, 1000).mean, floor)
    });

    for changes in [10, 100, 1000] {
        let burst = Plan {
            id: &format!("burst/{changes}"),
            what: &format!("a burst of {changes} changes, set, until all are acknowledged, p50"),
            unit: Unit::Nanoseconds,
            against: None,
            target: None,
            x: None,
        };
        bench.cell(burst, || {
            let distribution = mirror::bursts(apart, (round_trips / changes).max(10), changes);
            Found { distribution: Some(distribution.clone()), ..Found::value(distribution.p50 as f64) }
        });
    }

    open_loop(bench);
}

/// What else goes on while latency is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trouble {
    None,
    /// Another destination consumes, and has never acknowledged so many items.
    NeverAcks(u64),
    /// Another destination is replayed so many items, again and again.
    Replays(u64),
}

type Percentile = fn(&Distribution) -> u64;

/// Changes a second of the open loop.
const RATE: u64 = 100_000;

fn open_loop(bench: &mut Bench) {
    let (cpus, effort) = (bench.cpus.clone(), bench.effort());
    let never_acks = Trouble::NeverAcks(100_000 / effort.scale);
    let replays = Trouble::Replays(1_000_000 / effort.scale);
    let changes = if effort.scale == 1 { 5 * RATE } else { RATE / 20 };
    let (p99_9, p99_99): (Percentile, Percentile) =
        (|distribution| distribution.p99_9, |distribution| distribution.p99_99);
    let beside = "beside one that acks none of 100,000 entries";
    let while_replayed = "while another is replayed 1 M items, over and over";
    let cells = [
        ("idle", "latency from the intended start, 100,000 changes/s, p99.9", Trouble::None, p99_9),
        ("never-acks", &format!("the same {beside}"), never_acks, p99_9),
        ("never-acks-99.99", &format!("its p99.99 {beside}"), never_acks, p99_99),
        ("replay", &format!("the same {while_replayed}"), replays, p99_9),
        ("replay-99.99", &format!("its p99.99 {while_replayed}"), replays, p99_99),
    ];
    for (id, what, trouble, percentile) in cells {
        let id = &format!("open-loop/{id}");
        let disturbed = trouble != Trouble::None;
        let plan = Plan {
            id,
            what,
            unit: Unit::Nanoseconds,
            against: disturbed.then_some("the idle figure"),
            target: disturbed.then_some(Target::AtMost { target: 3.0, stretch: Some(1.5) }),
            x: None,
        };
        bench.cell(plan, || {
            let idle = disturbed.then(|| {
                // Twice: for seconds after much memory was freed, by the run before, the host of a virtual machine may be taking
                // it back, which stops both cpus for tens of milliseconds.
                one_open_loop(&cpus, changes, Trouble::None);
                percentile(&one_open_loop(&cpus, changes, Trouble::None)) as f64
            });
            let distribution = one_open_loop(&cpus, changes, trouble);
            let value = percentile(&distribution) as f64;
            Found { value, other: idle, distribution: Some(distribution), note: None }
        });
    }
}

/// The measured destination has the last cpu, the publisher the first; the other destination any, and the lowest priority.
fn one_open_loop(cpus: &[usize], changes: u64, trouble: Trouble) -> Distribution {
    let dir = tempfile::tempdir().expect("a directory for the socket");
    let results = dir.path().join("results");
    let (words, other_words) = (Words::new(4), Words::new(4));
    let measured = fork_on(&[cpus[cpus.len() - 1]], || measure_latency(dir.path(), &results, &words));
    let other: Option<Peer> = (trouble != Trouble::None).then(|| {
        fork_on(cpus, || {
            cpu::give_way();
            match trouble {
                Trouble::Replays(_) => replay_over_and_over(dir.path(), &other_words),
                _ => acknowledge_nothing(dir.path(), &other_words),
            }
        })
    });
    cpu::pin(cpus[0]);
    let source = Source::options().runtime_dir(dir.path()).create("bench").expect("a source");
    let (Trouble::NeverAcks(items) | Trouble::Replays(items)) = trouble else {
        return finish_open_loop(&source, changes, &words, measured, &results);
    };
    let held = source.table("held").expect("a table");
    held.set_many((0..items).map(|n| (n, [n as u8; 64]))).expect("good values");
    held.ready();
    other_words.wait_for(SYNCED, 1);
    let distribution = finish_open_loop(&source, changes, &words, measured, &results);
    other_words.set(STOP, 1);
    drop(source);
    other.expect("it was started").join();
    distribution
}

fn finish_open_loop(
    source: &Source,
    changes: u64,
    words: &Words,
    measured: Peer,
    results: &Path,
) -> Distribution {
    let table = source.table(TABLE).expect("a table");
    (0..1000u64).for_each(|opcode| assert!(table.set(opcode, [0; 64]).is_ok()));
    table.ready();
    words.wait_for(SYNCED, 1);
    let start = Instant::now();
    let interval = Duration::from_nanos(1_000_000_000 / RATE);
    let mut value = [0; 64];
    for n in 1..=changes {
        let intended = start + interval * n as u32;
        while Instant::now() < intended {
            std::hint::spin_loop();
        }
        record::fill(&mut value, nanoseconds(intended));
        table.set(n % 1000, value).expect("a good value");
    }
    words.set(STOP, 1);
    measured.join();
    let results = std::fs::read(results).expect("the destination has written them");
    serde_json::from_slice(&results).expect("a distribution")
}

/// Monotonic time in ns, which is the same in all processes.
fn nanoseconds(at: Instant) -> u64 {
    // An `Instant` tells nothing but its distance from another.
    let now = cpu::monotonic();
    let ahead = at.saturating_duration_since(Instant::now());
    let behind = Instant::now().saturating_duration_since(at);
    (now + ahead - behind).as_nanos() as u64
}

fn measure_latency(dir: &Path, results: &Path, words: &Words) {
    let options = Replica::options().runtime_dir(dir).wait(Wait::Spin);
    let mut replica = options.connect("bench").expect("a replica");
    let mut recorder = Recorder::new();
    while words.word(STOP).load(Relaxed) == 0 {
        let received = replica.wait_observed(Duration::from_millis(20), |event| {
            if let Event::Set { table: TABLE, value, .. } = event
                && value[..8] != [0; 8]
            {
                let intended = Duration::from_nanos(record::verify(value));
                recorder.record(cpu::monotonic().saturating_sub(intended));
            }
        });
        if received.expect("a good link") > 0
            && words.word(SYNCED).load(Relaxed) == 0
            && replica.table(TABLE).is_synced()
        {
            words.set(SYNCED, 1);
        }
    }
    let distribution = serde_json::to_vec(&recorder.distribution()).expect("plain data");
    std::fs::write(results, distribution).expect("the results can be written");
}

fn acknowledge_nothing(dir: &Path, words: &Words) {
    let options = Destination::options().runtime_dir(dir);
    let mut destination = options.connect("bench").expect("a destination");
    while words.word(STOP).load(Relaxed) == 0 {
        let received = destination.recv_timeout(Duration::from_millis(20), |event| {
            match event {
                Event::Set { .. } => drop(event.defer_ack()),
                Event::Synced { table: "held" } => words.set(SYNCED, 1),
                _ => {}
            }
            Ok(())
        });
        received.expect("a good link");
    }
}

fn replay_over_and_over(dir: &Path, words: &Words) {
    while words.word(STOP).load(Relaxed) == 0 {
        let mut replica = Replica::options().runtime_dir(dir).connect("bench").expect("a replica");
        while words.word(STOP).load(Relaxed) == 0 && !replica.table("held").is_synced() {
            replica.wait(Duration::from_millis(20)).expect("a good link");
        }
        words.set(SYNCED, 1);
    }
}
