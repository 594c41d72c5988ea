//! Telling the processor what will be needed, so that it is fetched while something else is done.
//!
//! A hint: nothing is read, and nothing waits for it.
#![allow(unsafe_code)]

/// Bytes that the processor fetches together.
pub(crate) const LINE_BYTES: usize = 64;

/// Has a value brought near, all of it.
#[inline(always)]
pub(crate) fn prefetch<T>(value: &T) {
    let start = std::ptr::from_ref(value).cast::<u8>();
    let mut ahead = 0;
    while ahead < size_of::<T>() {
        prefetch_line(start.wrapping_add(ahead));
        ahead += LINE_BYTES;
    }
    // It may end in one line more, unless it is so aligned that it never begins within one, or lies across two.
    if align_of::<T>() < size_of::<T>().min(LINE_BYTES) {
        prefetch_line(start.wrapping_add(size_of::<T>() - 1));
    }
}

/// Has the cache line of an address brought near, if there is memory at all.
#[inline(always)]
pub(crate) fn prefetch_line(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch accesses nothing, whatever the address is.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a prefetch accesses nothing, whatever the address is.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) at, options(readonly, nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _: *const u8 = at;
}

/// As [`prefetch_line`], for a line that will be written: whoever else has it gives it up.
#[inline(always)]
pub(crate) fn prefetch_line_to_write(at: *mut u8) {
    // Not the intrinsic: unless the compiler is told that the processor has `prfchw`, it makes a `prefetcht0` of that. Every 64-bit
    // processor of the last fifteen years takes the instruction: OCaml emits it for all
    // (<https://github.com/ocaml/ocaml/pull/14665>), and 64-bit Windows asks for it.
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch accesses nothing, whatever the address is.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) at, options(readonly, nostack, preserves_flags));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a prefetch accesses nothing, whatever the address is.
    unsafe {
        std::arch::asm!("prfm pstl1keep, [{}]", in(reg) at, options(readonly, nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _: *mut u8 = at;
}
