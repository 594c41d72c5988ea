//! Flushes: which entries each of them still waits for.
//!
//! A flush has a number, and its bit is set in each entry that it waits for and in each record in flight whose ack satisfies
//! it (invariant 4 of the cache).

use super::{EntryId, InFlight, SyncCache};

/// How many flushes can wait at a time.
pub(crate) const MAX_FLUSHES: usize = u16::BITS as usize;

impl SyncCache {
    /// A flush begins: it waits for all that is unacknowledged now. Answers how many of these are items of kept tables that were
    /// never sent.
    pub(crate) fn start_flush(&mut self, flush: usize) -> usize {
        let bit = 1 << flush;
        let mut never_sent = 0;
        for at in 0..self.in_flight.len() {
            let record = self.in_flight[at];
            if self.is_newest(&record) {
                self.in_flight[at].flushes |= bit;
                self.flush_left[flush] += usize::from(self.wait_for(record.entry, bit));
            }
        }
        for id in self.queued() {
            let is_replayed = id.is_item() && self.keeps_all(id.table);
            let entry = Self::entry_in(&mut self.tables, id);
            // An entry may have left places in two queues; the bit is set once.
            if entry.is_waiting() && entry.flushes & bit == 0 {
                entry.flushes |= bit;
                self.flush_left[flush] += 1;
                never_sent += usize::from(is_replayed && !entry.is_sent());
            }
        }
        never_sent
    }

    /// These flushes, which did not wait for the entry yet, do so now.
    pub(crate) fn add_flushes(&mut self, id: EntryId, flushes: u16) {
        let entry = self.entry_mut(id);
        debug_assert_eq!(entry.flushes & flushes, 0);
        entry.flushes |= flushes;
        for flush in bits(flushes) {
            self.flush_left[flush] += 1;
        }
    }

    /// Entries that a flush still waits for.
    pub(crate) fn flush_left(&self, flush: usize) -> usize {
        self.flush_left[flush]
    }

    /// The flush waits no more; its bit can be used again.
    pub(crate) fn end_flush(&mut self, flush: usize) {
        let keep = !(1u16 << flush);
        let mut entries = self.queued();
        entries.extend(self.in_flight.iter_mut().map(|record| {
            record.flushes &= keep;
            record.entry
        }));
        for id in entries {
            Self::entry_in(&mut self.tables, id).flushes &= keep;
        }
        self.flush_left[flush] = 0;
    }

    /// The destination applied a record that some flushes wait for, superseded or not.
    pub(super) fn satisfy_flushes(&mut self, record: InFlight) {
        let entry = self.entry_mut(record.entry);
        let satisfied = entry.flushes & record.flushes;
        entry.flushes &= !satisfied;
        self.count_satisfied(satisfied);
    }

    pub(super) fn count_satisfied(&mut self, flushes: u16) {
        for flush in bits(flushes) {
            self.flush_left[flush] -= 1;
        }
    }

    /// All that has a place in a queue.
    fn queued(&self) -> Vec<EntryId> {
        let items = self.waiting.iter().chain(self.waiting_pointers.iter());
        self.control.iter().copied().chain(items).collect()
    }

    /// Sets a flush's bit in an entry; answers whether it was not set before.
    fn wait_for(&mut self, id: EntryId, bit: u16) -> bool {
        let entry = self.entry_mut(id);
        let newly = entry.flushes & bit == 0;
        entry.flushes |= bit;
        newly
    }

    /// Whether a flush waits for the record.
    pub(super) fn is_awaited(&self, record: &InFlight) -> bool {
        record.flushes != 0 && self.entry(record.entry).flushes & record.flushes != 0
    }
}

/// The numbers of the bits that are set.
pub(crate) fn bits(mut set: u16) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = set.checked_ilog2()?;
        set &= !(1 << bit);
        Some(bit as usize)
    })
}
