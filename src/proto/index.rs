//! Finds items by their opcodes: from a hash to the item's place in a slab, which both ends of the protocol have.
//!
//! Open addressing with linear probing. A slot is eight bytes: half a hash and a place. So a look-up that finds something
//! costs one cache line here and then the item itself, and neither growing nor removing looks at any item.
//!
//! Invariants:
//! 1. The number of slots is a power of two, and at most three quarters of them are taken.
//! 2. Between the slot that a hash begins with and the one that holds it no slot is empty: a removal moves those behind it up.
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
        OpcodeIndex { slots: Box::default(), taken: 0 }
    }

    /// The place with this hash that `is_it` holds of.
    #[inline(always)]
    pub(super) fn find(&self, hash: OpcodeHash, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let mask = self.slots.len().checked_sub(1)?;
        let mut at = hash.0 as usize & mask;
        loop {
            let slot = self.slots[at];
            if slot == 0 {
                return None;
            }
            if hash_of(slot) == hash && is_it(place_of(slot)) {
                return Some(place_of(slot));
            }
            at = (at + 1) & mask;
        }
    }

    /// Has brought near what a look-up sees first. A caller that has many look-ups to do calls this for all of them before it
    /// looks anything up: then it waits for memory once.
    #[inline]
    pub(super) fn prefetch(&self, hash: OpcodeHash) {
        let mask = self.slots.len().wrapping_sub(1);
        if let Some(slot) = self.slots.get(hash.0 as usize & mask) {
            prefetch(slot);
        }
    }

    /// The place that a look-up finds, unless two opcodes have the same hash.
    #[inline]
    pub(super) fn likely(&self, hash: OpcodeHash) -> Option<u32> {
        self.find(hash, |_| true)
    }

    /// Takes in a place that is not here yet.
    pub(super) fn insert(&mut self, hash: OpcodeHash, place: u32) {
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
        let at = self.slot_of(hash, place);
        self.slots[at] = slot(hash, with);
    }

    /// Removes a place that is here.
    pub(super) fn remove(&mut self, hash: OpcodeHash, place: u32) {
        let mask = self.slots.len() - 1;
        let mut hole = self.slot_of(hash, place);
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let next = self.slots[at];
            if next == 0 {
                break;
            }
            // It may move up if it begins no later than the hole, seen from where it is.
            let begins = hash_of(next).0 as usize & mask;
            if (at.wrapping_sub(begins) & mask) >= (at.wrapping_sub(hole) & mask) {
                self.slots[hole] = next;
                hole = at;
            }
        }
        self.slots[hole] = 0;
        self.taken -= 1;
    }

    fn slot_of(&self, hash: OpcodeHash, place: u32) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = hash.0 as usize & mask;
        while self.slots[at] != slot(hash, place) {
            assert!(self.slots[at] != 0, "an item is in its table's index");
            at = (at + 1) & mask;
        }
        at
    }

    #[cold]
    fn grow(&mut self, slots: usize) {
        let mut grown = vec![0; slots.next_power_of_two().max(FIRST_SLOTS)].into_boxed_slice();
        huge_pages::advise(&mut grown);
        self.slots.iter().filter(|slot| **slot != 0).for_each(|slot| put(&mut grown, *slot));
        self.slots = grown;
    }
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
                let found = index.find(hash, |place| opcodes[place as usize].as_ref() == Some(&opcode));
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

    #[test]
    fn consecutive_opcodes_hardly_collide() {
        let (mut index, hasher) = (OpcodeIndex::new(), OpcodeHasher::new());
        let count = 100_000u32;
        for place in 0..count {
            let hash = hasher.hash(&place.to_opcode().unwrap());
            index.insert(hash, place);
        }
        let mask = index.slots.len() - 1;
        let far = |(at, slot): (usize, &Slot)| at.wrapping_sub(hash_of(*slot).0 as usize) & mask;
        let longest = index.slots.iter().enumerate().filter(|(_, slot)| **slot != 0).map(far).max();
        assert!(longest < Some(200), "{longest:?} slots away");
    }
}
