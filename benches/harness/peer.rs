//! Processes: forked, pinned, watched, and gone at the end.

#![allow(unsafe_code)]

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{BOUND, CELL_BOUND, cpu};

/// Words that a process and those that it forks share, each in cache lines of its own.
#[derive(Debug)]
pub(crate) struct Words {
    at: *mut u8,
    bytes: usize,
}

const WORD_SPACING: usize = 128;

impl Words {
    /// So many words, all zero.
    pub(crate) fn new(count: usize) -> Words {
        let bytes = (count * WORD_SPACING).next_multiple_of(4096);
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        // SAFETY: a new mapping, wherever there is room.
        let at = unsafe { libc::mmap(ptr::null_mut(), bytes, access, kind, -1, 0) };
        assert!(at != libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
        Words { at: at.cast(), bytes }
    }

    /// One of them.
    pub(crate) fn word(&self, index: usize) -> &AtomicU64 {
        assert!((index + 1) * WORD_SPACING <= self.bytes);
        // SAFETY: within the mapping.
        let at = unsafe { self.at.add(index * WORD_SPACING) };
        // SAFETY: mapped, aligned, zeroed at first, and accessed by atomics only.
        unsafe { AtomicU64::from_ptr(at.cast()) }
    }

    /// The whole cache line of a word: that word and seven more.
    pub(crate) fn line(&self, index: usize) -> &[AtomicU64; 8] {
        assert!((index + 1) * WORD_SPACING <= self.bytes);
        // SAFETY: within the mapping.
        let at = unsafe { self.at.add(index * WORD_SPACING) };
        // SAFETY: as above, and a line is half as long as the distance of two words.
        unsafe { &*at.cast() }
    }

    pub(crate) fn get(&self, index: usize) -> u64 {
        self.word(index).load(Ordering::Acquire)
    }

    pub(crate) fn set(&self, index: usize, value: u64) {
        self.word(index).store(value, Ordering::Release);
    }

    /// Waits until a word is at least so large; gives way to others meanwhile.
    pub(crate) fn wait_for(&self, index: usize, value: u64) {
        let since = Instant::now();
        while self.get(index) < value {
            assert!(since.elapsed() < BOUND, "word {index} is {}, expected {value}", self.get(index));
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and no reference outlives `self`.
        unsafe { libc::munmap(self.at.cast(), self.bytes) };
    }
}

/// A forked process. It dies with the one that forked it.
#[derive(Debug)]
pub(crate) struct Peer {
    pid: i32,
}

/// Runs `body` in a forked process on these cpus. To be called while this process has one thread.
pub(crate) fn fork_on(cpus: &[usize], body: impl FnOnce()) -> Peer {
    io::stdout().flush().expect("stdout takes what was printed");
    // SAFETY: this process has one thread, so the child may do anything.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", io::Error::last_os_error());
    if pid > 0 {
        return Peer { pid };
    }
    // SAFETY: asks for a signal at the parent's death; no memory is involved.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    cpu::pin_all(cpus);
    let outcome = catch_unwind(AssertUnwindSafe(body));
    // SAFETY: ends the process at once; what the parent's copy of the stack holds is the parent's to drop.
    unsafe { libc::_exit(i32::from(outcome.is_err())) }
}

impl Peer {
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits for its end, which must be a good one.
    pub(crate) fn join(self) {
        self.outcome(BOUND).unwrap_or_else(|why| panic!("{why}"));
    }

    /// Waits for its end, and says what was bad about it. One that does not end so soon is killed.
    fn outcome(mut self, within: Duration) -> Result<(), String> {
        let pid = self.pid;
        let since = Instant::now();
        let status = loop {
            match self.try_wait() {
                Some(status) => break status,
                None if since.elapsed() < within => std::thread::sleep(Duration::from_micros(200)),
                None => return Err(format!("process {pid} does not end")),
            }
        };
        self.pid = 0;
        match status {
            0 => Ok(()),
            _ if libc::WIFSIGNALED(status) => {
                Err(format!("process {pid} was ended by signal {}", libc::WTERMSIG(status)))
            }
            _ => Err(format!("process {pid} has failed: wait status {status:#x}")),
        }
    }

    /// Ends it, without warning.
    pub(crate) fn kill(&self) {
        // SAFETY: a signal to a child that was not waited for.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
    }

    fn try_wait(&self) -> Option<i32> {
        let mut status = 0;
        // SAFETY: our own child, and the target is an int.
        let waited = unsafe { libc::waitpid(self.pid, &raw mut status, libc::WNOHANG) };
        assert!(waited >= 0, "waitpid: {}", io::Error::last_os_error());
        (waited == self.pid).then_some(status)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if self.pid > 0 {
            self.kill();
            // SAFETY: our own child; nothing is written.
            unsafe { libc::waitpid(self.pid, ptr::null_mut(), 0) };
        }
    }
}

/// Runs `cell` in a process of its own on these cpus, and brings its result back.
pub(crate) fn isolated<T: Serialize + DeserializeOwned>(cpus: &[usize], cell: impl FnOnce() -> T) -> T {
    try_isolated(cpus, cell).unwrap_or_else(|why| panic!("{why}"))
}

/// As [`isolated`], or says why there is no result.
pub(crate) fn try_isolated<T: Serialize + DeserializeOwned>(
    cpus: &[usize],
    cell: impl FnOnce() -> T,
) -> Result<T, String> {
    try_isolated_within(CELL_BOUND, cpus, cell)
}

/// As [`try_isolated`]. A cell that takes longer, which is at least a second, is ended by an alarm, and what it has forked with it.
fn try_isolated_within<T: Serialize + DeserializeOwned>(
    bound: Duration,
    cpus: &[usize],
    cell: impl FnOnce() -> T,
) -> Result<T, String> {
    let (reader, writer) = pipe();
    let peer = fork_on(cpus, || {
        // SAFETY: sets a timer of this process; no memory is involved.
        unsafe { libc::alarm(bound.as_secs() as u32) };
        let result = serde_json::to_vec(&cell()).expect("results are plain data");
        io::Write::write_all(&mut std::fs::File::from(writer.try_clone().expect("a descriptor")), &result)
            .expect("the pipe takes the result");
    });
    drop(writer);
    let mut result = Vec::new();
    std::fs::File::from(reader).read_to_end(&mut result).expect("a pipe can be read");
    peer.outcome(BOUND)?;
    Ok(serde_json::from_slice(&result).expect("the cell has written its result"))
}

fn pipe() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = io::pipe().expect("two descriptors");
    (reader.into(), writer.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    // What is forked here has other threads beside it, whose locks may be taken for ever: it allocates and prints nothing.

    /// Forks a process that does this, and says how it ended.
    fn outcome_of(within: Duration, body: impl FnOnce()) -> (i32, Result<(), String>) {
        let peer = fork_on(&cpu::allowed(), body);
        let pid = peer.pid();
        (pid, peer.outcome(within))
    }

    fn is_gone(pid: i32) -> bool {
        // SAFETY: asks whether a process is there; nothing is sent.
        let found = unsafe { libc::kill(pid, 0) };
        found == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH)
    }

    #[test]
    fn a_good_end_is_one() {
        let (pid, outcome) = outcome_of(BOUND, || ());
        assert_eq!(outcome, Ok(()));
        assert!(is_gone(pid));
    }

    #[test]
    fn a_peer_that_dies_is_told_of() {
        // SAFETY: ends the process by a signal.
        let (pid, outcome) = outcome_of(BOUND, || unsafe { libc::abort() });
        assert_eq!(outcome, Err(format!("process {pid} was ended by signal {}", libc::SIGABRT)));
        // SAFETY: ends the process at once.
        let (pid, outcome) = outcome_of(BOUND, || unsafe { libc::_exit(3) });
        assert_eq!(outcome, Err(format!("process {pid} has failed: wait status 0x300")));
        assert!(is_gone(pid));
    }

    fn hang() {
        loop {
            // SAFETY: sleeps until a signal comes.
            unsafe { libc::pause() };
        }
    }

    #[test]
    fn a_peer_that_hangs_is_told_of_and_killed() {
        let (pid, outcome) = outcome_of(Duration::from_millis(50), hang);
        assert_eq!(outcome, Err(format!("process {pid} does not end")));
        assert!(is_gone(pid));
    }

    /// Its outcome is known only once both processes have closed the pipe: once both are gone.
    #[test]
    fn a_cell_that_hangs_ends_and_so_does_what_it_has_forked() {
        let outcome = try_isolated_within(Duration::from_secs(1), &cpu::allowed(), || {
            let _peer = fork_on(&cpu::allowed(), hang);
            hang();
        });
        let alarmed = format!("was ended by signal {}", libc::SIGALRM);
        assert!(outcome.as_ref().is_err_and(|why| why.ends_with(&alarmed)), "{outcome:?}");
    }
}
