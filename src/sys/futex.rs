//! Sleeping until a word of this process changes.
#![allow(unsafe_code)]

use std::sync::atomic::AtomicU32;
use std::time::Duration;

use libc::{FUTEX_PRIVATE_FLAG, FUTEX_WAIT, FUTEX_WAKE, SYS_futex, c_int, timespec};

/// Sleeps as long as the word is `expected`, until woken or for `longest`; it may be over sooner for no reason.
pub(crate) fn wait(word: &AtomicU32, expected: u32, longest: Duration) {
    let seconds = longest.as_secs().try_into().unwrap_or(i64::MAX);
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;
    use std::time::Instant;

    use super::*;

    /// Longer than any thread takes to get the cpu.
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn one_that_waits_sleeps_for_the_time_that_it_said() {
        let (word, began) = (AtomicU32::new(0), Instant::now());
        let mut waits = 0;
        while began.elapsed() < Duration::from_millis(30) {
            wait(&word, 0, Duration::from_millis(30));
            waits += 1;
        }
        assert!(waits < 100, "it was awake {waits} times");
        assert!(began.elapsed() < LONG);
    }

    #[test]
    fn nobody_sleeps_over_a_word_that_has_changed() {
        let (word, began) = (AtomicU32::new(1), Instant::now());
        wait(&word, 0, LONG);
        assert!(began.elapsed() < LONG);
    }

    #[test]
    fn those_who_sleep_are_woken() {
        const THREADS: u32 = 4;
        let (word, began) = (AtomicU32::new(0), Instant::now());
        let awake = AtomicU32::new(0);
        let wake_until = |count: u32, wake: fn(&AtomicU32)| {
            while awake.load(Relaxed) < count && began.elapsed() < LONG {
                wake(&word);
                std::thread::yield_now();
            }
        };
        std::thread::scope(|scope| {
            let sleepers = [(); THREADS as usize].map(|()| {
                scope.spawn(|| {
                    wait(&word, 0, LONG);
                    awake.fetch_add(1, Relaxed);
                })
            });
            wake_until(1, wake_one);
            wake_until(THREADS, wake_all);
            // A handle that is dropped sooner is a race to ThreadSanitizer, which does not know the fence in std's `Arc`.
            sleepers.into_iter().for_each(|sleeper| sleeper.join().unwrap());
        });
        assert!(began.elapsed() < LONG, "somebody was not woken");
    }
}
