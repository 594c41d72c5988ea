//! One bounded wait for many descriptors.
//!
//! How it works: a [`PollSet`] is cleared and filled again before each wait, which costs no allocation and
//! holds no borrow, so that links may come, go and be changed while their readiness is handled.
//! [`PollSet::watch`] returns the index under which [`PollSet::ready`] answers; indices count up from 0 in
//! the order of the calls.
//!
//! ```text
//! set.clear();
//! let wake = set.watch(self.wake.as_fd(), Interest::Read);
//! let listener = set.watch(self.listener.as_fd(), Interest::Read);
//! for link in &self.links { link.at = set.watch(link.socket.as_fd(), Interest::Read); … }
//! set.wait(deadline)?;
//! if set.ready(listener).readable { … }
//! ```
//!
//! Invariants:
//! 1. Without readiness, [`PollSet::wait`] returns at or after its deadline on CLOCK_MONOTONIC, never before.
//! 2. A signal does not end a wait, nor prolong it.
//!
//! What it does not do: it does not keep descriptors open. A number closed between `watch` and `wait` shows
//! as an error, or, taken again meanwhile, as a readiness that is not there; neither can harm, as nothing
//! blocks here.
//!
//! Source: `ppoll(2)`.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;
use std::time::{Duration, Instant};

/// The descriptors of one wait.
#[derive(Debug, Default)]
pub(crate) struct PollSet {
    fds: Vec<libc::pollfd>,
}

/// What to wait for. Hang-ups and errors are always reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    /// Something to read: a message, a ring, a connection, a death (pidfd).
    Read,
    /// Something to read, or room to write.
    #[cfg(test)]
    ReadWrite,
    /// Nothing but the peer's hang-up.
    #[cfg(test)]
    HangUp,
}

/// What a wait found about one descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ready {
    /// Reading will not block. True of a hang-up, too.
    pub(crate) readable: bool,
    /// Writing will not block.
    pub(crate) writable: bool,
    /// The other end is closed, or has stopped sending.
    pub(crate) hung_up: bool,
    /// The descriptor is in error, or is not open.
    pub(crate) error: bool,
}

impl Ready {
    /// Whether anything is to be done.
    pub(crate) fn any(self) -> bool {
        self != Ready::default()
    }
}

impl PollSet {
    /// An empty set.
    pub(crate) fn new() -> PollSet {
        PollSet::default()
    }

    /// Forgets all descriptors, and keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.fds.clear();
    }

    /// Adds a descriptor; it should stay open until after the wait. Returns its index, the number of those
    /// before it.
    pub(crate) fn watch(&mut self, fd: BorrowedFd<'_>, interest: Interest) -> usize {
        let events = match interest {
            Interest::Read => libc::POLLIN | libc::POLLRDHUP,
            #[cfg(test)]
            Interest::ReadWrite => libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP,
            #[cfg(test)]
            Interest::HangUp => libc::POLLRDHUP,
        };
        self.fds.push(libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 });
        self.fds.len() - 1
    }

    /// Leaves out a place, which is never ready. Returns its index.
    #[cfg(feature = "named-region")]
    pub(crate) fn watch_nothing(&mut self) -> usize {
        // negative numbers are passed over
        self.fds.push(libc::pollfd { fd: -1, events: 0, revents: 0 });
        self.fds.len() - 1
    }

    /// Waits until a descriptor is ready or the deadline has passed; for ever without one. A deadline in the
    /// past only looks. Returns how many are ready, 0 for a passed deadline.
    ///
    /// # Errors
    /// More descriptors than RLIMIT_NOFILE, or no memory.
    pub(crate) fn wait(&mut self, deadline: Option<Instant>) -> io::Result<usize> {
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            match self.poll(left) {
                Ok(0) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => return Ok(0),
                Ok(0) => {} // a timeout cut to MAX_SLEEP
                Ok(ready) => return Ok(ready),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The descriptors of the next wait, by number, and the bits of what is waited for.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = (RawFd, libc::c_short)> {
        self.fds.iter().filter(|fd| fd.fd >= 0).map(|fd| (fd.fd, fd.events))
    }

    /// What the last wait found about the descriptor with this index.
    ///
    /// # Panics
    /// There is none with this index.
    pub(crate) fn ready(&self, index: usize) -> Ready {
        let revents = self.fds[index].revents;
        Ready {
            readable: revents & libc::POLLIN != 0,
            writable: revents & libc::POLLOUT != 0,
            hung_up: revents & (libc::POLLHUP | libc::POLLRDHUP) != 0,
            error: revents & (libc::POLLERR | libc::POLLNVAL) != 0,
        }
    }

    fn poll(&mut self, timeout: Option<Duration>) -> io::Result<usize> {
        let timeout = timeout.map(|left| {
            let left = left.min(MAX_SLEEP);
            libc::timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos().into() }
        });
        let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
        // SAFETY: pointer and length are those of a live vector, the timeout is null or lives on our stack,
        // and a null signal mask is allowed.
        let ready = unsafe {
            libc::ppoll(self.fds.as_mut_ptr(), self.fds.len() as libc::nfds_t, timeout, ptr::null())
        };
        usize::try_from(ready).map_err(|_| io::Error::last_os_error())
    }
}

/// The time after a timeout, however long: one that no clock can hold is as good as a century.
pub(crate) fn deadline_after(timeout: Duration) -> Instant {
    Instant::now() + timeout.min(CENTURY)
}

/// Longer than anybody waits, and short enough to be added to any time.
pub(crate) const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Keeps any duration within what the kernel accepts.
const MAX_SLEEP: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::sys::test_process::alone;

    #[test]
    fn deadline_is_never_early_and_hardly_late() {
        let mut set = PollSet::new();
        for micros in [1, 50, 100, 999, 1001, 1500, 20_000] {
            let deadline = Instant::now() + Duration::from_micros(micros);
            assert_eq!(set.wait(Some(deadline)).unwrap(), 0);
            let now = Instant::now();
            assert!(now >= deadline, "{micros} µs: early by {:?}", deadline - now);
            assert!(now - deadline < Duration::from_secs(2), "{micros} µs: late by {:?}", now - deadline);
        }
    }

    #[test]
    fn past_deadline_still_looks() {
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(b"x").unwrap();
        let mut set = PollSet::new();
        let at = set.watch(b.as_fd(), Interest::Read);
        assert_eq!(set.wait(Some(Instant::now() - Duration::from_secs(1))).unwrap(), 1);
        assert_eq!(set.ready(at), Ready { readable: true, ..Ready::default() });
    }

    #[test]
    fn each_descriptor_has_its_own_answer() {
        let (mut rung, heard) = UnixStream::pair().unwrap();
        let (gone, dead) = UnixStream::pair().unwrap();
        let (_quiet, silent) = UnixStream::pair().unwrap();
        rung.write_all(b"x").unwrap();
        drop(gone);
        let mut set = PollSet::new();
        let silent = set.watch(silent.as_fd(), Interest::Read);
        let heard = set.watch(heard.as_fd(), Interest::ReadWrite);
        let dead = set.watch(dead.as_fd(), Interest::HangUp);
        assert_eq!((silent, heard, dead), (0, 1, 2));
        let deadline = Instant::now() + Duration::from_secs(5);
        while set.wait(Some(deadline)).unwrap() < 2 {
            assert!(Instant::now() < deadline);
        }
        assert!(!set.ready(silent).any());
        assert!(set.ready(heard).readable && set.ready(heard).writable && !set.ready(heard).hung_up);
        assert!(set.ready(dead).hung_up && !set.ready(dead).readable);
        set.clear();
        assert_eq!(set.wait(Some(Instant::now())).unwrap(), 0);
    }

    #[test]
    #[cfg(feature = "named-region")]
    fn place_that_is_left_out_is_never_ready() {
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(b"x").unwrap();
        let mut set = PollSet::new();
        let nothing = set.watch_nothing();
        let at = set.watch(b.as_fd(), Interest::Read);
        assert_eq!(set.wait(Some(Instant::now())).unwrap(), 1);
        assert!(!set.ready(nothing).any() && set.ready(at).readable);
        assert_eq!(set.descriptors().count(), 1);
    }

    #[test]
    fn signals_neither_end_nor_prolong_a_wait() {
        alone("sys::poll::tests::signals_neither_end_nor_prolong_a_wait", || {
            use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
            extern "C" fn nothing(_signal: i32) {}
            let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
            // SAFETY: the handler does nothing.
            unsafe { sigaction(Signal::SIGUSR1, &action) }.unwrap();
            // SAFETY: asks for our own name, nothing more.
            let waiter = unsafe { libc::pthread_self() };
            let start = Instant::now();
            let deadline = start + Duration::from_millis(100);
            let signals = std::thread::spawn(move || {
                let mut sent = 0;
                while Instant::now() < deadline {
                    // SAFETY: the waiter joins this thread, so it lives.
                    assert_eq!(unsafe { libc::pthread_kill(waiter, Signal::SIGUSR1 as i32) }, 0);
                    sent += 1;
                    std::thread::sleep(Duration::from_millis(5));
                }
                sent
            });
            assert_eq!(PollSet::new().wait(Some(deadline)).unwrap(), 0);
            let took = start.elapsed();
            assert!(took >= Duration::from_millis(100) && took < Duration::from_millis(1100), "{took:?}");
            assert!(signals.join().unwrap() > 2);
        });
    }
}
