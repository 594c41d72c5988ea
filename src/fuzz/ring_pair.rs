//! Both ends of a ring, which keep the rules, beside a queue of what was written.
//!
//! An input says how large the ring is and where it begins; then what either end does.

use std::collections::VecDeque;

use super::hostile_memory::record_bytes;
use super::{Choices, Saw};
use crate::ring::heap::{HeapMemory, ring_at};
use crate::ring::{Consumer, Producer};

const MAX_STEPS: usize = 1024;

struct Pair {
    capacity: u64,
    producer: Producer<HeapMemory>,
    consumer: Consumer<HeapMemory>,
    /// Records that were written and not read, those that are not published last.
    unread: VecDeque<Vec<u8>>,
    published: usize,
    /// Where the ring began at first.
    begin: u64,
    /// What was read and not released takes up, and what is unread.
    unreleased_bytes: u64,
    unread_bytes: u64,
    /// An end sleeps, and was not rung since it went to sleep.
    consumer_sleeps: bool,
    producer_sleeps: bool,
    /// Of the payloads.
    next: u8,
    scratch: Vec<u8>,
}

pub(super) fn run(input: &[u8], saw: Saw<'_>) {
    let mut choices = Choices::new(input);
    let capacity = 64 << choices.below(6);
    let begin = choices.begin();
    let (mut producer, consumer) = ring_at(capacity, begin);
    producer.set_hot_bytes(64 << choices.below(4));
    let mut pair = Pair {
        capacity,
        begin,
        producer,
        consumer,
        unread: VecDeque::new(),
        published: 0,
        unreleased_bytes: 0,
        unread_bytes: 0,
        consumer_sleeps: false,
        producer_sleeps: false,
        next: 0,
        scratch: Vec::new(),
    };
    let mut steps = 0;
    while !choices.is_used_up() && steps < MAX_STEPS {
        steps += 1;
        match choices.byte() % 16 {
            0..=4 => pair.write(choices.below(capacity / 4 - 7) as usize, saw),
            5 => {
                let lengths: Vec<usize> =
                    (0..=choices.below(4)).map(|_| choices.below(64) as usize).collect();
                pair.write_run(&lengths, saw);
            }
            6 | 7 => pair.publish(saw),
            8..=11 => pair.read(saw),
            12 => pair.release(saw),
            13 => pair.look(saw),
            14 => pair.consumer_sleeps(saw),
            _ => pair.producer_sleeps(saw),
        }
    }
    pair.publish(saw);
    while !pair.unread.is_empty() {
        pair.read(saw);
    }
    pair.read(saw);
    pair.release(saw);
    assert_eq!(pair.producer.released(), Ok(pair.producer.written()), "nothing is left");
}

impl Pair {
    fn write(&mut self, len: usize, saw: Saw<'_>) {
        let payload = self.payload(len);
        let (one, other) = payload.split_at(len / 2);
        let before = self.producer.written();
        let held = self.unreleased_bytes + self.unread_bytes;
        if self.producer.try_write([one, other]) == Ok(true) {
            assert!(held + record_bytes(len) <= self.capacity, "{held} bytes and {len} fit");
            self.unread_bytes += record_bytes(len);
            self.unread.push_back(payload);
            let advance = self.producer.written().wrapping_sub(before);
            saw(if advance > record_bytes(len) { "written behind a gap" } else { "written" });
        } else {
            // Twice there is something that is no record: before the ring's end, and before that of the record itself.
            assert!(
                held + record_bytes(len) + self.capacity / 4 > self.capacity,
                "{held} and {len} do not fit"
            );
            assert_eq!(self.producer.written(), before);
            saw("full");
        }
    }

    /// As many of these as there is a runway for.
    fn write_run(&mut self, lengths: &[usize], saw: Saw<'_>) {
        let (mut payloads, mut left) = (Vec::new(), self.producer.runway());
        let held = self.unreleased_bytes + self.unread_bytes;
        assert!(held + left <= self.capacity, "a runway of {left} bytes beside {held}");
        for &len in lengths {
            if record_bytes(len) > left {
                break;
            }
            left -= record_bytes(len);
            payloads.push(self.payload(len));
        }
        self.producer.write_run(payloads.iter().map(|payload| ([], [&payload[..]])));
        assert_eq!(self.producer.runway(), left);
        self.unread_bytes += payloads.iter().map(|payload| record_bytes(payload.len())).sum::<u64>();
        saw(if payloads.len() > 1 { "a run written" } else { "no runway, or not for two" });
        self.unread.extend(payloads);
    }

    /// The producer sees what was released, and begins anew if that is all.
    fn look(&mut self, saw: Saw<'_>) {
        self.producer.released().expect("a consumer that keeps the rules");
        if self.unread_bytes == 0 && self.unreleased_bytes == 0 {
            let from_start = self.producer.runway() == self.capacity / 4;
            assert!(from_start || self.producer.written() == self.begin, "it is begun anew");
            saw("looked, drained");
        }
    }

    fn payload(&mut self, len: usize) -> Vec<u8> {
        let payload = (0..len).map(|at| self.next.wrapping_add(at as u8)).collect();
        self.next = self.next.wrapping_add(1);
        payload
    }

    fn publish(&mut self, saw: Saw<'_>) {
        let is_new = self.published < self.unread.len();
        assert_eq!(self.producer.publish(), is_new);
        self.published = self.unread.len();
        let rings = self.producer.consumer_must_be_rung();
        assert_eq!(rings, std::mem::take(&mut self.consumer_sleeps), "each sleep is rung once");
        // It wakes up at some time: until then it is not to be rung again.
        if rings {
            saw("consumer rung");
        }
    }

    fn read(&mut self, saw: Saw<'_>) {
        let record = self.consumer.try_read(&mut self.scratch).expect("a producer that keeps the rules");
        let expected = if self.published > 0 { self.unread.pop_front() } else { None };
        assert_eq!(record, expected.as_deref());
        let Some(record) = expected else { return saw("nothing") };
        self.published -= 1;
        self.unread_bytes -= record_bytes(record.len());
        self.unreleased_bytes += record_bytes(record.len());
        saw("read");
    }

    fn release(&mut self, saw: Saw<'_>) {
        assert_eq!(self.consumer.release(), self.unreleased_bytes > 0);
        self.unreleased_bytes = 0;
        let rings = self.consumer.producer_must_be_rung();
        assert_eq!(rings, std::mem::take(&mut self.producer_sleeps), "each sleep is rung once");
        if rings {
            saw("producer rung");
        }
    }

    fn consumer_sleeps(&mut self, saw: Saw<'_>) {
        // Whoever has read nothing since has nothing to release.
        if self.unreleased_bytes > 0 {
            self.release(saw);
        }
        self.consumer.start_waiting();
        self.consumer_sleeps = true;
        assert_eq!(self.consumer.is_empty(), Ok(self.published == 0));
        if self.published > 0 {
            self.consumer.stop_waiting();
            self.consumer_sleeps = false;
        }
    }

    fn producer_sleeps(&mut self, saw: Saw<'_>) {
        self.publish(saw);
        self.producer.start_waiting();
        self.producer_sleeps = true;
        let longest = self.producer.max_payload();
        if self.producer.has_room_for(longest) == Ok(true) {
            self.producer.stop_waiting();
            self.producer_sleeps = false;
        }
    }
}
