//! Wakes a thread of this process that waits in [`poll`](super::poll).
//!
//! An eventfd, which suits because nobody outside can hold it (see [`bell`](super::bell) for why that
//! matters). Woken and not yet cleared, it is readable. Clear before looking at what was to be done, never
//! after.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::{read, write};

use super::fork::OwnFd;

/// Wakes whoever polls it; private to the process.
#[derive(Debug)]
pub(crate) struct Wake(OwnFd);

impl Wake {
    /// Makes one, not yet woken.
    ///
    /// # Errors
    /// No file descriptors or memory left.
    pub(crate) fn new() -> io::Result<Wake> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Wake(OwnFd::new(event.into())?))
    }

    /// Wakes; woken already is as good. In a forked child it does nothing.
    pub(crate) fn wake(&self) {
        match write(&self.0, &1u64.to_ne_bytes()) {
            Ok(_) | Err(Errno::EAGAIN) => {}
            Err(errno) => {
                assert!(!self.0.creator().is_here(), "an eventfd of our own refused a write: {errno}")
            }
        }
    }

    /// Forgets that it was woken.
    pub(crate) fn clear(&self) {
        match read(&self.0, &mut [0; 8]) {
            Ok(_) | Err(Errno::EAGAIN) => {}
            Err(errno) => {
                assert!(!self.0.creator().is_here(), "an eventfd of our own refused a read: {errno}")
            }
        }
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::sys::poll::{Interest, PollSet};

    fn is_awake(wake: &Wake, wait: Duration) -> bool {
        let mut set = PollSet::new();
        let at = set.watch(wake.as_fd(), Interest::Read);
        set.wait(Some(Instant::now() + wait)).unwrap();
        set.ready(at).readable
    }

    #[test]
    fn woken_stays_woken_until_cleared() {
        let wake = Wake::new().unwrap();
        assert!(!is_awake(&wake, Duration::ZERO));
        wake.wake();
        wake.wake();
        assert!(is_awake(&wake, Duration::ZERO));
        wake.clear();
        assert!(!is_awake(&wake, Duration::ZERO));
        wake.clear();
    }

    #[test]
    fn sleeping_thread_is_woken() {
        let wake = Wake::new().unwrap();
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| is_awake(&wake, Duration::from_secs(30)));
            std::thread::sleep(Duration::from_millis(10));
            wake.wake();
            assert!(sleeper.join().unwrap());
        });
    }
}
