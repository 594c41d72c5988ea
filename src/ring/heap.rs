//! A ring's memory on the heap, shared by two threads of a test.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering, fence};

use super::layout::start_of;
use super::memory::{ConsumerMemory, Memory, ProducerMemory, Word};
use super::{Consumer, Producer};

/// Both ends of a ring on the heap that begins at `position`.
pub(crate) fn ring_at(capacity: u64, position: u64) -> (Producer<HeapMemory>, Consumer<HeapMemory>) {
    let (producer, consumer) = HeapMemory::pair(capacity, position);
    (Producer::at(producer, capacity, position), Consumer::at(consumer, capacity, position))
}

/// Both ends of a ring on the heap.
#[cfg(test)]
pub(crate) fn ring(capacity: u64) -> (Producer<HeapMemory>, Consumer<HeapMemory>) {
    let (producer, consumer) = HeapMemory::pair(capacity, 0);
    (Producer::new(producer, capacity), Consumer::new(consumer, capacity))
}

/// One side's view.
#[derive(Clone, Debug)]
pub(crate) struct HeapMemory {
    own: Arc<Words>,
    peer: Arc<Words>,
    data: Arc<[AtomicU8]>,
}

/// One side's, in cache lines of their own, as in a region.
#[derive(Debug)]
#[repr(align(128))]
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

impl HeapMemory {
    /// The producer's view and the consumer's. A test that plays a misbehaving peer keeps a clone of its
    /// view.
    pub(crate) fn pair(capacity: u64, position: u64) -> (Self, Self) {
        let data: Arc<[_]> = (0..capacity).map(|_| AtomicU8::new(0)).collect();
        let of_producer = Arc::new(Words::at(capacity, position));
        let of_consumer = Arc::new(Words::at(capacity, position));
        let producer = Self { own: of_producer.clone(), peer: of_consumer.clone(), data: data.clone() };
        let consumer = Self { own: of_consumer, peer: of_producer, data };
        (producer, consumer)
    }
}

impl Memory for HeapMemory {
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

impl ProducerMemory for HeapMemory {
    fn copy_in(&self, offset: usize, bytes: &[u8]) {
        for (to, &from) in self.data[offset..offset + bytes.len()].iter().zip(bytes) {
            // Relaxed: data are ordered by the cursors alone.
            to.store(from, Ordering::Relaxed);
        }
    }
}

impl ConsumerMemory for HeapMemory {
    fn copy_out(&self, offset: usize, into: &mut [u8]) {
        for (from, to) in self.data[offset..offset + into.len()].iter().zip(into) {
            // Relaxed: data are ordered by the cursors alone.
            *to = from.load(Ordering::Relaxed);
        }
    }
}
