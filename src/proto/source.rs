//! The source's end: its items, and for each destination what that destination has not acknowledged.
//!
//! Commands ([`SourceCore::set`], [`SourceCore::remove`], [`SourceCore::ready`], [`SourceCore::attach`]) say what the
//! application and the link want. Then, per session, in this order:
//! [`SourceCore::handle_ack`] for every ack that came; [`SourceCore::poll_frame`] for the frame that goes next and
//! [`SourceCore::handle_sent`] once it is in the ring, until there is none or no room; [`SourceCore::handle_timeout`]
//! when [`SourceCore::poll_timeout`] has come.
//!
//! Invariants:
//! 1. A frame is made from the store at the time it is sent: a resend carries the newest value, in the order of the ring.
//! 2. Removing an item that was not sent on a session leaves nothing of it there.
//! 3. A tombstone exists while a session owes the ack of it, and each session owes it once.

use std::time::Instant;

use super::ProtocolError;
use super::cache::{CacheEntry, EntryId, EntryKind, SyncCache};
use super::replay::Replay;
use super::resend::{ResendPolicy, ResendTimer, TickBudget};
use super::store::{ItemId, Store, Stored, TableId, Value};
use crate::opcode::Opcode;
use crate::seq::{ChangeNumber, SyncSeq};
use crate::wire::{Ack, Frame, HEADER_BYTES, Payload};

pub(crate) use super::cache::MAX_FLUSHES;

/// A session's place; used again once its destination is gone.
pub(crate) type SessionId = usize;

#[derive(Debug)]
pub(crate) struct SourceCore {
    store: Store,
    sessions: Vec<Option<Session>>,
    policy: ResendPolicy,
    /// An equal value is a change, too.
    send_equal: bool,
    counters: SourceCounters,
}

/// What the source counts, over all destinations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SourceCounters {
    /// Calls that changed an item.
    pub(crate) changes: u64,
}

/// What the source keeps for one destination that is attached.
#[derive(Debug)]
struct Session {
    cache: SyncCache,
    replay: Replay,
    timer: ResendTimer<(EntryId, ChangeNumber)>,
    /// A tick is planned, or asked for, that looks at what is in flight.
    ticking: bool,
    /// It was asked for and has not been yet.
    tick_requested: bool,
    /// Who goes next when both live changes and the replay could.
    replay_goes: bool,
    counters: SessionCounters,
}

/// What the source counts for one destination.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SessionCounters {
    pub(crate) sent: u64,
    pub(crate) resent: u64,
    pub(crate) coalesced: u64,
    pub(crate) acked: u64,
}

/// The state of one session's cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SessionState {
    pub(crate) unacked: usize,
    pub(crate) tombstones: usize,
    pub(crate) failing: usize,
    pub(crate) replaying: bool,
    pub(crate) counters: SessionCounters,
}

/// A frame that goes next, and what to tell [`SourceCore::handle_sent`].
#[derive(Debug)]
pub(crate) struct Outgoing<'a> {
    pub(crate) entry: EntryId,
    pub(crate) frame: Frame<'a>,
}

impl SourceCore {
    pub(crate) fn new(policy: ResendPolicy, send_equal: bool, first_seq: SyncSeq) -> SourceCore {
        SourceCore {
            store: Store::new(first_seq),
            sessions: Vec::new(),
            policy,
            send_equal,
            counters: SourceCounters::default(),
        }
    }

    /// As if so many changes had been made elsewhere.
    #[cfg(test)]
    pub(crate) fn skip_changes(&mut self, count: u64) {
        self.store.skip_changes(count);
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn counters(&self) -> SourceCounters {
        self.counters
    }

    /// The table of that name, which is made if there is none; `None` if there are too many.
    pub(crate) fn table(&mut self, name: &str) -> Option<TableId> {
        if let Some(table) = self.store.table_named(name) {
            return Some(table);
        }
        let table = self.store.add_table(name)?;
        for session in self.sessions.iter_mut().flatten() {
            session.add_table(table, &mut self.store);
        }
        Some(table)
    }

    /// S1 to S3: gives an item its newest value and records that for each destination.
    pub(crate) fn set(&mut self, table: TableId, opcode: Opcode, value: &[u8]) -> Stored {
        let stored = self.store.set(table, opcode, value, self.send_equal);
        let (id, created) = match stored {
            Stored::Unchanged => return stored,
            Stored::Updated(id) => (id, false),
            Stored::Created(id) => (id, true),
        };
        self.counters.changes += 1;
        let entry = EntryId::item(id);
        for session in self.sessions.iter_mut().flatten() {
            if created && !session.cache.entry(entry).is_sent() {
                session.replay.handle_created(table);
            }
            session.counters.coalesced += u64::from(session.cache.record(entry, false));
        }
        stored
    }

    /// Removes an item; `None` if there is none. The item's place may be vacant already.
    pub(crate) fn remove(&mut self, table: TableId, opcode: &Opcode) -> Option<ItemId> {
        let id = self.store.remove(table, opcode)?;
        self.counters.changes += 1;
        let created = self.store.item(id).created;
        let entry = EntryId::item(id);
        for session in self.sessions.iter_mut().flatten() {
            if session.cache.entry(entry).is_sent() {
                session.counters.coalesced += u64::from(session.cache.record(entry, true));
                self.store.owe_remove(id);
            } else {
                let before = session.cache.entry(entry);
                session.counters.coalesced += u64::from(before.is_unacked());
                session.replay.take_flushes(created, before.flushes());
                session.cache.forget(entry);
                if session.replay.handle_named(table, created) {
                    session.mark_end(table, &mut self.store);
                }
            }
        }
        self.store.vacate_if_unowed(id);
        Some(id)
    }

    /// The application has loaded the table: a destination may remove what was not named to it.
    pub(crate) fn ready(&mut self, table: TableId) {
        self.store.table_mut(table).ready = true;
        for session in self.sessions.iter_mut().flatten() {
            if session.replay.handle_ready(table, self.store.last_change()) {
                session.mark_end(table, &mut self.store);
            }
        }
    }

    /// A destination attaches; it is owed the full state.
    pub(crate) fn attach(&mut self) -> SessionId {
        let mut session = Session {
            cache: SyncCache::default(),
            replay: Replay::new(),
            timer: ResendTimer::new(),
            ticking: false,
            tick_requested: false,
            replay_goes: false,
            counters: SessionCounters::default(),
        };
        for table in 0..self.store.tables().len() {
            session.add_table(table as TableId, &mut self.store);
        }
        let vacant = self.sessions.iter().position(Option::is_none);
        let id = vacant.unwrap_or(self.sessions.len());
        if vacant.is_none() {
            self.sessions.push(None);
        }
        self.sessions[id] = Some(session);
        id
    }

    /// A destination is gone: all that was kept for it goes, too.
    pub(crate) fn detach(&mut self, id: SessionId) {
        let Some(session) = self.sessions[id].take() else { return };
        for item in session.cache.unacked_removes() {
            self.store.settle_remove(item);
        }
    }

    /// The frame that goes next on a session, if any. It stays the next until it was sent or a command changed that.
    pub(crate) fn poll_frame(&mut self, id: SessionId) -> Option<Outgoing<'_>> {
        let session = self.sessions[id].as_mut()?;
        let entry = session.next(&self.store)?;
        Some(Outgoing { entry, frame: session.frame(entry, &self.store) })
    }

    /// S2: the frame is in the ring.
    pub(crate) fn handle_sent(&mut self, id: SessionId, entry: EntryId) {
        let Some(session) = self.sessions[id].as_mut() else { return };
        session.counters.sent += 1;
        session.counters.resent += u64::from(session.cache.entry(entry).attempts() > 0);
        let before = session.cache.entry(entry);
        if let EntryKind::Item(item) = entry.kind()
            && !before.is_sent()
        {
            let flushes = session.replay.take_flushes(self.store.item(item).created, before.flushes());
            session.cache.add_flushes(entry, flushes);
        }
        let first = session.cache.handle_sent(entry, &self.store);
        session.replay_goes = !session.replay_goes;
        if session.replay_goes {
            session.replay.turn();
        }
        if let EntryKind::Item(item) = entry.kind()
            && first
            && session.replay.handle_named(entry.table, self.store.item(item).created)
        {
            session.mark_end(entry.table, &mut self.store);
        }
    }

    /// S6: the destination has applied these records.
    pub(crate) fn handle_ack(&mut self, id: SessionId, ack: Ack) -> Result<(), ProtocolError> {
        let Some(session) = self.sessions[id].as_mut() else { return Ok(()) };
        let acked = &mut session.counters.acked;
        let mut settled = Vec::new();
        let outcome = session.cache.handle_ack(ack, &self.store, |deleted| {
            *acked += 1;
            if let (EntryKind::Item(item), true) = (deleted.entry.kind(), deleted.was_tombstone) {
                settled.push(item);
            }
        });
        for item in settled {
            self.store.settle_remove(item);
        }
        outcome
    }

    /// Asks for a tick if something was sent that no tick has looked at, and none is planned. Answers whether it did: then
    /// whoever keeps the time must be told. What waits for room needs no tick, and what is held for later has its own.
    pub(crate) fn request_tick(&mut self, id: SessionId) -> bool {
        let Some(session) = self.sessions[id].as_mut() else { return false };
        let unscanned = session.timer.scanned() < session.cache.next_ordinal();
        let request = !session.ticking && unscanned && session.cache.unacked() > 0;
        session.ticking |= request;
        session.tick_requested |= request;
        request
    }

    /// When [`SourceCore::handle_timeout`] is due; `now` if a tick was asked for.
    pub(crate) fn poll_timeout(&self, id: SessionId, now: Instant) -> Option<Instant> {
        let session = self.sessions[id].as_ref()?;
        if session.tick_requested { Some(now) } else { session.timer.next_tick() }
    }

    /// S7: makes wait again what is due. `written` and `released` are how far the ring was written and how far the
    /// destination has consumed it.
    pub(crate) fn handle_timeout(&mut self, id: SessionId, now: Instant, written: u64, released: u64) {
        let Some(session) = self.sessions[id].as_mut() else { return };
        session.tick_requested = false;
        let next_ordinal = session.cache.next_ordinal();
        if session.cache.unacked() == 0 {
            session.timer.clear(next_ordinal);
            session.ticking = false;
            return;
        }
        // A tick that was asked for only notes what was sent until now.
        if session.timer.next_tick().is_some_and(|due| due <= now) {
            session.resend_due(now, released, &self.policy, &self.store);
        }
        session.ticking = session.timer.scanned() < next_ordinal;
        session.timer.finish_tick(now, next_ordinal, written, session.ticking, &self.policy);
    }

    /// Whether a destination has yet to be sent the newest change of an item.
    pub(crate) fn is_waiting(&self, item: ItemId) -> bool {
        let entry = EntryId::item(item);
        self.sessions.iter().flatten().any(|session| session.cache.entry(entry).is_waiting())
    }

    pub(crate) fn session_state(&self, id: SessionId) -> Option<SessionState> {
        let session = self.sessions.get(id)?.as_ref()?;
        Some(SessionState {
            unacked: session.cache.unacked(),
            tombstones: session.cache.tombstones(),
            failing: session.cache.failing(),
            replaying: !session.replay.is_walked(),
            counters: session.counters,
        })
    }

    /// A flush begins on every session; `flush` is a number below [`MAX_FLUSHES`] that is not in use.
    pub(crate) fn start_flush(&mut self, flush: usize) {
        for session in self.sessions.iter_mut().flatten() {
            let never_sent = session.cache.start_flush(flush, &self.store);
            session.replay.start_flush(flush, never_sent, self.store.last_change());
        }
    }

    /// The items of a session that a flush still waits for.
    pub(crate) fn flush_left(&self, id: SessionId, flush: usize) -> usize {
        let left = |session: &Session| session.cache.flush_left(flush) + session.replay.flush_left(flush);
        self.sessions[id].as_ref().map_or(0, left)
    }

    pub(crate) fn end_flush(&mut self, flush: usize) {
        for session in self.sessions.iter_mut().flatten() {
            session.cache.end_flush(flush);
            session.replay.end_flush(flush);
        }
    }
}

impl Session {
    fn add_table(&mut self, table: TableId, store: &mut Store) {
        let change = store.next_change();
        self.cache.record_control(EntryId::table_name(table), change);
        if self.replay.add_table(table, store) {
            self.mark_end(table, store);
        }
    }

    /// The end marker is an entry like any other: it has a number, waits while the ring is full and is acknowledged.
    fn mark_end(&mut self, table: TableId, store: &mut Store) {
        let change = store.next_change();
        self.cache.record_control(EntryId::table_end(table), change);
    }

    /// A table's own records first; then live changes and the replay take turns, so that neither starves the other.
    fn next(&mut self, store: &Store) -> Option<EntryId> {
        if let Some(control) = self.cache.next_control() {
            return Some(control);
        }
        if self.replay_goes {
            self.replay.next(&self.cache, store).or_else(|| self.cache.next_waiting())
        } else {
            self.cache.next_waiting().or_else(|| self.replay.next(&self.cache, store))
        }
    }

    fn frame<'a>(&mut self, entry: EntryId, store: &'a Store) -> Frame<'a> {
        let table = entry.table;
        let payload = match entry.kind() {
            EntryKind::Item(item) => {
                let item = store.item(item);
                let opcode = item.opcode.as_bytes();
                match &item.value {
                    Value::Data(value) => Payload::Set { opcode, value, created: item.created },
                    Value::Removed => Payload::Remove { opcode },
                    Value::Vacant => unreachable!("an entry of a vacant place was forgotten or acknowledged"),
                }
            }
            EntryKind::TableName => Payload::Table { name: &store.tables()[usize::from(table)].name },
            EntryKind::TableEnd => Payload::End { oldest_unacked: self.cache.oldest_unacked(store) },
        };
        let change = self.cache.change_of(entry, store);
        Frame { change, ordinal: self.cache.next_ordinal(), table, payload }
    }

    /// Makes wait again what has been in flight for long enough, as much of it as one tick may send.
    fn resend_due(&mut self, now: Instant, released: u64, policy: &ResendPolicy, store: &Store) {
        let mut budget = TickBudget::new(policy);
        while let Some((entry, change)) = self.timer.pop_held(now) {
            if !self.cache.entry(entry).is_in_flight() || self.cache.change_of(entry, store) != change {
                continue;
            }
            if !budget.take(self.record_bytes(entry, store)) {
                return self.timer.hold(now, (entry, change));
            }
            self.cache.resend(entry);
        }
        let Some((due_ordinal, sent_by)) = self.timer.due(now, released, policy) else { return };
        let mut due = Vec::new();
        let mut scanned = due_ordinal;
        for record in
            self.cache.in_flight_from(self.timer.scanned()).take_while(|record| record.ordinal < due_ordinal)
        {
            let entry: CacheEntry = self.cache.entry(record.entry);
            if entry.is_in_flight() && self.cache.is_newest(record, store) {
                let resend_at = sent_by + policy.backoff(entry.attempts());
                if resend_at > now {
                    self.timer.hold(resend_at, (record.entry, record.change));
                } else if budget.take(self.record_bytes(record.entry, store)) {
                    due.push(record.entry);
                } else {
                    scanned = record.ordinal;
                    break;
                }
            }
        }
        self.timer.advance_scanned(scanned);
        due.into_iter().for_each(|entry| self.cache.resend(entry));
    }

    fn record_bytes(&self, entry: EntryId, store: &Store) -> usize {
        let EntryKind::Item(item) = entry.kind() else { return HEADER_BYTES };
        let item = store.item(item);
        let value = if let Value::Data(value) = &item.value { value.len() } else { 0 };
        HEADER_BYTES + item.opcode.as_bytes().len() + value
    }
}
