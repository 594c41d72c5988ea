//! Tests of both ends together, on memory on the heap. Those with two threads also run on regions, in `region/tests.rs`.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::heap::{HeapMemory, ring, ring_at};
use super::layout::record_bytes;
use super::{Consumer, ConsumerMemory, Memory, Producer, ProducerMemory, RingError, Word, max_payload_bytes};
use crate::sys::bell::{Bell, Ringer};
use crate::sys::poll::{Interest, PollSet};

#[test]
fn staged_records_are_unseen_until_published() {
    let (mut producer, mut consumer) = ring(256);
    assert!(write(&mut producer, b"one"));
    assert!(write(&mut producer, b""));
    assert_eq!(producer.written(), 24);
    assert_eq!(read(&mut consumer), Ok(None));
    assert!(producer.publish());
    assert!(!producer.publish(), "nothing is staged any more");
    assert_eq!(read(&mut consumer), Ok(Some(b"one".to_vec())));
    assert_eq!(read(&mut consumer), Ok(Some(vec![])));
    assert_eq!(read(&mut consumer), Ok(None));
    assert_eq!(consumer.read_position(), 24);
}

#[test]
fn record_that_is_published_at_once_is_seen_and_what_was_staged_before_it() {
    let (mut producer, mut consumer) = ring(256);
    for staged in [0, 0, 0, 1, 2, 0, 0, 3] {
        for record in 0..staged {
            assert!(write(&mut producer, &[record; 3]));
        }
        assert_eq!(producer.try_publish_headed([[9; 8]], [&[8], &[7]], || ()), Ok(true));
        assert_eq!(producer.staged_bytes(), 0);
        assert!(!producer.publish(), "nothing is staged any more");
        for record in 0..staged {
            assert_eq!(read(&mut consumer), Ok(Some(vec![record; 3])));
        }
        assert_eq!(read(&mut consumer), Ok(Some(vec![9, 9, 9, 9, 9, 9, 9, 9, 8, 7])));
        assert_eq!(read(&mut consumer), Ok(None));
        consumer.release();
    }
}

#[test]
fn record_that_finds_no_room_to_be_published_at_once_leaves_everything_as_it_was() {
    let (mut producer, mut consumer) = ring(64);
    while producer.try_publish_headed([], [&[1; 8]], || ()).unwrap() {}
    assert_eq!(producer.written(), 64);
    for _ in 0..4 {
        assert_eq!(read(&mut consumer), Ok(Some(vec![1; 8])));
    }
    assert_eq!(read(&mut consumer), Ok(None));
    consumer.release();
    assert_eq!(producer.try_publish_headed([], [&[2; 8]], || ()), Ok(true));
    assert_eq!(read(&mut consumer), Ok(Some(vec![2; 8])));
}

#[test]
fn messages_arrive_whole_however_many_records_they_have() {
    const CAPACITY: u64 = 1 << 16;
    let (mut producer, mut consumer) = ring(CAPACITY);
    let mut random = Random::new(0xC0B);
    let mut scratch = Vec::new();
    for message in 0..2000 {
        let mut records = Vec::new();
        for _ in 0..1 + random.below(100) {
            let longest = if random.below(30) == 0 { producer.max_payload() } else { 300 };
            let payload = random_payload(&mut random, longest);
            if !write(&mut producer, &payload) {
                break;
            }
            records.push(payload);
        }
        assert_eq!(read(&mut consumer), Ok(None), "nothing of message {message} is published");
        producer.publish();
        for (at, record) in records.iter().enumerate() {
            let found = consumer.try_read(&mut scratch).unwrap();
            assert_eq!(found, Some(&record[..]), "record {at} of message {message}");
        }
        assert_eq!(read(&mut consumer), Ok(None));
        consumer.release();
    }
    assert!(producer.written() > 50 * CAPACITY, "it went round the ring often");
}

#[test]
fn record_of_so_many_words_is_read_as_words_and_any_other_is_left_as_it_is() {
    let (mut producer, mut consumer) = ring(256);
    let mut random = Random::new(0x3D);
    assert_eq!(consumer.try_read_words::<3>(), Ok(None), "there is nothing");
    // One is always left to be read, so the ring goes round.
    let mut left = VecDeque::new();
    let (mut as_words, mut behind_the_end, mut others) = (0, 0, 0);
    for _ in 0..2000 {
        let len = if random.below(2) == 0 { 24 } else { random.below(41) as usize };
        let payload: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
        let before = producer.written();
        assert!(write(&mut producer, &payload));
        assert!(producer.publish());
        let is_padded = producer.written() - before > record_bytes(len);
        left.push_back((payload, is_padded));
        if left.len() == 1 {
            continue;
        }
        let (payload, is_padded) = left.pop_front().unwrap();
        match consumer.try_read_words::<3>().unwrap() {
            Some(words) => {
                assert_eq!(words.as_flattened(), payload);
                assert!(!is_padded, "padding is no record");
                as_words += 1;
            }
            None => {
                behind_the_end += u32::from(is_padded);
                others += u32::from(payload.len() != 24);
                assert_eq!(read(&mut consumer), Ok(Some(payload)));
            }
        }
        consumer.release();
    }
    assert!(as_words > 500 && behind_the_end > 0 && others > 0, "{as_words}, {behind_the_end}, {others}");
}

#[test]
fn room_comes_back_only_with_release() {
    let (mut producer, mut consumer) = ring(64);
    for _ in 0..4 {
        assert!(write(&mut producer, &[1; 8]));
    }
    assert!(!write(&mut producer, b""), "the ring is exactly full");
    producer.publish();
    for _ in 0..4 {
        read(&mut consumer).unwrap().unwrap();
    }
    assert_eq!(producer.has_room_for(0), Ok(false));
    assert_eq!(producer.released(), Ok(0));
    assert!(consumer.release());
    assert!(!consumer.release(), "nothing was read since");
    assert_eq!(producer.released(), Ok(64));
    assert_eq!(producer.has_room_for(8), Ok(true));
}

#[test]
fn full_ring_leaves_everything_as_it_was() {
    let (mut producer, _consumer) = ring(64);
    while write(&mut producer, &[1; 8]) {}
    let written = producer.written();
    let outcome = producer.try_write([&[1]]);
    assert_eq!(outcome, Ok(false));
    assert_eq!(producer.written(), written);
}

#[test]
fn largest_record_takes_a_quarter_of_the_ring() {
    for capacity in [64, 128, 4096, 1 << 20] {
        let (mut producer, mut consumer) = ring(capacity);
        let len = producer.max_payload();
        assert_eq!(record_bytes(len), capacity / 4);
        let payload: Vec<u8> = (0..len).map(|at| at as u8).collect();
        for _ in 0..9 {
            assert!(write(&mut producer, &payload));
            producer.publish();
            assert_eq!(read(&mut consumer).unwrap().as_ref(), Some(&payload));
            consumer.release();
        }
    }
}

#[test]
fn every_record_fits_an_empty_ring_wherever_that_begins() {
    for begin in (0..64).step_by(8) {
        for len in 0..=max_payload_bytes(64) {
            let (mut producer, mut consumer) = ring_at(64, begin);
            let payload = vec![0xA5; len];
            assert!(write(&mut producer, &payload), "{len} bytes at {begin}");
            producer.publish();
            assert_eq!(read(&mut consumer), Ok(Some(payload)), "{len} bytes at {begin}");
            let padding = if 64 - begin < record_bytes(len) { 64 - begin } else { 0 };
            assert_eq!(consumer.read_position(), begin + padding + record_bytes(len));
            assert_eq!(producer.written(), consumer.read_position());
        }
    }
}

#[test]
fn padding_counts_as_taken_until_the_consumer_passed_it() {
    let (mut producer, mut consumer) = ring_at(64, 56);
    // 8 bytes of padding and 16 of record, then 16, 16 and 8: exactly the ring.
    for len in [8, 8, 8] {
        assert!(write(&mut producer, &vec![1; len]));
    }
    assert!(write(&mut producer, b""));
    assert_eq!(producer.written(), 56 + 64);
    assert!(!write(&mut producer, b""));
    producer.publish();
    read(&mut consumer).unwrap().unwrap();
    consumer.release();
    assert_eq!(producer.released(), Ok(56 + 24));
}

#[test]
fn record_does_not_fit_when_its_padding_does_not() {
    let (mut producer, mut consumer) = ring(64);
    for len in [0, 8, 8, 8] {
        assert!(write(&mut producer, &vec![1; len]));
    }
    producer.publish();
    read(&mut consumer).unwrap().unwrap();
    consumer.release();
    // 8 bytes before the end and 8 behind it are free, but not 16 in one piece.
    assert_eq!(producer.has_room_for(8), Ok(false));
    assert!(!write(&mut producer, &[1; 8]));
    assert!(write(&mut producer, b""));
}

#[test]
fn record_that_just_fits_before_the_end_needs_no_padding() {
    let (mut producer, mut consumer) = ring_at(64, 48);
    assert!(write(&mut producer, &[1; 8]));
    assert_eq!(producer.written(), 64);
    producer.publish();
    assert_eq!(read(&mut consumer), Ok(Some(vec![1; 8])));
}

#[test]
fn positions_may_cross_the_end_of_u64() {
    let begin = 0u64.wrapping_sub(40);
    let (mut producer, mut consumer) = ring_at(64, begin);
    for round in 0..100u8 {
        assert!(write(&mut producer, &[round; 5]));
        producer.publish();
        assert_eq!(read(&mut consumer), Ok(Some(vec![round; 5])));
        consumer.release();
    }
    assert_eq!(producer.released(), Ok(producer.written()));
}

#[test]
fn scratch_grows_and_never_shrinks() {
    let (mut producer, mut consumer) = ring(256);
    for payload in [&b"long enough"[..], b"short", b""] {
        assert!(write(&mut producer, payload));
    }
    producer.publish();
    let mut scratch = Vec::new();
    assert_eq!(consumer.try_read(&mut scratch), Ok(Some(&b"long enough"[..])));
    assert_eq!(consumer.try_read(&mut scratch), Ok(Some(&b"short"[..])));
    assert_eq!(consumer.try_read(&mut scratch), Ok(Some(&b""[..])));
    assert_eq!(scratch.len(), 16, "whole words");
}

#[test]
fn each_wait_is_rung_once() {
    let (mut producer, mut consumer) = ring(64);
    assert!(!producer.consumer_must_be_rung(), "the consumer has never waited");
    for _ in 0..3 {
        consumer.start_waiting();
        assert!(producer.consumer_must_be_rung());
        assert!(!producer.consumer_must_be_rung(), "it has been rung for this wait");
        consumer.stop_waiting();
        assert!(!producer.consumer_must_be_rung(), "it is awake");

        producer.start_waiting();
        assert!(consumer.producer_must_be_rung());
        assert!(!consumer.producer_must_be_rung(), "it has been rung for this wait");
        producer.stop_waiting();
        assert!(!consumer.producer_must_be_rung(), "it is awake");
    }
}

#[test]
fn wait_that_is_over_is_not_rung() {
    let (mut producer, mut consumer) = ring(64);
    consumer.start_waiting();
    consumer.stop_waiting();
    assert!(!producer.consumer_must_be_rung());
    producer.start_waiting();
    producer.stop_waiting();
    assert!(!consumer.producer_must_be_rung());
}

#[test]
fn wait_that_follows_a_rung_wait_is_rung_again() {
    let (mut producer, mut consumer) = ring(64);
    consumer.start_waiting();
    assert!(producer.consumer_must_be_rung());
    consumer.start_waiting();
    assert!(producer.consumer_must_be_rung(), "this is another wait");
}

#[test]
#[should_panic(expected = "has not published")]
fn producer_must_not_wait_with_staged_records() {
    let (mut producer, _consumer) = ring(64);
    assert!(write(&mut producer, b"1"));
    producer.start_waiting();
}

#[test]
#[should_panic(expected = "has not released")]
fn consumer_must_not_wait_with_unreleased_records() {
    let (mut producer, mut consumer) = ring(64);
    assert!(write(&mut producer, b"1"));
    producer.publish();
    read(&mut consumer).unwrap().unwrap();
    consumer.start_waiting();
}

#[test]
fn consumer_may_wait_before_it_reads_where_the_ring_was_begun_anew() {
    let (mut producer, mut consumer) = ring(1024);
    producer.set_hot_bytes(64);
    for _ in 0..2 {
        assert!(write(&mut producer, &[1; 56]));
        producer.publish();
        assert_eq!(consumer.is_empty(), Ok(false));
        // It may not read now: too many acks wait.
        consumer.start_waiting();
        consumer.stop_waiting();
        assert!(read(&mut consumer).unwrap().is_some());
        assert!(consumer.release());
    }
    assert_eq!(consumer.read_since_start(), 64, "it was begun anew");
}

#[test]
fn consumer_that_never_waits_is_never_rung_and_one_that_may_is() {
    for polls in [true, false] {
        let (mut producer, mut consumer) = ring(64);
        if polls {
            consumer.never_wait();
        } else {
            consumer.start_waiting();
        }
        let mut rings = 0;
        for _ in 0..3 {
            assert!(write(&mut producer, &[1]));
            producer.publish();
            rings += u32::from(producer.consumer_must_be_rung());
        }
        assert_eq!(rings, u32::from(!polls), "once for a wait, and there is none");
    }
}

#[test]
fn ring_that_ran_empty_begins_anew_and_takes_as_much_as_before() {
    const CAPACITY: u64 = 1 << 16;
    let (mut producer, mut consumer) = ring(CAPACITY);
    let payload = [7; 1016];
    let mut seen = Vec::new();
    for _ in 0..80 {
        assert!(write(&mut producer, &payload));
        producer.publish();
        assert_eq!(read(&mut consumer).unwrap().as_deref(), Some(&payload[..]));
        seen.push(consumer.read_since_start());
        consumer.release();
    }
    assert!(seen.iter().all(|end| *end <= 16 * 1024), "it stays within 16 KiB: {seen:?}");

    // Begun anew by the first of them, it holds as many records as it has room for.
    let mut written = 0;
    while write(&mut producer, &payload) {
        written += 1;
    }
    assert_eq!(written, CAPACITY / 1024);
    producer.publish();
    for _ in 0..written {
        assert!(read(&mut consumer).unwrap().is_some());
    }
    assert_eq!(read(&mut consumer), Ok(None));
}

#[test]
fn ring_that_is_seen_drained_begins_anew_at_once() {
    for position in [0, 24, 0u64.wrapping_sub(48)] {
        let (mut producer, mut consumer) = ring_at(1024, position);
        for n in 0..100 {
            assert!(producer.try_publish_headed([], [&[n; 40]], || ()).unwrap());
            assert_eq!(read(&mut consumer).unwrap().as_deref(), Some(&[n; 40][..]));
            if n > 0 {
                assert_eq!(consumer.read_since_start(), 48, "each record lies where the last one did");
            }
            assert!(consumer.release());
            // What is seen of the consumer, not what it does.
            assert_eq!(producer.released(), Ok(position.wrapping_add(48 * (u64::from(n) + 1))));
            assert_eq!(producer.runway(), 256, "as much as may lie in one piece");
            assert_eq!(consumer.is_empty(), Ok(true));
        }
    }
}

#[test]
fn ring_is_looked_at_where_its_start_is_not_near() {
    let (mut producer, mut consumer) = ring(1024);
    for (bytes, begins_anew) in [(96, false), (8, true), (104, true), (48, false), (48, true)] {
        let before = producer.written();
        assert!(producer.try_publish_headed([], [&vec![1; bytes - 8][..]], || ()).unwrap());
        assert!(read(&mut consumer).unwrap().is_some());
        consumer.release();
        producer.look().unwrap();
        assert!(producer.try_publish_headed([], [], || ()).unwrap());
        assert!(read(&mut consumer).unwrap().is_some());
        assert_eq!(consumer.read_since_start() == 8, begins_anew, "behind {bytes} bytes from {before}");
        consumer.release();
    }
}

#[test]
fn ring_that_is_seen_with_something_in_it_goes_on() {
    let (mut producer, mut consumer) = ring(1024);
    // One is read and released, and two more come, which is seen in between.
    for n in 1..=4 {
        assert!(producer.try_publish_headed([], [&[n; 40]], || ()).unwrap());
        assert!(producer.try_publish_headed([], [&[n; 32]], || ()).unwrap());
        assert_eq!(read(&mut consumer).unwrap().unwrap().first(), Some(&n.div_ceil(2)));
        consumer.release();
        assert!(producer.released().unwrap() < producer.written());
    }
    for _ in 0..4 {
        assert!(read(&mut consumer).unwrap().is_some());
    }
    assert_eq!(consumer.read_since_start(), 4 * (48 + 40));
    // Staged is not drained.
    consumer.release();
    assert!(write(&mut producer, &[8; 40]));
    assert_eq!(producer.released(), Ok(4 * (48 + 40)));
    producer.publish();
    assert_eq!(read(&mut consumer).unwrap().as_deref(), Some(&[8; 40][..]));
    assert_eq!(consumer.read_since_start(), 5 * 48 + 4 * 40);
}

#[test]
fn what_is_to_be_stored_with_a_tail_is_stored_behind_it() {
    let (mut producer, consumer) = ring(64);
    let mut tails = Vec::new();
    // With care, on the runway, and with no room.
    let published = [0, 8, 8, 8, 0, 0].map(|len| {
        producer.try_publish_headed([], [&[1; 8][..len]], || tails.push(consumer.tail())).unwrap()
    });
    assert_eq!(published, [true, true, true, true, true, false]);
    assert_eq!(tails, [8, 24, 40, 56, 64]);
}

#[test]
fn room_is_given_back_in_two_halves() {
    let (mut producer, mut consumer) = ring(64);
    while write(&mut producer, &[1; 8]) {}
    producer.publish();
    assert!(read(&mut consumer).unwrap().is_some());
    assert_eq!(producer.has_room_for(8), Ok(false));
    assert!(consumer.store_released());
    assert_eq!(producer.has_room_for(8), Ok(true));
    consumer.handle_released();
    assert!(!consumer.store_released(), "nothing was read since");
}

#[test]
fn release_is_due_when_a_producer_finds_the_ring_full() {
    for (capacity, longest) in [(64, 8), (256, 56), (1024, 248)] {
        for len in [0, 8, 24, 32, longest - 8, longest] {
            let (mut producer, mut consumer) = ring(capacity);
            for _ in 0..100 {
                let mut held_back = 0;
                while write(&mut producer, &vec![1; len.min(longest)]) {
                    producer.publish();
                    assert!(read(&mut consumer).unwrap().is_some());
                    held_back += 1;
                }
                assert!(consumer.is_release_due(), "{held_back} of {len} bytes in {capacity}");
                assert!(consumer.release());
            }
        }
    }
}

#[test]
fn ring_that_takes_batches_begins_anew_between_them() {
    const CAPACITY: u64 = 1 << 16;
    let (mut producer, mut consumer) = ring(CAPACITY);
    for batch in 0..100u8 {
        for record in 0..5 {
            assert!(write(&mut producer, &[batch, record].repeat(300)));
        }
        producer.publish();
        for record in 0..5 {
            assert_eq!(read(&mut consumer).unwrap(), Some([batch, record].repeat(300)));
        }
        let end = consumer.read_since_start();
        assert!(end <= 16 * 1024 + 5 * 608, "it stays within 16 KiB and a batch: {end}");
        consumer.release();
    }
    assert!(producer.written() > 4 * CAPACITY);
}

#[test]
fn records_of_a_run_arrive_with_those_before_and_behind_them() {
    let (mut producer, mut consumer) = ring(1024);
    assert_eq!(producer.runway(), 0, "nothing is known yet");
    let run = [&[2; 1][..], &[3; 16], &[], &[4; 100]];
    let mut in_runs = 0;
    for lap in 0..100 {
        assert!(write(&mut producer, &[1; 30]));
        let before = producer.runway();
        let bytes: u64 = run.iter().map(|payload| record_bytes(payload.len())).sum();
        if before < bytes {
            // It was written at the ring's end.
            run.iter().for_each(|payload| assert!(write(&mut producer, payload), "lap {lap}"));
        } else {
            write_run(&mut producer, &run);
            assert_eq!(producer.runway(), before - bytes);
            in_runs += 1;
        }
        assert!(write(&mut producer, &[5; 30]));
        producer.publish();
        for payload in [&[1; 30][..]].into_iter().chain(run).chain([&[5; 30][..]]) {
            assert_eq!(read(&mut consumer).unwrap().as_deref(), Some(payload), "lap {lap}");
        }
        consumer.release();
    }
    assert!(in_runs > 50, "{in_runs} of 100 laps had a runway");
}

#[test]
fn there_is_no_runway_behind_records_that_are_combined() {
    let (mut producer, mut consumer) = ring(1024);
    assert!(write(&mut producer, &[1; 8]));
    assert!(producer.runway() > 0);
    assert!(write(&mut producer, &[2; 8]));
    assert_eq!(producer.runway(), 0, "what is combined is not in the ring yet");
    producer.publish();
    for n in [1, 2] {
        assert_eq!(read(&mut consumer).unwrap().as_deref(), Some(&[n; 8][..]));
    }
}

#[test]
#[should_panic(expected = "records take more than the")]
fn a_run_beyond_the_runway_is_the_callers_fault() {
    let (mut producer, _consumer) = ring(1024);
    assert!(write(&mut producer, &[1; 8]));
    let count = producer.runway() / 16 + 1;
    write_run(&mut producer, &vec![&[2; 8][..]; count as usize]);
}

#[test]
fn ring_that_takes_runs_begins_anew_between_them() {
    const CAPACITY: u64 = 1 << 16;
    let (mut producer, mut consumer) = ring(CAPACITY);
    let mut in_runs = 0;
    for batch in 0..200u8 {
        let payload = [batch; 600];
        let mut left = 5;
        while left > 0 {
            let in_run = left.min(producer.runway() / record_bytes(600));
            write_run(&mut producer, &vec![&payload[..]; in_run as usize]);
            in_runs += in_run;
            left -= in_run;
            if left > 0 {
                assert!(write(&mut producer, &payload));
                left -= 1;
            }
        }
        producer.publish();
        for _ in 0..5 {
            assert_eq!(read(&mut consumer).unwrap().as_deref(), Some(&payload[..]));
        }
        let end = consumer.read_since_start();
        assert!(end <= 16 * 1024 + 5 * 608, "it stays within 16 KiB and a batch: {end}");
        consumer.release();
    }
    assert!(producer.written() > 4 * CAPACITY);
    assert!(in_runs > 900, "{in_runs} of 1000 were written in runs");
}

#[test]
fn ring_that_was_begun_anew_can_be_filled_while_what_was_read_is_not_released() {
    let (mut producer, mut consumer) = ring(1024);
    producer.set_hot_bytes(64);
    for _ in 0..2 {
        assert!(write(&mut producer, &[1; 56]));
        producer.publish();
        assert!(read(&mut consumer).unwrap().is_some());
        consumer.release();
    }
    assert!(write(&mut producer, &[2; 56]));
    producer.publish();
    assert!(read(&mut consumer).unwrap().is_some());
    let mut written = 1;
    while write(&mut producer, &[3; 56]) {
        written += 1;
    }
    assert_eq!(written, 1024 / 64, "all of the ring");
    producer.publish();
    for _ in 1..written {
        assert!(read(&mut consumer).unwrap().is_some(), "the tail may be that far ahead");
    }
}

#[test]
fn ring_with_something_to_read_is_not_begun_anew() {
    let (mut producer, mut consumer) = ring(1 << 16);
    assert!(write(&mut producer, &[1; 8]));
    producer.publish();
    for n in 0..40u8 {
        assert!(write(&mut producer, &[n; 500]));
        producer.publish();
    }
    assert!(producer.written() > 20_000);
    assert_eq!(read(&mut consumer).unwrap().as_deref(), Some(&[1; 8][..]));
    for n in 0..40u8 {
        assert_eq!(read(&mut consumer).unwrap().as_deref(), Some(&[n; 500][..]));
    }
}

#[test]
#[should_panic(expected = "a record of 1017 bytes does not fit this ring, whose longest has 1016")]
fn too_long_a_record_is_refused_behind_others_too() {
    let (mut producer, _consumer) = ring(4096);
    for _ in 0..3 {
        assert!(write(&mut producer, &[1; 8]));
    }
    write(&mut producer, &[1; 1017]);
}

#[test]
#[should_panic(expected = "a record of 1017 bytes does not fit this ring, whose longest has 1016")]
fn too_long_a_record_is_refused_behind_a_message_too() {
    let (mut producer, _consumer) = ring(4096);
    assert!(write(&mut producer, &[1; 8]));
    producer.publish();
    write(&mut producer, &[1; 1017]);
}

#[test]
#[should_panic(expected = "a record of 9 bytes does not fit this ring, whose longest has 8")]
fn oversize_record_is_the_callers_fault() {
    let (mut producer, _consumer) = ring(64);
    let _ = write(&mut producer, &[0; 9]);
}

#[test]
#[should_panic(expected = "ring capacity 96 is not a power of two from 64 to 4294967296")]
fn capacity_must_be_a_power_of_two() {
    ring(96);
}

#[test]
fn records_of_random_sizes_arrive_at_a_polling_consumer() {
    let (producer, consumer) = ring(1024);
    arrive_at_a_polling_consumer(producer, consumer, 1024);
}

#[test]
fn records_of_random_sizes_arrive_from_a_ring_that_begins_anew_all_the_time() {
    let (mut producer, consumer) = ring(1024);
    producer.set_hot_bytes(64);
    arrive_at_a_polling_consumer(producer, consumer, 1024);
}

#[test]
fn records_of_random_sizes_arrive_when_both_sides_sleep() {
    // A ring of a few records, so that both sides have to wait all the time.
    let (producer, consumer) = ring_at(128, 0u64.wrapping_sub(1 << 16));
    arrive_when_both_sides_sleep(producer, consumer, 128);
}

/// A memory whose lines can be evicted, and which were.
struct Evictable {
    memory: HeapMemory,
    evicted: Arc<Mutex<Vec<usize>>>,
}

impl Memory for Evictable {
    fn load_peer(&self, word: Word) -> u64 {
        self.memory.load_peer(word)
    }

    fn store_own(&self, word: Word, value: u64, order: Ordering) {
        self.memory.store_own(word, value, order);
    }

    fn fence(&self, order: Ordering) {
        self.memory.fence(order);
    }
}

impl ConsumerMemory for Evictable {
    fn copy_out(&self, offset: usize, into: &mut [u8]) {
        self.memory.copy_out(offset, into);
    }

    fn can_evict(&self) -> bool {
        true
    }

    fn evict(&self, offset: usize) {
        self.evicted.lock().unwrap().push(offset);
    }
}

#[test]
fn lines_that_were_read_are_evicted_but_for_those_at_the_start() {
    const CAPACITY: u64 = 1 << 16;
    const HOT_BYTES: usize = 16384;
    let (memory, of_consumer) = HeapMemory::pair(CAPACITY, 0);
    let mut producer = Producer::new(memory, CAPACITY);
    let evicted = Arc::new(Mutex::new(Vec::new()));
    let mut consumer = Consumer::new(Evictable { memory: of_consumer, evicted: evicted.clone() }, CAPACITY);
    assert!(consumer.decide_to_evict());
    for lap in 0..3 {
        for record in 0..2 {
            // The first of a lap lies at the start, as the ring was empty and begins anew.
            assert!(write(&mut producer, &[7; 10_000]));
            producer.publish();
            assert_eq!(read(&mut consumer), Ok(Some(vec![7; 10_000])));
            consumer.release_at(Instant::now);
            let end = (record + 1) * 10_008;
            let expected: Vec<usize> =
                (HOT_BYTES.max(record * 10_008 / 64 * 64)..end / 64 * 64).step_by(64).collect();
            let found = std::mem::take(&mut *evicted.lock().unwrap());
            assert_eq!(found, expected, "record {record} of lap {lap}");
        }
    }
}

pub(crate) fn arrive_at_a_polling_consumer(
    mut producer: Producer<impl ProducerMemory + Send + 'static>,
    mut consumer: Consumer<impl ConsumerMemory>,
    capacity: u64,
) {
    const SEED: u64 = 0x5EED;
    const RECORDS: u64 = 100_000;

    let writer = thread::spawn(move || {
        let mut random = Random::new(SEED);
        for _ in 0..RECORDS {
            let payload = random_payload(&mut random, producer.max_payload());
            if payload.len() % 3 == 1 {
                while !producer.try_publish_headed([], [&payload], || ()).unwrap() {
                    producer.publish();
                    thread::yield_now();
                }
            } else if record_bytes(payload.len()) <= producer.runway() && payload.len().is_multiple_of(3) {
                write_run(&mut producer, &[&payload]);
            } else {
                while !write(&mut producer, &payload) {
                    producer.publish();
                    thread::yield_now();
                }
            }
            if random.below(4) == 0 {
                producer.publish();
            }
        }
        producer.publish();
    });

    let _show = ShowSeed(SEED);
    let mut random = Random::new(SEED);
    let mut scratch = Vec::new();
    for index in 0..RECORDS {
        let expected = random_payload(&mut random, max_payload_bytes(capacity));
        random.below(4);
        loop {
            if let Some(record) = consumer.try_read(&mut scratch).unwrap() {
                assert_eq!(record, expected, "record {index}");
                break;
            }
            consumer.release();
            thread::yield_now();
        }
        if index % 7 == 0 {
            consumer.release();
        }
    }
    writer.join().unwrap();
    assert_eq!(read(&mut consumer), Ok(None));
}

/// The ring must have some cold bytes.
pub(crate) fn arrive_at_a_consumer_that_evicts(
    mut producer: Producer<impl ProducerMemory + Send + 'static>,
    mut consumer: Consumer<impl ConsumerMemory>,
) {
    const SEED: u64 = 0xE71C;
    const RECORDS: u64 = 50_000;
    const LONGEST: usize = 300;

    let writer = thread::spawn(move || {
        let mut random = Random::new(SEED);
        for _ in 0..RECORDS {
            let payload = random_payload(&mut random, LONGEST);
            while !write(&mut producer, &payload) {
                thread::yield_now();
            }
            producer.publish();
        }
    });

    let _show = ShowSeed(SEED);
    let mut random = Random::new(SEED);
    let mut scratch = Vec::new();
    let mut evictions = 0;
    for index in 0..RECORDS {
        let expected = random_payload(&mut random, LONGEST);
        loop {
            if let Some(record) = consumer.try_read(&mut scratch).unwrap() {
                assert_eq!(record, expected, "record {index}");
                break;
            }
            thread::yield_now();
        }
        // In the middle of what the producer is about.
        let before = consumer.evicted_lines();
        consumer.release_at(Instant::now);
        evictions += u32::from(consumer.evicted_lines() > before);
    }
    writer.join().unwrap();
    assert_eq!(read(&mut consumer), Ok(None));
    assert!(evictions > 100, "lines were evicted {evictions} times only");
}

pub(crate) fn arrive_when_both_sides_sleep(
    mut producer: Producer<impl ProducerMemory + Send + 'static>,
    mut consumer: Consumer<impl ConsumerMemory>,
    capacity: u64,
) {
    const SEED: u64 = 0xBED;
    const RECORDS: u64 = 30_000;
    let (of_producer, of_consumer) = Doorbells::pair();

    let writer = thread::spawn(move || {
        let mut random = Random::new(SEED);
        for _ in 0..RECORDS {
            let payload = random_payload(&mut random, producer.max_payload());
            while !write(&mut producer, &payload) {
                producer.start_waiting();
                if !producer.has_room_for(payload.len()).unwrap() {
                    of_producer.wait();
                }
                producer.stop_waiting();
            }
            producer.publish();
            if producer.consumer_must_be_rung() {
                of_producer.ring();
            }
        }
    });

    let _show = ShowSeed(SEED);
    let mut random = Random::new(SEED);
    let mut scratch = Vec::new();
    for index in 0..RECORDS {
        let expected = random_payload(&mut random, max_payload_bytes(capacity));
        loop {
            if let Some(record) = consumer.try_read(&mut scratch).unwrap() {
                assert_eq!(record, expected, "record {index}");
                break;
            }
            consumer.start_waiting();
            if consumer.is_empty().unwrap() {
                of_consumer.wait();
            }
            consumer.stop_waiting();
        }
        consumer.release();
        if consumer.producer_must_be_rung() {
            of_consumer.ring();
        }
    }
    writer.join().unwrap();
}

/// What one side sleeps on, and what it wakes the other with: those of a link.
struct Doorbells {
    own: Bell,
    peers: Ringer,
}

impl Doorbells {
    /// Both sides'.
    fn pair() -> (Self, Self) {
        let (first, rings_first) = Bell::new().unwrap();
        let (second, rings_second) = Bell::new().unwrap();
        let peers = |passed| Ringer::from_fd(passed).unwrap();
        (Self { own: first, peers: peers(rings_second) }, Self { own: second, peers: peers(rings_first) })
    }

    /// Sleeps until this side is rung.
    ///
    /// # Panics
    ///
    /// After half a minute, which for these tests is for ever: the wake-up was lost.
    fn wait(&self) {
        let mut set = PollSet::new();
        let own = set.watch(self.own.as_fd(), Interest::Read);
        set.wait(Some(Instant::now() + Duration::from_secs(30))).unwrap();
        assert!(set.ready(own).readable, "lost wake-up: nobody rang");
        self.own.clear().unwrap();
    }

    /// Wakes the other.
    fn ring(&self) {
        self.peers.ring().unwrap();
    }
}

fn write(producer: &mut Producer<impl ProducerMemory>, payload: &[u8]) -> bool {
    producer.try_write([payload]).unwrap()
}

fn write_run(producer: &mut Producer<impl ProducerMemory>, payloads: &[&[u8]]) {
    producer.write_run(payloads.iter().map(|payload| ([], [*payload])));
}

fn read(consumer: &mut Consumer<impl ConsumerMemory>) -> Result<Option<Vec<u8>>, RingError> {
    let mut scratch = Vec::new();
    Ok(consumer.try_read(&mut scratch)?.map(<[u8]>::to_vec))
}

fn random_payload(random: &mut Random, at_most: usize) -> Vec<u8> {
    let len = random.below(at_most as u64 + 1) as usize;
    (0..len).map(|_| random.next() as u8).collect()
}

/// A seeded source of numbers: a Weyl sequence, mixed by multiplications and shifts.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        mixed ^ (mixed >> 32)
    }

    /// A number below `bound`, near enough to evenly.
    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

/// Prints the seed if the test fails while this is alive.
struct ShowSeed(u64);

impl Drop for ShowSeed {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("seed {}", self.0);
        }
    }
}
