//! The numbers of a change.
//!
//! A source has one counter for all its tables and destinations. It counts in 64 bits; the **sync sequence number** that
//! users see and acks repeat is its low half and wraps, which 10 million changes a second do in under eight minutes.
//! Neither order nor identity hangs on the low half: comparing u32 is undefined at a distance of 2^31, and equality lies
//! at 2^32.

use std::fmt;

/// A change's 32-bit sync sequence number: unique within its source until it wraps. Not ordered, on purpose.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct SyncSeq(u32);

impl SyncSeq {
    /// The number as such.
    pub fn value(self) -> u32 {
        self.0
    }
}

impl From<u32> for SyncSeq {
    fn from(value: u32) -> SyncSeq {
        SyncSeq(value)
    }
}

impl fmt::Display for SyncSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A change's full number: its order and identity within one epoch of its source. The default, 0, is that of none.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct ChangeNumber(u64);

impl ChangeNumber {
    /// Before every change.
    pub(crate) const NONE: ChangeNumber = ChangeNumber(0);

    /// The number before the one whose sync sequence number is `first`.
    pub(crate) fn before(first: SyncSeq) -> ChangeNumber {
        ChangeNumber((1 << 32) + u64::from(first.0) - 1)
    }

    pub(crate) fn from_wire(value: u64) -> ChangeNumber {
        ChangeNumber(value)
    }

    pub(crate) fn value(self) -> u64 {
        self.0
    }

    pub(crate) fn next(self) -> ChangeNumber {
        ChangeNumber(self.0 + 1)
    }

    pub(crate) fn seq(self) -> SyncSeq {
        SyncSeq(self.0 as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_number_wraps_and_the_change_number_goes_on() {
        let last = ChangeNumber::before(SyncSeq(u32::MAX)).next();
        assert_eq!(last.seq(), SyncSeq(u32::MAX));
        assert_eq!(last.next().seq(), SyncSeq(0));
        assert!(last.next() > last);
        assert_eq!(ChangeNumber::before(SyncSeq(0)).next().seq(), SyncSeq(0));
    }
}
