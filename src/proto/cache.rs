//! The sync cache: one destination's unacknowledged changes, one entry per opcode (S3, S6).
//!
//! An entry does not copy the data that it stands for: that (or the pointer to it) and the opcode lie in the
//! [`Store`](super::store::Store), which all destinations share, and an entry has the same index as its item. So "look for
//! an entry with the same opcode" is an array access, and an ack looks at the entry and at nothing else.
//!
//! An entry is *waiting* (to be put in the ring: never sent, changed since, or due to be sent again) or *in flight*
//! (its newest change is in the ring or beyond). What is in flight is remembered in the order of the ring, so that an ack
//! finds it without a look-up.
//!
//! Invariants:
//! 1. A record in the ring acknowledges its entry only if the change that it carried is still the entry's newest.
//! 2. Each waiting entry has exactly one place in a queue (a queue may also hold places of entries that wait no more).
//! 3. The in-flight list is sorted by ordinal. Records that were superseded leave it, and so do older copies of a change
//!    that was sent again: while no flush waits it is at most four times as long as there are entries, plus a constant,
//!    so that neither a hot item nor one that keeps failing can grow it. After an ack it begins and ends with records that
//!    are waited for.
//! 4. A flush waits for an entry if its bit is set there. Each record that was sent since, or was the newest in flight then,
//!    carries the bit; no other does.
//! 5. An entry that is queued has its place in the queue of its kind: tables' own records, data, or pointers. One whose kind
//!    has changed since is moved when its place comes to the front, or when the queue of its kind is empty and it is first.

mod entry;
mod flush;
mod queue;

use std::collections::VecDeque;

use super::ProtocolError;
use super::segments::SegmentedVec;
use super::store::{ItemId, TableId};
use crate::cpu_cache::prefetch;
use crate::seq::ChangeNumber;
use crate::wire::Ack;

pub(crate) use entry::{CacheEntry, Deleted, EntryId, EntryKind, Holds, InFlight, Recorded};
pub(crate) use flush::{MAX_FLUSHES, bits};
use queue::WaitQueue;

#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone, Hash))]
pub(crate) struct SyncCache {
    tables: Vec<TableEntries>,
    /// Table names and end markers that wait; they go first.
    control: VecDeque<EntryId>,
    /// Items that wait and are in the store.
    waiting: WaitQueue,
    /// Items that wait and whose data must be read through a pointer.
    waiting_pointers: WaitQueue,
    in_flight: VecDeque<InFlight>,
    /// At most how long the in-flight list was since it was last compacted, at its shortest.
    compacted_len: usize,
    next_ordinal: u64,
    /// Entries that exist.
    unacked: usize,
    /// Items that wait although the destination was sent them before.
    waiting_again: usize,
    /// Entries that stand for a remove.
    tombstones: usize,
    /// Entries that hold a pointer to their data.
    pointers: usize,
    /// Entries that were sent again at least [`FAILING_ATTEMPTS`] times.
    failing: usize,
    /// Some of these, for a person; others may have been acknowledged since.
    failing_examples: Vec<EntryId>,
    /// For each flush, by its bit: the entries that it waits for.
    flush_left: [usize; MAX_FLUSHES],
}

/// From this many resends on an entry counts as failing.
const FAILING_ATTEMPTS: u8 = 3;
/// So many of them are named.
const MAX_FAILING_EXAMPLES: usize = 8;

#[derive(Debug)]
#[cfg_attr(test, derive(Clone, Hash))]
struct TableEntries {
    /// The store keeps the newest value of every item of the table.
    keeps_all: bool,
    items: SegmentedVec<CacheEntry>,
    name: CacheEntry,
    end: CacheEntry,
}

impl SyncCache {
    /// Takes in a table; they come in their order.
    pub(crate) fn add_table(&mut self, keeps_all: bool) {
        let (name, end) = (CacheEntry::default(), CacheEntry::default());
        self.tables.push(TableEntries { keeps_all, items: SegmentedVec::new(), name, end });
    }

    pub(crate) fn unacked(&self) -> usize {
        self.unacked
    }

    pub(crate) fn tombstones(&self) -> usize {
        self.tombstones
    }

    pub(crate) fn pointers(&self) -> usize {
        self.pointers
    }

    pub(crate) fn failing(&self) -> usize {
        self.failing
    }

    /// Some of the entries that are failing.
    pub(crate) fn failing_examples(&self) -> impl Iterator<Item = EntryId> {
        let examples = self.failing_examples.iter().copied();
        examples.filter(|&id| self.entry(id).attempts >= FAILING_ATTEMPTS)
    }

    /// All entries of items, those of one table after the other.
    pub(crate) fn unacked_items(&self) -> impl Iterator<Item = (ItemId, CacheEntry)> {
        self.tables.iter().zip(0..).flat_map(|(entries, table)| {
            let unacked = entries.items.iter().zip(0..).filter(|(entry, _)| entry.is_unacked());
            unacked.map(move |(entry, index)| (ItemId { table, index }, *entry))
        })
    }

    pub(crate) fn next_ordinal(&self) -> u64 {
        self.next_ordinal
    }

    #[inline]
    pub(crate) fn entry(&self, id: EntryId) -> CacheEntry {
        let table = &self.tables[usize::from(id.table)];
        if let Some(entry) = table.items.get(id.index as usize) {
            return *entry;
        }
        match id.kind() {
            EntryKind::Item(_) => CacheEntry::default(),
            EntryKind::TableName => table.name,
            EntryKind::TableEnd => table.end,
        }
    }

    /// Has an item's entry brought near.
    #[inline]
    pub(crate) fn prefetch(&self, id: EntryId) {
        if let Some(entry) = self.tables[usize::from(id.table)].items.get(id.index as usize) {
            prefetch(entry);
        }
    }

    /// Whether nothing waits, and no place in a queue is taken.
    #[inline]
    pub(crate) fn is_quiet(&self) -> bool {
        self.waiting.len() + self.waiting_pointers.len() + self.control.len() == 0
    }

    /// Whether an entry that holds a pointer may wait. One whose kind has changed can wait in the other queue.
    #[inline]
    pub(crate) fn may_have_pointers(&self) -> bool {
        self.pointers > 0
    }

    /// S3: records the newest change of an item, in the entry that it has or in a new one.
    #[inline]
    pub(crate) fn record(&mut self, id: EntryId, holds: Holds, change: ChangeNumber) -> Recorded {
        let entry = self.entry_mut(id);
        let before = *entry;
        entry.flags |= CacheEntry::UNACKED | CacheEntry::WAITING | CacheEntry::QUEUED;
        entry.flags &= !(CacheEntry::TOMBSTONE | CacheEntry::POINTER);
        entry.flags |= holds.flags();
        entry.attempts = 0;
        entry.change = change;
        let after = *entry;
        if !before.has(CacheEntry::QUEUED) {
            self.enqueue(id, after);
        }
        self.unacked += usize::from(!before.is_unacked());
        self.waiting_again +=
            usize::from(id.is_item() && before.is_sent() && !before.has(CacheEntry::WAITING));
        self.tombstones += usize::from(after.has(CacheEntry::TOMBSTONE));
        self.tombstones -= usize::from(before.has(CacheEntry::TOMBSTONE));
        self.pointers += usize::from(after.has(CacheEntry::POINTER));
        self.pointers -= usize::from(before.has(CacheEntry::POINTER));
        self.failing -= usize::from(before.attempts >= FAILING_ATTEMPTS);
        Recorded { is_new: !before.is_unacked(), coalesced: before.has(CacheEntry::WAITING) }
    }

    /// An item that a replay has come to and whose data must be read first.
    pub(crate) fn record_replayed(&mut self, id: EntryId, change: ChangeNumber, flushes: u16) {
        self.record(id, Holds::Pointer, change);
        self.add_flushes(id, flushes);
    }

    /// The table's end marker waits for this entry, which was not sent yet. Answers whether it did not before.
    pub(crate) fn gate(&mut self, id: EntryId) -> bool {
        self.mark(id, CacheEntry::GATED)
    }

    /// Deletes the entry of an item that was removed before the destination was ever sent it.
    pub(crate) fn forget(&mut self, id: EntryId) {
        let entry = self.entry(id);
        assert!(!entry.is_sent(), "what was sent needs the ack of its remove");
        if entry.is_unacked() {
            self.delete(id);
        }
    }

    /// The table's own record that goes next.
    #[inline]
    pub(crate) fn next_control(&mut self) -> Option<EntryId> {
        while let Some(&id) = self.control.front() {
            let entry = Self::entry_in(&mut self.tables, id);
            if entry.has(CacheEntry::WAITING) {
                return Some(id);
            }
            entry.flags &= !CacheEntry::QUEUED;
            self.control.pop_front();
        }
        None
    }

    /// The item that goes next, among those whose data is in the store, or among pointers.
    #[inline]
    pub(crate) fn next_waiting(&mut self, pointers: bool) -> Option<EntryId> {
        if self.waiting.is_empty() && self.waiting_pointers.is_empty() {
            return None;
        }
        self.first_waiting(pointers).or_else(|| {
            // One whose kind has changed may lie at the front of the other queue, which nobody else may ever look at.
            self.first_waiting(!pointers);
            self.first_waiting(pointers)
        })
    }

    fn first_waiting(&mut self, pointers: bool) -> Option<EntryId> {
        loop {
            let queue = if pointers { &mut self.waiting_pointers } else { &mut self.waiting };
            let id = queue.front()?;
            let entry = Self::entry_in(&mut self.tables, id);
            let is_here = entry.has(CacheEntry::POINTER) == pointers;
            if entry.has(CacheEntry::WAITING) && is_here {
                return Some(id);
            }
            queue.pop();
            let entry = *entry;
            if entry.has(CacheEntry::WAITING) {
                self.enqueue(id, entry);
            } else {
                self.entry_mut(id).flags &= !CacheEntry::QUEUED;
            }
        }
    }

    /// A change of the entry is in the ring, at the next ordinal: the newest, or an older one whose data was read before the
    /// newest was made, which then goes on waiting. `holds` is what the entry holds if a replay sends what has none.
    #[inline]
    pub(crate) fn handle_sent(&mut self, id: EntryId, change: ChangeNumber, holds: impl FnOnce() -> Holds) {
        let ordinal = self.next_ordinal;
        self.next_ordinal += 1;
        let entry = self.entry_mut(id);
        let before = *entry;
        let (mut is_newest, mut flushes) = (change == before.change, before.flushes);
        if !before.is_unacked() {
            let holds = holds();
            entry.flags |= holds.flags();
            entry.change = change;
            (is_newest, flushes) = (true, 0);
        } else if !is_newest {
            flushes = 0;
        }
        entry.flags |= CacheEntry::SENT | CacheEntry::UNACKED;
        entry.flags &= !(CacheEntry::GATED | if is_newest { CacheEntry::WAITING } else { 0 });
        let after = *entry;
        if !before.is_unacked() {
            self.unacked += 1;
            self.pointers += usize::from(after.is_pointer());
        }
        self.waiting_again -= usize::from(id.is_item() && before.is_waiting_again());
        self.waiting_again += usize::from(id.is_item() && after.is_waiting_again());
        self.in_flight.push_back(InFlight { ordinal, change, entry: id, flushes });
        self.compact_if_long();
        if before.is_waiting() {
            self.turn(id, before, after);
        }
    }

    /// The entries of a table's items, for changes that may go at once; `None` if something waits, which goes first.
    #[inline(always)]
    pub(crate) fn at_once(&mut self, table: TableId) -> Option<AtOnce<'_>> {
        if !self.is_quiet() {
            return None;
        }
        Some(AtOnce {
            table,
            entries: &mut self.tables[usize::from(table)].items,
            sent: Sent {
                in_flight: &mut self.in_flight,
                next_ordinal: &mut self.next_ordinal,
                unacked: &mut self.unacked,
            },
        })
    }

    /// The records that were sent last, in their order.
    #[inline(always)]
    pub(crate) fn sent_last(&self, count: usize) -> impl ExactSizeIterator<Item = &InFlight> {
        self.in_flight.range(self.in_flight.len() - count..)
    }

    /// As [`SyncCache::handle_ack`], of the oldest record in flight and no other, as that of a change that was made alone mostly is, and if
    /// nothing is left behind. `false` if it is another ack: then nothing has changed.
    #[inline(always)]
    pub(crate) fn handle_ack_of_oldest(&mut self, ack: &Ack) -> bool {
        let Some(&oldest) = self.in_flight.front() else { return false };
        let (ordinal, seq) = (oldest.ordinal, oldest.change.seq());
        let is_of_oldest = *ack == Ack { first: ordinal, last: ordinal, first_seq: seq, last_seq: seq };
        // No flush waits for a plain entry, whatever its records carry.
        if !is_of_oldest || !self.acknowledge_plain(&oldest) {
            return false;
        }
        self.in_flight.pop_front();
        if self.in_flight.is_empty() {
            self.compacted_len = 0;
        } else {
            self.drop_superseded();
        }
        true
    }

    /// S6: deletes the entries whose newest change the ack covers. Reports those that leave something behind, and answers how many
    /// there were in all.
    pub(crate) fn handle_ack(
        &mut self,
        ack: Ack,
        mut deleted: impl FnMut(Deleted),
    ) -> Result<usize, ProtocolError> {
        let Ack { first, last, .. } = ack;
        if first > last || last >= self.next_ordinal {
            return Err(ProtocolError::AckOutOfRange { first, last, sent: self.next_ordinal });
        }
        let before = self.unacked;
        self.acknowledge_range(ack, &mut deleted)?;
        self.drop_superseded();
        Ok(before - self.unacked)
    }

    fn acknowledge_range(
        &mut self,
        ack: Ack,
        deleted: &mut impl FnMut(Deleted),
    ) -> Result<(), ProtocolError> {
        // Nothing else looks at the list meanwhile.
        let mut in_flight = std::mem::take(&mut self.in_flight);
        let covered = index_of(&in_flight, ack.first)..index_of(&in_flight, ack.last + 1);
        let records = in_flight.range(covered.clone());
        let outcome = check_ends(&ack, records.clone());
        if outcome.is_ok() {
            records.for_each(|record| self.acknowledge(record, deleted));
            if covered.start == 0 {
                // What was sent first is mostly acknowledged first.
                in_flight.drain(covered);
            }
        }
        self.in_flight = in_flight;
        outcome
    }

    #[inline(always)]
    fn acknowledge(&mut self, record: &InFlight, deleted: &mut impl FnMut(Deleted)) {
        if record.flushes != 0 {
            self.satisfy_flushes(*record);
        }
        if !self.acknowledge_plain(record) && self.is_newest(record) {
            deleted(self.delete(record.entry));
        }
    }

    /// Acknowledges a record of a plain entry of a kept table, which leaves nothing behind; `false` if it is of another.
    #[inline(always)]
    fn acknowledge_plain(&mut self, record: &InFlight) -> bool {
        let table = &mut self.tables[usize::from(record.entry.table)];
        let Some(entry) = table.items.get_mut(record.entry.index as usize) else { return false };
        if !entry.is_plain() || !table.keeps_all {
            return false;
        }
        if entry.change == record.change && entry.is_unacked() {
            entry.flags = CacheEntry::SENT;
            self.unacked -= 1;
        }
        true
    }

    /// Sends an entry that is in flight again, with its newest value and the number that it has.
    pub(crate) fn resend(&mut self, id: EntryId) {
        let entry = self.entry_mut(id);
        assert!(entry.is_in_flight(), "only what was sent is sent again");
        let queued = entry.has(CacheEntry::QUEUED);
        entry.flags |= CacheEntry::WAITING | CacheEntry::QUEUED;
        let already_failing = entry.attempts >= FAILING_ATTEMPTS;
        entry.attempts = entry.attempts.saturating_add(1);
        let failing = entry.attempts >= FAILING_ATTEMPTS;
        let after = *entry;
        self.waiting_again += usize::from(id.is_item());
        self.failing += usize::from(failing && !already_failing);
        if failing {
            self.note_failing(id);
        }
        if !queued {
            self.enqueue(id, after);
        }
    }

    /// The records in flight from an ordinal on, oldest first.
    pub(crate) fn in_flight_from(&self, ordinal: u64) -> impl Iterator<Item = &InFlight> {
        self.in_flight.range(index_of(&self.in_flight, ordinal)..)
    }

    /// An ordinal below which no record of an item matters any more: what it carried was acknowledged or has been sent
    /// again since.
    pub(crate) fn oldest_unacked(&mut self) -> u64 {
        if self.waiting_again > 0 {
            return 0;
        }
        self.drop_superseded();
        let mut records = self.in_flight.iter();
        let oldest = records.find(|record| record.entry.is_item() && self.is_wanted(record));
        oldest.map_or(self.next_ordinal, |record| record.ordinal)
    }

    /// Whether the record carries its entry's newest change, and that is unacknowledged.
    #[inline]
    pub(crate) fn is_newest(&self, record: &InFlight) -> bool {
        let entry = self.entry(record.entry);
        entry.is_unacked() && entry.change == record.change
    }

    /// Items that must stay for the sake of this destination, for when it is given up: removes in a table that keeps its
    /// items, all entries in one that does not.
    pub(crate) fn owed(&self) -> Vec<ItemId> {
        let mut owed = Vec::new();
        for (entries, table) in self.tables.iter().zip(0..) {
            if entries.keeps_all && self.tombstones == 0 {
                continue;
            }
            let wanted = if entries.keeps_all { CacheEntry::TOMBSTONE } else { CacheEntry::UNACKED };
            let items = entries.items.iter().zip(0..).filter(|(entry, _)| entry.has(wanted));
            owed.extend(items.map(|(_, index)| ItemId { table, index }));
        }
        owed
    }

    /// Deletes an entry; whatever waited for it has what it waited for.
    #[inline]
    fn delete(&mut self, id: EntryId) -> Deleted {
        let keeps_all = self.keeps_all(id.table);
        let entry = self.entry_mut(id);
        let before = *entry;
        let was_tombstone = before.has(CacheEntry::TOMBSTONE);
        let stays_sent = keeps_all && !was_tombstone;
        entry.flags &= CacheEntry::QUEUED | if stays_sent { CacheEntry::SENT } else { 0 };
        entry.attempts = 0;
        entry.flushes = 0;
        self.unacked -= 1;
        self.waiting_again -= usize::from(id.is_item() && before.is_waiting_again());
        self.tombstones -= usize::from(was_tombstone);
        self.pointers -= usize::from(before.has(CacheEntry::POINTER));
        self.failing -= usize::from(before.attempts >= FAILING_ATTEMPTS);
        if before.flushes != 0 {
            self.count_satisfied(before.flushes);
        }
        let item_is_owed = id.is_item() && (was_tombstone || !keeps_all);
        Deleted { entry: id, item_is_owed, was_gated: before.is_gated() }
    }

    fn keeps_all(&self, table: TableId) -> bool {
        self.tables[usize::from(table)].keeps_all
    }

    /// Shortens the in-flight list from both ends, and keeps invariant 3.
    #[inline]
    fn drop_superseded(&mut self) {
        while let Some(front) = self.in_flight.front()
            && !self.is_wanted(front)
        {
            self.in_flight.pop_front();
        }
        // What is acknowledged behind something that is not would lie here until the list is compacted.
        while let Some(back) = self.in_flight.back()
            && !self.is_wanted(back)
        {
            self.in_flight.pop_back();
        }
        self.compacted_len = self.compacted_len.min(self.in_flight.len());
        self.compact_if_long();
    }

    /// A constant cost per record: the list has at least doubled since the last time.
    #[inline]
    pub(crate) fn compact_if_long(&mut self) {
        let len = self.in_flight.len();
        if len > 4 * self.unacked + 64 && len > 2 * self.compacted_len {
            self.compact();
            self.compacted_len = self.in_flight.len();
        }
    }

    /// Drops the records whose ack would tell nothing. Of several copies of a change the newest stays, and of several records
    /// that satisfy a flush the oldest.
    #[cold]
    fn compact(&mut self) {
        let mut keep = vec![false; self.in_flight.len()];
        for at in (0..keep.len()).rev() {
            let record = self.in_flight[at];
            keep[at] = self.is_newest(&record) && self.mark(record.entry, CacheEntry::NEWEST_KEPT);
        }
        for (at, kept) in keep.iter_mut().enumerate() {
            let record = self.in_flight[at];
            *kept |= self.is_awaited(&record) && self.mark(record.entry, CacheEntry::AWAITED_KEPT);
        }
        let mut kept = keep.into_iter();
        self.in_flight.retain(|_| kept.next() == Some(true));
        for at in 0..self.in_flight.len() {
            self.entry_mut(self.in_flight[at].entry).flags &=
                !(CacheEntry::NEWEST_KEPT | CacheEntry::AWAITED_KEPT);
        }
    }

    /// Sets a flag of an entry; answers whether it was not set.
    fn mark(&mut self, id: EntryId, flag: u16) -> bool {
        let entry = self.entry_mut(id);
        let newly = !entry.has(flag);
        entry.flags |= flag;
        newly
    }

    /// An entry that is failing may be named if others are so no more.
    fn note_failing(&mut self, id: EntryId) {
        let tables = &mut self.tables;
        self.failing_examples
            .retain(|&other| other != id && Self::entry_in(tables, other).attempts >= FAILING_ATTEMPTS);
        if self.failing_examples.len() < MAX_FAILING_EXAMPLES {
            self.failing_examples.push(id);
        }
    }

    /// Whether an ack of the record would still tell something.
    #[inline]
    fn is_wanted(&self, record: &InFlight) -> bool {
        self.is_awaited(record) || self.is_newest(record)
    }

    #[inline]
    fn entry_mut(&mut self, id: EntryId) -> &mut CacheEntry {
        Self::entry_in(&mut self.tables, id)
    }

    #[inline]
    fn entry_in(tables: &mut [TableEntries], id: EntryId) -> &mut CacheEntry {
        let table = &mut tables[usize::from(id.table)];
        if table.items.get(id.index as usize).is_none() {
            return table.other_entry(id);
        }
        &mut table.items[id.index as usize]
    }

    /// Gives an entry its place in the queue of its kind.
    fn enqueue(&mut self, id: EntryId, entry: CacheEntry) {
        match id.kind() {
            EntryKind::TableName | EntryKind::TableEnd => self.control.push_back(id),
            EntryKind::Item(_) if entry.has(CacheEntry::POINTER) => self.waiting_pointers.push(id),
            EntryKind::Item(_) => self.waiting.push(id),
        }
    }

    /// An entry that waited was sent: it gives its place up, and it is another table's turn.
    #[inline]
    fn turn(&mut self, id: EntryId, before: CacheEntry, after: CacheEntry) {
        if !id.is_item() {
            return;
        }
        let queue =
            if before.has(CacheEntry::POINTER) { &mut self.waiting_pointers } else { &mut self.waiting };
        if after.is_waiting() {
            queue.turn();
        } else if queue.pop_if(id) {
            self.entry_mut(id).flags &= !CacheEntry::QUEUED;
        }
    }
}

impl TableEntries {
    /// The entry of a table's own record, or of an item that has had none on this link.
    #[cold]
    fn other_entry(&mut self, id: EntryId) -> &mut CacheEntry {
        match id.kind() {
            EntryKind::TableName => &mut self.name,
            EntryKind::TableEnd => &mut self.end,
            EntryKind::Item(ItemId { index, .. }) => {
                self.items.extend_zeroed(index as usize + 1);
                &mut self.items[index as usize]
            }
        }
    }
}

/// Items of a table that may be sent at once: [`SyncCache::record`] and [`SyncCache::handle_sent`] in one.
#[derive(Debug)]
pub(crate) struct AtOnce<'a> {
    table: TableId,
    entries: &'a mut SegmentedVec<CacheEntry>,
    sent: Sent<'a>,
}

/// What a record that is sent is noted in.
#[derive(Debug)]
struct Sent<'a> {
    in_flight: &'a mut VecDeque<InFlight>,
    next_ordinal: &'a mut u64,
    unacked: &'a mut usize,
}

/// The entry of an item that may be sent at once.
#[derive(Debug)]
pub(crate) struct EntryAtOnce<'a, 'b> {
    id: EntryId,
    entry: &'a mut CacheEntry,
    sent: &'a mut Sent<'b>,
}

impl<'b> AtOnce<'b> {
    /// The ordinal of the record that is sent next.
    #[inline(always)]
    pub(crate) fn ordinal(&self) -> u64 {
        *self.sent.next_ordinal
    }

    /// An item's entry, if the item may go at once: the destination was sent it before, and the entry holds data.
    #[inline(always)]
    pub(crate) fn entry(&mut self, index: u32) -> Option<EntryAtOnce<'_, 'b>> {
        let entry = self.entries.get_mut(index as usize).filter(|entry| entry.is_plain())?;
        let id = EntryId { table: self.table, index };
        Some(EntryAtOnce { id, entry, sent: &mut self.sent })
    }
}

impl EntryAtOnce<'_, '_> {
    /// The newest change that is recorded.
    #[inline(always)]
    pub(crate) fn change(&self) -> ChangeNumber {
        self.entry.change
    }

    /// Records a change as sent. The caller compacts in the end ([`SyncCache::compact_if_long`]).
    #[inline(always)]
    pub(crate) fn handle_sent(self, change: ChangeNumber) {
        let EntryAtOnce { id, entry, sent } = self;
        *sent.unacked += usize::from(!entry.is_unacked());
        entry.flags |= CacheEntry::UNACKED;
        entry.change = change;
        sent.in_flight.push_back(InFlight { ordinal: *sent.next_ordinal, change, entry: id, flushes: 0 });
        *sent.next_ordinal += 1;
    }
}

/// Both ends of an ack are known by their sync sequence numbers, unless their records have left the list.
#[inline]
fn check_ends<'a>(
    ack: &Ack,
    mut covered: impl DoubleEndedIterator<Item = &'a InFlight> + Clone,
) -> Result<(), ProtocolError> {
    let (first, last) = (covered.clone().next(), covered.next_back());
    for (record, ordinal, found) in [(first, ack.first, ack.first_seq), (last, ack.last, ack.last_seq)] {
        if let Some(record) = record
            && record.ordinal == ordinal
            && record.change.seq() != found
        {
            return Err(ProtocolError::AckOfOther { ordinal, found, expected: record.change.seq() });
        }
    }
    Ok(())
}

/// Where the first record from an ordinal on lies. If nothing between was dropped, the first guess is right.
#[inline]
fn index_of(in_flight: &VecDeque<InFlight>, ordinal: u64) -> usize {
    let (Some(front), Some(back)) = (in_flight.front(), in_flight.back()) else { return 0 };
    if ordinal > back.ordinal {
        return in_flight.len();
    }
    let guess = ordinal.saturating_sub(front.ordinal) as usize;
    if in_flight.get(guess).is_some_and(|record| record.ordinal == ordinal) {
        return guess;
    }
    in_flight.partition_point(|record| record.ordinal < ordinal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seq::SyncSeq;

    /// A cache whose items wait with a change each.
    fn cache_of(items: u32) -> (SyncCache, Vec<EntryId>) {
        let mut cache = SyncCache::default();
        cache.add_table(true);
        let entries: Vec<EntryId> =
            (0..items).map(|index| EntryId::item(ItemId { table: 0, index })).collect();
        for (&id, change) in entries.iter().zip(1..) {
            cache.record(id, Holds::Data, ChangeNumber::from_wire(change));
        }
        (cache, entries)
    }

    /// Sends an entry's newest change; answers its ack.
    fn send(cache: &mut SyncCache, id: EntryId) -> Ack {
        let change = cache.entry(id).change();
        cache.handle_sent(id, change, || unreachable!("all have an entry"));
        let (ordinal, seq) = (cache.next_ordinal() - 1, change.seq());
        Ack { first: ordinal, last: ordinal, first_seq: seq, last_seq: seq }
    }

    /// Takes an ack in, as the source does.
    fn handle(cache: &mut SyncCache, ack: Ack, deleted: impl FnMut(Deleted)) -> Result<usize, ProtocolError> {
        let before = cache.unacked();
        if cache.handle_ack_of_oldest(&ack) {
            return Ok(before - cache.unacked());
        }
        cache.handle_ack(ack, deleted)
    }

    #[test]
    fn a_change_that_is_sent_again_for_ever_keeps_the_in_flight_list_short() {
        let (mut cache, entries) = cache_of(10);
        for round in 0..10_000 {
            let id = entries[round % entries.len()];
            send(&mut cache, id);
            cache.resend(id);
            assert!(cache.in_flight.len() <= 4 * cache.unacked() + 64, "{} records", cache.in_flight.len());
        }
        for &id in &entries {
            let ack = send(&mut cache, id);
            let mut deleted = Vec::new();
            handle(&mut cache, ack, |gone| deleted.push(gone.entry)).unwrap();
            assert_eq!(deleted, [id], "the newest copy's ack counts");
        }
        assert_eq!((cache.unacked(), cache.in_flight.len(), cache.failing()), (0, 0, 0));
    }

    #[test]
    fn ack_that_speaks_of_another_change_is_refused_and_changes_nothing() {
        let (mut cache, entries) = cache_of(3);
        let acks: Vec<Ack> = entries.iter().map(|&id| send(&mut cache, id)).collect();
        let all = Ack { last: acks[2].last, last_seq: acks[2].last_seq, ..acks[0] };
        let other = SyncSeq::from(77);
        for good in [acks[0], acks[1], all] {
            for bad in [Ack { first_seq: other, ..good }, Ack { last_seq: other, ..good }] {
                let refused = handle(&mut cache, bad, |gone| panic!("{gone:?} is deleted"));
                assert!(matches!(refused, Err(ProtocolError::AckOfOther { found, .. }) if found == other));
                assert_eq!((cache.unacked(), cache.in_flight.len()), (3, 3));
            }
        }
        assert_eq!(handle(&mut cache, all, |_| ()), Ok(3));
    }

    #[test]
    fn ack_of_the_oldest_record_is_like_any_other() {
        let (mut cache, entries) = cache_of(3);
        let acks: Vec<Ack> = entries.iter().map(|&id| send(&mut cache, id)).collect();
        assert!(!cache.handle_ack_of_oldest(&acks[1]), "it is not the oldest");
        assert!(!cache.handle_ack_of_oldest(&Ack {
            last: acks[1].last,
            last_seq: acks[1].last_seq,
            ..acks[0]
        }));
        assert_eq!((cache.unacked(), cache.in_flight.len()), (3, 3));
        assert_eq!(handle(&mut cache, acks[1], |_| ()), Ok(1));
        assert_eq!((cache.unacked(), cache.in_flight.len()), (2, 3), "the oldest holds its place");
        assert!(cache.handle_ack_of_oldest(&acks[0]));
        assert_eq!((cache.unacked(), cache.in_flight.len()), (1, 1), "both have left the list");
        // One that was superseded meanwhile acknowledges nothing.
        cache.record(entries[2], Holds::Data, ChangeNumber::from_wire(9));
        let newest = send(&mut cache, entries[2]);
        assert!(cache.handle_ack_of_oldest(&acks[2]));
        assert_eq!((cache.unacked(), cache.in_flight.len()), (1, 1));
        // One that a flush waits for goes the long way, which tells the flush.
        cache.start_flush(0);
        assert!(!cache.handle_ack_of_oldest(&newest));
        assert_eq!(cache.flush_left(0), 1);
        assert_eq!(handle(&mut cache, newest, |_| ()), Ok(1));
        assert_eq!((cache.unacked(), cache.in_flight.len(), cache.flush_left(0)), (0, 0, 0));
        assert!(!cache.handle_ack_of_oldest(&newest), "there is none");
    }

    #[test]
    fn what_is_acknowledged_behind_what_never_is_leaves_the_in_flight_list() {
        const HELD: usize = 100;
        let (mut cache, entries) = cache_of(HELD as u32 + 4);
        let (held, others) = entries.split_at(HELD);
        let acks_of_held: Vec<Ack> = held.iter().map(|&id| send(&mut cache, id)).collect();
        for round in 0..50 {
            let acks: Vec<Ack> = others
                .iter()
                .zip(1000 + 4 * round..)
                .map(|(&id, change)| {
                    cache.record(id, Holds::Data, ChangeNumber::from_wire(change));
                    send(&mut cache, id)
                })
                .collect();
            // The last one is acknowledged last: until then what stands before it has to stay.
            for (ack, left) in [(acks[1], 4), (acks[0], 4), (acks[2], 4), (acks[3], 0)] {
                handle(&mut cache, ack, |_| ()).unwrap();
                assert_eq!(cache.in_flight.len(), HELD + left);
            }
            assert_eq!(cache.unacked(), HELD);
        }
        for ack in acks_of_held {
            handle(&mut cache, ack, |_| ()).unwrap();
        }
        assert_eq!((cache.unacked(), cache.in_flight.len()), (0, 0));
    }
}
