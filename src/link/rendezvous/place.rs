//! The runtime directory and the names in it.

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::kind_of;
use crate::sys::process::own_uid;

/// The directory in which sources of this user, or of this host, meet their destinations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RuntimeDir {
    path: PathBuf,
    /// We chose it, so it must be fit for us; a directory chosen by the user is the user's to judge.
    by_default: bool,
}

/// Where one source is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    dir: RuntimeDir,
    name: String,
}

/// Why something cannot be a source's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// There is nothing.
    #[error("the source's name is empty, expected 1 to {MAX_NAME_BYTES} bytes")]
    Empty,
    /// There is too much.
    #[error("the source's name is {found} bytes long, expected at most {MAX_NAME_BYTES}")]
    TooLong {
        /// What was found.
        found: usize,
    },
    /// A character that has a meaning in paths, or none on a terminal.
    #[error("the source's name {name:?} contains {found:?}, expected neither '/' nor control characters")]
    Character {
        /// The name.
        name: String,
        /// What was found.
        found: char,
    },
    /// It means a directory.
    #[error("the source's name is {found:?}, expected one that does not mean a directory")]
    Dots {
        /// What was found.
        found: String,
    },
    /// The kernel limits the paths of sockets.
    #[error(
        "the path {} and its suffix take {found} bytes, expected at most {MAX_SOCKET_PATH_BYTES}; \
         use a shorter name or runtime directory", path.display()
    )]
    PathTooLong {
        /// Where.
        path: PathBuf,
        /// What was found.
        found: usize,
    },
}

/// What is wrong with the runtime directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeDirError {
    /// It is none, or a link to one, which its owner could bend.
    #[error("runtime directory {} is {found}, expected a directory", path.display())]
    NotADirectory {
        /// Where.
        path: PathBuf,
        /// What was found.
        found: &'static str,
    },
    /// Someone else was there first.
    #[error(
        "runtime directory {} belongs to user {found}, expected {expected}; \
         set SHMIRROR_RUNTIME_DIR to a directory of your own", path.display()
    )]
    Owner {
        /// Where.
        path: PathBuf,
        /// What was found.
        found: u32,
        /// What was expected.
        expected: u32,
    },
    /// Others could put their sockets in place of ours.
    #[error(
        "runtime directory {} has mode {found:03o}, expected one that only its owner can write to; \
         chmod go-w it", path.display()
    )]
    Mode {
        /// Where.
        path: PathBuf,
        /// What was found.
        found: u32,
    },
    /// A system call failed.
    #[error("cannot {action} runtime directory {}: {source}", path.display())]
    Os {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl RuntimeDir {
    /// The directory: `explicit`, else `$SHMIRROR_RUNTIME_DIR`, else `$XDG_RUNTIME_DIR/shmirror`, else
    /// `/run/shmirror` for root, else `/tmp/shmirror-<uid>`. An empty variable counts as unset, and so does a
    /// relative `$XDG_RUNTIME_DIR`.
    ///
    /// # Errors
    /// A relative path was given, and there is no current directory.
    pub(crate) fn locate(explicit: Option<&Path>) -> Result<RuntimeDir, RuntimeDirError> {
        Self::choose(explicit, |variable| std::env::var_os(variable), own_uid())
    }

    pub(super) fn choose(
        explicit: Option<&Path>,
        variable: impl Fn(&str) -> Option<OsString>,
        uid: u32,
    ) -> Result<RuntimeDir, RuntimeDirError> {
        let set = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(chosen) = explicit.map(PathBuf::from).or_else(|| set("SHMIRROR_RUNTIME_DIR")) {
            // made absolute now: the process may change its directory before it removes its files
            let path = std::path::absolute(&chosen).map_err(|source| RuntimeDirError::Os {
                action: "find",
                path: chosen,
                source,
            })?;
            return Ok(RuntimeDir { path, by_default: false });
        }
        let path = match set("XDG_RUNTIME_DIR").filter(|path| path.is_absolute()) {
            Some(users) => users.join("shmirror"),
            None if uid == 0 => PathBuf::from("/run/shmirror"),
            None => PathBuf::from(format!("/tmp/shmirror-{uid}")),
        };
        Ok(RuntimeDir { path, by_default: true })
    }

    /// Its path; it need not exist.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Creates it, with mode 0700, unless it exists; checks whose it is, if we chose it.
    ///
    /// # Errors
    /// It cannot be created, or is not fit for us.
    pub(crate) fn prepare(&self) -> Result<(), RuntimeDirError> {
        let os = |action| move |source| RuntimeDirError::Os { action, path: self.path.clone(), source };
        let created = DirBuilder::new().recursive(!self.by_default).mode(0o700).create(&self.path);
        match created {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(os("create")(error)),
            _ => {}
        }
        // of the one we chose, the link itself and not what it leads to: in /tmp, anybody may have made it
        let found = if self.by_default { self.path.symlink_metadata() } else { self.path.metadata() };
        let found = found.map_err(os("examine"))?;
        let path = self.path.clone();
        if !found.is_dir() {
            return Err(RuntimeDirError::NotADirectory { path, found: kind_of(&found) });
        }
        if !self.by_default {
            return Ok(());
        }
        if found.uid() != own_uid() {
            return Err(RuntimeDirError::Owner { path, found: found.uid(), expected: own_uid() });
        }
        let mode = found.permissions().mode() & 0o7777;
        if mode & 0o022 != 0 {
            return Err(RuntimeDirError::Mode { path, found: mode });
        }
        Ok(())
    }
}

impl Place {
    /// The place of the source `name` in `dir`.
    ///
    /// # Errors
    /// [`NameError`], if that cannot be a name, or not in this directory.
    pub(crate) fn new(dir: RuntimeDir, name: &str) -> Result<Place, NameError> {
        check_name(name)?;
        let place = Place { dir, name: name.to_owned() };
        let longest = place.new_socket();
        let found = longest.as_os_str().as_bytes().len();
        if found > MAX_SOCKET_PATH_BYTES {
            return Err(NameError::PathTooLong { path: place.socket(), found });
        }
        Ok(place)
    }

    /// The directory.
    pub(crate) fn dir(&self) -> &RuntimeDir {
        &self.dir
    }

    /// The source's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The path of the socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.file(SOCKET_SUFFIX)
    }

    pub(super) fn socket_file_name(&self) -> OsString {
        format!("{}{SOCKET_SUFFIX}", self.name).into()
    }

    pub(super) fn new_socket(&self) -> PathBuf {
        self.file(NEW_SOCKET_SUFFIX)
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.file(LOCK_SUFFIX)
    }

    /// Where the lease of a life of its source, or of a destination of it, is.
    #[cfg(feature = "named-region")]
    pub(super) fn lease(&self, identity: u64) -> PathBuf {
        self.file(&format!(".{identity:016x}{LEASE_SUFFIX}"))
    }

    /// Whose lease a file of that name is, if it is one of this place.
    #[cfg(feature = "named-region")]
    pub(super) fn lease_of(&self, file_name: &str) -> Option<u64> {
        let digits = file_name.strip_prefix(&self.name)?.strip_prefix('.')?.strip_suffix(LEASE_SUFFIX)?;
        let identity = u64::from_str_radix(digits, 16).ok()?;
        (digits == format!("{identity:016x}")).then_some(identity)
    }

    fn file(&self, suffix: &str) -> PathBuf {
        self.dir.path.join(format!("{}{suffix}", self.name))
    }
}

fn check_name(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(NameError::TooLong { found: name.len() });
    }
    if let Some(found) = name.chars().find(|character| *character == '/' || character.is_control()) {
        return Err(NameError::Character { name: name.to_owned(), found });
    }
    if name == "." || name == ".." {
        return Err(NameError::Dots { found: name.to_owned() });
    }
    Ok(())
}

/// The longest name. It leaves 33 bytes of a socket's path for the directory, more with a shorter name.
pub(crate) const MAX_NAME_BYTES: usize = 64;

/// What fits `sun_path` with the NUL at its end.
const MAX_SOCKET_PATH_BYTES: usize = 107;

// No name's file is another's: a name's own end lies before its suffix, and no suffix ends in another.
const SOCKET_SUFFIX: &str = ".sock";
const NEW_SOCKET_SUFFIX: &str = ".sock.new";
const LOCK_SUFFIX: &str = ".lock";
#[cfg(feature = "named-region")]
const LEASE_SUFFIX: &str = ".lease";
