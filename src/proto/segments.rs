//! A vector that grows without moving what it holds: items of a table, and what is kept for each.
//!
//! The first segment is a vector that doubles, up to half a megabyte. Each later one has as many items as all before it
//! together, and is allocated whole: so the last push of a million takes no longer than others, and growing needs no memory
//! twice. What is in the first segment, as all is in small tables, is found as in a vector; what is behind it, from the highest bit of
//! its index.

use std::iter;
use std::ops::{Index, IndexMut};

use bytemuck::Zeroable;

use crate::huge_pages;

#[derive(Debug)]
#[cfg_attr(test, derive(Clone, Hash))]
pub(crate) struct SegmentedVec<T> {
    first: Vec<T>,
    /// The n-th holds the items from `FIRST << n` on, and as many.
    later: Vec<Vec<T>>,
}

/// Of the first segment: what is moved at most when it grows.
const FIRST_BYTES: usize = 512 << 10;

impl<T> SegmentedVec<T> {
    /// Items of the first segment: a power of two.
    const FIRST: usize = 1 << (FIRST_BYTES / size_of::<T>()).ilog2();

    pub(super) fn new() -> SegmentedVec<T> {
        SegmentedVec { first: Vec::new(), later: Vec::new() }
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        match self.later.split_last() {
            None => self.first.len(),
            Some((last, before)) => (Self::FIRST << before.len()) + last.len(),
        }
    }

    #[inline(always)]
    pub(super) fn get(&self, at: usize) -> Option<&T> {
        if let Some(item) = self.first.get(at) {
            return Some(item);
        }
        let (segment, at) = Self::place(at)?;
        self.later.get(segment)?.get(at)
    }

    #[inline(always)]
    pub(super) fn get_mut(&mut self, at: usize) -> Option<&mut T> {
        if at < self.first.len() {
            return Some(&mut self.first[at]);
        }
        let (segment, at) = Self::place(at)?;
        self.later.get_mut(segment)?.get_mut(at)
    }

    /// Adds an item, which is made where it stays.
    #[inline]
    pub(super) fn push(&mut self, make: impl FnOnce() -> T) {
        let segment = match Self::place(self.len()) {
            None => &mut self.first,
            Some((segment, _)) => self.later_segment(segment),
        };
        segment.extend(iter::once_with(make));
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.first.iter().chain(self.later.iter().flatten())
    }

    /// The later segment in which an item lies, and where it does there; `None` if it lies in the first.
    #[inline(always)]
    fn place(at: usize) -> Option<(usize, usize)> {
        let segment = (at / Self::FIRST).checked_ilog2()? as usize;
        Some((segment, at - (Self::FIRST << segment)))
    }

    /// The segment that the next item goes to.
    fn later_segment(&mut self, segment: usize) -> &mut Vec<T> {
        if segment == self.later.len() {
            self.later.push(huge_pages::vec_with_capacity(Self::FIRST << segment));
        }
        &mut self.later[segment]
    }
}

impl<T: Zeroable> SegmentedVec<T> {
    /// Adds items of zeros until there are at least so many: as many as there is room for then. Those of a later segment take neither
    /// time nor memory until they are used, if the allocator has it from the system anew.
    pub(super) fn extend_zeroed(&mut self, len: usize) {
        if self.first.len() < len.min(Self::FIRST) {
            self.first.resize_with(len.next_power_of_two().min(Self::FIRST), T::zeroed);
        }
        while self.len() < len {
            assert_eq!(
                Self::place(self.len()),
                Some((self.later.len(), 0)),
                "the segments before it are full"
            );
            self.later.push(huge_pages::zeroed_vec_in_small_pages(Self::FIRST << self.later.len()));
        }
    }
}

impl<T> Index<usize> for SegmentedVec<T> {
    type Output = T;

    #[inline(always)]
    fn index(&self, at: usize) -> &T {
        self.get(at).unwrap_or_else(|| out_of_range(at))
    }
}

impl<T> IndexMut<usize> for SegmentedVec<T> {
    #[inline(always)]
    fn index_mut(&mut self, at: usize) -> &mut T {
        self.get_mut(at).unwrap_or_else(|| out_of_range(at))
    }
}

#[cold]
fn out_of_range(at: usize) -> ! {
    panic!("there is no item at index {at}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of 64 KiB, so that the first segment has eight.
    #[derive(Debug, Clone)]
    struct Large(u32, #[expect(dead_code, reason = "it is the size that matters")] [u8; 65_532]);

    // SAFETY: all are numbers.
    #[allow(unsafe_code)]
    unsafe impl Zeroable for Large {}

    fn filled(items: u32) -> SegmentedVec<Large> {
        let mut filled = SegmentedVec::new();
        (0..items).for_each(|number| filled.push(|| Large(number, [0; 65_532])));
        filled
    }

    fn numbers(items: &SegmentedVec<Large>) -> Vec<u32> {
        items.iter().map(|item| item.0).collect()
    }

    #[test]
    fn items_are_found_as_in_a_vector() {
        let mut items = filled(0);
        for len in 0..100 {
            assert!(items.get(len).is_none() && items.get_mut(len).is_none());
            assert!(numbers(&items).into_iter().eq(0..len as u32) && items.len() == len);
            items.push(|| Large(len as u32, [0; 65_532]));
            assert_eq!(
                (items[len].0, items.get(len / 2).map(|item| item.0)),
                (len as u32, Some(len as u32 / 2))
            );
        }
        (0..100).for_each(|at| items[at].0 += 7);
        assert!(numbers(&items).into_iter().eq(7..107));
    }

    #[test]
    fn what_lies_behind_the_first_segment_never_moves() {
        let mut items = filled(SegmentedVec::<Large>::FIRST as u32 + 1);
        let address = |items: &SegmentedVec<Large>, at: usize| std::ptr::from_ref(&items[at]) as usize;
        let (first, behind) = (address(&items, 0), address(&items, items.len() - 1));
        (items.len() as u32..100).for_each(|number| items.push(|| Large(number, [0; 65_532])));
        assert_eq!(address(&items, 0), first, "the first segment is full");
        assert_eq!(address(&items, SegmentedVec::<Large>::FIRST), behind);
        assert!(numbers(&items).into_iter().eq(0..100));
    }

    #[test]
    #[should_panic(expected = "there is no item at index 9")]
    fn what_is_not_there_is_refused() {
        filled(9)[9].0 = 1;
    }

    #[test]
    fn zeros_come_behind_what_there_is_as_many_as_there_is_room_for() {
        const FIRST: usize = SegmentedVec::<Large>::FIRST;
        let lengths =
            [(0, 0), (1, 1), (3, 4), (FIRST, FIRST), (FIRST + 1, 2 * FIRST), (9 * FIRST, 16 * FIRST)];
        for (at_least, expected) in lengths {
            let mut items = SegmentedVec::<Large>::new();
            items.extend_zeroed(at_least);
            assert_eq!((items.len(), items.iter().count()), (expected, expected), "at least {at_least}");
            assert!(items.get(expected).is_none() && items.iter().all(|item| item.0 == 0));
        }
        let mut items = SegmentedVec::<Large>::new();
        for len in 1..5 * FIRST {
            items.extend_zeroed(len);
            items[len - 1].0 = len as u32;
        }
        assert!(items.iter().zip(1..5 * FIRST as u32).all(|(item, number)| item.0 == number));
    }
}
