//! The doorbell of one link and direction. Ringing never blocks, whatever the peer does.
//!
//! How it works: the side that waits makes a pair of connected Unix sequenced-packet sockets, keeps one end
//! ([`Bell`]) and passes the other to the side that rings ([`Ringer`]). A ring is a message of one byte; when
//! the socket is full, the bell has rung already. Rung and not yet cleared, the bell is readable for
//! [`poll`](super::poll).
//!
//! Invariants:
//! 1. A ring takes no lock that the peer can hold: sending on a Unix socket copies the byte first and then
//!    appends it under a spinlock. Non-blocking is asked for with each call, so flags that the peer changes
//!    on the descriptor it passed mean nothing, and neither does a closed other end: no SIGPIPE, no error.
//! 2. The waiting end is never shared, so nobody else can hold the mutex under which it receives.
//! 3. [`Bell::clear`] before looking at the ring, never after: a ring that arrives in between stays.
//!
//! Why not something cheaper: an eventfd's O_NONBLOCK lies in the description that both sides share, so a
//! peer clears it, fills the counter, and puts the one who rings to sleep. In a pipe both ends share one
//! mutex, held while bytes are copied from or to user memory: a peer whose read faults on memory that it
//! serves itself (userfaultfd, FUSE) held a non-blocking write for as long as it liked. Sending and clearing
//! cost more than with a pipe, once per sleep (docs/benchmarks.md). And it is the waiting side that makes
//! the pair: a receive on the end that was passed can be held up in just that way, a send on it cannot.
//!
//! Where no descriptors can be passed, the rendezvous socket itself is the bell of both sides
//! (`Socket::ring`, with the feature `named-region`). All of this is true of it, too: each side has made its own end, by
//! `connect` and by `accept`, and nobody has passed one.
//!
//! What it does not do: a peer that rings without end costs the waiter's CPU; a peer that never rings leaves
//! it asleep until its deadline.
//!
//! Source: `unix(7)`, `pipe(7)`, `eventfd(2)`; the kernel's `net/unix/af_unix.c` and `fs/pipe.c`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, getpeername, getsockopt, recv, send, socketpair,
    sockopt,
};

use super::fork::OwnFd;

/// The end that waits.
#[derive(Debug)]
pub(crate) struct Bell(OwnFd);

/// The end that rings.
#[derive(Debug)]
pub(crate) struct Ringer(OwnFd);

/// Why a descriptor that a peer passed cannot be rung.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RingerError {
    /// It is something else, on which a write might block or do harm.
    #[error("the peer's doorbell is {found}, expected one end of a pair of Unix sequenced-packet sockets")]
    NotABell {
        /// What was found.
        found: String,
    },
    /// A system call failed.
    #[error("the peer's doorbell cannot be taken over: {0}")]
    Os(#[from] io::Error),
}

impl Bell {
    /// Makes a bell, and the end to pass to the side that rings it. Drop that end once it is passed: then the
    /// bell hangs up when the peer dies.
    ///
    /// # Errors
    /// No file descriptors or memory left.
    pub(crate) fn new() -> io::Result<(Bell, OwnedFd)> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (waiting, ringing) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        Ok((Bell(OwnFd::new(waiting)?), ringing))
    }

    /// Silences the bell. Returns at once, rung or not; if the peer rings faster than this clears, the bell
    /// stays readable.
    ///
    /// # Errors
    /// None that the peer could cause: its hanging up is for [`poll`](super::poll) to tell.
    pub(crate) fn clear(&self) -> io::Result<()> {
        clear(self.0.as_fd())
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Ringer {
    /// Takes over the end that a peer passed, after checking that it is one.
    ///
    /// # Errors
    /// [`RingerError::NotABell`] if it is anything else.
    pub(crate) fn from_fd(fd: OwnedFd) -> Result<Ringer, RingerError> {
        let kind = getsockopt(&fd, sockopt::SockType);
        if kind != Ok(SockType::SeqPacket) {
            let found = kind.map_or_else(|_| "not a socket".to_owned(), |kind| format!("a {kind:?} socket"));
            return Err(RingerError::NotABell { found });
        }
        // connected once, such a socket cannot be connected elsewhere: no service will take our ring for a
        // request
        match getpeername::<UnixAddr>(fd.as_raw_fd()) {
            Ok(peer) if peer.path().is_none() && peer.as_abstract().is_none() => {}
            Ok(peer) => return Err(RingerError::NotABell { found: format!("a connection to {peer}") }),
            Err(_) => return Err(RingerError::NotABell { found: "not connected".to_owned() }),
        }
        Ok(Ringer(OwnFd::new(fd)?))
    }

    /// Rings. Returns at once; rung already, or nobody there any more, is as good as rung.
    ///
    /// # Errors
    /// The kernel is out of memory: nothing was rung.
    #[inline]
    pub(crate) fn ring(&self) -> io::Result<()> {
        ring(self.0.as_fd())
    }
}

/// Rings on a connected socket of sequenced packets whose other end the peer waits at; see [`Ringer::ring`].
///
/// # Errors
/// The kernel is out of memory: nothing was rung.
#[inline]
pub(super) fn ring(socket: BorrowedFd<'_>) -> io::Result<()> {
    // today's Linux raises SIGPIPE for stream sockets only; the flag asks for what is counted on
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    match send(socket.as_raw_fd(), &[1], flags) {
        Ok(_) | Err(Errno::EAGAIN | Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Silences our end of such a socket; see [`Bell::clear`].
///
/// # Errors
/// None that the peer could cause.
pub(super) fn clear(socket: BorrowedFd<'_>) -> io::Result<()> {
    for _ in 0..MAX_CLEARED {
        match recv(socket.as_raw_fd(), &mut [0; 1], MsgFlags::MSG_DONTWAIT) {
            // an empty message, which only a hostile peer sends, looks like a hang-up: clear on, within the
            // bound
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN | Errno::ECONNRESET) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// More rings than the default send buffer holds.
const MAX_CLEARED: usize = 1024;

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixStream};
    use std::time::{Duration, Instant};

    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    use super::*;
    use crate::sys::poll::{Interest, PollSet, Ready};
    use crate::sys::test_process::{alone, die_of_sigpipe};

    fn pair() -> (Bell, Ringer) {
        let (bell, passed) = Bell::new().unwrap();
        (bell, Ringer::from_fd(passed).unwrap())
    }

    fn state(bell: &Bell, wait: Duration) -> Ready {
        let mut set = PollSet::new();
        let at = set.watch(bell.as_fd(), Interest::Read);
        set.wait(Some(Instant::now() + wait)).unwrap();
        set.ready(at)
    }

    #[test]
    fn rung_bell_is_readable_until_cleared() {
        let (bell, ringer) = pair();
        assert!(!state(&bell, Duration::ZERO).readable);
        ringer.ring().unwrap();
        ringer.ring().unwrap();
        assert!(state(&bell, Duration::ZERO).readable);
        bell.clear().unwrap();
        assert!(!state(&bell, Duration::ZERO).readable);
        bell.clear().unwrap();
    }

    #[test]
    fn million_rings_never_block_and_clear_still_silences() {
        let (bell, ringer) = pair();
        for _ in 0..1_000_000 {
            ringer.ring().unwrap();
        }
        assert!(state(&bell, Duration::ZERO).readable);
        bell.clear().unwrap();
        assert!(!state(&bell, Duration::ZERO).readable, "one clear empties a full bell");
    }

    #[test]
    fn hostile_flags_on_the_passed_end_do_not_block_the_ringer() {
        let (_bell, passed) = Bell::new().unwrap();
        let hostile = passed.try_clone().unwrap();
        let ringer = Ringer::from_fd(passed).unwrap();
        fcntl(&hostile, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        for _ in 0..10_000 {
            ringer.ring().unwrap();
        }
    }

    #[test]
    fn bell_that_died_before_it_was_taken_over_is_no_error() {
        let (bell, passed) = Bell::new().unwrap();
        drop(bell);
        Ringer::from_fd(passed).unwrap().ring().unwrap();
    }

    #[test]
    fn ringing_nobody_is_no_error_and_no_signal() {
        alone("sys::bell::tests::ringing_nobody_is_no_error_and_no_signal", || {
            die_of_sigpipe();
            let (bell, ringer) = pair();
            drop(bell);
            for _ in 0..1000 {
                ringer.ring().unwrap();
            }
        });
    }

    #[test]
    fn peer_that_shut_its_end_down_does_not_disturb_the_ringer() {
        let (_bell, passed) = Bell::new().unwrap();
        nix::sys::socket::shutdown(passed.as_raw_fd(), nix::sys::socket::Shutdown::Both).unwrap();
        Ringer::from_fd(passed).unwrap().ring().unwrap();
    }

    #[test]
    fn bell_hangs_up_when_the_ringer_is_gone() {
        let (bell, ringer) = pair();
        drop(ringer);
        let deadline = Instant::now() + Duration::from_secs(5);
        while !state(&bell, Duration::from_millis(1)).hung_up {
            assert!(Instant::now() < deadline, "no hang-up");
        }
        bell.clear().unwrap();
    }

    #[test]
    fn messages_of_a_hostile_ringer_are_cleared() {
        let (bell, passed) = Bell::new().unwrap();
        let flags = MsgFlags::empty();
        for message in [&[][..], &[7; 4096][..], &[1][..]] {
            send(passed.as_raw_fd(), message, flags).unwrap();
        }
        bell.clear().unwrap();
        assert!(!state(&bell, Duration::ZERO).readable);
    }

    #[test]
    fn everything_that_is_no_bell_is_refused() {
        let (pipe, writer) = nix::unistd::pipe().unwrap();
        let (stream, _other) = UnixStream::pair().unwrap();
        let (datagram, _other) = UnixDatagram::pair().unwrap();
        let lonely =
            nix::sys::socket::socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::empty(), None)
                .unwrap();
        let cases: [(OwnedFd, &str); 5] = [
            (pipe, "not a socket"),
            (writer, "not a socket"),
            (stream.into(), "a Stream socket"),
            (datagram.into(), "a Datagram socket"),
            (lonely, "not connected"),
        ];
        for (fd, found) in cases {
            let text = Ringer::from_fd(fd).unwrap_err().to_string();
            let expected = "expected one end of a pair of Unix sequenced-packet sockets";
            assert_eq!(text, format!("the peer's doorbell is {found}, {expected}"));
        }
    }
}
