//! Tests of segments.

#![allow(unsafe_code, reason = "a mount of our own")]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use nix::sys::resource::{Resource, setrlimit};

use super::*;
use crate::sys::test_process::{alone, cloned, forked};

const LEN: u64 = 8192;

fn identity() -> u64 {
    random_u64().unwrap()
}

fn path_of_segment(identity: u64, segment: &Segment) -> PathBuf {
    path_of(&name_of(identity, segment.number()))
}

fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// A file under a segment's name, which goes with it.
struct ByHand(PathBuf);

impl ByHand {
    fn new(identity: u64, number: u64, content: &[u8]) -> ByHand {
        let path = path_of(&name_of(identity, number));
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        ByHand(path)
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn refusal(identity: u64, number: u64) -> String {
    open(identity, number, LEN, 2 * LEN).map(drop).unwrap_err().to_string()
}

#[test]
fn segment_is_all_there_and_its_name_goes_with_it() {
    let identity = identity();
    let (segment, shmem) = Segment::create(identity, LEN).unwrap();
    let path = path_of_segment(identity, &segment);
    let found = path.metadata().unwrap();
    assert_eq!((found.len(), found.mode() & 0o777), (LEN, 0o600));
    assert!(found.blocks() * STAT_BLOCK_BYTES >= LEN, "{} blocks", found.blocks());
    assert_eq!(shmem.len() as u64, LEN);
    drop(shmem);
    assert!(is_there(&path), "the crate's own removal is off");
    drop(segment);
    assert!(!is_there(&path));
}

#[test]
fn opened_segment_loses_its_name_and_the_maker_removes_no_other_of_that_name() {
    let identity = identity();
    let (segment, _shmem) = Segment::create(identity, LEN).unwrap();
    let path = path_of_segment(identity, &segment);
    let (opened, _seen) = open(identity, segment.number(), LEN, LEN).unwrap();
    assert!(is_there(&path));
    opened.unlink();
    assert!(!is_there(&path));
    let other = ByHand::new(identity, segment.number(), b"another's");
    drop(segment);
    assert_eq!(std::fs::read(&other.0).unwrap(), b"another's");
}

#[test]
fn segments_that_are_not_what_was_told_are_refused_with_what_was_found() {
    let identity = identity();
    let path = |number| path_of(&name_of(identity, number));
    let text = format!(
        "the segment {} that the peer named does not exist; both sides must see the same /dev/shm",
        path(1).display()
    );
    assert_eq!(refusal(identity, 1), text);

    let _short = ByHand::new(identity, 2, &[0; 4096]);
    let text = format!("the segment {} is 4096 bytes long, expected 8192", path(2).display());
    assert_eq!(refusal(identity, 2), text);

    let _long = ByHand::new(identity, 3, &[0; 20_000]);
    let text = format!("the segment {} is 20000 bytes long, expected at most 16384", path(3).display());
    assert_eq!(refusal(identity, 3), text);

    let sparse = ByHand::new(identity, 4, &[]);
    File::options().write(true).open(&sparse.0).unwrap().set_len(LEN).unwrap();
    let text =
        format!("the segment {} has 0 of its 8192 bytes allocated, expected all of them", path(4).display());
    assert_eq!(refusal(identity, 4), text);

    let open_to_all = ByHand::new(identity, 5, &[0; LEN as usize]);
    std::fs::set_permissions(&open_to_all.0, Permissions::from_mode(0o606)).unwrap();
    let text = format!(
        "the segment {} belongs to user {uid} and has mode 606, expected user {uid} and mode 600",
        path(5).display(),
        uid = own_uid()
    );
    assert_eq!(refusal(identity, 5), text);

    let link = ByHand(path(6));
    std::os::unix::fs::symlink(&open_to_all.0, &link.0).unwrap();
    assert_eq!(refusal(identity, 6), format!("{} is a symbolic link, expected a segment", path(6).display()));

    let directory = path(7);
    std::fs::create_dir(&directory).unwrap();
    let refused = refusal(identity, 7);
    std::fs::remove_dir(&directory).unwrap();
    assert_eq!(refused, format!("{} is no regular file, expected a segment", directory.display()));
}

#[test]
fn segment_of_another_user_is_refused() {
    if own_uid() != 0 {
        return eprintln!("skipped: only root can give a file away");
    }
    let identity = identity();
    let others = ByHand::new(identity, 1, &[0; LEN as usize]);
    std::os::unix::fs::chown(&others.0, Some(12345), None).unwrap();
    let text = refusal(identity, 1);
    let expected = "belongs to user 12345 and has mode 600, expected user 0 and mode 600";
    assert!(text.ends_with(expected), "{text}");
}

#[test]
fn file_size_limit_is_an_error_and_no_signal() {
    alone("sys::segment::tests::file_size_limit_is_an_error_and_no_signal", || {
        setrlimit(Resource::RLIMIT_FSIZE, 4096, 4096).unwrap();
        let identity = identity();
        let text = Segment::create(identity, LEN).map(drop).unwrap_err().to_string();
        assert!(
            text.starts_with("a segment of 8192 bytes is longer than")
                && text.contains("4096 bytes (RLIMIT_FSIZE)"),
            "{text}"
        );
        assert_eq!(left_of(identity), [""; 0]);
        Segment::create(identity, 4096).unwrap();
    });
}

#[test]
fn full_file_system_is_an_error_that_names_sizes_and_leaves_nothing() {
    alone("sys::segment::tests::full_file_system_is_an_error_that_names_sizes_and_leaves_nothing", || {
        if !mount_small_shm() {
            return eprintln!("skipped: no mount of our own can be made");
        }
        let identity = identity();
        let (kept, _shmem) = Segment::create(identity, 40 * 1024).unwrap();
        let text = Segment::create(identity, 32 * 1024).map(drop).unwrap_err().to_string();
        let expected = "no room for a segment of 32768 bytes in /dev/shm, which has 24576 bytes free (";
        assert!(text.starts_with(expected), "{text}");
        assert_eq!(left_of(identity).len(), 1, "that which was made");
        drop(kept);
        assert_eq!(left_of(identity), [""; 0]);
    });
}

/// Mounts 64 KiB over the directory of segments, for this process alone.
fn mount_small_shm() -> bool {
    let none = std::ptr::null();
    // SAFETY: no other thread of this process needs what it shares with us.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return false;
    }
    // SAFETY: all strings end in NUL, and a null pointer stands for those that are not needed.
    let private =
        unsafe { libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast()) };
    // SAFETY: as above.
    let mounted = unsafe {
        let (what, place) = (c"tmpfs".as_ptr(), c"/dev/shm".as_ptr());
        libc::mount(what, place, what, 0, c"size=64k".as_ptr().cast())
    };
    (private, mounted) == (0, 0)
}

fn left_of(identity: u64) -> Vec<String> {
    let names = std::fs::read_dir(SHM_DIR).unwrap().map(|entry| entry.unwrap().file_name().into_string());
    let prefix = format!("shmirror-{identity:016x}-");
    names.map(Result::unwrap).filter(|name| name.starts_with(&prefix)).collect()
}

#[test]
fn only_what_is_of_a_life_is_reclaimed() {
    let identity = identity();
    let header = |says: u8| [says; HEADER_BYTES];
    let its_own = ByHand::new(identity, 1, &header(1));
    let unfinished = ByHand::new(identity, 2, &[]);
    let foreign = ByHand::new(identity, 3, &header(2));
    let short = ByHand::new(identity, 4, b"short");
    let of_another = ByHand::new(!identity, 5, &header(1));
    let link = ByHand(path_of(&name_of(identity, 6)));
    std::os::unix::fs::symlink(&its_own.0, &link.0).unwrap();
    reclaim(identity, |found| *found == header(1) || *found == header(0)).unwrap();
    let left = [&its_own, &unfinished, &foreign, &short, &of_another, &link].map(|file| is_there(&file.0));
    assert_eq!(left, [false, false, true, true, true, true]);
}

#[test]
fn forked_and_cloned_children_remove_no_name() {
    alone("sys::segment::tests::forked_and_cloned_children_remove_no_name", || {
        let identity = identity();
        // The mapping stays with the parent: what becomes of one in a child is the region's business.
        let (segment, _mapping) = Segment::create(identity, LEN).unwrap();
        let path = path_of_segment(identity, &segment);
        let mut segment = Some(segment);
        for outcome in [
            forked(|| {
                drop(segment.take());
                is_there(&path)
            }),
            cloned(|| {
                drop(segment.take());
                is_there(&path)
            }),
        ] {
            assert_eq!(outcome, Ok(()));
        }
        drop(segment);
        assert!(!is_there(&path));
    });
}
