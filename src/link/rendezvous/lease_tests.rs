//! Tests of leases.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::super::place::RuntimeDir;
use super::*;
use crate::region::OwnRegion;
use crate::region::layout::{Header, Kind};
use crate::sys::process::random_u64;
use crate::sys::test_process::{alone, forked};

fn place(dir: &tempfile::TempDir) -> Place {
    Place::new(RuntimeDir::locate(Some(dir.path())).unwrap(), "s").unwrap()
}

fn region(identity: u64) -> (OwnRegion, PathBuf) {
    let region = OwnRegion::create_named(Header { kind: Kind::Ack, ring_bytes: 256, identity }).unwrap();
    let path = format!("/dev/shm/shmirror-{identity:016x}-{:016x}", region.segment().unwrap());
    (region, path.into())
}

fn left(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

#[test]
fn lease_goes_with_its_holder() {
    let dir = tempfile::tempdir().unwrap();
    let lease = Lease::take(&place(&dir), 0x5eed).unwrap();
    assert!(dir.path().join("s.0000000000005eed.lease").exists());
    drop(lease);
    assert_eq!(left(dir.path()), 0);
}

#[test]
fn segments_of_the_dead_are_removed_and_those_of_the_living_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(&dir);
    let [dead, living] = [random_u64().unwrap(), random_u64().unwrap()];
    let (lease_of_living, (_kept, kept)) = (Lease::take(&place, living).unwrap(), region(living));
    // as kill -9 leaves it: the file without its lock, the segment without its maker
    std::fs::write(place.lease(dead), "").unwrap();
    let (_left, left_over) = region(dead);
    // not ours: another source's, a number that is none, and one in other letters
    let others =
        ["t.0000000000000001.lease", "s.1.lease", "s.000000000000000g.lease", "s.000000000000000A.lease"];
    others.iter().for_each(|name| std::fs::write(dir.path().join(name), "").unwrap());
    drop(Lease::take(&place, random_u64().unwrap()).unwrap());
    assert!(!left_over.exists() && !place.lease(dead).exists());
    assert!(kept.exists() && place.lease(living).exists());
    assert_eq!(left(dir.path()), 1 + others.len());
    drop(lease_of_living);
}

#[test]
fn many_who_come_and_go_at_once_never_lose_a_living_segment() {
    let dir = tempfile::tempdir().unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reclaimers = [(); 2].map(|()| {
            scope.spawn(|| {
                while !over.load(Relaxed) {
                    reclaim(&place(&dir));
                }
            })
        });
        let makers = [(); 3].map(|()| {
            scope.spawn(|| {
                let end = Instant::now() + Duration::from_millis(400);
                let mut rounds = 0;
                while Instant::now() < end || rounds < 20 {
                    let identity = random_u64().unwrap();
                    let lease = Lease::take(&place(&dir), identity).unwrap();
                    let (region, path) = region(identity);
                    std::thread::yield_now();
                    assert!(path.exists(), "removed under its lease");
                    assert!(place(&dir).lease(identity).exists());
                    drop(region);
                    drop(lease);
                    rounds += 1;
                }
            })
        });
        let outcomes = makers.map(|maker| maker.join());
        over.store(true, Relaxed);
        outcomes.into_iter().for_each(Result::unwrap);
        reclaimers.into_iter().for_each(|reclaimer| reclaimer.join().unwrap());
    });
    assert_eq!(left(dir.path()), 0);
}

#[test]
fn forked_child_neither_holds_nor_removes_a_lease() {
    alone("link::rendezvous::lease::tests::forked_child_neither_holds_nor_removes_a_lease", || {
        let dir = tempfile::tempdir().unwrap();
        let identity = random_u64().unwrap();
        let mut lease = Some(Lease::take(&place(&dir), identity).unwrap());
        let path = place(&dir).lease(identity);
        let outcome = forked(|| {
            drop(lease.take());
            path.exists()
        });
        assert_eq!(outcome, Ok(()));
        reclaim(&place(&dir));
        assert!(path.exists(), "the parent holds it still");
        drop(lease);
        assert!(!path.exists());
    });
}
