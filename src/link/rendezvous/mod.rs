//! Where sources are found: a socket `<runtime dir>/<name>.sock`, and beside it the lock that says whether a
//! source lives.
//!
//! How it works: [`Place`] names the files. A source takes the name with
//! [`SourceListener::bind`](bind::SourceListener::bind); a destination comes with [`connect`], and if nobody
//! is there yet, waits with [`SourceWatch`](watch::SourceWatch).
//!
//! | file | what it is |
//! |---|---|
//! | `<name>.sock` | the socket; renamed into place once it listens, so that whoever sees it can connect |
//! | `<name>.lock` | locked by `flock` for as long as the source lives; holds its pid for people and messages |
//! | `<name>.sock.new` | the socket before it is renamed; only the holder of the lock makes it |
//! | `<name>.<identity>.lease` | with named regions: locked for as long as the source or destination lives that makes them |
//!
//! Invariants:
//! 1. Only the holder of the lock creates, replaces or removes any of these files (a lease is a lock of its own), and a
//!    lock counts only while the path leads to the very file that is locked.
//! 2. A source that ends removes all of them; what kill -9 left behind, the next source of that name takes
//!    over.
//! 3. A forked child holds neither lock nor socket, and removes nothing.
//!
//! What it does not do: it does not keep anybody out who may enter the directory. Who the peer is, its socket
//! tells after connecting.
//!
//! Source: `unix(7)`, `flock(2)`, `inotify(7)`.

pub(crate) mod bind;
#[cfg(feature = "named-region")]
pub(crate) mod lease;
pub(crate) mod place;
pub(crate) mod watch;

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use place::{Place, RuntimeDirError};

use crate::sys::socket::Socket;

/// Why there is no connection to a source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nobody is there, or not yet. Worth another try once the runtime directory has changed.
    #[error("no source at {}", path.display())]
    NoSource {
        /// Where.
        path: PathBuf,
    },
    /// More destinations are about to connect than the source accepts at a time. Worth another try soon.
    #[error("the source at {} has too many connections waiting to be accepted", path.display())]
    Busy {
        /// Where.
        path: PathBuf,
    },
    /// Something else has that name.
    #[error("{} is {found}, expected the socket of a source", path.display())]
    NotASource {
        /// Where.
        path: PathBuf,
        /// What was found.
        found: &'static str,
    },
    /// The file system does not let us in.
    #[error(
        "no permission to connect to {}; the source runs as another user, or its directory is closed to us",
        path.display()
    )]
    PermissionDenied {
        /// Where.
        path: PathBuf,
    },
    /// There is no directory in which a source could be.
    #[error(transparent)]
    RuntimeDir(#[from] RuntimeDirError),
    /// A system call failed.
    #[error("cannot connect to {}: {source}", path.display())]
    Other {
        /// Where.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// Connects to the source at `place`. Never waits.
///
/// # Errors
/// [`ConnectError`]; [`ConnectError::NoSource`] is what a destination meets that is there first.
pub(crate) fn connect(place: &Place) -> Result<Socket, ConnectError> {
    let path = place.socket();
    let error = match Socket::connect(&path) {
        Ok(socket) => return Ok(socket),
        Err(error) => error,
    };
    Err(match error.raw_os_error() {
        Some(libc::ENOENT) => ConnectError::NoSource { path },
        Some(libc::EAGAIN) => ConnectError::Busy { path },
        Some(libc::EACCES | libc::EPERM) => ConnectError::PermissionDenied { path },
        Some(libc::EPROTOTYPE) => ConnectError::NotASource { path, found: "a socket of another kind" },
        // the kernel says that of a socket without a listener, and of whatever is no socket at all
        Some(libc::ECONNREFUSED) => match std::fs::metadata(&path) {
            Ok(found) if !found.file_type().is_socket() => {
                ConnectError::NotASource { path, found: kind_of(&found) }
            }
            _ => ConnectError::NoSource { path },
        },
        Some(libc::ENOTDIR) => match place.dir().path().metadata() {
            Ok(found) if !found.is_dir() => {
                let path = place.dir().path().to_owned();
                RuntimeDirError::NotADirectory { path, found: kind_of(&found) }.into()
            }
            _ => ConnectError::Other { path, source: error },
        },
        _ => ConnectError::Other { path, source: error },
    })
}

fn kind_of(found: &std::fs::Metadata) -> &'static str {
    let kind = found.file_type();
    if kind.is_dir() {
        "a directory"
    } else if kind.is_file() {
        "a regular file"
    } else if kind.is_symlink() {
        "a symbolic link"
    } else {
        "a special file"
    }
}

#[cfg(test)]
mod tests;
