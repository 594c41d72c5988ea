//! Models of the ring: loom runs them through every interleaving and every value that a load may return.
//!
//! They run the production algorithm on [`loom_memory`](super::loom_memory). Each states how many preemptions it is explored
//! with, which takes seconds; `SHMIRROR_MODEL_BUDGET` adds to that, and `LOOM_MAX_PREEMPTIONS` overrides it. `tests/mutants`
//! shows that each of them can fail.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::loom_memory::{Bell, LoomMemory, Signal, ring_at};
use super::{Consumer, Producer, record_bytes};

/// The smallest ring: eight words, a payload of at most eight bytes.
const CAPACITY: u64 = 64;

#[test]
fn records_arrive_whole_and_in_order() {
    explore(8, transfer);
}

#[test]
fn second_lap_overwrites_only_what_was_read() {
    explore(2, two_laps);
}

#[test]
fn records_are_published_one_by_one() {
    explore(8, one_by_one);
}

#[test]
fn ring_that_ran_empty_begins_anew() {
    explore(8, begin_anew);
}

#[test]
fn ring_that_is_seen_drained_begins_anew() {
    explore(8, begin_anew_when_seen);
}

#[test]
fn sleeping_consumer_is_rung_when_something_is_published() {
    explore(7, data_wake_up);
}

#[test]
fn sleeping_producer_is_rung_when_room_is_released() {
    explore(7, room_wake_up);
}

#[test]
fn both_sides_sleep_and_wake_each_other() {
    explore(3, both_wake_up);
}

#[test]
fn death_of_a_sleeping_consumer_is_noticed_by_the_producer() {
    explore(5, death_of_a_consumer);
}

#[test]
fn death_of_a_sleeping_producer_is_noticed_by_the_consumer() {
    explore(5, death_of_a_producer);
}

/// No model makes nearly so many steps, unless it never ends.
const MAX_BRANCHES: usize = 10_000;

/// Runs `model` through all interleavings with so many preemptions, or more of them by `SHMIRROR_MODEL_BUDGET`, and prints how
/// many there were.
pub(crate) fn explore(max_preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let more = std::env::var("SHMIRROR_MODEL_BUDGET").map_or(0, |more| more.parse().expect("a number"));
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(max_preemptions + more);
    builder.max_branches = MAX_BRANCHES;
    let bound = builder.preemption_bound;
    let interleavings = Arc::new(AtomicU64::new(0));
    let counter = interleavings.clone();
    let begun = Instant::now();
    builder.check(move || {
        // Relaxed: a statistic, on one thread.
        counter.fetch_add(1, Ordering::Relaxed);
        model();
    });
    println!("{interleavings:?} interleavings with {bound:?} preemptions in {:?}", begun.elapsed());
}

/// Five records through a ring that the first four fill exactly: padding before the second, an empty payload,
/// batches of publication and of release, a full and an empty ring that are polled. The positions cross the
/// end of u64 together with the end of the ring.
///
/// Nobody sleeps here, so there is no SeqCst fence that could stand in for the Release stores and Acquire
/// fences.
fn transfer() {
    const BEGIN: u64 = 0u64.wrapping_sub(24);
    const LENGTHS: [usize; 5] = [8, 7, 0, 5, 3];
    const PUBLISH_AFTER: [bool; 5] = [false, true, false, true, true];
    const RELEASE_AFTER: [bool; 5] = [false, true, false, false, true];

    let (mut producer, mut consumer) = ring_at(CAPACITY, BEGIN);

    loom::thread::spawn(move || {
        for (index, len) in LENGTHS.into_iter().enumerate() {
            while !write(&mut producer, index, len) {
                loom::thread::yield_now();
            }
            if PUBLISH_AFTER[index] {
                assert!(producer.publish());
            }
        }
    });

    let mut scratch = Vec::new();
    for (index, len) in LENGTHS.into_iter().enumerate() {
        while !read(&mut consumer, &mut scratch, index, len) {
            consumer.release();
            loom::thread::yield_now();
        }
        if RELEASE_AFTER[index] {
            assert!(consumer.release());
        }
    }
    assert_eq!(consumer.is_empty(), Ok(true));
}

/// Three records, each published as it is written: the second has a runway, and goes without a look at anything. Nobody sleeps.
fn one_by_one() {
    const LENGTHS: [usize; 3] = [5, 8, 3];
    let (mut producer, mut consumer) = ring_at(CAPACITY, 0);

    loom::thread::spawn(move || {
        for (index, len) in LENGTHS.into_iter().enumerate() {
            assert_eq!(producer.runway() >= record_bytes(len), index == 1);
            assert!(
                producer.try_publish_headed([], [&payload(index, len)], || ()).unwrap(),
                "three records fit"
            );
        }
    });

    read_one_by_one(&mut consumer, &LENGTHS);
}

/// Nine records of a quarter of the ring each, the first four there to begin with, released one by one: each place is
/// written a second time, and one a third time.
fn two_laps() {
    sleep_and_wake(9, |_| true);
}

/// The producer looks before each record but the first whether it can begin anew: depending on how far the consumer is, it
/// goes on behind the records before or overwrites them. Nobody sleeps.
fn begin_anew() {
    const LENGTHS: [usize; 3] = [8, 5, 8];
    let (mut producer, mut consumer) = ring_at(CAPACITY, 0);
    producer.set_hot_bytes(16);

    loom::thread::spawn(move || {
        for (index, len) in LENGTHS.into_iter().enumerate() {
            assert!(write(&mut producer, index, len), "three records fit");
            producer.publish();
        }
    });

    read_one_by_one(&mut consumer, &LENGTHS);
}

/// As above, but the producer sees how far the consumer is before each record, and publishes each by itself; the consumer stores how far
/// it is by itself.
fn begin_anew_when_seen() {
    const LENGTHS: [usize; 3] = [5, 8, 8];
    let (mut producer, mut consumer) = ring_at(CAPACITY, 0);

    loom::thread::spawn(move || {
        for (index, len) in LENGTHS.into_iter().enumerate() {
            producer.released().unwrap();
            assert!(
                producer.try_publish_headed([], [&payload(index, len)], || ()).unwrap(),
                "three records fit"
            );
        }
    });

    let mut scratch = Vec::new();
    for (index, &len) in LENGTHS.iter().enumerate() {
        while !read(&mut consumer, &mut scratch, index, len) {
            loom::thread::yield_now();
        }
        assert!(consumer.store_released());
        consumer.handle_released();
    }
    assert_eq!(consumer.is_empty(), Ok(true));
}

/// The consumer sleeps whenever it finds the ring empty; the ring never fills.
fn data_wake_up() {
    const LENGTHS: [usize; 2] = [8, 0];
    let (mut producer, mut consumer) = ring_at(CAPACITY, 0);
    let for_consumer = Rc::new(Bell::new());

    let bell = for_consumer.clone();
    loom::thread::spawn(move || {
        for (index, len) in LENGTHS.into_iter().enumerate() {
            assert!(write(&mut producer, index, len), "the ring cannot be full");
            publish_and_ring(&mut producer, &bell);
        }
    });

    let mut scratch = Vec::new();
    for (index, len) in LENGTHS.into_iter().enumerate() {
        read_or_sleep(&mut consumer, &mut scratch, index, len, &for_consumer);
        consumer.release();
    }
}

/// The producer finds the ring full and sleeps until there is room, up to twice; the consumer never finds it
/// empty, and leaves the last records where they are.
fn room_wake_up() {
    let (mut producer, mut consumer) = ring_at(CAPACITY, 0);
    fill(&mut producer);
    let for_producer = Rc::new(Bell::new());

    let bell = for_producer.clone();
    loom::thread::spawn(move || {
        for index in 4..6 {
            write_or_sleep(&mut producer, index, 8, &bell);
        }
        assert!(producer.publish());
    });

    let mut scratch = Vec::new();
    for index in 0..2 {
        assert!(read(&mut consumer, &mut scratch, index, 8), "the ring cannot be empty");
        release_and_ring(&mut consumer, &for_producer);
    }
}

/// Six records, the first four there to begin with. The first batch makes room for one, the second empties the ring.
fn both_wake_up() {
    sleep_and_wake(6, |index| [0, 3, 4].contains(&index));
}

/// A full ring to begin with; then either side sleeps when it can do nothing else.
fn sleep_and_wake(records: usize, releases: impl Fn(usize) -> bool) {
    let (mut producer, mut consumer) = ring_at(CAPACITY, 0);
    fill(&mut producer);
    let for_producer = Rc::new(Bell::new());
    let for_consumer = Rc::new(Bell::new());

    let bells = (for_producer.clone(), for_consumer.clone());
    loom::thread::spawn(move || {
        for index in 4..records {
            write_or_sleep(&mut producer, index, 8, &bells.0);
            publish_and_ring(&mut producer, &bells.1);
        }
    });

    let mut scratch = Vec::new();
    for index in 0..records {
        read_or_sleep(&mut consumer, &mut scratch, index, 8, &for_consumer);
        if releases(index) {
            release_and_ring(&mut consumer, &for_producer);
        }
    }
}

/// A consumer says that it sleeps, and dies. The producer publishes to it, rings it and waits for room that will never be
/// there: it neither hangs nor takes the ring for an error.
fn death_of_a_consumer() {
    let (mut producer, mut consumer) = ring_at(CAPACITY, 0);
    assert!(write(&mut producer, 0, 8));
    producer.publish();
    let for_producer = Rc::new(Bell::new());
    let for_consumer = Rc::new(Bell::new());

    let bell = for_producer.clone();
    loom::thread::spawn(move || {
        assert!(read(&mut consumer, &mut Vec::new(), 0, 8));
        release_and_ring(&mut consumer, &bell);
        consumer.start_waiting();
        drop(consumer);
        bell.hang_up();
    });

    let mut written = 1;
    loop {
        while write(&mut producer, written, 8) {
            publish_and_ring(&mut producer, &for_consumer);
            written += 1;
        }
        producer.start_waiting();
        if !producer.has_room_for(8).unwrap() && for_producer.wait() == Signal::HungUp {
            break;
        }
        producer.stop_waiting();
    }
    assert!((4..=5).contains(&written), "a ring-full, and what was read: {written}");
}

/// A producer says that it sleeps until there is room, and dies. The consumer reads what was published before, rings it, and
/// waits for more, which will never come.
fn death_of_a_producer() {
    let (mut producer, mut consumer) = ring_at(CAPACITY, 0);
    let for_producer = Rc::new(Bell::new());
    let for_consumer = Rc::new(Bell::new());

    let bell = for_consumer.clone();
    loom::thread::spawn(move || {
        for index in 0..2 {
            assert!(write(&mut producer, index, 8));
            publish_and_ring(&mut producer, &bell);
        }
        producer.start_waiting();
        drop(producer);
        bell.hang_up();
    });

    let (mut scratch, mut received) = (Vec::new(), 0);
    loop {
        while read(&mut consumer, &mut scratch, received, 8) {
            received += 1;
            release_and_ring(&mut consumer, &for_producer);
        }
        consumer.start_waiting();
        if consumer.is_empty().unwrap() && for_consumer.wait() == Signal::HungUp {
            break;
        }
        consumer.stop_waiting();
    }
    // What it had published before it died is there.
    while read(&mut consumer, &mut scratch, received, 8) {
        received += 1;
    }
    assert_eq!(received, 2);
}

/// Fills the ring with four records, before there is a second thread.
fn fill(producer: &mut Producer<LoomMemory>) {
    for index in 0..4 {
        assert!(write(producer, index, 8));
    }
    assert!(!write(producer, 4, 0), "the ring is not full");
    assert!(producer.publish());
}

fn write_or_sleep(producer: &mut Producer<LoomMemory>, index: usize, len: usize, bell: &Bell) {
    while !write(producer, index, len) {
        producer.publish();
        producer.start_waiting();
        if !producer.has_room_for(len).unwrap() {
            bell.wait();
        }
        producer.stop_waiting();
    }
}

fn read_or_sleep(
    consumer: &mut Consumer<LoomMemory>,
    scratch: &mut Vec<u8>,
    index: usize,
    len: usize,
    bell: &Bell,
) {
    while !read(consumer, scratch, index, len) {
        consumer.start_waiting();
        if consumer.is_empty().unwrap() {
            bell.wait();
        }
        consumer.stop_waiting();
    }
}

fn publish_and_ring(producer: &mut Producer<LoomMemory>, for_consumer: &Bell) {
    assert!(producer.publish());
    if producer.consumer_must_be_rung() {
        for_consumer.ring();
    }
}

fn release_and_ring(consumer: &mut Consumer<LoomMemory>, for_producer: &Bell) {
    assert!(consumer.release());
    if consumer.producer_must_be_rung() {
        for_producer.ring();
    }
}

/// Stages record number `index`, in two pieces, each second one as a run if there is a runway; `false` if the ring is full.
fn write(producer: &mut Producer<LoomMemory>, index: usize, len: usize) -> bool {
    let payload = payload(index, len);
    let (front, back) = payload.split_at(len / 3);
    if !index.is_multiple_of(2) && record_bytes(len) <= producer.runway() {
        producer.write_run(std::iter::once(([], [front, back])));
        return true;
    }
    producer.try_write([front, back]).unwrap()
}

/// Reads records of these lengths, each released by itself, and polls meanwhile; behind them there is nothing.
fn read_one_by_one(consumer: &mut Consumer<LoomMemory>, lengths: &[usize]) {
    let mut scratch = Vec::new();
    for (index, &len) in lengths.iter().enumerate() {
        while !read(consumer, &mut scratch, index, len) {
            loom::thread::yield_now();
        }
        consumer.release();
    }
    assert_eq!(consumer.is_empty(), Ok(true));
}

/// Reads a record and checks that it is number `index`; `false` if the ring is empty.
fn read(consumer: &mut Consumer<LoomMemory>, scratch: &mut Vec<u8>, index: usize, len: usize) -> bool {
    let record = consumer.try_read(scratch).unwrap();
    if let Some(record) = record {
        assert_eq!(record, payload(index, len), "record {index}");
    }
    record.is_some()
}

/// What record number `index` holds.
fn payload(index: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (index * 16 + at + 1) as u8).collect()
}
