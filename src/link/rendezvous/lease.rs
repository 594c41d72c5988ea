//! Who may remove segments: a file for each life of a source or destination that makes them, locked for as long as it
//! lives.
//!
//! How it works: [`Lease::take`] makes the file before there is a segment, and its drop removes it when there is none any
//! more. Whoever takes a lease first looks at the others of the same place: one that can be locked is of a process that was
//! killed, and with the lock held its segments are removed, and then the file.
//!
//! Invariants:
//! 1. As long as a segment of a life is there, so is its lease.
//! 2. Segments of another life are removed only under its lock, and a lock counts only while the path leads to the very
//!    file that is locked.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;

use super::bind::{BindError, LOCK_ATTEMPTS, flock_now, leads_to, open_lock};
use super::place::Place;
use crate::region::named;
use crate::sys::fork::OwnFd;

/// The right to make segments for one life of a source or destination.
#[derive(Debug)]
pub(crate) struct Lease {
    file: OwnFd,
    path: PathBuf,
}

impl Lease {
    /// Takes the lease for this life, after removing what others left that are over. The directory is there.
    ///
    /// # Errors
    /// The file cannot be made or locked.
    pub(crate) fn take(place: &Place, identity: u64) -> Result<Lease, BindError> {
        reclaim(place);
        let path = place.lease(identity);
        let os = |action| move |source| BindError::Os { action, path: place.lease(identity), source };
        for _ in 0..LOCK_ATTEMPTS {
            let file = open_lock(&path).map_err(os("open"))?;
            match flock_now(&file) {
                Ok(()) if leads_to(&path, file.as_fd()) => {
                    return Ok(Lease { file: OwnFd::new(file.into()).map_err(os("guard"))?, path });
                }
                // whoever takes a lease just now has looked at this one in passing, and removed it
                Ok(()) => {}
                // or is about to
                Err(Errno::EAGAIN) => std::thread::sleep(PAUSE),
                Err(errno) => return Err(os("lock")(errno.into())),
            }
        }
        Err(BindError::Contended { path, attempts: LOCK_ATTEMPTS })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.file.creator().is_this_process() && leads_to(&self.path, self.file.as_fd()) {
            let _ = std::fs::remove_file(&self.path); // a drop has nobody to tell
        }
    }
}

/// Removes what those left that made segments here and are dead. What cannot be removed now is left for the next.
pub(crate) fn reclaim(place: &Place) {
    let Ok(entries) = std::fs::read_dir(place.dir().path()) else { return };
    for entry in entries.flatten() {
        if let Some(identity) = entry.file_name().to_str().and_then(|name| place.lease_of(name)) {
            reclaim_one(place, identity);
        }
    }
}

fn reclaim_one(place: &Place, identity: u64) {
    let path = place.lease(identity);
    // opened, not made: it may be gone by now
    let mut options = std::fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let Ok(file) = options.read(true).open(&path) else { return };
    if flock_now(&file).is_err() || !leads_to(&path, file.as_fd()) {
        return;
    }
    if named::reclaim(identity).is_ok() {
        let _ = std::fs::remove_file(&path); // the next will find it
    }
}

/// How long another may take to look at a lease, and to remove it.
const PAUSE: Duration = Duration::from_millis(1);

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
