//! A pair of regions as the rings see it.
//!
//! ```text
//!                    own region             peer's region
//! ProducerMapping    tail, start,           head, consumer waits
//!                    producer waits,
//!                    data (written)
//! ConsumerMapping    head, consumer waits   tail, start,
//!                                           producer waits,
//!                                           data (read)
//! ```
//!
//! Each side of a link has one of each over the same two regions: the ring it produces into and the one it
//! consumes from.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{self, Ordering};

use super::layout;
use super::{OwnRegion, PeerRegion};
use crate::cpu_cache::LineEviction;
use crate::ring::{ConsumerMemory, Memory, ProducerMemory, RecordPieces, Word};

/// The ring that this side produces into. May move between threads, but is used by one at a time.
#[derive(Debug)]
pub(crate) struct ProducerMapping {
    own: Arc<OwnRegion>,
    peer: Arc<PeerRegion>,
    /// Not `Sync`: data is copied in through `&self`.
    one_thread: PhantomData<Cell<()>>,
}

/// The ring that this side consumes from. May move between threads, but is used by one at a time.
#[derive(Debug)]
pub(crate) struct ConsumerMapping {
    own: Arc<OwnRegion>,
    peer: Arc<PeerRegion>,
    line_eviction: Option<LineEviction>,
    /// Not `Sync`, as the ring over it has one consumer.
    one_thread: PhantomData<Cell<()>>,
}

impl ProducerMapping {
    /// Makes the one writer of `own`'s data.
    ///
    /// # Panics
    /// It has one already.
    pub(crate) fn new(own: Arc<OwnRegion>, peer: Arc<PeerRegion>) -> ProducerMapping {
        own.claim_data();
        ProducerMapping { own, peer, one_thread: PhantomData }
    }
}

impl ConsumerMapping {
    /// Reads the data of `peer`.
    pub(crate) fn new(own: Arc<OwnRegion>, peer: Arc<PeerRegion>) -> ConsumerMapping {
        ConsumerMapping { own, peer, line_eviction: LineEviction::detect(), one_thread: PhantomData }
    }
}

impl Memory for ProducerMapping {
    #[inline]
    fn load_peer(&self, word: Word) -> u64 {
        self.peer.load(match word {
            Word::Cursor => layout::Word::Head,
            Word::Start => unreachable!("a consumer begins nothing"),
            Word::Waits => layout::Word::ConsumerWaits,
        })
    }

    #[inline]
    fn store_own(&self, word: Word, value: u64, order: Ordering) {
        let word = match word {
            Word::Cursor => layout::Word::Tail,
            Word::Start => layout::Word::Start,
            Word::Waits => layout::Word::ProducerWaits,
        };
        self.own.store(word, value, order);
    }

    #[inline]
    fn fence(&self, order: Ordering) {
        atomic::fence(order);
    }
}

impl ProducerMemory for ProducerMapping {
    #[inline]
    fn copy_in(&self, offset: usize, bytes: &[u8]) {
        // SAFETY: `new` claimed the data, this type is neither `Clone` nor `Sync`, and it is the only caller.
        unsafe { self.own.copy_in(offset, bytes) }
    }

    #[inline(always)]
    fn copy_in_record<const H: usize, const N: usize>(
        &self,
        offset: usize,
        header: [u8; 8],
        head: [[u8; 8]; H],
        pieces: [&[u8]; N],
    ) {
        // SAFETY: `new` claimed the data, this type is neither `Clone` nor `Sync`, and it is the only caller.
        unsafe { self.own.copy_in_record(offset, header, head, pieces) }
    }

    #[inline(always)]
    fn copy_in_records<'a, const H: usize, const N: usize>(
        &self,
        offset: usize,
        most: usize,
        records: impl Iterator<Item = RecordPieces<'a, H, N>>,
    ) -> usize {
        // SAFETY: `new` claimed the data, this type is neither `Clone` nor `Sync`, and it is the only caller.
        unsafe { self.own.copy_in_records(offset, most, records) }
    }

    #[inline(always)]
    fn prefetch(&self, offset: usize) {
        self.own.prefetch(offset);
    }
}

impl Memory for ConsumerMapping {
    #[inline]
    fn load_peer(&self, word: Word) -> u64 {
        self.peer.load(match word {
            Word::Cursor => layout::Word::Tail,
            Word::Start => layout::Word::Start,
            Word::Waits => layout::Word::ProducerWaits,
        })
    }

    #[inline]
    fn store_own(&self, word: Word, value: u64, order: Ordering) {
        let word = match word {
            Word::Cursor => layout::Word::Head,
            Word::Start => unreachable!("a consumer begins nothing"),
            Word::Waits => layout::Word::ConsumerWaits,
        };
        self.own.store(word, value, order);
    }

    #[inline]
    fn fence(&self, order: Ordering) {
        atomic::fence(order);
    }
}

impl ConsumerMemory for ConsumerMapping {
    #[inline(always)]
    fn copy_out(&self, offset: usize, into: &mut [u8]) {
        self.peer.copy_out(offset, into);
    }

    fn can_evict(&self) -> bool {
        self.line_eviction.is_some()
    }

    #[inline]
    fn evict(&self, offset: usize) {
        if let Some(eviction) = self.line_eviction {
            self.peer.evict(eviction, offset);
        }
    }

    #[inline]
    fn prefetch(&self, offset: usize) {
        self.peer.prefetch(offset);
    }
}
