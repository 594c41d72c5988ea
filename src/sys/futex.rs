//! Sleeping until a word of this process changes.
#![allow(unsafe_code)]

use std::sync::atomic::AtomicU32;
use std::time::Duration;

use libc::{FUTEX_PRIVATE_FLAG, FUTEX_WAIT, FUTEX_WAKE, SYS_futex, c_int, timespec};

/// Sleeps as long as the word is `expected`, until woken or for `longest`; it may be over sooner for no reason.
pub(crate) fn wait(word: &AtomicU32, expected: u32, longest: Duration) {
    let seconds = longest.as_secs().try_into().unwrap_or(libc::time_t::MAX);
    let longest = timespec { tv_sec: seconds, tv_nsec: longest.subsec_nanos().into() };
    // SAFETY: the kernel reads the word, which lives as long as the call, and the timespec; it writes to neither.
    let outcome = unsafe {
        libc::syscall(SYS_futex, word.as_ptr(), FUTEX_WAIT | FUTEX_PRIVATE_FLAG, expected, &raw const longest)
    };
    // EAGAIN, EINTR and ETIMEDOUT say why it is over, about which callers do not ask.
    let _ = outcome;
}

/// Wakes one that sleeps, if any does.
pub(crate) fn wake_one(word: &AtomicU32) {
    wake(word, 1);
}

/// Wakes all that sleep.
pub(crate) fn wake_all(word: &AtomicU32) {
    wake(word, c_int::MAX);
}

fn wake(word: &AtomicU32, most: c_int) {
    // SAFETY: the kernel looks for those that wait at this address, and does not access what is there.
    let woken = unsafe { libc::syscall(SYS_futex, word.as_ptr(), FUTEX_WAKE | FUTEX_PRIVATE_FLAG, most) };
    debug_assert!(woken >= 0, "a word of an AtomicU32 is aligned and mapped");
}
