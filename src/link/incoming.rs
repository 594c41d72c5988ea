//! A link as its destination sees it: changes come in, acks go out.
//!
//! Invariants:
//! 1. A record is copied out of the ring once, into private memory, before anything of it is looked at.
//!    If the caller has lent a buffer of its own, that is where: a record that was handed over stays there.
//! 2. While the ack ring is full, acks merge in private memory; at their bound nothing more is consumed.
//! 3. Records that the source published before it died are still applied: the rings outlive their maker.

use std::ops::{Range, RangeInclusive};
use std::time::{Duration, Instant};

use super::LinkError;
use super::kept::Kept;
use super::platform::{Linux, Peer, Platform};
use crate::proto::destination::{DestinationCore, Event};
use crate::ring::{Consumer, Producer};

/// The two rings of a link and the source at its other end.
#[derive(Debug)]
pub(crate) struct IncomingLink<P: Platform = Linux> {
    peer: P::Peer,
    changes: Consumer<P::Readable>,
    acks: Producer<P::Writable>,
    /// Copies of records that are about to be handled, and where each lies.
    scratch: Vec<u8>,
    batch: Vec<Range<usize>>,
    /// The caller's buffer takes the place of `scratch`; its `bytes` are in `scratch` meanwhile.
    kept: Option<Kept>,
    stream: Stream,
    /// The source was rung because the ack ring is full.
    ack_ring_full: bool,
    /// The source is dead: acks go nowhere.
    source_gone: bool,
    /// Once so many bytes were consumed, a source that waits for room is rung.
    bytes_per_ring: u64,
}

/// How long the source has been publishing one change after the other, as far as this side sees.
#[derive(Debug, Default)]
struct Stream {
    /// How often in a row a look at the ring has found something.
    looks: u32,
    /// How many records those were, as far as that makes pauses longer.
    records: u32,
}

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Woken {
    /// Before it began: there is something to be done.
    NotAsleep,
    /// By the source, by the deadline, or for no reason.
    SourceLives,
    /// The source seems to be gone.
    SourceGone,
}

/// How often, and for how long at most, the cpu is offered to others before a destination sleeps.
const YIELDS_BEFORE_SLEEP: u32 = 6;
const AWAKE_BEFORE_SLEEP: Duration = Duration::from_micros(20);

/// So many records are copied out of the ring before the first of them is handled, and so many bytes at most, not counting
/// the last: then what each of them needs is fetched at the same time.
const RECORDS_PER_BATCH: usize = 16;
const BYTES_PER_BATCH: usize = 16 * 1024;

/// When each of so many looks has found something, it is a stream: see [`IncomingLink::look_away`].
const LOOKS_OF_A_STREAM: u32 = 4;
/// A pause has one spin for each record that has come without a break, which is a quarter or less of the time that a source takes to
/// publish it; so many at least, and at most: half a microsecond to some 15 where one takes 18 to 23 ns.
const SPINS_OF_A_PAUSE: RangeInclusive<u32> = 32..=750;

/// Acks and room go back to the source at least this often.
const RECORDS_PER_ACK: usize = 64;

impl<P: Platform> IncomingLink<P> {
    pub(crate) fn new(
        peer: P::Peer,
        changes: Consumer<P::Readable>,
        acks: Producer<P::Writable>,
        change_ring_bytes: u64,
    ) -> IncomingLink<P> {
        IncomingLink {
            peer,
            changes,
            acks,
            scratch: Vec::new(),
            batch: Vec::with_capacity(RECORDS_PER_BATCH),
            kept: None,
            stream: Stream::default(),
            ack_ring_full: false,
            source_gone: false,
            bytes_per_ring: change_ring_bytes / 4,
        }
    }

    /// Applies up to `most` records through the handler, acknowledges them and makes room. Answers how many it consumed.
    pub(crate) fn receive(
        &mut self,
        core: &mut DestinationCore,
        most: usize,
        handler: &mut impl FnMut(Event<'_>) -> bool,
    ) -> Result<usize, LinkError> {
        let mut consumed = 0;
        let mut since_ring = 0;
        if self.ack_ring_full {
            self.send_acks(core)?;
        }
        if self.changes.is_empty()? {
            self.stream.handle_look(0);
            return Ok(0);
        }
        if self.stream.looks < LOOKS_OF_A_STREAM {
            // In the line that has just come over.
            self.acks.look()?;
        }
        while consumed < most && !core.is_congested() && self.read_batch(most - consumed)? > 0 {
            if self.batch.len() > 1 {
                core.prefetch(self.batch.iter().map(|record| &self.scratch[record.clone()]));
            }
            let batch = std::mem::take(&mut self.batch);
            for range in &batch {
                let record = &self.scratch[range.clone()];
                since_ring += record.len() as u64;
                match &mut self.kept {
                    None => core.handle_record(record, &mut *handler)?,
                    Some(kept) => {
                        core.handle_record(record, |event| kept.hand_over(event, range.end, handler))?;
                    }
                }
                consumed += 1;
                if consumed.is_multiple_of(RECORDS_PER_ACK) || since_ring >= self.bytes_per_ring {
                    self.send_acks(core)?;
                }
                if since_ring >= self.bytes_per_ring {
                    since_ring = 0;
                    self.ring_for_room()?;
                }
            }
            self.batch = batch;
            let came_alone = consumed == 1 && self.stream.looks == 0 && !self.changes.has_seen_more();
            if came_alone && core.acks_due() > 0 {
                // Its source may wait for the ack: that goes before another look.
                break;
            }
        }
        if consumed > 0 {
            self.send_acks(core)?;
            self.ring_for_room()?;
        }
        self.stream.handle_look(consumed);
        Ok(consumed)
    }

    /// While the source publishes one change after the other, looks away for a moment, so that the next look finds more of them: else both
    /// sides spend their time in fetching the same cache lines from each other. The longer it has lasted, the longer this is: the last
    /// change of a burst waits for a quarter of the burst's time at most, and the burst is over sooner.
    ///
    /// A change that comes alone is never waited for: before it there was a look that found nothing. Nor is one that is known to be there.
    #[inline]
    pub(crate) fn look_away(&mut self) {
        for _ in 0..self.pause() {
            std::hint::spin_loop();
        }
    }

    /// Neither this side nor, as far as is seen, the source has had anything to do for a while.
    pub(crate) fn handle_gap(&mut self) {
        self.changes.handle_gap(P::now);
    }

    /// How long to look away, in spins.
    fn pause(&self) -> u32 {
        if self.changes.has_seen_more() { 0 } else { self.stream.pause() }
    }

    /// Copies up to `most` records that one look at the ring saw; what comes later is left for the next batch. Answers how many.
    #[inline]
    fn read_batch(&mut self, most: usize) -> Result<usize, LinkError> {
        self.batch.clear();
        let (mut end, full_at) = match &self.kept {
            None => (0, BYTES_PER_BATCH),
            Some(kept) => (kept.end, kept.full_at.min(kept.end + BYTES_PER_BATCH)),
        };
        while self.batch.len() < most.min(RECORDS_PER_BATCH) && end < full_at {
            if !self.batch.is_empty() && !self.changes.has_seen_more() {
                break;
            }
            let Some(record) = self.changes.try_read_behind(&mut self.scratch, end)? else { break };
            end = record.end;
            self.batch.push(record);
        }
        if let Some(kept) = &mut self.kept {
            kept.end = end;
        }
        Ok(self.batch.len())
    }

    /// Lends the caller's buffer, or gives it back.
    pub(crate) fn swap_kept(&mut self, kept: &mut Option<Kept>) {
        std::mem::swap(&mut self.kept, kept);
        for kept in [&mut self.kept, kept].into_iter().flatten() {
            std::mem::swap(&mut self.scratch, &mut kept.bytes);
        }
    }

    /// This side polls: the source need not ring it, ever.
    pub(crate) fn never_wait(&mut self) {
        self.changes.never_wait();
    }

    /// The source is dead. What it has published is still to be received, whether anybody takes the acks or not.
    pub(crate) fn handle_source_gone(&mut self) {
        self.source_gone = true;
    }

    /// Sleeps until there is something to receive, the source is gone or the deadline has passed. Before that it gives way
    /// to others for a while, in which the source may run on the same cpu, or be about to publish on another.
    pub(crate) fn wait(
        &mut self,
        core: &DestinationCore,
        deadline: Option<Instant>,
        waits: &mut P::Waits,
    ) -> Result<Woken, LinkError> {
        let until = P::now() + AWAKE_BEFORE_SLEEP;
        for _ in 0..YIELDS_BEFORE_SLEEP {
            P::yield_now();
            if !core.is_congested() && !self.changes.is_empty()? {
                return Ok(Woken::NotAsleep);
            }
            // Somebody else had the cpu for long: asleep, this side gets it back sooner.
            if P::now() >= until {
                break;
            }
        }
        self.handle_gap();
        self.changes.start_waiting();
        let outcome = self.wait_rung(core, deadline, waits);
        self.changes.stop_waiting();
        outcome
    }

    /// Looks at an empty ring so many times, or until there is something to receive.
    #[inline]
    pub(crate) fn spin(&mut self, times: usize) -> Result<(), LinkError> {
        for _ in 0..times {
            if !self.changes.is_empty()? {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        self.handle_gap();
        Ok(())
    }

    /// Whether the source has hung up, on the socket or on the bell, or died. Records may still be in the ring. A ring is forgotten:
    /// before it sleeps, this side looks for what it was rung for.
    pub(crate) fn is_source_gone(&self, waits: &mut P::Waits) -> Result<bool, LinkError> {
        Ok(self.listen(Some(P::now()), waits)? == Woken::SourceGone)
    }

    fn wait_rung(
        &mut self,
        core: &DestinationCore,
        deadline: Option<Instant>,
        waits: &mut P::Waits,
    ) -> Result<Woken, LinkError> {
        if self.must_stay_awake(core)? { Ok(Woken::NotAsleep) } else { self.listen(deadline, waits) }
    }

    /// Tells the source that this side sleeps from now on, and is woken by an event loop. `false` if there is something to be
    /// done after all: then it does not sleep.
    pub(crate) fn fall_asleep(&mut self, core: &DestinationCore) -> Result<bool, LinkError> {
        self.handle_gap();
        self.changes.start_waiting();
        if self.must_stay_awake(core)? {
            self.changes.stop_waiting();
            return Ok(false);
        }
        self.stream.handle_look(0);
        Ok(true)
    }

    /// After a sleep that an event loop has ended.
    pub(crate) fn wake_up(&mut self, waits: &mut P::Waits) -> Result<Woken, LinkError> {
        self.changes.stop_waiting();
        self.listen(Some(P::now()), waits)
    }

    /// What ends a sleep.
    pub(crate) fn watch(&self, waits: &mut P::Waits) {
        self.peer.watch(waits);
    }

    /// Whether there is something to be done. To be asked once the source was told that this side sleeps.
    fn must_stay_awake(&mut self, core: &DestinationCore) -> Result<bool, LinkError> {
        // Records that may not be consumed yet are no reason to stay awake: the source rings for room in the ack ring.
        if !core.is_congested() && !self.changes.is_empty()? {
            return Ok(true);
        }
        Ok(self.ack_ring_full && self.acks.has_room_for(crate::wire::Ack::BYTES)?)
    }

    fn listen(&self, deadline: Option<Instant>, waits: &mut P::Waits) -> Result<Woken, LinkError> {
        let heard = self.peer.hear(deadline, waits)?;
        if heard.rung {
            self.peer.clear()?;
        }
        if heard.spoke {
            return Err(LinkError::Spoke);
        }
        Ok(if heard.gone { Woken::SourceGone } else { Woken::SourceLives })
    }

    /// Rings a source that waits for room, if it was not rung since it began to.
    fn ring_for_room(&mut self) -> Result<(), LinkError> {
        if self.changes.producer_must_be_rung() {
            self.peer.ring()?;
        }
        Ok(())
    }

    /// Whether acks wait for room, of which the source is to tell by a ring.
    pub(crate) fn is_ack_ring_full(&self) -> bool {
        self.ack_ring_full
    }

    /// Sends the acks that are due, as far as there is room for them, and gives back the room of what was consumed.
    pub(crate) fn send_acks(&mut self, core: &mut DestinationCore) -> Result<(), LinkError> {
        if self.source_gone {
            self.changes.release_at(P::now);
            while core.poll_ack().is_some() {
                core.handle_ack_sent();
            }
            self.ack_ring_full = false;
            return Ok(());
        }
        let was_full = std::mem::take(&mut self.ack_ring_full);
        let mut is_room_given = false;
        while let Some(ack) = core.poll_ack() {
            // The room of what was consumed goes back with the last ack, and not before: a source that sees that records have left the
            // ring takes them for acknowledged, or sends them again.
            let is_last = core.acks_due() == 1;
            let is_written = if is_last {
                self.acks.try_publish_headed(ack.encode(), [], || _ = self.changes.store_released())?
            } else {
                self.acks.try_write_headed(ack.encode(), [])?
            };
            if !is_written {
                self.ack_ring_full = true;
                break;
            }
            core.handle_ack_sent();
            is_room_given = is_last;
        }
        let published = self.acks.publish() || is_room_given;
        if !is_room_given {
            self.changes.store_released();
        }
        self.changes.handle_released_at(P::now);
        if self.ack_ring_full {
            // The source drains when it is rung, and rings back when it has made room. It may have done so already and
            // the ring be full anew.
            self.acks.start_waiting();
            if published || !was_full {
                self.peer.ring()?;
            }
        } else if was_full {
            self.acks.stop_waiting();
        }
        if published && self.acks.consumer_must_be_rung() {
            self.peer.ring()?;
        }
        Ok(())
    }
}

impl Stream {
    /// A look has found so many records.
    fn handle_look(&mut self, found: usize) {
        if found == 0 {
            *self = Stream::default();
            return;
        }
        self.looks = self.looks.saturating_add(1);
        self.records += found.min((SPINS_OF_A_PAUSE.end() - self.records) as usize) as u32;
    }

    /// How long to look away from a ring that seems empty, in spins.
    fn pause(&self) -> u32 {
        if self.looks < LOOKS_OF_A_STREAM { 0 } else { self.records.max(*SPINS_OF_A_PAUSE.start()) }
    }
}

#[cfg(test)]
#[path = "incoming_tests.rs"]
mod tests;
