//! The ring by itself: no frames, no cache, no acks.
//!
//! The library keeps its ring private, so it is compiled into this bench once more, from the same source.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use crate::harness::peer::{Words, fork_on};
use crate::harness::report::{made_for_mean, mean_of};
use crate::harness::{cpu, record};
use crate::region::layout::{Header, Kind};
use crate::region::ring_memory::{ConsumerMapping, ProducerMapping};
use crate::region::{OwnRegion, PeerRegion};
use crate::ring::{Consumer, Producer, record_bytes};

/// One side of a link: a ring out, a ring in.
struct Side {
    out: Producer<ProducerMapping>,
    into: Consumer<ConsumerMapping>,
    scratch: Vec<u8>,
}

const READY: usize = 0;
const FD: usize = 2;

/// Makes this side's region, tells the other side where it is (word `FD + own`, and its process in the value's high half),
/// and takes the other's over.
fn meet(words: &Words, own: usize, ring_bytes: u64) -> Side {
    let header = |kind| Header { kind, ring_bytes, identity: 1 };
    let kinds = [Kind::Change, Kind::Ack];
    let region = Arc::new(OwnRegion::create(header(kinds[own])).expect("a region"));
    let place = (u64::from(std::process::id()) << 32) | region.fd().as_raw_fd() as u64;
    words.set(FD + own, place);
    words.wait_for(FD + 1 - own, 1);
    let place = words.get(FD + 1 - own);
    let path = format!("/proc/{}/fd/{}", place >> 32, place & 0xffff_ffff);
    let fd = File::open(path).expect("the peer's region").into();
    let peer = PeerRegion::open(fd, header(kinds[1 - own]), ring_bytes).expect("the peer's region is good");
    let peer = Arc::new(peer);
    let out = Producer::new(ProducerMapping::new(region.clone(), peer.clone()), ring_bytes);
    let into = Consumer::new(ConsumerMapping::new(region, peer), ring_bytes);
    words.word(READY).fetch_add(1, std::sync::atomic::Ordering::AcqRel);
    words.wait_for(READY, 2);
    Side { out, into, scratch: Vec::new() }
}

impl Side {
    fn send(&mut self, value: &[u8]) -> bool {
        self.out.try_write_headed([], [value]).expect("a sane peer")
    }

    /// Sends a value by itself, and publishes it, together with the room of what was received before.
    fn send_alone(&mut self, value: &[u8]) -> bool {
        let release = || _ = self.into.store_released();
        let is_sent = self.out.try_publish_headed([], [value], release).expect("a sane peer");
        if is_sent {
            self.into.handle_released();
        }
        is_sent
    }

    /// Sends values of so many bytes: in one go as far as there is a runway, one by one where there is none.
    fn send_all(&mut self, mut values: &[u8], value_bytes: usize) {
        while !values.is_empty() {
            let in_run = (self.out.runway() / record_bytes(value_bytes)) as usize * value_bytes;
            let (run, rest) = values.split_at(in_run.min(values.len()));
            self.out.write_run(run.chunks_exact(value_bytes).map(|value| ([], [value])));
            let Some((value, rest)) = rest.split_at_checked(value_bytes) else { break };
            while !self.send(value) {
                self.out.publish();
                std::hint::spin_loop();
            }
            values = rest;
        }
        self.out.publish();
    }

    /// Receives and verifies the records of these numbers, and releases them in batches.
    fn receive_all(&mut self, numbers: Range<u64>, batch: u64) {
        let (mut n, mut unreleased, mut wrong) = (numbers.start, 0, 0);
        while n < numbers.end {
            while let Some(value) = self.into.try_read(&mut self.scratch).expect("a sane peer") {
                wrong |= record::wrong_bits(value, n);
                n += 1;
                unreleased += 1;
                if unreleased == batch {
                    unreleased = 0;
                    self.into.release_at(Instant::now);
                }
            }
            assert!(wrong == 0, "a record before the {n}th is torn or out of turn");
            self.into.release_at(Instant::now);
            // Lets the producer get ahead, rather than take its cache lines from it one by one.
            for _ in 0..16 {
                std::hint::spin_loop();
            }
        }
    }

    fn receive(&mut self) -> u64 {
        loop {
            if let Some(value) = self.into.try_read(&mut self.scratch).expect("a sane peer") {
                // In the cache line that has just come over.
                self.out.look().expect("a sane peer");
                return record::verify(value);
            }
            std::hint::spin_loop();
        }
    }
}

/// A record there and one back. Answers the mean in ns.
pub(crate) fn round_trip(cpus: [usize; 2], round_trips: u64) -> f64 {
    let words = Words::new(4);
    let peer = fork_on(&[cpus[1]], || {
        let mut side = meet(&words, 1, 1 << 16);
        let mut value = [0; 64];
        for n in 1..=made_for_mean(round_trips) {
            assert_eq!(side.receive(), n);
            record::fill(&mut value, n);
            assert!(side.send_alone(&value));
        }
    });
    cpu::pin(cpus[0]);
    let mut side = meet(&words, 0, 1 << 16);
    let mut value = [0; 64];
    let mut n = 0;
    let mean = mean_of(round_trips, || {
        n += 1;
        record::fill(&mut value, n);
        assert!(side.send_alone(&value));
        assert_eq!(side.receive(), n);
    });
    peer.join();
    mean
}

/// Records one way, published and released in batches: of 64 records, or of an eighth of the ring. Answers records a second, after a
/// warm-up of a fifth of them.
pub(crate) fn stream(cpus: [usize; 2], ring_bytes: u64, value_bytes: usize, records: u64) -> f64 {
    let words = Words::new(4);
    let batch = (ring_bytes / 8 / value_bytes as u64).clamp(1, 64);
    let warm_up = records / 5;
    let parts = [0..warm_up, warm_up..warm_up + records];
    let peer = fork_on(&[cpus[1]], || {
        let mut side = meet(&words, 1, ring_bytes);
        for numbers in parts.clone() {
            let mut end = [0; 8];
            record::fill(&mut end, numbers.end);
            side.receive_all(numbers, batch);
            side.send(&end);
            side.out.publish();
        }
    });
    cpu::pin(cpus[0]);
    let mut side = meet(&words, 0, ring_bytes);
    let mut values = vec![0; value_bytes * batch as usize];
    let [_, elapsed] = parts.map(|numbers| {
        let (start, mut n) = (Instant::now(), numbers.start);
        while n < numbers.end {
            let count = batch.min(numbers.end - n);
            let values = &mut values[..value_bytes * count as usize];
            for value in values.chunks_exact_mut(value_bytes) {
                record::fill(value, n);
                n += 1;
            }
            side.send_all(values, value_bytes);
        }
        assert_eq!(side.receive(), numbers.end);
        start.elapsed()
    });
    peer.join();
    records as f64 / elapsed.as_secs_f64()
}
