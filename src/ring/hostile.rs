//! Peers that break the rules, one rule at a time. All of them at random: `fuzz/ring.rs`.

use std::sync::atomic::Ordering::SeqCst;

use super::heap::HeapMemory;
use super::layout::Header;
use super::memory::{Memory, ProducerMemory, Word};
use super::{Consumer, Producer, RingError};

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
    // It is begun anew where the consumer is, and has released everything.
    for (start, released) in [(72, true), (88, true), (128, true), (position + 64, true), (position, false)] {
        let (producer, mut consumer) = forged();
        producer.copy_in(0, &Header::record(8).to_bytes());
        producer.store_own(Word::Cursor, position, SeqCst);
        assert!(consumer.try_read(&mut vec![]).unwrap().is_some());
        if released {
            consumer.release();
        }
        producer.store_own(Word::Start, start, SeqCst);
        producer.store_own(Word::Cursor, position + 16, SeqCst);
        let released = if released { position } else { 64 };
        let out_of_place = RingError::StartOutOfPlace { found: start, position, released };
        for _ in 0..2 {
            assert_eq!(consumer.try_read(&mut vec![]), Err(out_of_place));
            assert_eq!(consumer.read_position(), position);
        }
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
    producer.store_own(Word::Start, 64 + 16, SeqCst);
    producer.store_own(Word::Cursor, 101, SeqCst);
    for _ in 0..2 {
        assert_eq!(consumer.try_read(&mut vec![]), Err(RingError::TailUnaligned { found: 101 }));
        assert_eq!(consumer.read_position(), 64 + 16);
    }
    // Once it is, the record is looked for where the ring begins.
    producer.copy_in(0, &Header::record(3).to_bytes());
    producer.store_own(Word::Cursor, 64 + 32, SeqCst);
    assert_eq!(consumer.try_read(&mut vec![]), Ok(Some(&[0; 3][..])));
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
fn what_no_producer_writes_behind_padding_is_an_error() {
    let position = 64;
    // The bytes published behind the padding, the header there, and the verdict.
    let cases = [
        (56, (0, 2), RingError::UnknownKind { position, found: 2 }),
        (56, (9, 1), RingError::RecordTooLong { position, found: 9, at_most: 8 }),
        (8, (8, 1), RingError::RecordBeyondTail { position, found: 16, available: 8 }),
    ];
    for (published, (length, kind), error) in cases {
        let (producer, consumer) = HeapMemory::pair(64, 56);
        let mut consumer = Consumer::at(consumer, 64, 56);
        producer.copy_in(56, &Header { length: 0, kind: Header::PADDING }.to_bytes());
        producer.copy_in(0, &Header { length, kind }.to_bytes());
        producer.store_own(Word::Cursor, position + published, SeqCst);
        assert_eq!(consumer.try_read(&mut vec![]), Err(error));
    }
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
