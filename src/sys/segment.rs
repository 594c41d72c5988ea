//! Shared memory with a name, for hosts and sandboxes in which no descriptors can be passed.
//!
//! How it works: the creator makes a segment ([`Segment::create`]), in full, under a name that nobody else
//! uses; the peer, told its number, opens it ([`open`]) and removes the name ([`Opened::unlink`]) once it
//! has seen that this is what it was told of. So the name is there only while a link is being made. What is
//! left by a process that was killed meanwhile, [`reclaim`] removes.
//!
//! A segment's name is `/shmirror-<identity>-<number>`, both in 16 hexadecimal digits: the identity is the
//! life of the source or destination that made it, the number is random.
//!
//! Invariants:
//! 1. A segment is as long as was asked for, and all of it is allocated, before anybody is told of it: no
//!    space is an error here and no SIGBUS later.
//! 2. A name is removed only if it leads to the very file that was made or opened here, or, in [`reclaim`],
//!    to one whose first bytes say what its name says.
//! 3. `shared_memory`'s own removal on drop is switched off, as that goes by name alone, in a forked child,
//!    too.
//!
//! What it does not do: nothing here can be sealed. The peer maps a segment with its own process's right to
//! write it, can cut it short, and make who touches it then die of SIGBUS. That is why only processes of one
//! user can share one: its mode is 0600, which the crate decides.
//!
//! Source: `shm_overview(7)`, `tmpfs(5)`, `posix_fallocate(3)`; `shared_memory` 0.12's `src/unix.rs`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use shared_memory::{Shmem, ShmemConf, ShmemError};

use super::fork::Creator;
use super::memfd::{STAT_BLOCK_BYTES, allocate, file_size_limit};
use super::process::{own_uid, random_u64};

/// Why a segment could not be made or accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SegmentError {
    /// The process may not make files that long, and trying would kill it with SIGXFSZ.
    #[error(
        "a segment of {wanted} bytes is longer than the files this process may make, {limit} bytes \
         (RLIMIT_FSIZE); raise that limit (ulimit -f) or use a smaller ring_bytes"
    )]
    FileSizeLimit {
        /// In bytes.
        wanted: u64,
        /// The limit.
        limit: u64,
    },
    /// The file system of segments is full.
    #[error(
        "no room for a segment of {wanted} bytes in {SHM_DIR}, which has {free} bytes free ({source}); \
         make that larger or use a smaller ring_bytes"
    )]
    NoSpace {
        /// In bytes.
        wanted: u64,
        /// What the file system says that it has left, in bytes.
        free: u64,
        /// Why it failed.
        source: io::Error,
    },
    /// The peer's segment is not where we look.
    #[error(
        "the segment {} that the peer named does not exist; both sides must see the same {SHM_DIR}",
        path.display()
    )]
    NotFound {
        /// Where.
        path: PathBuf,
    },
    /// Something else has that name.
    #[error("{} is {found}, expected a segment", path.display())]
    NotASegment {
        /// Where.
        path: PathBuf,
        /// What was found.
        found: &'static str,
    },
    /// Another user made it, or can open it.
    #[error(
        "the segment {} belongs to user {uid} and has mode {mode:03o}, expected user {expected} and mode 600",
        path.display()
    )]
    Owner {
        /// Where.
        path: PathBuf,
        /// The user found.
        uid: u32,
        /// The mode found.
        mode: u32,
        /// The user expected.
        expected: u32,
    },
    /// It is longer than we are willing to map.
    #[error("the segment {} is {found} bytes long, expected at most {max}", path.display())]
    TooLong {
        /// Where.
        path: PathBuf,
        /// What was found.
        found: u64,
        /// The most that is allowed.
        max: u64,
    },
    /// It does not have the length that the handshake announced.
    #[error("the segment {} is {found} bytes long, expected {expected}", path.display())]
    Length {
        /// Where.
        path: PathBuf,
        /// What was found.
        found: u64,
        /// What was expected.
        expected: u64,
    },
    /// Its length is a claim: pages are missing.
    #[error(
        "the segment {} has {allocated} of its {expected} bytes allocated, expected all of them",
        path.display()
    )]
    Sparse {
        /// Where.
        path: PathBuf,
        /// In bytes.
        allocated: u64,
        /// What was expected.
        expected: u64,
    },
    /// The crate that makes and opens segments failed.
    #[error("cannot {action} the segment {}: {source}", path.display())]
    Shmem {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// A segment that this process made. Dropping it removes its name, if it is still there; the mapping is its
/// own.
#[derive(Debug)]
pub(crate) struct Segment {
    number: u64,
    file: NamedFile,
    creator: Creator,
}

/// A segment of a peer's that was opened, and is still under its name.
#[derive(Debug)]
pub(crate) struct Opened(NamedFile);

/// A path, and the file that it led to.
#[derive(Debug)]
struct NamedFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Segment {
    /// Makes a segment of `len_bytes` for this life of a source or destination; answers its mapping as well.
    ///
    /// # Errors
    /// [`SegmentError`]; nothing is left behind then.
    pub(crate) fn create(identity: u64, len_bytes: u64) -> Result<(Segment, Shmem), SegmentError> {
        let limit = file_size_limit();
        if len_bytes > limit {
            return Err(SegmentError::FileSizeLimit { wanted: len_bytes, limit });
        }
        let (number, name, shmem) = create_under_new_name(identity, len_bytes)?;
        let path = path_of(&name);
        let failed = |action| {
            let path = path.clone();
            move |source| SegmentError::Shmem { action, path, source }
        };
        let creator = match Creator::here() {
            Ok(creator) => creator,
            Err(error) => {
                let _ = std::fs::remove_file(&path); // the first error is the one to tell
                return Err(failed("guard")(error));
            }
        };
        let file = match open_file(&path, true).and_then(|file| Ok((NamedFile::of(&path, &file)?, file))) {
            Ok((named, file)) => {
                // from here on its name goes when this is dropped
                let segment = Segment { number, file: named, creator };
                allocate(file.as_fd(), len_bytes).map_err(|errno| no_space(len_bytes, &path, errno))?;
                return Ok((segment, shmem));
            }
            Err(error) => error,
        };
        let _ = std::fs::remove_file(&path); // as above
        Err(failed("open")(file))
    }

    /// What the peer must be told.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if self.creator.is_this_process() {
            self.file.remove();
        }
    }
}

/// Opens a peer's segment, after checking that it is one of this user's, of that length and all there.
///
/// # Errors
/// [`SegmentError`], with what was found and what was expected.
pub(crate) fn open(
    identity: u64,
    number: u64,
    expected_bytes: u64,
    max_bytes: u64,
) -> Result<(Opened, Shmem), SegmentError> {
    let name = name_of(identity, number);
    let path = path_of(&name);
    let failed = |source: io::Error| match source.raw_os_error() {
        Some(libc::ENOENT) => SegmentError::NotFound { path: path_of(&name) },
        Some(libc::ELOOP) => SegmentError::NotASegment { path: path_of(&name), found: "a symbolic link" },
        _ => SegmentError::Shmem { action: "open", path: path_of(&name), source },
    };
    let file = open_file(&path, false).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    if !found.is_file() {
        return Err(SegmentError::NotASegment { path, found: "no regular file" });
    }
    let (uid, mode, expected) = (found.uid(), found.mode() & 0o777, own_uid());
    if uid != expected || mode & 0o077 != 0 {
        return Err(SegmentError::Owner { path, uid, mode, expected });
    }
    if found.len() > max_bytes {
        return Err(SegmentError::TooLong { path, found: found.len(), max: max_bytes });
    }
    if found.len() != expected_bytes {
        return Err(SegmentError::Length { path, found: found.len(), expected: expected_bytes });
    }
    let allocated = found.blocks().saturating_mul(STAT_BLOCK_BYTES);
    if allocated < expected_bytes {
        return Err(SegmentError::Sparse { path, allocated, expected: expected_bytes });
    }
    let shmem = ShmemConf::new().os_id(&name).open().map_err(|error| failed(to_io(error)))?;
    // it opens by name and maps what it finds: another file, perhaps, than was looked at
    if shmem.len() as u64 != expected_bytes {
        return Err(SegmentError::Length { path, found: shmem.len() as u64, expected: expected_bytes });
    }
    let named = NamedFile { path, device: found.dev(), inode: found.ino() };
    Ok((Opened(named), shmem))
}

impl Opened {
    /// Removes the name: both sides have the memory, and nobody else is to find it.
    pub(crate) fn unlink(self) {
        self.0.remove();
    }
}

/// Removes the segments of a life that is over: those whose name says so, if `is_its_own` says so of the first
/// bytes, too, of which any may be 0 if it was killed before or while it wrote them. Whoever calls this knows that it is over.
///
/// # Errors
/// The directory of segments cannot be read.
pub(crate) fn reclaim(identity: u64, is_its_own: impl Fn(&[u8; HEADER_BYTES]) -> bool) -> io::Result<()> {
    let prefix = format!("{}{identity:016x}-", &PREFIX[1..]);
    for entry in std::fs::read_dir(SHM_DIR)? {
        let name = entry?.file_name();
        if !name.to_str().is_some_and(|name| name.starts_with(&prefix)) {
            continue;
        }
        let path = Path::new(SHM_DIR).join(name);
        // one that is gone, or another user's, is not ours to remove
        if let Ok(mut file) = open_file(&path, false)
            && let Ok(named) = NamedFile::of(&path, &file)
            && header(&mut file).is_some_and(|header| is_its_own(&header))
        {
            named.remove();
        }
    }
    Ok(())
}

/// The first bytes of a file that is all ours; `None` if it is none, or has some but not so many.
fn header(file: &mut File) -> Option<[u8; HEADER_BYTES]> {
    let found = file.metadata().ok()?;
    if !found.is_file() || found.uid() != own_uid() {
        return None;
    }
    let mut header = [0; HEADER_BYTES];
    match file.read_exact(&mut header) {
        Err(_) if found.len() > 0 => None,
        _ => Some(header),
    }
}

impl NamedFile {
    fn of(path: &Path, file: &File) -> io::Result<NamedFile> {
        let found = file.metadata()?;
        Ok(NamedFile { path: path.to_owned(), device: found.dev(), inode: found.ino() })
    }

    /// Removes the name, if it leads to the file. Whoever calls this has nobody to tell of a failure.
    fn remove(&self) {
        let Ok(found) = self.path.symlink_metadata() else { return };
        if (found.dev(), found.ino()) == (self.device, self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn create_under_new_name(identity: u64, len_bytes: u64) -> Result<(u64, String, Shmem), SegmentError> {
    let mut taken = String::new();
    for _ in 0..NAME_ATTEMPTS {
        let number = random_u64().map_err(|source| SegmentError::Shmem {
            action: "find a name for",
            path: path_of(&taken),
            source,
        })?;
        let name = name_of(identity, number);
        match ShmemConf::new().os_id(&name).size(len_bytes as usize).create() {
            Ok(mut shmem) => {
                shmem.set_owner(false);
                return Ok((number, name, shmem));
            }
            Err(ShmemError::MappingIdExists) => taken = name,
            Err(error) => {
                let source = to_io(error);
                return Err(SegmentError::Shmem { action: "create", path: path_of(&name), source });
            }
        }
    }
    let source = io::ErrorKind::AlreadyExists.into();
    Err(SegmentError::Shmem { action: "create", path: path_of(&taken), source })
}

fn no_space(wanted: u64, path: &Path, errno: Errno) -> SegmentError {
    let source = errno.into();
    if !matches!(errno, Errno::ENOSPC | Errno::ENOMEM | Errno::EDQUOT) {
        return SegmentError::Shmem { action: "allocate", path: path.to_owned(), source };
    }
    let free = nix::sys::statvfs::statvfs(SHM_DIR)
        .map_or(0, |found| found.blocks_available().saturating_mul(found.fragment_size()));
    SegmentError::NoSpace { wanted, free, source }
}

fn open_file(path: &Path, write: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(write).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

fn name_of(identity: u64, number: u64) -> String {
    format!("{PREFIX}{identity:016x}-{number:016x}")
}

fn path_of(name: &str) -> PathBuf {
    Path::new(SHM_DIR).join(name.trim_start_matches('/'))
}

/// What the crate says, in the system's words where it has the error's number.
fn to_io(error: ShmemError) -> io::Error {
    match error {
        ShmemError::MapCreateFailed(errno)
        | ShmemError::MapOpenFailed(errno)
        | ShmemError::UnknownOsError(errno) => io::Error::from_raw_os_error(errno as i32),
        other => io::Error::other(other.to_string()),
    }
}

/// Where the C libraries of Linux keep what `shm_open(3)` makes.
const SHM_DIR: &str = "/dev/shm";
const PREFIX: &str = "/shmirror-";

/// A random name that is taken is bad luck; so many are somebody's doing.
const NAME_ATTEMPTS: u32 = 8;

/// So much of a segment says whose it is.
pub(crate) const HEADER_BYTES: usize = 32;

#[cfg(test)]
#[path = "segment_tests.rs"]
mod tests;
