//! Peers that break the rules: one rule at a time, and all of them at random.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::Ordering::{self, SeqCst};

use super::heap::HeapMemory;
use super::layout::{Header, record_bytes};
use super::memory::{ConsumerMemory, Memory, ProducerMemory, Word};
use super::tests::{Random, ShowSeed};
use super::{Consumer, Producer, RingError, max_payload_bytes};

#[test]
fn tail_outside_the_ring_is_an_error() {
    for found in [0, 56, 64 + 72, 0u64.wrapping_sub(8)] {
        let (producer, mut consumer) = forged();
        producer.store_own(Word::Cursor, found, SeqCst);
        let error = RingError::TailOutOfRange { found, at_least: 64, at_most: 128 };
        assert_eq!(consumer.try_read(&mut vec![]), Err(error));
        assert_eq!(consumer.is_empty(), Err(error));
    }
    let (producer, mut consumer) = forged();
    producer.store_own(Word::Cursor, 77, SeqCst);
    assert_eq!(consumer.try_read(&mut vec![]), Err(RingError::TailUnaligned { found: 77 }));
}

#[test]
fn tail_beyond_what_was_released_is_an_error() {
    let (producer, mut consumer) = forged();
    producer.copy_in(0, &Header::record(8).to_bytes());
    producer.store_own(Word::Cursor, 64 + 16, SeqCst);
    assert_eq!(consumer.try_read(&mut vec![]), Ok(Some(&[0; 8][..])));
    // The record has been read, and its room not been given back.
    producer.store_own(Word::Cursor, 64 + 72, SeqCst);
    let error = RingError::TailOutOfRange { found: 136, at_least: 80, at_most: 128 };
    assert_eq!(consumer.try_read(&mut vec![]), Err(error));
    consumer.release();
    assert_eq!(consumer.is_empty(), Ok(false));
}

#[test]
fn start_that_no_producer_stores_is_an_error() {
    let position = 64 + 16;
    let cases = [
        (88, 144, true),
        (120, 144, true),
        (128, 200, true),
        (128, 136, false),
        // Nothing was written where the ring was begun anew.
        (128, 128, true),
    ];
    for (start, tail, released) in cases {
        let (producer, consumer) = HeapMemory::pair(64, 64);
        let mut consumer = Consumer::at(consumer, 64, 64);
        producer.copy_in(0, &Header::record(8).to_bytes());
        producer.store_own(Word::Cursor, position, SeqCst);
        assert!(consumer.try_read(&mut vec![]).unwrap().is_some());
        if released {
            consumer.release();
        }
        producer.store_own(Word::Start, start, SeqCst);
        producer.store_own(Word::Cursor, tail, SeqCst);
        let outcome = consumer.try_read(&mut vec![]).map(|record| record.is_some());
        let released = if released { position } else { 64 };
        let out_of_place = RingError::StartOutOfPlace { found: start, expected: 128, tail, released };
        assert_eq!(outcome, Err(out_of_place));
    }
}

#[test]
fn error_leaves_the_consumer_where_it_was() {
    let (producer, mut consumer) = forged();
    producer.copy_in(0, &Header::record(8).to_bytes());
    producer.store_own(Word::Cursor, 64 + 16, SeqCst);
    assert!(consumer.try_read(&mut vec![]).unwrap().is_some());
    consumer.release();
    // A new beginning that is right, with a tail that is not.
    producer.store_own(Word::Start, 128, SeqCst);
    producer.store_own(Word::Cursor, 141, SeqCst);
    for _ in 0..2 {
        assert_eq!(consumer.try_read(&mut vec![]), Err(RingError::TailUnaligned { found: 141 }));
        assert_eq!(consumer.read_position(), 64 + 16);
    }
}

#[test]
fn head_outside_what_was_published_is_an_error() {
    let (producer, consumer) = HeapMemory::pair(64, 0);
    let mut producer = Producer::new(producer, 64);
    for _ in 0..3 {
        assert_eq!(producer.try_write([]), Ok(true));
    }
    producer.publish();
    consumer.store_own(Word::Cursor, 16, SeqCst);
    assert_eq!(producer.released(), Ok(16));
    for _ in 0..7 {
        assert_eq!(producer.try_write([]), Ok(true), "staged, not published");
    }

    for found in [8, 32, u64::MAX] {
        consumer.store_own(Word::Cursor, found, SeqCst);
        let error = RingError::HeadOutOfRange { found, at_least: 16, at_most: 24 };
        assert_eq!(producer.released(), Err(error));
        assert_eq!(producer.has_room_for(8), Err(error));
        assert_eq!(producer.try_write([&[0; 8]]), Err(error));
    }
    consumer.store_own(Word::Cursor, 20, SeqCst);
    assert_eq!(producer.released(), Err(RingError::HeadUnaligned { found: 20 }));
}

#[test]
fn header_that_no_producer_writes_is_an_error() {
    let position = 64;
    let max = u32::MAX;
    // In a ring of 64 bytes; the published bytes, the header, and the verdict.
    let cases = [
        (64, (0, 0), RingError::UnknownKind { position, found: 0 }),
        (64, (0, 3), RingError::UnknownKind { position, found: 3 }),
        (64, (9, 1), RingError::RecordTooLong { position, found: 9, at_most: 8 }),
        (64, (max, 1), RingError::RecordTooLong { position, found: max, at_most: 8 }),
        (64, (max, max), RingError::RecordTooLong { position, found: max, at_most: 8 }),
        (64, (56, 2), RingError::RecordTooLong { position, found: 56, at_most: 8 }),
        (8, (1, 1), RingError::RecordBeyondTail { position, found: 16, available: 8 }),
        (64, (8, 2), RingError::PaddingShort { position, found: 16, to_end: 64 }),
    ];
    for (published, (length, kind), error) in cases {
        let (producer, mut consumer) = forged();
        producer.copy_in(0, &Header { length, kind }.to_bytes());
        producer.store_own(Word::Cursor, position + published, SeqCst);
        assert_eq!(consumer.try_read(&mut vec![]), Err(error));
        assert_eq!(consumer.read_position(), position);
    }
}

#[test]
fn header_before_the_end_of_the_ring_that_no_producer_writes_is_an_error() {
    let position = 64 + 56;
    let cases = [
        (16, (1, 1), RingError::RecordBeyondEnd { position, found: 16, to_end: 8 }),
        (16, (1, 2), RingError::RecordBeyondEnd { position, found: 16, to_end: 8 }),
        (8, (0, 2), RingError::PaddingAlone { position: 128 }),
    ];
    for (published, (length, kind), error) in cases {
        let (producer, consumer) = HeapMemory::pair(64, position);
        let mut consumer = Consumer::at(consumer, 64, position);
        producer.copy_in(56, &Header { length, kind }.to_bytes());
        producer.store_own(Word::Cursor, position + published, SeqCst);
        assert_eq!(consumer.try_read(&mut vec![]), Err(error));
    }
}

#[test]
fn padding_behind_padding_is_an_error() {
    let (producer, consumer) = HeapMemory::pair(64, 56);
    let mut consumer = Consumer::at(consumer, 64, 56);
    producer.copy_in(56, &Header { length: 0, kind: Header::PADDING }.to_bytes());
    producer.copy_in(0, &Header { length: 0, kind: Header::PADDING }.to_bytes());
    producer.store_own(Word::Cursor, 56 + 64, SeqCst);
    assert_eq!(consumer.try_read(&mut vec![]), Err(RingError::UnknownKind { position: 64, found: 2 }));
}

#[test]
fn errors_tell_what_was_found_and_what_was_expected() {
    let (producer, mut consumer) = forged();
    producer.store_own(Word::Cursor, 8, SeqCst);
    let error = consumer.try_read(&mut vec![]).unwrap_err();
    assert_eq!(error.to_string(), "the producer's tail is 8, expected 64 to 128");
}

/// A ring of 64 bytes that begins at 64, whose producer is a mere memory.
fn forged() -> (HeapMemory, Consumer<HeapMemory>) {
    let (producer, consumer) = HeapMemory::pair(64, 64);
    (producer, Consumer::at(consumer, 64, 64))
}

const ROUNDS: u64 = 2_000;
const CALLS_PER_ROUND: u64 = 200;

/// A call reads one cursor, at most two headers and one payload, with a fence; writes at most two headers and
/// one payload.
const MAX_ACCESSES_PER_CALL: u64 = 6;

#[test]
fn consumer_survives_any_garbage_with_bounded_work() {
    let mut records = 0u64;
    let mut errors = 0u64;
    for seed in 0..ROUNDS {
        let _show = ShowSeed(seed);
        let memory = HostileMemory::new(seed);
        let capacity = memory.capacity;
        let mut consumer = Consumer::at(memory.clone(), capacity, memory.near.get());
        let mut scratch = Vec::new();
        for _ in 0..CALLS_PER_ROUND {
            memory.begin_call(consumer.read_position());
            match consumer.try_read(&mut scratch) {
                Ok(Some(payload)) => {
                    assert!(payload.len() <= max_payload_bytes(capacity));
                    records += 1;
                }
                Ok(None) => {}
                Err(error) => {
                    assert!(error.to_string().contains("expected"), "{error}");
                    errors += 1;
                }
            }
            memory.end_call();
            if memory.flip() {
                consumer.release();
                consumer.producer_must_be_rung();
            }
        }
        assert!(scratch.len() <= max_payload_bytes(capacity));
    }
    // Else the garbage is not plausible enough, or not hostile enough, to test anything.
    assert!(records > ROUNDS, "only {records} records got through");
    assert!(errors > ROUNDS, "only {errors} errors were found");
}

#[test]
fn producer_survives_any_garbage_with_bounded_work() {
    let (mut written, mut full, mut errors) = (0u64, 0u64, 0u64);
    for seed in 0..ROUNDS {
        let _show = ShowSeed(seed);
        let memory = HostileMemory::new(seed);
        let capacity = memory.capacity;
        let mut producer = Producer::at(memory.clone(), capacity, memory.near.get());
        for _ in 0..CALLS_PER_ROUND {
            let len = memory.below(producer.max_payload() as u64 + 1) as usize;
            memory.begin_call(producer.written().wrapping_sub(memory.below(8) * 8));
            match producer.try_write([&vec![7; len]]) {
                Ok(true) => written += 1,
                Ok(false) => full += 1,
                Err(error) => {
                    assert!(error.to_string().contains("expected"), "{error}");
                    errors += 1;
                }
            }
            memory.end_call();
            memory.begin_call(producer.written());
            let _ = producer.released();
            memory.end_call();
            if memory.flip() {
                producer.publish();
                producer.consumer_must_be_rung();
            }
        }
    }
    assert!(written > ROUNDS && full > ROUNDS && errors > ROUNDS, "{written} {full} {errors}");
}

/// Memory whose every word and byte is made up when it is read.
#[derive(Clone, Debug)]
struct HostileMemory {
    capacity: u64,
    random: Rc<RefCell<Random>>,
    /// A position that plausible garbage stays close to.
    near: Rc<Cell<u64>>,
    accesses: Rc<Cell<u64>>,
}

impl HostileMemory {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let capacity = 64 << random.below(6);
        let near = random.next() & !7;
        Self {
            capacity,
            random: Rc::new(RefCell::new(random)),
            near: Rc::new(Cell::new(near)),
            accesses: Rc::new(Cell::new(0)),
        }
    }

    fn begin_call(&self, near: u64) {
        self.near.set(near);
        self.accesses.set(0);
    }

    fn end_call(&self) {
        let accesses = self.accesses.get();
        assert!(accesses <= MAX_ACCESSES_PER_CALL, "{accesses} accesses in one call");
    }

    fn below(&self, bound: u64) -> u64 {
        self.random.borrow_mut().below(bound)
    }

    fn flip(&self) -> bool {
        self.below(2) == 0
    }

    fn count_access(&self) {
        self.accesses.set(self.accesses.get() + 1);
    }

    /// Most headers are almost right, so that the checks behind the first one are reached too.
    fn header(&self, offset: usize) -> Header {
        let to_end = self.capacity - offset as u64;
        match self.below(8) {
            0 => Header { length: self.below(1 << 32) as u32, kind: self.below(1 << 32) as u32 },
            1 => Header { length: self.below(self.capacity) as u32, kind: self.below(4) as u32 },
            2 | 3 => Header::padding(to_end),
            4 => Header { length: to_end as u32, kind: Header::PADDING },
            _ => Header::record(self.below(max_payload_bytes(self.capacity) as u64 + 2) as usize),
        }
    }
}

impl Memory for HostileMemory {
    fn load_peer(&self, word: Word) -> u64 {
        self.count_access();
        let value = match (word, self.below(8)) {
            (_, 0) => self.below(u64::MAX),
            (Word::Waits, _) => self.below(3),
            (_, 1) => self.near.get().wrapping_sub(self.below(self.capacity)),
            (_, 2) => self.near.get().wrapping_add(self.below(2 * self.capacity)),
            (_, 3) => self.near.get().wrapping_add(self.capacity),
            _ => self.near.get().wrapping_add(record_bytes(self.below(self.capacity) as usize)),
        };
        if self.below(16) == 0 { value } else { value & !7 }
    }

    fn store_own(&self, _: Word, _: u64, _: Ordering) {}

    fn fence(&self, _: Ordering) {
        self.count_access();
    }
}

impl ProducerMemory for HostileMemory {
    fn copy_in(&self, offset: usize, bytes: &[u8]) {
        self.count_access();
        assert!(offset + bytes.len() <= self.capacity as usize, "a write beyond the ring");
    }
}

impl ConsumerMemory for HostileMemory {
    fn copy_out(&self, offset: usize, into: &mut [u8]) {
        self.count_access();
        assert!(offset + into.len() <= self.capacity as usize, "a read beyond the ring");
        if into.len() == size_of::<Header>() {
            into.copy_from_slice(&self.header(offset).to_bytes());
        } else {
            into.fill_with(|| self.below(256) as u8);
        }
    }
}
