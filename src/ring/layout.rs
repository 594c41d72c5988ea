//! Where records lie in the ring, and what their headers look like.
//!
//! Everything here is arithmetic on numbers that the caller vouches for; what comes from the peer is checked
//! by [`Consumer`](super::Consumer) and [`Producer`](super::Producer) first.

/// The smallest ring: its largest record has a header and eight bytes of payload.
pub(crate) const MIN_CAPACITY_BYTES: u64 = 64;

/// The largest ring: keeps every length well within the header's u32.
pub(crate) const MAX_CAPACITY_BYTES: u64 = 1 << 32;

/// Records begin at multiples of this, and so do all positions.
pub(crate) const RECORD_ALIGNMENT: u64 = 8;

/// The size of a record's header.
pub(crate) const HEADER_BYTES: u64 = 8;

/// The longest payload that fits a record in a ring of this capacity: a quarter of it, less the header.
#[inline]
pub(crate) const fn max_payload_bytes(capacity_bytes: u64) -> usize {
    ((capacity_bytes >> 2) - HEADER_BYTES) as usize
}

/// What a record with this much payload takes up in the ring: header, payload, and up to the next multiple of
/// 8.
#[inline]
pub(crate) const fn record_bytes(payload_bytes: usize) -> u64 {
    (HEADER_BYTES + payload_bytes as u64 + (RECORD_ALIGNMENT - 1)) & !(RECORD_ALIGNMENT - 1)
}

/// Behind so many bytes the producer looks whether the ring is empty and can begin anew: half of what the nearest cache of a
/// processor mostly has. See [`Geometry::until_cold`].
const HOT_BYTES: u64 = 16384;

/// A region's data begin in the middle of a cache line: so many bytes are in that and the next one.
pub(crate) const NEAR_BYTES: u64 = 104;

/// The private copy of the ring's capacity; nothing of the kind is ever read from shared memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    /// A power of two.
    capacity: u64,
    /// A power of two.
    hot_bytes: u64,
    /// A position whose place is the ring's first: where the ring was last begun anew.
    start: u64,
}

impl Geometry {
    /// # Panics
    ///
    /// If the capacity is no power of two or out of bounds: callers have validated it.
    pub(super) fn new(capacity: u64, position: u64) -> Self {
        assert!(
            capacity.is_power_of_two() && (MIN_CAPACITY_BYTES..=MAX_CAPACITY_BYTES).contains(&capacity),
            "ring capacity {capacity} is not a power of two from {MIN_CAPACITY_BYTES} to {MAX_CAPACITY_BYTES}"
        );
        assert!(is_aligned(position), "a ring cannot begin at {position}, which is no multiple of 8");
        Self { capacity, hot_bytes: HOT_BYTES, start: start_of(capacity, position) }
    }

    /// For models, whose rings are small.
    #[cfg(any(test, fuzzing))]
    pub(super) fn set_hot_bytes(&mut self, bytes: u64) {
        self.hot_bytes = bytes;
    }

    #[inline]
    pub(super) fn capacity(self) -> u64 {
        self.capacity
    }

    /// Where the ring was last begun anew.
    #[inline]
    pub(super) fn start(self) -> u64 {
        self.start
    }

    /// How many bytes there are from there to a position.
    #[inline]
    pub(super) fn since_start(self, position: u64) -> u64 {
        position.wrapping_sub(self.start)
    }

    /// From `position` on records lie at the ring's start. Nothing before it is in the ring any more.
    #[inline]
    pub(super) fn begin_anew(&mut self, position: u64) {
        self.start = position;
    }

    /// The place in the ring of a position.
    #[inline]
    fn place(self, position: u64) -> u64 {
        self.since_start(position) & (self.capacity - 1)
    }

    #[inline]
    pub(super) fn max_payload(self) -> usize {
        max_payload_bytes(self.capacity)
    }

    /// How many bytes there are from a position to the end of the hot ones.
    ///
    /// While the consumer keeps up, the same cache lines at the start of the ring serve again and again, and stay in the nearest
    /// caches of both sides: going round a large ring instead, a round trip took twice as long.
    #[inline]
    pub(super) fn until_cold(self, position: u64) -> u64 {
        self.hot_bytes.saturating_sub(self.place(position))
    }

    /// Whether what is written next shares a cache line with the ring's start, or lies in the line behind it.
    #[inline]
    pub(super) fn is_near_start(self, position: u64) -> bool {
        self.since_start(position) < NEAR_BYTES
    }

    /// Behind the hot ones it is looked so often whether the ring is empty: that costs a line of the peer's.
    #[inline]
    pub(super) fn bytes_between_looks(self) -> u64 {
        self.hot_bytes / 4
    }

    /// The place in the ring of a position, to index memory with.
    #[inline]
    pub(super) fn offset(self, position: u64) -> usize {
        self.place(position) as usize
    }

    /// How many bytes lie between a position and the end of the ring; never zero.
    #[inline]
    pub(super) fn to_end(self, position: u64) -> u64 {
        self.capacity - self.place(position)
    }

    /// As [`to_end`](Self::to_end), but no more than a record may have.
    #[inline]
    pub(super) fn in_one_piece(self, position: u64) -> u64 {
        self.to_end(position).min(self.capacity / 4)
    }
}

/// What the start word of a fresh ring holds that begins at `position`: its place is the first of the ring if that is a multiple of the
/// capacity.
#[inline]
pub(super) const fn start_of(capacity: u64, position: u64) -> u64 {
    position & !(capacity - 1)
}

/// Whether a position is one that a record can begin at.
#[inline]
pub(super) const fn is_aligned(position: u64) -> bool {
    position & (RECORD_ALIGNMENT - 1) == 0
}

/// The first eight bytes of a record, in the byte order of the host.
///
/// ```text
///  0        4        8
///  | length | kind   | payload ...
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// The payload's length in bytes; of padding, the distance from its header to the end of the ring.
    pub(super) length: u32,
    /// [`Header::RECORD`], [`Header::PADDING`], or a hostile peer's anything.
    pub(super) kind: u32,
}

impl Header {
    /// The payload is for the reader. Not zero, so that untouched memory is no record.
    pub(super) const RECORD: u32 = 1;
    /// There is nothing up to the end of the ring.
    pub(super) const PADDING: u32 = 2;

    /// The header of a record. `length` is at most `max_payload`, which fits a u32.
    #[inline]
    pub(super) fn record(length: usize) -> Self {
        Self { length: length as u32, kind: Self::RECORD }
    }

    /// The header of a padding record that takes up `bytes` in all, less than a quarter of the ring.
    #[inline]
    pub(super) fn padding(bytes: u64) -> Self {
        Self { length: (bytes - HEADER_BYTES) as u32, kind: Self::PADDING }
    }

    /// Put together in a register: two halves written to memory apart and read as one would have to wait there for all
    /// that was written before, see [`ProducerMemory::copy_in_record`](super::ProducerMemory::copy_in_record).
    #[inline]
    pub(super) fn to_bytes(self) -> [u8; HEADER_BYTES as usize] {
        let (length, kind) = (u64::from(self.length), u64::from(self.kind));
        let word = if cfg!(target_endian = "little") { length | kind << 32 } else { length << 32 | kind };
        word.to_ne_bytes()
    }

    #[inline]
    pub(super) fn from_bytes(bytes: [u8; HEADER_BYTES as usize]) -> Self {
        let [l0, l1, l2, l3, k0, k1, k2, k3] = bytes;
        Self { length: u32::from_ne_bytes([l0, l1, l2, l3]), kind: u32::from_ne_bytes([k0, k1, k2, k3]) }
    }
}

const _: () = assert!(size_of::<Header>() as u64 == HEADER_BYTES);
const _: () = assert!(MIN_CAPACITY_BYTES.is_power_of_two() && MAX_CAPACITY_BYTES.is_power_of_two());
const _: () = assert!(max_payload_bytes(MIN_CAPACITY_BYTES) as u64 == RECORD_ALIGNMENT);
const _: () = assert!(max_payload_bytes(MAX_CAPACITY_BYTES) as u64 <= u32::MAX as u64);
