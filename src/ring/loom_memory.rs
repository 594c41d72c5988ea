//! A ring's memory in which loom sees every access, optionally with one ordering broken.
//!
//! The words are loom atomics, whose loads may return any value that the memory model allows. The data are
//! loom cells, one for eight bytes: two accesses of a cell that are not ordered by happens-before, one of
//! them a write, are a race and fail the model. loom runs its threads one at a time on one system thread, so
//! `Rc` and cells that are not `Sync` may be shared between them.

use std::rc::Rc;
use std::sync::atomic::Ordering;

use loom::cell::Cell;
use loom::sync::atomic::{AtomicU64, fence};
use loom::sync::{Condvar, Mutex};

use super::memory::{ConsumerMemory, Memory, ProducerMemory, Word};
use super::{Consumer, Producer};

/// One ordering that the memory leaves out, to see the models find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mutation {
    Nothing,
    /// The tail is stored Relaxed: the consumer may see it before the records.
    TailNotReleased,
    /// No Acquire fence behind the load of the tail: the consumer may read before the producer wrote.
    TailNotAcquired,
    /// Where the ring was begun anew is stored behind the tail: the consumer may miss it.
    StartBehindTail,
    /// The head is stored Relaxed: the producer may see it before the consumer's copies are done.
    HeadNotReleased,
    /// No Acquire fence behind the load of the head: the producer may overwrite what is still being copied.
    HeadNotAcquired,
    /// No SeqCst fence in the producer.
    ProducerNotFenced,
    /// No SeqCst fence in the consumer.
    ConsumerNotFenced,
}

/// Both ends of a ring that begins at `position`.
pub(super) fn ring_at(
    capacity: u64,
    position: u64,
    mutation: Mutation,
) -> (Producer<LoomMemory>, Consumer<LoomMemory>) {
    let of_producer = Rc::new(Words::at(position));
    let of_consumer = Rc::new(Words::at(position));
    let data: Rc<[_]> = (0..capacity / 8).map(|_| Cell::new([0; 8])).collect();
    let producer = LoomMemory {
        own: of_producer.clone(),
        peer: of_consumer.clone(),
        data: data.clone(),
        relaxes_stores: mutation == Mutation::TailNotReleased,
        late_start: (mutation == Mutation::StartBehindTail).then(Default::default),
        drops_acquire: mutation == Mutation::HeadNotAcquired,
        drops_seq_cst: mutation == Mutation::ProducerNotFenced,
    };
    let consumer = LoomMemory {
        own: of_consumer,
        peer: of_producer,
        data,
        relaxes_stores: mutation == Mutation::HeadNotReleased,
        late_start: None,
        drops_acquire: mutation == Mutation::TailNotAcquired,
        drops_seq_cst: mutation == Mutation::ConsumerNotFenced,
    };
    (Producer::at(producer, capacity, position), Consumer::at(consumer, capacity, position))
}

/// One side's view.
#[derive(Debug)]
pub(super) struct LoomMemory {
    own: Rc<Words>,
    peer: Rc<Words>,
    data: Rc<[Cell<[u8; 8]>]>,
    relaxes_stores: bool,
    /// A start that is to be stored behind the tail.
    late_start: Option<std::cell::Cell<Option<u64>>>,
    drops_acquire: bool,
    drops_seq_cst: bool,
}

#[derive(Debug)]
struct Words {
    cursor: AtomicU64,
    start: AtomicU64,
    waits: AtomicU64,
}

impl Words {
    fn at(position: u64) -> Self {
        Self { cursor: AtomicU64::new(position), start: AtomicU64::new(position), waits: AtomicU64::new(0) }
    }

    fn of(&self, word: Word) -> &AtomicU64 {
        match word {
            Word::Cursor => &self.cursor,
            Word::Start => &self.start,
            Word::Waits => &self.waits,
        }
    }
}

impl Memory for LoomMemory {
    fn load_peer(&self, word: Word) -> u64 {
        // Relaxed: what the trait asks for.
        self.peer.of(word).load(Ordering::Relaxed)
    }

    fn store_own(&self, word: Word, value: u64, order: Ordering) {
        let order = if self.relaxes_stores { Ordering::Relaxed } else { order };
        if let (Word::Start, Some(late)) = (word, &self.late_start) {
            return late.set(Some(value));
        }
        self.own.of(word).store(value, order);
        if let Some(start) = self.late_start.as_ref().and_then(std::cell::Cell::take) {
            self.own.start.store(start, order);
        }
    }

    fn fence(&self, order: Ordering) {
        let dropped = match order {
            Ordering::Acquire => self.drops_acquire,
            Ordering::SeqCst => self.drops_seq_cst,
            other => panic!("the ring uses no {other:?} fence"),
        };
        if !dropped {
            fence(order);
        }
    }
}

impl ProducerMemory for LoomMemory {
    fn copy_in(&self, offset: usize, bytes: &[u8]) {
        for (at, &byte) in (offset..).zip(bytes) {
            let cell = &self.data[at / 8];
            let mut word = cell.get();
            word[at % 8] = byte;
            cell.set(word);
        }
    }
}

impl ConsumerMemory for LoomMemory {
    fn copy_out(&self, offset: usize, into: &mut [u8]) {
        for (at, byte) in (offset..).zip(into) {
            *byte = self.data[at / 8].get()[at % 8];
        }
    }
}

/// A doorbell that stays signalled until the sleeper takes the signal. Who is never rung sleeps for ever,
/// which loom reports as a deadlock.
///
/// Its mutex orders memory too, so a model must touch it only to ring or to sleep: touched on every
/// publication it would stand in for the very fences under test.
#[derive(Debug)]
pub(super) struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Bell {
    pub(super) fn new() -> Self {
        Self { rung: Mutex::new(false), changed: Condvar::new() }
    }

    pub(super) fn ring(&self) {
        *self.rung.lock().unwrap() = true;
        self.changed.notify_one();
    }

    pub(super) fn wait(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.changed.wait(rung).unwrap();
        }
        *rung = false;
    }
}
