//! A ring's memory whose every word and byte is made up by the input when it is looked at.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use super::Choices;
use crate::ring::{ConsumerMemory, Memory, ProducerMemory, Word, max_payload_bytes};

/// The bytes and kinds of a record's header, after the ring's picture.
pub(super) const HEADER: u64 = 8;
pub(super) const RECORD: u32 = 1;
pub(super) const PADDING: u32 = 2;

/// What a record takes up in the ring.
pub(super) fn record_bytes(payload: usize) -> u64 {
    HEADER + (payload as u64).next_multiple_of(8)
}

/// One end's view. Clones are the same memory.
#[derive(Debug, Clone)]
pub(super) struct HostileMemory<'a> {
    pub(super) capacity: u64,
    state: Rc<RefCell<State<'a>>>,
}

#[derive(Debug)]
struct State<'a> {
    choices: Choices<'a>,
    /// A position that plausible garbage stays close to.
    near: u64,
    call: Call,
    /// What this end stored last, or of a consumer's start, what it was given last.
    cursor: u64,
    start: u64,
}

/// What one call of this end has looked at and was given.
#[derive(Debug, Clone, Default)]
pub(super) struct Call {
    /// Words, headers, payloads and fences.
    pub(super) accesses: u64,
    pub(super) cursors: Vec<u64>,
    pub(super) start: Option<u64>,
    pub(super) headers: Vec<Header>,
    /// Where a payload was read, in one piece or several, how long.
    pub(super) payload: Option<(usize, usize)>,
    /// Where this end wrote: from and to.
    pub(super) written: Vec<(usize, usize)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) offset: usize,
    pub(super) length: u32,
    pub(super) kind: u32,
}

impl<'a> HostileMemory<'a> {
    /// Of a ring that begins at `position`.
    pub(super) fn new(choices: Choices<'a>, capacity: u64, position: u64) -> HostileMemory<'a> {
        let (call, near, cursor, start) =
            (Call::default(), position, position, position - position % capacity);
        let state = State { choices, near, call, cursor, start };
        HostileMemory { capacity, state: Rc::new(RefCell::new(state)) }
    }

    pub(super) fn choose<T>(&self, choose: impl FnOnce(&mut Choices<'a>) -> T) -> T {
        choose(&mut self.state.borrow_mut().choices)
    }

    /// Before each call of the end that is tested.
    pub(super) fn begin_call(&self, near: u64) {
        let mut state = self.state.borrow_mut();
        state.near = near;
        state.call = Call::default();
    }

    /// After it.
    pub(super) fn end_call(&self) -> Call {
        std::mem::take(&mut self.state.borrow_mut().call)
    }

    /// Where this end last said that it is, and where it began anew.
    pub(super) fn stored(&self) -> (u64, u64) {
        let state = self.state.borrow();
        (state.cursor, state.start)
    }

    fn note<T>(&self, note: impl FnOnce(&mut Call) -> T) -> T {
        let call = &mut self.state.borrow_mut().call;
        call.accesses += 1;
        note(call)
    }

    /// Mostly almost right, so that the checks behind the first one are reached too.
    fn make_up_position(&self) -> u64 {
        let near = self.state.borrow().near;
        let ring = 2 * self.capacity;
        self.choose(|choices| match choices.byte() % 16 {
            0 => choices.number(8),
            1 => near.wrapping_sub(choices.below(self.capacity)),
            2 => near.wrapping_add(choices.below(ring)),
            3..=6 => near.wrapping_add(self.capacity),
            7 | 8 => near,
            _ => near.wrapping_add(8 * choices.below(self.capacity / 8 + 1)),
        })
    }

    /// The start before, or where this end is, mostly.
    fn make_up_start(&self) -> u64 {
        let (near, before) = (self.state.borrow().near, self.state.borrow().start);
        let start = self.choose(|choices| match choices.byte() % 16 {
            0 => choices.number(8),
            1 => near.wrapping_add(8 * choices.below(self.capacity / 8)),
            2..=6 => near,
            _ => before,
        });
        self.state.borrow_mut().start = start;
        start
    }

    fn make_up_header(&self, offset: usize) -> Header {
        let to_end = self.capacity - offset as u64;
        let max = max_payload_bytes(self.capacity) as u64;
        // Padding is never longer than the longest record.
        let may_be_padding = to_end <= max + HEADER;
        let (length, kind) = self.choose(|choices| match choices.byte() % 16 {
            0 => (choices.number(4) as u32, choices.number(4) as u32),
            1 => (choices.below(self.capacity) as u32, choices.below(4) as u32),
            2..=7 if may_be_padding => ((to_end - HEADER) as u32, PADDING),
            8 if may_be_padding => (8 * choices.below(to_end / 8) as u32, PADDING),
            2 => (max as u32 + 1, RECORD),
            3 | 4 if max >= 24 => (24, RECORD),
            _ => (choices.below(max + 1) as u32, RECORD),
        });
        Header { offset, length, kind }
    }
}

impl Memory for HostileMemory<'_> {
    fn load_peer(&self, word: Word) -> u64 {
        let value = match word {
            Word::Cursor => self.make_up_position(),
            Word::Start => self.make_up_start(),
            Word::Waits => self.choose(|choices| match choices.byte() % 8 {
                0 => choices.number(8),
                few => few.into(),
            }),
        };
        self.note(|call| match word {
            Word::Cursor => call.cursors.push(value),
            Word::Start => call.start = Some(value),
            Word::Waits => {}
        });
        value
    }

    fn store_own(&self, word: Word, value: u64, _: Ordering) {
        let mut state = self.state.borrow_mut();
        match word {
            Word::Cursor => {
                let ahead = value.wrapping_sub(state.cursor);
                assert!(value.is_multiple_of(8) && ahead > 0 && ahead <= 2 * self.capacity, "{ahead} ahead");
                state.cursor = value;
            }
            Word::Start => {
                // With the first message behind it, and never again.
                assert_eq!(value, state.cursor, "begun anew");
                state.start = value;
            }
            Word::Waits => {}
        }
    }

    fn fence(&self, _: Ordering) {
        self.note(|_| ());
    }
}

impl ProducerMemory for HostileMemory<'_> {
    fn copy_in(&self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        assert!(end <= self.capacity as usize, "a write beyond the ring");
        self.note(|call| call.written.push((offset, end)));
    }
}

impl ConsumerMemory for HostileMemory<'_> {
    fn copy_out(&self, offset: usize, into: &mut [u8]) {
        assert!(offset + into.len() <= self.capacity as usize, "a read beyond the ring");
        let last = self.note(|call| call.headers.last().copied());
        if last.is_some_and(|header| header.kind == RECORD) {
            self.note_payload(offset, into.len());
            return into.fill(offset as u8);
        }
        assert_eq!(into.len() as u64, HEADER, "a header is read in one piece");
        let header = self.make_up_header(offset);
        self.state.borrow_mut().call.headers.push(header);
        into[..4].copy_from_slice(&header.length.to_ne_bytes());
        into[4..].copy_from_slice(&header.kind.to_ne_bytes());
    }
}

impl HostileMemory<'_> {
    fn note_payload(&self, offset: usize, len: usize) {
        let call = &mut self.state.borrow_mut().call;
        let (start, before) = call.payload.unwrap_or((offset, 0));
        assert_eq!(offset, start + before, "a payload is read once, from its start on");
        call.payload = Some((start, before + len));
    }
}
