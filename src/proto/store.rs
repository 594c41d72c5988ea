//! The value store: every item's newest value, once for all destinations (S1).
//!
//! What a table keeps is its retention. *Newest*: the newest value of every item, so that the source itself can serve whoever
//! attaches. *Unacked*: only what some destination has not acknowledged; the rest is the application's, and its enumerator
//! is asked for it when a destination needs the full state.
//!
//! Invariants:
//! 1. An item is vacant (its place is free), live (it has a value, or a pointer to it) or a tombstone (removed, and at least
//!    one destination has not acknowledged that).
//! 2. Live items and tombstones are in their table's index, vacant ones are not.
//! 3. `change` is the newest change of the item, and no two changes of a source have the same number.
//! 4. `owed` counts the destinations for whose entry the item must stay: in a table that keeps the newest values, those
//!    that owe the ack of its remove; in one that does not, all that have an entry for it. An item that need not stay is
//!    vacant.

use std::cell::RefCell;

use hashbrown::HashMap;
use smallvec::SmallVec;

use super::ValueBytes;
use super::index::{OpcodeHash, OpcodeIndex};
use super::segments::SegmentedVec;
use crate::cpu_cache::{LINE_BYTES, prefetch};
use crate::opcode::Opcode;
use crate::retention::{Enumerator, Retention};
use crate::seq::{ChangeNumber, SyncSeq};
use crate::snapshot::Pointer;
use crate::subscription::Selection;

pub(crate) use super::index::{HashedOpcode, OpcodeHasher};

/// A table's place in its source, and its number on the wire.
pub(crate) type TableId = u16;

/// An item's place: its table and its index there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub(crate) struct ItemId {
    pub(crate) table: TableId,
    pub(crate) index: u32,
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone, Hash))]
pub(crate) struct Store {
    tables: Vec<TableStore>,
    last_change: ChangeNumber,
    /// Of all tables.
    hasher: OpcodeHasher,
    last_count: CountId,
}

/// A count that is under way, among those of its store.
pub(crate) type CountId = u64;

/// How many live items of a table a selection takes: counted a few at a time, while they change.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
struct Count {
    id: CountId,
    selection: Selection,
    /// Of the places before this one.
    next: u32,
    taken: u32,
}

/// Places that are counted before others get the lock: some 20 us, if all is far away.
const PLACES_AT_ONCE: u32 = 512;
/// Places of a table. Behind the next power of two there is no other, so entries that are made for more than there are
/// keep clear of the numbers that stand for a table itself.
const MAX_ITEMS: u32 = 1 << 31;

/// So many items fill the nearer caches.
const FAR_ITEMS: usize = 4096;

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(crate) struct TableStore {
    pub(crate) name: Box<str>,
    /// The application has loaded the table: a destination may remove what was not named to it.
    pub(crate) ready: bool,
    retention: Retention,
    /// Enumerations of this table that are under way.
    enumerations: u32,
    /// While there are any: the opcodes that were changed or removed since the oldest of them began, with the newest change
    /// of each. What an enumerator says of these is of no use.
    changed: HashMap<Opcode, ChangeNumber>,
    /// Number of live items.
    pub(crate) live: u32,
    /// Those among them that are pointers.
    pub(crate) pointers: u32,
    items: SegmentedVec<Item>,
    vacant: Vec<u32>,
    index: OpcodeIndex,
    counts: Vec<Count>,
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone, Hash))]
#[repr(align(64))]
pub(crate) struct Item {
    pub(crate) opcode: Opcode,
    pub(crate) value: Value,
    pub(crate) change: ChangeNumber,
    /// The change that began this life of the item, as far as is known: [`ChangeNumber::NONE`] in a table that does not
    /// keep its items, unless a remove went before.
    pub(crate) created: ChangeNumber,
    owed: u32,
}

/// All of an item whose value is short lies in two cache lines.
const _: () = assert!(size_of::<Item>() == 2 * LINE_BYTES);

#[derive(Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Clone, Hash))]
pub(crate) enum Value {
    Vacant,
    Data(ValueBytes),
    /// The data is the application's, and is read when it is sent.
    Pointer(Pointer),
    Removed,
}

/// What an item is given.
#[derive(Debug, Clone, Copy)]
pub(crate) enum NewValue<'a> {
    Data(&'a [u8]),
    /// Behind a reference, so that a slice of data goes where it goes in two registers.
    Other(&'a OtherValue<'a>),
}

/// What an item is given less often.
#[derive(Debug)]
pub(crate) enum OtherValue<'a> {
    Pointer(&'a Pointer),
    /// Data that stays where it is, none of which is copied but what is so short that it lies in the item. Once it is set, the
    /// buffer has the data that the item had before, or nothing.
    Buffer(RefCell<ValueBytes>),
}

/// An item of a table that was given a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Changed {
    /// Its place in the table.
    pub(crate) index: u32,
    /// It was not there, or was a tombstone.
    pub(crate) created: bool,
}

impl Store {
    pub(crate) fn new(first_seq: SyncSeq) -> Store {
        Store {
            tables: Vec::new(),
            last_change: ChangeNumber::before(first_seq),
            hasher: OpcodeHasher::new(),
            last_count: 0,
        }
    }

    /// What the opcodes of all tables are hashed with.
    pub(crate) fn hasher(&self) -> &OpcodeHasher {
        &self.hasher
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
    pub(crate) fn add_table(&mut self, name: &str, retention: Retention) -> Option<TableId> {
        let id = TableId::try_from(self.tables.len()).ok()?;
        self.tables.push(TableStore {
            name: name.into(),
            ready: false,
            retention,
            enumerations: 0,
            changed: HashMap::new(),
            live: 0,
            pointers: 0,
            items: SegmentedVec::new(),
            vacant: Vec::new(),
            index: OpcodeIndex::new(),
            counts: Vec::new(),
        });
        Some(id)
    }

    pub(crate) fn item(&self, id: ItemId) -> &Item {
        &self.tables[usize::from(id.table)].items[id.index as usize]
    }

    pub(crate) fn find_hashed(&self, table: TableId, opcode: HashedOpcode<'_>) -> Option<&Item> {
        self.find_id(table, opcode).map(|id| self.item(id))
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn find(&self, table: TableId, opcode: &Opcode) -> Option<&Item> {
        self.find_hashed(table, self.hasher.hashed(opcode))
    }

    pub(crate) fn find_id(&self, table: TableId, opcode: HashedOpcode<'_>) -> Option<ItemId> {
        self.tables[usize::from(table)].find(opcode).map(|index| ItemId { table, index })
    }

    /// Gives an item its newest value. `always` makes an equal value a change, too; a pointer always is one, and so is every
    /// value in a table that does not keep its items: what is here may be what an enumeration has named to one destination
    /// before the application said it to all. `None` if the item had this value already.
    #[inline(always)]
    pub(crate) fn set(
        &mut self,
        id: TableId,
        opcode: HashedOpcode<'_>,
        value: NewValue<'_>,
        always: bool,
    ) -> Option<Changed> {
        debug_assert_eq!(opcode.hash, self.hasher.hash(opcode.opcode), "hashed with another hasher");
        let table = &mut self.tables[usize::from(id)];
        let likely = table.index.find_and_move(opcode.hash, |_| true);
        // Almost every change: data takes the place of data, in a table of which no enumeration is under way.
        if let Some(index) = likely
            && let item = &mut table.items[index as usize]
            && item.opcode == *opcode.opcode
            && let (Value::Data(old), NewValue::Data(new)) = (&mut item.value, value)
            && matches!(table.retention, Retention::Newest)
            && let old = &mut old[..]
            && old.len() == new.len()
        {
            if !always && is_same(old, new) {
                return None;
            }
            self.last_change = self.last_change.next();
            item.change = self.last_change;
            old.copy_from_slice(new);
            return Some(Changed { index, created: false });
        }
        self.set_otherwise(id, opcode, likely, value, always)
    }

    /// As the short way of [`Store::set`], for data in a buffer, of whatever length. `None` if it is not data that takes the
    /// place of data, or not in such a table.
    fn trade(&mut self, id: ItemId, buffer: &RefCell<ValueBytes>, always: bool) -> Option<Option<Changed>> {
        let table = &mut self.tables[usize::from(id.table)];
        let item = &mut table.items[id.index as usize];
        let (Value::Data(old), Retention::Newest) = (&mut item.value, &table.retention) else { return None };
        let mut new = buffer.borrow_mut();
        if !always && *old == *new {
            return Some(None);
        }
        self.last_change = self.last_change.next();
        item.change = self.last_change;
        std::mem::swap(old, &mut new);
        Some(Some(Changed { index: id.index, created: false }))
    }

    /// Has the items of these opcodes brought near, as far as they are found, and tells of each. Nothing if there are so few
    /// items that they are near in any case.
    #[inline]
    pub(super) fn prefetch<'a>(
        &self,
        table: TableId,
        opcodes: impl Iterator<Item = &'a Opcode>,
        mut found: impl FnMut(ItemId),
    ) {
        let stored = &self.tables[usize::from(table)];
        if stored.items.len() < FAR_ITEMS {
            return;
        }
        let hash = |opcode| {
            let hash = self.hasher.hash(opcode);
            stored.index.prefetch(hash);
            hash
        };
        let hashes: SmallVec<[_; 32]> = opcodes.map(hash).collect();
        for index in hashes.iter().filter_map(|hash| stored.index.likely(*hash)) {
            prefetch(&stored.items[index as usize]);
            found(ItemId { table, index });
        }
    }

    /// As [`Store::set`], of an item that is at `likely`, unless its opcode shares its hash with another's.
    #[inline(never)]
    fn set_otherwise(
        &mut self,
        id: TableId,
        hashed: HashedOpcode<'_>,
        likely: Option<u32>,
        value: NewValue<'_>,
        always: bool,
    ) -> Option<Changed> {
        let HashedOpcode { opcode, hash } = hashed;
        let table = &self.tables[usize::from(id)];
        let index = likely.and_then(|likely| {
            if table.items[likely as usize].opcode == *opcode { Some(likely) } else { table.find(hashed) }
        });
        match (value, index) {
            (NewValue::Other(OtherValue::Buffer(buffer)), Some(index)) => {
                if let Some(stored) = self.trade(ItemId { table: id, index }, buffer, always) {
                    return stored;
                }
            }
            (NewValue::Data(new), Some(index)) if !always && table.keeps_all() => {
                if matches!(&table.items[index as usize].value, Value::Data(old) if **old == *new) {
                    return None;
                }
            }
            _ => {}
        }
        let change = self.next_change();
        let table = &mut self.tables[usize::from(id)];
        table.note_changed(opcode, change);
        let Some(index) = index else {
            let created = if table.keeps_all() { change } else { ChangeNumber::NONE };
            let value = Value::from_new(value);
            let item = Item { opcode: opcode.clone(), value, change, created, owed: 0 };
            let index = table.insert(item, hash);
            return Some(Changed { index, created: true });
        };
        let keeps_all = table.keeps_all();
        let item = &mut table.items[index as usize];
        item.change = change;
        let was_pointer = matches!(item.value, Value::Pointer(_));
        let was_removed = item.value == Value::Removed;
        item.value.replace_with(value);
        if was_removed {
            item.created = change;
            if keeps_all {
                item.owed = 0;
            }
            table.handle_live(index);
        }
        table.pointers += u32::from(matches!(value, NewValue::Other(OtherValue::Pointer(_))));
        table.pointers -= u32::from(was_pointer);
        Some(Changed { index, created: was_removed })
    }

    /// The data that an item's pointer leads to has changed: a change of the item, of which only the number is new. `None`
    /// if the item is no pointer.
    pub(crate) fn touch(&mut self, table: TableId, opcode: HashedOpcode<'_>) -> Option<ItemId> {
        let id = self.find_id(table, opcode)?;
        if !matches!(self.item(id).value, Value::Pointer(_)) {
            return None;
        }
        let change = self.next_change();
        self.tables[usize::from(table)].note_changed(opcode.opcode, change);
        self.item_mut(id).change = change;
        Some(id)
    }

    /// A count begins of the live items that the selection takes.
    pub(crate) fn start_count(&mut self, table: TableId, selection: Selection) -> CountId {
        self.last_count += 1;
        let id = self.last_count;
        self.tables[usize::from(table)].counts.push(Count { id, selection, next: 0, taken: 0 });
        id
    }

    /// Goes on counting. Answers whether all places were looked at.
    pub(crate) fn go_on_counting(&mut self, table: TableId, id: CountId) -> bool {
        let table = &mut self.tables[usize::from(table)];
        let count = table.counts.iter_mut().find(|count| count.id == id).expect("a count that has begun");
        count.look_at(&table.items, PLACES_AT_ONCE)
    }

    /// Counts the rest, and ends the count.
    pub(crate) fn end_count(&mut self, table: TableId, id: CountId) -> u32 {
        let table = &mut self.tables[usize::from(table)];
        let at = table.counts.iter().position(|count| count.id == id).expect("a count that has begun");
        let mut count = table.counts.swap_remove(at);
        count.look_at(&table.items, u32::MAX);
        debug_assert_eq!(
            count.taken as usize,
            table.iter().filter(|item| count.selection.takes(&item.opcode)).count(),
            "what changed meanwhile was counted wrongly"
        );
        count.taken
    }

    /// An enumeration begins: from now on it is noted what changes. Answers the newest change that it is sure to know.
    pub(crate) fn start_enumeration(&mut self, table: TableId) -> ChangeNumber {
        self.tables[usize::from(table)].enumerations += 1;
        self.last_change
    }

    pub(crate) fn end_enumeration(&mut self, table: TableId) {
        let table = &mut self.tables[usize::from(table)];
        table.enumerations -= 1;
        if table.enumerations == 0 {
            table.changed = HashMap::new();
        }
    }

    /// An enumerator has named an item that is not here, so that nothing newer is known of it. It gets a number of its own.
    pub(crate) fn insert_enumerated(&mut self, table: TableId, opcode: Opcode, value: Value) -> ItemId {
        let change = self.next_change();
        let hash = self.hasher.hash(&opcode);
        let item = Item { opcode, value, change, created: ChangeNumber::NONE, owed: 0 };
        ItemId { table, index: self.tables[usize::from(table)].insert(item, hash) }
    }

    /// Makes an item a tombstone; `None` if it is known that there is no such item. The caller then says who owes an ack
    /// ([`Store::owe`]) and lets go of it ([`Store::vacate_if_unowed`]).
    pub(crate) fn remove(&mut self, id: TableId, hashed: HashedOpcode<'_>) -> Option<ItemId> {
        let HashedOpcode { opcode, hash } = hashed;
        let keeps_all = self.tables[usize::from(id)].keeps_all();
        let index = self.tables[usize::from(id)].find(hashed);
        match index {
            None if keeps_all => return None,
            Some(index) if self.tables[usize::from(id)].items[index as usize].value == Value::Removed => {
                return None;
            }
            _ => {}
        }
        let change = self.next_change();
        let table = &mut self.tables[usize::from(id)];
        table.note_changed(opcode, change);
        let Some(index) = index else {
            let created = ChangeNumber::NONE;
            let item = Item { opcode: opcode.clone(), value: Value::Removed, change, created, owed: 0 };
            return Some(ItemId { table: id, index: table.insert(item, hash) });
        };
        table.handle_gone(index);
        let item = &mut table.items[index as usize];
        table.pointers -= u32::from(matches!(item.value, Value::Pointer(_)));
        item.value = Value::Removed;
        item.change = change;
        if keeps_all {
            item.owed = 0;
        }
        Some(ItemId { table: id, index })
    }

    /// The item stays for the sake of so many destinations more.
    pub(crate) fn owe(&mut self, id: ItemId, destinations: u32) {
        self.item_mut(id).owed += destinations;
    }

    /// One destination needs the item no more. Its place is free once that holds of all.
    pub(crate) fn settle(&mut self, id: ItemId) {
        self.item_mut(id).owed -= 1;
        self.vacate_if_unowed(id);
    }

    /// Frees an item's place if nothing needs it.
    pub(crate) fn vacate_if_unowed(&mut self, id: ItemId) {
        let item = self.item(id);
        let table = &self.tables[usize::from(id.table)];
        let may_go = item.value == Value::Removed || (!table.keeps_all() && item.value.is_live());
        if item.owed == 0 && may_go {
            let hash = self.hasher.hash(&item.opcode);
            self.tables[usize::from(id.table)].vacate(id.index, hash);
        }
    }

    fn item_mut(&mut self, id: ItemId) -> &mut Item {
        &mut self.tables[usize::from(id.table)].items[id.index as usize]
    }
}

/// Whether these are the same bytes. Values that differ mostly do so early on, and comparing all is a call.
#[inline(always)]
fn is_same(one: &[u8], other: &[u8]) -> bool {
    one.first_chunk::<8>() == other.first_chunk::<8>() && one == other
}

impl Value {
    fn from_new(value: NewValue<'_>) -> Value {
        match value {
            NewValue::Data(data) => Value::Data(data.into()),
            NewValue::Other(OtherValue::Pointer(pointer)) => Value::Pointer((*pointer).clone()),
            NewValue::Other(OtherValue::Buffer(buffer)) => Value::Data(buffer.take()),
        }
    }

    fn replace_with(&mut self, new: NewValue<'_>) {
        match (&mut *self, new) {
            (Value::Data(old), NewValue::Data(new)) if old.len() == new.len() => old.copy_from_slice(new),
            (old, new) => *old = Value::from_new(new),
        }
    }

    pub(crate) fn is_live(&self) -> bool {
        matches!(self, Value::Data(_) | Value::Pointer(_))
    }
}

impl TableStore {
    /// Whether the newest value of every item is kept, or only what is unacknowledged.
    pub(crate) fn keeps_all(&self) -> bool {
        matches!(self.retention, Retention::Newest)
    }

    /// Who knows the items that are not kept here; `None` if all are.
    pub(crate) fn enumerator(&self) -> Option<&Enumerator> {
        self.retention.enumerator()
    }

    /// Opcodes that were changed or removed while an enumeration is under way.
    pub(crate) fn changed_len(&self) -> usize {
        self.changed.len()
    }

    /// Whether the item was changed or removed after `change`, at which an enumeration that is under way began.
    pub(crate) fn changed_since(&self, opcode: &Opcode, change: ChangeNumber) -> bool {
        self.changed.get(opcode).is_some_and(|&newest| newest > change)
    }

    fn note_changed(&mut self, opcode: &Opcode, change: ChangeNumber) {
        if self.enumerations > 0 {
            self.changed.insert(opcode.clone(), change);
        }
    }

    /// All places, vacant ones too.
    pub(crate) fn items(&self) -> &SegmentedVec<Item> {
        &self.items
    }

    /// Live items.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Item> {
        self.items.iter().filter(|item| item.value.is_live())
    }

    #[inline]
    fn find(&self, HashedOpcode { opcode, hash }: HashedOpcode<'_>) -> Option<u32> {
        self.index.find(hash, |index| self.items[index as usize].opcode == *opcode)
    }

    /// An item has become live.
    fn handle_live(&mut self, index: u32) {
        self.live += 1;
        if !self.counts.is_empty() {
            self.counted_of(index).for_each(|count| count.taken += 1);
        }
    }

    /// An item that is live will be so no more.
    fn handle_gone(&mut self, index: u32) {
        self.live -= 1;
        if !self.counts.is_empty() {
            self.counted_of(index).for_each(|count| count.taken -= 1);
        }
    }

    /// The counts that have come past an item that they take.
    fn counted_of(&mut self, index: u32) -> impl Iterator<Item = &mut Count> {
        let opcode = &self.items[index as usize].opcode;
        self.counts.iter_mut().filter(move |count| index < count.next && count.selection.takes(opcode))
    }

    /// Takes in an item whose opcode has this hash.
    fn insert(&mut self, item: Item, hash: OpcodeHash) -> u32 {
        let is_live = item.value.is_live();
        self.pointers += u32::from(matches!(item.value, Value::Pointer(_)));
        let index = match self.vacant.pop() {
            Some(index) => {
                self.items[index as usize] = item;
                index
            }
            None => {
                let index = u32::try_from(self.items.len()).ok().filter(|index| *index < MAX_ITEMS);
                let index = index.expect("memory ends before 2^31 items");
                self.items.push(|| item);
                // A count that had come to the end still has.
                self.counts.iter_mut().filter(|count| count.next == index).for_each(|count| count.next += 1);
                index
            }
        };
        self.index.insert(hash, index);
        if is_live {
            self.handle_live(index);
        }
        index
    }

    /// Frees the place of an item whose opcode has this hash.
    fn vacate(&mut self, index: u32, hash: OpcodeHash) {
        if self.items[index as usize].value.is_live() {
            self.handle_gone(index);
        }
        let item = &mut self.items[index as usize];
        self.pointers -= u32::from(matches!(item.value, Value::Pointer(_)));
        item.value = Value::Vacant;
        self.index.remove(hash, index);
        self.vacant.push(index);
    }
}

impl Count {
    /// Looks at so many places more. Answers whether there are no others.
    fn look_at(&mut self, items: &SegmentedVec<Item>, places: u32) -> bool {
        let end = self.next.saturating_add(places).min(items.len() as u32);
        let places = (self.next..end).map(|place| &items[place as usize]);
        let taken = places.filter(|item| item.value.is_live() && self.selection.takes(&item.opcode));
        self.taken += taken.count() as u32;
        self.next = end;
        end as usize == items.len()
    }
}

/// For the models, in which no count is ever under way. What does not change (name, retention) and what follows from the rest (the
/// index, how many there are) is left out.
#[cfg(test)]
impl std::hash::Hash for TableStore {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        let mut changed: Vec<_> = self.changed.iter().collect();
        changed.sort_unstable();
        (self.ready, self.enumerations, changed, &self.items, &self.vacant).hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::opcode::ToOpcode;
    use crate::subscription::Subscription;

    fn store() -> (Store, TableId) {
        let mut store = Store::new(SyncSeq::from(1));
        let table = store.add_table("t", Retention::Newest).unwrap();
        (store, table)
    }

    fn set(
        store: &mut Store,
        table: TableId,
        opcode: &Opcode,
        value: NewValue<'_>,
        always: bool,
    ) -> Option<Changed> {
        let opcode = store.hasher().hashed(opcode);
        store.set(table, opcode, value, always)
    }

    fn remove(store: &mut Store, table: TableId, opcode: &Opcode) -> Option<ItemId> {
        let hasher = store.hasher().clone();
        store.remove(table, hasher.hashed(opcode))
    }

    #[test]
    fn an_equal_value_is_no_change_unless_asked_for() {
        let (mut store, table) = store();
        let key = 1u32.to_opcode().unwrap();
        assert_eq!(
            set(&mut store, table, &key, NewValue::Data(b"a"), false),
            Some(Changed { index: 0, created: true })
        );
        assert_eq!(set(&mut store, table, &key, NewValue::Data(b"a"), false), None);
        assert_eq!(store.last_change().seq(), SyncSeq::from(1));
        assert_eq!(
            set(&mut store, table, &key, NewValue::Data(b"a"), true),
            Some(Changed { index: 0, created: false })
        );
        assert_eq!(store.last_change().seq(), SyncSeq::from(2));
    }

    #[test]
    fn a_value_that_differs_in_any_byte_is_a_change() {
        let (mut store, table) = store();
        let key = 1u32.to_opcode().unwrap();
        for len in [1, 7, 8, 9, 64] {
            let mut value = vec![0; len];
            set(&mut store, table, &key, NewValue::Data(&value), false);
            for at in 0..len {
                value[at] = 1;
                let stored = set(&mut store, table, &key, NewValue::Data(&value), false);
                assert_eq!(stored, Some(Changed { index: 0, created: false }), "byte {at} of {len}");
                assert_eq!(set(&mut store, table, &key, NewValue::Data(&value), false), None);
            }
        }
    }

    #[test]
    fn values_of_all_lengths_take_each_others_place() {
        let lengths = [0, 1, 63, 64, 65, 300];
        for (before, after) in lengths.iter().flat_map(|before| lengths.map(|after| (*before, after))) {
            let (mut store, table) = store();
            let key = 1u32.to_opcode().unwrap();
            for in_buffer in [false, true, true] {
                set(&mut store, table, &key, NewValue::Data(&vec![1; before]), false);
                let value = vec![2; after];
                let buffer = OtherValue::Buffer(RefCell::new(value[..].into()));
                let new = if in_buffer { NewValue::Other(&buffer) } else { NewValue::Data(&value) };
                set(&mut store, table, &key, new, true);
                let Value::Data(found) = &store.find(table, &key).unwrap().value else { panic!("no data") };
                assert_eq!(found[..], value, "{before} bytes, then {after}, in a buffer: {in_buffer}");
                if let (true, OtherValue::Buffer(buffer)) = (in_buffer, buffer) {
                    assert_eq!(buffer.into_inner()[..], vec![1; before], "the old value is handed back");
                }
            }
        }
    }

    #[test]
    fn two_opcodes_of_one_hash_are_two_items() {
        let (mut store, table) = store();
        let [a, b] = super::super::index::colliding(store.hasher()).map(|n| n.to_opcode().unwrap());
        for (opcode, data, index) in [(&a, b"a1", 0), (&b, b"b1", 1), (&a, b"a2", 0), (&b, b"b2", 1)] {
            let created = data[1] == b'1';
            let changed = set(&mut store, table, opcode, NewValue::Data(data), false);
            assert_eq!(changed, Some(Changed { index, created }));
            assert_eq!(set(&mut store, table, opcode, NewValue::Data(data), false), None, "an equal value");
        }
        let buffer = OtherValue::Buffer(RefCell::new(b"b3"[..].into()));
        let changed = set(&mut store, table, &b, NewValue::Other(&buffer), false);
        assert_eq!(changed, Some(Changed { index: 1, created: false }));
        let again = OtherValue::Buffer(RefCell::new(b"b3"[..].into()));
        assert_eq!(set(&mut store, table, &b, NewValue::Other(&again), false), None, "an equal value");
        for (opcode, data) in [(&a, b"a2"), (&b, b"b3")] {
            assert_eq!(store.find(table, opcode).unwrap().value, Value::Data(data[..].into()));
        }
        let gone = remove(&mut store, table, &a).unwrap();
        assert_eq!(gone.index, 0);
        store.vacate_if_unowed(gone);
        assert!(store.find(table, &a).is_none() && store.find(table, &b).is_some());
    }

    #[test]
    fn a_tombstone_keeps_its_place_until_nobody_owes_an_ack() {
        let (mut store, table) = store();
        let (a, b) = (1u32.to_opcode().unwrap(), 2u32.to_opcode().unwrap());
        set(&mut store, table, &a, NewValue::Data(b"a"), false);
        let gone = remove(&mut store, table, &a).unwrap();
        store.owe(gone, 1);
        store.owe(gone, 1);
        assert_eq!(remove(&mut store, table, &a), None, "removed twice");
        store.settle(gone);
        assert!(store.find(table, &a).is_some());
        store.settle(gone);
        assert!(store.find(table, &a).is_none());
        assert_eq!(
            set(&mut store, table, &b, NewValue::Data(b"b"), false),
            Some(Changed { index: gone.index, created: true }),
            "the place is used again"
        );
    }

    #[test]
    fn a_count_knows_what_changes_before_and_behind_it() {
        let (mut store, table) = store();
        let mut rng = fastrand::Rng::with_seed(5);
        let opcode = |group: u8, n: u32| (group, n).to_opcode().unwrap();
        let change = |store: &mut Store, rng: &mut fastrand::Rng, items: u32| {
            let key = opcode(rng.u8(..2), rng.u32(..items));
            if rng.u32(..3) > 0 {
                set(store, table, &key, NewValue::Data(&[rng.u8(..)]), false);
            } else if let Some(gone) = remove(store, table, &key)
                && rng.bool()
            {
                store.vacate_if_unowed(gone);
            }
        };
        for round in 0..20 {
            (0..2000).for_each(|_| change(&mut store, &mut rng, 2000 + 1000 * round));
            let one = Subscription::none().prefix("t", (1u8,)).unwrap().of("t").unwrap();
            let none = Subscription::none().prefix("t", (2u8,)).unwrap().of("t").unwrap();
            let counts = [one.clone(), none].map(|selection| store.start_count(table, selection));
            let mut calls = 0;
            while !store.go_on_counting(table, counts[0]) {
                calls += 1;
                (0..300).for_each(|_| change(&mut store, &mut rng, 2000 + 1000 * round));
            }
            let places = store.tables()[0].items().len();
            assert!(calls >= (places / PLACES_AT_ONCE as usize).saturating_sub(1), "{calls} calls");
            (0..100).for_each(|_| change(&mut store, &mut rng, 2000 + 1000 * round));
            let (places, count) = (store.tables()[0].items().len(), &store.tables()[0].counts[0]);
            assert_eq!(count.next as usize, places, "nothing is left to be counted");
            let counted = counts.map(|count| store.end_count(table, count));
            let live = store.tables()[0].iter().filter(|item| one.takes(&item.opcode)).count();
            assert_eq!(counted, [live as u32, 0]);
            assert!(live > 100 && store.tables()[0].counts.is_empty());
        }
    }

    #[test]
    fn a_value_after_a_remove_begins_a_new_life() {
        let (mut store, table) = store();
        let key = 1u32.to_opcode().unwrap();
        set(&mut store, table, &key, NewValue::Data(b"a"), false);
        let first = store.find(table, &key).unwrap().created;
        set(&mut store, table, &key, NewValue::Data(b"b"), false);
        assert_eq!(store.find(table, &key).unwrap().created, first);
        let id = remove(&mut store, table, &key).unwrap();
        store.owe(id, 1);
        assert_eq!(
            set(&mut store, table, &key, NewValue::Data(b"b"), false),
            Some(Changed { index: id.index, created: true })
        );
        assert!(store.find(table, &key).unwrap().created > first);
        assert_eq!(store.tables()[0].live, 1);
    }
}
