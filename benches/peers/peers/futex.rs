//! The floor of what sleeps in futexes: two processes on one cpu that wake each other (futex(2)).

#![allow(unsafe_code)]

use std::io;
use std::ptr;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Release};

use crate::harness::cpu;
use crate::harness::peer::{Words, fork_on};
use crate::harness::report::Latency;

/// There and back. The mean is from a loop of its own, as everywhere here.
pub(crate) fn round_trip(cpu: usize, round_trips: u64) -> Latency {
    let words = Words::new(2);
    let peer = fork_on(&[cpu], || {
        for n in 1..=Latency::made(round_trips) as u32 {
            wait(futex(&words, 0), n);
            wake(futex(&words, 1), n);
        }
    });
    cpu::pin(cpu);
    let mut n = 0;
    let latency = Latency::of(round_trips, || {
        n += 1;
        wake(futex(&words, 0), n);
        wait(futex(&words, 1), n);
    });
    peer.join();
    latency
}

fn futex(words: &Words, index: usize) -> &AtomicU32 {
    // SAFETY: the first half of a word, which nothing else uses.
    unsafe { AtomicU32::from_ptr(words.word(index).as_ptr().cast()) }
}

fn wait(futex: &AtomicU32, n: u32) {
    while futex.load(Acquire) != n {
        let no_timeout: *const libc::timespec = ptr::null();
        // SAFETY: the word lives as long as the reference.
        let outcome = unsafe {
            libc::syscall(libc::SYS_futex, futex.as_ptr(), libc::FUTEX_WAIT, n.wrapping_sub(1), no_timeout)
        };
        let error = io::Error::last_os_error();
        let changed = matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR));
        assert!(outcome == 0 || changed, "FUTEX_WAIT: {error}");
    }
}

fn wake(futex: &AtomicU32, n: u32) {
    futex.store(n, Release);
    // SAFETY: the word lives as long as the reference.
    let woken = unsafe { libc::syscall(libc::SYS_futex, futex.as_ptr(), libc::FUTEX_WAKE, 1) };
    assert!(woken >= 0, "FUTEX_WAKE: {}", io::Error::last_os_error());
}
