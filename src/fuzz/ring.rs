//! One end of a ring over memory that belongs to a hostile peer.
//!
//! An input says which end, how large the ring is and where it begins; then what is called, and what each word and header is
//! when it is looked at.

use std::collections::VecDeque;

use super::hostile_memory::{Call, HEADER, Header, HostileMemory, PADDING, RECORD, record_bytes};
use super::{Choices, Saw};
use crate::ring::{Consumer, Producer, RingError, max_payload_bytes};

/// Calls of one run.
const MAX_CALLS: usize = 512;
/// A read looks at the cursor and the start, with a fence between, at two headers and one payload.
const MAX_READ_ACCESSES: u64 = 6;
/// As few words as an ack has are read one by one, and never behind padding.
const WORDS: usize = 3;
const MAX_READ_ACCESSES_OF_WORDS: u64 = 4 + WORDS as u64;
/// A write looks at the cursor, with a fence, when it may begin anew and when there is no room; it writes two headers and one
/// payload. One that is behind others does not begin anew, but may write what was combined.
const MAX_WRITE_ACCESSES: u64 = 7;

pub(super) fn run(input: &[u8], saw: Saw<'_>) {
    let mut choices = Choices::new(input);
    let is_consumer = choices.byte().is_multiple_of(2);
    let capacity = 64 << choices.below(6);
    let begin = choices.begin();
    let memory = HostileMemory::new(choices, capacity, begin);
    if is_consumer { consume(&memory, begin, saw) } else { produce(&memory, begin, saw) }
}

/// What is known of the ring that a consumer reads.
struct Readable {
    capacity: u64,
    /// Where the next record is.
    position: u64,
    /// The newest tail that was taken for one.
    tail: u64,
    released: u64,
    /// The position whose place is the ring's first.
    start: u64,
}

fn consume(memory: &HostileMemory<'_>, begin: u64, saw: Saw<'_>) {
    let capacity = memory.capacity;
    let mut consumer = Consumer::at(memory.clone(), capacity, begin);
    let start = begin - begin % capacity;
    let mut ring = Readable { capacity, position: begin, tail: begin, released: begin, start };
    let mut scratch = Vec::new();
    for _ in 0..MAX_CALLS {
        if memory.choose(|choices| choices.is_used_up()) {
            break;
        }
        if memory.choose(|choices| choices.one_in(3)) {
            ring.read_words(&mut consumer, memory, saw);
        }
        memory.begin_call(ring.position);
        let outcome = consumer.try_read(&mut scratch).map(|record| record.map(<[u8]>::len));
        let call = memory.end_call();
        assert!(call.accesses <= MAX_READ_ACCESSES, "{} accesses in one call", call.accesses);
        assert!(scratch.len() <= max_payload_bytes(capacity), "{} bytes of scratch", scratch.len());
        ring.handle_cursors(&call, outcome.err(), saw);
        match outcome {
            Ok(Some(len)) => ring.handle_record(&call, len, saw),
            Ok(None) => {
                assert!(call.headers.is_empty() && ring.position == ring.tail, "there is something");
                saw("nothing");
            }
            Err(error) => saw(ring.handle_error(&call, error)),
        }
        assert_eq!(consumer.read_position(), ring.position);

        match memory.choose(|choices| choices.byte() % 8) {
            0..=3 => ring.release(&mut consumer, memory),
            4 => {
                // Whoever has read nothing since has nothing to release.
                if ring.released != ring.position {
                    ring.release(&mut consumer, memory);
                }
                consumer.start_waiting();
                memory.begin_call(ring.position);
                let outcome = consumer.is_empty();
                ring.handle_cursors(&memory.end_call(), outcome.err(), saw);
                assert!(outcome.is_err() || outcome == Ok(ring.position == ring.tail));
                consumer.stop_waiting();
            }
            _ => {}
        }
    }
}

impl Readable {
    /// Reads a record of so many words, if that is what comes next; else all stays as it is.
    fn read_words(
        &mut self,
        consumer: &mut Consumer<HostileMemory<'_>>,
        memory: &HostileMemory<'_>,
        saw: Saw<'_>,
    ) {
        memory.begin_call(self.position);
        let outcome = consumer.try_read_words::<WORDS>();
        let call = memory.end_call();
        assert!(call.accesses <= MAX_READ_ACCESSES_OF_WORDS, "{} accesses in one call", call.accesses);
        self.handle_cursors(&call, outcome.err(), saw);
        match outcome {
            Ok(Some(_)) => {
                assert_eq!(call.headers.len(), 1);
                self.handle_record(&call, 8 * WORDS, saw);
                saw("words");
            }
            Ok(None) => {
                let is_other = |header: &Header| (header.kind, header.length as usize) != (RECORD, 8 * WORDS);
                assert!(call.headers.len() <= 1 && call.headers.iter().all(is_other), "{:?}", call.headers);
                assert_eq!(call.payload, None);
            }
            Err(error) => saw(self.handle_error(&call, error)),
        }
        assert_eq!(consumer.read_position(), self.position);
    }

    fn release(&mut self, consumer: &mut Consumer<HostileMemory<'_>>, memory: &HostileMemory<'_>) {
        let is_new = self.released != self.position;
        assert_eq!(consumer.release(), is_new);
        if is_new {
            self.released = self.position;
            assert_eq!(memory.stored().0, self.position);
        }
        consumer.producer_must_be_rung();
    }

    fn place(&self) -> u64 {
        self.position.wrapping_sub(self.start) % self.capacity
    }

    fn to_end(&self) -> u64 {
        self.capacity - self.place()
    }

    /// The call has looked at the peer's words: what can it have believed?
    fn handle_cursors(&mut self, call: &Call, error: Option<RingError>, saw: Saw<'_>) {
        let [cursor] = call.cursors[..] else {
            return assert!(call.cursors.is_empty() && call.start.is_none(), "one look is enough");
        };
        assert_eq!(self.position, self.tail, "a cursor is looked at when there is nothing to read");
        if let Some(RingError::TailOutOfRange { .. } | RingError::TailUnaligned { .. }) = error {
            return assert_eq!(call.start, None, "nothing is begun anew for a tail that is none");
        }
        assert_eq!(call.start.is_some(), cursor != self.tail, "the start is looked at with each new tail");
        if let Some(RingError::StartOutOfPlace { .. }) = error {
            return;
        }
        assert!(cursor.is_multiple_of(8), "a record cannot end there");
        let (ahead, held) = (cursor.wrapping_sub(self.position), cursor.wrapping_sub(self.released));
        assert!(ahead <= held && held <= self.capacity, "{ahead} of {held} bytes");
        if let Some(start) = call.start
            && start != self.start
        {
            assert_eq!([start; 2], [self.position, self.released], "all was released");
            self.start = start;
            saw("begun anew");
        }
        self.tail = cursor;
    }

    fn handle_record(&mut self, call: &Call, len: usize, saw: Saw<'_>) {
        let header = match call.headers[..] {
            [header] => header,
            [padding, header] => {
                self.check_offset(padding);
                assert_eq!((padding.kind, record_bytes(padding.length as usize)), (PADDING, self.to_end()));
                self.position = self.position.wrapping_add(self.to_end());
                saw("record behind padding");
                header
            }
            _ => panic!("a record behind {} headers", call.headers.len()),
        };
        self.check_offset(header);
        assert_eq!((header.kind, header.length as usize), (RECORD, len));
        // whole words
        assert_eq!(call.payload, Some((header.offset + HEADER as usize, len.next_multiple_of(8))));
        assert!(len <= max_payload_bytes(self.capacity) && record_bytes(len) <= self.to_end());
        let available = self.tail.wrapping_sub(self.position);
        assert!(record_bytes(len) <= available, "a record of {len} bytes in {available}");
        self.position = self.position.wrapping_add(record_bytes(len));
        saw("record");
    }

    fn check_offset(&self, header: Header) {
        assert_eq!(header.offset as u64, self.place());
    }

    /// Whether an error says what is the case; answers which one it is.
    fn handle_error(&mut self, call: &Call, error: RingError) -> &'static str {
        assert!(error.to_string().contains("expected") && call.payload.is_none(), "{error}");
        if let [padding, _] = call.headers[..] {
            assert_eq!((padding.kind, record_bytes(padding.length as usize)), (PADDING, self.to_end()));
            self.position = self.position.wrapping_add(self.to_end());
        } else if let RingError::PaddingAlone { .. } = error {
            self.position = self.position.wrapping_add(self.to_end());
        }
        let available = self.tail.wrapping_sub(self.position);
        let header = call.headers.last().copied();
        let is_header =
            |position: u64, is: &dyn Fn(Header) -> bool| position == self.position && header.is_some_and(is);
        let is_long = |bytes: u64| move |header: Header| record_bytes(header.length as usize) == bytes;
        match error {
            RingError::TailOutOfRange { found, at_least, at_most } => {
                assert_eq!(call.cursors, [found]);
                assert_eq!([at_least, at_most], [self.position, self.released.wrapping_add(self.capacity)]);
                assert!(found.wrapping_sub(at_least) > at_most.wrapping_sub(at_least), "{error}");
                "tail out of range"
            }
            RingError::TailUnaligned { found } => {
                assert!(call.cursors == [found] && found % 8 != 0, "{error}");
                "tail unaligned"
            }
            RingError::StartOutOfPlace { found, position, released } => {
                assert_eq!(call.start, Some(found));
                assert_eq!([position, released], [self.position, self.released]);
                assert!(found != self.start && (found != position || found != released), "{error}");
                "start out of place"
            }
            RingError::UnknownKind { position, found } => {
                assert!(is_header(position, &|header| header.kind == found), "{error}");
                assert!(found != RECORD && (found != PADDING || call.headers.len() == 2), "{error}");
                "unknown kind"
            }
            RingError::RecordTooLong { position, found, at_most } => {
                assert!(is_header(position, &|header| header.length == found), "{error}");
                assert_eq!(at_most, max_payload_bytes(self.capacity));
                assert!(found as usize > at_most, "{error}");
                "record too long"
            }
            RingError::RecordBeyondTail { position, found, available: stated } => {
                assert!(is_header(position, &is_long(found)), "{error}");
                assert!(stated == available && found > available, "{error}");
                "record beyond the tail"
            }
            RingError::RecordBeyondEnd { position, found, to_end } => {
                assert!(is_header(position, &is_long(found)), "{error}");
                assert!(to_end == self.to_end() && found > to_end, "{error}");
                "record beyond the end"
            }
            RingError::PaddingShort { position, found, to_end } => {
                assert!(is_header(position, &|header| header.kind == PADDING), "{error}");
                assert!(is_header(position, &is_long(found)), "{error}");
                assert!(to_end == self.to_end() && found != to_end, "{error}");
                "padding too short"
            }
            RingError::PaddingAlone { position } => {
                assert!(position == self.position && available == 0, "{error}");
                "padding alone"
            }
            _ => panic!("{error} is no error of a consumer"),
        }
    }
}

/// What is known of the ring that a producer writes.
struct Writable {
    capacity: u64,
    written: u64,
    published: u64,
    /// The newest head that was taken for one.
    head: u64,
    /// The position whose place is the ring's first.
    start: u64,
    /// What was taken and is not in the ring yet: the producer combines it.
    missing: VecDeque<Missing>,
}

fn produce(memory: &HostileMemory<'_>, begin: u64, saw: Saw<'_>) {
    let capacity = memory.capacity;
    let mut producer = Producer::at(memory.clone(), capacity, begin);
    // Else a ring as small as these is never begun anew.
    producer.set_hot_bytes(64 << memory.choose(|choices| choices.below(2)));
    let mut ring = Writable {
        capacity,
        written: begin,
        published: begin,
        head: begin,
        start: begin - begin % capacity,
        missing: VecDeque::new(),
    };
    let payload = vec![7; producer.max_payload()];
    for _ in 0..MAX_CALLS {
        if memory.choose(|choices| choices.is_used_up()) {
            break;
        }
        let len = memory.choose(|choices| choices.below(payload.len() as u64 + 1)) as usize;
        let in_run = record_bytes(len) <= producer.runway() && memory.choose(|choices| choices.one_in(2));
        let at_once = !in_run && memory.choose(|choices| choices.one_in(3));
        ring.begin_call(memory);
        let outcome = if in_run {
            saw("written in a run");
            producer.write_run(std::iter::once(([], [&payload[..len]])));
            Ok(true)
        } else if at_once {
            producer.try_publish_headed([], [&payload[..len]], || ())
        } else {
            producer.try_write([&payload[..len]])
        };
        let call = memory.end_call();
        assert!(call.accesses <= MAX_WRITE_ACCESSES, "{} accesses in one call", call.accesses);
        ring.handle_head(&call, outcome.err(), saw);
        match outcome {
            Ok(true) => {
                ring.handle_written(len, saw);
                ring.handle_writes(&call);
                saw(if ring.missing.is_empty() { "written at once" } else { "to be written later" });
                if at_once {
                    ring.handle_published(&Call::default());
                    saw("published at once");
                }
            }
            Ok(false) | Err(_) => assert!(call.written.is_empty(), "{:?}", call.written),
        }
        if outcome == Ok(false) {
            // Padding and record did not fit, and padding is shorter than the longest record.
            let held = ring.written.wrapping_sub(ring.head);
            assert!(
                held + record_bytes(len) + capacity / 4 > capacity,
                "{held} bytes and {len} are no ring full"
            );
            saw("full");
        }
        assert_eq!(producer.written(), ring.written);

        let action = memory.choose(|choices| choices.byte() % 8);
        ring.begin_call(memory);
        match action {
            0..=2 => {
                assert_eq!(producer.publish(), ring.published != ring.written);
                ring.handle_published(&memory.end_call());
                producer.consumer_must_be_rung();
            }
            3 => {
                let outcome = producer.released();
                ring.handle_head(&memory.end_call(), outcome.err(), saw);
                assert!(outcome.is_err() || outcome == Ok(ring.head));
            }
            4 => {
                producer.publish();
                ring.handle_published(&memory.end_call());
                producer.start_waiting();
                let outcome = producer.has_room_for(len);
                ring.handle_head(&memory.end_call(), outcome.err(), saw);
                producer.stop_waiting();
            }
            _ => {}
        }
        memory.end_call();
        assert_eq!(producer.staged_bytes(), ring.written.wrapping_sub(ring.published));
        assert_eq!(memory.stored().0, ring.published);
        if ring.published != ring.start {
            assert_eq!(memory.stored().1, ring.start, "the consumer knows where the ring begins");
        }
    }
}

impl Writable {
    /// Heads are plausible about where the consumer can be: from the last one to what is published.
    fn begin_call(&self, memory: &HostileMemory<'_>) {
        let between = self.published.wrapping_sub(self.head) / 8;
        let near = self.head.wrapping_add(8 * memory.choose(|choices| choices.below(between + 1)));
        memory.begin_call(near);
    }

    /// The call has looked at the peer's cursor: is it one?
    fn handle_head(&mut self, call: &Call, error: Option<RingError>, saw: Saw<'_>) {
        assert!(call.start.is_none(), "a consumer begins nothing");
        let taken = call.cursors.len() - usize::from(error.is_some());
        for cursor in &call.cursors[..taken] {
            let ahead = cursor.wrapping_sub(self.head);
            assert!(ahead <= self.published.wrapping_sub(self.head) && cursor.is_multiple_of(8));
            self.head = *cursor;
            if self.head == self.written && self.head != self.start {
                self.start = self.head;
                saw("begun anew");
            }
        }
        saw(match error {
            None => "head, or no look at it",
            Some(RingError::HeadOutOfRange { found, at_least, at_most }) => {
                assert_eq!(call.cursors.last(), Some(&found));
                assert_eq!([at_least, at_most], [self.head, self.published]);
                assert!(found.wrapping_sub(at_least) > at_most.wrapping_sub(at_least));
                "head out of range"
            }
            Some(RingError::HeadUnaligned { found }) => {
                assert_eq!(call.cursors.last(), Some(&found));
                assert!(!found.is_multiple_of(8));
                "head unaligned"
            }
            Some(error) => panic!("{error} is no error of a producer"),
        });
    }

    fn place(&self) -> u64 {
        self.written.wrapping_sub(self.start) % self.capacity
    }

    fn handle_written(&mut self, len: usize, saw: Saw<'_>) {
        let to_end = self.capacity - self.place();
        if record_bytes(len) > to_end {
            let offset = self.place() as usize;
            let end = offset + HEADER as usize;
            self.missing.push_back(Missing { offset, end, at_most: end });
            self.written = self.written.wrapping_add(to_end);
            saw("padding written");
        }
        let offset = self.place() as usize;
        let (end, at_most) = (offset + HEADER as usize + len, offset + record_bytes(len) as usize);
        self.missing.push_back(Missing { offset, end, at_most });
        self.written = self.written.wrapping_add(record_bytes(len));
        let held = self.written.wrapping_sub(self.head);
        assert!(held <= self.capacity, "{held} bytes in a ring of {}", self.capacity);
    }

    /// A call has written into the ring: only what is missing, in its order.
    fn handle_writes(&mut self, call: &Call) {
        for &(mut from, to) in &call.written {
            while from < to {
                let missing = self.missing.front_mut().expect("nothing was missing");
                assert!(
                    from == missing.offset && (to <= missing.end || to >= missing.at_most),
                    "{from}..{to}"
                );
                missing.offset = to;
                from = to.min(missing.at_most);
                if to >= missing.end {
                    self.missing.pop_front();
                }
            }
        }
    }

    /// All is published, so all is written.
    fn handle_published(&mut self, call: &Call) {
        self.handle_writes(call);
        assert!(self.missing.is_empty(), "published, and not written");
        self.published = self.written;
    }
}

/// A record, or the header of padding, that is not all in the ring yet.
struct Missing {
    /// Where the rest of it begins.
    offset: usize,
    end: usize,
    /// It may be written with what fills its last word.
    at_most: usize,
}
