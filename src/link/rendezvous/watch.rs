//! Waiting for a source that is not there yet.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

use super::place::{Place, RuntimeDir, RuntimeDirError};

/// Becomes readable when the runtime directory changes; [`SourceWatch::drain`] tells whether the source may
/// be there.
///
/// Watch first and connect then: a source that comes in between is noticed by one of the two.
#[derive(Debug)]
pub(crate) struct SourceWatch {
    inotify: Inotify,
    watch: WatchDescriptor,
    dir: RuntimeDir,
    socket: OsString,
}

/// Why a source cannot be waited for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum WatchError {
    /// The directory is not there, or not fit.
    #[error(transparent)]
    RuntimeDir(#[from] RuntimeDirError),
    /// A system call failed; `EMFILE` and `ENOSPC` mean the limits in `/proc/sys/fs/inotify`.
    #[error("cannot watch runtime directory {}: {source}", path.display())]
    Os { path: PathBuf, source: io::Error },
}

impl SourceWatch {
    /// Watches for the source at `place`, whose directory is created if it is not there.
    ///
    /// # Errors
    /// The directory is not fit for us, or cannot be watched.
    pub(crate) fn new(place: &Place) -> Result<SourceWatch, WatchError> {
        let dir = place.dir().clone();
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(os(&dir))?;
        let watch = watch_dir(&inotify, &dir)?;
        Ok(SourceWatch { inotify, watch, dir, socket: place.socket_file_name() })
    }

    /// Takes what has been noticed; true if it is worth trying to connect. Never blocks.
    ///
    /// If the directory itself has gone, it is created and watched again.
    ///
    /// # Errors
    /// As [`SourceWatch::new`].
    pub(crate) fn drain(&mut self) -> Result<bool, WatchError> {
        let mut try_now = false;
        let mut lost = false;
        for _ in 0..MAX_READS {
            let events = match self.inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(os(&self.dir)(errno)),
            };
            try_now |= events.iter().any(|event| self.concerns_source(event));
            lost |= events.iter().any(|event| event.wd == self.watch && event.mask.intersects(DIR_GONE));
        }
        if lost {
            let _ = self.inotify.rm_watch(self.watch); // of a directory that was moved, not removed
            self.watch = watch_dir(&self.inotify, &self.dir)?;
        }
        Ok(try_now || lost)
    }

    fn concerns_source(&self, event: &InotifyEvent) -> bool {
        event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) || event.name.as_ref() == Some(&self.socket)
    }
}

impl AsFd for SourceWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

fn watch_dir(inotify: &Inotify, dir: &RuntimeDir) -> Result<WatchDescriptor, WatchError> {
    dir.prepare()?;
    let what = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CREATE | DIR_GONE | AddWatchFlags::IN_ONLYDIR;
    inotify.add_watch(dir.path(), what).map_err(os(dir))
}

fn os(dir: &RuntimeDir) -> impl FnOnce(Errno) -> WatchError {
    let path = dir.path().to_owned();
    move |errno| WatchError::Os { path, source: errno.into() }
}

const DIR_GONE: AddWatchFlags = AddWatchFlags::IN_DELETE_SELF.union(AddWatchFlags::IN_MOVE_SELF);

/// More events than these wait for the next call; the descriptor stays readable.
const MAX_READS: usize = 64;
