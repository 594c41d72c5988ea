//! One descriptor for somebody else's event loop: readable when anything that is watched is ready, or a deadline has passed.
//!
//! ```text
//!   the application's epoll, or poll, select, …
//!        └── outer epoll                 its descriptor never changes
//!             ├── timerfd                the deadline
//!             └── inner epoll            all that a thread would sleep on
//!                  ├── wake-up, bells, sockets, pidfds, …
//! ```
//!
//! How it works: [`Notifier::mirror`] takes the set on which a thread would sleep next. If it is the one of last time, which
//! is almost always so, nothing is to be done. Else a *new* inner epoll is filled, takes the place of the old one, and that
//! one is closed. An epoll set keeps a registration for as long as any process holds the watched file open, a child by a bare
//! `clone(2)` even, and then tells of it for ever; so registrations are never taken out one by one, but forgotten all at once.
//! As numbers are used again, equal numbers do not mean the same files: the owner counts when it opens or closes one.
//!
//! Invariants:
//! 1. Level-triggered: readable for as long as there is reason to be, and no longer, but for the alarm below.
//! 2. The alarm is never later than the deadline. It may be earlier, by one that was set before: a deadline that moves away with
//!    each change costs no system call, and at most one wake-up for nothing. A new set takes its deadline exactly.
//! 3. If the system has no descriptors or memory left for a set, the descriptor becomes readable every 20 ms instead.
//!
//! What it does not do: it does not say what is ready; who is woken looks by itself. In a forked child the descriptors are
//! still its parent's: ask [`Creator`](super::fork::Creator) before any call.
//!
//! Source: `epoll(7)`, `timerfd_create(2)`.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::time::TimeSpec;
use nix::sys::timer::TimerSetTimeFlags;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags};

use super::poll::PollSet;

/// See the module.
#[derive(Debug)]
pub(crate) struct Notifier {
    outer: Arc<NotifierFd>,
    timer: TimerFd,
    /// None while nothing is watched.
    inner: Option<Epoll>,
    /// What `inner` watches, and the owner's count of then; `None` if it does not watch what it should.
    watched: Option<u64>,
    numbers: Vec<RawFd>,
    /// When the timer fires, or has fired and not been set since.
    alarm: Option<Instant>,
}

/// What the application watches; it may outlive the [`Notifier`], and is silent then.
#[derive(Debug)]
pub(crate) struct NotifierFd(Epoll);

/// How often to look when a set cannot be watched.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Keeps any deadline within what the kernel accepts; the owner is woken for nothing once a day.
const FARTHEST_ALARM: Duration = Duration::from_secs(24 * 3600);

impl Notifier {
    /// Makes one, readable from the start: nothing was looked at yet.
    ///
    /// # Errors
    /// No file descriptors or memory left.
    pub(crate) fn new() -> io::Result<Notifier> {
        let outer = new_epoll()?;
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        outer.add(&timer, readable())?;
        let outer = Arc::new(NotifierFd(outer));
        let mut notifier =
            Notifier { outer, timer, inner: None, watched: None, numbers: Vec::new(), alarm: None };
        notifier.alarm_now()?;
        Ok(notifier)
    }

    /// What the application watches.
    pub(crate) fn fd(&self) -> &Arc<NotifierFd> {
        &self.outer
    }

    /// From now on readable when anything in `set` is ready, or the deadline has passed. `opened` is a number that is
    /// another one whenever a descriptor of the set was opened or closed.
    ///
    /// # Errors
    /// No descriptors or memory left, or more are watched than `/proc/sys/fs/epoll/max_user_watches` allows. Then it is readable
    /// every 20 ms.
    pub(crate) fn mirror(&mut self, set: &PollSet, opened: u64, deadline: Option<Instant>) -> io::Result<()> {
        if self.watched == Some(opened)
            && set.descriptors().map(|(fd, _)| fd).eq(self.numbers.iter().copied())
        {
            return self.set_alarm(deadline, false);
        }
        match self.watch_anew(set) {
            Ok(()) => {
                self.watched = Some(opened);
                self.set_alarm(deadline, true)
            }
            Err(error) => {
                self.look_later(deadline)?;
                Err(error)
            }
        }
    }

    /// Watches nothing, and becomes readable in 20 ms, or at the deadline if that is earlier.
    ///
    /// # Errors
    /// None that is known.
    pub(crate) fn look_later(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        self.forget();
        let later = Instant::now() + LOOK_AGAIN;
        self.set_alarm(Some(deadline.map_or(later, |deadline| deadline.min(later))), true)
    }

    /// Becomes readable at once, for its owner has something to do.
    ///
    /// # Errors
    /// None that is known.
    pub(crate) fn alarm_now(&mut self) -> io::Result<()> {
        self.set_alarm(Some(Instant::now()), false)
    }

    /// Is not readable any more, whatever happens.
    ///
    /// # Errors
    /// None that is known.
    pub(crate) fn silence(&mut self) -> io::Result<()> {
        self.forget();
        self.set_alarm(None, true)
    }

    fn watch_anew(&mut self, set: &PollSet) -> io::Result<()> {
        let inner = match filled(set) {
            Ok(inner) => inner,
            Err(_) => {
                // The descriptor of the old one may be the last that there is.
                self.forget();
                filled(set)?
            }
        };
        if let Some(inner) = &inner {
            self.outer.0.add(&inner.0, readable())?;
        }
        self.forget();
        self.inner = inner;
        self.numbers.extend(set.descriptors().map(|(fd, _)| fd));
        Ok(())
    }

    fn forget(&mut self) {
        self.watched = None;
        self.numbers.clear();
        if let Some(old) = self.inner.take() {
            // Once it is closed it is out, unless another process holds it, too.
            let _ = self.outer.0.delete(&old.0);
        }
    }

    fn set_alarm(&mut self, deadline: Option<Instant>, exactly: bool) -> io::Result<()> {
        let now = Instant::now();
        let deadline = deadline.map(|deadline| deadline.clamp(now, now + FARTHEST_ALARM));
        let has_fired = self.alarm.is_some_and(|alarm| alarm <= now);
        let stands = match (self.alarm, deadline) {
            (None, None) => true,
            (Some(_), Some(deadline)) if has_fired => deadline == now,
            (Some(alarm), Some(deadline)) => alarm == deadline || (!exactly && alarm < deadline),
            (Some(_), None) => !exactly && !has_fired,
            (None, Some(_)) => false,
        };
        if stands {
            return Ok(());
        }
        match deadline {
            // To set a timer to nothing would be to stop it.
            Some(deadline) => {
                let left = (deadline - now).max(Duration::from_nanos(1));
                let once = Expiration::OneShot(TimeSpec::from_duration(left));
                self.timer.set(once, TimerSetTimeFlags::empty())?;
            }
            None => self.timer.unset()?,
        }
        self.alarm = deadline;
        Ok(())
    }
}

impl AsFd for NotifierFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}

fn new_epoll() -> io::Result<Epoll> {
    Ok(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?)
}

fn readable() -> EpollEvent {
    EpollEvent::new(EpollFlags::EPOLLIN, 0)
}

/// An epoll that watches all of these; `None` for none.
fn filled(set: &PollSet) -> io::Result<Option<Epoll>> {
    if set.descriptors().next().is_none() {
        return Ok(None);
    }
    let inner = new_epoll()?;
    for (fd, events) in set.descriptors() {
        // The bits of `poll` and of `epoll` are the same ones.
        let mut event = libc::epoll_event { events: u32::from(events.cast_unsigned()), u64: 0 };
        // SAFETY: the event lives on our stack, and whatever number this is, the kernel checks it.
        let outcome =
            unsafe { libc::epoll_ctl(inner.0.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) };
        if outcome < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(Some(inner))
}

const _: () = assert!(libc::POLLIN as i32 == libc::EPOLLIN && libc::POLLRDHUP as i32 == libc::EPOLLRDHUP);

#[cfg(test)]
#[path = "notify_tests.rs"]
mod tests;
