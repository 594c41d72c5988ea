//! Finds items by their opcodes: from a hash to the item's place in a slab, which both ends of the protocol have.
//!
//! Open addressing with linear probing. A slot is eight bytes: half a hash and a place. So a look-up that finds something
//! costs one cache line here and then the item itself, and neither growing nor removing looks at any item.
//!
//! It grows by twice as many slots. What the slots had that were there before moves over a little with each insertion, so that none
//! takes long; as long as there is some left, what is not in the new slots is looked for in the old ones.
//!
//! Invariants:
//! 1. The number of slots is a power of two, and at most three quarters of them are taken, counting what has yet to move.
//! 2. Between the slot that a hash begins with and the one that holds it no slot is empty: a removal moves those behind it up.
//!    What moves from old slots moves from the first slot on, and as far as an empty one each time.
//!
//! The hash is a folded multiplication, as in wyhash (<https://github.com/wangyi-fudan/wyhash>), seeded at random. It is not meant to
//! resist who chooses opcodes. The hasher is not the index's own: who has it may hash before taking the lock that the index is
//! under.

use std::hash::BuildHasher;

use hashbrown::DefaultHashBuilder;

use crate::cpu_cache::prefetch;
use crate::huge_pages;
use crate::opcode::Opcode;

#[derive(Debug, Clone)]
pub(super) struct OpcodeIndex {
    slots: Box<[Slot]>,
    /// The slots from before the last growth, those before `moved` emptied; none once all that they had is gone.
    old: Box<[Slot]>,
    moved: usize,
    /// Old slots that are taken.
    unmoved: usize,
    /// Slots that are taken, old ones too.
    taken: usize,
}

/// 0, or the hash in the high half and the place, plus one, in the low half.
type Slot = u64;

/// Hashes opcodes, with a seed of its own. Its clones hash alike.
#[derive(Debug, Clone)]
pub(crate) struct OpcodeHasher {
    words: [u64; 4],
    /// For opcodes that are too long for the words.
    long: DefaultHashBuilder,
}

/// Half of an opcode's hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OpcodeHash(u32);

/// An opcode with its hash.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HashedOpcode<'a> {
    pub(super) opcode: &'a Opcode,
    pub(super) hash: OpcodeHash,
}

/// Of the smallest index that is not empty.
const FIRST_SLOTS: usize = 16;
/// So many old slots, and those up to the next empty one, move at a time: all of them long before the index grows again.
const MOVED_AT_ONCE: usize = 8;

impl OpcodeHasher {
    pub(super) fn new() -> OpcodeHasher {
        let long = DefaultHashBuilder::default();
        let words = [1u64, 2, 3, 4].map(|n| long.hash_one(n) | 1);
        OpcodeHasher { words, long }
    }

    #[inline(always)]
    pub(crate) fn hashed<'a>(&self, opcode: &'a Opcode) -> HashedOpcode<'a> {
        HashedOpcode { opcode, hash: self.hash(opcode) }
    }

    #[inline(always)]
    pub(super) fn hash(&self, opcode: &Opcode) -> OpcodeHash {
        let OpcodeHasher { words: [a, b, c, d], long } = self;
        let hash = match opcode.words() {
            Some([first, second, third]) => fold(fold(first ^ a, second ^ b) ^ third ^ c, *d),
            None => hash_long(long, opcode),
        };
        OpcodeHash((hash >> 32) as u32)
    }
}

impl OpcodeIndex {
    pub(super) fn new() -> OpcodeIndex {
        OpcodeIndex { slots: Box::default(), old: Box::default(), moved: 0, unmoved: 0, taken: 0 }
    }

    /// The place with this hash that `is_it` holds of.
    #[inline(always)]
    pub(super) fn find(&self, hash: OpcodeHash, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let found = find_in(&self.slots, hash, &is_it);
        if found.is_some() || self.old.is_empty() {
            return found;
        }
        find_in_old(&self.old, hash, is_it)
    }

    /// As [`OpcodeIndex::find`]. An index that is asked like this gets rid of its old slots even if nothing is inserted any more.
    #[inline(always)]
    pub(super) fn find_and_move(&mut self, hash: OpcodeHash, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let found = find_in(&self.slots, hash, &is_it);
        if found.is_some() || self.old.is_empty() {
            return found;
        }
        let found = find_in_old(&self.old, hash, is_it)?;
        self.move_some();
        Some(found)
    }

    /// Has brought near what a look-up sees first. A caller that has many look-ups to do calls this for all of them before it
    /// looks anything up: then it waits for memory once.
    #[inline]
    pub(super) fn prefetch(&self, hash: OpcodeHash) {
        for slots in [&self.slots, &self.old] {
            let mask = slots.len().wrapping_sub(1);
            if let Some(slot) = slots.get(hash.0 as usize & mask) {
                prefetch(slot);
            }
        }
    }

    /// The place that a look-up finds, unless two opcodes have the same hash.
    #[inline]
    pub(super) fn likely(&self, hash: OpcodeHash) -> Option<u32> {
        self.find(hash, |_| true)
    }

    /// Takes in a place that is not here yet.
    pub(super) fn insert(&mut self, hash: OpcodeHash, place: u32) {
        if !self.old.is_empty() {
            self.move_some();
        }
        if (self.taken + 1) * 4 > self.slots.len() * 3 {
            self.grow((self.taken + 1) * 2);
        }
        self.taken += 1;
        put(&mut self.slots, slot(hash, place));
    }

    /// Makes room for so many places in all.
    pub(super) fn reserve(&mut self, places: usize) {
        if places * 4 > self.slots.len() * 3 {
            self.grow(places * 4 / 3 + 1);
        }
    }

    /// What was at one place is at another now.
    pub(super) fn replace(&mut self, hash: OpcodeHash, place: u32, with: u32) {
        let (before, after) = (slot(hash, place), slot(hash, with));
        match position(&self.slots, before) {
            Some(at) => self.slots[at] = after,
            None => self.old[position(&self.old, before).expect(IN_INDEX)] = after,
        }
    }

    /// Removes a place that is here.
    pub(super) fn remove(&mut self, hash: OpcodeHash, place: u32) {
        let content = slot(hash, place);
        if let Some(at) = position(&self.slots, content) {
            remove_at(&mut self.slots, at);
        } else {
            let at = position(&self.old, content).expect(IN_INDEX);
            remove_at(&mut self.old, at);
            self.handle_moved(1);
        }
        self.taken -= 1;
    }

    #[cold]
    fn grow(&mut self, slots: usize) {
        while !self.old.is_empty() {
            self.move_some();
        }
        let grown = huge_pages::zeroed_vec(slots.next_power_of_two().max(FIRST_SLOTS));
        self.old = std::mem::replace(&mut self.slots, grown.into_boxed_slice());
        (self.moved, self.unmoved) = (0, self.taken);
    }

    /// Moves the next old slots. What stays keeps to invariant 2: between where its hash begins and itself there is no slot that has
    /// been emptied. What lies at the front because the slots at the end were taken goes first.
    #[cold]
    fn move_some(&mut self) {
        let enough = self.moved + MOVED_AT_ONCE;
        let mut moved = 0;
        while let Some(content) = self.old.get_mut(self.moved) {
            if *content != 0 {
                put(&mut self.slots, *content);
                *content = 0;
                moved += 1;
            } else if self.moved >= enough {
                break;
            }
            self.moved += 1;
        }
        self.handle_moved(moved);
    }

    /// So many old slots are taken no more.
    fn handle_moved(&mut self, slots: usize) {
        self.unmoved -= slots;
        if self.unmoved == 0 {
            self.old = Box::default();
        }
    }
}

#[inline(always)]
fn find_in(slots: &[Slot], hash: OpcodeHash, is_it: impl Fn(u32) -> bool) -> Option<u32> {
    let mask = slots.len().checked_sub(1)?;
    let mut at = hash.0 as usize & mask;
    loop {
        let slot = slots[at];
        if slot == 0 {
            return None;
        }
        if hash_of(slot) == hash && is_it(place_of(slot)) {
            return Some(place_of(slot));
        }
        at = (at + 1) & mask;
    }
}

/// Out of line, so that the usual way stays short where it is inlined.
#[cold]
fn find_in_old(old: &[Slot], hash: OpcodeHash, is_it: impl Fn(u32) -> bool) -> Option<u32> {
    find_in(old, hash, is_it)
}

const IN_INDEX: &str = "an item is in its table's index";

/// Empties a slot, and moves those up that lie behind it because it was taken.
fn remove_at(slots: &mut [Slot], mut hole: usize) {
    let mask = slots.len() - 1;
    let mut at = hole;
    loop {
        at = (at + 1) & mask;
        let next = slots[at];
        if next == 0 {
            break;
        }
        // It may move up if it begins no later than the hole, seen from where it is.
        let begins = hash_of(next).0 as usize & mask;
        if (at.wrapping_sub(begins) & mask) >= (at.wrapping_sub(hole) & mask) {
            slots[hole] = next;
            hole = at;
        }
    }
    slots[hole] = 0;
}

/// The slot that holds this.
fn position(slots: &[Slot], content: Slot) -> Option<usize> {
    let mask = slots.len().checked_sub(1)?;
    let mut at = hash_of(content).0 as usize & mask;
    while slots[at] != content {
        if slots[at] == 0 {
            return None;
        }
        at = (at + 1) & mask;
    }
    Some(at)
}

/// Out of line, so that the way of short opcodes stays short where it is inlined.
#[inline(never)]
fn hash_long(long: &DefaultHashBuilder, opcode: &Opcode) -> u64 {
    long.hash_one(opcode.as_bytes())
}

/// Puts a slot's content in the first empty slot for it, of which there is one.
#[inline]
fn put(slots: &mut [Slot], content: Slot) {
    let mask = slots.len() - 1;
    let mut at = hash_of(content).0 as usize & mask;
    while slots[at] != 0 {
        at = (at + 1) & mask;
    }
    slots[at] = content;
}

#[inline]
fn slot(hash: OpcodeHash, place: u32) -> Slot {
    (u64::from(hash.0) << 32) | (u64::from(place) + 1)
}

#[inline]
fn hash_of(slot: Slot) -> OpcodeHash {
    OpcodeHash((slot >> 32) as u32)
}

#[inline]
fn place_of(slot: Slot) -> u32 {
    (slot as u32).wrapping_sub(1)
}

#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

/// Two numbers whose opcodes have the same hash.
#[cfg(test)]
pub(super) fn colliding(hasher: &OpcodeHasher) -> [u64; 2] {
    use crate::opcode::ToOpcode;
    let mut seen = std::collections::HashMap::new();
    let mut numbers = 0u64..;
    numbers
        .find_map(|number| {
            let hash = hasher.hash(&number.to_opcode().unwrap());
            seen.insert(hash.0, number).map(|other| [other, number])
        })
        .expect("there are more numbers than hashes")
}

/// For the models: where an item is found has no influence.
#[cfg(test)]
impl std::hash::Hash for OpcodeHasher {
    fn hash<H: std::hash::Hasher>(&self, _: &mut H) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::opcode::ToOpcode;
    use std::collections::HashMap;

    #[test]
    fn what_was_taken_in_is_found_and_what_was_removed_is_not() {
        let mut rng = fastrand::Rng::with_seed(7);
        for keys in [3u32, 50, 700] {
            let (mut index, hasher) = (OpcodeIndex::new(), OpcodeHasher::new());
            let mut opcodes: Vec<Option<Opcode>> = Vec::new();
            let mut known: HashMap<Opcode, u32> = HashMap::new();
            for _ in 0..20_000 {
                let key = rng.u32(..keys);
                // some of them are longer than the words
                let opcode = match key % 3 {
                    0 => key.to_opcode().unwrap(),
                    1 => format!("{key:>40}").to_opcode().unwrap(),
                    _ => format!("{key:>22}").to_opcode().unwrap(),
                };
                let hash = hasher.hash(&opcode);
                let is_it = |place: u32| opcodes[place as usize].as_ref() == Some(&opcode);
                let found =
                    if rng.bool() { index.find(hash, is_it) } else { index.find_and_move(hash, is_it) };
                assert_eq!(found, known.get(&opcode).copied());
                match found {
                    Some(place) if rng.bool() => {
                        index.remove(hash, place);
                        opcodes[place as usize] = None;
                        known.remove(&opcode);
                    }
                    Some(_) => {}
                    None => {
                        let place = opcodes.len() as u32;
                        opcodes.push(Some(opcode.clone()));
                        index.insert(hash, place);
                        known.insert(opcode, place);
                    }
                }
                assert_eq!(index.taken, known.len());
            }
            for (opcode, &place) in &known {
                let found =
                    index.find(hasher.hash(opcode), |at| opcodes[at as usize].as_ref() == Some(opcode));
                assert_eq!(found, Some(place));
            }
        }
    }

    /// Takes in places from 0 on until the index has grown so that there are old slots to move.
    fn just_grown(hasher: &OpcodeHasher, slots: usize) -> (OpcodeIndex, Vec<OpcodeHash>) {
        let (mut index, mut hashes) = (OpcodeIndex::new(), Vec::new());
        while index.old.len() < slots {
            let place = hashes.len() as u32;
            hashes.push(hasher.hash(&place.to_opcode().unwrap()));
            index.insert(hashes[place as usize], place);
        }
        (index, hashes)
    }

    #[test]
    fn growing_moves_a_few_slots_with_each_insertion() {
        let hasher = OpcodeHasher::new();
        let (mut index, hashes) = just_grown(&hasher, 1 << 12);
        let mut insertions = 0;
        while !index.old.is_empty() {
            let (moved, longest) = (index.moved, longest_run(&index.old));
            insert_more(&mut index, &hasher, hashes.len() + insertions, 1);
            insertions += 1;
            assert!(insertions <= (1 << 12) / 8, "old slots are left after {insertions} insertions");
            if !index.old.is_empty() {
                assert!(index.moved - moved <= 16 + longest, "{} slots", index.moved - moved);
            }
            let found =
                hashes.iter().zip(0..).filter(|(hash, at)| index.find(**hash, |it| it == *at).is_some());
            assert_eq!(found.count(), hashes.len(), "after {insertions}");
        }
    }

    fn insert_more(index: &mut OpcodeIndex, hasher: &OpcodeHasher, from: usize, count: usize) {
        for place in from as u32..(from + count) as u32 {
            index.insert(hasher.hash(&place.to_opcode().unwrap()), place);
        }
    }

    fn longest_run(slots: &[Slot]) -> usize {
        slots.split(|slot| *slot == 0).map(<[Slot]>::len).max().unwrap_or(0)
    }

    #[test]
    fn an_index_that_is_only_asked_gets_rid_of_its_old_slots() {
        let (mut index, hashes) = just_grown(&OpcodeHasher::new(), 1 << 10);
        // Each time that one is found in old slots, some move, mostly others.
        let mut rounds = 0;
        while !index.old.is_empty() {
            let unmoved = index.unmoved;
            for (&hash, place) in hashes.iter().zip(0..) {
                assert_eq!(index.find_and_move(hash, |it| it == place), Some(place));
            }
            rounds += 1;
            assert!(index.unmoved < unmoved, "{unmoved} slots did not move in round {rounds}");
        }
        for (&hash, place) in hashes.iter().zip(0..) {
            assert_eq!(index.find(hash, |it| it == place), Some(place));
        }
    }

    #[test]
    fn what_has_yet_to_move_is_replaced_and_removed_where_it_is() {
        for more in [0, 1, 20, 60] {
            replace_and_remove_while_moving(more);
        }
    }

    fn replace_and_remove_while_moving(more: usize) {
        let hasher = OpcodeHasher::new();
        let (mut index, hashes) = just_grown(&hasher, 1 << 10);
        insert_more(&mut index, &hasher, 1 << 20, more);
        assert!(!index.old.is_empty() && (more == 0) == (index.moved == 0), "{} have moved", index.moved);
        let count = hashes.len() as u32;
        for (&hash, place) in hashes.iter().zip(0..) {
            if place % 3 == 0 {
                index.remove(hash, place);
            } else {
                index.replace(hash, place, place + count);
            }
        }
        for (&hash, place) in hashes.iter().zip(0..) {
            let expected = (place % 3 != 0).then_some(place + count);
            assert_eq!(index.find(hash, |it| it == place || it == place + count), expected);
        }
        assert_eq!(index.taken, hashes.len() + more - hashes.len().div_ceil(3));
    }

    #[test]
    fn making_room_while_slots_have_yet_to_move_loses_none() {
        let (mut index, hashes) = just_grown(&OpcodeHasher::new(), 1 << 10);
        index.reserve(10_000);
        let slots = index.slots.len();
        for (&hash, place) in hashes.iter().zip(0..) {
            assert_eq!(index.find(hash, |it| it == place), Some(place));
        }
        for place in hashes.len() as u32..10_000 {
            index.insert(OpcodeHash(place << 7), place);
        }
        assert_eq!(index.slots.len(), slots, "there was room");
    }

    #[test]
    fn consecutive_opcodes_hardly_collide() {
        let (mut index, hasher) = (OpcodeIndex::new(), OpcodeHasher::new());
        for place in 0..90_000u32 {
            let hash = hasher.hash(&place.to_opcode().unwrap());
            index.insert(hash, place);
        }
        assert!(index.old.is_empty() && index.slots.len() == 1 << 17, "it has not just grown");
        let mask = index.slots.len() - 1;
        let far = |(at, slot): (usize, &Slot)| at.wrapping_sub(hash_of(*slot).0 as usize) & mask;
        let longest = index.slots.iter().enumerate().filter(|(_, slot)| **slot != 0).map(far).max();
        assert!(longest < Some(200), "{longest:?} slots away");
    }
}
