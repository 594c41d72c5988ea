//! Taking a name: the lock, the socket, and the take-over of what a dead source left.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::fstat;

use super::kind_of;
use super::place::{Place, RuntimeDirError};
use crate::sys::fork::OwnFd;
use crate::sys::memfd::file_size_limit;
use crate::sys::socket::{Listener, Socket};

/// A source's name, taken, and the socket at which its destinations arrive. Dropping it gives the name back.
#[derive(Debug)]
pub(crate) struct SourceListener {
    listener: Listener,
    socket: PathBuf,
    // last: the lock outlives the files that it protects
    lock: NameLock,
}

/// Why a name could not be taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// A source of that name lives.
    #[error("the name {name:?} is taken by {} (lock file {})", Holder(*pid), path.display())]
    NameTaken {
        /// The name.
        name: String,
        /// The process that holds it, if that is known.
        pid: Option<u32>,
        /// Where.
        path: PathBuf,
    },
    /// Something that is no socket has the socket's place. It is left alone.
    #[error("{} is {found}, expected nothing or a socket; remove it or use another name", path.display())]
    NotASocket {
        /// Where.
        path: PathBuf,
        /// What was found.
        found: &'static str,
    },
    /// The lock file was replaced time and again while we tried.
    #[error("the lock file {} was replaced {attempts} times while trying to lock it", path.display())]
    Contended {
        /// Where.
        path: PathBuf,
        /// How often it was tried.
        attempts: u32,
    },
    /// The directory is not there, or not fit.
    #[error(transparent)]
    RuntimeDir(#[from] RuntimeDirError),
    /// A system call failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Os {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl SourceListener {
    /// Takes the name: locks it, and listens at its socket, which gets `socket_mode` (0o600 for this user
    /// only).
    ///
    /// # Errors
    /// [`BindError::NameTaken`] if a source of that name lives. Whatever the error, the files of a living
    /// source are untouched.
    pub(crate) fn bind(place: &Place, socket_mode: u32) -> Result<SourceListener, BindError> {
        place.dir().prepare()?;
        let lock = NameLock::take(place)?;
        let listener = listen(place, socket_mode)?;
        Ok(SourceListener { listener, socket: place.socket(), lock })
    }

    /// The next destination to arrive, if there is one.
    ///
    /// # Errors
    /// Those of `accept(2)`.
    pub(crate) fn accept(&self) -> io::Result<Option<Socket>> {
        self.listener.accept()
    }

    /// The path of the socket.
    pub(crate) fn path(&self) -> &Path {
        &self.socket
    }
}

impl AsFd for SourceListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for SourceListener {
    fn drop(&mut self) {
        if self.lock.is_ours() {
            let _ = std::fs::remove_file(&self.socket); // a drop has nobody to tell
        }
    }
}

/// The lock on a name, and its file, which goes with it.
#[derive(Debug)]
struct NameLock {
    file: OwnFd,
    path: PathBuf,
}

impl NameLock {
    fn take(place: &Place) -> Result<NameLock, BindError> {
        let path = place.lock();
        let os = |action| move |source| BindError::Os { action, path: place.lock(), source };
        for _ in 0..LOCK_ATTEMPTS {
            let mut file = open_lock(&path).map_err(os("open"))?;
            let locked = match flock_now(&file) {
                Ok(()) => true,
                Err(Errno::EAGAIN) => false,
                Err(errno) => return Err(os("lock")(errno.into())),
            };
            // the last holder removed the file between our open and our lock: another may be in its place,
            // with another holder
            if !leads_to(&path, file.as_fd()) {
                continue;
            }
            if !locked {
                return Err(BindError::NameTaken {
                    name: place.name().to_owned(),
                    pid: read_pid(&mut file),
                    path,
                });
            }
            write_pid(&mut file).map_err(os("write to"))?;
            return Ok(NameLock { file: OwnFd::new(file.into()).map_err(os("guard"))?, path });
        }
        Err(BindError::Contended { path, attempts: LOCK_ATTEMPTS })
    }

    /// Whether the name is ours to give back: we are the process that took it, and the path still leads to
    /// our file.
    fn is_ours(&self) -> bool {
        self.file.creator().is_this_process() && leads_to(&self.path, self.file.as_fd())
    }
}

impl Drop for NameLock {
    fn drop(&mut self) {
        if self.is_ours() {
            let _ = std::fs::remove_file(&self.path); // a drop has nobody to tell
        }
        // the lock goes when the file is closed after this: nobody locks it between, as no path leads to it
        // any more
    }
}

/// Listens at the socket's place, over whatever a dead source left there. The caller holds the lock.
fn listen(place: &Place, socket_mode: u32) -> Result<Listener, BindError> {
    let (path, temporary) = (place.socket(), place.new_socket());
    if let Ok(found) = std::fs::symlink_metadata(&path)
        && !found.file_type().is_socket()
    {
        return Err(BindError::NotASocket { path, found: kind_of(&found) });
    }
    match std::fs::remove_file(&temporary) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(BindError::Os { action: "remove the left-over", path: temporary, source });
        }
        _ => {}
    }
    let listener = Listener::bind(&temporary).map_err(|source| BindError::Os {
        action: "listen at",
        path: temporary.clone(),
        source,
    })?;
    let placed = std::fs::set_permissions(&temporary, Permissions::from_mode(socket_mode))
        .and_then(|()| std::fs::rename(&temporary, &path));
    placed.map_err(|source| {
        let _ = std::fs::remove_file(&temporary); // the first error is the one to tell
        BindError::Os { action: "put in place the socket", path, source }
    })?;
    Ok(listener)
}

pub(super) fn open_lock(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)
}

#[expect(
    deprecated,
    reason = "the guard that replaces it unlocks on drop, which in a forked child frees the parent's lock"
)]
pub(super) fn flock_now(file: &File) -> Result<(), Errno> {
    nix::fcntl::flock(file.as_raw_fd(), nix::fcntl::FlockArg::LockExclusiveNonblock)
}

pub(super) fn leads_to(path: &Path, file: BorrowedFd<'_>) -> bool {
    let (Ok(there), Ok(here)) = (std::fs::symlink_metadata(path), fstat(file)) else { return false };
    (there.dev(), there.ino()) == (here.st_dev, here.st_ino)
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    let line = format!("{}\n", std::process::id());
    if file_size_limit() < line.len() as u64 {
        return Ok(()); // writing it would raise SIGXFSZ; it only serves a message
    }
    file.write_all(line.as_bytes())
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut line = [0; 16];
    file.rewind().ok()?;
    let len = file.read(&mut line).ok()?;
    std::str::from_utf8(&line[..len]).ok()?.trim_end().parse().ok()
}

struct Holder(Option<u32>);

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(pid) => write!(f, "a living source, process {pid}"),
            None => f.write_str("a living source"),
        }
    }
}

/// Each attempt but the last loses to another source that ended or began at that very moment.
pub(super) const LOCK_ATTEMPTS: u32 = 100;
