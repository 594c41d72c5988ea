//! Tests that need a process to themselves: those that fork, or change a limit of the whole process.

#![allow(unsafe_code)]

use std::os::fd::OwnedFd;
use std::process::Command;

use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

/// Runs `test` in a process in which no other test runs: the test binary calls itself for `name` alone.
pub(crate) fn alone(name: &str, test: impl FnOnce()) {
    if std::env::var_os(ALONE).is_some_and(|running| running == name) {
        return test();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(ALONE, name)
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} alone: {}\n{stdout}\n{stderr}", output.status);
    assert!(stdout.contains("1 passed"), "{name} is not the name of a test:\n{stdout}");
}

/// Runs `check` in a forked child; `Err` tells how the child ended if not with `true`.
pub(crate) fn forked(check: impl FnOnce() -> bool) -> Result<(), WaitStatus> {
    // SAFETY: callers run in `alone`; the only other thread is the harness's, which waits.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => exit(if check() { 0 } else { 1 }),
        ForkResult::Parent { child } => outcome_of(child),
    }
}

/// As [`forked`], past the C library, so that no fork handlers run.
pub(crate) fn cloned(check: impl FnOnce() -> bool) -> Result<(), WaitStatus> {
    // SAFETY: as in `forked`; without flags but the signal, clone is fork.
    match unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) } {
        0 => exit(if check() { 0 } else { 1 }),
        child => outcome_of(Pid::from_raw(i32::try_from(child).unwrap())),
    }
}

fn outcome_of(child: Pid) -> Result<(), WaitStatus> {
    match waitpid(child, None).unwrap() {
        WaitStatus::Exited(_, 0) => Ok(()),
        other => Err(other),
    }
}

/// Lets SIGPIPE kill this process, as it does any that is not written in Rust.
pub(crate) fn die_of_sigpipe() {
    // SAFETY: sets no handler.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }.unwrap();
}

/// A forked child that does nothing until [`LivingChild::finish`].
pub(crate) struct LivingChild {
    pid: Pid,
    release: OwnedFd,
}

/// Forks a child that lives until the write end `release` of its pipe is closed.
pub(crate) fn fork_until_closed(hold: OwnedFd, release: OwnedFd) -> LivingChild {
    // SAFETY: as in `forked`.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            drop(release);
            let _ = nix::unistd::read(&hold, &mut [0; 1]);
            exit(0)
        }
        ForkResult::Parent { child } => LivingChild { pid: child, release },
    }
}

impl LivingChild {
    /// Lets the child end, and waits for that.
    pub(crate) fn finish(self) {
        assert!(matches!(
            waitpid(self.pid, Some(nix::sys::wait::WaitPidFlag::WNOHANG)),
            Ok(WaitStatus::StillAlive)
        ));
        drop(self.release);
        assert_eq!(waitpid(self.pid, None), Ok(WaitStatus::Exited(self.pid, 0)));
    }
}

fn exit(status: i32) -> ! {
    // SAFETY: ends the child without running the parent's exit handlers.
    unsafe { libc::_exit(status) }
}

const ALONE: &str = "SHMIRROR_TEST_ALONE";
