//! The seam between the ring and the memory that it lies in.
//!
//! The traits say only what one side may do: write its own words, read the peer's, and copy data in
//! (the producer) or out (the consumer). Reading back an own word, or writing one of the peer's, cannot be
//! expressed. Offsets count from the start of the ring's data.
//!
//! The traits are safe to implement and safe to call. An implementation over raw memory therefore must not
//! rely on its caller: it checks `offset + length <= capacity` itself, which costs one predictable branch
//! beside a copy.

use std::sync::atomic::Ordering;

use super::layout::record_bytes;

/// The words that each side writes and its peer reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// A byte position: how far the producer has published (the tail), or the consumer released (the head).
    Cursor,
    /// Of the producer: where the ring was last begun anew. It lies in the cursor's cache line.
    Start,
    /// Zero while the side is awake, else the generation of its wait.
    Waits,
}

/// What both sides do with the shared words.
///
/// Implementations mark the methods `#[inline]`: this is the hot path.
pub(crate) trait Memory {
    /// Loads one of the peer's words, always Relaxed: the peer's words may be mapped read-only, and there
    /// Relaxed loads of at most eight bytes are all that Rust guarantees. Who needs more adds a fence.
    fn load_peer(&self, word: Word) -> u64;

    /// Stores one of this side's own words, as Relaxed or Release.
    fn store_own(&self, word: Word, value: u64, order: Ordering);

    /// A fence, as Acquire or SeqCst.
    fn fence(&self, order: Ordering);
}

/// A record: its header, the words that are put together for it, and the pieces behind them.
pub(crate) type RecordPieces<'a, const H: usize, const N: usize> = ([u8; 8], [[u8; 8]; H], [&'a [u8]; N]);

/// The length of a record's payload: of these words, and of these pieces behind them.
#[inline(always)]
pub(super) fn payload_bytes<const H: usize, const N: usize>(
    head: &[[u8; 8]; H],
    pieces: &[&[u8]; N],
) -> usize {
    size_of_val(head) + pieces.iter().map(|piece| piece.len()).sum::<usize>()
}

/// What a record of these takes up in the ring.
#[inline(always)]
pub(crate) fn pieces_bytes<const H: usize, const N: usize>(head: [[u8; 8]; H], pieces: [&[u8]; N]) -> usize {
    record_bytes(payload_bytes(&head, &pieces)) as usize
}

/// The producer's view: it alone writes the data.
pub(crate) trait ProducerMemory: Memory {
    /// Copies `bytes` to `offset`. `offset + bytes.len()` is at most the capacity; `offset` may equal it when
    /// `bytes` is empty.
    fn copy_in(&self, offset: usize, bytes: &[u8]);

    /// As [`copy_in`](Self::copy_in) for the words of a header and what goes behind it, piece by piece.
    ///
    /// What is put together for a record is handed over in words, which stay in registers. A processor hands what was just
    /// written to a load only if one store has all of it; a wider load waits until the stores are in the cache, in their
    /// order, and so behind those into the ring, whose lines the other side has. Headers that were read again made each record
    /// wait for the line of the one before it.
    #[inline(always)]
    fn copy_in_record<const H: usize, const N: usize>(
        &self,
        offset: usize,
        header: [u8; 8],
        head: [[u8; 8]; H],
        pieces: [&[u8]; N],
    ) {
        self.copy_in(offset, &header);
        let mut offset = offset + header.len();
        for piece in head.iter().map(|word| &word[..]).chain(pieces) {
            self.copy_in(offset, piece);
            offset += piece.len();
        }
    }

    /// As [`copy_in_record`](Self::copy_in_record) for records one behind the other, from `offset` on, which take `most` bytes at most;
    /// answers how many they took. `offset + most` is at most the capacity.
    ///
    /// # Panics
    ///
    /// If they take more.
    #[inline(always)]
    fn copy_in_records<'a, const H: usize, const N: usize>(
        &self,
        offset: usize,
        most: usize,
        records: impl Iterator<Item = RecordPieces<'a, H, N>>,
    ) -> usize {
        let mut copied = 0;
        for (header, head, pieces) in records {
            let bytes = pieces_bytes(head, pieces);
            assert!(bytes <= most - copied, "records take more than the {most} bytes that were said");
            self.copy_in_record(offset + copied, header, head, pieces);
            copied += bytes;
        }
        copied
    }

    /// Has what lies at `offset`, below the capacity, fetched from the consumer, so that it can be written soon: a short record's
    /// worth. A hint.
    #[inline]
    fn prefetch(&self, offset: usize) {
        let _ = offset;
    }
}

/// The consumer's view: it reads data that a hostile producer may change at any time.
pub(crate) trait ConsumerMemory: Memory {
    /// Fills `into` with what is at `offset`. `offset + into.len()` is at most the capacity; `offset` may
    /// equal it when `into` is empty. If the producer breaks the rules and writes meanwhile, the bytes are
    /// arbitrary but the call is sound.
    fn copy_out(&self, offset: usize, into: &mut [u8]);

    /// Whether [`evict`](Self::evict) has an effect.
    fn can_evict(&self) -> bool {
        false
    }

    /// Has the cache line at `offset`, below the capacity, put back into memory, out of all caches. A hint.
    #[inline]
    fn evict(&self, offset: usize) {
        let _ = offset;
    }

    /// Has what will be written at `offset`, below the capacity, fetched from the producer as soon as it is: a short record's
    /// worth. A hint.
    #[inline]
    fn prefetch(&self, offset: usize) {
        let _ = offset;
    }
}
