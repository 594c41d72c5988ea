//! A destination's own record of each item, and of the acks that its application owes.

use hashbrown::{HashMap, HashSet};

use super::super::ValueBytes;
use super::super::index::{OpcodeHash, OpcodeHasher, OpcodeIndex};
use super::DestinationStats;
use super::event::{AckSlot, Event};
use crate::cpu_cache::{LINE_BYTES, prefetch};
use crate::huge_pages;
use crate::opcode::Opcode;
use crate::seq::ChangeNumber;

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct LocalTable {
    pub(super) name: Box<str>,
    pub(super) records: Records,
    /// Changes of the present epoch that were handed over and are not yet acknowledged: each the newest of its record.
    pub(super) owed: HashMap<Opcode, Owed>,
    /// Items that are recorded, and of which the application was told that they are gone: it has put the ack of that off, or
    /// has refused what came after it.
    pub(super) told_gone: HashSet<Opcode>,
    /// The attach whose end marker was applied last; 0 for none.
    pub(super) synced: u32,
}

/// The records of a table by opcode, without holes, so that a walk over all is a walk over a slice. Room for those of a replay is
/// made at once, in one piece: in several the open loop beside a replay was slower (docs/tuning.md).
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Records {
    places: Places,
    index: OpcodeIndex,
    hasher: OpcodeHasher,
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
enum Places {
    Valued(Vec<Valued>),
    /// The application keeps the values itself.
    Bare(Vec<Entry>),
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
struct Entry {
    opcode: Opcode,
    record: Record,
}

/// All that a change of an item needs here, in two cache lines.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
#[repr(align(64))]
struct Valued {
    entry: Entry,
    value: ValueBytes,
}

const _: () = assert!(size_of::<Valued>() == 2 * LINE_BYTES);

/// A record that is here.
#[derive(Debug)]
pub(super) struct Known<'a> {
    pub(super) record: &'a mut Record,
    /// If values are kept.
    pub(super) value: Option<&'a mut ValueBytes>,
}

/// So many records fill the nearer caches.
pub(super) const FAR_RECORDS: usize = 4096;

#[derive(Debug)]
#[cfg_attr(test, derive(Clone, Hash))]
pub(super) struct Record {
    /// The change handed over last.
    pub(super) change: ChangeNumber,
    /// The attach on which that was.
    pub(super) applied_on: u32,
    /// The newest attach whose source named the item.
    pub(super) confirmed_on: u32,
}

/// An ack that the application has put off.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(test, derive(Hash))]
pub(super) struct Owed {
    pub(super) change: ChangeNumber,
    pub(super) removes: bool,
    /// The attach on which the change was received last, and its ordinal there.
    pub(super) received: (u32, u64),
    /// What the record was before it; `None` if there was none.
    pub(super) before: Option<Before>,
}

/// A record as it was before a change whose ack is owed.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(test, derive(Hash))]
pub(super) struct Before {
    pub(super) change: ChangeNumber,
    pub(super) applied_on: u32,
    /// The application was told that the item is gone.
    pub(super) told_gone: bool,
}

/// What the handler of one event answered, as far as the protocol cares.
pub(super) type Applied = bool;

/// A record of an item, as far as both kinds of change share it.
#[derive(Clone, Copy)]
pub(super) struct Received<'a> {
    pub(super) table: usize,
    pub(super) opcode: &'a [u8],
    pub(super) change: ChangeNumber,
    pub(super) ordinal: u64,
}

impl Records {
    /// None, with their values if these are kept.
    pub(super) fn new(keep_values: bool) -> Records {
        let places = if keep_values { Places::Valued(Vec::new()) } else { Places::Bare(Vec::new()) };
        Records { places, index: OpcodeIndex::new(), hasher: OpcodeHasher::new() }
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        match &self.places {
            Places::Valued(places) => places.len(),
            Places::Bare(places) => places.len(),
        }
    }

    /// Makes room for so many records in all, if there is memory for it.
    pub(super) fn reserve(&mut self, records: usize) {
        let more = records.saturating_sub(self.len());
        let fits = match &mut self.places {
            Places::Valued(places) => huge_pages::try_reserve(places, more),
            Places::Bare(places) => huge_pages::try_reserve(places, more),
        };
        if fits.is_ok() {
            self.index.reserve(records);
        }
    }

    /// The place of a record, until one is taken in or removed.
    #[inline]
    pub(super) fn find(&self, opcode: &Opcode) -> Option<usize> {
        let is_it = |place: u32| self.places.entry(place as usize).opcode == *opcode;
        self.index.find(self.hasher.hash(opcode), is_it).map(|place| place as usize)
    }

    /// A record that is about to be changed.
    #[inline(always)]
    pub(super) fn find_to_change(&mut self, opcode: &Opcode) -> Option<Known<'_>> {
        let hash = self.hasher.hash(opcode);
        let mut place = self.index.find_and_move(hash, |_| true)? as usize;
        // Once in some four billion it is another's.
        if self.places.entry(place).opcode != *opcode {
            place = self.find_behind_another(hash, opcode)?;
        }
        Some(match &mut self.places {
            Places::Valued(places) => {
                let Valued { entry, value } = &mut places[place];
                Known { record: &mut entry.record, value: Some(value) }
            }
            Places::Bare(places) => Known { record: &mut places[place].record, value: None },
        })
    }

    /// Of an opcode whose hash another's has, too.
    #[cold]
    fn find_behind_another(&self, hash: OpcodeHash, opcode: &Opcode) -> Option<usize> {
        let is_it = |place: u32| self.places.entry(place as usize).opcode == *opcode;
        self.index.find(hash, is_it).map(|place| place as usize)
    }

    /// The hash of this opcode. `None` if there are so few records that they are near in any case.
    #[inline]
    pub(super) fn hash_if_far(&self, opcode: &[u8]) -> Option<OpcodeHash> {
        if self.len() < FAR_RECORDS {
            return None;
        }
        Some(self.hasher.hash(&Opcode::from_bytes(opcode).ok()?))
    }

    /// Has brought near what a look-up with this hash sees first.
    #[inline]
    pub(super) fn prefetch_index(&self, hash: OpcodeHash) {
        self.index.prefetch(hash);
    }

    /// Has the record with this hash brought near, and its value.
    #[inline]
    pub(super) fn prefetch(&self, hash: OpcodeHash) {
        let Some(place) = self.index.likely(hash) else { return };
        match &self.places {
            Places::Valued(places) => prefetch(&places[place as usize]),
            Places::Bare(places) => prefetch(&places[place as usize]),
        }
    }

    /// The record at a place.
    #[inline]
    pub(super) fn at_mut(&mut self, place: usize) -> &mut Record {
        match &mut self.places {
            Places::Valued(places) => &mut places[place].entry.record,
            Places::Bare(places) => &mut places[place].record,
        }
    }

    /// The item at a place; its value is empty unless values are kept.
    #[inline]
    pub(super) fn item(&self, place: usize) -> (&Opcode, &[u8]) {
        match &self.places {
            Places::Valued(places) => (&places[place].entry.opcode, &places[place].value),
            Places::Bare(places) => (&places[place].opcode, &[]),
        }
    }

    #[inline]
    pub(super) fn get(&self, opcode: &Opcode) -> Option<&Record> {
        self.find(opcode).map(|place| &self.places.entry(place).record)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, opcode: &Opcode) -> Option<&mut Record> {
        self.find(opcode).map(|place| self.at_mut(place))
    }

    /// Takes in a record that is not here yet, with its value if values are kept.
    pub(super) fn insert(&mut self, opcode: Opcode, record: Record, value: &[u8]) {
        let place = self.len();
        let number = u32::try_from(place).expect("memory ends before 2^32 items");
        self.index.insert(self.hasher.hash(&opcode), number);
        // Made where it stays: it would be moved in wider pieces than it was written in, see `ProducerMemory::copy_in_record`.
        match &mut self.places {
            Places::Valued(places) => huge_pages::push(places, || {
                let entry = Entry { opcode, record };
                Valued { entry, value: ValueBytes::new() }
            }),
            Places::Bare(places) => huge_pages::push(places, || Entry { opcode, record }),
        }
        if let Places::Valued(places) = &mut self.places {
            set_value(&mut places[place].value, value);
        }
    }

    pub(super) fn remove(&mut self, opcode: &Opcode) -> Option<Record> {
        let place = self.find(opcode)?;
        Some(self.remove_at(place))
    }

    /// Removes what `goes` says, and answers how many that were.
    pub(super) fn remove_where(&mut self, mut goes: impl FnMut(&Opcode, &Record) -> bool) -> usize {
        let before = self.len();
        let mut place = 0;
        while place < self.len() {
            let Entry { opcode, record } = self.places.entry(place);
            if goes(opcode, record) {
                self.remove_at(place);
            } else {
                place += 1;
            }
        }
        before - self.len()
    }

    /// All records, in the order of their places.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Opcode, &Record)> {
        let entries = (0..self.len()).map(|place| self.places.entry(place));
        entries.map(|Entry { opcode, record }| (opcode, record))
    }

    /// The last record takes the place of the one that goes.
    fn remove_at(&mut self, place: usize) -> Record {
        self.index.remove(self.hasher.hash(&self.places.entry(place).opcode), place as u32);
        let last = self.len() - 1;
        if place < last {
            self.index.replace(self.hasher.hash(&self.places.entry(last).opcode), last as u32, place as u32);
        }
        match &mut self.places {
            Places::Valued(places) => places.swap_remove(place).entry.record,
            Places::Bare(places) => places.swap_remove(place).record,
        }
    }
}

impl Places {
    #[inline]
    fn entry(&self, place: usize) -> &Entry {
        match self {
            Places::Valued(places) => &places[place].entry,
            Places::Bare(places) => &places[place],
        }
    }
}

/// Replaces a value.
#[inline(always)]
pub(super) fn set_value(kept: &mut ValueBytes, value: &[u8]) {
    let bytes = &mut kept[..];
    if bytes.len() == value.len() {
        bytes.copy_from_slice(value);
    } else {
        replace(kept, value);
    }
}

/// Replaces a value by one of another length.
#[inline(never)]
fn replace(kept: &mut ValueBytes, value: &[u8]) {
    if value.len() <= kept.inline_size() && !kept.spilled() {
        kept.clear();
        kept.extend_from_slice(value);
    } else {
        *kept = ValueBytes::from_slice(value);
    }
}

impl LocalTable {
    /// As [`LocalTable::remove_where`], for items that no marker of the source's ends.
    pub(super) fn give_up(
        &mut self,
        stats: &mut DestinationStats,
        handler: &mut impl FnMut(Event<'_>) -> Applied,
        goes: impl Fn(&Record) -> bool,
    ) -> u64 {
        self.remove_where(stats, goes, |table, opcode, record| {
            handler(Event::Removed { table, opcode, seq: record.change.seq(), ack: AckSlot::NONE })
        })
    }

    /// Removes those of these items of which the handler lets go, and answers how many those were. Items whose remove was
    /// handed over and is owed its ack are passed over: they go when that is given.
    pub(super) fn remove_where(
        &mut self,
        stats: &mut DestinationStats,
        goes: impl Fn(&Record) -> bool,
        mut handler: impl FnMut(&str, &Opcode, &Record) -> Applied,
    ) -> u64 {
        let LocalTable { name, records, owed, told_gone, .. } = self;
        let removed = records.remove_where(|opcode, record| {
            if !goes(record) || owes_remove(owed, opcode) {
                return false;
            }
            let gone = handler(name, opcode, record);
            if gone {
                stats.owed -= u64::from(owed.remove(opcode).is_some());
                told_gone.remove(opcode);
            } else {
                stats.failed += 1;
            }
            gone
        });
        let removed = removed as u64;
        stats.items -= removed;
        removed
    }
}

impl Record {
    pub(super) fn before(&self, told_gone: bool) -> Before {
        Before { change: self.change, applied_on: self.applied_on, told_gone }
    }
}

/// Whether the item's remove was handed over and is owed its ack.
pub(super) fn owes_remove(owed: &HashMap<Opcode, Owed>, opcode: &Opcode) -> bool {
    !owed.is_empty() && owed.get(opcode).is_some_and(|owed| owed.removes)
}

impl Received<'_> {
    /// Of a change that was handed over before, or an older one: whether it was applied. If its ack is owed, it is given for
    /// this copy of it.
    pub(super) fn is_settled(&self, owed: Option<&mut Owed>, attach: u32) -> Applied {
        let Some(owed) = owed else { return true };
        if owed.change == self.change {
            owed.received = (attach, self.ordinal);
        }
        false
    }

    pub(super) fn owed(&self, before: Option<Before>, removes: bool, attach: u32) -> Owed {
        Owed { change: self.change, removes, received: (attach, self.ordinal), before }
    }
}

/// For the models: what is counted has no influence, and a map's order neither.
#[cfg(test)]
mod hash {
    use std::hash::{Hash, Hasher};

    use super::{DestinationStats, LocalTable, Opcode};

    impl Hash for DestinationStats {
        fn hash<H: Hasher>(&self, _: &mut H) {}
    }

    impl Hash for LocalTable {
        fn hash<H: Hasher>(&self, state: &mut H) {
            (&self.name, self.synced).hash(state);
            let records = self.records.iter().enumerate();
            let valued =
                records.map(|(place, (opcode, record))| (opcode, (record, self.records.item(place).1)));
            hash_sorted(valued, state);
            hash_sorted(self.owed.iter(), state);
            self.told_gone.iter().collect::<std::collections::BTreeSet<_>>().hash(state);
        }
    }

    fn hash_sorted<'a, V: Hash>(entries: impl Iterator<Item = (&'a Opcode, V)>, state: &mut impl Hasher) {
        let mut entries: Vec<_> = entries.collect();
        entries.sort_unstable_by_key(|(opcode, _)| *opcode);
        entries.hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::opcode::ToOpcode;
    use crate::proto::index::colliding;

    #[test]
    fn records_whose_opcodes_share_a_hash_are_told_apart() {
        let mut records = Records::new(true);
        let numbers = colliding(&records.hasher);
        for number in numbers {
            let record = Record { change: ChangeNumber::NONE, applied_on: 1, confirmed_on: 1 };
            records.insert(number.to_opcode().unwrap(), record, &number.to_ne_bytes());
        }
        for number in numbers {
            let known = records.find_to_change(&number.to_opcode().unwrap()).unwrap();
            assert_eq!(known.value.unwrap()[..], number.to_ne_bytes());
        }
        let [gone, stays] = numbers.map(|number| number.to_opcode().unwrap());
        records.remove(&gone);
        assert!(records.find_to_change(&gone).is_none() && records.find_to_change(&stays).is_some());
    }

    #[test]
    fn values_of_all_lengths_take_each_others_place() {
        let lengths = [0, 1, 63, 64, 65, 300];
        let value = |len: usize, of: u8| vec![of; len];
        for (before, after) in lengths.iter().flat_map(|before| lengths.map(|after| (*before, after))) {
            let mut records = Records::new(true);
            for (key, len) in [(1u32, before), (2, 7), (3, before)] {
                let record = Record { change: ChangeNumber::NONE, applied_on: 1, confirmed_on: 1 };
                records.insert(key.to_opcode().unwrap(), record, &value(len, key as u8));
            }
            set_value(
                records.find_to_change(&1u32.to_opcode().unwrap()).unwrap().value.unwrap(),
                &value(after, 9),
            );
            let found: Vec<_> = (0..3).map(|place| records.item(place).1.to_vec()).collect();
            assert_eq!(
                found,
                [value(after, 9), value(7, 2), value(before, 3)],
                "{before} bytes, then {after}"
            );
            // The last takes the place of the one that goes, with its value.
            records.remove(&1u32.to_opcode().unwrap());
            let place = records.find(&3u32.to_opcode().unwrap()).unwrap();
            assert_eq!(records.item(place).1, value(before, 3));
        }
    }
}
