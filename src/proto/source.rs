//! The source's end: its items, and for each destination what that destination has not acknowledged.
//!
//! Commands ([`SourceCore::set`], [`SourceCore::remove_hashed`], [`SourceCore::ready`], [`SourceCore::start_attach`] and its like) say what the
//! application and the link want. Then, per session, in this order:
//! [`SourceCore::handle_ack`] for every ack that came; [`SourceCore::poll_frame`] for the frame that goes next and
//! [`SourceCore::handle_sent`] once it is in the ring, until there is none or no room ([`SourceCore::handle_full`]);
//! [`SourceCore::poll_read`] for what the application must be asked for, and its answer to
//! [`SourceCore::poll_snapshot`] or [`SourceCore::handle_drawn`]; [`SourceCore::handle_timeout`] when
//! [`SourceCore::poll_timeout`] has come.
//!
//! Invariants:
//! 1. A frame is made from the store, or from a snapshot of the application's data, at the time it is sent: a resend
//!    carries the newest value, in the order of the ring. A snapshot counts for the change that was the newest when it was
//!    asked for, and for none if the item holds something else by then.
//! 2. Removing an item that was not sent on a session leaves nothing of it there, if the table keeps its items. If not, the
//!    destination may hold it from before.
//! 3. A tombstone exists while a session owes the ack of it, and each session owes it once.
//! 4. A session has at most `max_tombstones` tombstones, and an enumeration at most as many items that changed under it.
//!    One that would have more is given up: its destination attaches again.

mod attaching;
mod outlet;
mod reads;
mod session;

use std::time::Instant;

use super::ProtocolError;
use super::cache::{EntryId, EntryKind, Holds};
use super::resend::ResendPolicy;
use super::store::{Changed, HashedOpcode, Item, ItemId, NewValue, Store, TableId};
use crate::opcode::Opcode;
use crate::retention::Retention;
use crate::seq::{ChangeNumber, SyncSeq};
use crate::subscription::Subscription;
use crate::wire::{Ack, Frame};

use attaching::start_count;
use session::{Session, frame_of_data};

pub(crate) use attaching::Attaching;
pub(crate) use outlet::{Outlet, Runway};
pub(crate) use reads::{Drawn, Read, SnapshotRequest, Unreadable};

pub(crate) use super::cache::MAX_FLUSHES;
pub(crate) use session::SessionCounters;

/// Until so much data of a batch is stored none of it is recorded: about a quarter of what the nearest cache mostly has.
const UNRECORDED_BYTES: usize = 8192;

/// A session's place; used again once its destination is gone.
pub(crate) type SessionId = usize;

/// The memory of what was kept for a destination.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(crate) struct Detached {
    _session: Option<Session>,
}

#[cfg(test)]
impl Detached {
    pub(crate) fn is_empty(&self) -> bool {
        self._session.is_none()
    }
}

/// For the models: it has no influence.
#[cfg(test)]
impl std::hash::Hash for Detached {
    fn hash<H: std::hash::Hasher>(&self, _: &mut H) {}
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone, Hash))]
pub(crate) struct SourceCore {
    config: SourceConfig,
    store: Store,
    sessions: Vec<Option<Session>>,
    /// Sessions that were given up because they had too many tombstones, until their links are gone, too.
    overrun: Vec<(SessionId, Detached)>,
    counters: SourceCounters,
}

#[derive(Debug, Clone)]
pub(crate) struct SourceConfig {
    pub(crate) policy: ResendPolicy,
    /// An equal value is a change, too.
    pub(crate) send_equal: bool,
    pub(crate) first_seq: SyncSeq,
    /// Most removes that a destination may leave unacknowledged.
    pub(crate) max_tombstones: usize,
}

/// What the source counts, over all destinations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SourceCounters {
    /// Calls that changed an item.
    pub(crate) changes: u64,
    /// Sessions that were given up because they had too many tombstones.
    pub(crate) overruns: u64,
}

/// An item was given a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) changed: Changed,
    /// Its frame was taken wherever it is wanted, and nothing is left to be done for it in any session.
    pub(crate) at_once: bool,
}

/// The state of one session's cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SessionState {
    pub(crate) unacked: usize,
    pub(crate) pointers: usize,
    pub(crate) tombstones: usize,
    pub(crate) failing: usize,
    pub(crate) replaying: bool,
    pub(crate) counters: SessionCounters,
}

/// An entry of a sync cache, as it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EntryView<'a> {
    pub(crate) table: &'a str,
    pub(crate) opcode: &'a Opcode,
    pub(crate) change: ChangeNumber,
    pub(crate) holds: Holds,
    pub(crate) waiting: bool,
    pub(crate) attempts: u8,
}

/// A frame that goes next, and what to tell [`SourceCore::handle_sent`].
#[derive(Debug)]
pub(crate) struct Outgoing<'a> {
    pub(crate) entry: EntryId,
    pub(crate) frame: Frame<'a>,
}

impl SourceCore {
    pub(crate) fn new(config: SourceConfig) -> SourceCore {
        SourceCore {
            store: Store::new(config.first_seq),
            config,
            sessions: Vec::new(),
            overrun: Vec::new(),
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

    pub(crate) fn max_tombstones(&self) -> usize {
        self.config.max_tombstones
    }

    pub(crate) fn counters(&self) -> SourceCounters {
        self.counters
    }

    /// The table of that name, which is made if there is none; `None` if there are too many.
    pub(crate) fn table(&mut self, name: &str, retention: Retention) -> Option<TableId> {
        if let Some(table) = self.store.table_named(name) {
            return Some(table);
        }
        let table = self.store.add_table(name, retention)?;
        for session in self.sessions.iter_mut().flatten() {
            let count = start_count(&session.subscription, table, &mut self.store);
            session.add_table(table, count, &mut self.store);
        }
        Some(table)
    }

    /// As [`SourceCore::touch_hashed`], of an opcode that was not hashed yet.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn touch(&mut self, table: TableId, opcode: &Opcode) -> Option<ItemId> {
        let hasher = self.store.hasher().clone();
        self.touch_hashed(table, hasher.hashed(opcode))
    }

    /// As [`SourceCore::remove_hashed`], of an opcode that was not hashed yet.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn remove(&mut self, table: TableId, opcode: &Opcode) -> Option<ItemId> {
        let hasher = self.store.hasher().clone();
        self.remove_hashed(table, hasher.hashed(opcode))
    }

    /// As [`SourceCore::set_hashed`], of an opcode that was not hashed yet.
    pub(crate) fn set(
        &mut self,
        table: TableId,
        opcode: &Opcode,
        value: NewValue<'_>,
        outlet: &mut impl Outlet,
    ) -> Option<Set> {
        let opcode = self.store.hasher().hashed(opcode);
        self.set_hashed(table, opcode, value, outlet)
    }

    /// S1 to S3: gives an item its newest value, or a pointer to it, and records that for each destination. The opcode is hashed by the
    /// [store's hasher](Store::hasher).
    ///
    /// Where nothing has to go before it, its frame goes to the outlet at once (S2). If there is no room, it waits, and
    /// [`SourceCore::poll_frame`] has it. `None` if the item had this value already.
    #[inline]
    pub(crate) fn set_hashed(
        &mut self,
        table: TableId,
        opcode: HashedOpcode<'_>,
        value: NewValue<'_>,
        outlet: &mut impl Outlet,
    ) -> Option<Set> {
        let changed = self.store.set(table, opcode, value, self.config.send_equal)?;
        let done = self.send_at_once(table, changed, outlet);
        let at_once = done == self.sessions.len() && self.store.tables()[usize::from(table)].keeps_all();
        if at_once {
            self.counters.changes += 1;
        } else {
            self.record_behind(table, changed, done, outlet);
        }
        Some(Set { changed, at_once })
    }

    /// S3 and S2 for a change that is made alone, in one session after the other, until it does not go at once in one. Answers how
    /// many places of sessions are done with. The frame is made once for all.
    #[inline(always)]
    fn send_at_once(&mut self, table: TableId, changed: Changed, outlet: &mut impl Outlet) -> usize {
        let item = &self.store.tables()[usize::from(table)].items()[changed.index as usize];
        let Some(frame) = frame_of_data(item, 0, table) else { return 0 };
        for (id, session) in self.sessions.iter_mut().enumerate() {
            let Some(session) = session else { continue };
            if !session.send_at_once(id, changed, &item.opcode, frame, true, outlet) {
                return id;
            }
        }
        self.sessions.len()
    }

    /// As [`SourceCore::record_changes`], for one change, without the sessions before `from`.
    #[inline(never)]
    fn record_behind(&mut self, table: TableId, changed: Changed, from: usize, outlet: &mut impl Outlet) {
        self.record_changes(table, &[changed], |session, id, store| {
            if id >= from {
                session.record_set(id, table, changed, store, outlet);
            }
        });
    }

    /// As [`SourceCore::set`], for data of several items; adds those that have changed to `changed`. As many as stay in the nearest
    /// cache are stored before the first of them goes, so if one of them is set twice its newest value goes, once.
    #[inline]
    pub(crate) fn set_many<'a>(
        &mut self,
        table: TableId,
        items: impl Iterator<Item = (&'a Opcode, &'a [u8])>,
        changed: &mut Vec<Changed>,
        outlet: &mut impl Outlet,
    ) {
        if !self.store.tables()[usize::from(table)].keeps_all() {
            // Each counts towards a limit, and is held against it. They wait until all are recorded.
            for (opcode, data) in items {
                let set = self.set(table, opcode, NewValue::Data(data), &mut ());
                changed.extend(set.map(|set| set.changed));
            }
            return;
        }
        let mut unrecorded = Unrecorded { core: self, table, from: changed.len(), changed, outlet };
        let mut bytes = 0;
        for (opcode, data) in items {
            let SourceCore { store, config, .. } = &mut *unrecorded.core;
            let opcode = store.hasher().hashed(opcode);
            if let Some(item) = store.set(table, opcode, NewValue::Data(data), config.send_equal) {
                unrecorded.changed.push(item);
            }
            bytes += size_of::<Opcode>() + data.len();
            if bytes >= UNRECORDED_BYTES {
                unrecorded.record();
                bytes = 0;
            }
        }
    }

    /// Has what setting these will need brought near, all at the same time, so that setting them does not wait for memory one
    /// after the other.
    pub(crate) fn prefetch<'a>(&self, table: TableId, opcodes: impl Iterator<Item = &'a Opcode>) {
        self.store.prefetch(table, opcodes, |item| {
            for session in self.sessions.iter().flatten() {
                session.cache.prefetch(EntryId::item(item));
            }
        });
    }

    /// S3 for the data that a pointer leads to: it has changed, and the entry gets a new number. `None` if the item is no
    /// pointer.
    pub(crate) fn touch_hashed(&mut self, table: TableId, opcode: HashedOpcode<'_>) -> Option<ItemId> {
        let id = self.store.touch(table, opcode)?;
        let changed = Changed { index: id.index, created: false };
        self.record_changes(table, &[changed], |session, _, store| {
            session.record_waiting(table, changed, store);
        });
        Some(id)
    }

    /// Removes an item; `None` if there is none. The item's place may be vacant already.
    pub(crate) fn remove_hashed(&mut self, table: TableId, hashed: HashedOpcode<'_>) -> Option<ItemId> {
        let opcode = hashed.opcode;
        let id = self.store.remove(table, hashed)?;
        self.counters.changes += 1;
        let keeps_all = self.store.tables()[usize::from(table)].keeps_all();
        let Item { change, created, .. } = *self.store.item(id);
        let entry = EntryId::item(id);
        for session in self.sessions.iter_mut().flatten().filter(|session| session.wants(table, opcode)) {
            let before = session.cache.entry(entry);
            if before.is_sent() || !keeps_all {
                let recorded = session.cache.record(entry, Holds::Remove, change);
                session.counters.coalesced += u64::from(recorded.coalesced);
                if keeps_all || recorded.is_new {
                    self.store.owe(id, 1);
                }
            } else {
                session.counters.coalesced += u64::from(before.is_unacked());
                session.replay.take_flushes(created, before.flushes());
                session.cache.forget(entry);
                if session.replay.handle_named(table, created) {
                    session.mark_end(table, &mut self.store);
                }
            }
        }
        self.give_up_overrun(table);
        self.store.vacate_if_unowed(id);
        Some(id)
    }

    /// The application has loaded the table: a destination may remove what was not named to it.
    pub(crate) fn ready(&mut self, table: TableId) {
        self.store.table_mut(table).ready = true;
        for session in self.sessions.iter_mut().flatten() {
            if session.replay.handle_ready(table, &mut self.store) {
                session.mark_end(table, &mut self.store);
            }
        }
    }

    /// A destination is about to attach, that wants this: [`SourceCore::go_on_attaching`] until all
    /// [is counted](Attaching::is_counted); then it takes no long time to [attach](SourceCore::attach). It may at once, too. Only a
    /// table that comes meanwhile is counted then.
    pub(crate) fn start_attach(&mut self, subscription: Subscription) -> Attaching {
        Attaching::start(subscription, &mut self.store)
    }

    /// Counts some of the items that a destination wants which is about to attach.
    pub(crate) fn go_on_attaching(&mut self, attaching: &mut Attaching) {
        attaching.go_on(&mut self.store);
    }

    /// As [`SourceCore::attach`], without anything before it.
    #[cfg(test)]
    pub(crate) fn attach_at_once(&mut self, subscription: Subscription) -> SessionId {
        let attaching = self.start_attach(subscription);
        self.attach(attaching)
    }

    /// A destination attaches; it is owed the full state of what it wants.
    pub(crate) fn attach(&mut self, attaching: Attaching) -> SessionId {
        let Attaching { subscription, counts, .. } = attaching;
        let mut session = Session::new(subscription);
        let mut counts = counts.into_iter();
        for table in 0..self.store.tables().len() as TableId {
            let count =
                counts.next().unwrap_or_else(|| start_count(&session.subscription, table, &mut self.store));
            session.add_table(table, count, &mut self.store);
        }
        let mut vacant = self.sessions.iter().zip(0..).filter(|(session, _)| session.is_none());
        let vacant = vacant.find(|(_, id)| !self.is_overrun(*id)).map(|(_, id)| id);
        let id = vacant.unwrap_or(self.sessions.len());
        if vacant.is_none() {
            self.sessions.push(None);
        }
        self.sessions[id] = Some(session);
        id
    }

    /// A destination is gone: all that was kept for it goes, too. To free its memory may take long, and needs no lock.
    pub(crate) fn detach(&mut self, id: SessionId) -> Detached {
        match self.overrun.iter().position(|(other, _)| *other == id) {
            Some(at) => self.overrun.swap_remove(at).1,
            None => self.take_session(id),
        }
    }

    /// Whether a session has as many tombstones as it may.
    pub(crate) fn is_at_bound(&self) -> bool {
        let max = self.config.max_tombstones;
        self.sessions.iter().flatten().any(|session| session.cache.tombstones() >= max)
    }

    /// Whether the session was given up because it had too many tombstones. Its link is to be closed.
    pub(crate) fn is_overrun(&self, id: SessionId) -> bool {
        self.overrun.iter().any(|(other, _)| *other == id)
    }

    /// The frame that goes next on a session, if any, of what is here. It stays the next until it was sent or a command
    /// changed that. If there is none, that ends a turn ([`SourceCore::end_turn`]).
    #[inline]
    pub(crate) fn poll_frame(&mut self, id: SessionId) -> Option<Outgoing<'_>> {
        let session = self.sessions[id].as_mut()?;
        let Some(entry) = session.next(&self.store) else {
            session.replay.end_turn();
            return None;
        };
        Some(Outgoing { entry, frame: session.frame(entry, &self.store) })
    }

    /// Others get the lock before [`SourceCore::poll_frame`] is called again. In between it looks at a bounded number of items.
    #[inline]
    pub(crate) fn end_turn(&mut self, id: SessionId) {
        if let Some(session) = &mut self.sessions[id] {
            session.replay.end_turn();
        }
    }

    /// Whether there is nothing to send, for sure. If not, [`SourceCore::poll_frame`] knows. A session that was given up is not
    /// quiet: its link is to be closed.
    #[inline]
    pub(crate) fn is_quiet(&self, id: SessionId) -> bool {
        self.sessions[id].as_ref().is_some_and(|session| session.cache.is_quiet() && session.replay.is_over())
    }

    /// Whether all that a destination is owed was acknowledged.
    #[inline]
    pub(crate) fn is_settled(&self, id: SessionId) -> bool {
        self.sessions[id]
            .as_ref()
            .is_some_and(|session| session.cache.unacked() == 0 && session.replay.is_over())
    }

    /// Whether there may be a frame although [`SourceCore::poll_frame`] had none: it looks at so many items at a time.
    pub(crate) fn is_walking(&self, id: SessionId) -> bool {
        self.sessions[id].as_ref().is_some_and(|session| !session.replay.is_walked())
    }

    /// S2: the frame is in the ring.
    #[inline]
    pub(crate) fn handle_sent(&mut self, id: SessionId, entry: EntryId) {
        if let Some(session) = self.sessions[id].as_mut() {
            let change = session.change_of(entry, &self.store);
            session.handle_sent(entry, change, &mut self.store);
        }
    }

    /// A frame did not fit the ring.
    pub(crate) fn handle_full(&mut self, id: SessionId) {
        if let Some(session) = self.sessions[id].as_mut() {
            session.handle_full();
        }
    }

    /// Whether [`SourceCore::poll_read`] has something.
    pub(crate) fn has_reads(&mut self, id: SessionId) -> bool {
        self.sessions[id].as_mut().is_some_and(Session::has_reads)
    }

    /// When a session's enumeration of the table began; the newest change of all if none is under way.
    #[cfg(test)]
    pub(crate) fn enumeration_began(&self, id: SessionId, table: TableId) -> ChangeNumber {
        let session = self.sessions[id].as_ref();
        session
            .and_then(|session| session.replay.enumeration_began(table))
            .unwrap_or(self.store.last_change())
    }

    /// Records that a session remembers until they are acknowledged.
    #[cfg(test)]
    pub(crate) fn in_flight(&self, id: SessionId) -> usize {
        self.sessions[id].as_ref().map_or(0, |session| session.cache.in_flight_from(0).count())
    }

    #[cfg(test)]
    pub(crate) fn is_enumerating(&self, id: SessionId) -> bool {
        self.sessions[id].as_ref().is_some_and(|session| session.replay.enumerating().next().is_some())
    }

    /// S6: the destination has applied these records.
    #[inline]
    pub(crate) fn handle_ack(&mut self, id: SessionId, ack: Ack) -> Result<(), ProtocolError> {
        let Some(session) = self.sessions[id].as_mut() else { return Ok(()) };
        let before = session.cache.unacked();
        if session.cache.handle_ack_of_oldest(&ack) {
            session.counters.acked += (before - session.cache.unacked()) as u64;
            return Ok(());
        }
        self.handle_ack_of_range(id, ack)
    }

    #[inline(never)]
    fn handle_ack_of_range(&mut self, id: SessionId, ack: Ack) -> Result<(), ProtocolError> {
        let Some(session) = self.sessions[id].as_mut() else { return Ok(()) };
        let mut settled = Vec::new();
        let mut ungated = Vec::new();
        let outcome = session.cache.handle_ack(ack, |deleted| {
            if let (EntryKind::Item(item), true) = (deleted.entry.kind(), deleted.item_is_owed) {
                settled.push(item);
            }
            // The ack of an earlier copy of the same change can come before this one was sent.
            if deleted.was_gated {
                ungated.push(deleted.entry.table);
            }
        });
        session.counters.acked += *outcome.as_ref().unwrap_or(&0) as u64;
        for table in ungated {
            session.handle_ungated(table, &mut self.store);
        }
        for item in settled {
            self.store.settle(item);
        }
        outcome.map(|_| ())
    }

    /// Asks for a tick if something was sent that no tick has looked at, and none is planned. Answers whether it did: then
    /// whoever keeps the time must be told. What waits for room needs no tick, and what is held for later has its own.
    pub(crate) fn request_tick(&mut self, id: SessionId) -> bool {
        let Some(session) = self.sessions[id].as_mut() else { return false };
        if session.ticking {
            return false;
        }
        let unscanned = session.timer.scanned() < session.cache.next_ordinal();
        let request = unscanned && session.cache.unacked() > 0;
        session.ticking = request;
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
        let policy = &self.config.policy;
        if session.cache.unacked() == 0 {
            // While changes come and go, one more tick costs less than to be asked for the next.
            let is_busy = session.timer.scanned() < next_ordinal;
            session.timer.clear(next_ordinal, is_busy.then(|| now + policy.calm_tick()));
            session.ticking = is_busy;
            return;
        }
        // A tick that was asked for only notes what was sent until now.
        if session.timer.next_tick().is_some_and(|due| due <= now) {
            session.resend_due(now, released, policy, &self.store);
        }
        session.ticking = session.timer.scanned() < next_ordinal;
        session.timer.finish_tick(now, next_ordinal, written, session.ticking, policy);
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
            pointers: session.cache.pointers(),
            tombstones: session.cache.tombstones(),
            failing: session.cache.failing(),
            replaying: !session.replay.is_over(),
            counters: session.counters,
        })
    }

    /// The entries of a session's sync cache that stand for items.
    pub(crate) fn entries(&self, id: SessionId) -> impl Iterator<Item = EntryView<'_>> {
        let session = self.sessions.get(id).and_then(Option::as_ref);
        session.into_iter().flat_map(|session| {
            let items = session.cache.unacked_items();
            items.map(|(item, _)| self.entry_view(session, EntryId::item(item), item))
        })
    }

    /// Some of those that were sent again several times.
    pub(crate) fn failing(&self, id: SessionId) -> impl Iterator<Item = EntryView<'_>> {
        let session = self.sessions.get(id).and_then(Option::as_ref);
        session.into_iter().flat_map(|session| {
            session.cache.failing_examples().filter_map(|entry| match entry.kind() {
                EntryKind::Item(item) => Some(self.entry_view(session, entry, item)),
                EntryKind::TableName | EntryKind::TableEnd => None,
            })
        })
    }

    /// A flush begins, on one session or on all; `flush` is a number below [`MAX_FLUSHES`] that is not in use.
    pub(crate) fn start_flush(&mut self, flush: usize, only: Option<SessionId>) {
        let sessions =
            self.sessions.iter_mut().zip(0..).filter(|(_, id)| only.is_none_or(|only| only == *id));
        for session in sessions.filter_map(|(session, _)| session.as_mut()) {
            let never_sent = session.cache.start_flush(flush);
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

    /// S3: has each session record these changes of a table.
    #[inline(always)]
    fn record_changes(
        &mut self,
        table: TableId,
        changed: &[Changed],
        mut record: impl FnMut(&mut Session, SessionId, &mut Store),
    ) {
        self.counters.changes += changed.len() as u64;
        for (session, id) in self.sessions.iter_mut().zip(0..) {
            if let Some(session) = session {
                record(session, id, &mut self.store);
            }
        }
        if !self.store.tables()[usize::from(table)].keeps_all() {
            self.give_up_overrun(table);
            for &Changed { index, .. } in changed {
                self.store.vacate_if_unowed(ItemId { table, index });
            }
        }
    }

    /// Gives up the sessions that have too many tombstones, or whose enumeration of the table has too many changes.
    fn give_up_overrun(&mut self, table: TableId) {
        let max = self.config.max_tombstones;
        let changed = self.store.tables()[usize::from(table)].changed_len();
        for id in 0..self.sessions.len() {
            let Some(session) = &self.sessions[id] else { continue };
            let enumerates = changed > max && session.replay.enumeration_began(table).is_some();
            if enumerates || session.cache.tombstones() > max {
                let detached = self.take_session(id);
                self.overrun.push((id, detached));
                self.counters.overruns += 1;
            }
        }
    }

    /// Takes a session's place away from it, if it has one. What is left of it is memory.
    fn take_session(&mut self, id: SessionId) -> Detached {
        let session = self.sessions[id].take();
        if let Some(session) = &session {
            for item in session.cache.owed() {
                self.store.settle(item);
            }
            for table in session.replay.enumerating() {
                self.store.end_enumeration(table);
            }
        }
        Detached { _session: session }
    }

    fn entry_view(&self, session: &Session, entry: EntryId, item: ItemId) -> EntryView<'_> {
        let state = session.cache.entry(entry);
        let stored = self.store.item(item);
        EntryView {
            table: &self.store.tables()[usize::from(item.table)].name,
            opcode: &stored.opcode,
            change: stored.change,
            holds: state.holds(),
            waiting: state.is_waiting(),
            attempts: state.attempts(),
        }
    }
}

/// Changes of a batch that are stored, and to be recorded: every few kilobytes, and in the end, even if the iterator that they
/// come from panics.
struct Unrecorded<'a, O: Outlet> {
    core: &'a mut SourceCore,
    table: TableId,
    changed: &'a mut Vec<Changed>,
    /// Those before it are recorded.
    from: usize,
    outlet: &'a mut O,
}

impl<O: Outlet> Unrecorded<'_, O> {
    #[inline(always)]
    fn record(&mut self) {
        let from = std::mem::replace(&mut self.from, self.changed.len());
        let (table, changed, outlet) = (self.table, &self.changed[from..], &mut *self.outlet);
        self.core.record_changes(table, changed, |session, id, store| {
            session.record_sets(id, table, changed, store, outlet);
        });
    }
}

impl<O: Outlet> Drop for Unrecorded<'_, O> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.from < self.changed.len() {
            self.record();
        }
    }
}

/// For the models: the configuration stays, and what is counted has no influence.
#[cfg(test)]
mod hash {
    use std::hash::{Hash, Hasher};

    impl Hash for super::SourceConfig {
        fn hash<H: Hasher>(&self, _: &mut H) {}
    }

    impl Hash for super::SourceCounters {
        fn hash<H: Hasher>(&self, _: &mut H) {}
    }
}
