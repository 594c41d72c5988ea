//! Opcodes that need no allocation.
#![allow(unsafe_code)]

use std::num::NonZeroU64;
use std::ptr;

/// All that a short opcode is: its bytes, the first one lowest, and in the upper two bytes its length.
///
/// An opcode that was just made is looked up next. What was stored in words must be loaded in the same words, or the load waits
/// until the stores are in the cache, see [`ProducerMemory::copy_in_record`](crate::ring::ProducerMemory::copy_in_record). So opcodes
/// are made, hashed and compared in words, and are not moved meanwhile.
pub(crate) type Words = [u64; 3];

/// Opcodes up to this length need no allocation. It makes an opcode as large as three words.
pub(super) const INLINE_BYTES: usize = 22;
/// Where the length begins in the last of the words.
const LENGTH_SHIFT: u32 = 48;

/// The bytes of a short opcode, in words.
///
/// Invariants:
/// 1. The length, plus one, lies in the upper two bytes of the third word: at most [`INLINE_BYTES`] and one.
/// 2. The words are little-endian, so that the bytes are in their order in memory; those behind the opcode's end are zero.
#[derive(Clone)]
#[repr(C)]
pub(super) struct Inline {
    first: u64,
    second: u64,
    third: NonZeroU64,
}

impl Inline {
    /// The first `length` bytes of these words, in which the others are zero.
    ///
    /// # Panics
    /// If it is more than [`INLINE_BYTES`].
    #[inline]
    pub(super) fn new([first, second, third]: Words, length: usize) -> Inline {
        assert!(length <= INLINE_BYTES, "{length} bytes do not fit {INLINE_BYTES}");
        debug_assert!(third >> LENGTH_SHIFT == 0, "there is something behind the opcode's end");
        let third = third | (length as u64 + 1) << LENGTH_SHIFT;
        let third = NonZeroU64::new(third.to_le()).expect("the length and one is not zero");
        Inline { first: first.to_le(), second: second.to_le(), third }
    }

    #[inline]
    fn length(&self) -> usize {
        (u64::from_le(self.third.get()) >> LENGTH_SHIFT) as usize - 1
    }

    #[inline]
    pub(super) fn as_bytes(&self) -> &[u8] {
        // SAFETY: `repr(C)` puts the three words one behind the other, without padding, so that all 24 bytes are initialised; bytes
        // need no alignment, and are borrowed for as long as `self` is.
        let bytes: &[u8; size_of::<Inline>()] = unsafe { &*ptr::from_ref(self).cast() };
        &bytes[..self.length()]
    }

    #[inline]
    pub(super) fn words(&self) -> Words {
        [self.first, self.second, self.third.get()].map(u64::from_le)
    }
}

/// Up to 24 bytes, in words, with zeroes behind them.
#[inline]
pub(super) fn words_of(bytes: &[u8]) -> Words {
    let (whole, rest) = bytes.as_chunks();
    let last = if rest.is_empty() { 0 } else { short_word(rest) };
    let word = |bytes: &[u8; 8]| u64::from_le_bytes(*bytes);
    match whole {
        [] => [last, 0, 0],
        [first] => [word(first), last, 0],
        [first, second] => [word(first), word(second), last],
        [first, second, third, ..] => [word(first), word(second), word(third)],
    }
}

/// Less than eight bytes, in a word.
#[inline]
fn short_word(mut rest: &[u8]) -> u64 {
    let (mut word, mut shift) = (0, 0);
    if let Some((four, after)) = rest.split_first_chunk() {
        word = u64::from(u32::from_le_bytes(*four));
        (shift, rest) = (32, after);
    }
    if let Some((two, after)) = rest.split_first_chunk() {
        word |= u64::from(u16::from_le_bytes(*two)) << shift;
        (shift, rest) = (shift + 16, after);
    }
    if let Some(byte) = rest.first() {
        word |= u64::from(*byte) << shift;
    }
    word
}
