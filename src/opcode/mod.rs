//! Opcodes: what identifies an item.
//!
//! An opcode is a short byte string made of one datum or of a group of data. Integers and addresses are written
//! big-endian with a fixed width (signed ones with the sign bit flipped), so that opcodes of one shape sort as their data
//! do. A string or byte string at the end of a group is written as it is; before other data it is closed by two zero
//! bytes, with each zero byte inside written as `00 ff`, so that `("ab", "c")` and `("a", "bc")` stay apart and the order
//! holds (the escape is that of the FoundationDB tuple layer,
//! <https://github.com/apple/foundationdb/blob/main/design/tuple.md>).
//!
//! An opcode carries no types: two processes that share a table agree on its shape, as they agree on its values.

mod inline;

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{Ipv4Addr, Ipv6Addr};

use inline::{INLINE_BYTES, Inline, Words, words_of};

/// Identifies an item within its table: up to 255 bytes, ordered, hashable, printable.
///
/// ```
/// use shmirror::{Opcode, ToOpcode};
///
/// let route = (254u32, "10.0.0.0/8").to_opcode()?;
/// assert_eq!(route.decode::<(u32, String)>()?, (254, "10.0.0.0/8".to_string()));
/// assert_eq!(route.to_string(), "000000fe\"10.0.0.0/8\"");
/// assert!(route < (254u32, "10.1.0.0/16").to_opcode()?);
/// # Ok::<(), shmirror::OpcodeError>(())
/// ```
#[derive(Clone)]
pub struct Opcode(Bytes);

/// An opcode has one form: inline if it fits. So two of different forms differ, and two inline ones are compared without a
/// loop.
#[derive(Clone)]
enum Bytes {
    Inline(Inline),
    Heap(Box<[u8]>),
}

const _: () = assert!(size_of::<Opcode>() == 24);

impl Opcode {
    /// The longest opcode, in bytes.
    pub const MAX_BYTES: usize = 255;

    /// An opcode of just these bytes, 0 to 255 of them.
    ///
    /// # Errors
    /// [`OpcodeError::TooLong`].
    #[inline]
    pub fn from_bytes(bytes: &[u8]) -> Result<Opcode, OpcodeError> {
        if bytes.len() > Self::MAX_BYTES {
            return Err(OpcodeError::TooLong { bytes: bytes.len() });
        }
        Ok(Opcode::from_checked(bytes))
    }

    /// As [`from_bytes`](Self::from_bytes), of bytes that are at most 255.
    #[inline(always)]
    pub(crate) fn from_checked(bytes: &[u8]) -> Opcode {
        Opcode(match bytes.len() {
            length @ ..=INLINE_BYTES => Bytes::Inline(Inline::new(words_of(bytes), length)),
            _ => Bytes::Heap(bytes.into()),
        })
    }

    /// The bytes.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Bytes::Inline(inline) => inline.as_bytes(),
            Bytes::Heap(bytes) => bytes,
        }
    }

    /// All that an opcode is, in words, unless it is too long for them.
    #[inline]
    pub(crate) fn words(&self) -> Option<Words> {
        let Bytes::Inline(inline) = &self.0 else { return None };
        Some(inline.words())
    }

    /// The data that the opcode was made of, given their types.
    ///
    /// # Errors
    /// [`OpcodeError::Shape`] if the bytes are not of that shape.
    pub fn decode<T: FromOpcode>(&self) -> Result<T, OpcodeError> {
        let mut rest = self.as_bytes();
        match T::take(&mut rest, true) {
            Some(data) if rest.is_empty() => Ok(data),
            _ => Err(OpcodeError::Shape { opcode: self.clone(), expected: std::any::type_name::<T>() }),
        }
    }
}

impl PartialEq for Opcode {
    #[inline(always)]
    fn eq(&self, other: &Opcode) -> bool {
        match (self.words(), other.words()) {
            (Some([a, b, c]), Some([d, e, f])) => (a ^ d) | (b ^ e) | (c ^ f) == 0,
            _ => self.as_bytes() == other.as_bytes(),
        }
    }
}

impl Eq for Opcode {}

impl PartialOrd for Opcode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Opcode {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl Hash for Opcode {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl AsRef<[u8]> for Opcode {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl Borrow<[u8]> for Opcode {
    fn borrow(&self) -> &[u8] {
        self.as_bytes()
    }
}

/// Text where it is text, hexadecimal where it is not: an opcode of printable characters alone is shown as it is, else
/// runs of four and more are quoted.
impl fmt::Display for Opcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHORTEST_QUOTED: usize = 4;
        let printable = |byte: &u8| (0x20..0x7f).contains(byte);
        let mut rest = self.as_bytes();
        if !rest.is_empty() && rest.iter().all(printable) {
            return rest.iter().try_for_each(|&byte| fmt::Write::write_char(f, byte.into()));
        }
        while let [first, tail @ ..] = rest {
            let run = rest.iter().take_while(|byte| printable(byte)).count();
            if run >= SHORTEST_QUOTED {
                let (text, after) = rest.split_at(run);
                write!(f, "\"{}\"", text.escape_ascii())?;
                rest = after;
            } else {
                write!(f, "{first:02x}")?;
                rest = tail;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Opcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Opcode({self})")
    }
}

/// What is wrong with an opcode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpcodeError {
    /// Longer than [`Opcode::MAX_BYTES`].
    #[error("opcode of {bytes} bytes is longer than the largest, {max} bytes", max = Opcode::MAX_BYTES)]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Not made of the data that it was decoded as.
    #[error("opcode {opcode} is not of the shape {expected}")]
    Shape {
        /// The opcode.
        opcode: Opcode,
        /// The Rust type asked for.
        expected: &'static str,
    },
}

/// One datum, or a group of data, that can be made into an [`Opcode`].
pub trait ToOpcode {
    /// Appends the datum; `last` says that nothing follows it.
    fn append(&self, to: &mut OpcodeWriter, last: bool);

    /// The opcode.
    ///
    /// # Errors
    /// [`OpcodeError::TooLong`].
    #[inline]
    fn to_opcode(&self) -> Result<Opcode, OpcodeError> {
        let mut writer = OpcodeWriter::new();
        self.append(&mut writer, true);
        writer.finish()
    }
}

/// Data that can be read back from an [`Opcode`].
pub trait FromOpcode: Sized {
    /// Takes the datum off the front of `rest`; `last` says that nothing follows it.
    fn take(rest: &mut &[u8], last: bool) -> Option<Self>;
}

/// Collects an opcode's bytes, and counts those that are too many.
#[derive(Debug)]
pub struct OpcodeWriter {
    /// The bytes so far, as long as they fit.
    words: Words,
    /// All bytes, if there are too many for the words. They lie here until their number is known, so that there is one allocation.
    spilled: Option<[u8; Opcode::MAX_BYTES]>,
    length: usize,
}

impl OpcodeWriter {
    #[inline]
    fn new() -> OpcodeWriter {
        OpcodeWriter { words: [0; 3], spilled: None, length: 0 }
    }

    /// Appends bytes as they are.
    #[inline]
    pub fn put(&mut self, bytes: &[u8]) {
        let start = self.length;
        self.length += bytes.len();
        if self.length > INLINE_BYTES {
            return self.spill(start, bytes);
        }
        let (at, shift) = (start / 8, start % 8 * 8);
        for (word, at) in words_of(bytes).into_iter().zip(at..) {
            if let Some(here) = self.words.get_mut(at) {
                *here |= word << shift;
            }
            // What does not fit there; nothing if there is no shift.
            if let Some(next) = self.words.get_mut(at + 1) {
                *next |= word >> 1 >> (63 - shift);
            }
        }
    }

    #[cold]
    fn spill(&mut self, start: usize, bytes: &[u8]) {
        if self.length > Opcode::MAX_BYTES {
            return;
        }
        let spilled = self.spilled.get_or_insert_with(|| {
            let mut spilled = [0; Opcode::MAX_BYTES];
            spilled[..start].copy_from_slice(&self.words.map(u64::to_le_bytes).as_flattened()[..start]);
            spilled
        });
        spilled[start..self.length].copy_from_slice(bytes);
    }

    #[inline]
    fn finish(&self) -> Result<Opcode, OpcodeError> {
        let length = self.length;
        match &self.spilled {
            _ if length > Opcode::MAX_BYTES => Err(OpcodeError::TooLong { bytes: length }),
            None => Ok(Opcode(Bytes::Inline(Inline::new(self.words, length)))),
            Some(spilled) => Ok(Opcode(Bytes::Heap(spilled[..length].into()))),
        }
    }

    /// Appends bytes of any length: as they are if last, else escaped and closed.
    pub fn put_string(&mut self, bytes: &[u8], last: bool) {
        if last {
            return self.put(bytes);
        }
        // All are looked at, without a branch: several at a time.
        if bytes.iter().fold(false, |has_zero, &byte| has_zero | (byte == 0)) {
            self.put_escaped(bytes);
        } else {
            self.put(bytes);
        }
        self.put(&[0, 0]);
    }

    #[cold]
    fn put_escaped(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|&byte| byte == 0) {
            self.put(part);
            if part.ends_with(&[0]) {
                self.put(&[0xff]);
            }
        }
    }
}

/// The counterpart of [`OpcodeWriter::put_string`].
fn take_string(rest: &mut &[u8], last: bool) -> Option<Vec<u8>> {
    if last {
        return Some(std::mem::take(rest).to_vec());
    }
    let mut out = Vec::new();
    loop {
        let zero = rest.iter().position(|&byte| byte == 0)?;
        out.extend_from_slice(&rest[..zero]);
        let escape = *rest.get(zero + 1)?;
        *rest = &rest[zero + 2..];
        match escape {
            0xff => out.push(0),
            0 => return Some(out),
            _ => return None,
        }
    }
}

fn take_array<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (array, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*array)
}

macro_rules! integers {
    ($($int:ty, $unsigned:ty);*) => {$(
        impl ToOpcode for $int {
            #[inline]
            fn append(&self, to: &mut OpcodeWriter, _last: bool) {
                const FLIP: $unsigned = (<$int>::MIN as $unsigned);
                to.put(&(*self as $unsigned ^ FLIP).to_be_bytes());
            }
        }
        impl FromOpcode for $int {
            fn take(rest: &mut &[u8], _last: bool) -> Option<Self> {
                const FLIP: $unsigned = (<$int>::MIN as $unsigned);
                Some((<$unsigned>::from_be_bytes(take_array(rest)?) ^ FLIP) as $int)
            }
        }
    )*};
}
integers!(u8, u8; u16, u16; u32, u32; u64, u64; u128, u128; i8, u8; i16, u16; i32, u32; i64, u64; i128, u128);

impl ToOpcode for [u8] {
    fn append(&self, to: &mut OpcodeWriter, last: bool) {
        to.put_string(self, last);
    }
}

impl ToOpcode for Vec<u8> {
    fn append(&self, to: &mut OpcodeWriter, last: bool) {
        to.put_string(self, last);
    }
}

impl FromOpcode for Vec<u8> {
    fn take(rest: &mut &[u8], last: bool) -> Option<Self> {
        take_string(rest, last)
    }
}

impl ToOpcode for str {
    fn append(&self, to: &mut OpcodeWriter, last: bool) {
        to.put_string(self.as_bytes(), last);
    }
}

impl ToOpcode for String {
    fn append(&self, to: &mut OpcodeWriter, last: bool) {
        to.put_string(self.as_bytes(), last);
    }
}

impl FromOpcode for String {
    fn take(rest: &mut &[u8], last: bool) -> Option<Self> {
        String::from_utf8(take_string(rest, last)?).ok()
    }
}

/// A fixed number of bytes, as they are wherever they stand.
impl<const N: usize> ToOpcode for [u8; N] {
    fn append(&self, to: &mut OpcodeWriter, _last: bool) {
        to.put(self);
    }
}

impl<const N: usize> FromOpcode for [u8; N] {
    fn take(rest: &mut &[u8], _last: bool) -> Option<Self> {
        take_array(rest)
    }
}

impl ToOpcode for Ipv4Addr {
    fn append(&self, to: &mut OpcodeWriter, _last: bool) {
        to.put(&self.octets());
    }
}

impl FromOpcode for Ipv4Addr {
    fn take(rest: &mut &[u8], _last: bool) -> Option<Self> {
        take_array::<4>(rest).map(Ipv4Addr::from)
    }
}

impl ToOpcode for Ipv6Addr {
    fn append(&self, to: &mut OpcodeWriter, _last: bool) {
        to.put(&self.octets());
    }
}

impl FromOpcode for Ipv6Addr {
    fn take(rest: &mut &[u8], _last: bool) -> Option<Self> {
        take_array::<16>(rest).map(Ipv6Addr::from)
    }
}

/// An opcode of an opcode is itself; inside a group it is a byte string.
impl ToOpcode for Opcode {
    fn append(&self, to: &mut OpcodeWriter, last: bool) {
        to.put_string(self.as_bytes(), last);
    }
}

impl<T: ToOpcode + ?Sized> ToOpcode for &T {
    #[inline]
    fn append(&self, to: &mut OpcodeWriter, last: bool) {
        (**self).append(to, last);
    }
}

macro_rules! groups {
    ($($($before:ident)* + $end:ident;)*) => {$(
        impl<$($before: ToOpcode,)* $end: ToOpcode> ToOpcode for ($($before,)* $end,) {
            #[inline]
            #[allow(non_snake_case)]
            fn append(&self, to: &mut OpcodeWriter, last: bool) {
                let ($($before,)* $end,) = self;
                $($before.append(to, false);)*
                $end.append(to, last);
            }
        }
        impl<$($before: FromOpcode,)* $end: FromOpcode> FromOpcode for ($($before,)* $end,) {
            fn take(rest: &mut &[u8], last: bool) -> Option<Self> {
                Some(($($before::take(rest, false)?,)* $end::take(rest, last)?,))
            }
        }
    )*};
}
groups! {
    + A;
    A + B;
    A B + C;
    A B C + D;
    A B C D + E;
    A B C D E + F;
    A B C D E F + G;
    A B C D E F G + H;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opcode(data: impl ToOpcode) -> Opcode {
        data.to_opcode().unwrap()
    }

    #[test]
    fn groups_come_back_as_they_went_in() {
        let group = (7u8, "a\0b", -5i64, vec![0u8, 0, 255], Ipv4Addr::new(10, 0, 0, 1), "");
        let back: (u8, String, i64, Vec<u8>, Ipv4Addr, String) = opcode(group.clone()).decode().unwrap();
        assert_eq!(back, (7, "a\0b".into(), -5, vec![0, 0, 255], Ipv4Addr::new(10, 0, 0, 1), String::new()));
    }

    #[test]
    fn groups_of_long_strings_come_back_as_they_went_in() {
        for zero_at in 0..=60 {
            let mut text = "x".repeat(60);
            text.insert(zero_at, '\0');
            let group = (text, 7u8, "y".repeat(100));
            assert_eq!(opcode(group.clone()).decode(), Ok(group));
        }
    }

    #[test]
    fn addresses_and_arrays_come_back_wherever_they_stand() {
        let group = ([7u8, 0, 9], Ipv6Addr::LOCALHOST, [1u8; 2]);
        assert_eq!(opcode(group).as_bytes().len(), 3 + 16 + 2);
        assert_eq!(opcode(group).decode(), Ok(group));
    }

    #[test]
    fn bytes_of_any_pieces_are_the_pieces_one_behind_the_other() {
        let mut rng = fastrand::Rng::with_seed(3);
        for _ in 0..20_000 {
            let pieces: Vec<Vec<u8>> =
                (0..rng.usize(0..6)).map(|_| (0..rng.usize(0..30)).map(|_| rng.u8(..)).collect()).collect();
            let bytes = pieces.concat();
            let mut writer = OpcodeWriter::new();
            pieces.iter().for_each(|piece| writer.put(piece));
            let written = writer.finish().unwrap();
            assert_eq!(written.as_bytes(), bytes);
            assert_eq!(written, Opcode::from_bytes(&bytes).unwrap());
            let other = rng.usize(0..=bytes.len());
            let mut others = bytes.clone();
            match others.get_mut(other) {
                Some(byte) => *byte ^= 1 << rng.u8(0..8),
                // the same, and a zero
                None => others.push(0),
            }
            assert_ne!(written, Opcode::from_bytes(&others).unwrap(), "{bytes:x?} and {others:x?}");
        }
    }

    #[test]
    fn short_opcode_begins_with_its_bytes() {
        for opcode in [opcode(7u8), opcode("x".repeat(INLINE_BYTES))] {
            let start = std::ptr::from_ref(&opcode).cast::<u8>();
            assert_eq!(opcode.as_bytes().as_ptr(), start, "else its words lie across multiples of 8 bytes");
        }
    }

    #[test]
    fn map_of_opcodes_is_asked_by_their_bytes() {
        let map = std::collections::BTreeMap::from([(opcode("a"), 1), (opcode(7u16), 2)]);
        assert_eq!(
            (map.get(&b"a"[..]), map.get(&[0, 7][..]), map.get(&b"b"[..])),
            (Some(&1), Some(&2), None)
        );
    }

    #[test]
    fn groups_of_strings_stay_apart_where_their_bytes_would_join() {
        assert_ne!(opcode(("ab", "c")), opcode(("a", "bc")));
        assert_ne!(opcode(("a\0", "b")), opcode(("a", "\0b")));
    }

    #[test]
    fn opcodes_sort_as_their_data_do() {
        let numbers = [i32::MIN, -70_000, -1, 0, 1, 255, 256, i32::MAX];
        assert!(numbers.map(opcode).is_sorted());
        let groups = [("a", 2u8), ("a", 3), ("a\0", 1), ("a\0b", 0), ("ab", 0), ("b", 0)];
        assert!(groups.map(opcode).is_sorted());
    }

    #[test]
    fn an_opcode_of_255_bytes_is_the_longest() {
        assert_eq!(opcode("x".repeat(255)).as_bytes().len(), 255);
        let error = "x".repeat(256).to_opcode().unwrap_err();
        assert_eq!(error.to_string(), "opcode of 256 bytes is longer than the largest, 255 bytes");
        assert!(Opcode::from_bytes(&[0; 256]).is_err());
        assert_eq!((1u64, "x".repeat(400)).to_opcode(), Err(OpcodeError::TooLong { bytes: 408 }));
    }

    #[test]
    fn text_is_shown_as_text_and_the_rest_as_hexadecimal() {
        assert_eq!(opcode("eth0").to_string(), "eth0");
        assert_eq!(opcode((1u16, "10.0.0.0/8")).to_string(), "0001\"10.0.0.0/8\"");
        assert_eq!(opcode(("vrf-a", 1u8)).to_string(), "\"vrf-a\"000001");
        assert_eq!(opcode("").to_string(), "");
    }

    #[test]
    fn decoding_another_shape_is_an_error() {
        assert!(opcode(1u32).decode::<u64>().is_err());
        assert!(opcode(1u64).decode::<u32>().is_err());
        assert!(opcode([0xffu8, 0xfe]).decode::<String>().is_err());
        assert!(opcode([1u8, 0, 7]).decode::<(String, u8)>().is_err());
    }
}
