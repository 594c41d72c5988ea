//! Shared memory that its receiver can trust to stay: a memfd, allocated in full and sealed.
//!
//! The creator makes it ([`create`]), maps it writable, and then closes the door behind itself
//! ([`seal_against_new_writers`]): from then on nobody, the creator included, can map it writable again,
//! write to it, resize it or punch holes into it. The receiver verifies all of that ([`check`]) before it
//! maps.
//!
//! Invariants after [`check`] returned `Ok`:
//! 1. The length is the expected one, for ever: no access within it raises SIGBUS by truncation.
//! 2. Every page exists, and none can be taken away: reading does not allocate on the reader's account.
//! 3. No new writable mapping can be made, by the receiver in particular.
//!
//! What it does not do: a process with ptrace rights over another, which the same user may have, can write
//! through the other's mapping. A memory cgroup at its limit kills rather than makes `fallocate` fail.
//!
//! Source: `memfd_create(2)`, `fcntl(2)` on file sealing; F_SEAL_FUTURE_WRITE needs Linux 5.1,
//! MFD_NOEXEC_SEAL 6.3.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::stat::fstat;

/// Why shared memory could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// The process may not make files that long, and trying would kill it with SIGXFSZ.
    #[error(
        "shared memory of {wanted} bytes is longer than the files this process may make, {limit} bytes \
         (RLIMIT_FSIZE); raise that limit (ulimit -f) or use a smaller ring_bytes"
    )]
    FileSizeLimit {
        /// In bytes.
        wanted: u64,
        /// The limit.
        limit: u64,
    },
    /// The system has not that much memory left.
    #[error("no room for {wanted} bytes of shared memory ({source}); free some or use a smaller ring_bytes")]
    NoSpace {
        /// In bytes.
        wanted: u64,
        /// Why it failed.
        source: io::Error,
    },
    /// A system call failed.
    #[error("{call} of {wanted} bytes of shared memory failed: {source}")]
    Os {
        /// What was tried.
        call: &'static str,
        /// In bytes.
        wanted: u64,
        /// Why it failed.
        source: io::Error,
    },
}

/// What is wrong with shared memory that a peer handed over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// It is some other kind of file.
    #[error("the peer's descriptor is not shared memory that can be sealed, expected a memfd")]
    NotMemfd,
    /// A seal is missing, so that the memory could change under us.
    #[error("the peer's shared memory has seals {found}, expected at least {expected}")]
    Seals {
        /// What was found.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// It is longer than we are willing to map.
    #[error("the peer's shared memory is {found} bytes long, expected at most {max}")]
    TooLong {
        /// What was found.
        found: u64,
        /// The most that is allowed.
        max: u64,
    },
    /// It does not have the length that the handshake announced.
    #[error("the peer's shared memory is {found} bytes long, expected {expected}")]
    Length {
        /// What was found.
        found: u64,
        /// What was expected.
        expected: u64,
    },
    /// Its length is a claim: pages are missing.
    #[error(
        "the peer's shared memory has {allocated} of its {expected} bytes allocated, expected all of them"
    )]
    Sparse {
        /// In bytes.
        allocated: u64,
        /// What was expected.
        expected: u64,
    },
    /// A system call failed.
    #[error("{call} on the peer's shared memory failed: {source}")]
    Os {
        /// What was tried.
        call: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// Makes `len_bytes` of shared memory, all of it allocated, sealed against resizing.
///
/// `name` shows in `/proc/<pid>/maps` and means nothing.
///
/// # Errors
/// [`CreateError`]; nothing is left behind then.
pub(crate) fn create(name: &CStr, len_bytes: u64) -> Result<OwnedFd, CreateError> {
    let os = |call| move |errno: Errno| CreateError::Os { call, wanted: len_bytes, source: errno.into() };
    let limit = file_size_limit();
    if len_bytes > limit {
        return Err(CreateError::FileSizeLimit { wanted: len_bytes, limit });
    }
    let fd = create_sealable(name).map_err(os("memfd_create"))?;
    allocate(fd.as_fd(), len_bytes).map_err(|errno| match errno {
        Errno::ENOSPC | Errno::ENOMEM => CreateError::NoSpace { wanted: len_bytes, source: errno.into() },
        other => os("fallocate")(other),
    })?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
    fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).map_err(os("F_ADD_SEALS"))?;
    Ok(fd)
}

/// Forbids every further writable mapping, write and seal. The creator's mapping, which it must have made
/// before, stays writable.
///
/// # Errors
/// The kernel is older than Linux 5.1 (`EINVAL`), or the memory is sealed already (`EPERM`).
pub(crate) fn seal_against_new_writers(fd: BorrowedFd<'_>) -> io::Result<()> {
    let seals = SealFlag::F_SEAL_FUTURE_WRITE | SealFlag::F_SEAL_SEAL;
    fcntl(fd, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(())
}

/// Checks that a peer's descriptor is sealed shared memory of `expected_bytes`, at most `max_bytes`, all
/// allocated.
///
/// # Errors
/// [`CheckError`], with what was found and what was expected.
pub(crate) fn check(fd: BorrowedFd<'_>, expected_bytes: u64, max_bytes: u64) -> Result<(), CheckError> {
    let seals = fcntl(fd, FcntlArg::F_GET_SEALS).map_err(|errno| match errno {
        Errno::EINVAL => CheckError::NotMemfd,
        other => CheckError::Os { call: "F_GET_SEALS", source: other.into() },
    })?;
    let found = SealFlag::from_bits_retain(seals);
    if !found.contains(REQUIRED_SEALS) {
        let (found, expected) = (SealNames(found).to_string(), SealNames(REQUIRED_SEALS).to_string());
        return Err(CheckError::Seals { found, expected });
    }
    // only now: a length that is not sealed is no fact
    let stat = fstat(fd).map_err(|errno| CheckError::Os { call: "fstat", source: errno.into() })?;
    let len = u64::try_from(stat.st_size).expect("the kernel reports no negative length");
    if len > max_bytes {
        return Err(CheckError::TooLong { found: len, max: max_bytes });
    }
    if len != expected_bytes {
        return Err(CheckError::Length { found: len, expected: expected_bytes });
    }
    let allocated = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(STAT_BLOCK_BYTES);
    if allocated < len {
        return Err(CheckError::Sparse { allocated, expected: len });
    }
    Ok(())
}

/// The longest file this process may make; `u64::MAX` if that is not limited.
pub(crate) fn file_size_limit() -> u64 {
    getrlimit(Resource::RLIMIT_FSIZE).map_or(u64::MAX, |(soft, _hard)| soft)
}

fn create_sealable(name: &CStr) -> nix::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    match memfd_create(name, flags | MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL)) {
        Err(Errno::EINVAL) => memfd_create(name, flags), // before Linux 6.3
        outcome => outcome,
    }
}

/// Allocates piece by piece: a signal undoes a `fallocate` under way, and a large one might never finish.
pub(super) fn allocate(fd: BorrowedFd<'_>, len_bytes: u64) -> nix::Result<()> {
    let mut at = 0;
    let mut interruptions = 0;
    while at < len_bytes {
        let piece = ALLOCATION_PIECE_BYTES.min(len_bytes - at);
        let offset = i64::try_from(at).map_err(|_| Errno::EFBIG)?;
        match fallocate(fd, FallocateFlags::empty(), offset, piece as i64) {
            Ok(()) => at += piece,
            Err(Errno::EINTR) if interruptions < MAX_INTERRUPTIONS => interruptions += 1,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

struct SealNames(SealFlag);

impl std::fmt::Display for SealNames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut separator = "";
        for (name, _) in self.0.iter_names() {
            write!(f, "{separator}{}", name.trim_start_matches("F_SEAL_"))?;
            separator = "|";
        }
        if separator.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

const REQUIRED_SEALS: SealFlag = SealFlag::F_SEAL_SEAL
    .union(SealFlag::F_SEAL_SHRINK)
    .union(SealFlag::F_SEAL_GROW)
    .union(SealFlag::F_SEAL_FUTURE_WRITE);

/// The unit of `st_blocks`, whatever the file system's block size.
pub(super) const STAT_BLOCK_BYTES: u64 = 512;

const ALLOCATION_PIECE_BYTES: u64 = 4 << 20;
const MAX_INTERRUPTIONS: u32 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::test_process::alone;

    const LEN: u64 = 8192;

    fn handed_over() -> OwnedFd {
        let fd = create(c"test", LEN).unwrap();
        seal_against_new_writers(fd.as_fd()).unwrap();
        fd
    }

    fn bare(len: i64) -> OwnedFd {
        let fd = memfd_create(c"test", MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&fd, len).unwrap();
        fd
    }

    #[test]
    fn sealed_memory_passes_the_check() {
        let fd = handed_over();
        check(fd.as_fd(), LEN, LEN).unwrap();
    }

    #[test]
    fn receiver_can_neither_write_nor_shrink_nor_grow_nor_punch() {
        let fd = handed_over();
        assert_eq!(nix::unistd::write(&fd, b"x"), Err(Errno::EPERM));
        assert_eq!(nix::unistd::ftruncate(&fd, 4096), Err(Errno::EPERM));
        assert_eq!(nix::unistd::ftruncate(&fd, 16384), Err(Errno::EPERM));
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        assert_eq!(fallocate(&fd, punch, 0, 4096), Err(Errno::EPERM));
        assert_eq!(fcntl(&fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)), Err(Errno::EPERM));
    }

    #[test]
    fn missing_seal_is_refused_by_name() {
        let fd = create(c"test", LEN).unwrap();
        let text = check(fd.as_fd(), LEN, LEN).unwrap_err().to_string();
        assert!(text.starts_with("the peer's shared memory has seals SHRINK|GROW"), "{text}");
        assert!(text.ends_with("expected at least SEAL|SHRINK|GROW|FUTURE_WRITE"), "{text}");
    }

    #[test]
    fn sparse_memory_is_refused() {
        let fd = bare(1 << 40);
        fcntl(&fd, FcntlArg::F_ADD_SEALS(REQUIRED_SEALS)).unwrap();
        let text = check(fd.as_fd(), 1 << 40, u64::MAX).unwrap_err().to_string();
        assert_eq!(
            text,
            "the peer's shared memory has 0 of its 1099511627776 bytes allocated, expected all of them"
        );
    }

    #[test]
    fn wrong_length_is_refused_with_both_lengths() {
        let fd = handed_over();
        let wrong = check(fd.as_fd(), 4096, LEN).unwrap_err().to_string();
        assert_eq!(wrong, "the peer's shared memory is 8192 bytes long, expected 4096");
        let long = check(fd.as_fd(), LEN, 4096).unwrap_err().to_string();
        assert_eq!(long, "the peer's shared memory is 8192 bytes long, expected at most 4096");
    }

    #[test]
    fn other_kinds_of_file_are_refused() {
        let (pipe, _writer) = nix::unistd::pipe().unwrap();
        assert!(matches!(check(pipe.as_fd(), 0, 0), Err(CheckError::NotMemfd)));
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        assert!(matches!(check(file.as_fd(), 0, 0), Err(CheckError::NotMemfd)));
    }

    #[test]
    fn file_size_limit_is_an_error_and_no_signal() {
        alone("sys::memfd::tests::file_size_limit_is_an_error_and_no_signal", || {
            nix::sys::resource::setrlimit(Resource::RLIMIT_FSIZE, 4096, 4096).unwrap();
            let text = create(c"test", LEN).unwrap_err().to_string();
            assert!(
                text.contains("of 8192 bytes is longer than") && text.contains("4096 bytes (RLIMIT_FSIZE)")
            );
            create(c"test", 4096).unwrap();
        });
    }
}
