//! Streams: as many changes as go through.

use shmirror::Wait;

use crate::harness::mirror::{self, Order, Setup, Stream};
use crate::harness::report::{Target, Unit};
use crate::{Bench, Found, Plan, bare};

/// The default of the library.
const RING_BYTES: u64 = 1 << 20;
/// Larger than the second cache of many processors, out of which lines have gone then before the producer comes to them again.
const LARGE_RING_BYTES: u64 = 1 << 21;

pub(crate) fn cells(bench: &mut Bench) {
    rings(bench);
    let (cpus, effort) = (bench.pair(), bench.effort());
    let (here, there) = ([cpus[0]], [cpus[1]]);
    let spin = Setup { source: &here, destinations: &[&there], wait: Wait::Spin, ring_bytes: RING_BYTES };
    let sleep = Setup { wait: Wait::Block, ..spin };
    let duration = effort.stream;
    let single = Stream { value_bytes: 64, opcodes: 1000, order: Order::Cyclic, batch: 1, duration };
    let many = Stream { batch: 256, ..single };
    let million = Stream { opcodes: 1_000_000 / effort.scale, order: Order::Random, ..many };
    let kib = Stream { value_bytes: 1024, batch: 32, ..many };

    let at_least = |target, stretch| Some(Target::AtLeast { target, stretch: Some(stretch) });
    let rows = [
        ("stream/set", "stream, 64 B, 1,000 opcodes, set", spin, single, at_least(25e6, 58e6)),
        ("stream/set_many", "stream, 64 B, 1,000 opcodes, set_many", spin, many, at_least(25e6, 58e6)),
        (
            "stream/million",
            "stream, 64 B, 1 M opcodes in random order, set_many",
            spin,
            million,
            at_least(8e6, 15e6),
        ),
        ("stream/sleeping", "stream, 64 B, set, both sides may sleep", sleep, single, at_least(20e6, 40e6)),
        (
            "stream/sleeping-many",
            "stream, 64 B, set_many, both sides may sleep",
            sleep,
            many,
            at_least(20e6, 40e6),
        ),
    ];
    for (id, what, setup, stream, target) in rows {
        let plan = Plan { id, what, unit: Unit::PerSecond, against: None, target, x: None };
        bench.cell(plan, || streamed(setup, stream));
    }
    let plan = Plan {
        id: "stream/kib",
        what: "stream of 1 KiB values, set_many",
        unit: Unit::PerSecond,
        against: None,
        target: at_least(10e6, 20e6),
        x: None,
    };
    bench.cell(plan, || streamed(spin, kib));
    let plan = Plan {
        id: "stream/kib-to-ring",
        what: "stream of 1 KiB values",
        unit: Unit::PerSecond,
        against: Some("the bare ring"),
        target: at_least(0.5, 1.0),
        x: None,
    };
    let records = 4_000_000 / effort.scale;
    bench.cell(plan, || {
        let ring = bare::stream(cpus, RING_BYTES, 1024, records);
        Found { other: Some(ring), ..streamed(spin, kib) }
    });

    for bytes in [16, 64, 256, 1024, 4096, 16384] {
        let id = format!("value-bytes/set_many/{bytes}");
        let what = format!("stream of {bytes} B values, set_many");
        let batch = (65536 / bytes).clamp(4, 256);
        let stream = Stream { value_bytes: bytes, batch, ..many };
        series(bench, &id, &what, ("value, bytes", bytes as f64), || streamed(spin, stream));
        let id = format!("value-bytes/ring/{bytes}");
        let what = format!("stream of {bytes} B records, bare ring");
        let records = (20_000_000_000 / (bytes as u64 + 600) / 20 / effort.scale).max(1000);
        series(bench, &id, &what, ("value, bytes", bytes as f64), || {
            Found::value(bare::stream(cpus, RING_BYTES, bytes, records))
        });
    }
    for opcodes in [10, 1000, 100_000, 1_000_000 / effort.scale] {
        let id = format!("opcodes/set_many/{opcodes}");
        let what = format!("stream, 64 B, {opcodes} opcodes in random order, set_many");
        let stream = Stream { opcodes, order: Order::Random, ..many };
        series(bench, &id, &what, ("opcodes", opcodes as f64), || streamed(spin, stream));
    }
    let all: Vec<usize> = bench.cpus[1..].to_vec();
    for count in 1..=4usize {
        let id = format!("destinations/set_many/{count}");
        let what = format!("stream, 64 B, set_many, {count} destinations that share {} cpus", all.len());
        let destinations = vec![&all[..]; count];
        let setup = Setup { destinations: &destinations, ..sleep };
        series(bench, &id, &what, ("destinations", count as f64), || streamed(setup, many));
    }
}

fn rings(bench: &mut Bench) {
    let (cpus, effort) = (bench.pair(), bench.effort());
    let target = Some(Target::AtLeast { target: 150e6, stretch: Some(230e6) });
    for (id, what, ring_bytes, bytes, records, target) in [
        ("ring/64", "the bare ring, 64 B records", LARGE_RING_BYTES, 64, 30_000_000, target),
        ("ring/64/1M", "the same, in a ring as of the streams below", RING_BYTES, 64, 30_000_000, None),
        ("ring/1024", "the bare ring, 1 KiB records", LARGE_RING_BYTES, 1024, 4_000_000, None),
        ("ring/1024/1M", "the same, in a ring as of the streams below", RING_BYTES, 1024, 4_000_000, None),
    ] {
        let plan = Plan { id, what, unit: Unit::PerSecond, against: None, target, x: None };
        let records = records / effort.scale;
        bench.cell(plan, || Found::value(bare::stream(cpus, ring_bytes, bytes, records)));
    }
}

fn series(bench: &mut Bench, id: &str, what: &str, x: (&str, f64), measure: impl Fn() -> Found) {
    let plan = Plan { id, what, unit: Unit::PerSecond, against: None, target: None, x: Some(x) };
    bench.cell(plan, measure);
}

fn streamed(setup: Setup<'_>, stream: Stream) -> Found {
    let streamed = mirror::stream(setup, stream);
    let coalesced = streamed.coalesced * 100.0;
    Found { note: Some(format!("coalesced {coalesced:.2} %")), ..Found::value(streamed.applied_per_s) }
}
