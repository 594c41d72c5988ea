//! What the source keeps for one destination that is attached.

use std::time::Instant;

use super::super::cache::{CacheEntry, EntryId, EntryKind, Holds, InFlight, SyncCache};
use super::super::replay::Replay;
use super::super::resend::{ResendPolicy, ResendTimer, TickBudget};
use super::super::store::{Changed, CountId, Item, ItemId, Store, TableId, Value};
use super::{Outlet, SessionId};
use crate::opcode::Opcode;
use crate::seq::ChangeNumber;
use crate::subscription::{Selection, Subscription};
use crate::wire::{Frame, HEADER_BYTES, Payload};

/// One attachment of a destination.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone, Hash))]
pub(super) struct Session {
    pub(super) subscription: Subscription,
    /// By table: what the destination wants of it.
    selections: Vec<Option<Selection>>,
    pub(super) cache: SyncCache,
    pub(super) replay: Replay,
    pub(super) timer: ResendTimer<(EntryId, ChangeNumber)>,
    /// A tick is planned, or asked for, that looks at what is in flight.
    pub(super) ticking: bool,
    /// It was asked for and has not been yet.
    pub(super) tick_requested: bool,
    /// Who goes next when both live changes and the replay could.
    replay_goes: bool,
    /// Who goes next when both a pointer and an enumeration could be read.
    enumeration_goes: bool,
    /// The record that was sent last had to be read first.
    read_went: bool,
    /// The ring was full, and now it is the turn of what must be read first.
    read_owed: bool,
    pub(super) counters: SessionCounters,
}

/// What the source counts for one destination.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SessionCounters {
    pub(crate) sent: u64,
    pub(crate) resent: u64,
    pub(crate) coalesced: u64,
    pub(crate) acked: u64,
    /// Data that could not be read when it was to be sent.
    pub(crate) unreadable: u64,
}

impl Session {
    pub(super) fn new(subscription: Subscription) -> Session {
        Session {
            subscription,
            selections: Vec::new(),
            cache: SyncCache::default(),
            replay: Replay::new(),
            timer: ResendTimer::new(),
            ticking: false,
            tick_requested: false,
            replay_goes: false,
            enumeration_goes: false,
            read_went: false,
            read_owed: false,
            counters: SessionCounters::default(),
        }
    }

    /// Takes in a table, if the destination wants anything of it, and the count of what it wants, if that is not all.
    pub(super) fn add_table(&mut self, table: TableId, count: Option<CountId>, store: &mut Store) {
        let stored = &store.tables()[usize::from(table)];
        let selection = self.subscription.of(&stored.name);
        self.cache.add_table(stored.keeps_all());
        self.selections.push(selection.clone());
        let wanted = count.map(|count| store.end_count(table, count));
        if selection.is_some() {
            let change = store.next_change();
            self.cache.record(EntryId::table_name(table), Holds::Data, change);
        }
        if self.replay.add_table(table, selection, wanted, store) {
            self.mark_end(table, store);
        }
    }

    #[inline]
    pub(super) fn wants(&self, table: TableId, opcode: &Opcode) -> bool {
        self.selections[usize::from(table)].as_ref().is_some_and(|selection| selection.takes(opcode))
    }

    /// The end marker is an entry like any other: it has a number, waits while the ring is full and is acknowledged.
    pub(super) fn mark_end(&mut self, table: TableId, store: &mut Store) {
        let (entry, change) = (EntryId::table_end(table), store.next_change());
        self.cache.record(entry, Holds::Data, change);
        self.wait_for(entry, self.replay.enumeration_flushes(table));
        self.replay.forget_enumeration_flushes(table);
    }

    /// What goes next of what is here. A table's own records first; then live changes and the replay take turns, so that
    /// neither starves the other.
    #[inline]
    pub(super) fn next(&mut self, store: &Store) -> Option<EntryId> {
        if let Some(control) = self.cache.next_control() {
            return Some(control);
        }
        if self.read_owed && self.has_reads() {
            return None;
        }
        if self.replay_goes {
            self.replay.next(&mut self.cache, store).or_else(|| self.cache.next_waiting(false))
        } else {
            let live = self.cache.next_waiting(false);
            live.or_else(|| self.replay.next(&mut self.cache, store))
        }
    }

    /// Whether something waits that the application must be asked for, and may go: a table's own records go first, as an
    /// item before its table's name means nothing to the destination.
    #[inline]
    pub(super) fn has_reads(&mut self) -> bool {
        if !self.cache.may_have_pointers() && self.replay.enumerating().next().is_none() {
            return false;
        }
        let may_read = self.cache.next_control().is_none();
        may_read && (self.cache.next_waiting(true).is_some() || self.replay.may_draw())
    }

    /// Whether an enumeration is to be drawn from, and not a pointer to be read. They take turns.
    pub(super) fn enumeration_goes(&mut self) -> bool {
        self.enumeration_goes = !self.enumeration_goes;
        let (pointer, enumeration) = (self.cache.next_waiting(true).is_some(), self.replay.may_draw());
        enumeration && (self.enumeration_goes || !pointer)
    }

    /// The ring is full: if the last record was one that was here, those that must be read have the next turn. So both go
    /// forward in each ring-full, however fast the publishers fill it.
    pub(super) fn handle_full(&mut self) {
        self.read_owed = !self.read_went && self.has_reads();
    }

    /// The application was asked for something.
    pub(super) fn handle_read(&mut self) {
        self.read_owed = false;
    }

    /// S3: records what was set of a table in one batch. What may go at once does (S2). `id` is what the outlet knows this
    /// session by.
    #[inline]
    pub(super) fn record_sets(
        &mut self,
        id: SessionId,
        table: TableId,
        mut changed: &[Changed],
        store: &mut Store,
        outlet: &mut impl Outlet,
    ) {
        while self.replay.is_over() && self.cache.is_quiet() {
            let in_run = self.send_run(id, table, changed, store, outlet);
            // Where the runway ends, one by itself may still find room, and another runway behind it.
            let Some((&next, behind)) = changed[in_run..].split_first() else { return };
            self.record_set(id, table, next, store, outlet);
            changed = behind;
        }
        for &changed in changed {
            self.record_waiting(table, changed, store);
        }
    }

    /// As [`Session::record_sets`], for one change.
    #[inline]
    pub(super) fn record_set(
        &mut self,
        id: SessionId,
        table: TableId,
        changed: Changed,
        store: &mut Store,
        outlet: &mut impl Outlet,
    ) {
        let item = store.item(ItemId { table, index: changed.index });
        let sent = frame_of_data(item, 0, table)
            .is_some_and(|frame| self.send_at_once(id, changed, &item.opcode, frame, false, outlet));
        if !sent {
            self.record_waiting(table, changed, store);
        }
    }

    /// Sends what has just been changed as long as it may go at once and there is a runway: it is recorded first, and then put
    /// in the ring. It may go if nothing waits, the destination was sent the item before, and its entry holds data.
    /// Answers how many of them are done with: in the ring, or of a table of which the destination wants nothing.
    #[inline(always)]
    fn send_run<O: Outlet>(
        &mut self,
        id: SessionId,
        table: TableId,
        changed: &[Changed],
        store: &Store,
        outlet: &mut O,
    ) -> usize {
        let Some(selection) = &self.selections[usize::from(table)] else { return changed.len() };
        let items = store.tables()[usize::from(table)].items();
        let Some(mut at_once) = self.cache.at_once(table) else { return 0 };
        let mut runway = outlet.runway(id);
        let (mut sent, first) = (0, at_once.ordinal());
        for &Changed { index, .. } in changed {
            let Some(entry) = at_once.entry(index) else { break };
            let item = &items[index as usize];
            // One that is set twice is recorded with its newest value the first time.
            if entry.change() != item.change {
                let frame = frame_of_data(item, 0, table).filter(|_| selection.takes(&item.opcode));
                if !frame.is_some_and(|frame| runway.take(O::bytes_of(frame.len_bytes()))) {
                    break;
                }
                entry.handle_sent(item.change);
            }
            sent += 1;
        }
        let frames = at_once.ordinal() - first;
        if frames > 0 {
            let frame_of = |record: &InFlight| {
                let item = &items[record.entry.item_index()];
                frame_of_data(item, record.ordinal, table).expect("it was recorded because it has data")
            };
            outlet.put(id, self.cache.sent_last(frames as usize).map(frame_of));
        }
        self.handle_sent_at_once(sent, frames);
        sent
    }

    /// As [`Session::send_run`], for one change, which is in the ring before it is recorded. `frame` is its frame, but for the
    /// ordinal. If it comes `alone`, it is published, too, and does not go if a tick would have to be asked for besides. Answers
    /// whether it is done with.
    #[inline(always)]
    pub(super) fn send_at_once(
        &mut self,
        id: SessionId,
        changed: Changed,
        opcode: &Opcode,
        frame: Frame<'_>,
        alone: bool,
        outlet: &mut impl Outlet,
    ) -> bool {
        if !self.wants(frame.table, opcode) {
            return true;
        }
        if (alone && !self.ticking) || !self.replay.is_over() {
            return false;
        }
        let Some(mut at_once) = self.cache.at_once(frame.table) else { return false };
        let ordinal = at_once.ordinal();
        let Some(entry) = at_once.entry(changed.index) else { return false };
        if !outlet.offer(id, &Frame { ordinal, ..frame }, alone) {
            return false;
        }
        entry.handle_sent(frame.change);
        self.handle_sent_at_once(1, 1);
        true
    }

    /// So many changes were sent at once, by so many frames: fewer, if an item was set twice.
    #[inline(always)]
    fn handle_sent_at_once(&mut self, changes: usize, frames: u64) {
        if frames > 0 {
            self.counters.sent += frames;
            self.read_went = false;
            self.cache.compact_if_long();
        }
        self.counters.coalesced += changes as u64 - frames;
    }

    /// Records a change that does not go at once, if the destination wants the item.
    #[inline(never)]
    pub(super) fn record_waiting(&mut self, table: TableId, changed: Changed, store: &mut Store) {
        let id = ItemId { table, index: changed.index };
        let item = store.item(id);
        if !self.wants(table, &item.opcode) {
            return;
        }
        let (entry, keeps_all) = (EntryId::item(id), store.tables()[usize::from(table)].keeps_all());
        let before = self.cache.entry(entry);
        if before.is_unacked() && before.change() == item.change {
            // It was set twice, and recorded with its newest value.
            self.counters.coalesced += 1;
            return;
        }
        if keeps_all && changed.created && !before.is_sent() {
            self.replay.handle_created(table);
        }
        let recorded = self.cache.record(entry, Holds::of(item), item.change);
        self.counters.coalesced += u64::from(recorded.coalesced);
        if !keeps_all && recorded.is_new {
            store.owe(id, 1);
        }
    }

    /// S2: a frame is in the ring.
    #[inline]
    pub(super) fn handle_sent(&mut self, entry: EntryId, change: ChangeNumber, store: &mut Store) {
        self.counters.sent += 1;
        let before = self.cache.entry(entry);
        self.counters.resent += u64::from(before.attempts() > 0);
        let first_of_kept = match entry.kind() {
            EntryKind::Item(item)
                if !before.is_sent() && store.tables()[usize::from(entry.table)].keeps_all() =>
            {
                Some(store.item(item).created)
            }
            _ => None,
        };
        if let Some(created) = first_of_kept {
            let flushes = self.replay.take_flushes(created, before.flushes());
            self.cache.add_flushes(entry, flushes);
        }
        self.cache.handle_sent(entry, change, || match entry.kind() {
            EntryKind::Item(item) => Holds::of(store.item(item)),
            EntryKind::TableName | EntryKind::TableEnd => unreachable!("a table's own records are recorded"),
        });
        self.read_went = before.is_pointer();
        if self.read_went {
            self.handle_read();
        }
        self.replay_goes = !self.replay_goes;
        if self.replay_goes {
            self.replay.turn();
        }
        if first_of_kept.is_some_and(|created| self.replay.handle_named(entry.table, created)) {
            self.mark_end(entry.table, store);
        }
        if before.is_gated() {
            self.handle_ungated(entry.table, store);
        }
    }

    /// A table's end marker waits for one entry less.
    pub(super) fn handle_ungated(&mut self, table: TableId, store: &mut Store) {
        if self.replay.handle_ungated(table) {
            self.mark_end(table, store);
        }
    }

    /// The frame of an entry whose data is in the store.
    #[inline]
    pub(super) fn frame<'a>(&mut self, entry: EntryId, store: &'a Store) -> Frame<'a> {
        let payload = match entry.kind() {
            EntryKind::Item(item) => {
                let item = store.item(item);
                let opcode = item.opcode.as_bytes();
                match &item.value {
                    Value::Data(value) => Payload::Set { opcode, value, created: item.created },
                    Value::Removed => Payload::Remove { opcode },
                    Value::Pointer(_) => unreachable!("pointers wait in a queue of their own"),
                    Value::Vacant => unreachable!("an entry of a vacant place was forgotten or acknowledged"),
                }
            }
            EntryKind::TableName => {
                let table = &store.tables()[usize::from(entry.table)];
                Payload::Table { name: &table.name, items: table.live.into() }
            }
            EntryKind::TableEnd => Payload::End { oldest_unacked: self.cache.oldest_unacked() },
        };
        self.frame_of(entry, self.change_of(entry, store), payload)
    }

    /// The newest change of what an entry stands for, whether it exists yet or not.
    #[inline]
    pub(super) fn change_of(&self, entry: EntryId, store: &Store) -> ChangeNumber {
        match entry.kind() {
            EntryKind::Item(item) => store.item(item).change,
            EntryKind::TableName | EntryKind::TableEnd => self.cache.entry(entry).change(),
        }
    }

    #[inline(always)]
    pub(super) fn frame_of<'a>(
        &self,
        entry: EntryId,
        change: ChangeNumber,
        payload: Payload<'a>,
    ) -> Frame<'a> {
        Frame { change, ordinal: self.cache.next_ordinal(), table: entry.table, payload }
    }

    /// An enumeration has named an item, of which nothing newer is known. It becomes an entry like any change, unless the
    /// item has one already; the table's end marker waits for either.
    pub(super) fn handle_enumerated(&mut self, item: ItemId, store: &mut Store) {
        let entry = EntryId::item(item);
        if !self.cache.entry(entry).is_unacked() {
            let stored = store.item(item);
            self.cache.record(entry, Holds::of(stored), stored.change);
            store.owe(item, 1);
        }
        self.gate(entry);
    }

    /// An enumeration has named the item of this entry: the table's end marker waits until it was sent, unless it was, and the
    /// flushes that wait for the enumeration wait until it is acknowledged, unless it is.
    pub(super) fn gate(&mut self, entry: EntryId) {
        let state = self.cache.entry(entry);
        if state.is_unacked() {
            self.wait_for(entry, self.replay.enumeration_flushes(entry.table));
        }
        if state.is_waiting() && !state.is_sent() && self.cache.gate(entry) {
            self.replay.gate(entry.table);
        }
    }

    fn wait_for(&mut self, entry: EntryId, flushes: u16) {
        let new = flushes & !self.cache.entry(entry).flushes();
        self.cache.add_flushes(entry, new);
    }

    /// S7: makes wait again what has been in flight for long enough, as much of it as one tick may send.
    pub(super) fn resend_due(&mut self, now: Instant, released: u64, policy: &ResendPolicy, store: &Store) {
        let mut budget = TickBudget::new(policy);
        while let Some((entry, change)) = self.timer.pop_held(now) {
            if !self.cache.entry(entry).is_in_flight() || self.cache.entry(entry).change() != change {
                continue;
            }
            if !budget.take(frame_bytes(entry, store)) {
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
            if entry.is_in_flight() && self.cache.is_newest(record) {
                let resend_at = sent_by + policy.backoff(entry.attempts());
                if resend_at > now {
                    self.timer.hold(resend_at, (record.entry, record.change));
                } else if budget.take(frame_bytes(record.entry, store)) {
                    due.push(record.entry);
                } else {
                    scanned = record.ordinal;
                    break;
                }
            }
        }
        self.timer.advance_scanned(scanned);
        // One entry can be due twice: an enumeration has named an item under the number that it had, and the copy that was
        // acknowledged then is still in the list.
        for entry in due {
            if self.cache.entry(entry).is_in_flight() {
                self.cache.resend(entry);
            }
        }
    }
}

/// The frame of an item that has just been set, if its data is here.
#[inline(always)]
pub(super) fn frame_of_data(item: &Item, ordinal: u64, table: TableId) -> Option<Frame<'_>> {
    let Value::Data(value) = &item.value else { return None };
    let payload = Payload::Set { opcode: item.opcode.as_bytes(), value, created: item.created };
    Some(Frame { change: item.change, ordinal, table, payload })
}

/// For the models: what is counted has no influence.
#[cfg(test)]
impl std::hash::Hash for SessionCounters {
    fn hash<H: std::hash::Hasher>(&self, _: &mut H) {}
}

/// The length of an entry's frame, without data that is not here.
fn frame_bytes(entry: EntryId, store: &Store) -> usize {
    let EntryKind::Item(item) = entry.kind() else { return HEADER_BYTES };
    let item = store.item(item);
    let value = if let Value::Data(value) = &item.value { value.len() } else { 0 };
    HEADER_BYTES + item.opcode.as_bytes().len() + value
}
