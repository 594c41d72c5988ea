//! The records of the ack ring.
//!
//! One ack covers a range of record *ordinals* of the change ring, never a range of sequence numbers: if 10 and 12 were
//! sent and 11 was not, nobody can acknowledge 11. The sync sequence numbers of both ends go along, so that the source
//! can see that both sides talk of the same records.
//!
//! ```text
//!  0               8              16          20         24
//!  +---------------+--------------+-----------+----------+
//!  | first ordinal | last ordinal | first seq | last seq |
//!  +---------------+--------------+-----------+----------+
//!        u64             u64           u32         u32
//! ```

use super::WireError;
use crate::seq::SyncSeq;

/// The records `first..=last` were applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub(crate) struct Ack {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) first_seq: SyncSeq,
    pub(crate) last_seq: SyncSeq,
}

impl Ack {
    pub(crate) const BYTES: usize = 24;

    pub(crate) const WORDS: usize = Self::BYTES / 8;

    /// In words.
    pub(crate) fn encode(&self) -> [[u8; 8]; Self::WORDS] {
        let [f0, f1, f2, f3] = self.first_seq.value().to_ne_bytes();
        let [l0, l1, l2, l3] = self.last_seq.value().to_ne_bytes();
        let seqs = [f0, f1, f2, f3, l0, l1, l2, l3];
        [self.first.to_ne_bytes(), self.last.to_ne_bytes(), seqs]
    }

    #[inline(always)]
    pub(crate) fn of_words([first, last, seqs]: [[u8; 8]; Self::WORDS]) -> Ack {
        let [f0, f1, f2, f3, l0, l1, l2, l3] = seqs;
        Ack {
            first: u64::from_ne_bytes(first),
            last: u64::from_ne_bytes(last),
            first_seq: u32::from_ne_bytes([f0, f1, f2, f3]).into(),
            last_seq: u32::from_ne_bytes([l0, l1, l2, l3]).into(),
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Ack, WireError> {
        let (words, rest) = bytes.as_chunks();
        match (words.try_into(), rest) {
            (Ok(words), []) => Ok(Ack::of_words(words)),
            _ => Err(WireError::Length {
                what: "ack record",
                found: bytes.len(),
                expected: Self::BYTES.to_string(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acks_come_back_as_they_went_in_and_other_lengths_are_errors() {
        let ack = Ack { first: 1 << 33, last: u64::MAX, first_seq: 7.into(), last_seq: u32::MAX.into() };
        assert_eq!(Ack::decode(ack.encode().as_flattened()), Ok(ack));
        let error = Ack::decode(&ack.encode().as_flattened()[..23]).unwrap_err().to_string();
        assert_eq!(error, "ack record of 23 bytes, expected 24");
    }
}
