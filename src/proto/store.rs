//! The value store: every item's newest value, once for all destinations (S1).
//!
//! Invariants:
//! 1. An item is vacant (its place is free), live (it has a value) or a tombstone (removed, and at least one destination
//!    that was sent it has not acknowledged that).
//! 2. Live items and tombstones are in their table's index, vacant ones are not.
//! 3. `change` is the newest change of the item, and no two changes of a source have the same number.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::opcode::Opcode;
use crate::seq::{ChangeNumber, SyncSeq};

/// A table's place in its source, and its number on the wire.
pub(crate) type TableId = u16;

/// An item's place: its table and its index there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ItemId {
    pub(crate) table: TableId,
    pub(crate) index: u32,
}

#[derive(Debug)]
pub(crate) struct Store {
    tables: Vec<TableStore>,
    last_change: ChangeNumber,
}

#[derive(Debug)]
pub(crate) struct TableStore {
    pub(crate) name: Box<str>,
    /// The application has loaded the table: a destination may remove what was not named to it.
    pub(crate) ready: bool,
    /// Number of live items.
    pub(crate) live: u32,
    items: Vec<Item>,
    vacant: Vec<u32>,
    index: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) opcode: Opcode,
    pub(crate) value: Value,
    pub(crate) change: ChangeNumber,
    /// The change that began this life of the item.
    pub(crate) created: ChangeNumber,
    /// Of a tombstone: the number of destinations that have not acknowledged the remove.
    owed_removes: u32,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Vacant,
    Data(Box<[u8]>),
    Removed,
}

/// What [`Store::set`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stored {
    /// The item had this value already.
    Unchanged,
    /// A live item has a new value.
    Updated(ItemId),
    /// The item was not there, or was a tombstone.
    Created(ItemId),
}

impl Store {
    pub(crate) fn new(first_seq: SyncSeq) -> Store {
        Store { tables: Vec::new(), last_change: ChangeNumber::before(first_seq) }
    }

    pub(crate) fn last_change(&self) -> ChangeNumber {
        self.last_change
    }

    /// S1: at a change the number goes up by one.
    pub(crate) fn next_change(&mut self) -> ChangeNumber {
        self.last_change = self.last_change.next();
        self.last_change
    }

    #[cfg(test)]
    pub(crate) fn skip_changes(&mut self, count: u64) {
        self.last_change = ChangeNumber::from_wire(self.last_change.value() + count);
    }

    pub(crate) fn tables(&self) -> &[TableStore] {
        &self.tables
    }

    pub(crate) fn table_mut(&mut self, table: TableId) -> &mut TableStore {
        &mut self.tables[usize::from(table)]
    }

    pub(crate) fn table_named(&self, name: &str) -> Option<TableId> {
        self.tables.iter().position(|table| &*table.name == name).map(|at| at as TableId)
    }

    /// Adds a table, or answers `None` when there are as many as the wire can tell apart.
    pub(crate) fn add_table(&mut self, name: &str) -> Option<TableId> {
        let id = TableId::try_from(self.tables.len()).ok()?;
        self.tables.push(TableStore {
            name: name.into(),
            ready: false,
            live: 0,
            items: Vec::new(),
            vacant: Vec::new(),
            index: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
        });
        Some(id)
    }

    pub(crate) fn item(&self, id: ItemId) -> &Item {
        &self.tables[usize::from(id.table)].items[id.index as usize]
    }

    pub(crate) fn find(&self, table: TableId, opcode: &Opcode) -> Option<&Item> {
        let table = &self.tables[usize::from(table)];
        table.find(opcode).map(|index| &table.items[index as usize])
    }

    /// Gives an item its newest value. `always` makes an equal value a change, too.
    pub(crate) fn set(&mut self, id: TableId, opcode: Opcode, value: &[u8], always: bool) -> Stored {
        let table = &mut self.tables[usize::from(id)];
        let index = table.find(&opcode);
        if let Some(index) = index
            && let Value::Data(old) = &table.items[index as usize].value
            && !always
            && **old == *value
        {
            return Stored::Unchanged;
        }
        let change = self.next_change();
        let table = &mut self.tables[usize::from(id)];
        let Some(index) = index else {
            let index = table.insert(Item {
                opcode,
                value: Value::Data(value.into()),
                change,
                created: change,
                owed_removes: 0,
            });
            return Stored::Created(ItemId { table: id, index });
        };
        let item = &mut table.items[index as usize];
        item.change = change;
        match &mut item.value {
            Value::Data(old) if old.len() == value.len() => old.copy_from_slice(value),
            Value::Data(old) => *old = value.into(),
            Value::Removed | Value::Vacant => {
                item.value = Value::Data(value.into());
                item.created = change;
                item.owed_removes = 0;
                table.live += 1;
                return Stored::Created(ItemId { table: id, index });
            }
        }
        Stored::Updated(ItemId { table: id, index })
    }

    /// Makes a live item a tombstone; `None` if there is no such item. The caller then says who owes an ack
    /// ([`Store::owe_remove`]) and lets go of it ([`Store::vacate_if_unowed`]).
    pub(crate) fn remove(&mut self, id: TableId, opcode: &Opcode) -> Option<ItemId> {
        let index = self.tables[usize::from(id)].find(opcode)?;
        if self.tables[usize::from(id)].items[index as usize].value == Value::Removed {
            return None;
        }
        let change = self.next_change();
        let table = &mut self.tables[usize::from(id)];
        let item = &mut table.items[index as usize];
        item.value = Value::Removed;
        item.change = change;
        item.owed_removes = 0;
        table.live -= 1;
        Some(ItemId { table: id, index })
    }

    pub(crate) fn owe_remove(&mut self, id: ItemId) {
        self.item_mut(id).owed_removes += 1;
    }

    /// One destination owes the ack of this remove no more.
    pub(crate) fn settle_remove(&mut self, id: ItemId) {
        let item = self.item_mut(id);
        assert!(item.value == Value::Removed, "only a tombstone is owed");
        item.owed_removes -= 1;
        self.vacate_if_unowed(id);
    }

    /// Frees a tombstone's place once nobody owes an ack. Answers whether it did.
    pub(crate) fn vacate_if_unowed(&mut self, id: ItemId) -> bool {
        let item = self.item(id);
        if item.value != Value::Removed || item.owed_removes > 0 {
            return false;
        }
        self.tables[usize::from(id.table)].vacate(id.index);
        true
    }

    fn item_mut(&mut self, id: ItemId) -> &mut Item {
        &mut self.tables[usize::from(id.table)].items[id.index as usize]
    }
}

impl TableStore {
    /// All places, vacant ones too.
    pub(crate) fn items(&self) -> &[Item] {
        &self.items
    }

    /// Live items.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Opcode, &[u8])> {
        self.items.iter().filter_map(|item| match &item.value {
            Value::Data(value) => Some((&item.opcode, &**value)),
            Value::Vacant | Value::Removed => None,
        })
    }

    fn find(&self, opcode: &Opcode) -> Option<u32> {
        let hash = self.hasher.hash_one(opcode.as_bytes());
        self.index.find(hash, |&index| self.items[index as usize].opcode == *opcode).copied()
    }

    fn insert(&mut self, item: Item) -> u32 {
        let hash = self.hasher.hash_one(item.opcode.as_bytes());
        let index = match self.vacant.pop() {
            Some(index) => {
                self.items[index as usize] = item;
                index
            }
            None => {
                self.items.push(item);
                u32::try_from(self.items.len() - 1).expect("memory ends before 2^32 items")
            }
        };
        let (items, hasher) = (&self.items, &self.hasher);
        self.index
            .insert_unique(hash, index, |&index| hasher.hash_one(items[index as usize].opcode.as_bytes()));
        self.live += 1;
        index
    }

    fn vacate(&mut self, index: u32) {
        let item = &mut self.items[index as usize];
        let hash = self.hasher.hash_one(item.opcode.as_bytes());
        item.value = Value::Vacant;
        self.index
            .find_entry(hash, |&other| other == index)
            .expect("a tombstone is in its table's index")
            .remove();
        self.vacant.push(index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::opcode::ToOpcode;

    fn store() -> (Store, TableId) {
        let mut store = Store::new(SyncSeq::from(1));
        let table = store.add_table("t").unwrap();
        (store, table)
    }

    #[test]
    fn an_equal_value_is_no_change_unless_asked_for() {
        let (mut store, table) = store();
        let key = 1u32.to_opcode().unwrap();
        assert!(matches!(store.set(table, key.clone(), b"a", false), Stored::Created(_)));
        assert_eq!(store.set(table, key.clone(), b"a", false), Stored::Unchanged);
        assert_eq!(store.last_change().seq(), SyncSeq::from(1));
        assert!(matches!(store.set(table, key, b"a", true), Stored::Updated(_)));
        assert_eq!(store.last_change().seq(), SyncSeq::from(2));
    }

    #[test]
    fn a_tombstone_keeps_its_place_until_nobody_owes_an_ack() {
        let (mut store, table) = store();
        let (a, b) = (1u32.to_opcode().unwrap(), 2u32.to_opcode().unwrap());
        store.set(table, a.clone(), b"a", false);
        let gone = store.remove(table, &a).unwrap();
        store.owe_remove(gone);
        store.owe_remove(gone);
        assert_eq!(store.remove(table, &a), None, "removed twice");
        store.settle_remove(gone);
        assert!(store.find(table, &a).is_some());
        store.settle_remove(gone);
        assert!(store.find(table, &a).is_none());
        assert_eq!(store.set(table, b, b"b", false), Stored::Created(gone), "the place is used again");
    }

    #[test]
    fn a_value_after_a_remove_begins_a_new_life() {
        let (mut store, table) = store();
        let key = 1u32.to_opcode().unwrap();
        store.set(table, key.clone(), b"a", false);
        let first = store.find(table, &key).unwrap().created;
        store.set(table, key.clone(), b"b", false);
        assert_eq!(store.find(table, &key).unwrap().created, first);
        let id = store.remove(table, &key).unwrap();
        store.owe_remove(id);
        assert_eq!(store.set(table, key.clone(), b"b", false), Stored::Created(id));
        assert!(store.find(table, &key).unwrap().created > first);
        assert_eq!(store.tables()[0].live, 1);
    }
}
