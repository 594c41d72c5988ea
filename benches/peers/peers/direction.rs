//! What is measured of each means: one record there and one back, and records as fast as they go.
//!
//! A means is a [`Direction`]: made before the fork, one end taken in one process, the other in the other. A round trip uses
//! two of them. Every record is that of its number ([`record`]), and the receiving end verifies all of its bytes.
//!
//! Nothing here waits for ever: the process of a cell is ended by an alarm ([`CELL_BOUND`](crate::harness::CELL_BOUND)), and a process
//! dies with the one that has forked it.

#![allow(unsafe_code)]

use std::hint::spin_loop;
use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::atomic::Ordering::AcqRel;
use std::thread;
use std::time::{Duration, Instant};

use crate::RING_BYTES;
use crate::harness::peer::{Words, fork_on};
use crate::harness::report::Latency;
use crate::harness::{cpu, record};

/// A way from one process to another.
pub(crate) trait Direction: Sized {
    type Sender: Sender;
    type Receiver: Receiver;

    /// To be called before the fork. The directory is empty, and is removed after both processes have ended; `name` is
    /// different for each direction in it.
    fn new(shape: Shape, dir: &Path, name: &'static str) -> Self;

    /// In the process that sends, once. What belongs to the other end is closed there.
    fn sender(&mut self) -> Self::Sender;

    /// In the process that receives, once.
    fn receiver(&mut self) -> Self::Receiver;
}

/// How records are sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) value_bytes: usize,
    /// Records that there is room for, with a means that has such a number.
    pub(crate) capacity: usize,
}

/// The end that sends.
pub(crate) trait Sender {
    /// Records that [`Sender::send_many`] takes at a time; 1 if the means knows no batches.
    const BATCH: u64 = 1;

    /// Sends the record of number `n`, or keeps it until there is a batch of them; waits for room.
    fn send(&mut self, n: u64);

    /// Sends the records from `first` on, [`Sender::BATCH`] of them.
    fn send_many(&mut self, first: u64) {
        (first..first + Self::BATCH).for_each(|n| self.send(n));
    }

    /// Sends what was kept.
    fn flush(&mut self) {}
}

/// The end that receives.
pub(crate) trait Receiver {
    /// Whether a record may be a newer one than that which was due, as with a means that keeps the newest value of a key.
    const NEWEST: bool = false;

    /// Waits for records, verifies them, and tells their numbers.
    fn receive(&mut self, take: impl FnMut(u64));
}

/// The number of a record that is none: it ends a part of a stream.
pub(crate) const MARK: u64 = (1 << 56) - 1;

/// Words of the processes: how many ends there are, and how many marks were received.
const ENDS: usize = 0;
const MARKS: usize = 1;

/// Records that there is room for in a round trip: few, since there is one at a time, and a place that was used before is
/// still in the caches.
const ROUND_TRIP_CAPACITY: usize = 16;

/// How often the time is looked at in a stream.
const BETWEEN_CLOCKS: u64 = 256;

/// One record there and one back, between two processes on these cpus, which may be the same.
pub(crate) fn round_trip<D: Direction>(cpus: [usize; 2], value_bytes: usize, round_trips: u64) -> Latency {
    // A server that a direction starts is to stay on these cpus as well.
    cpu::pin_all(&cpus);
    let dir = tempfile::tempdir().expect("a directory");
    let words = Words::new(2);
    let shape = Shape { value_bytes, capacity: ROUND_TRIP_CAPACITY };
    let mut there = D::new(shape, dir.path(), "there");
    let mut back = D::new(shape, dir.path(), "back");
    let peer = fork_on(&[cpus[1]], || {
        answer(there.receiver(), back.sender(), &words, round_trips);
    });
    cpu::pin(cpus[0]);
    let latency = ask(there.sender(), back.receiver(), &words, round_trips);
    peer.join();
    latency
}

/// The same between two threads.
pub(crate) fn round_trip_threads<D>(cpus: [usize; 2], value_bytes: usize, round_trips: u64) -> Latency
where
    D: Direction<Sender: Send, Receiver: Send>,
{
    let words = Words::new(2);
    let shape = Shape { value_bytes, capacity: ROUND_TRIP_CAPACITY };
    let mut there = D::new(shape, Path::new(""), "there");
    let mut back = D::new(shape, Path::new(""), "back");
    let (receiver, sender) = (there.receiver(), back.sender());
    let words = Shared(&words);
    thread::scope(|scope| {
        scope.spawn(move || {
            cpu::pin(cpus[1]);
            answer(receiver, sender, words.get(), round_trips);
        });
        cpu::pin(cpus[0]);
        ask(there.sender(), back.receiver(), words.get(), round_trips)
    })
}

/// Records one way, between processes on these two cpus; the time counts until the last one was received. Answers records a
/// second.
pub(crate) fn stream<D: Direction>(cpus: [usize; 2], value_bytes: usize, duration: Duration) -> f64 {
    // A server that a direction starts is to stay on these cpus as well.
    cpu::pin_all(&cpus);
    let dir = tempfile::tempdir().expect("a directory");
    let words = Words::new(2);
    let shape = Shape { value_bytes, capacity: RING_BYTES / value_bytes };
    let mut direction = D::new(shape, dir.path(), "there");
    let peer = fork_on(&[cpus[1]], || {
        consume(direction.receiver(), &words);
    });
    cpu::pin(cpus[0]);
    let rate = produce(direction.sender(), &words, duration);
    peer.join();
    rate
}

/// The same between two threads.
pub(crate) fn stream_threads<D>(cpus: [usize; 2], value_bytes: usize, duration: Duration) -> f64
where
    D: Direction<Sender: Send, Receiver: Send>,
{
    let words = Words::new(2);
    let shape = Shape { value_bytes, capacity: RING_BYTES / value_bytes };
    let mut direction = D::new(shape, Path::new(""), "there");
    let receiver = direction.receiver();
    let words = Shared(&words);
    thread::scope(|scope| {
        scope.spawn(move || {
            cpu::pin(cpus[1]);
            consume(receiver, words.get());
        });
        cpu::pin(cpus[0]);
        produce(direction.sender(), words.get(), duration)
    })
}

fn ask(mut out: impl Sender, mut into: impl Receiver, words: &Words, round_trips: u64) -> Latency {
    meet(words);
    let mut next = 0;
    let latency = Latency::of(round_trips, || {
        out.send(next);
        out.flush();
        expect(&mut into, next);
        next += 1;
    });
    part(words);
    latency
}

fn answer(mut into: impl Receiver, mut out: impl Sender, words: &Words, round_trips: u64) {
    meet(words);
    for n in 0..Latency::made(round_trips) {
        expect(&mut into, n);
        out.send(n);
        out.flush();
    }
    part(words);
}

fn expect(into: &mut impl Receiver, expected: u64) {
    let mut got = None;
    into.receive(|n| assert!(got.replace(n).is_none(), "one record was sent"));
    assert_eq!(got, Some(expected));
}

fn produce<S: Sender>(mut out: S, words: &Words, duration: Duration) -> f64 {
    meet(words);
    let mut next = 0;
    let mut run_for = |duration, marks| {
        let (start, first) = (Instant::now(), next);
        while start.elapsed() < duration {
            for _ in 0..BETWEEN_CLOCKS / S::BATCH {
                if S::BATCH == 1 {
                    out.send(next)
                } else {
                    out.send_many(next)
                }
                next += S::BATCH;
            }
        }
        out.send(MARK);
        out.flush();
        while words.get(MARKS) < marks {
            spin_loop();
        }
        (next - first) as f64 / start.elapsed().as_secs_f64()
    };
    run_for(duration / 5, 1);
    let rate = run_for(duration, 2);
    part(words);
    rate
}

fn consume<R: Receiver>(mut into: R, words: &Words) {
    meet(words);
    let (mut next, mut marks) = (0, 0);
    while marks < 2 {
        into.receive(|n| {
            if n == MARK {
                marks += 1;
                words.set(MARKS, marks);
                return;
            }
            assert!(n == next || R::NEWEST && n > next, "received {n}, expected {next}");
            next += 1;
        });
    }
    part(words);
}

/// Both ends are there.
fn meet(words: &Words) {
    words.word(ENDS).fetch_add(1, AcqRel);
    words.wait_for(ENDS, 2);
}

/// Both are done. An end that went before would be missed by the other, which may still be at its last record.
fn part(words: &Words) {
    words.word(ENDS).fetch_add(1, AcqRel);
    words.wait_for(ENDS, 4);
}

/// Words that two threads use.
#[derive(Clone, Copy)]
struct Shared<'a>(&'a Words);

// SAFETY: words are accessed by atomics only, and the mapping lives as long as the reference.
unsafe impl Send for Shared<'_> {}

impl<'a> Shared<'a> {
    fn get(self) -> &'a Words {
        self.0
    }
}

/// Writes a record as words where it is to be, the same as that of [`record::fill`]: for means that move values of a type.
#[inline]
pub(crate) fn fill_words<const WORDS: usize>(
    value: &mut MaybeUninit<[u64; WORDS]>,
    n: u64,
) -> &mut [u64; WORDS] {
    let words = value.as_mut_ptr().cast::<u64>();
    for at in 0..WORDS {
        // SAFETY: within the value.
        let word = unsafe { words.add(at) };
        // SAFETY: the reference makes it ours.
        unsafe { word.write(n ^ record::PLACES[at % record::PLACES.len()]) };
    }
    // SAFETY: all of its words were written.
    unsafe { value.assume_init_mut() }
}

/// As [`record::verify`].
#[inline]
pub(crate) fn verify_words<const WORDS: usize>(value: &[u64; WORDS]) -> u64 {
    let n = value[0] ^ record::PLACES[0];
    let mut wrong = 0;
    for (word, place) in value.iter().zip(record::PLACES.iter().cycle()) {
        wrong |= word ^ n ^ place;
    }
    assert!(wrong == 0, "a value of record {n} is torn: {value:x?}");
    n
}

/// A record's bytes, filled anew for each number.
pub(crate) struct Buffer(Vec<u8>);

impl Buffer {
    pub(crate) fn new(value_bytes: usize) -> Buffer {
        Buffer(vec![0; value_bytes])
    }

    #[inline]
    pub(crate) fn fill(&mut self, n: u64) -> &[u8] {
        record::fill(&mut self.0, n);
        &self.0
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
