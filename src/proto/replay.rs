//! The full state for a destination that attaches, and when it ends.
//!
//! Of a table whose items are kept, the replay walks the places once; nothing is queued for it. An item that a live change
//! has put in the ring meanwhile is passed over. The table's end marker is due once the application has said `ready` and
//! each item that was there at that time (or at the attach, if that came later) has been put in the ring or was removed.
//! Items that were created later are no matter of the replay: whatever the destination holds under their opcodes is of an
//! earlier life.
//!
//! Of a table whose items are the application's, an enumeration draws them, a batch at a time, from `ready` on (or from the
//! attach). Each becomes an entry of the sync cache like any change. The marker is due once the enumeration has ended and
//! every item that it named has been put in the ring, by its own entry or by that of a live change.
//!
//! An item of a kept table that was not sent on this link has no entry in the sync cache unless it changed, so a flush that
//! begins meanwhile counts these items here, and in the sync cache from when they are sent. What an enumeration has yet to
//! name nobody can count: such a flush waits for its end marker, and for the entries that it makes until then.

use std::collections::VecDeque;

use super::cache::{EntryId, MAX_FLUSHES, SyncCache, bits};
use super::store::{Item, ItemId, Store, TableId, Value};
use crate::retention::EnumeratedItems;
use crate::seq::ChangeNumber;
use crate::subscription::Selection;

/// The replay of all tables to one destination.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone, Hash))]
pub(crate) struct Replay {
    tables: Vec<TableReplay>,
    /// Kept tables whose places were not all walked; they take turns.
    walking: VecDeque<TableId>,
    /// Places that were passed over in this turn, without those of which something was sent.
    passed: u32,
    /// Tables from which an enumeration has yet to draw; they take turns.
    enumerating: VecDeque<TableId>,
    /// The flushes that wait for items which have no entry yet, a bit for each.
    flushes: u16,
    /// By flush: what it waits for.
    flush_gates: [FlushGate; MAX_FLUSHES],
}

/// Items that a flush waits for and that have neither been sent nor an entry in the sync cache.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(test, derive(Hash))]
struct FlushGate {
    /// They were created no later than this.
    until: ChangeNumber,
    left: usize,
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone, Hash))]
enum TableReplay {
    /// The destination wants nothing of it.
    Unwanted,
    Kept(Walk),
    Enumerated(Enumeration),
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone, Hash))]
struct Walk {
    /// What the destination wants.
    selection: Selection,
    /// The next place to look at.
    next: u32,
    /// The number of places at the attach; items that came later are sent because they changed.
    end: u32,
    /// Live items that the destination wants and that were not sent on this link.
    unsent: u32,
    gate: Gate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
enum Gate {
    /// The application has not said `ready`.
    Loading,
    /// The marker waits for `left` items that were created no later than `until`.
    Open { until: ChangeNumber, left: u32 },
    /// The marker was made.
    Passed,
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone, Hash))]
struct Enumeration {
    stage: Stage,
    /// Entries of items that it named and that were not put in the ring yet.
    gated: u32,
    /// The flushes that wait for all that it names, a bit for each.
    flushes: u16,
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone, Hash))]
enum Stage {
    /// The application has not said `ready`.
    Loading,
    /// The items are drawn. Not here while a batch of them is.
    Drawing { began: ChangeNumber, items: Option<EnumeratedItems> },
    /// All were drawn; the marker waits for the entries that are gated.
    Drawn,
    /// The marker was made.
    Passed,
}

/// Places that are passed over at most in a turn, behind which others get the lock.
const MAX_PASSED: u32 = 4096;

impl Replay {
    pub(crate) fn new() -> Replay {
        Replay {
            tables: Vec::new(),
            walking: VecDeque::new(),
            passed: 0,
            enumerating: VecDeque::new(),
            flushes: 0,
            flush_gates: [FlushGate { until: ChangeNumber::NONE, left: 0 }; MAX_FLUSHES],
        }
    }

    /// Begins the replay of a table, as far as the destination wants it: so many of its live items, if it does not want all. Answers
    /// whether the end marker is due at once.
    pub(crate) fn add_table(
        &mut self,
        table: TableId,
        selection: Option<Selection>,
        wanted: Option<u32>,
        store: &mut Store,
    ) -> bool {
        assert!(self.tables.len() == usize::from(table), "tables are added in their order");
        let stored = &store.tables()[usize::from(table)];
        let replay = match selection {
            None => TableReplay::Unwanted,
            Some(_) if !stored.keeps_all() => {
                TableReplay::Enumerated(Enumeration { stage: Stage::Loading, gated: 0, flushes: 0 })
            }
            Some(selection) => {
                let unsent = wanted.unwrap_or(stored.live);
                let end = stored.items().len() as u32;
                if end > 0 {
                    self.walking.push_back(table);
                }
                TableReplay::Kept(Walk { selection, next: 0, end, unsent, gate: Gate::Loading })
            }
        };
        self.tables.push(replay);
        stored.ready && self.handle_ready(table, store)
    }

    /// The application has loaded the table. Answers whether its end marker is due at once.
    pub(crate) fn handle_ready(&mut self, table: TableId, store: &mut Store) -> bool {
        match &mut self.tables[usize::from(table)] {
            TableReplay::Unwanted => false,
            TableReplay::Kept(walk) => {
                if walk.gate == Gate::Loading {
                    walk.gate = Gate::Open { until: store.last_change(), left: walk.unsent };
                }
                walk.pass()
            }
            TableReplay::Enumerated(enumeration) => {
                if matches!(enumeration.stage, Stage::Loading) {
                    let began = store.start_enumeration(table);
                    let enumerator = store.tables()[usize::from(table)].enumerator();
                    let items = enumerator.map(|enumerator| EnumeratedItems::NotStarted(enumerator.clone()));
                    enumeration.stage = Stage::Drawing { began, items };
                    self.enumerating.push_back(table);
                }
                false
            }
        }
    }

    /// An item was created that the destination was not sent on this link.
    pub(crate) fn handle_created(&mut self, table: TableId) {
        if let TableReplay::Kept(walk) = &mut self.tables[usize::from(table)] {
            walk.unsent += 1;
        }
    }

    /// An item was sent for the first time on this link, or removed before that. Answers whether the table's end marker
    /// is due now.
    pub(crate) fn handle_named(&mut self, table: TableId, created: ChangeNumber) -> bool {
        let TableReplay::Kept(walk) = &mut self.tables[usize::from(table)] else { return false };
        walk.unsent -= 1;
        if let Gate::Open { until, left } = &mut walk.gate
            && created <= *until
        {
            *left -= 1;
        }
        walk.pass()
    }

    /// An entry for which the table's end marker waited was put in the ring. Answers whether the marker is due now.
    pub(crate) fn handle_ungated(&mut self, table: TableId) -> bool {
        let TableReplay::Enumerated(enumeration) = &mut self.tables[usize::from(table)] else { return false };
        enumeration.gated -= 1;
        enumeration.pass()
    }

    /// The table's end marker waits for one more entry.
    pub(crate) fn gate(&mut self, table: TableId) {
        if let TableReplay::Enumerated(enumeration) = &mut self.tables[usize::from(table)] {
            enumeration.gated += 1;
        }
    }

    /// When a table's enumeration began, if one is under way.
    pub(crate) fn enumeration_began(&self, table: TableId) -> Option<ChangeNumber> {
        match self.tables.get(usize::from(table))? {
            TableReplay::Enumerated(Enumeration { stage: Stage::Drawing { began, .. }, .. }) => Some(*began),
            _ => None,
        }
    }

    /// Whether there is something to draw: the items of the batch before have been put in the ring.
    pub(crate) fn may_draw(&mut self) -> bool {
        for _ in 0..self.enumerating.len() {
            let front = self.enumerating[0];
            if matches!(
                &self.tables[usize::from(front)],
                TableReplay::Enumerated(Enumeration {
                    gated: 0,
                    stage: Stage::Drawing { items: Some(_), .. },
                    ..
                })
            ) {
                return true;
            }
            self.enumerating.rotate_left(1);
        }
        false
    }

    /// Lends the items of the table whose turn it is, to be drawn from without a lock.
    pub(crate) fn take_items(&mut self) -> Option<(TableId, EnumeratedItems)> {
        if !self.may_draw() {
            return None;
        }
        let table = self.enumerating[0];
        self.enumerating.rotate_left(1);
        let TableReplay::Enumerated(Enumeration { stage: Stage::Drawing { items, .. }, .. }) =
            &mut self.tables[usize::from(table)]
        else {
            return None;
        };
        Some((table, items.take()?))
    }

    /// The items that were lent come back, or have all been drawn (`None`). Answers whether the end marker is due now.
    pub(crate) fn give_items(
        &mut self,
        table: TableId,
        rest: Option<EnumeratedItems>,
        store: &mut Store,
    ) -> bool {
        let TableReplay::Enumerated(enumeration) = &mut self.tables[usize::from(table)] else { return false };
        if let Stage::Drawing { items, .. } = &mut enumeration.stage {
            if rest.is_some() {
                *items = rest;
            } else {
                enumeration.stage = Stage::Drawn;
                self.enumerating.retain(|&other| other != table);
                store.end_enumeration(table);
            }
        }
        enumeration.pass()
    }

    /// The flushes that wait for all that the table's enumeration names.
    pub(crate) fn enumeration_flushes(&self, table: TableId) -> u16 {
        self.tables[usize::from(table)].flushes()
    }

    /// The enumeration is over: what it named and its end marker have entries of their own, and the flushes wait for those.
    pub(crate) fn forget_enumeration_flushes(&mut self, table: TableId) {
        if let TableReplay::Enumerated(enumeration) = &mut self.tables[usize::from(table)] {
            enumeration.flushes = 0;
        }
    }

    /// The tables whose enumerations are under way, for when the destination is given up.
    pub(crate) fn enumerating(&self) -> impl Iterator<Item = TableId> {
        self.enumerating.iter().copied()
    }

    /// A flush begins. `entries` is the number of unsent items that have an entry in the sync cache, where the flush
    /// waits for them.
    pub(crate) fn start_flush(&mut self, flush: usize, entries: usize, now: ChangeNumber) {
        let unsent: usize = self.tables.iter().map(|table| table.unsent() as usize).sum();
        let left = unsent - entries;
        self.flush_gates[flush] = FlushGate { until: now, left };
        self.flushes |= u16::from(left > 0) << flush;
        for table in &mut self.tables {
            if let TableReplay::Enumerated(enumeration) = table
                && matches!(enumeration.stage, Stage::Drawing { .. } | Stage::Drawn)
            {
                enumeration.flushes |= 1 << flush;
            }
        }
    }

    /// Items that a flush still waits for here, an enumeration counting as one.
    pub(crate) fn flush_left(&self, flush: usize) -> usize {
        let bit = 1 << flush;
        let unsent = if self.flushes & bit == 0 { 0 } else { self.flush_gates[flush].left };
        unsent + self.tables.iter().filter(|table| table.flushes() & bit != 0).count()
    }

    pub(crate) fn end_flush(&mut self, flush: usize) {
        let keep = !(1 << flush);
        self.flushes &= keep;
        for table in &mut self.tables {
            if let TableReplay::Enumerated(enumeration) = table {
                enumeration.flushes &= keep;
            }
        }
    }

    /// An item is about to have its first entry on this link, or was removed before that. Answers which flushes waited for
    /// it here, besides those that wait for its entry; they do so no more.
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

    /// As [`Replay::walk`], and mostly there is none.
    #[inline]
    pub(crate) fn next(&mut self, cache: &mut SyncCache, store: &Store) -> Option<EntryId> {
        if self.walking.is_empty() { None } else { self.walk(cache, store) }
    }

    /// The item that goes next, if there is one before this turn has passed over enough, however many went in it. Of those whose
    /// data must be read through a pointer it makes entries on its way, and passes them over.
    fn walk(&mut self, cache: &mut SyncCache, store: &Store) -> Option<EntryId> {
        if self.passed == MAX_PASSED {
            return None;
        }
        while let Some(&table) = self.walking.front() {
            while let Some((id, item)) = self.tables[usize::from(table)].at(table, store) {
                let is_owed = self.tables[usize::from(table)].takes(item) && !cache.entry(id).is_sent();
                match &item.value {
                    Value::Data(_) if is_owed => {
                        // Once it is sent it is passed over, too.
                        self.passed = self.passed.saturating_sub(1);
                        return Some(id);
                    }
                    Value::Pointer(_) if is_owed && !cache.entry(id).is_waiting() => {
                        let flushes = self.take_flushes(item.created, 0);
                        cache.record_replayed(id, item.change, flushes);
                    }
                    _ => {}
                }
                self.tables[usize::from(table)].pass_over();
                self.passed += 1;
                if self.passed == MAX_PASSED {
                    return None;
                }
            }
            self.walking.pop_front();
        }
        None
    }

    /// Others have had the lock, or are about to.
    #[inline]
    pub(crate) fn end_turn(&mut self) {
        self.passed = 0;
    }

    /// It is the next table's turn.
    pub(crate) fn turn(&mut self) {
        if self.walking.len() > 1 {
            self.walking.rotate_left(1);
        }
    }

    /// Whether the walk over the kept tables has come to its end.
    pub(crate) fn is_walked(&self) -> bool {
        self.walking.is_empty()
    }

    /// Whether all that there was has been sent, or is in the sync cache.
    #[inline]
    pub(crate) fn is_over(&self) -> bool {
        self.walking.is_empty() && self.enumerating.is_empty()
    }
}

impl TableReplay {
    fn unsent(&self) -> u32 {
        if let TableReplay::Kept(walk) = self { walk.unsent } else { 0 }
    }

    /// The flushes that wait for its enumeration.
    fn flushes(&self) -> u16 {
        if let TableReplay::Enumerated(enumeration) = self { enumeration.flushes } else { 0 }
    }

    /// The place that the walk has come to, unless it is at its end.
    fn at<'a>(&self, table: TableId, store: &'a Store) -> Option<(EntryId, &'a Item)> {
        let TableReplay::Kept(Walk { next, end, .. }) = self else { return None };
        let id = ItemId { table, index: *next };
        (next < end).then(|| (EntryId::item(id), store.item(id)))
    }

    fn takes(&self, item: &Item) -> bool {
        matches!(self, TableReplay::Kept(walk) if walk.selection.takes(&item.opcode))
    }

    fn pass_over(&mut self) {
        if let TableReplay::Kept(walk) = self {
            walk.next += 1;
        }
    }
}

impl Walk {
    /// Whether the end marker is due; it is so once.
    fn pass(&mut self) -> bool {
        let due = matches!(self.gate, Gate::Open { left: 0, .. });
        if due {
            self.gate = Gate::Passed;
        }
        due
    }
}

impl Enumeration {
    /// Whether the end marker is due; it is so once.
    fn pass(&mut self) -> bool {
        let due = self.gated == 0 && matches!(self.stage, Stage::Drawn);
        if due {
            self.stage = Stage::Passed;
        }
        due
    }
}
