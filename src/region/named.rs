//! Regions that are segments with a name, for peers to which no descriptors can be passed.
//!
//! They have the layout of all regions, and the header is checked in the same way. What differs is what the kernel sees
//! to: see [`segment`]. A peer's region is mapped writable by the crate that maps it, and made
//! read-only at once, so that a mistake of ours cannot reach it; unless it holds the event at which its maker waits.

use std::ffi::c_void;
use std::io;
use std::sync::atomic::AtomicBool;

use shared_memory::Shmem;

use super::layout::{self, Header};
use super::{Mapping, Memory, OwnRegion, Passed, PeerRegion, RegionError, check_header, os};
use crate::sys::fork::Creator;
use crate::sys::segment::{self, Segment};

impl OwnRegion {
    /// As [`OwnRegion::create`], under a name; the [number](OwnRegion::segment) is what the peer must be told.
    ///
    /// # Errors
    /// A size that no ring can have, or no room for it.
    pub(crate) fn create_named(header: Header) -> Result<OwnRegion, RegionError> {
        if !layout::is_ring_size(header.ring_bytes) {
            return Err(RegionError::RingBytes { found: header.ring_bytes });
        }
        let len = layout::region_bytes(header.ring_bytes);
        let (segment, shmem) = Segment::create(header.identity, len)?;
        let map = Mapping::of_segment(shmem, len, header.ring_bytes, libc::MADV_POPULATE_WRITE)?;
        let region = OwnRegion { map, passed: Passed::Name(segment), data_claimed: AtomicBool::new(false) };
        region.write_header(header);
        Ok(region)
    }

    /// The number that completes the region's name; `None` if it has a descriptor instead.
    pub(crate) fn segment(&self) -> Option<u64> {
        match &self.passed {
            Passed::Descriptor(_) => None,
            Passed::Name(segment) => Some(segment.number()),
        }
    }
}

impl PeerRegion {
    /// As [`PeerRegion::open`], by the number of the segment that the peer made. Its name is removed then.
    ///
    /// With `writable`, it stays so: its maker waits at an event in it.
    ///
    /// # Errors
    /// [`RegionError`], with what was found and what was expected. The name stays.
    pub(crate) fn open_named(
        number: u64,
        expected: Header,
        max_ring_bytes: u64,
        writable: bool,
    ) -> Result<PeerRegion, RegionError> {
        for size in [expected.ring_bytes, max_ring_bytes] {
            if !layout::is_ring_size(size) {
                return Err(RegionError::RingBytes { found: size });
            }
        }
        let len = layout::region_bytes(expected.ring_bytes);
        let max = layout::region_bytes(max_ring_bytes);
        let (opened, shmem) = segment::open(expected.identity, number, len, max)?;
        let map = Mapping::of_segment(shmem, len, expected.ring_bytes, libc::MADV_POPULATE_READ)?;
        if !writable {
            map.protect(len)?;
        }
        let region = PeerRegion { map };
        check_header(region.copy_header(), expected)?;
        opened.unlink();
        Ok(region)
    }
}

/// Removes what a life of a source or destination that is over has left of its regions.
///
/// # Errors
/// The directory of segments cannot be read.
pub(crate) fn reclaim(identity: u64) -> io::Result<()> {
    segment::reclaim(identity, |header| layout::is_of(header, identity))
}

impl Mapping {
    /// Takes a segment's mapping over: its pages present, absent in forked children.
    fn of_segment(shmem: Shmem, len: u64, ring_bytes: u64, populate: i32) -> Result<Mapping, RegionError> {
        let creator = Creator::here().map_err(os("registering"))?;
        let base = shmem.as_ptr();
        let map = Mapping::over(base, len, ring_bytes, creator, Memory::Named(shmem));
        map.advise(len, libc::MADV_DONTFORK).map_err(os("MADV_DONTFORK"))?;
        match map.advise(len, populate) {
            Ok(()) => Ok(map),
            // before Linux 5.14: the pages are there, as was checked, and come when they are touched
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(map),
            // where touching it would have been SIGBUS
            Err(error) => Err(os("populating the mapping")(error)),
        }
    }

    fn advise(&self, len: u64, advice: i32) -> io::Result<()> {
        let base: *mut c_void = self.base.as_ptr().cast();
        // SAFETY: of the mapping that `self` keeps, whose length is `len`; none of the advices here unmaps or changes it.
        let outcome = unsafe { libc::madvise(base, len as usize, advice) };
        if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// From now on nothing in this process can write there.
    fn protect(&self, len: u64) -> Result<(), RegionError> {
        let base: *mut c_void = self.base.as_ptr().cast();
        // SAFETY: of the mapping that `self` keeps, whose length is `len`; a peer's region is never written here.
        let outcome = unsafe { libc::mprotect(base, len as usize, libc::PROT_READ) };
        if outcome == 0 { Ok(()) } else { Err(os("mprotect")(io::Error::last_os_error())) }
    }
}

const _: () = assert!(segment::HEADER_BYTES == layout::HEADER_BYTES, "what is read of a file is the header");

#[cfg(test)]
#[path = "named_tests.rs"]
mod tests;
