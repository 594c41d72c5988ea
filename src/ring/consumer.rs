//! The reading end.

use std::ops::Range;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::Instant;

use super::error::RingError;
use super::eviction::Eviction;
use super::handshake::Handshake;
use super::layout::{Geometry, HEADER_BYTES, Header, is_aligned, record_bytes};
use super::memory::{ConsumerMemory, Word};

/// The reading end of a ring.
///
/// Records are copied out by [`try_read`](Self::try_read), and [`release`](Self::release) gives their room
/// back; then [`producer_must_be_rung`](Self::producer_must_be_rung) says whether the producer sleeps. When
/// the ring is empty: release, [`start_waiting`](Self::start_waiting), check [`is_empty`](Self::is_empty)
/// once more, sleep, [`stop_waiting`](Self::stop_waiting), read again.
#[derive(Debug)]
pub(crate) struct Consumer<M> {
    memory: M,
    geometry: Geometry,
    /// Where the next record begins. The only true copy, never read back.
    position: u64,
    /// So many bytes can be read there, in one piece, with nothing to be looked at.
    runway: u64,
    /// What was given back: what the head in shared memory says. Behind `position` until the next release; the producer may be one
    /// capacity ahead of it.
    released: u64,
    /// The producer's tail as last seen, checked; the true one may be further on.
    tail: u64,
    handshake: Handshake,
    /// `None` if lines are not evicted.
    eviction: Option<Eviction>,
}

impl<M: ConsumerMemory> Consumer<M> {
    /// The reading end of a fresh ring, whose words are all zero.
    ///
    /// # Panics
    ///
    /// If `capacity` is no power of two or out of bounds.
    pub(crate) fn new(memory: M, capacity: u64) -> Self {
        Self::at(memory, capacity, 0)
    }

    /// The reading end of a fresh ring that begins at `position`, as both cursors in shared memory must.
    ///
    /// # Panics
    ///
    /// If `capacity` is no power of two or out of bounds, or `position` no multiple of 8.
    pub(crate) fn at(memory: M, capacity: u64, position: u64) -> Self {
        let geometry = Geometry::new(capacity, position);
        let eviction = memory.can_evict().then(|| Eviction::new(capacity, geometry.since_start(position)));
        Self {
            memory,
            geometry,
            position,
            runway: 0,
            released: position,
            tail: position,
            handshake: Handshake::default(),
            eviction,
        }
    }

    /// The position behind the last record read.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn read_position(&self) -> u64 {
        self.position
    }

    /// The producer's tail, as it is now.
    #[cfg(test)]
    pub(crate) fn tail(&self) -> u64 {
        self.memory.load_peer(Word::Cursor)
    }

    /// How many bytes have been read since the ring was last begun anew.
    #[cfg(test)]
    pub(crate) fn read_since_start(&self) -> u64 {
        self.geometry.since_start(self.position)
    }

    /// Copies the next record into `scratch` and returns the part of `scratch` that it fills; `None` if the
    /// ring is empty.
    ///
    /// `scratch` only ever grows, to at most the ring's longest payload, so that a buffer that is used again
    /// is neither allocated nor zeroed again. The record is a private copy: it stays what it is whatever the
    /// peer does, and also after [`release`](Self::release).
    ///
    /// # Errors
    ///
    /// If the producer's cursor or the record's header is nonsense.
    #[inline(always)]
    pub(crate) fn try_read<'a>(&mut self, scratch: &'a mut Vec<u8>) -> Result<Option<&'a [u8]>, RingError> {
        Ok(self.try_read_behind(scratch, 0)?.map(|record| &scratch[record]))
    }

    /// As [`try_read`](Self::try_read), but leaves the first `start` bytes of `scratch` as they are, and returns where the
    /// record lies: for a caller that reads several before it looks at them.
    #[inline(always)]
    pub(crate) fn try_read_behind(
        &mut self,
        scratch: &mut Vec<u8>,
        start: usize,
    ) -> Result<Option<Range<usize>>, RingError> {
        if self.is_empty()? {
            return Ok(None);
        }
        let mut header = self.next_header();
        if header.kind != Header::RECORD || record_bytes(header.length as usize) > self.runway {
            header = self.look_with_care(header)?;
        }

        let len = header.length as usize;
        // Whole words, so with what fills the last of them: fewer cases.
        let words = record_bytes(len) - HEADER_BYTES;
        let words_end = start + words as usize;
        if scratch.len() < words_end {
            grow(scratch, words_end);
        }
        let from = self.geometry.offset(self.position) + HEADER_BYTES as usize;
        self.memory.copy_out(from, &mut scratch[start..words_end]);
        self.advance(HEADER_BYTES + words);
        Ok(Some(start..start + len))
    }

    /// As [`try_read`](Self::try_read), of a record of so many words, which stay in registers. `None` also if what is next may be something
    /// else: then nothing is read, and `try_read` finds out what it is.
    ///
    /// # Errors
    ///
    /// If the producer's cursor is nonsense.
    #[inline(always)]
    pub(crate) fn try_read_words<const W: usize>(&mut self) -> Result<Option<[[u8; 8]; W]>, RingError> {
        let bytes = record_bytes(8 * W);
        if self.is_empty()? || bytes > self.runway || self.next_header() != Header::record(8 * W) {
            return Ok(None);
        }
        let from = self.geometry.offset(self.position) + HEADER_BYTES as usize;
        let words = std::array::from_fn(|at| {
            let mut word = [0; 8];
            self.memory.copy_out(from + 8 * at, &mut word);
            word
        });
        self.advance(bytes);
        Ok(Some(words))
    }

    /// Gives back the room of all that was read, with one store; returns whether there was anything.
    #[inline]
    pub(crate) fn release(&mut self) -> bool {
        let is_more = self.store_released();
        self.handle_released();
        is_more
    }

    /// As [`release`](Self::release), for a consumer of streams: gives up the cache lines of what was released if the producer is quicker
    /// then (see [`eviction`](super::eviction)). `now` is asked now and then, to find that out.
    #[inline]
    pub(crate) fn release_at(&mut self, now: impl Fn() -> Instant) {
        self.store_released();
        self.handle_released_at(now);
    }

    /// The first half of [`release`](Self::release): the store, for whoever has something else to store in that cache line.
    #[inline(always)]
    pub(crate) fn store_released(&self) -> bool {
        let is_more = self.position != self.released;
        if is_more {
            // Publishes that the copies out of these bytes are done; its partner is the Acquire fence behind the
            // producer's load of the head, in `Producer::refresh_head`.
            self.memory.store_own(Word::Cursor, self.position, Release);
        }
        is_more
    }

    /// The second half of [`release`](Self::release), before anything else is read.
    #[inline(always)]
    pub(crate) fn handle_released(&mut self) {
        self.released = self.position;
    }

    /// The second half of [`release_at`](Self::release_at).
    #[inline(always)]
    pub(crate) fn handle_released_at(&mut self, now: impl Fn() -> Instant) {
        let bytes = self.position.wrapping_sub(self.released);
        if let Some(eviction) = &mut self.eviction {
            eviction.handle_released(bytes, now);
        }
        self.handle_released();
        self.evict_released();
    }

    /// What has just been released, but for the lines at the start, which serve again and again.
    #[inline]
    fn evict_released(&mut self) {
        let released = self.geometry.since_start(self.released);
        if let Some(eviction) = &mut self.eviction
            && !eviction.is_done(released)
        {
            let mut evicted = 0;
            for line in eviction.lines_before(released) {
                let line = self.geometry.start().wrapping_add(line);
                if self.geometry.until_cold(line) == 0 {
                    self.memory.evict(self.geometry.offset(line));
                    evicted += 1;
                }
            }
            eviction.handle_evicted(evicted);
        }
    }

    /// Whether so much was read and not given back that it must not be held back any more: a quarter of the ring. A producer that finds no room
    /// for a record, and for padding before it, each of a quarter at most, has half of the ring or more in use. If less than a quarter is held
    /// back, the rest is unread, and when it is read this is due.
    #[inline]
    pub(crate) fn is_release_due(&self) -> bool {
        self.position.wrapping_sub(self.released) >= self.geometry.capacity() / 4
    }

    /// There was nothing to read for so long that it is not for the producer's pace.
    pub(crate) fn handle_gap(&mut self, now: impl FnOnce() -> Instant) {
        if let Some(eviction) = &mut self.eviction {
            eviction.handle_gap(now);
        }
    }

    /// As if it had been found out that the producer is quicker if lines are evicted. Answers whether they can be.
    #[cfg(test)]
    pub(crate) fn decide_to_evict(&mut self) -> bool {
        self.eviction.as_mut().map(Eviction::decide).is_some()
    }

    /// How many lines were evicted since the last trial began.
    #[cfg(test)]
    pub(crate) fn evicted_lines(&self) -> u64 {
        self.eviction.as_ref().map_or(0, Eviction::tried_lines)
    }

    /// Whether it is being tried if the producer is quicker with lines evicted, or without; `None` if none can be.
    #[cfg(test)]
    pub(crate) fn is_on_trial(&self) -> Option<bool> {
        self.eviction.as_ref().map(Eviction::is_on_trial)
    }

    /// Whether there is nothing to read. Looks at the producer's cursor only if the ring seems empty; a
    /// `false` stays true until the next read, a `true` may be outdated on return.
    ///
    /// # Errors
    ///
    /// If the producer's cursor is nonsense.
    #[inline]
    pub(crate) fn is_empty(&mut self) -> Result<bool, RingError> {
        if self.runway == 0 {
            if !self.has_seen_more() {
                self.refresh_tail()?;
            }
            self.find_runway();
        }
        Ok(self.runway == 0)
    }

    /// Whether there is more to read as far as was seen, without another look at the producer's cursor.
    #[inline]
    pub(crate) fn has_seen_more(&self) -> bool {
        self.position != self.tail
    }

    /// Whether the producer sleeps and must be rung for what was released: once per wait of the producer. To
    /// be called after [`release`](Self::release); a call costs a full fence.
    #[inline]
    pub(crate) fn producer_must_be_rung(&mut self) -> bool {
        self.handshake.peer_must_be_rung(&self.memory)
    }

    /// Tells the producer that this side is about to sleep until there is something to read. Before it really
    /// sleeps it must ask [`is_empty`](Self::is_empty) again, and after any wake-up begin anew with this
    /// method.
    ///
    /// # Panics
    ///
    /// If something was read and not released: the producer might in turn be waiting for its room.
    pub(crate) fn start_waiting(&mut self) {
        assert!(self.position == self.released, "the consumer waits with records that it has not released");
        self.handshake.start_waiting(&self.memory);
    }

    /// Tells the producer that this side polls and will never wait: from then on nobody calls
    /// [`start_waiting`](Self::start_waiting).
    pub(crate) fn never_wait(&mut self) {
        self.handshake.never_wait(&self.memory);
    }

    /// Tells the producer that this side is awake.
    pub(crate) fn stop_waiting(&mut self) {
        self.handshake.stop_waiting(&self.memory);
    }

    /// The runway is what was seen to be published, in one piece, and no more than a record may have.
    ///
    /// Where the next record begins does not depend on it: then a processor fetches that together with the tail, and not behind it.
    #[inline]
    fn find_runway(&mut self) {
        self.runway = self.unread_bytes().min(self.geometry.in_one_piece(self.position));
    }

    /// What was seen to be published, and has not been read.
    #[inline]
    fn unread_bytes(&self) -> u64 {
        self.tail.wrapping_sub(self.position)
    }

    /// So many bytes of the runway have been read.
    #[inline(always)]
    fn advance(&mut self, bytes: u64) {
        self.position = self.position.wrapping_add(bytes);
        self.runway -= bytes;
    }

    /// Copies the header at the position, once. There is a runway, and so a whole header: it is a multiple of 8.
    #[inline(always)]
    fn next_header(&self) -> Header {
        let mut bytes = [0; HEADER_BYTES as usize];
        self.memory.copy_out(self.geometry.offset(self.position), &mut bytes);
        Header::from_bytes(bytes)
    }

    /// What follows is no record, or does not fit the runway as it was: the header of the next record, which fits the runway as it is then.
    #[cold]
    fn look_with_care(&mut self, mut header: Header) -> Result<Header, RingError> {
        self.find_runway();
        self.check_length(header)?;
        if header.kind == Header::PADDING {
            self.skip_padding(header)?;
            if self.runway == 0 {
                return Err(RingError::PaddingAlone { position: self.position });
            }
            // Not padding again: this is the ring's start, from where padding to its end would be longer than a record can be.
            header = self.next_header();
            self.check_length(header)?;
        }
        match header.kind {
            Header::RECORD => Ok(header),
            found => Err(RingError::UnknownKind { position: self.position, found }),
        }
    }

    fn skip_padding(&mut self, header: Header) -> Result<(), RingError> {
        let found = record_bytes(header.length as usize);
        let to_end = self.geometry.to_end(self.position);
        if found != to_end {
            return Err(RingError::PaddingShort { position: self.position, found, to_end });
        }
        self.advance(to_end);
        self.find_runway();
        Ok(())
    }

    /// Only called when the ring seems empty, so that the tail seen before is the position.
    #[inline]
    fn refresh_tail(&mut self) -> Result<(), RingError> {
        // Relaxed is all that read-only memory allows; the fence makes an acquire of it.
        let found = self.memory.load_peer(Word::Cursor);
        // Acquires the records below the tail; its partner is the Release store in `Producer::store_tail`.
        self.memory.fence(Acquire);
        if found == self.position {
            // What comes by itself begins the ring anew. Whoever looks again finds all of it at hand with the tail, and does not wait
            // for one line after the other.
            self.memory.prefetch(0);
            return Ok(());
        }

        let (at_least, at_most) = (self.position, self.released.wrapping_add(self.geometry.capacity()));
        if found.wrapping_sub(at_least) > at_most.wrapping_sub(at_least) {
            return Err(RingError::TailOutOfRange { found, at_least, at_most });
        }
        if !is_aligned(found) {
            return Err(RingError::TailUnaligned { found });
        }
        // Relaxed: not older than the tail, by the fence above. Its partner is the store in `Producer::store_tail`, before that
        // of the tail.
        let start = self.memory.load_peer(Word::Start);
        if start != self.geometry.start() {
            self.begin_anew(start)?;
        }
        self.tail = found;
        Ok(())
    }

    /// The producer has gone on at the ring's start, which it does only if all before was released.
    #[inline]
    fn begin_anew(&mut self, start: u64) -> Result<(), RingError> {
        let (position, released) = (self.position, self.released);
        if start != position || start != released {
            return Err(RingError::StartOutOfPlace { found: start, position, released });
        }
        self.geometry.begin_anew(start);
        if let Some(eviction) = &mut self.eviction {
            eviction.pass(0);
        }
        Ok(())
    }

    /// Checks that what a header announces lies within what was published and within the ring, for a runway that has just been found.
    fn check_length(&self, header: Header) -> Result<(), RingError> {
        let (found, length) = (record_bytes(header.length as usize), header.length);
        if found <= self.runway {
            return Ok(());
        }
        let (position, available) = (self.position, self.unread_bytes());
        let at_most = self.geometry.max_payload();
        Err(if length as usize > at_most {
            RingError::RecordTooLong { position, found: length, at_most }
        } else if found > available {
            RingError::RecordBeyondTail { position, found, available }
        } else {
            RingError::RecordBeyondEnd { position, found, to_end: self.geometry.to_end(position) }
        })
    }
}

/// Makes a buffer so long.
#[cold]
fn grow(scratch: &mut Vec<u8>, len: usize) {
    scratch.resize(len, 0);
}
