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

fn prefix_of(dir: &Path) -> String {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    format!("{name}_")
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let prefix = prefix_of(self.dir.path());
        let Ok(entries) = fs::read_dir(SHARED_MEMORY) else { return };
        let left = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
        for entry in left {
            if let Err(error) = fs::remove_file(entry.path()) {
                eprintln!("{} was not removed: {error}", entry.path().display());
            }
        }
    }
}
