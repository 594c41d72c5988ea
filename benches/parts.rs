//! What one change costs within one thread: publishing it, and a round trip through a replica.
//!
//! Both ends run on one cpu here, so this shows instructions and caches, not the transfer between processes.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use shmirror::{Replica, Source, Table, Wait};

const VALUE_BYTES: usize = 64;
const OPCODES: u64 = 1000;

/// A 64-byte value that differs from all others.
fn value(n: u64) -> [u8; VALUE_BYTES] {
    let mut value = [0; VALUE_BYTES];
    value[..8].copy_from_slice(&n.to_ne_bytes());
    value
}

struct Link {
    _source: Source,
    table: Table,
    replica: Replica,
    _dir: tempfile::TempDir,
}

/// A source with a replica that is in step with it.
fn link() -> Link {
    let dir = tempfile::tempdir().unwrap();
    let source = Source::options().runtime_dir(dir.path()).create("bench").unwrap();
    let table = source.table("t").unwrap();
    table.ready();
    let options = Replica::options().runtime_dir(dir.path()).wait(Wait::Spin);
    let mut replica = options.connect("bench").unwrap();
    replica.wait_synced(std::time::Duration::from_secs(10)).unwrap();
    Link { _source: source, table, replica, _dir: dir }
}

fn set(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let source = Source::options().runtime_dir(dir.path()).create("bench").unwrap();
    let table = source.table("t").unwrap();
    let mut n = 0;
    c.bench_function("set, nobody attached", |b| {
        b.iter(|| {
            n += 1;
            table.set(n % OPCODES, value(n)).unwrap()
        });
    });
    assert_eq!(table.get(n % OPCODES), Some(value(n).to_vec()));
}

fn set_and_update(c: &mut Criterion) {
    let mut link = link();
    let mut n = 0;
    let mut group = c.benchmark_group("link");
    group.throughput(Throughput::Elements(64));
    group.bench_function("64 sets, one update, acks", |b| {
        b.iter_batched(
            || (),
            |()| {
                for _ in 0..64 {
                    n += 1;
                    link.table.set(n % OPCODES, value(n)).unwrap();
                }
                assert_eq!(link.replica.update().unwrap(), 64);
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
    assert_eq!(link.replica.table("t").get(n % OPCODES), Some(&value(n)[..]), "applied");
}

criterion_group!(benches, set, set_and_update);
criterion_main!(benches);
