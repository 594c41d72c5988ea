//! The bytes of a region: where each word lies, and the header that says what it is.
//!
//! ```text
//!    0 ┌───────────────────────────────────────────────────────────────────────┐
//!      │ magic u64 │ version u32 │ kind u32 │ ring bytes u64 │ identity u64     │ once, magic last
//!  128 ├───────────────────────────────────────────────────────────────────────┤
//!      │ producer waits u64  of the ring that the creator produces into        │ around sleeps
//!      │ consumer waits u64  of the ring that the creator consumes from        │ around sleeps
//!  256 ├───────────────────────────────────────────────────────────────────────┤
//!      │ event               where the creator waits, with `wait-raw-sync` only │ around sleeps
//! 1024 ├───────────────────────────────────────────────────────────────────────┤
//!      │ head u64            of the ring that the creator consumes from        │ every batch
//!      │ start u64           where the ring below was last begun anew          │ when it was empty
//!      │ tail u64            of the ring below                                 │ every batch
//! 1048 ├───────────────────────────────────────────────────────────────────────┤
//!      │ data                of the ring that the creator produces into        │ every record
//!      └───────────────────────────────────────────────────────────────────────┘ padded to a page
//! ```
//!
//! Both regions of a link look like this, and only the creator writes either (but for the event): one ring's cursors
//! therefore lie in two regions. All integers have the host's byte order. Words that different threads poll at
//! different times are 128 bytes apart, since processors fetch cache lines in pairs.
//!
//! What a side tells its peer with a record lies together: the cursors and the first bytes of the data are one cache line. A ring that
//! has run empty is begun anew at its start, so records that come by themselves, if short, are in that line and the two behind it.

use nix::unistd::{SysconfVar, sysconf};

use crate::cpu_cache::LINE_BYTES;
use crate::ring::NEAR_BYTES;

/// What a region is, as agreed in the handshake and repeated in its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Which of a link's two regions it is.
    pub(crate) kind: Kind,
    /// The size of the data: a power of two, from [`MIN_RING_BYTES`] to [`MAX_RING_BYTES`].
    pub(crate) ring_bytes: u64,
    /// The creator's life: a source's epoch, a destination's incarnation.
    pub(crate) identity: u64,
}

/// Which of a link's two regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Created by the source: carries changes.
    Change = 1,
    /// Created by the destination: carries acks.
    Ack = 2,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Change => "1 (change region)",
            Kind::Ack => "2 (ack region)",
        })
    }
}

/// The header as it lies in memory, copied out once and not yet believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(super) struct RawHeader {
    pub(super) magic: u64,
    pub(super) version: u32,
    pub(super) kind: u32,
    pub(super) ring_bytes: u64,
    pub(super) identity: u64,
}

/// The shared words of a region: three of the ring that its creator produces into, two of the one it consumes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// How far the creator has written the ring that it produces into.
    Tail,
    /// Where it has last begun that ring anew.
    Start,
    /// How far it has read the ring that it consumes from.
    Head,
    /// Not 0 while it waits for room, as a producer.
    ProducerWaits,
    /// Not 0 while it waits for records, as a consumer.
    ConsumerWaits,
}

/// Where a word lies.
pub(super) const fn offset_of(word: Word) -> usize {
    match word {
        Word::Tail => TAIL,
        Word::Start => START,
        Word::Head => HEAD,
        Word::ProducerWaits => PRODUCER_WAITS,
        Word::ConsumerWaits => CONSUMER_WAITS,
    }
}

/// Whether a header, as it lies in memory, is one of that life, or what there was of it when its writer was killed. The magic is
/// written last; what goes before it is there in whatever part.
#[cfg(feature = "named-region")]
pub(super) fn is_of(header: &[u8; HEADER_BYTES], identity: u64) -> bool {
    let word = |at: usize| u64::from_ne_bytes(header[at..at + WORD_BYTES].try_into().expect("eight bytes"));
    let (magic, found) =
        (word(std::mem::offset_of!(RawHeader, magic)), word(std::mem::offset_of!(RawHeader, identity)));
    match magic {
        MAGIC => found == identity,
        0 => found == identity || found == 0,
        _ => false,
    }
}

/// Whether a ring may be that large.
pub(crate) fn is_ring_size(ring_bytes: u64) -> bool {
    ring_bytes.is_power_of_two() && (MIN_RING_BYTES..=MAX_RING_BYTES).contains(&ring_bytes)
}

/// The length of the region for a ring of an allowed size: a whole number of pages.
pub(crate) fn region_bytes(ring_bytes: u64) -> u64 {
    assert!(is_ring_size(ring_bytes), "ring_bytes {ring_bytes} was checked before");
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|bytes| u64::try_from(bytes).ok());
    in_pages(ring_bytes, page.expect("every Linux tells its page size"))
}

/// As [`region_bytes`], with pages of that size: 4 KiB, or 16 or 64 KiB on some hosts.
fn in_pages(ring_bytes: u64, page_bytes: u64) -> u64 {
    (DATA as u64 + ring_bytes).next_multiple_of(page_bytes)
}

/// `shmirror` on a little-endian host; anything else on a host of the other order.
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"shmirror");

/// Changes with every change of this file's picture.
pub(super) const LAYOUT_VERSION: u32 = 3;

/// The smallest ring: room for a few of the smallest records.
pub(crate) const MIN_RING_BYTES: u64 = 256;
/// The largest ring. Beyond it a slow destination is better served by the cache than by more memory.
pub(crate) const MAX_RING_BYTES: u64 = 1 << 30;

const FALSE_SHARING_BYTES: usize = 128;
const WORD_BYTES: usize = size_of::<u64>();

pub(super) const HEADER: usize = 0;
pub(super) const HEADER_BYTES: usize = size_of::<RawHeader>();
const PRODUCER_WAITS: usize = HEADER + FALSE_SHARING_BYTES;
const CONSUMER_WAITS: usize = PRODUCER_WAITS + WORD_BYTES;
/// Where the event lies at which a destination waits that waits through `raw_sync`; in its own region.
#[cfg(feature = "wait-raw-sync")]
pub(super) const EVENT: usize = 256;
#[cfg(feature = "wait-raw-sync")]
pub(super) const EVENT_BYTES: usize = HEAD - EVENT;
const HEAD: usize = 1024;
const START: usize = HEAD + WORD_BYTES;
const TAIL: usize = START + WORD_BYTES;
pub(super) const DATA: usize = TAIL + WORD_BYTES;

const _: () = assert!(HEADER_BYTES == 32);
const _: () = assert!(std::mem::offset_of!(RawHeader, magic) == 0);
const _: () = assert!(align_of::<RawHeader>() == 8);
const _: () = assert!(std::mem::offset_of!(RawHeader, version) == 8);
const _: () = assert!(std::mem::offset_of!(RawHeader, kind) == 12);
const _: () = assert!(std::mem::offset_of!(RawHeader, ring_bytes) == 16);
const _: () = assert!(std::mem::offset_of!(RawHeader, identity) == 24);
const _: () = assert!(HEADER + HEADER_BYTES <= PRODUCER_WAITS);
const _: () = assert!(PRODUCER_WAITS == 128 && CONSUMER_WAITS == 136);
const _: () = assert!(HEAD == 1024 && START == 1032 && TAIL == 1040 && DATA == 1048);
const _: () = assert!(HEAD.is_multiple_of(FALSE_SHARING_BYTES) && DATA.is_multiple_of(WORD_BYTES));
const _: () = assert!(
    DATA + NEAR_BYTES as usize == HEAD + 2 * LINE_BYTES,
    "what is near the ring's start is two lines"
);
const _: () = assert!(align_of::<std::sync::atomic::AtomicU64>() == WORD_BYTES, "the words are as far apart");
#[cfg(feature = "wait-raw-sync")]
const _: () = assert!(
    CONSUMER_WAITS + WORD_BYTES <= EVENT && EVENT < HEAD && EVENT.is_multiple_of(FALSE_SHARING_BYTES),
    "the event is apart from the words that are polled"
);
const _: () = assert!(MAX_RING_BYTES.is_power_of_two() && MIN_RING_BYTES.is_power_of_two());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(feature = "named-region")]
    fn header_is_of_a_life_in_whatever_part_it_was_written() {
        let (life, other) = (0x1122_3344_5566_7788, 0x99);
        let versioned = u64::from(LAYOUT_VERSION) | u64::from(Kind::Ack as u32) << 32;
        let bytes = |words: [u64; 4]| words.map(u64::to_ne_bytes).concat().try_into().unwrap();
        for written in 0..8u32 {
            let part = |at: u32, word: u64| if written & 1 << at == 0 { 0 } else { word };
            let header = bytes([0, part(0, versioned), part(1, 4096), part(2, life)]);
            assert!(is_of(&header, life), "{header:?}");
            let of_another = bytes([0, part(0, versioned), part(1, 4096), other]);
            assert!(!is_of(&of_another, life), "{of_another:?}");
        }
        assert!(is_of(&bytes([MAGIC, versioned, 4096, life]), life));
        assert!(!is_of(&bytes([MAGIC, versioned, 4096, other]), life));
        assert!(!is_of(&bytes([MAGIC, versioned, 4096, 0]), life), "what goes before the magic is all there");
        assert!(!is_of(&bytes([MAGIC + 1, versioned, 4096, life]), life));
    }

    #[test]
    fn ring_sizes_are_powers_of_two_within_bounds() {
        for good in [256, 4096, 1 << 20, 1 << 30] {
            assert!(is_ring_size(good), "{good}");
        }
        for bad in [0, 1, 128, 255, 257, 3000, (1 << 20) + 1, 1 << 31, u64::MAX] {
            assert!(!is_ring_size(bad), "{bad}");
        }
    }

    #[test]
    fn region_is_whole_pages_of_any_size_and_holds_header_and_data() {
        for page_bytes in [4096, 1 << 14, 1 << 16] {
            for ring_bytes in [MIN_RING_BYTES, 4096, 1 << 16, 1 << 20, MAX_RING_BYTES] {
                let bytes = in_pages(ring_bytes, page_bytes);
                let least = DATA as u64 + ring_bytes;
                assert!(bytes.is_multiple_of(page_bytes), "{ring_bytes} in {page_bytes}: {bytes}");
                assert!(
                    (least..least + page_bytes).contains(&bytes),
                    "{ring_bytes} in {page_bytes}: {bytes}"
                );
            }
        }
        assert_eq!(in_pages(4096, 4096), 8192);
        assert_eq!(in_pages(4096, 1 << 16), 1 << 16, "header and data may share one page");
    }

    #[test]
    fn region_is_whole_pages_of_this_host() {
        let page_bytes = sysconf(SysconfVar::PAGE_SIZE).unwrap().unwrap() as u64;
        for ring_bytes in [MIN_RING_BYTES, 4096, 1 << 16] {
            assert_eq!(region_bytes(ring_bytes), in_pages(ring_bytes, page_bytes));
        }
    }
}
