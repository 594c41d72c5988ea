//! What the machine gives: the least that a round trip between two processes can cost.

#![allow(unsafe_code)]

use std::hint::spin_loop;
use std::io;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::{Duration, Instant};

use super::peer::{Words, fork_on, isolated};
use super::report::{Latency, made_for_mean, mean_of};
use super::{cpu, record};

/// A floor above this is that of two cpus which the host has moved apart.
pub(crate) const FAR_NS: f64 = 150.0;

/// A 64-byte record whose first word is also the flag, there and back, on two cpus.
pub(crate) fn cache_line(cpus: [usize; 2], round_trips: u64) -> Latency {
    let words = Words::new(4);
    let peer = fork_on(&[cpus[1]], || {
        let mut value = [0; 64];
        for n in 1..=Latency::made(round_trips) {
            receive(&words, 0, n);
            record::fill(&mut value, n);
            send(&words, 2, &value, n);
        }
    });
    cpu::pin(cpus[0]);
    let mut value = [0; 64];
    let mut n = 0;
    let latency = Latency::of(round_trips, || {
        n += 1;
        record::fill(&mut value, n);
        send(&words, 0, &value, n);
        receive(&words, 2, n);
    });
    peer.join();
    latency
}

/// The floor before and after something, in ns: the host moves cpus at any time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Beside {
    before: f64,
    after: f64,
}

impl Beside {
    /// Runs `cell` between two looks at the floor, each in a process of its own and of so many round trips.
    pub(crate) fn of<T>(cpus: [usize; 2], round_trips: u64, cell: impl FnOnce() -> T) -> (T, Beside) {
        let floor = || isolated(&cpus, || cache_line(cpus, round_trips).mean);
        let before = floor();
        let result = cell();
        (result, Beside { before, after: floor() })
    }

    /// What a cell is compared with.
    pub(crate) fn mean(self) -> f64 {
        f64::midpoint(self.before, self.after)
    }

    /// What tells whether the cpus were apart.
    pub(crate) fn worst(self) -> f64 {
        self.before.max(self.after)
    }
}

/// How long a bench waits, in all, for the host to move the cpus together before it measures nevertheless.
#[derive(Debug)]
pub(crate) struct Patience(Duration);

impl Patience {
    pub(crate) fn of_minutes(minutes: u32) -> Patience {
        Patience(Duration::from_secs(60) * minutes)
    }

    /// Returns when the cpus are near each other, or no patience is left.
    pub(crate) fn await_near(&mut self, cpus: [usize; 2]) {
        self.wait_until(|| isolated(&cpus, || cache_line(cpus, LOOK).mean) <= FAR_NS);
    }

    /// Looks again and again, until it is so or no patience is left.
    fn wait_until(&mut self, mut is_so: impl FnMut() -> bool) {
        while !self.0.is_zero() {
            let start = Instant::now();
            if is_so() {
                return;
            }
            std::thread::sleep(PAUSE.min(self.0));
            self.0 = self.0.saturating_sub(start.elapsed());
        }
    }
}

/// Round trips of a look at where the cpus are, some milliseconds, and the time between two such looks.
const LOOK: u64 = 20_000;
const PAUSE: Duration = Duration::from_millis(500);

fn send(words: &Words, line: usize, value: &[u8; 64], n: u64) {
    let line = words.line(line);
    for (word, bytes) in line[1..].iter().zip(value.chunks_exact(8)) {
        word.store(u64::from_ne_bytes(bytes.try_into().expect("eight bytes")), Relaxed);
    }
    line[0].store(n, Release);
}

fn receive(words: &Words, line: usize, n: u64) {
    let line = words.line(line);
    while line[0].load(Acquire) != n {
        spin_loop();
    }
    let mut wrong = 0;
    for (word, place) in line[1..].iter().zip(&record::PLACES) {
        wrong |= word.load(Relaxed) ^ n ^ place;
    }
    assert!(wrong == 0, "a record of the floor is torn");
}

/// Two processes on one cpu that wake each other through eventfds, blocking in `read`. Answers the mean in ns.
pub(crate) fn eventfd(cpu: usize, round_trips: u64) -> f64 {
    let there = eventfd_new();
    let back = eventfd_new();
    let peer = fork_on(&[cpu], || {
        for _ in 0..made_for_mean(round_trips) {
            eventfd_read(there);
            eventfd_write(back);
        }
    });
    cpu::pin(cpu);
    let mean = mean_of(round_trips, || {
        eventfd_write(there);
        eventfd_read(back);
    });
    peer.join();
    for fd in [there, back] {
        // SAFETY: opened above, and nobody uses it any more.
        unsafe { libc::close(fd) };
    }
    mean
}

/// One process sleeps and then wakes another through an eventfd, so many times. Answers the share of a cpu that both take.
pub(crate) fn eventfd_at_leisure(cpus: [usize; 2], times: u32, pause: Duration) -> f64 {
    const USED_NS: usize = 0;
    let (fd, words) = (eventfd_new(), Words::new(1));
    let peer = fork_on(&[cpus[1]], || {
        let before = cpu::process_time();
        (0..times).for_each(|_| eventfd_read(fd));
        words.set(USED_NS, (cpu::process_time() - before).as_nanos() as u64);
    });
    cpu::pin(cpus[0]);
    let (start, before) = (Instant::now(), cpu::process_time());
    for _ in 0..times {
        std::thread::sleep(pause);
        eventfd_write(fd);
    }
    let (elapsed, ours) = (start.elapsed(), cpu::process_time() - before);
    peer.join();
    // SAFETY: opened above, and nobody uses it any more.
    unsafe { libc::close(fd) };
    (ours + Duration::from_nanos(words.get(USED_NS))).as_secs_f64() / elapsed.as_secs_f64()
}

fn eventfd_new() -> i32 {
    // SAFETY: makes a descriptor; no memory is involved.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    assert!(fd >= 0, "eventfd: {}", io::Error::last_os_error());
    fd
}

fn eventfd_write(fd: i32) {
    let one = 1u64;
    // SAFETY: eight bytes of our own.
    let written = unsafe { libc::write(fd, (&raw const one).cast(), 8) };
    assert!(written == 8, "write to an eventfd: {}", io::Error::last_os_error());
}

fn eventfd_read(fd: i32) {
    let mut count = 0u64;
    // SAFETY: eight bytes of our own.
    let read = unsafe { libc::read(fd, (&raw mut count).cast(), 8) };
    assert!(read == 8 && count > 0, "read of an eventfd: {}", io::Error::last_os_error());
}

#[cfg(test)]
mod tests {
    // Named in full: some who include this have no test runner, and then no tests use anything.
    #[test]
    fn who_waits_goes_on_as_soon_as_it_is_so_and_keeps_the_patience_that_is_left() {
        let mut patience = super::Patience::of_minutes(1);
        let mut looks = 0;
        patience.wait_until(|| {
            looks += 1;
            looks == 2
        });
        assert_eq!(looks, 2);
        assert!(
            super::PAUSE <= std::time::Duration::from_secs(60) - patience.0 && !patience.0.is_zero(),
            "{patience:?}"
        );
    }

    #[test]
    fn patience_ends_and_is_spent_then() {
        let mut patience = super::Patience(super::PAUSE + super::PAUSE / 2);
        let mut looks = 0;
        patience.wait_until(|| {
            looks += 1;
            false
        });
        assert!(looks >= 1 && patience.0.is_zero(), "{looks} looks, {patience:?}");
        patience.wait_until(|| unreachable!("no patience is left"));
    }

    #[test]
    fn without_patience_nobody_looks() {
        super::Patience::of_minutes(0).wait_until(|| unreachable!("there is no patience"));
    }
}
