//! Write combining: records that are written one behind the other go into the ring in one piece.
//!
//! A processor's stores take effect in their order, and those into the ring wait for cache lines that the consumer has. Several
//! such lines are under way at a time if the stores into them follow each other, and hardly ever two if there are stores
//! elsewhere in between, as sending a record makes some. A batch makes those first, and its records go into the ring as a run. Where
//! records come one by one, as in a replay, they are put together here, in memory that stays in the nearest cache, and are
//! copied in before they are published.

/// So much is put together at most: some dozens of short records, and an eighth of what the nearest cache mostly has.
const CAPACITY_BYTES: usize = 4096;

/// Whole records, as they will lie in the ring, and how many more may join them.
#[derive(Debug, Default)]
pub(super) struct Combined {
    /// Allocated when it is first opened.
    bytes: Vec<u8>,
    len: usize,
    /// Bytes that may be put behind those.
    room: usize,
}

impl Combined {
    /// Whether a record of so many bytes may join those that are here.
    #[inline(always)]
    pub(super) fn has_room_for(&self, record_bytes: u64) -> bool {
        record_bytes <= self.room as u64
    }

    #[inline(always)]
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Up to so many bytes may come, in one piece of the ring. There are none yet.
    pub(super) fn open(&mut self, bytes: u64) {
        if self.bytes.is_empty() {
            self.bytes = vec![0; CAPACITY_BYTES];
        }
        self.room = bytes.min(CAPACITY_BYTES as u64) as usize;
    }

    /// Nothing joins what is here any more.
    #[inline(always)]
    pub(super) fn close(&mut self) {
        self.room = 0;
    }

    /// Adds a record, for which there is room: a header and what is behind it. Bytes up to its end are those of an earlier record.
    #[inline(always)]
    pub(super) fn push<const H: usize, const N: usize>(
        &mut self,
        record_bytes: u64,
        header: [u8; 8],
        head: [[u8; 8]; H],
        pieces: [&[u8]; N],
    ) {
        let (start, end) = (self.len, self.len + record_bytes as usize);
        let record = &mut self.bytes[start..end];
        let (words, mut rest) = record.split_at_mut(size_of_val(&header) + size_of_val(&head));
        let words = words.as_chunks_mut().0;
        words[0] = header;
        for (to, word) in words[1..].iter_mut().zip(head) {
            *to = word;
        }
        for piece in pieces {
            let (here, behind) = rest.split_at_mut(piece.len());
            here.copy_from_slice(piece);
            rest = behind;
        }
        self.len = end;
        self.room -= record_bytes as usize;
    }

    /// All that is here, which is no more here then.
    pub(super) fn take(&mut self) -> &[u8] {
        &self.bytes[..std::mem::take(&mut self.len)]
    }
}
