//! Large memory of many items, in huge pages where the system grants them: then it takes fewer page faults to fill, and a look-up
//! somewhere in it seldom waits for the address to be translated, too.
//!
//! A hint, as [`cpu_cache`](crate::cpu_cache) is. What is smaller stays as it is: each such memory may take up the better part of a huge
//! page more than it needs.

use crate::sys::advice;

/// Memory from this size on.
const LARGE_BYTES: usize = 4 << 20;

/// As [`Vec::with_capacity`].
pub(crate) fn vec_with_capacity<T>(capacity: usize) -> Vec<T> {
    let mut vec = Vec::with_capacity(capacity);
    advise_at(vec.as_mut_ptr(), vec.capacity());
    vec
}

/// Of memory that was just allocated, and not touched yet.
pub(crate) fn advise<T>(memory: &mut [T]) {
    advise_at(memory.as_mut_ptr(), memory.len());
}

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
        let mut filled = vec_with_capacity(large);
        filled.resize(large, 0u64);
        assert!(is_advised(&filled), "allocated, and filled later");
        let mut made = vec![0u64; large];
        advise(&mut made);
        assert!(is_advised(&made), "made at its size");
    }

    #[test]
    fn only_large_memory_asks_for_huge_pages() {
        // Not of the allocator, which hands out again what was advised for somebody else.
        let mut memory = memmap2::MmapMut::map_anon(LARGE_BYTES).unwrap();
        advise(&mut memory[1..]);
        assert!(!is_advised(&memory), "a byte less");
        advise(&mut memory[..]);
        assert!(is_advised(&memory) || !has_huge_pages());
    }
}
