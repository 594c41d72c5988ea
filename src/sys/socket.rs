//! Unix sequenced-packet sockets: whole messages, with file descriptors, and the peer's hang-up as its death
//! notice.
//!
//! How it works: nothing here blocks, and nothing raises SIGPIPE. That there is nothing to read, no room to
//! write, or nobody at the other end are outcomes; everything else is an error. Who wants to wait polls: a
//! hang-up shows there, too.
//!
//! Invariants:
//! 1. A descriptor that arrives is owned, and close-on-exec, before anything else can fail; those that are
//!    not returned are closed.
//! 2. A message or list of descriptors that was cut off is an error, never a shorter one.
//! 3. No empty message is ever sent, so that one received means the peer has hung up.
//!
//! What it does not do: closing a descriptor that a hostile peer passed can take as long as that peer
//! arranged for (a lingering TCP socket, say). Check who the peer is before receiving from it.
//!
//! Source: `unix(7)`, `recvmsg(2)`, `cmsg(3)`. Control messages are read here and not by `nix`, which, when
//! they were cut off, leaves open those descriptors that did arrive.

#![allow(unsafe_code)]

use std::io::{self, IoSlice};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, connect,
    listen, sendmsg, socket,
};

use super::fork::OwnFd;

/// A socket that takes connections.
#[derive(Debug)]
pub(crate) struct Listener(OwnFd);

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Socket(OwnFd);

/// What became of a message to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// It is on its way, with its descriptors.
    Done,
    /// There is no room; nothing was sent.
    WouldBlock,
    /// The peer has hung up.
    Closed,
}

/// What was there to receive.
#[derive(Debug)]
pub(crate) enum Received {
    /// A message: its length in the buffer, and the descriptors that came with it.
    Message { len: usize, fds: Vec<OwnedFd> },
    /// Nothing yet.
    WouldBlock,
    /// The peer has hung up.
    Closed,
}

/// Why a message could not be received. It is gone then, and its descriptors are closed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// The message is longer than any that was expected.
    #[error("the peer's message was cut off, expected one of at most {max} bytes")]
    MessageCut {
        /// The longest expected, in bytes.
        max: usize,
    },
    /// More descriptors came than were expected, or than this process can hold.
    #[error(
        "the peer's file descriptors were cut off after {found}, expected at most {max}: \
         it sent more, or this process has none left (RLIMIT_NOFILE)"
    )]
    DescriptorsCut {
        /// How many arrived.
        found: usize,
        /// The most expected.
        max: usize,
    },
    /// A system call failed.
    #[error("receiving a message failed: {0}")]
    Os(#[from] io::Error),
}

impl Listener {
    /// Binds `path`, which must not exist, and listens.
    ///
    /// # Errors
    /// Those of `socket(2)`, `bind(2)` and `listen(2)`.
    pub(crate) fn bind(path: &Path) -> io::Result<Listener> {
        let fd = new_socket()?;
        let address = UnixAddr::new(path)?;
        bind(fd.as_fd().as_raw_fd(), &address)?;
        listen(&fd, Backlog::new(BACKLOG)?)?;
        Ok(Listener(fd))
    }

    /// The next connection, if there is one.
    ///
    /// # Errors
    /// Those of `accept(2)`; with `EMFILE` and its like, the connection stays in the queue.
    pub(crate) fn accept(&self) -> io::Result<Option<Socket>> {
        match accept4(self.0.as_fd().as_raw_fd(), SOCKET_FLAGS) {
            // SAFETY: the kernel has just made it for us alone.
            Ok(raw) => Ok(Some(Socket(OwnFd::new(unsafe { OwnedFd::from_raw_fd(raw) })?))),
            Err(Errno::EAGAIN | Errno::ECONNABORTED | Errno::EINTR) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Socket {
    /// Connects to whoever listens at `path`. The connection stands at once, before it is accepted.
    ///
    /// # Errors
    /// Those of `connect(2)`; `EAGAIN` if too many others are waiting to be accepted.
    pub(crate) fn connect(path: &Path) -> io::Result<Socket> {
        let fd = new_socket()?;
        connect(fd.as_fd().as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(Socket(fd))
    }

    /// Two that are connected to each other.
    ///
    /// # Errors
    /// No file descriptors or memory left.
    #[cfg(test)]
    pub(crate) fn pair() -> io::Result<(Socket, Socket)> {
        let (a, b) =
            nix::sys::socket::socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SOCKET_FLAGS)?;
        Ok((Socket(OwnFd::new(a)?), Socket(OwnFd::new(b)?)))
    }

    /// Sends a message with copies of `fds`, whole or not at all.
    ///
    /// # Errors
    /// Those of `sendmsg(2)`: `EMSGSIZE` for a message beyond the send buffer, `ETOOMANYREFS` for too many
    /// descriptors under way.
    ///
    /// # Panics
    /// The message is empty, or there are more than [`MAX_FDS`] descriptors.
    pub(crate) fn send(&self, message: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<Sent> {
        assert!(!message.is_empty(), "an empty message means a hang-up");
        assert!(fds.len() <= MAX_FDS, "{} descriptors, at most {MAX_FDS} are received", fds.len());
        let mut raw = [-1; MAX_FDS];
        for (raw, fd) in raw.iter_mut().zip(fds) {
            *raw = fd.as_raw_fd();
        }
        let rights = [ControlMessage::ScmRights(&raw[..fds.len()])];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        // today's Linux raises SIGPIPE for stream sockets only; the flag asks for what is counted on
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        match sendmsg::<UnixAddr>(self.0.as_fd().as_raw_fd(), &[IoSlice::new(message)], control, flags, None)
        {
            Ok(sent) => {
                assert_eq!(sent, message.len(), "a packet is sent whole");
                Ok(Sent::Done)
            }
            Err(Errno::EAGAIN) => Ok(Sent::WouldBlock),
            Err(Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN) => Ok(Sent::Closed),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Receives one message into `buffer`, with at most `max_fds` descriptors.
    ///
    /// # Errors
    /// [`ReceiveError`]; the message is lost then, and the connection should be closed.
    ///
    /// # Panics
    /// The buffer is empty, or `max_fds` is more than [`MAX_FDS`].
    pub(crate) fn recv(&self, buffer: &mut [u8], max_fds: usize) -> Result<Received, ReceiveError> {
        assert!(!buffer.is_empty(), "an empty buffer cannot tell a message from a hang-up");
        assert!(max_fds <= MAX_FDS, "{max_fds} descriptors, at most {MAX_FDS} are received");
        let mut control = Control([0; CONTROL_BYTES]);
        let (outcome, flags) = self.recv_raw(buffer, &mut control, max_fds);
        let fds = control.take_fds(); // first of all: they are open
        let len = match outcome {
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(Received::WouldBlock),
            Ok(0) | Err(Errno::ECONNRESET) => return Ok(Received::Closed),
            Err(errno) => return Err(ReceiveError::Os(errno.into())),
            Ok(len) => len,
        };
        if flags & libc::MSG_TRUNC != 0 {
            return Err(ReceiveError::MessageCut { max: buffer.len() });
        }
        if flags & libc::MSG_CTRUNC != 0 || fds.len() > max_fds {
            return Err(ReceiveError::DescriptorsCut { found: fds.len(), max: max_fds });
        }
        Ok(Received::Message { len, fds })
    }

    /// Rings at the other end, where whoever waits takes messages for rings from now on. Returns at once; see
    /// [`bell`](super::bell).
    ///
    /// # Errors
    /// The kernel is out of memory: nothing was rung.
    #[cfg(feature = "named-region")]
    #[inline]
    pub(crate) fn ring(&self) -> io::Result<()> {
        super::bell::ring(self.0.as_fd())
    }

    /// Takes in all messages: they are rings.
    ///
    /// # Errors
    /// None that the peer could cause.
    #[cfg(feature = "named-region")]
    pub(crate) fn clear_rings(&self) -> io::Result<()> {
        super::bell::clear(self.0.as_fd())
    }

    fn recv_raw(
        &self,
        buffer: &mut [u8],
        control: &mut Control,
        max_fds: usize,
    ) -> (nix::Result<usize>, libc::c_int) {
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: of integers and pointers, for which zero is a value.
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        if max_fds > 0 {
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = (CONTROL_HEADER_BYTES + max_fds * size_of::<RawFd>()) as _;
        }
        let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        // SAFETY: the header points to the buffer and the control buffer, with lengths within theirs, and
        // both outlive the call.
        let received = unsafe { libc::recvmsg(self.0.as_fd().as_raw_fd(), &raw mut header, flags) };
        (usize::try_from(received).map_err(|_| Errno::last()), header.msg_flags)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Where the kernel writes control messages. Each is, on 64-bit Linux: length (u64, with this header), level
/// and type (i32 each), data, and padding to 8 bytes. All zero before the call, so that a length of 0 ends
/// the list.
#[repr(align(8))]
struct Control([u8; CONTROL_BYTES]);

impl Control {
    /// Takes the descriptors out, which no second call finds again.
    fn take_fds(&mut self) -> Vec<OwnedFd> {
        let mut fds = Vec::new();
        let mut rest = &self.0[..];
        while rest.len() >= CONTROL_HEADER_BYTES {
            let (header, after) = rest.split_at(CONTROL_HEADER_BYTES);
            let len = u64::from_ne_bytes(header[..8].try_into().expect("8 bytes")) as usize;
            if len < CONTROL_HEADER_BYTES {
                break;
            }
            let data = &after[..(len - CONTROL_HEADER_BYTES).min(after.len())];
            if header[8..] == SCM_RIGHTS_HEADER {
                fds.extend(data.chunks_exact(size_of::<RawFd>()).map(|raw| {
                    let raw = RawFd::from_ne_bytes(raw.try_into().expect("4 bytes"));
                    // SAFETY: the kernel has just made it for us alone, and it is taken once: the buffer is
                    // wiped below.
                    unsafe { OwnedFd::from_raw_fd(raw) }
                }));
            }
            rest = rest.get(len.next_multiple_of(8)..).unwrap_or(&[]);
        }
        self.0.fill(0);
        fds
    }
}

fn new_socket() -> io::Result<OwnFd> {
    OwnFd::new(socket(AddressFamily::Unix, SockType::SeqPacket, SOCKET_FLAGS, None)?)
}

/// The most descriptors that come with one message.
pub(crate) const MAX_FDS: usize = 8;

const SOCKET_FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);

/// Connections that wait to be accepted; the kernel's `net.core.somaxconn` may allow fewer.
const BACKLOG: i32 = 1024;

const CONTROL_HEADER_BYTES: usize = 16;
const CONTROL_BYTES: usize = CONTROL_HEADER_BYTES + MAX_FDS * size_of::<RawFd>();
const _: () = assert!(CONTROL_HEADER_BYTES == size_of::<libc::cmsghdr>());

/// Level and type of the control message that carries descriptors.
const SCM_RIGHTS_HEADER: [u8; 8] = {
    let [a, b, c, d] = libc::SOL_SOCKET.to_ne_bytes();
    let [e, f, g, h] = libc::SCM_RIGHTS.to_ne_bytes();
    [a, b, c, d, e, f, g, h]
};

#[cfg(test)]
#[path = "socket_tests.rs"]
mod tests;
