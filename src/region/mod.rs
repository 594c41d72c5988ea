//! The two regions of a link: memory that one side writes and the other can only read.
//!
//! How it works: a side makes its [`OwnRegion`], maps it writable, seals it so that nobody ever can again,
//! and passes the descriptor. The other side checks seals, length and allocation, maps it read-only as a
//! [`PeerRegion`], copies the header once and checks that against the handshake. [`layout`] has the picture.
//! A pair of them makes a [`ProducerMapping`](ring_memory::ProducerMapping) and a
//! [`ConsumerMapping`](ring_memory::ConsumerMapping), over which the rings run.
//!
//! Invariants:
//! 1. Offsets and sizes come from private memory only. After the header was checked nothing in a peer's
//!    region is believed: cursors are distances for the ring to check, data are bytes for the wire to check.
//! 2. No reference into shared memory is ever formed, except to an `AtomicU64` for the length of one access.
//! 3. Every mapping is as long as the file, whose length is sealed: no access faults.
//! 4. Words of a peer's region are read with Relaxed loads of 8 bytes, all that Rust guarantees on read-only
//!    memory; who needs more adds a fence.
//! 5. In a forked child nothing is mapped, and dropping a region there unmaps nothing. Whoever offers handles
//!    to the application checks [`Creator::is_here`] first.
//!
//! Who may write what: each word of a region is stored by its creator's process, the data by the one
//! [`ProducerMapping`](ring_memory::ProducerMapping) of the region ([`OwnRegion::claim_data`]).
//!
//! Where no descriptors can be passed, a region is a segment with a name (`named`, with the feature `named-region`).
//! Then nothing is sealed: of invariant 3 remains that the file was long enough once, and that a peer's region is mapped
//! read-only here.
//!
//! What it does not do: it does not publish. Data becomes visible by the ring's store to the tail, and its
//! partner's load.

#![allow(unsafe_code)]

#[cfg(feature = "wait-raw-sync")]
pub(crate) mod event;
pub(crate) mod layout;
#[cfg(feature = "named-region")]
pub(crate) mod named;
pub(crate) mod ring_memory;

use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, compiler_fence, fence};

use memmap2::{Advice, MmapOptions, MmapRaw};

use crate::cpu_cache::{LINE_BYTES, LineEviction, prefetch_line, prefetch_line_to_write};
use crate::ring::{RecordPieces, pieces_bytes};
use crate::sys::fork::{Creator, OwnFd};
use crate::sys::memfd;
#[cfg(feature = "named-region")]
use crate::sys::segment::{Segment, SegmentError};
use layout::{DATA, HEADER, HEADER_BYTES, Header, Kind, LAYOUT_VERSION, MAGIC, RawHeader, Word};

/// A region that this process made: it alone writes here.
#[derive(Debug)]
pub(crate) struct OwnRegion {
    map: Mapping,
    passed: Passed,
    /// Set once the data has its one writer.
    data_claimed: AtomicBool,
}

/// What the peer finds a region by.
#[derive(Debug)]
enum Passed {
    Descriptor(OwnFd),
    #[cfg(feature = "named-region")]
    Name(Segment),
}

/// A region that the peer made: it changes under us, and we cannot write to it.
#[derive(Debug)]
pub(crate) struct PeerRegion {
    map: Mapping,
}

/// Why a region could not be made or accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegionError {
    /// No ring can have this size.
    #[error(
        "ring_bytes is {found}, expected a power of two from {min} to {max}",
        min = layout::MIN_RING_BYTES, max = layout::MAX_RING_BYTES
    )]
    RingBytes {
        /// What was found.
        found: u64,
    },
    /// Our own memory could not be made.
    #[error(transparent)]
    Create(#[from] memfd::CreateError),
    /// The peer's memory cannot be trusted.
    #[error(transparent)]
    Check(#[from] memfd::CheckError),
    /// A segment could not be made, or the peer's cannot be trusted.
    #[cfg(feature = "named-region")]
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// The peer's memory is not a region, or not of a host like this one.
    #[error("the peer's region starts with {found:#018x}, expected {expected:#018x}")]
    Magic {
        /// What was found.
        found: u64,
        /// What was expected.
        expected: u64,
    },
    /// The peer was built with another layout.
    #[error(
        "the peer's region has layout version {found}, expected {expected}; \
         use the same version of shmirror on both sides"
    )]
    Version {
        /// What was found.
        found: u32,
        /// What was expected.
        expected: u32,
    },
    /// The peer passed the wrong one of a link's regions.
    #[error("the peer's region is of kind {found}, expected {expected}")]
    Kind {
        /// What was found.
        found: u32,
        /// What was expected.
        expected: Kind,
    },
    /// The header contradicts the handshake.
    #[error("the peer's region is for a ring of {found} bytes, expected {expected}")]
    RingSize {
        /// What was found.
        found: u64,
        /// What was expected.
        expected: u64,
    },
    /// The region belongs to another life of the peer.
    #[error("the peer's region has identity {found:#x}, expected {expected:#x}")]
    Identity {
        /// What was found.
        found: u64,
        /// What was expected.
        expected: u64,
    },
    /// A system call failed.
    #[error("{call} of a region failed: {source}")]
    Os {
        /// What was tried.
        call: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl OwnRegion {
    /// Makes a region: allocated, mapped, its pages present, its header written, sealed and ready to be
    /// passed.
    ///
    /// # Errors
    /// A size that no ring can have, or no memory, descriptors or address space for it.
    pub(crate) fn create(header: Header) -> Result<OwnRegion, RegionError> {
        if !layout::is_ring_size(header.ring_bytes) {
            return Err(RegionError::RingBytes { found: header.ring_bytes });
        }
        let len = layout::region_bytes(header.ring_bytes);
        let name = match header.kind {
            Kind::Change => c"shmirror-change",
            Kind::Ack => c"shmirror-ack",
        };
        let fd = OwnFd::new(memfd::create(name, len)?).map_err(os("registering"))?;
        let map = Mapping::new(fd.as_fd(), len, header.ring_bytes, Access::Write)?;
        memfd::seal_against_new_writers(fd.as_fd()).map_err(os("sealing"))?;
        let region = OwnRegion { map, passed: Passed::Descriptor(fd), data_claimed: AtomicBool::new(false) };
        region.write_header(header);
        Ok(region)
    }

    /// The descriptor to pass to the peer, which can only read through it.
    ///
    /// # Panics
    /// The region has a name instead.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        match &self.passed {
            Passed::Descriptor(fd) => fd.as_fd(),
            #[cfg(feature = "named-region")]
            Passed::Name(segment) => panic!("{segment:?} has no descriptor to pass"),
        }
    }

    #[inline]
    fn store(&self, word: Word, value: u64, order: Ordering) {
        self.word(word).store(value, order);
    }

    /// Makes the caller the one writer of the data.
    ///
    /// # Panics
    /// There is one already.
    fn claim_data(&self) {
        // Relaxed: it guards against a mistake and publishes nothing
        let claimed = self.data_claimed.swap(true, Ordering::Relaxed);
        assert!(!claimed, "a region's data has one writer, and it was claimed before");
    }

    /// Copies into the data.
    ///
    /// # Safety
    /// The caller is the one writer of the data ([`OwnRegion::claim_data`]), and does not write from two
    /// threads at once.
    #[inline]
    unsafe fn copy_in(&self, offset: usize, bytes: &[u8]) {
        let to = self.map.data(offset, bytes.len());
        // SAFETY: `data` checked that the target lies within the mapping, which is writable; private bytes
        // cannot overlap it; and no one else in this process touches the data, as the caller promises.
        unsafe { copy(bytes.as_ptr(), to, bytes.len()) }
    }

    /// Copies these into the data, one behind the other, after one look at whether all of them fit.
    ///
    /// # Safety
    /// As for [`OwnRegion::copy_in`].
    #[inline(always)]
    unsafe fn copy_in_record<const H: usize, const N: usize>(
        &self,
        offset: usize,
        header: [u8; 8],
        head: [[u8; 8]; H],
        pieces: [&[u8]; N],
    ) {
        let pieces_len = pieces.iter().map(|piece| piece.len()).sum::<usize>();
        let to = self.map.data(offset, size_of_val(&header) + size_of_val(&head) + pieces_len);
        // SAFETY: `data` checked that all of it lies within the mapping, which is writable; private bytes cannot overlap it; and
        // no one else in this process touches the data, as the caller promises.
        unsafe { copy_record(to, header, head, pieces) }
    }

    /// Copies records into the data, one behind the other, after one look at whether so many bytes fit. Answers how many they took.
    ///
    /// # Panics
    /// If that is more than `most`.
    ///
    /// # Safety
    /// As for [`OwnRegion::copy_in`].
    #[inline(always)]
    unsafe fn copy_in_records<'a, const H: usize, const N: usize>(
        &self,
        offset: usize,
        most: usize,
        records: impl Iterator<Item = RecordPieces<'a, H, N>>,
    ) -> usize {
        let start = self.map.data(offset, most);
        let mut copied = 0;
        for (header, head, pieces) in records {
            let bytes = pieces_bytes(head, pieces);
            assert!(bytes <= most - copied, "records take more than the {most} bytes that were said");
            // SAFETY: `copied` is at most `most`, and `data` checked that so many bytes lie within the mapping.
            let to = unsafe { start.add(copied) };
            // SAFETY: the assertion checked that all of it lies within those bytes. The mapping is writable; private bytes
            // cannot overlap it; and no one else in this process touches the data, as the caller promises.
            unsafe { copy_record(to, header, head, pieces) };
            copied += bytes;
        }
        copied
    }

    /// Has two cache lines of the data from `offset` brought near, to be written.
    #[inline]
    fn prefetch(&self, offset: usize) {
        let at = self.map.data(offset, 0);
        prefetch_line_to_write(at);
        prefetch_line_to_write(at.wrapping_add(LINE_BYTES));
    }

    #[inline]
    fn word(&self, word: Word) -> &AtomicU64 {
        let at = self.map.at(layout::offset_of(word));
        // SAFETY: in bounds and aligned by the layout's constants, mapped for as long as `self` lives, and
        // accessed by atomics only.
        unsafe { AtomicU64::from_ptr(at.cast()) }
    }

    fn write_header(&self, header: Header) {
        let raw = RawHeader {
            magic: 0,
            version: LAYOUT_VERSION,
            kind: header.kind as u32,
            ring_bytes: header.ring_bytes,
            identity: header.identity,
        };
        // SAFETY: the header lies within the mapping, which is writable and which nobody else knows yet.
        unsafe { ptr::write(self.map.at(HEADER).cast(), raw) };
        // SAFETY: in bounds and aligned, and from now on accessed by atomics or by the peer's copy.
        let magic = unsafe { AtomicU64::from_ptr(self.map.at(HEADER).cast()) };
        // Release: publishes the header; its partner is the fence in `PeerRegion::copy_header`
        magic.store(MAGIC, Ordering::Release);
    }
}

impl PeerRegion {
    /// Accepts the region that a peer passed, if it is what the handshake announced as `expected`.
    ///
    /// `max_ring_bytes` is what this side is willing to map.
    ///
    /// # Errors
    /// [`RegionError`], with what was found and what was expected. The descriptor is closed then.
    pub(crate) fn open(
        fd: OwnedFd,
        expected: Header,
        max_ring_bytes: u64,
    ) -> Result<PeerRegion, RegionError> {
        for size in [expected.ring_bytes, max_ring_bytes] {
            if !layout::is_ring_size(size) {
                return Err(RegionError::RingBytes { found: size });
            }
        }
        let len = layout::region_bytes(expected.ring_bytes);
        memfd::check(fd.as_fd(), len, layout::region_bytes(max_ring_bytes))?;
        let map = Mapping::new(fd.as_fd(), len, expected.ring_bytes, Access::Read)?;
        let region = PeerRegion { map };
        check_header(region.copy_header(), expected)?;
        Ok(region)
    }

    /// Reads a word, with a Relaxed load. A fence after it makes it an acquiring one.
    #[inline]
    fn load(&self, word: Word) -> u64 {
        let at = self.map.at(layout::offset_of(word));
        // SAFETY: in bounds and aligned by the layout's constants, and mapped; read-only memory allows
        // Relaxed loads of 8 bytes on 64-bit targets, and no other access is made.
        let word = unsafe { AtomicU64::from_ptr(at.cast()) };
        // Relaxed: all that read-only memory allows. ThreadSanitizer does not know the fence that completes it: only for that
        // an Acquire load stands in for both.
        word.load(if cfg!(shmirror_tsan) { Ordering::Acquire } else { Ordering::Relaxed })
    }

    /// Has two cache lines of the data from `offset` brought near.
    #[inline]
    pub(crate) fn prefetch(&self, offset: usize) {
        let at: *const u8 = self.map.data(offset, 0);
        prefetch_line(at);
        prefetch_line(at.wrapping_add(LINE_BYTES));
    }

    /// Has the cache line of the data at `offset` put back into memory.
    #[inline]
    pub(crate) fn evict(&self, eviction: LineEviction, offset: usize) {
        let at = self.map.data(offset, 1);
        // SAFETY: `data` checked that it lies within the mapping, which may be read.
        unsafe { eviction.evict(at) }
    }

    /// Copies out of the data: any bytes at all, if the peer misbehaves.
    #[inline]
    fn copy_out(&self, offset: usize, into: &mut [u8]) {
        let from = self.map.data(offset, into.len());
        // SAFETY: `data` checked that the source lies within the mapping; private bytes cannot overlap it.
        // Only a peer that breaks the protocol writes there meanwhile, and any byte is a value.
        unsafe { copy(from, into.as_mut_ptr(), into.len()) }
        // A peer that writes there meanwhile must not be looked at again in place of the copy.
        compiler_fence(Ordering::SeqCst);
    }

    fn copy_header(&self) -> RawHeader {
        // SAFETY: as in `load`.
        let magic = unsafe { AtomicU64::from_ptr(self.map.at(HEADER).cast()) };
        // Relaxed: the fence below completes it
        let magic = magic.load(Ordering::Relaxed);
        // Acquire: the rest of the header is at least as new as the magic; its partner is the store in
        // `OwnRegion::write_header`
        fence(Ordering::Acquire);
        let mut raw = RawHeader { magic: 0, version: 0, kind: 0, ring_bytes: 0, identity: 0 };
        let from = self.map.at(HEADER);
        // SAFETY: the header lies within the mapping, the target is private and as long, and any bytes are a
        // value.
        unsafe { ptr::copy_nonoverlapping(from, (&raw mut raw).cast(), HEADER_BYTES) };
        compiler_fence(Ordering::SeqCst); // as in `copy_out`
        RawHeader { magic, ..raw }
    }
}

/// Copies a record to shared memory, piece by piece.
///
/// # Safety
/// `to` is valid for writes of the header, the words and all pieces, and none of the pieces overlaps that.
#[inline(always)]
unsafe fn copy_record<const H: usize, const N: usize>(
    mut to: *mut u8,
    header: [u8; 8],
    head: [[u8; 8]; H],
    pieces: [&[u8]; N],
) {
    // SAFETY: as the caller promises.
    unsafe { to.cast::<[u8; 8]>().write(header) };
    // SAFETY: as the caller promises.
    to = unsafe { to.add(size_of_val(&header)) };
    // SAFETY: as the caller promises.
    unsafe { to.cast::<[[u8; 8]; H]>().write(head) };
    // SAFETY: as the caller promises.
    to = unsafe { to.add(size_of_val(&head)) };
    for piece in &pieces {
        // SAFETY: as the caller promises.
        unsafe { copy(piece.as_ptr(), to, piece.len()) };
        // SAFETY: at most the end of what the caller promises.
        to = unsafe { to.add(piece.len()) };
    }
}

/// Copies to or from shared memory; few bytes without a call.
///
/// # Safety
/// `from` is valid for reads of `len` bytes, `to` for writes of as many, and they do not overlap.
#[inline(always)]
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    if len > FEW_BYTES {
        // SAFETY: as the caller promises.
        return unsafe { ptr::copy_nonoverlapping(from, to, len) };
    }
    // What a piece of one size leaves over is copied with the last such piece of all, even if that repeats a few bytes.
    match len {
        16.. => {
            let mut at = 0;
            while at + 64 <= len {
                // SAFETY: within what the caller promises.
                unsafe { copy_pieces::<4>(from, to, at) };
                at += 64;
            }
            // These bits of the length say whether so many bytes are left.
            if len & 32 != 0 {
                // SAFETY: within what the caller promises.
                unsafe { copy_pieces::<2>(from, to, at) };
                at += 32;
            }
            if len & 16 != 0 {
                // SAFETY: within what the caller promises.
                unsafe { copy_pieces::<1>(from, to, at) };
                at += 16;
            }
            if at < len {
                // SAFETY: within what the caller promises.
                unsafe { copy_one::<[u8; 16]>(from, to, len - 16) };
            }
        }
        // SAFETY: as the caller promises, and there are 8 bytes at least.
        8.. => unsafe { copy_ends::<[u8; 8]>(from, to, len) },
        // SAFETY: as the caller promises, and there are 4 bytes at least.
        4.. => unsafe { copy_ends::<[u8; 4]>(from, to, len) },
        // SAFETY: as the caller promises, and there are 2 bytes at least.
        2.. => unsafe { copy_ends::<[u8; 2]>(from, to, len) },
        // SAFETY: within what the caller promises.
        1 => unsafe { copy_one::<u8>(from, to, 0) },
        0 => {}
    }
}

/// Copies `len` bytes that are one `T` to two long, with one at either end.
///
/// # Safety
/// As for [`copy`], and a `T` is no longer than `len`: else the last one would begin before the first.
#[inline(always)]
unsafe fn copy_ends<T>(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: within what the caller promises.
    unsafe { copy_one::<T>(from, to, 0) };
    // SAFETY: within what the caller promises.
    unsafe { copy_one::<T>(from, to, len - size_of::<T>()) };
}

/// Copies so many pieces of 16 bytes.
///
/// # Safety
/// As for [`copy`], `at` and the pieces behind it being within its bytes.
#[inline(always)]
unsafe fn copy_pieces<const PIECES: usize>(from: *const u8, to: *mut u8, at: usize) {
    for piece in 0..PIECES {
        // SAFETY: within what the caller promises.
        unsafe { copy_one::<[u8; 16]>(from, to, at + 16 * piece) };
    }
}

/// # Safety
/// As for [`copy`], `at` and a `T` behind it being within its bytes.
#[inline(always)]
unsafe fn copy_one<T>(from: *const u8, to: *mut u8, at: usize) {
    // SAFETY: within what the caller promises.
    let from = unsafe { from.add(at) };
    // SAFETY: within what the caller promises.
    let to = unsafe { to.add(at) };
    // SAFETY: as the caller promises.
    unsafe { ptr::copy_nonoverlapping(from, to, size_of::<T>()) };
    // Else the compiler makes a call of memcpy of the loop around this.
    compiler_fence(Ordering::SeqCst);
}

/// More bytes are worth a call.
const FEW_BYTES: usize = 256;

fn check_header(found: RawHeader, expected: Header) -> Result<(), RegionError> {
    if found.magic != MAGIC {
        return Err(RegionError::Magic { found: found.magic, expected: MAGIC });
    }
    if found.version != LAYOUT_VERSION {
        return Err(RegionError::Version { found: found.version, expected: LAYOUT_VERSION });
    }
    if found.kind != expected.kind as u32 {
        return Err(RegionError::Kind { found: found.kind, expected: expected.kind });
    }
    if found.ring_bytes != expected.ring_bytes {
        return Err(RegionError::RingSize { found: found.ring_bytes, expected: expected.ring_bytes });
    }
    if found.identity != expected.identity {
        return Err(RegionError::Identity { found: found.identity, expected: expected.identity });
    }
    Ok(())
}

/// A mapped region, and the private copy of its geometry.
struct Mapping {
    /// The first byte of `memory`.
    base: NonNull<u8>,
    ring_bytes: usize,
    creator: Creator,
    memory: ManuallyDrop<Memory>,
}

/// What keeps a mapping.
enum Memory {
    /// Of a memfd.
    Sealed(MmapRaw),
    /// Of a segment with a name.
    #[cfg(feature = "named-region")]
    Named(shared_memory::Shmem),
}

// SAFETY: the pointer, and those in `memory`, are to a mapping of the whole process that nothing moves.
unsafe impl Send for Mapping {}
// SAFETY: as above; what is done through `&Mapping` is atomic, or a copy whose caller answers for there being one writer.
unsafe impl Sync for Mapping {}

enum Access {
    Read,
    Write,
}

impl Mapping {
    /// Maps all `len` bytes, their pages present, absent in forked children. Their number was checked against
    /// the file.
    fn new(fd: BorrowedFd<'_>, len: u64, ring_bytes: u64, access: Access) -> Result<Mapping, RegionError> {
        let creator = Creator::here().map_err(os("registering"))?;
        let mut options = MmapOptions::new();
        options.len(len as usize).populate();
        let map = match access {
            Access::Read => options.map_raw_read_only(fd.as_raw_fd()),
            Access::Write => options.map_raw(fd.as_raw_fd()),
        };
        let map = map.map_err(os("mapping"))?;
        map.advise(Advice::DontFork).map_err(os("MADV_DONTFORK"))?;
        Ok(Mapping::over(map.as_mut_ptr(), len, ring_bytes, creator, Memory::Sealed(map)))
    }

    /// Over `len` mapped bytes from `base`, which `memory` keeps mapped.
    fn over(base: *mut u8, len: u64, ring_bytes: u64, creator: Creator, memory: Memory) -> Mapping {
        assert!(DATA as u64 + ring_bytes <= len, "the data lies within the mapping");
        let base = NonNull::new(base).expect("nothing is mapped at 0");
        Mapping { base, ring_bytes: ring_bytes as usize, creator, memory: ManuallyDrop::new(memory) }
    }

    /// A place in the words or the header, by one of the layout's constants.
    #[inline]
    fn at(&self, offset: usize) -> *mut u8 {
        debug_assert!(self.creator.is_here(), "a region was used in a forked child");
        debug_assert!(offset < DATA);
        // SAFETY: every mapping is longer than `DATA`, as `over` checked, and the layout's constants lie below
        // it.
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// A place in the data, with room for `len` bytes after it.
    #[inline]
    fn data(&self, offset: usize, len: usize) -> *mut u8 {
        debug_assert!(self.creator.is_here(), "a region was used in a forked child");
        let capacity = self.ring_bytes;
        if len > capacity || offset > capacity - len {
            does_not_lie_within(capacity, offset, len);
        }
        // SAFETY: `over` checked that `DATA` and `ring_bytes` after it lie within the mapping.
        unsafe { self.base.as_ptr().add(DATA + offset) }
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, len) = match &*self.memory {
            Memory::Sealed(map) => ("sealed", map.len()),
            #[cfg(feature = "named-region")]
            Memory::Named(shmem) => ("named", shmem.len()),
        };
        write!(f, "{kind} memory of {len} bytes")
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if !self.creator.is_this_process() {
            return; // not mapped here, and the address may be another's
        }
        // SAFETY: `drop` runs once, and nothing uses the field after it.
        unsafe { ManuallyDrop::drop(&mut self.memory) }
    }
}

#[cold]
#[inline(never)]
fn does_not_lie_within(capacity: usize, offset: usize, len: usize) -> ! {
    panic!("{len} bytes at {offset} do not lie within {capacity} bytes of data")
}

fn os(call: &'static str) -> impl FnOnce(io::Error) -> RegionError {
    move |source| RegionError::Os { call, source }
}

#[cfg(test)]
mod tests;
