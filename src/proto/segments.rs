//! A vector that grows without moving what it holds: items of a table, and what is kept for each.
//!
//! The first segment is a vector that doubles, up to half a megabyte. Each later one has as many items as all before it
//! together, and is allocated whole: so the last push of a million takes no longer than others, and growing needs no memory
//! twice. What is in the first segment, as all is in small tables, is found as in a vector; what is behind it, from the highest bit of
//! its index.

use std::iter;
use std::ops::{Index, IndexMut};

use crate::huge_pages;

#[derive(Debug)]
#[cfg_attr(test, derive(Clone, Hash))]
pub(crate) struct SegmentedVec<T> {
    len: usize,
    first: Vec<T>,
    /// The n-th holds the items from `FIRST << n` on, and as many. Those behind the last item are empty.
    later: Vec<Vec<T>>,
}

/// Of the first segment: what is moved at most when it grows.
const FIRST_BYTES: usize = 512 << 10;

impl<T> SegmentedVec<T> {
    /// Items of the first segment: a power of two.
    const FIRST: usize = 1 << (FIRST_BYTES / size_of::<T>()).ilog2();

    pub(super) fn new() -> SegmentedVec<T> {
        SegmentedVec { len: 0, first: Vec::new(), later: Vec::new() }
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
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

    /// So many items in all will come: the first segment need not grow then.
    pub(super) fn reserve(&mut self, items: usize) {
        self.first.reserve_exact(items.min(Self::FIRST).saturating_sub(self.first.len()));
    }

    /// Adds an item, which is made where it stays.
    #[inline]
    pub(super) fn push(&mut self, make: impl FnOnce() -> T) {
        let segment = match Self::place(self.len) {
            None => &mut self.first,
            Some((segment, _)) => self.later_segment(segment),
        };
        segment.extend(iter::once_with(make));
        self.len += 1;
    }

    pub(super) fn pop(&mut self) -> Option<T> {
        let last = self.len.checked_sub(1)?;
        self.len = last;
        match Self::place(last) {
            None => self.first.pop(),
            Some((segment, _)) => self.later[segment].pop(),
        }
    }

    /// Takes an item out; the last one takes its place.
    pub(super) fn swap_remove(&mut self, at: usize) -> T {
        let last = self.pop().expect("there is an item");
        if at == self.len { last } else { std::mem::replace(&mut self[at], last) }
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

impl<T: Default> SegmentedVec<T> {
    /// Adds items until there are as many.
    pub(super) fn extend_to(&mut self, len: usize) {
        while self.len < len {
            self.push(T::default);
        }
    }
}

impl<T> Index<usize> for SegmentedVec<T> {
    type Output = T;

    #[inline(always)]
    fn index(&self, at: usize) -> &T {
        match self.get(at) {
            Some(item) => item,
            None => out_of_range(at, self.len),
        }
    }
}

impl<T> IndexMut<usize> for SegmentedVec<T> {
    #[inline(always)]
    fn index_mut(&mut self, at: usize) -> &mut T {
        let len = self.len;
        match self.get_mut(at) {
            Some(item) => item,
            None => out_of_range(at, len),
        }
    }
}

#[cold]
fn out_of_range(at: usize, len: usize) -> ! {
    panic!("index {at} of {len} items")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of 64 KiB, so that the first segment has eight.
    #[derive(Debug, Clone)]
    struct Large(u32, #[expect(dead_code, reason = "it is the size that matters")] [u8; 65_532]);

    impl Default for Large {
        fn default() -> Large {
            Large(0, [0; 65_532])
        }
    }

    fn numbers(items: &SegmentedVec<Large>) -> Vec<u32> {
        items.iter().map(|item| item.0).collect()
    }

    #[test]
    fn items_come_and_go_as_in_a_vector() {
        let mut rng = fastrand::Rng::with_seed(3);
        let (mut items, mut expected) = (SegmentedVec::new(), Vec::new());
        for grows in [70, 20, 80, 0, 100] {
            for number in 0..200 {
                if rng.u32(..100) < grows {
                    items.push(|| Large(number, [0; 65_532]));
                    expected.push(number);
                } else if rng.bool() {
                    assert_eq!(items.pop().map(|item| item.0), expected.pop());
                } else if !expected.is_empty() {
                    let at = rng.usize(..expected.len());
                    assert_eq!(items.swap_remove(at).0, expected.swap_remove(at));
                }
                assert_eq!(items.len(), expected.len());
                assert!(items.get(items.len()).is_none() && items.get_mut(items.len()).is_none());
            }
            assert_eq!(numbers(&items), expected);
            for (at, &number) in expected.iter().enumerate() {
                assert_eq!((items[at].0, items.get(at).map(|item| item.0)), (number, Some(number)));
                items[at].0 += 1;
            }
            expected.iter_mut().for_each(|number| *number += 1);
        }
        assert!(items.len() > 64, "several segments");
    }

    #[test]
    fn what_lies_behind_the_first_segment_never_moves() {
        let mut items = SegmentedVec::new();
        items.extend_to(SegmentedVec::<Large>::FIRST + 1);
        let address = |items: &SegmentedVec<Large>, at: usize| std::ptr::from_ref(&items[at]) as usize;
        let (first, behind) = (address(&items, 0), address(&items, items.len() - 1));
        items.extend_to(100);
        assert_eq!(address(&items, 0), first, "the first segment is full");
        assert_eq!(address(&items, SegmentedVec::<Large>::FIRST), behind);
        assert_eq!(numbers(&items), [0; 100]);
    }

    #[test]
    #[should_panic(expected = "index 9 of 9 items")]
    fn what_is_not_there_is_refused() {
        let mut items = SegmentedVec::<Large>::new();
        items.extend_to(9);
        items[9].0 = 1;
    }
}
