//! A source without a thread of its own: somebody's event loop goes round, and so does whoever waits for a flush.
//!
//! A round is a look at what the last round has left to be watched, what follows from that, and what is to be watched next; the
//! [`Notifier`] is then readable when there is reason for the next round. No round waits for anything but the lock, which is
//! held for a bounded number of frames (and for one, if there is, who sleeps over it, for a bounded time), or for another round.
//!
//! That publishers of other threads come between the end of a round and the loop's wait does no harm: what they leave to be done
//! they tell the source's wake-up, which is watched. It is the way in which they wake a timer thread, and the models' way.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use super::flush::Begun;
use super::platform::Waits;
use super::service::Service;
use super::shared::Shared;
use crate::dispatch::Next;
use crate::source::{FlushError, Flushed};
use crate::stats::DestinationId;
use crate::sys::notify::{LOOK_AGAIN, Notifier, NotifierFd};
use crate::sys::poll::{Interest, PollSet, deadline_after};

/// Where whoever drives a source takes a seat, one at a time.
#[derive(Debug)]
pub(crate) struct Seat {
    wheel: Mutex<Wheel>,
    /// Who is about a round.
    holder: Mutex<Option<ThreadId>>,
    shared: Arc<Shared>,
    fd: Arc<NotifierFd>,
}

#[derive(Debug)]
struct Wheel {
    /// None once the source is closed.
    service: Option<Service>,
    notifier: Notifier,
}

/// How long whoever waits for a flush relies on its own eyes: the loop's thread may have taken in what it waits for.
const FLUSH_LOOK: Duration = Duration::from_millis(5);

impl Seat {
    /// # Errors
    /// No file descriptors left.
    pub(crate) fn new(shared: Arc<Shared>, mut service: Service) -> io::Result<Seat> {
        // For the first round to look at; that has the notifier mirror what comes next, and its deadline.
        service.watch();
        let notifier = Notifier::new()?;
        let fd = notifier.fd().clone();
        let wheel = Mutex::new(Wheel { service: Some(service), notifier });
        Ok(Seat { wheel, holder: Mutex::new(None), shared, fd })
    }

    /// What the application watches.
    pub(crate) fn fd(&self) -> &Arc<NotifierFd> {
        &self.fd
    }

    /// One round; answers when the next is due, or `None` if the source is closed.
    pub(crate) fn round(&self) -> Option<Next> {
        self.go_round(self.wheel())
    }

    /// Closes the source, as the end of a timer thread does. From within a round (in a snapshot of the application's) it is
    /// closed at the end of that round.
    pub(crate) fn close(&self) {
        if *self.holder() == Some(thread::current().id()) {
            return self.shared.close();
        }
        let mut wheel = self.wheel();
        if let Some(service) = wheel.service.take() {
            drop(service);
            // So that the loop hears of it. A descriptor that stays silent does no harm.
            let _ = wheel.notifier.alarm_now();
        }
    }

    /// As [`Shared::flush`], and goes round meanwhile, if nobody else does.
    pub(crate) fn flush(
        &self,
        only: Option<DestinationId>,
        timeout: Duration,
    ) -> Result<Flushed, FlushError> {
        let (shared, deadline) = (&self.shared, deadline_after(timeout));
        // A destination that is at the door counts, unless it takes more rounds to count what it wants.
        self.try_round();
        let ticket = match shared.begin_flush(only)? {
            Begun::Ended(flushed) => return Ok(flushed),
            Begun::Waits(ticket) => ticket,
        };
        let outcome = loop {
            let look_again = deadline.min(Instant::now() + FLUSH_LOOK);
            let went_round = self.try_round();
            if let Some(outcome) = shared.poll_flush(&ticket, Some(deadline), None) {
                break outcome;
            }
            let mut waits = PollSet::new();
            if went_round {
                waits.watch(self.fd.as_fd(), Interest::Read);
            }
            if Waits::wait(&mut waits, Some(look_again)).is_err() {
                thread::sleep(FLUSH_LOOK);
            }
        };
        shared.cancel_flush(&ticket);
        outcome
    }

    /// One round, unless somebody is about one: the loop on another thread, or this thread in a snapshot of the application's.
    fn try_round(&self) -> bool {
        match self.wheel.try_lock() {
            Ok(wheel) => _ = self.go_round(wheel),
            Err(TryLockError::Poisoned(wheel)) => _ = self.go_round(wheel.into_inner()),
            Err(TryLockError::WouldBlock) => return false,
        }
        true
    }

    fn go_round(&self, mut wheel: MutexGuard<'_, Wheel>) -> Option<Next> {
        *self.holder() = Some(thread::current().id());
        let next = wheel.round();
        *self.holder() = None;
        next
    }

    fn wheel(&self) -> MutexGuard<'_, Wheel> {
        // A panic has closed the source, and what it has left is sound.
        self.wheel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn holder(&self) -> MutexGuard<'_, Option<ThreadId>> {
        self.holder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wheel {
    fn round(&mut self) -> Option<Next> {
        // A panic on the way drops it, which closes the source.
        let next = self.service.take().and_then(|mut service| {
            let next = go_round(&mut service, &mut self.notifier);
            self.service = next.is_some().then_some(service);
            next
        });
        if next.is_none() {
            // Told once: a loop that goes on watching shall not spin.
            let _ = self.notifier.silence();
        }
        next
    }
}

fn go_round(service: &mut Service, notifier: &mut Notifier) -> Option<Next> {
    let looked = service.waits().wait(Some(Instant::now()));
    if let Err(error) = &looked {
        service.note(error);
    }
    service.turn();
    let deadline = service.watch()?;
    let opened = service.opened();
    let mirrored = match looked {
        Ok(_) => notifier.mirror(service.waits(), opened, deadline),
        // What cannot be looked at may be ready all the time.
        Err(_) => notifier.look_later(deadline),
    };
    let Err(error) = mirrored else { return Some(Next::by(deadline)) };
    service.note(&error);
    let later = Instant::now() + LOOK_AGAIN;
    Some(Next::by(Some(deadline.map_or(later, |deadline| deadline.min(later)))))
}
