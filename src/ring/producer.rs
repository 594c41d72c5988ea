//! The writing end.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::combine::Combined;
use super::error::RingError;
use super::handshake::Handshake;
use super::layout::{Geometry, Header, is_aligned, record_bytes};
use super::memory::{ProducerMemory, Word, payload_bytes};

/// The writing end of a ring.
///
/// Records are staged by [`try_write_headed`](Self::try_write_headed) or [`write_run`](Self::write_run) and seen by the
/// consumer after [`publish`](Self::publish); [`try_publish_headed`](Self::try_publish_headed) does both with one. Then
/// [`consumer_must_be_rung`](Self::consumer_must_be_rung) says whether it sleeps. When the ring is full: publish,
/// [`start_waiting`](Self::start_waiting), check [`has_room_for`](Self::has_room_for) once more, sleep,
/// [`stop_waiting`](Self::stop_waiting), try again.
#[derive(Debug)]
pub(crate) struct Producer<M> {
    memory: M,
    geometry: Geometry,
    /// Where the next record goes: the end of what is staged. The only true copy, never read back.
    tail: u64,
    /// What the tail in shared memory says; behind `tail` while something is staged.
    published: u64,
    /// The consumer's head as last seen; the true one may be further on.
    head: u64,
    /// From there on it is looked whether the ring can begin anew, when nothing is staged.
    look_at: u64,
    /// So many bytes can be written at the tail, one behind the other, with nothing to be looked at or checked. None while records
    /// are combined.
    runway: u64,
    /// Meanwhile lines are fetched ahead.
    fetches: bool,
    /// The last of what is staged, which has yet to be copied into the ring.
    combined: Combined,
    handshake: Handshake,
}

/// Longer records are several lines in one piece anyway, and worth no second copy.
const LONGEST_COMBINED_BYTES: u64 = 512;

/// So far ahead of what is written the lines that come next are taken from the consumer, which has read them the lap before; not if
/// it may have yet to read them.
const FETCHED_AHEAD_BYTES: u64 = 1024;

impl<M: ProducerMemory> Producer<M> {
    /// The writing end of a fresh ring, whose words are all zero.
    ///
    /// # Panics
    ///
    /// If `capacity` is no power of two or out of bounds.
    pub(crate) fn new(memory: M, capacity: u64) -> Self {
        Self::at(memory, capacity, 0)
    }

    /// The writing end of a fresh ring that begins at `position`, as both cursors in shared memory must.
    ///
    /// # Panics
    ///
    /// If `capacity` is no power of two or out of bounds, or `position` no multiple of 8.
    pub(crate) fn at(memory: M, capacity: u64, position: u64) -> Self {
        Self {
            memory,
            geometry: Geometry::new(capacity, position),
            tail: position,
            published: position,
            head: position,
            look_at: position,
            runway: 0,
            fetches: false,
            combined: Combined::default(),
            handshake: Handshake::default(),
        }
    }

    /// For models, whose rings are small: the producer looks so often whether the ring can begin anew.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn set_hot_bytes(&mut self, bytes: u64) {
        self.geometry.set_hot_bytes(bytes);
    }

    /// The longest payload that a record of this ring can have, in bytes.
    #[inline]
    pub(crate) fn max_payload(&self) -> usize {
        self.geometry.max_payload()
    }

    /// The position behind the last record written, staged ones included.
    #[inline]
    pub(crate) fn written(&self) -> u64 {
        self.tail
    }

    /// How many bytes have been written since the ring was last begun anew.
    #[cfg(test)]
    pub(crate) fn written_since_start(&self) -> u64 {
        self.geometry.since_start(self.tail)
    }

    /// What is staged and not published, headers and padding included.
    #[inline(always)]
    pub(crate) fn staged_bytes(&self) -> u64 {
        self.tail.wrapping_sub(self.published)
    }

    /// Stages a record of these words, and of these pieces behind them; `false` if the ring is full. What the caller puts
    /// together belongs in the words, which stay in registers: see [`ProducerMemory::copy_in_record`].
    ///
    /// The consumer sees it after [`publish`](Self::publish). A full ring is an outcome, not an error: nothing has changed
    /// then.
    ///
    /// # Errors
    ///
    /// If the consumer's cursor, looked at when the ring seems full, is nonsense.
    ///
    /// # Panics
    ///
    /// If the record exceeds [`max_payload`](Self::max_payload).
    #[inline(always)]
    pub(crate) fn try_write_headed<const H: usize, const N: usize>(
        &mut self,
        head: [[u8; 8]; H],
        pieces: [&[u8]; N],
    ) -> Result<bool, RingError> {
        let len = payload_bytes(&head, &pieces);
        let bytes = record_bytes(len);
        if self.combined.has_room_for(bytes) {
            self.combined.push(bytes, Header::record(len).to_bytes(), head, pieces);
            self.tail = self.tail.wrapping_add(bytes);
            return Ok(true);
        }
        if self.has_runway_for(len) {
            self.runway -= bytes;
            self.write(len, head, pieces);
            return Ok(true);
        }
        self.try_write_with_care(len, head, pieces)
    }

    /// Writes a record and publishes it, as [`try_write_headed`](Self::try_write_headed) and [`publish`](Self::publish) do; what is staged
    /// is published with it. If it is written, `store` is called right behind the store of the tail: for what else is to be stored in that
    /// cache line, as long as it is at hand.
    ///
    /// # Errors
    ///
    /// As there; then nothing has changed.
    ///
    /// # Panics
    ///
    /// As there.
    #[inline(always)]
    pub(crate) fn try_publish_headed<const H: usize, const N: usize>(
        &mut self,
        head: [[u8; 8]; H],
        pieces: [&[u8]; N],
        store: impl FnOnce(),
    ) -> Result<bool, RingError> {
        let len = payload_bytes(&head, &pieces);
        if self.has_runway_for(len) {
            // Lines that the consumer has come over one after the other if something else is stored in between, so what this side
            // notes down comes last.
            self.copy_in(len, head, pieces);
            let tail = self.tail.wrapping_add(record_bytes(len));
            self.store_tail(tail);
            store();
            self.runway -= record_bytes(len);
            self.tail = tail;
            self.handle_published();
            return Ok(true);
        }
        let is_written = self.try_write_with_care(len, head, pieces)?;
        if is_written {
            self.publish();
            store();
        }
        Ok(is_written)
    }

    /// Whether a record is the first of a message and fits the runway: then nothing is to be looked at.
    #[inline(always)]
    fn has_runway_for(&self, len: usize) -> bool {
        self.tail == self.published && record_bytes(len) <= self.runway
    }

    /// Stages a record after a look at everything, and finds out until when that is not needed.
    #[inline(never)]
    fn try_write_with_care<const H: usize, const N: usize>(
        &mut self,
        len: usize,
        head: [[u8; 8]; H],
        pieces: [&[u8]; N],
    ) -> Result<bool, RingError> {
        self.check_length(len);
        let is_first = self.tail == self.published;
        if is_first && self.until_look() == 0 && self.geometry.until_cold(self.tail) == 0 {
            self.look_at = self.tail.wrapping_add(self.geometry.bytes_between_looks());
            self.refresh_head()?;
        }
        if !self.has_room(len)? {
            return Ok(false);
        }
        let (bytes, padding) = (record_bytes(len), self.padding_before(len));
        self.write_combined();
        self.combined.close();
        (self.runway, self.fetches) = (0, self.free_bytes() > 2 * FETCHED_AHEAD_BYTES);
        if !is_first && padding == 0 && bytes <= LONGEST_COMBINED_BYTES {
            // What follows another is combined with what follows it, as far as they lie in one piece.
            self.combined.open(self.free_bytes().min(self.geometry.in_one_piece(self.tail)));
            self.combined.push(bytes, Header::record(len).to_bytes(), head, pieces);
            self.tail = self.tail.wrapping_add(bytes);
            return Ok(true);
        }
        if padding > 0 {
            // As in `write`.
            self.memory.copy_in(self.geometry.offset(self.tail), &Header::padding(padding).to_bytes());
            self.tail = self.tail.wrapping_add(padding);
        }
        self.write(len, head, pieces);
        self.find_runway();
        Ok(true)
    }

    /// How many bytes of records [`write_run`](Self::write_run) takes now. If that is not enough, one record at a time may still find
    /// room.
    #[inline(always)]
    pub(crate) fn runway(&self) -> u64 {
        self.runway
    }

    /// Stages records one behind the other, as [`try_write_headed`](Self::try_write_headed) does each of them. Nothing else is written
    /// in between, so that the lines that they go to come over several at a time; so the iterator should be one that is kept in
    /// registers (one that is borrowed is not).
    ///
    /// # Panics
    ///
    /// If they take more than the [`runway`](Self::runway).
    #[inline(always)]
    pub(crate) fn write_run<'a, const H: usize, const N: usize>(
        &mut self,
        records: impl Iterator<Item = ([[u8; 8]; H], [&'a [u8]; N])>,
    ) {
        let records = records.map(|(head, pieces)| {
            let len = payload_bytes(&head, &pieces);
            (Header::record(len).to_bytes(), head, pieces)
        });
        let (offset, most) = (self.geometry.offset(self.tail), self.runway as usize);
        let bytes = self.memory.copy_in_records(offset, most, records) as u64;
        self.tail = self.tail.wrapping_add(bytes);
        self.runway -= bytes;
    }

    /// Writes a record at the tail, where there is room for it.
    #[inline(always)]
    fn write<const H: usize, const N: usize>(&mut self, len: usize, head: [[u8; 8]; H], pieces: [&[u8]; N]) {
        self.copy_in(len, head, pieces);
        self.tail = self.tail.wrapping_add(record_bytes(len));
    }

    /// Copies a record to where the next one goes.
    #[inline(always)]
    fn copy_in<const H: usize, const N: usize>(&self, len: usize, head: [[u8; 8]; H], pieces: [&[u8]; N]) {
        // Beyond the published tail the consumer does not read, so the order of these writes does not matter: the store in
        // `store_tail` comes after all of them.
        let header = Header::record(len).to_bytes();
        self.memory.copy_in_record(self.geometry.offset(self.tail), header, head, pieces);
        if self.fetches {
            self.memory.prefetch(self.geometry.offset(self.tail.wrapping_add(FETCHED_AHEAD_BYTES)));
        }
    }

    /// The runway is the bytes in one piece, or up to where the ring is full. The next look whether the ring can begin anew comes
    /// behind the hot bytes.
    fn find_runway(&mut self) {
        let until_cold = self.geometry.until_cold(self.tail);
        if self.until_look() < until_cold {
            self.look_at = self.tail.wrapping_add(until_cold);
        }
        let (free, in_one_piece) = (self.free_bytes(), self.geometry.in_one_piece(self.tail));
        self.fetches = free > in_one_piece + 2 * FETCHED_AHEAD_BYTES;
        self.runway = in_one_piece.min(free);
    }

    /// The bytes until it is time to look whether the ring can begin anew.
    #[inline(always)]
    fn until_look(&self) -> u64 {
        let until = self.look_at.wrapping_sub(self.tail);
        if until > u64::MAX / 2 { 0 } else { until }
    }

    /// As [`try_write_headed`](Self::try_write_headed), of pieces alone.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn try_write<const N: usize>(&mut self, pieces: [&[u8]; N]) -> Result<bool, RingError> {
        self.try_write_headed([], pieces)
    }

    /// Whether a record of `len` bytes can be staged now. Looks at the consumer's cursor only if the ring
    /// seems full; a `true` stays true until something is staged, a `false` may be outdated on return.
    ///
    /// # Errors
    ///
    /// If the consumer's cursor is nonsense.
    ///
    /// # Panics
    ///
    /// If `len` exceeds [`max_payload`](Self::max_payload).
    pub(crate) fn has_room_for(&mut self, len: usize) -> Result<bool, RingError> {
        self.check_length(len);
        self.has_room(len)
    }

    /// Lets the consumer see all that is staged, with one store; returns whether there was anything.
    #[inline(always)]
    pub(crate) fn publish(&mut self) -> bool {
        if self.tail == self.published {
            return false;
        }
        self.write_combined();
        self.combined.close();
        self.store_tail(self.tail);
        self.handle_published();
        true
    }

    /// Lets the consumer see what is written up to there.
    #[inline(always)]
    fn store_tail(&self, tail: u64) {
        if self.published == self.geometry.start() {
            // The first message behind it. Relaxed: the consumer reads it behind the tail; its partner is the load in
            // `Consumer::refresh_tail`.
            self.memory.store_own(Word::Start, self.geometry.start(), Relaxed);
        }
        // Publishes the headers, payloads and the start; its partner is the Acquire fence behind the consumer's load of the
        // tail, in `Consumer::refresh_tail`.
        self.memory.store_own(Word::Cursor, tail, Release);
    }

    /// All that is written is published.
    #[inline(always)]
    fn handle_published(&mut self) {
        if self.until_look() == 0 {
            // What comes next is written with care, and looks.
            self.runway = 0;
        }
        self.published = self.tail;
    }

    /// Looks at the consumer's cursor: everything below the returned position has left the ring.
    ///
    /// # Errors
    ///
    /// If the cursor went backwards, is beyond what was published, or is no multiple of 8.
    pub(crate) fn released(&mut self) -> Result<u64, RingError> {
        self.refresh_head()?;
        Ok(self.head)
    }

    /// For when the consumer's cursor is at hand, because its cache line has just come over with something else: goes on at the ring's start if
    /// everything has left the ring, unless that is near anyway. Records that come one by one then lie in the same few lines.
    ///
    /// # Errors
    ///
    /// As [`released`](Self::released).
    #[inline]
    pub(crate) fn look(&mut self) -> Result<(), RingError> {
        if self.geometry.is_near_start(self.tail) { Ok(()) } else { self.refresh_head() }
    }

    /// Whether the consumer sleeps and must be rung for what was published: once per wait of the consumer. To
    /// be called after something was published; a call costs a full fence.
    #[inline]
    pub(crate) fn consumer_must_be_rung(&mut self) -> bool {
        self.handshake.peer_must_be_rung(&self.memory)
    }

    /// Tells the consumer that this side is about to sleep until there is room. Before it really sleeps it
    /// must ask [`has_room_for`](Self::has_room_for) again, and after any wake-up begin anew with this
    /// method.
    ///
    /// # Panics
    ///
    /// If something is staged: the consumer could not make room, as it knows nothing of it.
    pub(crate) fn start_waiting(&mut self) {
        assert!(self.tail == self.published, "the producer waits with records that it has not published");
        self.handshake.start_waiting(&self.memory);
    }

    /// Tells the consumer that this side is awake.
    pub(crate) fn stop_waiting(&mut self) {
        self.handshake.stop_waiting(&self.memory);
    }

    /// Copies what was combined to where it belongs: before the tail.
    #[inline(always)]
    fn write_combined(&mut self) {
        if !self.combined.is_empty() {
            let combined = self.combined.take();
            let start = self.tail.wrapping_sub(combined.len() as u64);
            self.memory.copy_in(self.geometry.offset(start), combined);
        }
    }

    #[inline]
    fn check_length(&self, len: usize) {
        let at_most = self.max_payload();
        assert!(
            len <= at_most,
            "a record of {len} bytes does not fit this ring, whose longest has {at_most}"
        );
    }

    /// How much padding a record of `len` bytes needs before it: none, or all that is left up to the end.
    #[inline]
    fn padding_before(&self, len: usize) -> u64 {
        let to_end = self.geometry.to_end(self.tail);
        if record_bytes(len) > to_end { to_end } else { 0 }
    }

    /// Whether a record of `len` bytes has room, and the padding before it, as far as this side knows or else sees.
    #[inline]
    fn has_room(&mut self, len: usize) -> Result<bool, RingError> {
        if !self.fits(len) {
            self.refresh_head()?;
        }
        Ok(self.fits(len))
    }

    /// As [`has_room`](Self::has_room), as far as this side knows.
    #[inline]
    fn fits(&self, len: usize) -> bool {
        self.padding_before(len) + record_bytes(len) <= self.free_bytes()
    }

    /// What is free as far as this side knows; the consumer may have released more.
    #[inline]
    fn free_bytes(&self) -> u64 {
        self.geometry.capacity() - self.tail.wrapping_sub(self.head)
    }

    fn refresh_head(&mut self) -> Result<(), RingError> {
        // Relaxed is all that read-only memory allows; the fence makes an acquire of it.
        let found = self.memory.load_peer(Word::Cursor);
        // Acquires the end of the consumer's reads, so that their bytes may be overwritten; its partner is
        // the Release store in `Consumer::store_released`.
        self.memory.fence(Acquire);

        let (at_least, at_most) = (self.head, self.published);
        if found.wrapping_sub(at_least) > at_most.wrapping_sub(at_least) {
            return Err(RingError::HeadOutOfRange { found, at_least, at_most });
        }
        if !is_aligned(found) {
            return Err(RingError::HeadUnaligned { found });
        }
        self.head = found;
        if found == self.tail && found != self.geometry.start() {
            self.begin_anew();
        }
        Ok(())
    }

    /// Nothing is in the ring: goes on at its start, where the cache lines lie that served the last time. The consumer finds out when it sees
    /// the tail of what is written next.
    #[inline]
    fn begin_anew(&mut self) {
        self.geometry.begin_anew(self.tail);
        self.find_runway();
    }
}
