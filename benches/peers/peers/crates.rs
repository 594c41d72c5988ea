//! Crates: rings in shared memory, and a channel over sockets.

#![allow(unsafe_code)]

use std::hint::spin_loop;
use std::mem::MaybeUninit;
use std::path::Path;

use ipc_channel::ipc::{self, IpcBytesReceiver, IpcBytesSender};

use crate::direction::{Buffer, Direction, Receiver, Sender, Shape, fill_words, verify_words};
use crate::harness::record;

/// ipc-channel, with bytes, which it does not serialize: its fastest form. It is a `SOCK_SEQPACKET` socket
/// (`channel` in its platform/unix/mod.rs).
pub(crate) struct IpcChannel {
    ends: (Option<IpcBytesSender>, Option<IpcBytesReceiver>),
    value_bytes: usize,
}

pub(crate) struct IpcChannelSender {
    channel: IpcBytesSender,
    record: Buffer,
}

impl Direction for IpcChannel {
    type Sender = IpcChannelSender;
    type Receiver = IpcBytesReceiver;

    fn new(shape: Shape, _: &Path, _: &'static str) -> IpcChannel {
        let (sender, receiver) = ipc::bytes_channel().expect("a channel");
        IpcChannel { ends: (Some(sender), Some(receiver)), value_bytes: shape.value_bytes }
    }

    fn sender(&mut self) -> IpcChannelSender {
        self.ends.1 = None;
        let channel = self.ends.0.take().expect("the sender is taken once");
        IpcChannelSender { channel, record: Buffer::new(self.value_bytes) }
    }

    fn receiver(&mut self) -> IpcBytesReceiver {
        self.ends.0 = None;
        self.ends.1.take().expect("the receiver is taken once")
    }
}

impl Sender for IpcChannelSender {
    fn send(&mut self, n: u64) {
        self.channel.send(self.record.fill(n)).expect("the receiver is there");
    }
}

impl Receiver for IpcBytesReceiver {
    fn receive(&mut self, mut take: impl FnMut(u64)) {
        take(record::verify(&self.recv().expect("the sender is there")));
    }
}

/// rtrb, between threads: it has no shared memory. `BATCH` records are pushed at a time.
pub(crate) struct Rtrb<const WORDS: usize, const BATCH: u64> {
    producer: Option<rtrb::Producer<[u64; WORDS]>>,
    consumer: Option<rtrb::Consumer<[u64; WORDS]>>,
}

pub(crate) struct RtrbSender<const WORDS: usize, const BATCH: u64> {
    producer: rtrb::Producer<[u64; WORDS]>,
    record: MaybeUninit<[u64; WORDS]>,
}

pub(crate) struct RtrbReceiver<const WORDS: usize, const BATCH: u64>(rtrb::Consumer<[u64; WORDS]>);

impl<const WORDS: usize, const BATCH: u64> Direction for Rtrb<WORDS, BATCH> {
    type Sender = RtrbSender<WORDS, BATCH>;
    type Receiver = RtrbReceiver<WORDS, BATCH>;

    fn new(shape: Shape, _: &Path, _: &'static str) -> Self {
        assert_eq!(shape.value_bytes, WORDS * 8);
        let (producer, consumer) = rtrb::RingBuffer::new(shape.capacity);
        Rtrb { producer: Some(producer), consumer: Some(consumer) }
    }

    fn sender(&mut self) -> RtrbSender<WORDS, BATCH> {
        let producer = self.producer.take().expect("the sender is taken once");
        RtrbSender { producer, record: MaybeUninit::uninit() }
    }

    fn receiver(&mut self) -> RtrbReceiver<WORDS, BATCH> {
        RtrbReceiver(self.consumer.take().expect("the receiver is taken once"))
    }
}

impl<const WORDS: usize, const BATCH: u64> Sender for RtrbSender<WORDS, BATCH> {
    const BATCH: u64 = BATCH;

    fn send(&mut self, n: u64) {
        let record = fill_words(&mut self.record, n);
        while self.producer.push(*record).is_err() {
            spin_loop();
        }
    }

    fn send_many(&mut self, first: u64) {
        loop {
            if let Ok(mut chunk) = self.producer.write_chunk_uninit(BATCH as usize) {
                let (one, other) = chunk.as_mut_slices();
                for (value, n) in one.iter_mut().chain(other).zip(first..) {
                    fill_words(value, n);
                }
                // SAFETY: every record of the chunk was written.
                return unsafe { chunk.commit_all() };
            }
            spin_loop();
        }
    }
}

impl<const WORDS: usize, const BATCH: u64> Receiver for RtrbReceiver<WORDS, BATCH> {
    fn receive(&mut self, mut take: impl FnMut(u64)) {
        if BATCH == 1 {
            loop {
                if let Ok(record) = self.0.pop() {
                    return take(verify_words(&record));
                }
                spin_loop();
            }
        }
        loop {
            let slots = self.0.slots();
            if slots > 0 {
                let chunk = self.0.read_chunk(slots).expect("so many are there");
                let (one, other) = chunk.as_slices();
                one.iter().chain(other).for_each(|record| take(verify_words(record)));
                return chunk.commit_all();
            }
            spin_loop();
        }
    }
}

/// shmem-ipc. `BATCH` records are sent at a time; `SLEEPS` tells whether its ends wait in the kernel, and wake each other.
pub(crate) struct ShmemIpc<const WORDS: usize, const BATCH: u64, const SLEEPS: bool> {
    sender: Option<shmem_ipc::sharedring::Sender<[u64; WORDS]>>,
    capacity: usize,
}

pub(crate) struct ShmemSender<const WORDS: usize, const BATCH: u64, const SLEEPS: bool>(
    shmem_ipc::sharedring::Sender<[u64; WORDS]>,
);

pub(crate) struct ShmemReceiver<const WORDS: usize, const SLEEPS: bool>(
    shmem_ipc::sharedring::Receiver<[u64; WORDS]>,
);

impl<const WORDS: usize, const BATCH: u64, const SLEEPS: bool> Direction for ShmemIpc<WORDS, BATCH, SLEEPS> {
    type Sender = ShmemSender<WORDS, BATCH, SLEEPS>;
    type Receiver = ShmemReceiver<WORDS, SLEEPS>;

    fn new(shape: Shape, _: &Path, _: &'static str) -> Self {
        assert_eq!(shape.value_bytes, WORDS * 8);
        let sender = shmem_ipc::sharedring::Sender::new(shape.capacity).expect("a ring");
        ShmemIpc { sender: Some(sender), capacity: shape.capacity }
    }

    fn sender(&mut self) -> ShmemSender<WORDS, BATCH, SLEEPS> {
        ShmemSender(self.sender.take().expect("the sender is taken once"))
    }

    fn receiver(&mut self) -> ShmemReceiver<WORDS, SLEEPS> {
        let sender = self.sender.take().expect("the receiver is taken once, in a process of its own");
        let memory = sender.memfd().as_file().try_clone().expect("a descriptor");
        let [empty, full] = [sender.empty_signal(), sender.full_signal()]
            .map(|signal| signal.try_clone().expect("a descriptor"));
        ShmemReceiver(
            shmem_ipc::sharedring::Receiver::open(self.capacity, memory, empty, full).expect("the ring"),
        )
    }
}

impl<const WORDS: usize, const BATCH: u64, const SLEEPS: bool> ShmemSender<WORDS, BATCH, SLEEPS> {
    /// As many of the records from `first` on, but not more than `count`, as there is room for in one piece.
    fn try_send(&mut self, first: u64, count: u64) -> u64 {
        let mut sent = 0;
        let write = |at: *mut [u64; WORDS], room: usize| {
            sent = count.min(room as u64);
            for n in 0..sent {
                // SAFETY: the ring says that there is room for more records than that.
                let at = unsafe { at.add(n as usize) };
                // SAFETY: the receiver does not look at it before it was sent.
                fill_words::<WORDS>(unsafe { &mut *at.cast() }, first + n);
            }
            sent as usize
        };
        if SLEEPS {
            self.0.send_raw(write).expect("a sane ring");
        } else {
            // Nobody is to be woken.
            self.0.sender_mut().send(write).expect("a sane ring");
        }
        sent
    }

    fn send_all(&mut self, first: u64, count: u64) {
        let mut sent = 0;
        while sent < count {
            match self.try_send(first + sent, count - sent) {
                0 if SLEEPS => {
                    self.0.block_until_writable().expect("a sane ring");
                }
                0 => spin_loop(),
                more => sent += more,
            }
        }
    }
}

impl<const WORDS: usize, const BATCH: u64, const SLEEPS: bool> Sender for ShmemSender<WORDS, BATCH, SLEEPS> {
    const BATCH: u64 = BATCH;

    fn send(&mut self, n: u64) {
        self.send_all(n, 1);
    }

    fn send_many(&mut self, first: u64) {
        self.send_all(first, BATCH);
    }
}

impl<const WORDS: usize, const SLEEPS: bool> Receiver for ShmemReceiver<WORDS, SLEEPS> {
    fn receive(&mut self, mut take: impl FnMut(u64)) {
        let mut received = 0;
        loop {
            let read = |at: *const [u64; WORDS], count: usize| {
                for n in 0..count {
                    // SAFETY: the ring says that there are so many records.
                    let at = unsafe { at.add(n) };
                    // SAFETY: it is initialised, and the sender writes there only after it was released.
                    take(verify_words(unsafe { &*at }));
                }
                received = count;
                count
            };
            if SLEEPS {
                self.0.receive_raw(read).expect("a sane ring");
            } else {
                self.0.receiver_mut().recv(read).expect("a sane ring");
            }
            if received > 0 {
                return;
            }
            if SLEEPS {
                self.0.block_until_readable().expect("a sane ring");
            } else {
                spin_loop();
            }
        }
    }
}
