//! Who the peer of a socket is, and a descriptor that tells when it dies; and a number that no other life of this process
//! had.
//!
//! The identity is the kernel's word: it names the process that called `connect` (or, seen from the other
//! side, `listen`), whoever holds the socket now. A pidfd becomes readable at the process's death, even while
//! a child that it forked still holds its sockets.
//!
//! What it does not do: a process in a pid namespace that we cannot see has pid 0, and before Linux 6.5 no
//! pidfd. Before 6.5, too, the pidfd is opened by number: if the peer has died by then, the number may be
//! another's. Look for the socket's hang-up after opening it.
//!
//! Source: `unix(7)` on SO_PEERCRED and SO_PEERPIDFD, `pidfd_open(2)` (Linux 5.3).

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{getsockopt, sockopt};

use super::fork::OwnFd;

/// Who is at the other end of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// Its process, 0 if that is outside of our pid namespace.
    pub(crate) pid: i32,
    /// Its effective user.
    pub(crate) uid: u32,
    /// Its effective group.
    pub(crate) gid: u32,
}

/// Readable once the process is dead.
#[derive(Debug)]
pub(crate) struct Pidfd(OwnFd);

impl Pidfd {
    /// Of the process at the other end of a Unix socket.
    ///
    /// # Errors
    /// That process is dead already (`ESRCH`), or cannot be seen from here.
    pub(crate) fn of_peer(socket: BorrowedFd<'_>) -> io::Result<Pidfd> {
        match getsockopt(&socket, sockopt::PeerPidfd) {
            Ok(fd) => Ok(Pidfd(OwnFd::new(fd)?)),
            Err(nix::errno::Errno::ENOPROTOOPT) => Pidfd::open(peer_credentials(socket)?.pid),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Of the process with this pid, a child of ours, say.
    ///
    /// # Errors
    /// There is no such process (`ESRCH`, or `EINVAL` for a pid below 1).
    pub(crate) fn open(pid: i32) -> io::Result<Pidfd> {
        // SAFETY: two integers; the kernel checks both.
        let outcome = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if outcome < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made it, close-on-exec, for us alone.
        let fd = unsafe { OwnedFd::from_raw_fd(outcome as RawFd) };
        Ok(Pidfd(OwnFd::new(fd)?))
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Who is at the other end of a connected Unix socket.
///
/// # Errors
/// It is not such a socket.
pub(crate) fn peer_credentials(socket: BorrowedFd<'_>) -> io::Result<Credentials> {
    let found = getsockopt(&socket, sockopt::PeerCredentials)?;
    Ok(Credentials { pid: found.pid(), uid: found.uid(), gid: found.gid() })
}

/// The effective user of this process: the one that peers see.
pub(crate) fn own_uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// A random number, which tells one life of a source or a destination from any other.
///
/// # Errors
/// Those of `getrandom(2)`.
pub(crate) fn random_u64() -> io::Result<u64> {
    let mut bytes = [0u8; 8];
    // SAFETY: the pointer and the length are those of a live array.
    let filled = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    match usize::try_from(filled) {
        Ok(filled) => {
            assert_eq!(filled, bytes.len(), "up to 256 bytes come in one piece");
            Ok(u64::from_ne_bytes(bytes))
        }
        Err(_) => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::sys::poll::{Interest, PollSet};

    fn dead_within(pidfd: &Pidfd, wait: Duration) -> bool {
        let mut set = PollSet::new();
        let at = set.watch(pidfd.as_fd(), Interest::Read);
        set.wait(Some(Instant::now() + wait)).unwrap();
        set.ready(at).readable
    }

    #[test]
    fn pidfd_tells_of_a_death_by_kill() {
        let mut child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
        let pidfd = Pidfd::open(child.id() as i32).unwrap();
        assert!(!dead_within(&pidfd, Duration::ZERO));
        child.kill().unwrap();
        assert!(
            dead_within(&pidfd, Duration::from_secs(10)),
            "the death shows before the child is waited for"
        );
        child.wait().unwrap();
    }

    #[test]
    fn nobody_has_no_pidfd() {
        assert_eq!(Pidfd::open(0).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert_eq!(Pidfd::open(child.id() as i32).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn peer_of_our_own_socket_is_us() {
        let (a, _b) = UnixStream::pair().unwrap();
        let peer = peer_credentials(a.as_fd()).unwrap();
        assert_eq!((peer.pid as u32, peer.uid), (std::process::id(), own_uid()));
        assert!(!dead_within(&Pidfd::of_peer(a.as_fd()).unwrap(), Duration::ZERO));
    }
}
