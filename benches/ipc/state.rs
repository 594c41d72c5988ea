//! What holds of the state as a whole: how soon a late destination has it, what it weighs, what it costs when nothing happens.

use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use shmirror::{Destination, Event, Replica, ResendPolicy, Source, Table, Wait};

use crate::harness::mirror::{self, STOP, SYNCED, TABLE};
use crate::harness::peer::{Words, fork_on};
use crate::harness::report::{Target, Unit};
use crate::harness::{BOUND, cpu, floor, record};
use crate::{Bench, Found, Plan};

pub(crate) fn cells(bench: &mut Bench) {
    let (cpus, effort) = (bench.pair(), bench.effort());
    let million = 1_000_000 / effort.scale;
    let at_most = |target, stretch| Some(Target::AtMost { target, stretch });

    for items in [1000, 10_000, 100_000, million] {
        let id = format!("resync/attach/{items}");
        let what = format!("attach of a late destination, {items} items of 64 B, to its end marker");
        let target = if items == 1_000_000 { at_most(200.0, Some(80.0)) } else { None };
        let x = Some(("items", items as f64));
        let plan = Plan { id: &id, what: &what, unit: Unit::Milliseconds, against: None, target, x };
        bench.cell(plan, || Found::value(attach(cpus, items)));
    }

    let plan = Plan {
        id: "threads",
        what: "two threads publishing to different opcodes, set",
        unit: Unit::PerSecond,
        against: Some("one thread"),
        target: Some(Target::AtLeast { target: 0.8, stretch: Some(1.2) }),
        x: None,
    };
    let all = bench.cpus.clone();
    bench.cell(plan, || {
        let one = publish_from(&all, 1, effort.stream);
        Found::against(publish_from(&all, 2, effort.stream), one)
    });

    let plan = Plan {
        id: "death",
        what: "kill -9 of a destination until the source knows",
        unit: Unit::Milliseconds,
        against: None,
        target: at_most(10.0, Some(1.0)),
        x: None,
    };
    bench.cell(plan, || Found::value(death(cpus)));

    let plan = Plan {
        id: "unacked",
        what: "set and ack with 1 M other entries unacknowledged",
        unit: Unit::Nanoseconds,
        against: Some("none unacknowledged"),
        target: at_most(1.2, None),
        x: None,
    };
    bench.cell(plan, || {
        let none = set_beside_unacked(cpus, 0, effort.round_trips);
        Found::against(set_beside_unacked(cpus, million, effort.round_trips), none)
    });

    let plan = Plan {
        id: "memory",
        what: "memory of the source per item of 64 B + 12 B opcode, one destination",
        unit: Unit::Bytes,
        against: None,
        target: at_most(200.0, Some(130.0)),
        x: None,
    };
    bench.cell(plan, || Found::value(memory(cpus, million)));

    let plan = Plan {
        id: "idle",
        what: "100 changes/s to a blocking destination: cpu of both processes",
        unit: Unit::Share,
        against: None,
        target: at_most(0.01, None),
        x: None,
    };
    let seconds = if effort.scale == 1 { 4 } else { 1 };
    bench.cell(plan, || idle(cpus, seconds));
}

fn create(dir: &Path, policy: ResendPolicy) -> (Source, Table) {
    let source = Source::options().runtime_dir(dir).resend(policy).create("bench").expect("a source");
    let table = source.table(TABLE).expect("a table");
    (source, table)
}

fn never_again() -> ResendPolicy {
    ResendPolicy { interval: Duration::MAX, max_interval: Duration::MAX, ..ResendPolicy::default() }
}

/// Milliseconds from the start of a destination until its end marker.
fn attach(cpus: [usize; 2], items: u64) -> f64 {
    let dir = tempfile::tempdir().expect("a directory for the socket");
    let words = Words::new(4);
    const START: usize = 1;
    const TOOK_NS: usize = 3;
    let peer = fork_on(&[cpus[1]], || {
        words.wait_for(START, 1);
        let start = Instant::now();
        let options = Replica::options().runtime_dir(dir.path()).wait(Wait::Spin);
        let mut replica = options.connect("bench").expect("a replica");
        replica.wait_synced(BOUND).expect("the whole state");
        words.set(TOOK_NS, start.elapsed().as_nanos() as u64);
        let table = replica.table(TABLE);
        assert_eq!(table.len() as u64, items);
        assert!(table.iter().all(|(opcode, value)| opcode.decode::<u64>() == Ok(record::verify(value))));
    });
    cpu::pin(cpus[0]);
    let (_source, table) = create(dir.path(), ResendPolicy::default());
    let mut value = [0; 64];
    for n in 0..items {
        record::fill(&mut value, n);
        table.set(n, value).expect("a good value");
    }
    table.ready();
    words.set(START, 1);
    peer.join();
    words.get(TOOK_NS) as f64 / 1e6
}

/// Changes a second that so many threads publish together, to one destination.
fn publish_from(cpus: &[usize], threads: u64, duration: Duration) -> f64 {
    let setup = mirror::Setup { source: cpus, destinations: &[cpus], wait: Wait::Block, ring_bytes: 1 << 20 };
    let mirror = mirror::Mirror::new(setup);
    let start = Instant::now();
    let changes: u64 = std::thread::scope(|scope| {
        let publishers: Vec<_> = (0..threads)
            .map(|thread| {
                let table = &mirror.table;
                scope.spawn(move || {
                    let (mut n, mut value) = (0, [0; 64]);
                    while start.elapsed() < duration {
                        for _ in 0..256 {
                            record::fill(&mut value, n * threads + thread);
                            table.set((n % 500) * threads + thread, value).expect("a good value");
                            n += 1;
                        }
                    }
                    n
                })
            })
            .collect();
        publishers.into_iter().map(|publisher| publisher.join().expect("a good end")).sum()
    });
    let rate = changes as f64 / start.elapsed().as_secs_f64();
    mirror.finish();
    rate
}

/// Milliseconds from the kill until the source has forgotten the destination.
fn death(cpus: [usize; 2]) -> f64 {
    let dir = tempfile::tempdir().expect("a directory for the socket");
    let words = Words::new(4);
    let peer = fork_on(&[cpus[1]], || mirror::follow(dir.path(), &words, Wait::Block));
    cpu::pin(cpus[0]);
    let (source, table) = create(dir.path(), ResendPolicy::default());
    table.ready();
    words.wait_for(SYNCED, 1);
    let start = Instant::now();
    peer.kill();
    while !source.stats().destinations.is_empty() {
        assert!(start.elapsed() < BOUND, "the source does not notice");
        std::thread::yield_now();
    }
    start.elapsed().as_nanos() as f64 / 1e6
}

/// ns of a change of one of a thousand opcodes, acknowledged, while so many other entries never are.
fn set_beside_unacked(cpus: [usize; 2], unacked: u64, changes: u64) -> f64 {
    let dir = tempfile::tempdir().expect("a directory for the socket");
    let words = Words::new(4);
    let peer = fork_on(&[cpus[1]], || {
        let options = Destination::options().runtime_dir(dir.path()).wait(Wait::Spin);
        let mut destination = options.connect("bench").expect("a destination");
        while words.word(STOP).load(Relaxed) == 0 {
            let received = destination.recv_timeout(Duration::from_millis(20), |event| {
                if let Event::Set { table: "held", .. } = event {
                    drop(event.defer_ack());
                }
                Ok(())
            });
            received.expect("a good link");
            if destination.is_synced(TABLE) && destination.is_synced("held") {
                words.word(SYNCED).store(1, Relaxed);
            }
        }
    });
    cpu::pin(cpus[0]);
    let (source, table) = create(dir.path(), never_again());
    let held = source.table("held").expect("a table");
    held.set_many((0..unacked).map(|n| (n, [n as u8; 64]))).expect("good values");
    held.ready();
    table.ready();
    words.wait_for(SYNCED, 1);
    let mut value = [0; 64];
    let mut publish = |changes: u64| {
        for n in 0..changes {
            record::fill(&mut value, n);
            table.set(n % 1000, value).expect("a good value");
            if n % 512 == 511 {
                // as many as are certain to fit the ring
                let waiting = || source.stats().destinations[0].unacked - unacked;
                while waiting() > 0 {
                    std::hint::spin_loop();
                }
            }
        }
    };
    publish(changes / 5);
    let start = Instant::now();
    publish(changes);
    let took = start.elapsed().as_nanos() as f64 / changes as f64;
    words.set(STOP, 1);
    peer.join();
    took
}

/// Private memory of the source's process for each item, in bytes.
fn memory(cpus: [usize; 2], items: u64) -> f64 {
    let setup = mirror::Setup {
        source: &[cpus[0]],
        destinations: &[&[cpus[1]]],
        wait: Wait::Block,
        ring_bytes: 1 << 20,
    };
    let mirror = mirror::Mirror::new(setup);
    let before = cpu::private_bytes();
    let mut value = [0; 64];
    for n in 0..items {
        record::fill(&mut value, n);
        mirror.table.set((n as u32, n), value).expect("a good value");
    }
    mirror.flush();
    let bytes = cpu::private_bytes().saturating_sub(before);
    assert_eq!(mirror.finish(), [items]);
    bytes as f64 / items as f64
}

/// The share of a cpu that both processes take at 100 changes a second; and how often they wake when nothing happens.
fn idle(cpus: [usize; 2], seconds: u64) -> Found {
    let dir = tempfile::tempdir().expect("a directory for the socket");
    let words = Words::new(8);
    let peer = fork_on(&[cpus[1]], || {
        let mut replica = Replica::options().runtime_dir(dir.path()).connect("bench").expect("a replica");
        replica.wait_synced(BOUND).expect("a source");
        words.set(SYNCED, 1);
        while words.get(STOP) == 0 {
            replica.wait(BOUND).expect("a good link");
        }
    });
    cpu::pin(cpus[0]);
    let (source, table) = create(dir.path(), ResendPolicy::default());
    table.ready();
    words.wait_for(SYNCED, 1);
    let used = || [cpu::process_time(), cpu::process_time_of(peer.pid())];
    let mut change = |n: u64| {
        table.set(n % 10, n.to_ne_bytes()).expect("a good value");
        std::thread::sleep(Duration::from_millis(10));
    };
    (0..20).for_each(&mut change);
    let (start, [ours_before, theirs_before]) = (Instant::now(), used());
    (0..100 * seconds).for_each(&mut change);
    let (elapsed, [ours, theirs]) = (start.elapsed(), used());
    let (ours, theirs) = (ours - ours_before, theirs - theirs_before);

    std::thread::sleep(Duration::from_millis(200));
    let before = cpu::voluntary_switches();
    std::thread::sleep(Duration::from_secs(1));
    // The sleep is one.
    let woken = (cpu::voluntary_switches() - before).saturating_sub(1);
    words.set(STOP, 1);
    table.set("stop", "").expect("a good value");
    peer.join();
    drop(source);
    let percent = |cpu: Duration| 100.0 * cpu.as_secs_f64() / elapsed.as_secs_f64();
    let note = format!(
        "source {:.2} %, destination {:.2} %; two processes with an eventfd and nothing else: {:.2} %; \
         wake-ups of the source in a second without changes: {woken}",
        percent(ours),
        percent(theirs),
        100.0 * floor::eventfd_at_leisure(cpus, 100, Duration::from_millis(10)),
    );
    let share = (ours + theirs).as_secs_f64() / elapsed.as_secs_f64();
    Found { note: Some(note), ..Found::value(share) }
}
