//! A thread that no signal reaches, scheduled as its owner says.
//!
//! Source: `pthread_sigmask(3)`, `sched(7)`, `setpriority(2)` (on Linux, of one thread), `sched_setaffinity(2)`.

#![allow(unsafe_code)]

use std::io;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::unistd::Pid;

/// How a thread of the library is called and scheduled. The default: as the thread that starts it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ThreadOptions {
    /// Its name, 1 to 15 bytes, as `ps -L` and debuggers show it; `None` for the library's own.
    pub name: Option<String>,
    /// Its scheduling policy; `None` for that of the thread that starts it.
    pub schedule: Option<Schedule>,
    /// The cpus on which it may run, by number; none named: those of the thread that starts it.
    pub cpus: Vec<usize>,
}

/// A scheduling policy of Linux, see `sched(7)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Schedule {
    /// `SCHED_OTHER`, the usual one, with a nice value from -20 (first) to 19 (last). To go below the present one takes
    /// `CAP_SYS_NICE` or `RLIMIT_NICE`.
    Other {
        /// The nice value.
        nice: i8,
    },
    /// `SCHED_BATCH`: as `Other`, but never preempts for having slept.
    Batch {
        /// The nice value.
        nice: i8,
    },
    /// `SCHED_IDLE`: when nobody else wants the cpu.
    Idle,
    /// `SCHED_FIFO`: before all others, until it waits. Takes `CAP_SYS_NICE` or `RLIMIT_RTPRIO`.
    Fifo {
        /// From 1 (last) to 99 (first).
        priority: u8,
    },
    /// `SCHED_RR`: as `Fifo`, in turns with those of the same priority.
    RoundRobin {
        /// From 1 (last) to 99 (first).
        priority: u8,
    },
}

/// Why a thread cannot be started as it should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ThreadError {
    /// The name does not fit.
    #[error("thread name {found:?}, expected 1 to {MAX_NAME_BYTES} bytes without a zero byte")]
    Name {
        /// The name.
        found: String,
    },
    /// A number is out of its range.
    #[error("{what} {found}, expected {expected}")]
    OutOfRange {
        /// Which number.
        what: &'static str,
        /// Its value.
        found: i64,
        /// What would do.
        expected: String,
    },
    /// The kernel does not grant the policy.
    #[error("the kernel refuses {schedule:?} for the thread: {source}; it takes {needs}")]
    Schedule {
        /// What was asked for.
        schedule: Schedule,
        /// What it takes.
        needs: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel does not grant the cpus.
    #[error(
        "the thread cannot be bound to the cpus {cpus:?}: {source}; expected one at least that is there and allowed"
    )]
    Cpus {
        /// What was asked for.
        cpus: Vec<usize>,
        /// What the kernel said.
        source: io::Error,
    },
    /// There are no resources for a thread.
    #[error("a thread cannot be started: {0}")]
    Io(#[from] io::Error),
}

/// Starts a thread in which all signals are blocked: they are the application's, and so are its handlers. When this returns,
/// the thread is scheduled as it should be, or there is none.
///
/// # Errors
/// [`ThreadError`]; then `run` was not called, and is dropped.
pub(crate) fn spawn_signal_free(
    default_name: &str,
    options: &ThreadOptions,
    run: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, ThreadError> {
    options.check()?;
    let name = options.name.as_deref().unwrap_or(default_name).to_owned();
    let (options, is_scheduled) = (options.clone(), options.schedule.is_some() || !options.cpus.is_empty());
    let (tell, told) = sync_channel(1);
    // A thread inherits its creator's mask, so that no signal can slip in before it could block them itself.
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).map_err(io::Error::from)?;
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        let outcome = options.apply_here();
        let go_on = outcome.is_ok();
        // Who started it waits for this, or need not know.
        let _ = tell.send(outcome);
        if go_on {
            run();
        }
    });
    before.thread_set_mask().map_err(io::Error::from)?;
    let thread = thread?;
    if is_scheduled && let Err(error) = told.recv().expect("the thread tells before all else") {
        thread.join().expect("it has ended in order");
        return Err(error);
    }
    Ok(thread)
}

impl ThreadOptions {
    fn check(&self) -> Result<(), ThreadError> {
        if let Some(name) = &self.name
            && (name.is_empty() || name.len() > MAX_NAME_BYTES || name.contains('\0'))
        {
            return Err(ThreadError::Name { found: name.clone() });
        }
        let most = CpuSet::count() as i64 - 1;
        for cpu in self.cpus.iter().map(|cpu| i64::try_from(*cpu).unwrap_or(i64::MAX)) {
            in_range("cpu", cpu, 0, most)?;
        }
        match self.schedule {
            Some(Schedule::Other { nice } | Schedule::Batch { nice }) => {
                in_range("nice value", nice.into(), -20, 19)
            }
            Some(Schedule::Fifo { priority } | Schedule::RoundRobin { priority }) => {
                in_range("real-time priority", priority.into(), 1, 99)
            }
            Some(Schedule::Idle) | None => Ok(()),
        }
    }

    /// Applies it to the calling thread.
    fn apply_here(&self) -> Result<(), ThreadError> {
        if !self.cpus.is_empty() {
            let refused =
                |errno: nix::Error| ThreadError::Cpus { cpus: self.cpus.clone(), source: errno.into() };
            let mut cpus = CpuSet::new();
            self.cpus.iter().try_for_each(|cpu| cpus.set(*cpu)).map_err(refused)?;
            sched_setaffinity(Pid::from_raw(0), &cpus).map_err(refused)?;
        }
        if let Some(schedule) = self.schedule {
            let needs = schedule.needs();
            schedule.apply_here().map_err(|source| ThreadError::Schedule { schedule, needs, source })?;
        }
        Ok(())
    }
}

impl Schedule {
    fn needs(self) -> &'static str {
        match self {
            Schedule::Other { .. } | Schedule::Batch { .. } | Schedule::Idle => "CAP_SYS_NICE or RLIMIT_NICE",
            Schedule::Fifo { .. } | Schedule::RoundRobin { .. } => "CAP_SYS_NICE or RLIMIT_RTPRIO",
        }
    }

    fn apply_here(self) -> io::Result<()> {
        let (policy, priority, nice) = match self {
            Schedule::Other { nice } => (libc::SCHED_OTHER, 0, Some(nice)),
            Schedule::Batch { nice } => (libc::SCHED_BATCH, 0, Some(nice)),
            Schedule::Idle => (libc::SCHED_IDLE, 0, None),
            Schedule::Fifo { priority } => (libc::SCHED_FIFO, priority, None),
            Schedule::RoundRobin { priority } => (libc::SCHED_RR, priority, None),
        };
        let parameters = libc::sched_param { sched_priority: priority.into() };
        // SAFETY: the parameters live on our stack; 0 is the calling thread.
        check(unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) })?;
        if let Some(nice) = nice {
            // SAFETY: integers only; 0 is the calling thread, on Linux.
            check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice.into()) })?;
        }
        Ok(())
    }
}

fn check(outcome: libc::c_int) -> io::Result<()> {
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn in_range(what: &'static str, found: i64, least: i64, most: i64) -> Result<(), ThreadError> {
    if (least..=most).contains(&found) {
        return Ok(());
    }
    Err(ThreadError::OutOfRange { what, found, expected: format!("{least} to {most}") })
}

/// What Linux keeps of a name.
const MAX_NAME_BYTES: usize = 15;
