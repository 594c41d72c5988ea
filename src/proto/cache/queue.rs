//! The items that wait to be put in the ring: in each table in the order in which they began to, and the tables take turns,
//! so that each goes forward in every ring-full.
//!
//! A queue may hold places of items that wait no more; whoever takes from it passes them over.

use std::collections::VecDeque;

use super::EntryId;
use crate::proto::store::TableId;

/// Invariant: `turns` has each table whose queue is not empty once, and no other.
#[derive(Debug, Clone, Default)]
#[cfg_attr(test, derive(Hash))]
pub(super) struct WaitQueue {
    /// The place before all others. It was the only one when it came, as a change's mostly is, and needs no queue.
    lone: Option<EntryId>,
    tables: Vec<VecDeque<u32>>,
    turns: VecDeque<TableId>,
    /// Number of places.
    len: usize,
}

impl WaitQueue {
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    pub(super) fn push(&mut self, id: EntryId) {
        self.len += 1;
        if self.len == 1 {
            self.lone = Some(id);
        } else {
            self.push_behind(id);
        }
    }

    /// The place that is first in the table whose turn it is.
    #[inline]
    pub(super) fn front(&self) -> Option<EntryId> {
        if self.lone.is_some() {
            return self.lone;
        }
        let &table = self.turns.front()?;
        self.tables[usize::from(table)].front().map(|&index| EntryId { table, index })
    }

    /// Gives up the front.
    #[inline]
    pub(super) fn pop(&mut self) {
        if self.len == 0 {
            return;
        }
        self.len -= 1;
        if self.lone.take().is_some() {
            return;
        }
        let &table = self.turns.front().expect("there is a place, and it is in a queue");
        let queue = &mut self.tables[usize::from(table)];
        queue.pop_front();
        if queue.is_empty() {
            self.turns.pop_front();
        }
    }

    /// Gives up the front if it is this, and then it is the next table's turn.
    #[inline]
    pub(super) fn pop_if(&mut self, id: EntryId) -> bool {
        let is_front = self.front() == Some(id);
        if is_front {
            self.pop();
        }
        if !is_front || self.turns.front() == Some(&id.table) {
            self.turn();
        }
        is_front
    }

    /// It is the next table's turn.
    pub(super) fn turn(&mut self) {
        if self.turns.len() > 1 {
            self.turns.rotate_left(1);
        }
    }

    /// All places, of items that wait and of others.
    pub(super) fn iter(&self) -> impl Iterator<Item = EntryId> {
        let queues = self.tables.iter().zip(0..);
        let queued =
            queues.flat_map(|(queue, table)| queue.iter().map(move |&index| EntryId { table, index }));
        self.lone.into_iter().chain(queued)
    }

    fn push_behind(&mut self, id: EntryId) {
        let at = usize::from(id.table);
        if self.tables.len() <= at {
            self.tables.resize_with(at + 1, VecDeque::new);
        }
        let queue = &mut self.tables[at];
        if queue.is_empty() {
            self.turns.push_back(id.table);
        }
        queue.push_back(id.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_take_turns_and_each_keeps_its_order() {
        let mut queue = WaitQueue::default();
        for (table, index) in [(0, 1), (0, 2), (0, 3), (2, 7), (1, 5), (2, 8)] {
            queue.push(EntryId { table, index });
        }
        assert_eq!(queue.iter().count(), 6);
        let mut taken = Vec::new();
        while let Some(id) = queue.front() {
            taken.push((id.table, id.index));
            queue.pop();
            queue.turn();
        }
        // A table that has run empty is out of turn already when the next one's comes.
        let of_two: Vec<_> = taken.iter().filter(|(table, _)| *table == 2).collect();
        assert_eq!(of_two, [&(2, 7), &(2, 8)]);
        let last_of = |table| taken.iter().rposition(|(of, _)| *of == table).unwrap();
        assert!(last_of(1) < last_of(0) && last_of(2) < last_of(0), "the longest is done last: {taken:?}");
        assert_eq!(taken.len(), 6);
    }
}
