//! Telling the processor what will be needed, so that it is fetched while something else is done, and what will not.
//!
//! Hints: nothing is read, and nothing waits for it, except that fences wait for evictions that are under way.
#![allow(unsafe_code)]

use std::sync::LazyLock;

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

/// Has cache lines put back into memory, out of all caches. A line that another cpu will write next need not be taken away from this
/// one then.
///
/// Is only had where the processor can: on x86-64, and there on all since some ten years. Others have their instructions for it, of
/// which nobody has measured here what they do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LineEviction(());

impl LineEviction {
    pub(crate) fn detect() -> Option<LineEviction> {
        // To ask the processor of a virtual machine is a call of its host.
        static HAS_IT: LazyLock<bool> = LazyLock::new(has_clflushopt);
        HAS_IT.then_some(LineEviction(()))
    }

    /// Has the cache line of an address evicted.
    ///
    /// # Safety
    /// There is memory, and it may be read.
    #[inline(always)]
    pub(crate) unsafe fn evict(self, at: *const u8) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has the instruction, or there would be no `self`. It changes no byte, and needs what the caller
        // promises.
        unsafe {
            std::arch::asm!("clflushopt [{}]", in(reg) at, options(nostack, preserves_flags));
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _: *const u8 = at;
    }
}

#[cfg(target_arch = "x86_64")]
fn has_clflushopt() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const FEATURES: u32 = 7;
    const CLFLUSHOPT: u32 = 1 << 23;
    // Newer compilers know that these are safe.
    #[allow(unused_unsafe)]
    // SAFETY: every 64-bit processor has the instruction.
    let (highest, found) = unsafe { (__cpuid(0).eax, __cpuid_count(FEATURES, 0).ebx) };
    highest >= FEATURES && found & CLFLUSHOPT != 0
}

#[cfg(not(target_arch = "x86_64"))]
fn has_clflushopt() -> bool {
    false
}
