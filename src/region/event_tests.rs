//! Tests of the event.

use super::*;
use crate::region::layout::{Header, Kind};
use crate::sys::process::random_u64;

const PATIENCE: Duration = Duration::from_secs(30);

fn pair() -> (OwnEvent, PeerEvent) {
    let header = Header { kind: Kind::Ack, ring_bytes: 256, identity: random_u64().unwrap() };
    let own = Arc::new(OwnRegion::create_named(header).unwrap());
    let number = own.segment().unwrap();
    let event = OwnEvent::new(own).unwrap();
    let peer = PeerRegion::open_named(number, header, 256, true).unwrap();
    (event, PeerEvent::of(Arc::new(peer)).unwrap())
}

#[test]
fn end_of_a_wait_has_no_more_nanoseconds_than_a_second() {
    for nanos in [0, 1, 499_999_999, 979_999_999, 980_000_000, 999_900_000, 999_949_999, 999_999_999] {
        for most in [0, 1, 19, 20, 21, 5000].map(Duration::from_millis) {
            let slice = slice(most, nanos);
            assert!(slice <= most && slice <= SLICE);
            let end = slice + Duration::from_nanos(nanos.into());
            assert!(end < Duration::from_secs(1), "{most:?} from {nanos}: {end:?}");
            let cut = end + BEFORE_FULL_SECOND >= Duration::from_secs(1);
            assert!(slice == most.min(SLICE) || cut || slice.is_zero(), "{most:?} from {nanos}: {slice:?}");
        }
    }
}

#[test]
fn ring_is_heard_once_whether_it_comes_before_the_wait_or_in_it() {
    let (own, peer) = pair();
    // A wait may end for no reason, but not all the time: only at a full second.
    let lasts = |own: &OwnEvent| {
        (0..PATIENCE.as_millis() / SLICE.as_millis()).any(|_| {
            let start = Instant::now();
            own.wait(PATIENCE).unwrap();
            start.elapsed() >= SLICE
        })
    };
    peer.ring().unwrap();
    peer.ring().unwrap();
    own.wait(PATIENCE).unwrap(); // takes both
    assert!(lasts(&own), "nobody rings");
    std::thread::scope(|scope| {
        let (tell, told) = std::sync::mpsc::channel();
        let own = &own;
        let waiter = scope.spawn(move || {
            let mut quick = 0;
            while told.try_recv().is_err() {
                let start = Instant::now();
                own.wait(PATIENCE).unwrap();
                quick += u32::from(start.elapsed() < SLICE);
            }
            quick
        });
        for _ in 0..50 {
            peer.ring().unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
        tell.send(()).unwrap();
        let quick = waiter.join().unwrap();
        assert!(quick >= 10, "{quick} waits ended by a ring");
    });
}

#[test]
fn bytes_that_are_no_event_are_refused() {
    let header = Header { kind: Kind::Ack, ring_bytes: 256, identity: random_u64().unwrap() };
    let own = OwnRegion::create_named(header).unwrap();
    let at = place(&own.map);
    // SAFETY: there is room for an event, and nobody else looks.
    unsafe { std::ptr::write_bytes(at, 0xff, 256) };
    let peer = PeerRegion::open_named(own.segment().unwrap(), header, 256, true).unwrap();
    let text = PeerEvent::of(Arc::new(peer)).map(drop).unwrap_err().to_string();
    assert_eq!(text, "the event of raw_sync: Existing Event is corrupted");
}

/// Puts a 32-bit number somewhere in the mutex, with which an event begins, as a peer can at any time.
#[cfg(target_env = "gnu")]
fn overwrite(own: &OwnEvent, offset: usize, number: i32) {
    let at = place(&own._region.map).wrapping_add(offset).cast::<i32>();
    // SAFETY: within the event, in memory of this test; nobody waits or rings meanwhile.
    unsafe { at.write_volatile(number) };
}

/// Where glibc has what a mutex is; it is the same on all its 64-bit machines (`struct __pthread_mutex_s`).
#[cfg(target_env = "gnu")]
const MUTEX_LOCK: usize = 0;
#[cfg(target_env = "gnu")]
const MUTEX_KIND: usize = 16;

/// Has unlocking fail though locking does not, for this thread: glibc takes a robust, recursive mutex for its own by the lock
/// word, and gives it back by the owner, which is nobody.
#[cfg(target_env = "gnu")]
fn forbid_unlocking(own: &OwnEvent) {
    const ROBUST_RECURSIVE_SHARED: i32 = 128 | 16 | 1;
    overwrite(own, MUTEX_LOCK, nix::unistd::gettid().as_raw());
    overwrite(own, MUTEX_KIND, ROBUST_RECURSIVE_SHARED);
}

#[cfg(target_env = "gnu")]
#[test]
fn mutex_that_cannot_be_unlocked_is_an_error_and_no_panic() {
    let (own, peer) = pair();
    peer.ring().unwrap();
    own.wait(PATIENCE).unwrap();
    forbid_unlocking(&own);
    let expected = "the event of raw_sync panicked, as it does if the peer overwrites it: called `Result::unwrap()` on an \
                    `Err` value: \"Failed to release mutex : 1\"";
    assert_eq!(peer.ring().unwrap_err().to_string(), expected);
    // it was rung all the same, so that the wait comes to unlocking
    assert_eq!(own.wait(PATIENCE).unwrap_err().to_string(), expected);
}

#[cfg(target_env = "gnu")]
#[test]
fn wait_that_fails_at_once_takes_a_moment_all_the_same() {
    const NO_SUCH_KIND: i32 = 15;
    let (own, peer) = pair();
    overwrite(&own, MUTEX_KIND, NO_SUCH_KIND);
    let text = peer.ring().unwrap_err().to_string();
    assert_eq!(text, format!("the event of raw_sync: Failed to acquire mutex : {}", libc::EINVAL));
    // at the end of a second there is no waiting, so it may be over sooner once
    let took = || {
        let start = Instant::now();
        (0..20).for_each(|_| own.wait(PATIENCE).unwrap());
        start.elapsed()
    };
    assert!((0..3).any(|_| took() >= 20 * PAUSE_AFTER_ERROR));
}
