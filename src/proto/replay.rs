//! The full state for a destination that attaches, and when it ends.
//!
//! The replay walks each table's places once; nothing is queued for it. An item that a live change has put in the ring
//! meanwhile is passed over. A table's end marker is due once the application has said `ready` and each item that was
//! there at that time (or at the attach, if that came later) has been put in the ring or was removed. Items that were
//! created later are no matter of the replay: whatever the destination holds under their opcodes is of an earlier life.
//!
//! An item that was not sent on this link has no entry in the sync cache unless it changed, so a flush that begins
//! meanwhile counts these items here, and in the sync cache from when they are sent.

use std::collections::VecDeque;

use super::cache::{EntryId, MAX_FLUSHES, SyncCache, bits};
use super::store::{Item, ItemId, Store, TableId, Value};
use crate::seq::ChangeNumber;

/// The replay of all tables to one destination.
#[derive(Debug)]
pub(crate) struct Replay {
    tables: Vec<TableReplay>,
    /// Tables whose places were not all walked; they take turns.
    walking: VecDeque<TableId>,
    /// The flushes that wait for items which have no entry yet, a bit for each.
    flushes: u16,
    /// By flush: what it waits for.
    flush_gates: [FlushGate; MAX_FLUSHES],
}

/// Items that a flush waits for and that have neither been sent nor an entry in the sync cache.
#[derive(Debug, Clone, Copy)]
struct FlushGate {
    /// They were created no later than this.
    until: ChangeNumber,
    left: usize,
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
    pub(crate) fn new() -> Replay {
        Replay {
            tables: Vec::new(),
            walking: VecDeque::new(),
            flushes: 0,
            flush_gates: [FlushGate { until: ChangeNumber::NONE, left: 0 }; MAX_FLUSHES],
        }
    }

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

    /// A flush begins. `entries` is the number of unsent items that have an entry in the sync cache, where the flush
    /// waits for them.
    pub(crate) fn start_flush(&mut self, flush: usize, entries: usize, now: ChangeNumber) {
        let unsent: usize = self.tables.iter().map(|table| table.unsent as usize).sum();
        let left = unsent - entries;
        self.flush_gates[flush] = FlushGate { until: now, left };
        self.flushes |= u16::from(left > 0) << flush;
    }

    /// Items that a flush still waits for here.
    pub(crate) fn flush_left(&self, flush: usize) -> usize {
        if self.flushes & (1 << flush) == 0 { 0 } else { self.flush_gates[flush].left }
    }

    pub(crate) fn end_flush(&mut self, flush: usize) {
        self.flushes &= !(1 << flush);
    }

    /// An item is about to be sent for the first time on this link, or was removed before that. Answers which flushes
    /// waited for it here, besides those that wait for its entry; they do so no more.
    pub(crate) fn take_flushes(&mut self, created: ChangeNumber, of_entry: u16) -> u16 {
        let mut taken = 0;
        for flush in bits(self.flushes & !of_entry) {
            let gate = &mut self.flush_gates[flush];
            if created <= gate.until {
                taken |= 1 << flush;
                gate.left -= 1;
                self.flushes &= !(u16::from(gate.left == 0) << flush);
            }
        }
        taken
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
