//! A destination in somebody's event loop.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use super::{Attachment, Destination, RECORDS_PER_CALL, RecvError};
use crate::dispatch::{Dispatched, Next};
use crate::link::LinkError;
use crate::link::incoming::Woken;
use crate::proto::destination::{Event, HandlerResult};
#[cfg(feature = "wait-raw-sync")]
use crate::sys::notify::LOOK_AGAIN;
use crate::sys::notify::Notifier;
use crate::sys::poll::Interest;

/// What a destination keeps for an event loop.
#[derive(Debug)]
pub(super) struct Polled {
    notifier: Notifier,
    /// It has been dispatched once, so somebody may watch its descriptor.
    in_use: bool,
    /// The source was told that this side sleeps.
    asleep: bool,
    /// The source has died, and may have left something in the ring.
    source_gone: bool,
    /// How often a descriptor was opened or closed.
    opened: u64,
}

impl Polled {
    pub(super) fn new() -> io::Result<Polled> {
        Ok(Polled { notifier: Notifier::new()?, in_use: false, asleep: false, source_gone: false, opened: 0 })
    }

    pub(super) fn handle_opened(&mut self) {
        self.opened += 1;
        self.source_gone = false;
    }

    /// There is something to be done, or was done by other means than the event loop's: it has to look.
    pub(super) fn alarm(&mut self) {
        if self.in_use {
            // As it is, then, it wakes the loop at what was to come before.
            let _ = self.notifier.alarm_now();
        }
    }
}

impl Destination {
    /// Takes in what is there, up to 1024 records, and does not wait: for an event loop, which watches the destination's
    /// descriptor ([`AsFd`], level-triggered) and calls this when it is readable. The descriptor is readable when changes are
    /// there, when a source appears or dies, and when something is due, also before the first call. With nothing to do
    /// it is not, whether there is a source or not.
    ///
    /// With [`Wait::Spin`](crate::Wait::Spin) or [`Wait::SpinThenYield`](crate::Wait::SpinThenYield) the source does not ring: once attached, the descriptor is readable all the
    /// time, and the answer is always [`Next::Now`], for a poller that goes round without sleeping. [`Wait::SpinThenSleep`](crate::Wait::SpinThenSleep) is
    /// as [`Wait::Block`](crate::Wait::Block) here.
    ///
    /// With `Wait::RawSync` the source rings where no event loop can hear it: the descriptor is readable every 20 ms.
    ///
    /// `recv` and its kin can be called in between.
    ///
    /// ```no_run
    /// use std::os::fd::AsFd;
    /// use shmirror::{Destination, Event};
    /// # fn watch(_: std::os::fd::BorrowedFd<'_>) {}
    /// # fn wait_readable() {}
    /// let mut destination = Destination::connect("routes")?;
    /// watch(destination.as_fd());
    /// loop {
    ///     wait_readable();
    ///     let dispatched = destination.dispatch(|event| {
    ///         if let Event::Set { opcode, value, .. } = event {
    ///             println!("{opcode}: {} bytes", value.len());
    ///         }
    ///         Ok(())
    ///     });
    ///     if let Err(error) = dispatched {
    ///         eprintln!("{error}"); // and go on: it tries again by itself
    ///     }
    /// }
    /// # #[allow(unreachable_code)]
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`RecvError`]. The destination is still good, and its descriptor becomes readable when there is reason to go on.
    pub fn dispatch(
        &mut self,
        handler: impl FnMut(Event<'_>) -> HandlerResult,
    ) -> Result<Dispatched, RecvError> {
        self.dispatch_at_most(RECORDS_PER_CALL, handler)
    }

    /// As [`Destination::dispatch`], with at most so many records.
    pub(crate) fn dispatch_at_most(
        &mut self,
        most: usize,
        mut handler: impl FnMut(Event<'_>) -> HandlerResult,
    ) -> Result<Dispatched, RecvError> {
        self.check_process()?;
        self.polled.in_use = true;
        let received = match self.wake_up() {
            Ok(()) => self.step(most, &mut handler),
            Err(error) => Err(self.lose_link(error, &mut handler)),
        };
        // After an error, too: the loop is to be woken for the next attempt.
        let deadline = self.fall_asleep();
        let watched = self.watch(deadline);
        Ok(Dispatched { received: received?, next: watched.map_err(RecvError::Watch)? })
    }

    /// Hears what has ended a sleep.
    fn wake_up(&mut self) -> Result<(), LinkError> {
        let was_asleep = std::mem::take(&mut self.polled.asleep);
        if let Attachment::Attached(link) = &mut self.attachment
            && was_asleep
        {
            self.polled.source_gone = link.wake_up(&mut self.set)? == Woken::SourceGone;
            self.source_seen = (!self.polled.source_gone).then(Instant::now);
        }
        Ok(())
    }

    /// Tells the source that this side sleeps, unless there is more to do; answers until when.
    fn fall_asleep(&mut self) -> Option<Instant> {
        // A link that is not to be slept on.
        let is_busy = self.wait.never_sleeps() || self.broken.is_some() || self.polled.source_gone;
        match &mut self.attachment {
            Attachment::Attached(_) if is_busy => Some(Instant::now()),
            #[cfg(feature = "wait-raw-sync")]
            Attachment::Attached(_) if self.wait == crate::Wait::RawSync => Some(Instant::now() + LOOK_AGAIN),
            Attachment::Attached(link) => match link.fall_asleep(&self.core) {
                Ok(true) => {
                    self.polled.asleep = true;
                    self.unwanted_retry
                }
                Ok(false) => Some(Instant::now()),
                Err(error) => {
                    self.broken = Some(error);
                    Some(Instant::now())
                }
            },
            Attachment::Greeting(greeting) => Some(greeting.deadline()),
            Attachment::Detached(_) => Some(self.retry.at),
        }
    }

    /// Has the descriptor become readable when the next call is due; answers when that is.
    fn watch(&mut self, deadline: Option<Instant>) -> io::Result<Next> {
        let next = Next::by(deadline);
        if next == Next::Now {
            self.polled.notifier.alarm_now()?;
            return Ok(next);
        }
        self.set.clear();
        match &self.attachment {
            Attachment::Attached(link) => link.watch(&mut self.set),
            Attachment::Greeting(greeting) => {
                self.set.watch(greeting.as_fd(), Interest::Read);
            }
            Attachment::Detached(Some(watch)) => {
                self.set.watch(watch.as_fd(), Interest::Read);
            }
            Attachment::Detached(None) => {}
        }
        self.polled.notifier.mirror(&self.set, self.polled.opened, deadline)?;
        Ok(next)
    }
}

#[cfg(feature = "tokio")]
impl Destination {
    /// The descriptor, which may outlive the destination.
    pub(crate) fn notifier_fd(&self) -> std::sync::Arc<crate::sys::notify::NotifierFd> {
        self.polled.notifier.fd().clone()
    }
}

/// The descriptor stays the same one.
impl AsFd for Destination {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.polled.notifier.fd().as_fd()
    }
}
