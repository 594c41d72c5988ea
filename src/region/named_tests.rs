//! Tests of regions with names: the header's checks, who can write, what a fork leaves, reclaiming.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::*;
use crate::region::layout::{Kind, RawHeader, Word};
use crate::region::ring_memory::{ConsumerMapping, ProducerMapping};
use crate::ring::tests::arrive_when_both_sides_sleep;
use crate::ring::{Consumer, Producer};
use crate::sys::process::random_u64;
use crate::sys::test_process::{alone, forked};

const RING_BYTES: u64 = 1 << 16;

fn header(kind: Kind) -> Header {
    Header { kind, ring_bytes: RING_BYTES, identity: random_u64().unwrap() }
}

fn seen(own: &OwnRegion, header: Header) -> PeerRegion {
    PeerRegion::open_named(own.segment().unwrap(), header, 1 << 20, false).unwrap()
}

/// The memories of both sides of one ring.
fn ring() -> (ProducerMapping, ConsumerMapping) {
    let (change, ack) = (header(Kind::Change), header(Kind::Ack));
    let (own_change, own_ack) =
        (Arc::new(OwnRegion::create_named(change).unwrap()), Arc::new(OwnRegion::create_named(ack).unwrap()));
    let (change_seen, ack_seen) = (Arc::new(seen(&own_change, change)), Arc::new(seen(&own_ack, ack)));
    (ProducerMapping::new(own_change, ack_seen), ConsumerMapping::new(own_ack, change_seen))
}

fn names_of(identity: u64) -> usize {
    let names = std::fs::read_dir("/dev/shm").unwrap().map(|entry| entry.unwrap().file_name());
    let part = format!("{identity:016x}");
    names.filter(|name| name.to_string_lossy().contains(&part)).count()
}

#[test]
fn records_of_random_sizes_arrive_through_segments_when_both_sides_sleep() {
    let (producer, consumer) = ring();
    let (producer, consumer) = (Producer::new(producer, RING_BYTES), Consumer::new(consumer, RING_BYTES));
    arrive_when_both_sides_sleep(producer, consumer, RING_BYTES);
}

#[test]
fn header_that_says_something_else_is_refused_and_the_name_stays() {
    let expected = header(Kind::Change);
    let own = OwnRegion::create_named(expected).unwrap();
    let refusal = |expected: Header| {
        let outcome = PeerRegion::open_named(own.segment().unwrap(), expected, 1 << 20, false);
        outcome.map(drop).unwrap_err().to_string()
    };
    assert_eq!(
        refusal(Header { kind: Kind::Ack, ..expected }),
        "the peer's region is of kind 1, expected 2 (ack region)"
    );
    let at: *mut RawHeader = own.map.at(layout::HEADER).cast();
    // SAFETY: the maker's mapping is writable, and nobody else has the region.
    unsafe { (*at).identity = 7 };
    let text = refusal(expected);
    assert_eq!(text, format!("the peer's region has identity 0x7, expected {:#x}", expected.identity));
    // SAFETY: as above.
    unsafe { (*at).magic = 0 };
    let text = refusal(expected);
    assert!(text.starts_with("the peer's region starts with 0x0000000000000000, expected 0x"), "{text}");
    assert_eq!(names_of(expected.identity), 1);
    drop(own);
    assert_eq!(names_of(expected.identity), 0);
}

#[test]
fn region_is_sized_as_the_greeting_says_and_within_bounds() {
    let expected = header(Kind::Change);
    let own = OwnRegion::create_named(expected).unwrap();
    let text = PeerRegion::open_named(own.segment().unwrap(), expected, 4096, false);
    let text = text.map(drop).unwrap_err().to_string();
    assert!(text.ends_with("is 69632 bytes long, expected at most 8192"), "{text}");
    let odd = Header { ring_bytes: 1000, ..expected };
    assert!(matches!(OwnRegion::create_named(odd), Err(RegionError::RingBytes { found: 1000 })));
}

#[test]
fn mistake_of_ours_cannot_write_to_a_peers_region() {
    alone("region::named::tests::mistake_of_ours_cannot_write_to_a_peers_region", || {
        let expected = header(Kind::Change);
        let own = OwnRegion::create_named(expected).unwrap();
        let peer = seen(&own, expected);
        own.store(Word::Tail, 42, Relaxed);
        assert_eq!(peer.load(Word::Tail), 42);
        let pages = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line =
            pages.lines().find(|line| line.starts_with(&format!("{:x}-", peer.map.base.as_ptr() as usize)));
        let line = line.unwrap_or_else(|| panic!("it is not in\n{pages}"));
        assert!(line.contains(" r--s "), "{line}");
    });
}

#[test]
fn regions_are_absent_in_a_forked_child_whose_drop_leaves_the_address_alone() {
    alone(
        "region::named::tests::regions_are_absent_in_a_forked_child_whose_drop_leaves_the_address_alone",
        || {
            let expected = header(Kind::Change);
            let own = OwnRegion::create_named(expected).unwrap();
            let at: *mut c_void = own.map.base.as_ptr().cast();
            let mut own = Some(own);
            let outcome = forked(|| {
                // SAFETY: at an address that is free here if the region is absent, and else fails.
                let mapped = unsafe {
                    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
                    libc::mmap(at, 4096, libc::PROT_READ, flags, -1, 0)
                };
                if mapped != at {
                    return false;
                }
                drop(own.take());
                // SAFETY: asks about our own page.
                let is_mapped = unsafe { libc::msync(at, 4096, libc::MS_ASYNC) } == 0;
                is_mapped && names_of(expected.identity) == 1
            });
            assert_eq!(outcome, Ok(()));
            drop(own);
            assert_eq!(names_of(expected.identity), 0);
        },
    );
}

#[test]
fn what_a_life_left_is_reclaimed_and_a_foreign_file_under_its_name_is_not() {
    let (dead, living) = (header(Kind::Change), header(Kind::Ack));
    let left = OwnRegion::create_named(dead).unwrap();
    let kept = OwnRegion::create_named(living).unwrap();
    let foreign = format!("/dev/shm/shmirror-{:016x}-0000000000000000", dead.identity);
    std::fs::write(&foreign, [7; 64]).unwrap();
    let unfinished = format!("/dev/shm/shmirror-{:016x}-0000000000000001", dead.identity);
    std::fs::write(&unfinished, [0; 8192]).unwrap();
    reclaim(dead.identity).unwrap();
    let foreign_stays = Path::new(&foreign).exists();
    let _ = std::fs::remove_file(&foreign);
    assert!(foreign_stays);
    assert_eq!((names_of(dead.identity), names_of(living.identity)), (0, 1));
    drop((left, kept));
}
