//! The full state for a destination that attaches, and when it ends.
//!
//! The replay walks each table's places once; nothing is queued for it. An item that a live change has put in the ring
//! meanwhile is passed over. A table's end marker is due once the application has said `ready` and each item that was
//! there at that time (or at the attach, if that came later) has been put in the ring or was removed. Items that were
//! created later are no matter of the replay: whatever the destination holds under their opcodes is of an earlier life.

use std::collections::VecDeque;

use super::cache::{EntryId, SyncCache};
use super::store::{Item, ItemId, Store, TableId, Value};
use crate::seq::ChangeNumber;

/// The replay of all tables to one destination.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    tables: Vec<TableReplay>,
    /// Tables whose places were not all walked; they take turns.
    walking: VecDeque<TableId>,
}

#[derive(Debug)]
struct TableReplay {
    /// The next place to look at.
    next: u32,
    /// The number of places at the attach; items that came later are sent because they changed.
    end: u32,
    /// Live items that were not sent on this link.
    unsent: u32,
    gate: Gate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    /// The application has not said `ready`.
    Loading,
    /// The marker waits for `left` items that were created no later than `until`.
    Open { until: ChangeNumber, left: u32 },
    /// The marker was made.
    Passed,
}

impl Replay {
    /// Begins the replay of a table. Answers whether its end marker is due at once.
    pub(crate) fn add_table(&mut self, table: TableId, store: &Store) -> bool {
        assert!(self.tables.len() == usize::from(table), "tables are added in their order");
        let stored = &store.tables()[usize::from(table)];
        let end = stored.items().len() as u32;
        self.tables.push(TableReplay { next: 0, end, unsent: stored.live, gate: Gate::Loading });
        if end > 0 {
            self.walking.push_back(table);
        }
        stored.ready && self.handle_ready(table, store.last_change())
    }

    /// The application has loaded the table. Answers whether its end marker is due at once.
    pub(crate) fn handle_ready(&mut self, table: TableId, now: ChangeNumber) -> bool {
        let table = &mut self.tables[usize::from(table)];
        if table.gate == Gate::Loading {
            table.gate = Gate::Open { until: now, left: table.unsent };
        }
        table.pass()
    }

    /// An item was created that the destination was not sent on this link.
    pub(crate) fn handle_created(&mut self, table: TableId) {
        self.tables[usize::from(table)].unsent += 1;
    }

    /// An item was sent for the first time on this link, or removed before that. Answers whether the table's end marker
    /// is due now.
    pub(crate) fn handle_named(&mut self, table: TableId, created: ChangeNumber) -> bool {
        let table = &mut self.tables[usize::from(table)];
        table.unsent -= 1;
        if let Gate::Open { until, left } = &mut table.gate
            && created <= *until
        {
            *left -= 1;
        }
        table.pass()
    }

    /// The item that goes next, if there is one.
    pub(crate) fn next(&mut self, cache: &SyncCache, store: &Store) -> Option<EntryId> {
        while let Some(&table) = self.walking.front() {
            let state = &mut self.tables[usize::from(table)];
            let items = store.tables()[usize::from(table)].items();
            while state.next < state.end {
                let id = EntryId::item(ItemId { table, index: state.next });
                let item: &Item = &items[state.next as usize];
                if matches!(item.value, Value::Data(_)) && !cache.entry(id).is_sent() {
                    return Some(id);
                }
                state.next += 1;
            }
            self.walking.pop_front();
        }
        None
    }

    /// It is the next table's turn.
    pub(crate) fn turn(&mut self) {
        if self.walking.len() > 1 {
            self.walking.rotate_left(1);
        }
    }

    /// Whether the replay of every table was walked to its end.
    pub(crate) fn is_walked(&self) -> bool {
        self.walking.is_empty()
    }
}

impl TableReplay {
    /// Whether the end marker is due; it is so once.
    fn pass(&mut self) -> bool {
        let due = matches!(self.gate, Gate::Open { left: 0, .. });
        if due {
            self.gate = Gate::Passed;
        }
        due
    }
}
