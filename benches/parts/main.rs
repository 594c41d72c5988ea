//! The parts, each by itself, in one thread: ring, codec, sync cache, source, destination, timer tick.
//!
//! What goes between processes is `cargo bench --bench ipc`; instructions are counted by `cargo bench --bench counts`. The parts are
//! private to the library, so they are compiled once more here.

#[allow(dead_code, unused, unreachable_pub)]
#[path = "../../src/cpu_cache.rs"]
mod cpu_cache;
#[allow(dead_code, unused, unreachable_pub)]
#[path = "../../src/huge_pages.rs"]
mod huge_pages;
#[allow(dead_code, unused, unreachable_pub)]
#[path = "../../src/opcode/mod.rs"]
mod opcode;
#[allow(dead_code, unused, unreachable_pub)]
#[path = "../../src/proto/mod.rs"]
mod proto;
#[allow(dead_code, unused, unreachable_pub)]
#[path = "../../src/region/mod.rs"]
mod region;
#[allow(dead_code, unused, unreachable_pub)]
#[path = "../../src/retention.rs"]
mod retention;
#[allow(dead_code, unused, unreachable_pub)]
#[path = "../../src/ring/mod.rs"]
mod ring;
#[allow(dead_code, unused, unreachable_pub)]
#[path = "../../src/seq.rs"]
mod seq;
#[allow(dead_code, unused, unreachable_pub)]
#[path = "../../src/snapshot.rs"]
mod snapshot;
#[allow(dead_code, unused, unreachable_pub)]
#[path = "../../src/subscription.rs"]
mod subscription;
#[allow(dead_code, unused, unreachable_pub)]
#[path = "../../src/sys/mod.rs"]
mod sys;
#[allow(dead_code, unused, unreachable_pub)]
#[path = "../../src/wire/mod.rs"]
mod wire;

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

use opcode::{Opcode, ToOpcode};
use proto::ResendPolicy;
use proto::cache::{EntryId, Holds, SyncCache};
use proto::destination::DestinationCore;
use proto::source::{SessionId, SourceConfig, SourceCore};
use proto::store::{ItemId, NewValue, TableId};
use region::layout::{Header, Kind};
use region::ring_memory::{ConsumerMapping, ProducerMapping};
use region::{OwnRegion, PeerRegion};
use retention::Retention;
use ring::{Consumer, Producer};
use seq::{ChangeNumber, SyncSeq};
use subscription::Subscription;
use wire::{Ack, Frame, Payload};

const OPCODES: u64 = 1000;

/// A 64-byte value that differs from all others.
fn value(n: u64) -> [u8; 64] {
    let mut value = [0; 64];
    value[..8].copy_from_slice(&n.to_ne_bytes());
    value
}

fn opcode(n: u64) -> Opcode {
    n.to_opcode().expect("eight bytes")
}

/// Both ends of a ring in mapped memory, in this process.
fn ring_of(ring_bytes: u64) -> (Producer<ProducerMapping>, Consumer<ConsumerMapping>) {
    let header = |kind| Header { kind, ring_bytes, identity: 1 };
    let region = |kind| {
        let own = OwnRegion::create(header(kind)).expect("a region");
        let fd = own.fd().try_clone_to_owned().expect("a descriptor");
        let peer = PeerRegion::open(fd, header(kind), ring_bytes).expect("a region of our own");
        (Arc::new(own), Arc::new(peer))
    };
    let (changes, changes_seen) = region(Kind::Change);
    let (acks, acks_seen) = region(Kind::Ack);
    let producer = Producer::new(ProducerMapping::new(changes, acks_seen), ring_bytes);
    (producer, Consumer::new(ConsumerMapping::new(acks, changes_seen), ring_bytes))
}

fn ring(c: &mut Criterion) {
    let mut group = c.benchmark_group("ring");
    for bytes in [64usize, 1024] {
        let (mut producer, mut consumer) = ring_of(1 << 16);
        let (payload, mut scratch) = (vec![7; bytes], Vec::new());
        group.throughput(Throughput::Elements(16));
        group.bench_function(BenchmarkId::new("16 written, published, read, released", bytes), |b| {
            b.iter(|| {
                for _ in 0..16 {
                    assert_eq!(producer.try_write_headed([], [&payload]), Ok(true));
                }
                producer.publish();
                while let Some(record) = consumer.try_read(&mut scratch).expect("a sane producer") {
                    assert_eq!(record.len(), bytes);
                }
                consumer.release();
            });
        });
    }
    group.finish();
}

fn codec(c: &mut Criterion) {
    let (key, value) = (opcode(7), value(7));
    let created = ChangeNumber::from_wire(9);
    let payload = Payload::Set { opcode: key.as_bytes(), value: &value, created };
    let frame = Frame { change: ChangeNumber::from_wire(10), ordinal: 3, table: 1, payload };
    let (opcode, body) = frame.body();
    let bytes = [frame.header().as_flattened(), opcode, body].concat();
    assert_eq!(Frame::decode(&bytes, 3), Ok(frame));
    c.bench_function("codec/encode the header", |b| b.iter(|| black_box(&frame).header()));
    c.bench_function("codec/decode", |b| b.iter(|| Frame::decode(black_box(&bytes), 3).is_ok()));
    c.bench_function("codec/opcode of (u32, u64)", |b| {
        b.iter(|| black_box((7u32, 9u64)).to_opcode().is_ok())
    });
}

fn cache(c: &mut Criterion) {
    let mut cache = SyncCache::default();
    cache.add_table(true);
    let mut n = 0;
    let mut group = c.benchmark_group("cache");
    group.throughput(Throughput::Elements(64));
    group.bench_function("64 recorded, sent, acknowledged", |b| {
        b.iter(|| {
            let first = cache.next_ordinal();
            let first_seq = ChangeNumber::from_wire(n + 1).seq();
            for _ in 0..64 {
                n += 1;
                let id = EntryId::item(ItemId { table: 0, index: (n % OPCODES) as u32 });
                let change = ChangeNumber::from_wire(n);
                cache.record(id, Holds::Data, change);
                cache.handle_sent(id, change, || Holds::Data);
            }
            let last_seq = ChangeNumber::from_wire(n).seq();
            let ack = Ack { first, last: cache.next_ordinal() - 1, first_seq, last_seq };
            assert_eq!(cache.handle_ack(ack, |_| ()), Ok(64));
        });
    });
    group.finish();
}

fn source() -> (SourceCore, TableId) {
    let policy = ResendPolicy { interval: Duration::from_secs(3600), ..ResendPolicy::default() };
    let config =
        SourceConfig { policy, send_equal: false, first_seq: SyncSeq::from(1), max_tombstones: usize::MAX };
    let mut source = SourceCore::new(config);
    let table = source.table("t", Retention::Newest).expect("a table");
    source.ready(table);
    (source, table)
}

/// Sends all that waits; answers how many records that is.
fn send_all(source: &mut SourceCore, session: SessionId) -> u64 {
    let mut sent = 0;
    while let Some(outgoing) = source.poll_frame(session) {
        let entry = outgoing.entry;
        source.handle_sent(session, entry);
        sent += 1;
    }
    sent
}

/// A destination of all.
fn attach(source: &mut SourceCore) -> SessionId {
    let attaching = source.start_attach(Subscription::all());
    source.attach(attaching)
}

fn set_and_receive(c: &mut Criterion) {
    let (mut source, table) = source();
    let session = attach(&mut source);
    let mut destination = DestinationCore::new(true, Subscription::all());
    destination.attach(1);
    let mut records: Vec<Vec<u8>> = Vec::new();
    let mut n = 0;
    let mut set = |source: &mut SourceCore, records: &mut Vec<Vec<u8>>| {
        n += 1;
        source.set(
            table,
            &opcode(n % OPCODES),
            NewValue::Data(&value(n)),
            &mut |_: SessionId, frame: &Frame<'_>| {
                records.push(encoded(frame));
                true
            },
        );
    };
    let deliver = |source: &mut SourceCore, destination: &mut DestinationCore, records: &mut Vec<Vec<u8>>| {
        while let Some(outgoing) = source.poll_frame(session) {
            let entry = outgoing.entry;
            records.push(encoded(&outgoing.frame));
            source.handle_sent(session, entry);
        }
        for record in records.drain(..) {
            destination.handle_record(&record, |_| true).expect("a sane source");
        }
        while let Some(ack) = destination.poll_ack() {
            source.handle_ack(session, ack).expect("a sane destination");
            destination.handle_ack_sent();
        }
    };
    for _ in 0..OPCODES {
        set(&mut source, &mut records);
        deliver(&mut source, &mut destination, &mut records);
    }
    let mut group = c.benchmark_group("cores");
    group.throughput(Throughput::Elements(64));
    group.bench_function("64 set, received, acknowledged", |b| {
        b.iter(|| {
            (0..64).for_each(|_| set(&mut source, &mut records));
            assert_eq!(records.len(), 64, "each goes at once");
            deliver(&mut source, &mut destination, &mut records);
        });
    });
    group.finish();
    assert_eq!(destination.stats().items, OPCODES);
}

fn encoded(frame: &Frame<'_>) -> Vec<u8> {
    let (opcode, value) = frame.body();
    [frame.header().as_flattened(), opcode, value].concat()
}

/// A set of the source's end alone: its frame is taken, and acknowledged behind the time that counts.
fn set(c: &mut Criterion) {
    let (mut source, table) = source();
    let session = attach(&mut source);
    for n in 0..OPCODES {
        source.set(table, &opcode(n), NewValue::Data(&value(n)), &mut ());
    }
    let (mut n, mut ordinal) = (OPCODES, send_all(&mut source, session));
    let mut group = c.benchmark_group("source");
    group.throughput(Throughput::Elements(64));
    group.bench_function("64 set and offered", |b| {
        b.iter_custom(|times| {
            let mut took = Duration::ZERO;
            for _ in 0..times {
                let (before, start) = (source.store().last_change(), Instant::now());
                for _ in 0..64 {
                    n += 1;
                    source.set(
                        table,
                        &opcode(n % OPCODES),
                        NewValue::Data(&value(n)),
                        &mut |_: SessionId, frame: &Frame<'_>| {
                            black_box(frame.header());
                            true
                        },
                    );
                }
                took += start.elapsed();
                let (first_seq, last_seq) = (before.next().seq(), source.store().last_change().seq());
                let ack = Ack { first: ordinal, last: ordinal + 63, first_seq, last_seq };
                source.handle_ack(session, ack).expect("each was sent at once");
                ordinal += 64;
            }
            took
        });
    });
    group.finish();
}

/// What a destination's end does with records, to its own table and the ack.
fn receive(c: &mut Criterion) {
    let mut destination = DestinationCore::new(true, Subscription::all());
    destination.attach(1);
    let mut ordinal = 0;
    let mut next = |payload: Payload<'_>| {
        let change = ChangeNumber::from_wire(ordinal + 1);
        let bytes = encoded(&Frame { change, ordinal, table: 0, payload });
        ordinal += 1;
        bytes
    };
    let name = next(Payload::Table { name: "t", items: OPCODES });
    destination.handle_record(&name, |_| true).expect("a sane source");
    let mut n = 0;
    let mut group = c.benchmark_group("destination");
    group.throughput(Throughput::Elements(64));
    group.bench_function("64 received, applied, acknowledged", |b| {
        b.iter_batched(
            || -> Vec<Vec<u8>> {
                let records = (0..64).map(|_| {
                    n += 1;
                    let created = ChangeNumber::NONE;
                    let (key, value) = (opcode(n % OPCODES), value(n));
                    next(Payload::Set { opcode: key.as_bytes(), value: &value, created })
                });
                records.collect()
            },
            |records| {
                for record in &records {
                    destination.handle_record(record, |_| true).expect("a sane source");
                }
                assert!(destination.poll_ack().is_some());
                destination.handle_ack_sent();
            },
            // In the order in which they were made: no batch may be left out.
            BatchSize::PerIteration,
        );
    });
    group.finish();
    assert!(destination.stats().duplicates == 0 && destination.stats().items <= OPCODES);
}

/// A tick with so many entries in flight, none of which is due.
fn tick(c: &mut Criterion) {
    let mut group = c.benchmark_group("tick with nothing due");
    for entries in [1000u64, 100_000, 1_000_000] {
        let (mut source, table) = source();
        let session = attach(&mut source);
        for n in 0..entries {
            source.set(table, &opcode(n), NewValue::Data(&value(n)), &mut ());
            send_all(&mut source, session);
        }
        let mut now = Instant::now();
        source.request_tick(session);
        source.handle_timeout(session, now, 8 * entries, 0);
        group.bench_function(BenchmarkId::from_parameter(entries), |b| {
            b.iter(|| {
                now += Duration::from_secs(900);
                source.handle_timeout(session, now, 8 * entries, 0);
            });
        });
        assert!(source.session_state(session).is_some_and(|state| state.unacked as u64 >= entries));
    }
    group.finish();
}

/// A change while so many other entries are unacknowledged.
fn set_beside_unacked(c: &mut Criterion) {
    let mut group = c.benchmark_group("set, sent, acknowledged beside unacknowledged");
    for entries in [0u64, 1_000_000] {
        let (mut source, table) = source();
        let session = attach(&mut source);
        for n in 0..entries {
            source.set(table, &opcode(OPCODES + n), NewValue::Data(&value(n)), &mut ());
        }
        let mut n = 0;
        let mut ordinal = send_all(&mut source, session);
        group.bench_function(BenchmarkId::from_parameter(entries), |b| {
            b.iter(|| {
                n += 1;
                source.set(table, &opcode(n % OPCODES), NewValue::Data(&value(n)), &mut ());
                assert_eq!(send_all(&mut source, session), 1);
                let seq = source.store().last_change().seq();
                let ack = Ack { first: ordinal, last: ordinal, first_seq: seq, last_seq: seq };
                source.handle_ack(session, ack).expect("what was sent");
                ordinal += 1;
            });
        });
        assert!(source.session_state(session).is_some_and(|state| state.unacked as u64 >= entries));
    }
    group.finish();
}

criterion_group!(benches, ring, codec, cache, set, receive, set_and_receive, tick, set_beside_unacked);
criterion_main!(benches);
