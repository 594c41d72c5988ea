//! What a forked child inherits from us is made inert, so that our death is still seen.
//!
//! A child that inherited a link's socket keeps it open when we die: no hang-up reaches the peer, and the
//! lock on our name stays held. `O_CLOEXEC` helps only a child that calls exec. So every descriptor whose
//! closing means something is an [`OwnFd`]: its number stands in a process-wide bitmap, and a
//! `pthread_atfork` handler in the child puts a placeholder (an `O_PATH` descriptor, on which every operation
//! fails with `EBADF`) in place of each. The number stays taken, so a handle that lives on in the child can
//! neither reach nor close a descriptor that the child opens later.
//!
//! Invariants:
//! 1. A bit of [`REGISTERED`] is set only while that number belongs to an [`OwnFd`] of this process.
//! 2. [`GENERATION`] changes only in a child, by one, before the child's own code runs. So
//!    [`Creator::is_here`] is false in a child for whatever was made before the fork, and true for whatever
//!    the child makes itself.
//! 3. The handler takes no lock, allocates nothing and calls only async-signal-safe functions: it may run
//!    while another thread of the parent held any lock.
//!
//! Who may touch what: parent threads set and clear their own bits; the handler, alone in its process, reads
//! and clears all.
//!
//! What it does not do:
//! - Mappings: regions are `MADV_DONTFORK`, so they are absent in the child, and their `Drop` asks
//!   [`Creator::is_here`] before unmapping an address that may have been taken since. Whoever offers handles
//!   to the application asks [`Creator::is_here`] before touching a region, or locking anything.
//! - A bare `clone(2)` runs no fork handlers. Its child keeps the descriptors until it exits or calls exec;
//!   `Drop` of whatever has a name in the file system asks [`Creator::is_this_process`], which such a child
//!   cannot pass.
//! - A fork between the system call that makes a descriptor and [`OwnFd::new`] leaves a live copy in the
//!   child. The pidfd that is watched beside each socket covers that.
//! - Numbers of [`FD_LIMIT`] and above, which the default `fs.nr_open` rules out, are not made inert.
//!
//! Source: `pthread_atfork(3)`, `signal-safety(7)`, `open(2)` on `O_PATH`.

#![allow(unsafe_code)]

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// The process, between two forks, in which something was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Creator {
    generation: u32,
    pid: u32,
}

impl Creator {
    /// This process; from now on forks are counted.
    ///
    /// # Errors
    /// The fork handler cannot be installed for lack of memory.
    pub(crate) fn here() -> io::Result<Creator> {
        install_fork_handler()?;
        Ok(Creator { generation: GENERATION.load(Relaxed), pid: std::process::id() })
    }

    /// Whether we are still in the process that made it, rather than in a child forked since. One load.
    #[inline]
    pub(crate) fn is_here(&self) -> bool {
        // Relaxed: it changes only in a child, before any code of the child that could ask
        GENERATION.load(Relaxed) == self.generation
    }

    /// As [`Creator::is_here`], and true of a child made by a bare `clone(2)` neither. A system call; for
    /// `Drop`.
    pub(crate) fn is_this_process(&self) -> bool {
        self.is_here() && std::process::id() == self.pid
    }

    /// What a child made by a bare `clone(2)` takes its own creator for: here, and another process.
    #[cfg(test)]
    pub(crate) fn seen_from_a_clone(self) -> Creator {
        Creator { pid: 0, ..self }
    }
}

/// A file descriptor of this process alone: a forked child finds a dead placeholder in its place.
#[derive(Debug)]
pub(crate) struct OwnFd {
    fd: ManuallyDrop<OwnedFd>,
    creator: Creator,
}

impl OwnFd {
    /// Takes `fd` over.
    ///
    /// # Errors
    /// The fork handler cannot be installed for lack of memory.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<OwnFd> {
        let creator = Creator::here()?;
        register(fd.as_raw_fd());
        Ok(OwnFd { fd: ManuallyDrop::new(fd), creator })
    }

    /// Where it was made.
    pub(crate) fn creator(&self) -> Creator {
        self.creator
    }
}

impl AsFd for OwnFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for OwnFd {
    fn drop(&mut self) {
        if self.creator.is_here() {
            // before the close: once closed, the number may be another thread's
            unregister(self.fd.as_raw_fd());
        } else if !is_placeholder(self.as_fd()) {
            return; // the handler had no placeholder left and closed it: the number is not ours any more
        }
        // SAFETY: `drop` runs once, and nothing uses the field after it.
        unsafe { ManuallyDrop::drop(&mut self.fd) }
    }
}

fn is_placeholder(fd: BorrowedFd<'_>) -> bool {
    fcntl(fd, FcntlArg::F_GETFL).is_ok_and(|flags| OFlag::from_bits_retain(flags).contains(OFlag::O_PATH))
}

fn register(fd: RawFd) {
    let Some((word, bit)) = place(fd) else { return };
    // Relaxed, here and below: the reader is a forked child, a copy of the whole memory
    REGISTERED[word].fetch_or(bit, Relaxed);
    HIGHEST_WORD.fetch_max(word, Relaxed);
}

fn unregister(fd: RawFd) {
    let Some((word, bit)) = place(fd) else { return };
    REGISTERED[word].fetch_and(!bit, Relaxed);
}

fn place(fd: RawFd) -> Option<(usize, u64)> {
    let number = usize::try_from(fd).ok().filter(|number| *number < FD_LIMIT)?;
    Some((number / 64, 1 << (number % 64)))
}

fn install_fork_handler() -> io::Result<()> {
    static OUTCOME: OnceLock<i32> = OnceLock::new();
    let outcome = *OUTCOME.get_or_init(|| {
        // SAFETY: the handler keeps to async-signal-safe calls (invariant 3) and is never unloaded before
        // the library that holds it, whose unloading removes its handlers.
        unsafe { libc::pthread_atfork(None, None, Some(make_child_inert)) }
    });
    if outcome == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(outcome)) }
}

/// Runs in every forked child, before the child's own code.
extern "C" fn make_child_inert() {
    GENERATION.fetch_add(1, Relaxed);
    // SAFETY: the path is a C string; `open` is async-signal-safe.
    let placeholder = unsafe { libc::open(c"/".as_ptr(), libc::O_PATH | libc::O_CLOEXEC) };
    for (index, word) in REGISTERED.iter().enumerate().take(HIGHEST_WORD.load(Relaxed) + 1) {
        let mut bits = word.swap(0, Relaxed);
        while bits != 0 {
            replace((index * 64) as RawFd + bits.trailing_zeros() as RawFd, placeholder);
            bits &= bits - 1;
        }
    }
    // SAFETY: opened above and known to nobody else; -1 is refused by the kernel.
    unsafe { libc::close(placeholder) };
}

fn replace(fd: RawFd, placeholder: RawFd) {
    // SAFETY: the number is registered, so it belongs to an `OwnFd` (invariant 1), which expects this.
    let replaced = unsafe { libc::dup3(placeholder, fd, libc::O_CLOEXEC) };
    if replaced < 0 {
        // no descriptor was left for a placeholder; `Drop` of the handle will see that
        // SAFETY: as above.
        unsafe { libc::close(fd) };
    }
}

/// Numbers below this can be registered: the default of `fs.nr_open`, the most a process can be allowed.
const FD_LIMIT: usize = 1 << 20;

/// One bit for each file descriptor number that an [`OwnFd`] holds. Pages never touched cost nothing.
static REGISTERED: [AtomicU64; FD_LIMIT / 64] = [const { AtomicU64::new(0) }; FD_LIMIT / 64];

/// No bit was ever set beyond this word.
static HIGHEST_WORD: AtomicUsize = AtomicUsize::new(0);

/// How many forks lie between the first process and this one, counted since the handler was installed.
static GENERATION: AtomicU32 = AtomicU32::new(0);

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::sys::test_process::{alone, forked};

    #[test]
    fn child_holds_a_placeholder_and_only_the_child() {
        alone("sys::fork::tests::child_holds_a_placeholder_and_only_the_child", || {
            let (ours, peer) = UnixStream::pair().unwrap();
            let own = OwnFd::new(ours.into()).unwrap();
            let raw = own.fd.as_raw_fd();
            let status = forked(|| {
                let dead = nix::unistd::write(&own, b"x") == Err(nix::errno::Errno::EBADF);
                dead && is_placeholder(own.as_fd()) && own.fd.as_raw_fd() == raw && !own.creator().is_here()
            });
            assert_eq!(status, Ok(()));
            assert!(own.creator().is_here());
            assert_eq!(nix::unistd::write(&own, b"x"), Ok(1));
            drop(peer);
        });
    }

    #[test]
    fn parent_closing_is_seen_while_a_child_lives() {
        alone("sys::fork::tests::parent_closing_is_seen_while_a_child_lives", || {
            let (ours, peer) = UnixStream::pair().unwrap();
            let own = OwnFd::new(ours.into()).unwrap();
            let (hold, release) = nix::unistd::pipe().unwrap();
            let child = crate::sys::test_process::fork_until_closed(hold, release);
            drop(own);
            // the child may not have run yet
            peer.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
            assert_eq!(nix::unistd::read(&peer, &mut [0; 1]), Ok(0), "the peer sees the hang-up");
            child.finish();
        });
    }

    #[test]
    fn handle_dropped_in_a_child_closes_nothing_the_child_opened() {
        alone("sys::fork::tests::handle_dropped_in_a_child_closes_nothing_the_child_opened", || {
            let (ours, _peer) = UnixStream::pair().unwrap();
            let mut own = Some(OwnFd::new(ours.into()).unwrap());
            let status = forked(|| {
                let Ok((reader, _writer)) = nix::unistd::pipe() else { return false };
                let number = own.as_ref().map(|own| own.fd.as_raw_fd());
                // as if the handler had been out of descriptors and the number taken again since
                // SAFETY: test; the number belongs to the placeholder.
                if unsafe { libc::dup2(reader.as_raw_fd(), number.unwrap_or(-1)) } < 0 {
                    return false;
                }
                drop(own.take());
                // SAFETY: asks about a number, without using what it refers to.
                unsafe { libc::fcntl(number.unwrap_or(-1), libc::F_GETFD) >= 0 }
            });
            assert_eq!(status, Ok(()));
        });
    }

    #[test]
    fn what_a_child_makes_is_its_own_and_not_its_childs() {
        alone("sys::fork::tests::what_a_child_makes_is_its_own_and_not_its_childs", || {
            let parents = Creator::here().unwrap();
            let status = forked(|| {
                let Ok(own) = Creator::here() else { return false };
                let grandchild = forked(|| !own.is_here() && !parents.is_here());
                own.is_here() && own.is_this_process() && !parents.is_here() && grandchild == Ok(())
            });
            assert_eq!(status, Ok(()));
        });
    }

    #[test]
    fn child_without_a_spare_descriptor_still_lets_go() {
        alone("sys::fork::tests::child_without_a_spare_descriptor_still_lets_go", || {
            let (ours, _peer) = UnixStream::pair().unwrap();
            let mut own = Some(OwnFd::new(ours.into()).unwrap());
            let mut fillers = Vec::new();
            nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, 64, 64).unwrap();
            while let Ok(filler) = std::fs::File::open("/") {
                fillers.push(filler);
            }
            let status = forked(|| {
                let closed = own.as_ref().is_some_and(|own| fcntl(own, FcntlArg::F_GETFL).is_err());
                drop(own.take());
                closed
            });
            assert_eq!(status, Ok(()));
        });
    }
}
