//! A destination that is about to attach. What would take long in a large table is done before it does, a little at a time, so that
//! nobody waits for it.

use super::super::store::{CountId, Store, TableId};
use crate::subscription::{Selection, Subscription};

/// Begun by [`SourceCore::start_attach`](super::SourceCore::start_attach).
#[derive(Debug)]
#[cfg_attr(test, derive(Clone, Hash))]
pub(crate) struct Attaching {
    pub(super) subscription: Subscription,
    /// Those that there were when it began.
    pub(super) tables: Vec<PreparedTable>,
    /// The first whose items may have to be counted.
    counting: usize,
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone, Hash))]
pub(super) struct PreparedTable {
    /// Of the items that are wanted, unless all are, or none.
    pub(super) count: Option<CountId>,
}

impl Attaching {
    pub(super) fn start(subscription: Subscription, store: &mut Store) -> Attaching {
        let tables = (0..store.tables().len())
            .map(|table| PreparedTable::start(&subscription, table as TableId, store))
            .collect();
        Attaching { subscription, tables, counting: 0 }
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn subscription(&self) -> &Subscription {
        &self.subscription
    }

    /// Whether nothing is left to be counted.
    pub(crate) fn is_counted(&self) -> bool {
        self.tables[self.counting..].iter().all(|table| table.count.is_none())
    }

    /// Counts some of the items that are wanted.
    pub(super) fn go_on(&mut self, store: &mut Store) {
        let Some(table) = self.tables.get(self.counting) else { return };
        let is_counted =
            table.count.is_none_or(|count| store.go_on_counting(self.counting as TableId, count));
        self.counting += usize::from(is_counted);
    }
}

impl PreparedTable {
    pub(super) fn start(subscription: &Subscription, table: TableId, store: &mut Store) -> PreparedTable {
        let stored = &store.tables()[usize::from(table)];
        let keeps_all = stored.keeps_all();
        let count = match subscription.of(&stored.name) {
            Some(some @ Selection::Prefixes(_)) if keeps_all => Some(store.start_count(table, some)),
            _ => None,
        };
        PreparedTable { count }
    }
}
