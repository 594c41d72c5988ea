//! A destination that is about to attach. What would take long in a large table is done before it does, a little at a time, so that
//! nobody waits for it.

use super::super::store::{CountId, Store, TableId};
use crate::subscription::{Selection, Subscription};

/// Begun by [`SourceCore::start_attach`](super::SourceCore::start_attach).
#[derive(Debug)]
pub(crate) struct Attaching {
    pub(super) subscription: Subscription,
    /// By table, of those that there were when it began.
    pub(super) counts: Vec<Option<CountId>>,
    /// The first table whose items may have to be counted.
    counting: usize,
}

impl Attaching {
    pub(super) fn start(subscription: Subscription, store: &mut Store) -> Attaching {
        let tables = 0..store.tables().len() as TableId;
        let counts = tables.map(|table| start_count(&subscription, table, store)).collect();
        Attaching { subscription, counts, counting: 0 }
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn subscription(&self) -> &Subscription {
        &self.subscription
    }

    /// Whether nothing is left to be counted.
    pub(crate) fn is_counted(&self) -> bool {
        self.counts[self.counting..].iter().all(Option::is_none)
    }

    /// Counts some of the items that are wanted.
    pub(super) fn go_on(&mut self, store: &mut Store) {
        let counts = self.counts.iter().enumerate().skip(self.counting);
        let next = counts.filter_map(|(table, count)| Some((table, (*count)?))).next();
        if let Some((table, count)) = next {
            self.counting = table + usize::from(store.go_on_counting(table as TableId, count));
        }
    }
}

/// Begins to count the items of a table that are wanted, unless all are, or none.
pub(super) fn start_count(subscription: &Subscription, table: TableId, store: &mut Store) -> Option<CountId> {
    let stored = &store.tables()[usize::from(table)];
    match subscription.of(&stored.name)? {
        some @ Selection::Prefixes(_) if stored.keeps_all() => Some(store.start_count(table, some)),
        _ => None,
    }
}
