//! The other end of a link, made by hand: sequenced-packet sockets, greetings and regions as `src/wire/hello.rs` and
//! `src/region/layout.rs` picture them, and whatever else a stranger may come up with.

#![allow(unsafe_code, reason = "shared memory made by hand")]
#![allow(dead_code, reason = "several tests have this, each uses its part")]

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use memmap2::{MmapOptions, MmapRaw};
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    accept4, bind, connect, listen, recvmsg, send, sendmsg, setsockopt, socket, socketpair, sockopt,
};
use nix::sys::time::TimeVal;

use crate::common::PATIENCE;

pub(crate) const MAGIC: u64 = u64::from_ne_bytes(*b"shmirror");
pub(crate) const VERSION: u32 = 1;
/// Of the layout of a region.
pub(crate) const LAYOUT_VERSION: u32 = 3;
pub(crate) const HELLO: u32 = 1;
pub(crate) const ACCEPT: u32 = 2;
pub(crate) const REFUSE: u32 = 3;
pub(crate) const CHANGE_REGION: u32 = 1;
pub(crate) const ACK_REGION: u32 = 2;

/// As long as either side waits for the other's greeting.
pub(crate) const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) const TAIL: usize = 1040;
pub(crate) const HEAD: usize = 1024;
const DATA: usize = 1048;
const PAGE_BYTES: usize = 4096;

/// Magic, version and kind of a greeting, and its two numbers.
pub(crate) fn greeting(magic: u64, version: u32, kind: u32, fields: [u64; 2]) -> Vec<u8> {
    let mut bytes = magic.to_ne_bytes().to_vec();
    bytes.extend(version.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(fields.map(u64::to_ne_bytes).concat());
    bytes
}

/// A hello with all that a destination says first. `wanted` is the subscription's part.
pub(crate) fn hello(incarnation: u64, ack_ring_bytes: u64, wanted: &[u8]) -> Vec<u8> {
    let mut bytes = greeting(MAGIC, VERSION, HELLO, [incarnation, ack_ring_bytes]);
    bytes.extend(wanted);
    bytes
}

/// In place of a number of tables, or of prefixes of a table: all that there is.
pub(crate) const EVERYTHING: [u8; 4] = [0xff; 4];
pub(crate) const ALL_ITEMS: [u8; 2] = [0xff; 2];

/// A subscription by hand: so many tables, and what is said of them.
pub(crate) fn wanted(tables: u32, fields: &[&[u8]]) -> Vec<u8> {
    [&tables.to_ne_bytes()[..], &fields.concat()].concat()
}

/// A table's name or a prefix: its length in one byte, and the bytes.
pub(crate) fn short(bytes: &[u8]) -> Vec<u8> {
    [&[bytes.len() as u8][..], bytes].concat()
}

/// A refusal's reason; panics if the bytes are none.
pub(crate) fn reason(message: &[u8]) -> String {
    assert_eq!(message[..16], greeting(MAGIC, VERSION, REFUSE, [0; 2])[..16]);
    String::from_utf8(message[16..].to_vec()).unwrap()
}

/// A socket whose waits end after [`PATIENCE`].
pub(crate) fn new_socket() -> OwnedFd {
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    be_patient(&fd);
    fd
}

pub(crate) fn knock(path: &Path) -> OwnedFd {
    let fd = new_socket();
    connect(fd.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    fd
}

pub(crate) fn listen_at(path: &Path) -> OwnedFd {
    let fd = new_socket();
    bind(fd.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    listen(&fd, Backlog::new(16).unwrap()).unwrap();
    fd
}

pub(crate) fn accept(listener: &OwnedFd) -> OwnedFd {
    let raw = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC).unwrap();
    // SAFETY: the kernel has just made it for us alone.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    be_patient(&fd);
    fd
}

fn be_patient(fd: &OwnedFd) {
    let patience = TimeVal::new(PATIENCE.as_secs().cast_signed(), 0);
    setsockopt(fd, sockopt::ReceiveTimeout, &patience).unwrap();
}

pub(crate) fn say(to: &OwnedFd, message: &[u8], fds: &[BorrowedFd<'_>]) {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    let sent =
        sendmsg::<UnixAddr>(to.as_raw_fd(), &[IoSlice::new(message)], control, MsgFlags::MSG_NOSIGNAL, None);
    assert_eq!(sent, Ok(message.len()));
}

/// A message and its descriptors; `None` if the other side has hung up.
pub(crate) fn hear(from: &OwnedFd) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; 4096];
    let mut space = nix::cmsg_space!([RawFd; 4]);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let received = match recvmsg::<UnixAddr>(from.as_raw_fd(), &mut parts, Some(&mut space), flags) {
        Err(nix::errno::Errno::ECONNRESET) => return None,
        received => received.unwrap(),
    };
    let mut fds = Vec::new();
    for message in received.cmsgs().unwrap() {
        if let ControlMessageOwned::ScmRights(raw) = message {
            // SAFETY: the kernel has just made them for us alone.
            fds.extend(raw.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }));
        }
    }
    let len = received.bytes;
    bytes.truncate(len);
    (len > 0).then_some((bytes, fds))
}

/// A doorbell: the end that waits, and the one to pass.
pub(crate) fn bell() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap()
}

pub(crate) fn ring(bell: &OwnedFd) {
    // full is rung, and whether anybody is left to hear it is not ours to know
    let _ = send(bell.as_raw_fd(), &[1], MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
}

/// Shared memory without seals, all of it allocated.
pub(crate) fn memory(len: usize) -> OwnedFd {
    let fd = memfd_create(c"by-hand", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
    fallocate(&fd, FallocateFlags::empty(), 0, len as i64).unwrap();
    fd
}

/// Shared memory that claims to be so long and has not one page.
pub(crate) fn sparse_memory(len: usize) -> OwnedFd {
    let fd = memfd_create(c"by-hand", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
    nix::unistd::ftruncate(&fd, len as i64).unwrap();
    fd
}

/// All seals that a receiver asks for.
pub(crate) fn seal(fd: &OwnedFd) {
    let seals = SealFlag::F_SEAL_SEAL
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_FUTURE_WRITE;
    fcntl(fd, FcntlArg::F_ADD_SEALS(seals)).unwrap();
}

/// A region by hand: sealed like a real one, and written like none.
pub(crate) struct RawRegion {
    fd: OwnedFd,
    map: MmapRaw,
}

impl RawRegion {
    pub(crate) fn new(kind: u32, ring_bytes: u64, identity: u64) -> RawRegion {
        Self::with_header(MAGIC, LAYOUT_VERSION, kind, ring_bytes, ring_bytes, identity)
    }

    /// A region for a ring of `ring_bytes` whose header says something else.
    pub(crate) fn with_header(
        magic: u64,
        layout: u32,
        kind: u32,
        ring_bytes: u64,
        said_bytes: u64,
        identity: u64,
    ) -> RawRegion {
        let len = (DATA + ring_bytes as usize).next_multiple_of(PAGE_BYTES);
        let fd = memory(len);
        let map = MmapOptions::new().len(len).map_raw(fd.as_raw_fd()).unwrap();
        seal(&fd);
        let region = RawRegion { fd, map };
        region.put_bytes(0, &greeting(magic, layout, kind, [said_bytes, identity]));
        region
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Stores one of the shared words.
    pub(crate) fn put_word(&self, at: usize, value: u64) {
        assert!(at + 8 <= DATA && at.is_multiple_of(8));
        // SAFETY: in bounds and aligned, as was just checked; accessed by atomics only.
        let word = unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().wrapping_add(at).cast()) };
        word.store(value, Ordering::SeqCst);
    }

    /// Writes into the ring's data.
    pub(crate) fn put_data(&self, at: usize, bytes: &[u8]) {
        self.put_bytes(DATA + at, bytes);
    }

    /// Writes a record's header and payload.
    pub(crate) fn put_record(&self, at: usize, kind: u32, payload: &[u8]) {
        self.put_record_header(at, payload.len() as u32, kind);
        self.put_data(at + 8, payload);
    }

    pub(crate) fn put_record_header(&self, at: usize, len: u32, kind: u32) {
        self.put_data(at, &[len.to_ne_bytes(), kind.to_ne_bytes()].concat());
    }

    /// Headers everywhere, of records and of padding, whose lengths may be anything.
    pub(crate) fn put_random_headers(&self, random: &mut fastrand::Rng) {
        for at in (0..self.map.len() - DATA).step_by(8) {
            let longest = if random.bool() { 64 } else { 5000 };
            self.put_record_header(at, random.u32(..longest), random.u32(1..=2));
        }
    }

    fn put_bytes(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.map.len());
        // SAFETY: in bounds, as was just checked; the peer, in this process or not, reads it as bytes that may change.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.map.as_mut_ptr().wrapping_add(at), bytes.len())
        }
    }
}
