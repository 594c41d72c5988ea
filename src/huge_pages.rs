//! Large memory of many items, in huge pages where the system grants them: then it takes fewer page faults to fill, and a look-up
//! somewhere in it seldom waits for the address to be translated, too.
//!
//! A hint, as [`cpu_cache`](crate::cpu_cache) is. What is smaller stays as it is: each such memory may take up the better part of a huge
//! page more than it needs.

use std::alloc::{Layout, handle_alloc_error};
use std::collections::TryReserveError;
use std::iter;

use bytemuck::Zeroable;

use crate::sys::advice;

/// Memory from this size on.
const LARGE_BYTES: usize = 4 << 20;

/// As [`Vec::push`], of an item that is made where it stays.
#[inline]
pub(crate) fn push<T>(vec: &mut Vec<T>, make: impl FnOnce() -> T) {
    if vec.len() == vec.capacity() {
        grow(vec);
    }
    vec.extend(iter::once_with(make));
}

#[cold]
fn grow<T>(vec: &mut Vec<T>) {
    vec.reserve(1);
    advise_at(vec.as_mut_ptr(), vec.capacity());
}

/// As [`Vec::try_reserve`].
pub(crate) fn try_reserve<T>(vec: &mut Vec<T>, more: usize) -> Result<(), TryReserveError> {
    let before = vec.capacity();
    vec.try_reserve(more)?;
    if vec.capacity() > before {
        advise_at(vec.as_mut_ptr(), vec.capacity());
    }
    Ok(())
}

/// As [`Vec::with_capacity`].
pub(crate) fn vec_with_capacity<T>(capacity: usize) -> Vec<T> {
    let mut vec = Vec::with_capacity(capacity);
    advise_at(vec.as_mut_ptr(), vec.capacity());
    vec
}

/// So many items of zeros. What is large the system clears when it is used first, as a rule.
pub(crate) fn zeroed_vec<T: Zeroable>(len: usize) -> Vec<T> {
    let mut vec = zeroed_vec_in_small_pages(len);
    advise_at(vec.as_mut_ptr(), len);
    vec
}

/// The same for what may never be used: then it takes no memory. Where none is left, it ends the process, as [`Vec::with_capacity`] does.
pub(crate) fn zeroed_vec_in_small_pages<T: Zeroable>(len: usize) -> Vec<T> {
    let no_memory = |()| handle_alloc_error(Layout::array::<T>(len).expect("it fits the address space"));
    bytemuck::try_zeroed_vec(len).unwrap_or_else(no_memory)
}

/// Of memory that was just allocated, and not touched yet.
fn advise_at<T>(start: *mut T, len: usize) {
    if len * size_of::<T>() >= LARGE_BYTES {
        advice::huge_pages(start.cast()..start.wrapping_add(len).cast());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel says of the mapping in which an address lies: its flags.
    fn flags_at(address: usize) -> String {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut is_it = false;
        for line in smaps.lines() {
            let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
            if let Some((start, end)) = range
                && let (Ok(start), Ok(end)) =
                    (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16))
            {
                is_it = (start..end).contains(&address);
            } else if let (true, Some(flags)) = (is_it, line.strip_prefix("VmFlags:")) {
                return flags.to_string();
            }
        }
        panic!("nothing is mapped at {address:x}");
    }

    fn is_advised<T>(vec: &[T]) -> bool {
        let middle = vec.as_ptr().wrapping_add(vec.len() / 2);
        flags_at(middle as usize).split(' ').any(|flag| flag == "hg")
    }

    fn has_huge_pages() -> bool {
        std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists()
    }

    #[test]
    fn large_memory_asks_for_huge_pages() {
        if !has_huge_pages() {
            return eprintln!("skipped: this system has no transparent huge pages");
        }
        let large = 4 * LARGE_BYTES / 8;
        let mut pushed = Vec::new();
        (0..large as u64).for_each(|n| push(&mut pushed, || n));
        assert!(pushed.iter().copied().eq(0..large as u64));
        assert!(is_advised(&pushed), "pushed one by one");
        let mut tried = Vec::new();
        try_reserve(&mut tried, large).unwrap();
        tried.resize(large, 0u64);
        assert!(is_advised(&tried), "reserved if there is memory");
        assert!(try_reserve(&mut tried, usize::MAX / 16).is_err());
        let mut filled = vec_with_capacity(large);
        filled.resize(large, 0u64);
        assert!(is_advised(&filled), "allocated, and filled later");
        assert!(is_advised(&zeroed_vec::<u64>(large)), "zeros");
    }

    #[test]
    fn only_large_memory_asks_for_huge_pages() {
        // Not of the allocator, which hands out again what was advised for somebody else.
        let mut memory = memmap2::MmapMut::map_anon(LARGE_BYTES).unwrap();
        advise_at(memory[1..].as_mut_ptr(), LARGE_BYTES - 1);
        assert!(!is_advised(&memory), "a byte less");
        advise_at(memory.as_mut_ptr(), LARGE_BYTES);
        assert!(is_advised(&memory) || !has_huge_pages());
    }
}
