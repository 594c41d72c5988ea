//! A link as its source sees it: changes go out, acks come in.
//!
//! Invariants:
//! 1. Nothing here blocks. A full ring leaves the rest in the sync cache, and then the ring says that room is awaited.
//! 2. What is written is published before anything returns.

use super::LinkError;
use super::platform::{Linux, Peer, Platform};
use crate::proto::ResendPolicy;
use crate::proto::source::{Runway, SessionId, SnapshotRequest, SourceCore, Unreadable};
use crate::ring::{Consumer, Producer, record_bytes};
use crate::stats::DestinationId;
use crate::wire::{Ack, Frame, HEADER_BYTES};

/// The two rings of a link and the destination at its other end.
#[derive(Debug)]
pub(crate) struct OutgoingLink<P: Platform = Linux> {
    pub(crate) session: SessionId,
    pub(crate) id: DestinationId,
    pub(crate) peer: P::Peer,
    /// Set when the link is to be closed.
    pub(crate) failed: Option<LinkError>,
    changes: Producer<P::Writable>,
    acks: Consumer<P::Readable>,
    scratch: Vec<u8>,
    /// The destination was told that room is awaited.
    pub(crate) awaits_room: bool,
    /// Frames published since acks were last looked for.
    sent_since_drain: u32,
    /// Frames in the ring that were not published yet.
    staged: u32,
}

/// Where [`OutgoingLink::pump`] stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pumped {
    /// All that was to be sent is in the ring.
    All,
    /// The ring is full. The destination rings once it has made room.
    Full,
    /// There is more, and room.
    Budget,
}

/// How a ring that was full is now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// How far the destination has consumed it.
    pub(crate) released: u64,
    /// An eighth of it is free.
    pub(crate) enough: bool,
}

/// After so many frames a publisher looks for acks, which is a cache line that the destination has; the timer does in any case. The
/// ack ring holds several times as many, even if each is acknowledged by itself.
const FRAMES_PER_DRAIN: u32 = 256;

/// However large the frames are, the lock is not held for longer than it takes to copy so many bytes.
const MAX_PUMP_BYTES: usize = 1 << 20;

impl<P: Platform> OutgoingLink<P> {
    pub(crate) fn new(
        session: SessionId,
        id: DestinationId,
        peer: P::Peer,
        changes: Producer<P::Writable>,
        acks: Consumer<P::Readable>,
    ) -> OutgoingLink<P> {
        OutgoingLink {
            session,
            id,
            peer,
            failed: None,
            changes,
            acks,
            scratch: Vec::new(),
            awaits_room: false,
            sent_since_drain: 0,
            staged: 0,
        }
    }

    /// Puts one frame in the ring, if there is room, and publishes it if it comes `alone`; else the next
    /// [`publish_staged`](OutgoingLink::publish_staged) or [`pump`](OutgoingLink::pump) does. If the link breaks, says so in `failed`.
    #[inline(always)]
    pub(crate) fn offer(&mut self, frame: &Frame<'_>, alone: bool, policy: &ResendPolicy) -> bool {
        if self.failed.is_some() || self.awaits_room {
            return false;
        }
        let taken = if alone { self.send(frame) } else { self.stage(frame, policy) };
        taken.unwrap_or_else(|error| {
            self.failed = Some(error);
            false
        })
    }

    /// Whether it is time to look for acks.
    #[inline(always)]
    pub(crate) fn is_drain_due(&self) -> bool {
        self.sent_since_drain >= FRAMES_PER_DRAIN
    }

    /// What [`put`](OutgoingLink::put) takes now.
    #[inline(always)]
    pub(crate) fn runway(&self, policy: &ResendPolicy) -> Runway {
        if self.failed.is_some() || self.awaits_room {
            return Runway::NONE;
        }
        let in_message = u64::from(policy.max_bytes_per_message).saturating_sub(self.changes.staged_bytes());
        let frames = policy.max_entries_per_message.saturating_sub(self.staged);
        Runway { frames, bytes: self.changes.runway().min(in_message) }
    }

    /// Puts frames in the ring, for which there is a runway, and publishes when they fill a message. If the link breaks, says so in
    /// `failed`.
    #[inline(always)]
    pub(crate) fn put<'a>(
        &mut self,
        frames: impl ExactSizeIterator<Item = Frame<'a>>,
        policy: &ResendPolicy,
    ) {
        let count = frames.len() as u32;
        self.changes.write_run(frames.map(|frame| {
            let (opcode, value) = frame.body();
            (frame.header(), [opcode, value])
        }));
        if let Err(error) = self.handle_staged(count, policy) {
            self.failed = Some(error);
        }
    }

    /// Publishes what is staged, when there is nothing else to send. Answers whether the link is good.
    #[inline]
    pub(crate) fn publish_staged(&mut self, core: &mut SourceCore) -> bool {
        if self.failed.is_some() {
            return false;
        }
        let drained = if self.is_drain_due() { self.try_drain_acks(core) } else { Ok(()) };
        if let Err(error) = drained.and_then(|()| self.publish()) {
            self.failed = Some(error);
        }
        self.failed.is_none()
    }

    /// Publishes what is staged, and puts up to `budget` frames more in the ring. If the link breaks, says so in `failed` and
    /// does nothing any more.
    pub(crate) fn pump(&mut self, core: &mut SourceCore, policy: &ResendPolicy, budget: u32) -> Pumped {
        if self.failed.is_some() {
            return Pumped::All;
        }
        let drained = if self.is_drain_due() { self.try_drain_acks(core) } else { Ok(()) };
        let pumped = drained.and_then(|()| self.try_pump(core, policy, budget));
        pumped.unwrap_or_else(|error| {
            self.failed = Some(error);
            Pumped::All
        })
    }

    /// Whether it is worth asking the application for what must be read: there is something, and some room. If there is none,
    /// room is awaited; and once it is, nothing is read until some was made, as what did not fit would be read in vain.
    pub(crate) fn may_read(&mut self, core: &mut SourceCore) -> bool {
        if self.failed.is_some() || self.awaits_room || !core.has_reads(self.session) {
            return false;
        }
        self.has_room_or_awaits_it(HEADER_BYTES).unwrap_or_else(|error| {
            self.failed = Some(error);
            false
        })
    }

    /// Puts the record of a pointer's data in the ring, unless the item holds something else by now. If it does not fit, room
    /// is awaited, and the data will be read again.
    pub(crate) fn send_snapshot(
        &mut self,
        core: &mut SourceCore,
        policy: &ResendPolicy,
        request: &SnapshotRequest,
        snapshot: Result<&[u8], Unreadable>,
    ) {
        if self.failed.is_none()
            && let Err(error) = self.try_send_snapshot(core, policy, request, snapshot)
        {
            self.failed = Some(error);
        }
    }

    /// Takes in all acks that are there. If the link breaks, says so in `failed`.
    #[inline]
    pub(crate) fn drain_acks(&mut self, core: &mut SourceCore) {
        if self.failed.is_none()
            && let Err(error) = self.try_drain_acks(core)
        {
            self.failed = Some(error);
        }
    }

    /// Asks the destination to ring when it acknowledges something, and takes in what it has acknowledged until then.
    pub(crate) fn await_acks(&mut self, core: &mut SourceCore) {
        // A link that broke may have stopped in the middle of its acks, and then it cannot wait.
        if self.failed.is_none()
            && let Err(error) = self.try_await_acks(core)
        {
            self.failed = Some(error);
        }
    }

    /// The destination has rung, or the source is awake anyway: it need not be rung.
    pub(crate) fn handle_awake(&mut self) {
        self.acks.stop_waiting();
        self.changes.stop_waiting();
        self.awaits_room = false;
    }

    /// Whether it is worth going on with a ring that was full.
    pub(crate) fn room(&mut self) -> Result<Room, LinkError> {
        let released = self.changes.released()?;
        let enough = self.changes.has_room_for(self.changes.max_payload() / 2)?;
        Ok(Room { released, enough })
    }

    /// How far the change ring was written, and how far the destination has consumed it.
    pub(crate) fn positions(&mut self) -> Result<(u64, u64), LinkError> {
        Ok((self.changes.written(), self.changes.released()?))
    }

    fn try_pump(
        &mut self,
        core: &mut SourceCore,
        policy: &ResendPolicy,
        budget: u32,
    ) -> Result<Pumped, LinkError> {
        let (mut sent, mut sent_bytes) = (0, 0);
        let pumped = loop {
            if core.is_quiet(self.session) {
                break Pumped::All;
            }
            if sent == budget || sent_bytes >= MAX_PUMP_BYTES {
                break Pumped::Budget;
            }
            let Some(outgoing) = core.poll_frame(self.session) else {
                break if core.is_walking(self.session) { Pumped::Budget } else { Pumped::All };
            };
            let length = outgoing.frame.len_bytes();
            if !self.stage(&outgoing.frame, policy)? {
                core.handle_full(self.session);
                self.publish()?;
                if self.awaits_room || !self.await_room(length)? {
                    break Pumped::Full;
                }
                continue;
            }
            let entry = outgoing.entry;
            core.handle_sent(self.session, entry);
            sent += 1;
            sent_bytes += length;
        };
        core.end_turn(self.session);
        self.publish()?;
        Ok(pumped)
    }

    fn try_send_snapshot(
        &mut self,
        core: &mut SourceCore,
        policy: &ResendPolicy,
        request: &SnapshotRequest,
        snapshot: Result<&[u8], Unreadable>,
    ) -> Result<(), LinkError> {
        let Some(outgoing) = core.poll_snapshot(self.session, request, snapshot) else { return Ok(()) };
        let length = outgoing.frame.len_bytes();
        if self.stage(&outgoing.frame, policy)? {
            core.handle_snapshot_sent(self.session, request);
            return self.publish();
        }
        core.handle_full(self.session);
        if !self.awaits_room {
            self.await_room(length)?;
        }
        Ok(())
    }

    /// Puts a frame in the ring, and publishes before it if it does not fit the message, and with it when that is full;
    /// `false` if there is no room.
    #[inline(always)]
    fn stage(&mut self, frame: &Frame<'_>, policy: &ResendPolicy) -> Result<bool, LinkError> {
        let is_written = self.try_write(frame, policy)?;
        if is_written {
            self.handle_staged(1, policy)?;
        }
        Ok(is_written)
    }

    /// Publishes a frame as a message of its own, and rings the destination if it sleeps; `false` if there is no room.
    #[inline(always)]
    fn send(&mut self, frame: &Frame<'_>) -> Result<bool, LinkError> {
        debug_assert_eq!(self.staged, 0, "whoever stages something publishes it before the lock is free");
        let (opcode, value) = frame.body();
        let release = || _ = self.acks.store_released();
        let is_published = self.changes.try_publish_headed(frame.header(), [opcode, value], release)?;
        if is_published {
            self.acks.handle_released();
            self.sent_since_drain += 1;
            self.ring_if_asleep()?;
        }
        Ok(is_published)
    }

    /// Puts a frame in the ring, and publishes before it if it does not fit the message; `false` if there is no room.
    #[inline(always)]
    fn try_write(&mut self, frame: &Frame<'_>, policy: &ResendPolicy) -> Result<bool, LinkError> {
        if self.staged > 0 {
            let bytes = self.changes.staged_bytes() + record_bytes(frame.len_bytes());
            if bytes > policy.max_bytes_per_message.into() {
                self.publish()?;
            }
        }
        let (opcode, value) = frame.body();
        Ok(self.changes.try_write_headed(frame.header(), [opcode, value])?)
    }

    /// So many frames more are written; publishes when they fill a message.
    #[inline(always)]
    fn handle_staged(&mut self, frames: u32, policy: &ResendPolicy) -> Result<(), LinkError> {
        self.staged += frames;
        if self.staged >= policy.max_entries_per_message
            || self.changes.staged_bytes() >= policy.max_bytes_per_message.into()
        {
            self.publish()?;
        }
        Ok(())
    }

    /// Makes a message of what is written, and rings the destination if it sleeps.
    #[inline(always)]
    fn publish(&mut self) -> Result<(), LinkError> {
        self.sent_since_drain += std::mem::take(&mut self.staged);
        if self.changes.publish() {
            // Who sleeps is rung for the message, whatever it waits for.
            self.acks.release();
            self.ring_if_asleep()?;
        }
        Ok(())
    }

    /// Rings the destination if it sleeps, after something was published.
    #[inline(always)]
    fn ring_if_asleep(&mut self) -> Result<(), LinkError> {
        if self.changes.consumer_must_be_rung() {
            self.peer.ring()?;
        }
        Ok(())
    }

    fn has_room_or_awaits_it(&mut self, length: usize) -> Result<bool, LinkError> {
        Ok(self.changes.has_room_for(length)? || self.await_room(length)?)
    }

    /// Says that room is awaited; `true` if there is room after all.
    fn await_room(&mut self, length: usize) -> Result<bool, LinkError> {
        self.changes.start_waiting();
        self.awaits_room = true;
        if !self.changes.has_room_for(length)? {
            return Ok(false);
        }
        self.changes.stop_waiting();
        self.awaits_room = false;
        Ok(true)
    }

    /// Takes in the acks that one look at the ring sees, which are all that were sent before the call: what the look before saw was
    /// taken in.
    fn try_drain_acks(&mut self, core: &mut SourceCore) -> Result<(), LinkError> {
        debug_assert!(!self.acks.has_seen_more(), "acks were seen and not taken in");
        self.sent_since_drain = 0;
        if self.acks.is_empty()? {
            return Ok(());
        }
        while self.acks.has_seen_more() {
            let ack = match self.acks.try_read_words()? {
                Some(words) => Ack::of_words(words),
                None => match self.try_read_ack()? {
                    Some(ack) => ack,
                    None => break,
                },
            };
            core.handle_ack(self.session, ack)?;
        }
        if self.acks.is_release_due() {
            self.release_acks()?;
        }
        if core.is_settled(self.session) {
            // The change ring may be drained, and its head has just come over with the acks.
            self.changes.look()?;
        }
        Ok(())
    }

    /// The next ack where a runway ends, or an error if it is none.
    #[cold]
    fn try_read_ack(&mut self) -> Result<Option<Ack>, LinkError> {
        let record = self.acks.try_read(&mut self.scratch)?;
        Ok(record.map(Ack::decode).transpose()?)
    }

    fn try_await_acks(&mut self, core: &mut SourceCore) -> Result<(), LinkError> {
        self.release_acks()?;
        self.acks.start_waiting();
        self.try_drain_acks(core)
    }

    /// Gives the room of the acks that were taken in back by itself, and not with a message.
    fn release_acks(&mut self) -> Result<(), LinkError> {
        if self.acks.release() && self.acks.producer_must_be_rung() {
            self.peer.ring()?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "outgoing_tests.rs"]
mod tests;
