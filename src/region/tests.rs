//! Tests of the regions.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;

use super::layout::region_bytes;
use super::ring_memory::{ConsumerMapping, ProducerMapping};
use super::*;
use crate::ring::tests::{
    arrive_at_a_consumer_that_evicts, arrive_at_a_polling_consumer, arrive_when_both_sides_sleep,
};
use crate::ring::{Consumer, ConsumerMemory, Memory, Producer, ProducerMemory, Word as RingWord};
use crate::sys::test_process::{alone, cloned, forked};

/// Larger than a page of any host, so that regions of other rings have other lengths.
const RING_BYTES: u64 = 1 << 16;
const CHANGE: Header = Header { kind: Kind::Change, ring_bytes: RING_BYTES, identity: 0x5eed };
const ACK: Header = Header { kind: Kind::Ack, ring_bytes: 256, identity: 0xacc };

fn passed(region: &OwnRegion) -> OwnedFd {
    region.fd().try_clone_to_owned().unwrap()
}

fn open_as(header: Header, expected: Header) -> Result<PeerRegion, RegionError> {
    PeerRegion::open(passed(&OwnRegion::create(header).unwrap()), expected, 1 << 20)
}

/// A region whose header a hostile or different peer wrote, as far as `PeerRegion::open` sees it.
fn open_with_header(forge: impl FnOnce(&mut RawHeader)) -> Result<PeerRegion, RegionError> {
    let own = OwnRegion::create(CHANGE).unwrap();
    let at: *mut RawHeader = own.map.at(HEADER).cast();
    // SAFETY: the creator's mapping is writable, and nobody else has the region yet.
    forge(unsafe { &mut *at });
    PeerRegion::open(passed(&own), CHANGE, 1 << 20)
}

/// The memories of both sides of one link: changes out, changes in, acks out, acks in.
fn link() -> (ProducerMapping, ConsumerMapping, ProducerMapping, ConsumerMapping) {
    let change = Arc::new(OwnRegion::create(CHANGE).unwrap());
    let ack = Arc::new(OwnRegion::create(ACK).unwrap());
    let change_seen = Arc::new(PeerRegion::open(passed(&change), CHANGE, 1 << 20).unwrap());
    let ack_seen = Arc::new(PeerRegion::open(passed(&ack), ACK, 1 << 20).unwrap());
    (
        ProducerMapping::new(change.clone(), ack_seen.clone()),
        ConsumerMapping::new(ack.clone(), change_seen.clone()),
        ProducerMapping::new(ack, change_seen),
        ConsumerMapping::new(change, ack_seen),
    )
}

#[test]
fn words_and_data_reach_the_other_side() {
    let (changes_out, changes_in, acks_out, acks_in) = link();
    for (producer, consumer, last) in [(&changes_out, &changes_in, 65535), (&acks_out, &acks_in, 255)] {
        producer.copy_in(0, b"first");
        producer.copy_in(last, b"z");
        producer.fence(Release);
        producer.store_own(RingWord::Cursor, u64::MAX, Release);
        producer.store_own(RingWord::Waits, 1, Relaxed);
        assert_eq!(consumer.load_peer(RingWord::Cursor), u64::MAX);
        assert_eq!(consumer.load_peer(RingWord::Waits), 1);
        let mut bytes = [0; 5];
        consumer.copy_out(0, &mut bytes);
        assert_eq!(&bytes, b"first");
        consumer.copy_out(last, &mut bytes[..1]);
        assert_eq!(bytes[0], b'z');
        producer.copy_in_record(8, *b"a header", [*b"and more"], [b"ab", b"", b"cde"]);
        let mut record = [0; 21];
        consumer.copy_out(8, &mut record);
        assert_eq!(&record, b"a headerand moreabcde");
        let pieces: [(_, _, [&[u8]; 2]); 2] =
            [(*b"header 1", [*b"word one"], [b"a", b"bc"]), (*b"header 2", [*b"word two"], [b"", b"d"])];
        assert_eq!(producer.copy_in_records(64, 48, pieces.into_iter()), 48, "up to a multiple of 8 each");
        for (at, expected) in [(64, b"header 1word oneabc"), (88, b"header 2word twod\0\0")] {
            let mut record = [0; 19];
            consumer.copy_out(at, &mut record);
            assert_eq!(&record, expected);
        }
        consumer.store_own(RingWord::Cursor, 7, Release);
        consumer.store_own(RingWord::Waits, 2, Relaxed);
        assert_eq!((producer.load_peer(RingWord::Cursor), producer.load_peer(RingWord::Waits)), (7, 2));
    }
}

#[test]
fn bytes_of_every_length_arrive_at_every_place_and_no_others_change() {
    let (out, seen, ..) = link();
    let longest = 3 * FEW_BYTES;
    let bytes: Vec<u8> = (0..longest).map(|n| (n % 251) as u8 + 1).collect();
    for (len, offset) in (0..=longest).flat_map(|len| (0..16).map(move |offset| (len, offset))) {
        let around = vec![0; longest + 32];
        out.copy_in(0, &around);
        out.copy_in(offset, &bytes[..len]);
        let mut copied = vec![0xff; len];
        seen.copy_out(offset, &mut copied);
        assert_eq!(copied, bytes[..len], "{len} bytes at {offset}");
        let mut all = around;
        seen.copy_out(0, &mut all);
        let others = all[..offset].iter().chain(&all[offset + len..]);
        assert!(others.copied().all(|byte| byte == 0), "beside {len} bytes at {offset}");
    }
}

#[test]
fn the_two_rings_of_a_link_share_no_word() {
    let (changes_out, changes_in, acks_out, acks_in) = link();
    changes_out.store_own(RingWord::Cursor, 1, Relaxed);
    changes_in.store_own(RingWord::Cursor, 2, Relaxed);
    acks_out.store_own(RingWord::Cursor, 3, Relaxed);
    acks_in.store_own(RingWord::Cursor, 4, Relaxed);
    assert_eq!((changes_in.load_peer(RingWord::Cursor), changes_out.load_peer(RingWord::Cursor)), (1, 2));
    assert_eq!((acks_in.load_peer(RingWord::Cursor), acks_out.load_peer(RingWord::Cursor)), (3, 4));
}

#[test]
fn memories_move_between_threads() {
    fn is_send<T: Send>() {}
    is_send::<ProducerMapping>();
    is_send::<ConsumerMapping>();
}

#[test]
fn access_beyond_the_data_panics() {
    let (out, seen, ..) = link();
    let panics = |access: &dyn Fn()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(access)).is_err();
    assert!(!panics(&|| out.copy_in(65536, &[])));
    assert!(panics(&|| out.copy_in(65536, &[1])));
    assert!(panics(&|| out.copy_in(65344, &[1; 193])));
    assert!(panics(&|| out.copy_in(usize::MAX, &[1])));
    assert!(!panics(&|| out.copy_in_record(65518, [1; 8], [[1; 8]], [&[1], &[1]])));
    assert!(panics(&|| out.copy_in_record(65518, [1; 8], [[1; 8]], [&[1], &[1, 1]])));
    let records = |offset, most, count| {
        let each: ([u8; 8], [[u8; 8]; 0], [&[u8]; 1]) = ([1; 8], [], [&[1; 8]]);
        out.copy_in_records(offset, most, std::iter::repeat_n(each, count));
    };
    assert!(!panics(&|| records(65488, 48, 3)));
    assert!(panics(&|| records(65488, 48, 4)), "more than was said");
    assert!(panics(&|| records(65488, 47, 3)), "more than was said");
    assert!(panics(&|| records(65496, 48, 1)), "more than there is");
    assert!(panics(&|| seen.copy_out(0, &mut [0; 65537])));
    assert!(panics(&|| seen.copy_out(usize::MAX - 1, &mut [0; 4])));
}

#[test]
fn data_has_one_writer() {
    let own = Arc::new(OwnRegion::create(CHANGE).unwrap());
    let peer = Arc::new(PeerRegion::open(passed(&own), CHANGE, RING_BYTES).unwrap());
    let _first = ProducerMapping::new(own.clone(), peer.clone());
    assert!(
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ProducerMapping::new(own, peer))).is_err()
    );
}

#[test]
fn receiver_can_neither_map_writable_nor_make_its_mapping_so() {
    let own = OwnRegion::create(CHANGE).unwrap();
    let fd = passed(&own);
    let len = region_bytes(RING_BYTES) as usize;
    let denied = MmapOptions::new().len(len).map_raw(&fd).unwrap_err();
    assert_eq!(denied.raw_os_error(), Some(libc::EPERM));
    let reopened =
        std::fs::OpenOptions::new().write(true).read(true).open(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    if let Ok(reopened) = reopened {
        assert!(MmapOptions::new().len(len).map_raw(&reopened).is_err());
    }
    let peer = PeerRegion::open(fd, CHANGE, RING_BYTES).unwrap();
    let start = peer.map.base.as_ptr().cast();
    // SAFETY: the range is that of the mapping; it is expected to be refused.
    let outcome = unsafe { libc::mprotect(start, len, libc::PROT_READ | libc::PROT_WRITE) };
    assert_eq!((outcome, Errno::last()), (-1, Errno::EACCES));
}

#[test]
fn creator_cannot_take_pages_away_from_the_receiver() {
    let own = OwnRegion::create(CHANGE).unwrap();
    // SAFETY: the range is the mapping's first page; it is expected to be refused.
    let outcome = unsafe { libc::madvise(own.map.base.as_ptr().cast(), 4096, libc::MADV_REMOVE) };
    assert_eq!((outcome, Errno::last()), (-1, Errno::EPERM));
    own.store(Word::Tail, 1, Relaxed);
}

#[test]
fn header_that_differs_from_the_handshake_is_refused_with_both() {
    let lengths =
        format!("is {} bytes long, expected {}", region_bytes(2 * RING_BYTES), region_bytes(RING_BYTES));
    let cases = [
        (open_as(Header { ring_bytes: 2 * RING_BYTES, ..CHANGE }, CHANGE), &*lengths),
        (open_as(Header { kind: Kind::Ack, ..CHANGE }, CHANGE), "of kind 2, expected 1 (change region)"),
        (open_as(Header { identity: 0xbad, ..CHANGE }, CHANGE), "identity 0xbad, expected 0x5eed"),
        (
            open_as(CHANGE, Header { ring_bytes: 3000, ..CHANGE }),
            "ring_bytes is 3000, expected a power of two",
        ),
        (open_with_header(|header| header.magic = 0), "with 0x0000000000000000, expected 0x726f7272696d6873"),
        (open_with_header(|header| header.version = 9), "layout version 9, expected 3"),
        (open_with_header(|header| header.kind = 7), "of kind 7, expected 1 (change region)"),
        (open_with_header(|header| header.ring_bytes = 3), "a ring of 3 bytes, expected 65536"),
        (
            open_with_header(|header| header.ring_bytes = 1 << 40),
            "a ring of 1099511627776 bytes, expected 65536",
        ),
    ];
    for (outcome, expected) in cases {
        let text = outcome.unwrap_err().to_string();
        assert!(text.contains(expected), "{text:?} does not contain {expected:?}");
    }
}

#[test]
fn region_beyond_the_maximum_is_refused() {
    let own = OwnRegion::create(CHANGE).unwrap();
    let text = PeerRegion::open(passed(&own), CHANGE, 4096).unwrap_err().to_string();
    let (found, at_most) = (region_bytes(RING_BYTES), region_bytes(4096));
    assert_eq!(text, format!("the peer's shared memory is {found} bytes long, expected at most {at_most}"));
}

#[test]
fn ring_size_that_cannot_be_is_refused() {
    let text = OwnRegion::create(Header { ring_bytes: 1000, ..CHANGE }).unwrap_err().to_string();
    assert_eq!(text, "ring_bytes is 1000, expected a power of two from 256 to 1073741824");
}

#[test]
fn region_is_absent_in_a_child_and_its_drop_unmaps_nothing_there() {
    alone("region::tests::region_is_absent_in_a_child_and_its_drop_unmaps_nothing_there", || {
        let own = OwnRegion::create(CHANGE).unwrap();
        let open = || PeerRegion::open(passed(&own), CHANGE, RING_BYTES).unwrap();
        let (first, second) = (open(), open());
        let drop_leaves_the_address = |peer: PeerRegion| {
            let start: *mut libc::c_void = peer.map.base.as_ptr().cast();
            let len = region_bytes(RING_BYTES) as usize;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
            // the child takes the address for itself, which it can since nothing is mapped there
            // SAFETY: never replaces a mapping.
            let taken = unsafe { libc::mmap(start, len, libc::PROT_READ, flags, -1, 0) };
            drop(peer);
            // SAFETY: changes nothing; it fails if any page is not mapped.
            taken == start && unsafe { libc::msync(start, len, libc::MS_ASYNC) } == 0
        };
        assert_eq!(forked(|| drop_leaves_the_address(first)), Ok(()));
        assert_eq!(cloned(|| drop_leaves_the_address(second)), Ok(()));
        own.store(Word::Tail, 1, Relaxed);
    });
}

#[test]
fn stays_readable_after_its_creator_is_gone() {
    let own = OwnRegion::create(CHANGE).unwrap();
    let peer = PeerRegion::open(passed(&own), CHANGE, RING_BYTES).unwrap();
    own.store(Word::Tail, 42, Relaxed);
    drop(own);
    assert_eq!(peer.load(Word::Tail), 42);
}

/// The memories of both sides of one ring, with one address for each byte, so that ThreadSanitizer sees both sides of what
/// happens to it. In a link, each side has mappings of its own.
fn on_one_mapping(ring_bytes: u64) -> (ProducerMapping, ConsumerMapping) {
    let create = |header| Arc::new(OwnRegion::create(Header { ring_bytes, ..header }).unwrap());
    let (change, ack) = (create(CHANGE), create(ACK));
    KEPT.lock().unwrap().extend([change.clone(), ack.clone()]);
    let seen = |own: &OwnRegion| {
        // SAFETY: a copy of a handle that is never dropped: the first is in `KEPT`, this one thinks that it is elsewhere.
        let memory = unsafe { ptr::read(&own.map.memory) };
        let creator = own.map.creator.seen_from_a_clone();
        Arc::new(PeerRegion { map: Mapping { memory, creator, ..own.map } })
    };
    let producer = ProducerMapping::new(change.clone(), seen(&ack));
    (producer, ConsumerMapping::new(ack, seen(&change)))
}

/// Mapped for ever, since a test that fails leaves the other side's thread behind.
static KEPT: Mutex<Vec<Arc<OwnRegion>>> = Mutex::new(Vec::new());

#[test]
fn records_arrive_whole_from_lines_that_are_evicted() {
    let (changes_out, changes_in, _acks_out, _acks_in) = link();
    let mut consumer = Consumer::new(changes_in, RING_BYTES);
    if !consumer.decide_to_evict() {
        eprintln!("skipped: nothing can be evicted on this processor");
        return;
    }
    arrive_at_a_consumer_that_evicts(Producer::new(changes_out, RING_BYTES), consumer);
}

#[test]
fn records_of_random_sizes_arrive_through_one_mapping() {
    let (producer, consumer) = on_one_mapping(1024);
    arrive_at_a_polling_consumer(Producer::new(producer, 1024), Consumer::new(consumer, 1024), 1024);
}

#[test]
fn records_of_random_sizes_arrive_through_one_mapping_that_begins_anew_all_the_time() {
    let (producer, consumer) = on_one_mapping(1024);
    let mut producer = Producer::new(producer, 1024);
    producer.set_hot_bytes(64);
    arrive_at_a_polling_consumer(producer, Consumer::new(consumer, 1024), 1024);
}

#[test]
fn records_of_random_sizes_arrive_through_one_mapping_when_both_sides_sleep() {
    let (producer, consumer) = on_one_mapping(256);
    arrive_when_both_sides_sleep(Producer::new(producer, 256), Consumer::new(consumer, 256), 256);
}
