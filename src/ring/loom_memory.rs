//! A ring's memory in which loom sees every access.
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

use super::layout::start_of;
use super::memory::{ConsumerMemory, Memory, ProducerMemory, Word};
use super::{Consumer, Producer};

/// Both ends of a ring that begins at `position`.
pub(crate) fn ring_at(capacity: u64, position: u64) -> (Producer<LoomMemory>, Consumer<LoomMemory>) {
    let of_producer = Rc::new(Words::at(capacity, position));
    let of_consumer = Rc::new(Words::at(capacity, position));
    let data: Rc<[_]> = (0..capacity / 8).map(|_| Cell::new([0; 8])).collect();
    let producer = LoomMemory { own: of_producer.clone(), peer: of_consumer.clone(), data: data.clone() };
    let consumer = LoomMemory { own: of_consumer, peer: of_producer, data };
    (Producer::at(producer, capacity, position), Consumer::at(consumer, capacity, position))
}

/// One side's view.
#[derive(Debug)]
pub(crate) struct LoomMemory {
    own: Rc<Words>,
    peer: Rc<Words>,
    data: Rc<[Cell<[u8; 8]>]>,
}

#[derive(Debug)]
struct Words {
    cursor: AtomicU64,
    start: AtomicU64,
    waits: AtomicU64,
}

impl Words {
    fn at(capacity: u64, position: u64) -> Self {
        let start = start_of(capacity, position);
        Self { cursor: AtomicU64::new(position), start: AtomicU64::new(start), waits: AtomicU64::new(0) }
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
        self.own.of(word).store(value, order);
    }

    fn fence(&self, order: Ordering) {
        fence(order);
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
    signal: Mutex<Option<Signal>>,
    changed: Condvar,
}

/// What ends a sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    Rung,
    /// Whoever could ring is dead.
    HungUp,
}

impl Bell {
    pub(super) fn new() -> Self {
        Self { signal: Mutex::new(None), changed: Condvar::new() }
    }

    pub(super) fn ring(&self) {
        self.signal.lock().unwrap().get_or_insert(Signal::Rung);
        self.changed.notify_one();
    }

    pub(super) fn hang_up(&self) {
        *self.signal.lock().unwrap() = Some(Signal::HungUp);
        self.changed.notify_one();
    }

    pub(super) fn wait(&self) -> Signal {
        let mut signal = self.signal.lock().unwrap();
        loop {
            if let Some(heard) = signal.take() {
                return heard;
            }
            signal = self.changed.wait(signal).unwrap();
        }
    }
}
