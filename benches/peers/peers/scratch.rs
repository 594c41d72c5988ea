//! Where a run has its files: they go when it ends, whatever became of the processes that made them.

use std::fs;
use std::io;
use std::path::Path;

use tempfile::TempDir;

/// Where the system has the shared memory that has a name.
const SHARED_MEMORY: &str = "/dev/shm";

/// A directory in which every temporary one is made from now on, and names of shared memory that begin with its name.
#[derive(Debug)]
pub(crate) struct Scratch {
    dir: TempDir,
}

impl Scratch {
    /// To be called once, before there are other processes.
    pub(crate) fn new() -> io::Result<Scratch> {
        let dir = tempfile::Builder::new().prefix("shmirror-peers-").tempdir()?;
        tempfile::env::override_temp_dir(dir.path()).map_err(|other| {
            io::Error::other(format!("temporary files are in {} already", other.display()))
        })?;
        Ok(Scratch { dir })
    }
}

/// What names of shared memory are to begin with.
pub(crate) fn prefix() -> String {
    prefix_of(&tempfile::env::temp_dir())
}

/// How much shared memory there is room for, in bytes.
#[cfg(feature = "aeron")]
#[allow(unsafe_code)]
pub(crate) fn free_shared() -> io::Result<u64> {
    let path = std::ffi::CString::new(SHARED_MEMORY)?;
    // SAFETY: all zeroes is a value of the structure.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a string that ends with zero, and the target is what is asked for.
    let outcome = unsafe { libc::statvfs(path.as_ptr(), &raw mut found) };
    if outcome == 0 { Ok(found.f_bavail * found.f_frsize) } else { Err(io::Error::last_os_error()) }
}

/// A path of shared memory that belongs to this run.
#[cfg(any(feature = "aeron", test))]
pub(crate) fn shared(name: &str) -> std::path::PathBuf {
    Path::new(SHARED_MEMORY).join(prefix() + name)
}

fn prefix_of(dir: &Path) -> String {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    format!("{name}_")
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = remove_shared(&prefix_of(self.dir.path())) {
            eprintln!("shared memory in {SHARED_MEMORY} was not removed: {error}");
        }
    }
}

/// Removes all it can, and says what was the first that it could not.
fn remove_shared(prefix: &str) -> io::Result<()> {
    let remove = |entry: fs::DirEntry| {
        let is_dir = entry.file_type()?.is_dir();
        if is_dir { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) }
    };
    let entries = fs::read_dir(SHARED_MEMORY)?.filter_map(Result::ok);
    let own = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    own.map(remove).fold(Ok(()), Result::and)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_run_leaves_goes_with_it_and_nothing_else() {
        let scratch = Scratch::new().unwrap();
        let dir = scratch.dir.path().to_owned();
        let (_, left) = tempfile::NamedTempFile::new().unwrap().keep().unwrap();
        let (file, directory) = (shared("left"), shared("left-too"));
        let other = tempfile::NamedTempFile::new_in(SHARED_MEMORY).unwrap();
        fs::write(&file, "left").unwrap();
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("within"), "left").unwrap();
        assert!(left.starts_with(&dir));
        drop(scratch);
        assert!(!dir.exists() && !file.exists() && !directory.exists());
        assert!(other.path().exists(), "that is somebody else's");
    }
}
