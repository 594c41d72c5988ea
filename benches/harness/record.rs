//! Values that differ from each other and can be verified.

/// Fills a value, whose length is a multiple of 8, so that it is that of the `n`th change and no other's.
#[inline]
pub(crate) fn fill(value: &mut [u8], n: u64) {
    for (at, word) in value.as_chunks_mut().0.iter_mut().enumerate() {
        *word = (n ^ ((at as u64) << 56)).to_ne_bytes();
    }
}

/// Which change's value this is.
///
/// # Panics
/// If it is a mixture, or of no change at all.
#[inline]
pub(crate) fn verify(value: &[u8]) -> u64 {
    let n = u64::from_ne_bytes(value[..8].try_into().expect("eight bytes"));
    let mut wrong = 0;
    for (word, at) in value.chunks_exact(8).zip(0u64..) {
        wrong |= u64::from_ne_bytes(word.try_into().expect("eight bytes")) ^ n ^ (at << 56);
    }
    assert!(wrong == 0, "a value of change {n} is torn: {value:x?}");
    n
}
