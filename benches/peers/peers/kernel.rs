//! What the kernel itself has: pipes, Unix sockets and message queues. All of them sleep, and a full one makes the sender wait.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::{mem, ptr};

use crate::direction::{Buffer, Direction, Receiver, Sender, Shape};
use crate::harness::record;

/// A pipe. `BUFFER` bytes are gathered before a write; with 0 every record is written by itself.
pub(crate) struct Pipe<const BUFFER: usize> {
    ends: (Option<PipeReader>, Option<PipeWriter>),
    value_bytes: usize,
}

pub(crate) struct PipeSender<const BUFFER: usize> {
    pipe: PipeWriter,
    record: Buffer,
    kept: Vec<u8>,
}

pub(crate) struct PipeReceiver {
    pipe: PipeReader,
    value_bytes: usize,
    buffer: Box<[u8]>,
    /// So many bytes at the buffer's begin are the begin of a record.
    kept: usize,
}

/// As much as a pipe holds (pipe(7)): a reader takes all that is there at once, in both variants.
const PIPE_BYTES: usize = 64 << 10;

impl<const BUFFER: usize> Direction for Pipe<BUFFER> {
    type Sender = PipeSender<BUFFER>;
    type Receiver = PipeReceiver;

    fn new(shape: Shape, _: &Path, _: &'static str) -> Self {
        let (reader, writer) = io::pipe().expect("two descriptors");
        Pipe { ends: (Some(reader), Some(writer)), value_bytes: shape.value_bytes }
    }

    fn sender(&mut self) -> PipeSender<BUFFER> {
        self.ends.0 = None;
        let pipe = self.ends.1.take().expect("the sender is taken once");
        PipeSender { pipe, record: Buffer::new(self.value_bytes), kept: Vec::with_capacity(BUFFER) }
    }

    fn receiver(&mut self) -> PipeReceiver {
        self.ends.1 = None;
        let pipe = self.ends.0.take().expect("the receiver is taken once");
        PipeReceiver { pipe, value_bytes: self.value_bytes, buffer: vec![0; PIPE_BYTES].into(), kept: 0 }
    }
}

impl<const BUFFER: usize> Sender for PipeSender<BUFFER> {
    fn send(&mut self, n: u64) {
        let record = self.record.fill(n);
        if BUFFER == 0 {
            self.pipe.write_all(record).expect("the reader is there");
            return;
        }
        self.kept.extend_from_slice(record);
        if self.kept.len() >= BUFFER {
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.pipe.write_all(&self.kept).expect("the reader is there");
        self.kept.clear();
    }
}

impl Receiver for PipeReceiver {
    fn receive(&mut self, mut take: impl FnMut(u64)) {
        let read = self.pipe.read(&mut self.buffer[self.kept..]).expect("a good pipe");
        assert!(read > 0, "the writer is there");
        let filled = self.kept + read;
        let whole = filled - filled % self.value_bytes;
        self.buffer[..whole].chunks_exact(self.value_bytes).for_each(|value| take(record::verify(value)));
        self.buffer.copy_within(whole..filled, 0);
        self.kept = filled - whole;
    }
}

/// A pair of Unix sockets that keep records apart (unix(7), `SOCK_SEQPACKET`), a system call a record at either end.
pub(crate) struct SeqPacket {
    ends: (Option<File>, Option<File>),
    value_bytes: usize,
}

pub(crate) struct SeqPacketEnd {
    socket: File,
    record: Buffer,
}

impl Direction for SeqPacket {
    type Sender = SeqPacketEnd;
    type Receiver = SeqPacketEnd;

    fn new(shape: Shape, _: &Path, _: &'static str) -> SeqPacket {
        let mut fds = [0; 2];
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        // SAFETY: the target is two ints.
        let outcome = unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) };
        assert!(outcome == 0, "socketpair: {}", io::Error::last_os_error());
        // SAFETY: both were opened just now, and belong to nobody else.
        let [sender, receiver] = fds.map(|fd| Some(File::from(unsafe { OwnedFd::from_raw_fd(fd) })));
        SeqPacket { ends: (sender, receiver), value_bytes: shape.value_bytes }
    }

    fn sender(&mut self) -> SeqPacketEnd {
        self.ends.1 = None;
        let socket = self.ends.0.take().expect("the sender is taken once");
        SeqPacketEnd { socket, record: Buffer::new(self.value_bytes) }
    }

    fn receiver(&mut self) -> SeqPacketEnd {
        self.ends.0 = None;
        let socket = self.ends.1.take().expect("the receiver is taken once");
        SeqPacketEnd { socket, record: Buffer::new(self.value_bytes) }
    }
}

impl Sender for SeqPacketEnd {
    fn send(&mut self, n: u64) {
        let record = self.record.fill(n);
        let written = self.socket.write(record).expect("the receiver is there");
        assert_eq!(written, record.len(), "records are whole");
    }
}

impl Receiver for SeqPacketEnd {
    fn receive(&mut self, mut take: impl FnMut(u64)) {
        let record = self.record.bytes();
        let read = self.socket.read(record).expect("the sender is there");
        assert_eq!(read, record.len(), "records are whole");
        take(record::verify(record));
    }
}

/// A POSIX message queue (mq_overview(7)), as long as it may be without privilege.
pub(crate) struct MessageQueue {
    fd: Option<OwnedFd>,
    value_bytes: usize,
}

pub(crate) struct MessageQueueEnd {
    fd: OwnedFd,
    record: Buffer,
}

/// The default of /proc/sys/fs/mqueue/msg_max.
const QUEUE_MESSAGES: i64 = 10;

impl Direction for MessageQueue {
    type Sender = MessageQueueEnd;
    type Receiver = MessageQueueEnd;

    fn new(shape: Shape, _: &Path, name: &'static str) -> MessageQueue {
        let name = format!("/shmirror-peers-{}-{name}", std::process::id());
        let name = CString::new(name).expect("no zero byte in it");
        // SAFETY: an mq_attr holds numbers only.
        let mut attributes: libc::mq_attr = unsafe { mem::zeroed() };
        attributes.mq_maxmsg = QUEUE_MESSAGES;
        attributes.mq_msgsize = shape.value_bytes as i64;
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC;
        // SAFETY: a string that ends with a zero byte, a mode, and attributes that are read only.
        let fd = unsafe { libc::mq_open(name.as_ptr(), flags, 0o600 as libc::mode_t, &raw mut attributes) };
        assert!(fd >= 0, "mq_open: {}", io::Error::last_os_error());
        // SAFETY: the same string.
        let outcome = unsafe { libc::mq_unlink(name.as_ptr()) };
        assert!(outcome == 0, "mq_unlink: {}", io::Error::last_os_error());
        // SAFETY: opened just now; on Linux a queue's descriptor is a file descriptor.
        MessageQueue { fd: Some(unsafe { OwnedFd::from_raw_fd(fd) }), value_bytes: shape.value_bytes }
    }

    fn sender(&mut self) -> MessageQueueEnd {
        let fd = self.fd.take().expect("an end is taken once in a process");
        MessageQueueEnd { fd, record: Buffer::new(self.value_bytes) }
    }

    fn receiver(&mut self) -> MessageQueueEnd {
        self.sender()
    }
}

impl Sender for MessageQueueEnd {
    fn send(&mut self, n: u64) {
        let record = self.record.fill(n);
        // SAFETY: as many bytes as we say.
        let outcome = unsafe { libc::mq_send(self.fd.as_raw_fd(), record.as_ptr().cast(), record.len(), 0) };
        assert!(outcome == 0, "mq_send: {}", io::Error::last_os_error());
    }
}

impl Receiver for MessageQueueEnd {
    fn receive(&mut self, mut take: impl FnMut(u64)) {
        let (fd, record) = (self.fd.as_raw_fd(), self.record.bytes());
        // SAFETY: as many bytes as we say; the priority is not asked for.
        let got = unsafe { libc::mq_receive(fd, record.as_mut_ptr().cast(), record.len(), ptr::null_mut()) };
        assert!(got == record.len() as isize, "mq_receive: {}", io::Error::last_os_error());
        take(record::verify(record));
    }
}
