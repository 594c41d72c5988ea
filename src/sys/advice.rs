//! What the kernel is told of how memory will be used: it may heed it, and nothing else changes.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::ops::Range;
use std::ptr::NonNull;

use nix::sys::mman::{MmapAdvise, madvise};

/// A huge page, or a divisor of it: memory in which no whole one lies is left as it is. A multiple of every page.
const ALIGNMENT: usize = 2 << 20;

/// This memory, of ours, had best lie in huge pages, as far as whole ones lie in it.
pub(crate) fn huge_pages(memory: Range<*mut u8>) {
    let skipped = memory.start.align_offset(ALIGNMENT);
    let bytes = (memory.end as usize).saturating_sub(memory.start as usize + skipped) & !(ALIGNMENT - 1);
    let Some(start) = NonNull::new(memory.start.wrapping_add(skipped).cast::<c_void>()) else { return };
    if bytes > 0 {
        // SAFETY: within memory that is the caller's; this advice changes nothing that it holds.
        let advised = unsafe { madvise(start, bytes, MmapAdvise::MADV_HUGEPAGE) };
        // EINVAL, where the system has none, and ENOMEM say that it stays as it is.
        let _ = advised;
    }
}
