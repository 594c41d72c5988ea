//! Values that differ from each other and can be verified.
//!
//! To make and to verify one should take next to no time of what is measured: so it goes by the cache line, in loops that the compiler
//! unrolls.

const WORDS_PER_LINE: usize = 8;

/// What makes each word of a line that of its place.
pub(crate) static PLACES: [u64; WORDS_PER_LINE] =
    [1 << 56, 2 << 56, 3 << 56, 4 << 56, 5 << 56, 6 << 56, 7 << 56, 8 << 56];

/// Fills a value, whose length is a multiple of 8, so that it is that of the `n`th change and no other's.
#[inline(always)]
pub(crate) fn fill(value: &mut [u8], n: u64) {
    let (lines, rest) = value.as_chunks_mut::<8>().0.as_chunks_mut::<WORDS_PER_LINE>();
    for words in lines {
        fill_words(words, n);
    }
    fill_words(rest, n);
}

#[inline(always)]
fn fill_words(words: &mut [[u8; 8]], n: u64) {
    for (word, place) in words.iter_mut().zip(&PLACES) {
        *word = (n ^ place).to_ne_bytes();
    }
}

/// Which change's value this is.
///
/// # Panics
/// If it is a mixture, or of no change at all.
#[inline(always)]
pub(crate) fn verify(value: &[u8]) -> u64 {
    let n = u64::from_ne_bytes(value.as_chunks().0[0]) ^ PLACES[0];
    assert!(wrong_bits(value, n) == 0, "a value of change {n} is torn: {value:x?}");
    n
}

/// What is wrong with a value that should be that of the `n`th change: no bits if it is. For who verifies several before anything is done
/// about it.
#[inline(always)]
pub(crate) fn wrong_bits(value: &[u8], n: u64) -> u64 {
    let (words, behind) = value.as_chunks();
    let (lines, rest) = words.as_chunks::<WORDS_PER_LINE>();
    let mut wrong = differs(rest, n) | behind.len() as u64;
    for words in lines {
        wrong |= differs(words, n);
    }
    wrong
}

/// Bits that are wrong, of any word.
#[inline(always)]
fn differs(words: &[[u8; 8]], n: u64) -> u64 {
    words.iter().zip(&PLACES).fold(0, |wrong, (word, place)| wrong | (u64::from_ne_bytes(*word) ^ n ^ place))
}
