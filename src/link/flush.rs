//! How a publisher waits until destinations have acknowledged what it has changed.

use std::task::Waker;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::platform::{Alarm, Platform};
use super::shared::{Guard, Shared, State};
use crate::source::{FlushError, Flushed};
use crate::stats::DestinationId;
use crate::sys::poll::CENTURY;

/// How long a flush looks for acks, giving way to others, before it has itself woken.
const AWAKE_BEFORE_FLUSH: Duration = Duration::from_micros(20);

/// Mostly there are few.
type Destinations = SmallVec<[DestinationId; 4]>;

impl<P: Platform> Shared<P> {
    /// Waits until these destinations, one or all that are attached, have acknowledged all that was changed before.
    pub(crate) fn flush(
        &self,
        only: Option<DestinationId>,
        timeout: Duration,
    ) -> Result<Flushed, FlushError> {
        let mut state = self.lock();
        let mut destinations = Destinations::new();
        add_flushed(&mut destinations, &state, only);
        if destinations.is_empty() {
            return Ok(Flushed::NoDestination);
        }
        // A destination that is awake acknowledges sooner than a flush is set up, and before the clock was read twice.
        let acked = Ok(Flushed::Acked(destinations.len()));
        for _ in 0..P::SPINS_BEFORE_FLUSH {
            if self.is_settled(&mut state, &destinations) {
                return acked;
            }
            drop(state);
            std::hint::spin_loop();
            state = self.lock();
        }
        let deadline = P::now() + timeout.min(CENTURY);
        let awake_until = deadline.min(P::now() + AWAKE_BEFORE_FLUSH);
        while P::now() < awake_until {
            if self.is_settled(&mut state, &destinations) {
                return acked;
            }
            drop(state);
            P::yield_now();
            state = self.lock();
        }
        self.wait_acked(state, only, &destinations, deadline)
    }

    /// Takes acks in; answers whether these destinations are all attached and have acknowledged everything.
    #[inline]
    fn is_settled(&self, state: &mut State<P>, destinations: &[DestinationId]) -> bool {
        let State { core, links, .. } = state;
        let mut settled = 0;
        for link in links.iter_mut().flatten().filter(|link| destinations.contains(&link.id)) {
            link.drain_acks(core);
            if link.failed.is_some() {
                self.wake.wake();
                return false;
            }
            settled += usize::from(core.is_settled(link.session));
        }
        settled == destinations.len()
    }

    /// Waits asleep: the timer thread tells of acks.
    fn wait_acked<'a>(
        &'a self,
        mut state: Guard<'a, P>,
        only: Option<DestinationId>,
        destinations: &[DestinationId],
        deadline: Instant,
    ) -> Result<Flushed, FlushError> {
        let flush = match start(&mut state, only, destinations)? {
            Begun::Ended(flushed) => return Ok(flushed),
            Begun::Waits(ticket) => ticket,
        };
        let outcome = loop {
            match self.look(&mut state, &flush, Some(deadline)) {
                Some(outcome) => break outcome,
                None => state = self.wait_flushed(state, deadline),
            }
        };
        let task = state.end_flush(flush.slot);
        drop(state);
        drop(task);
        outcome
    }

    /// As [`Shared::flush`], without waiting: what is to be waited for is noted down. Each ticket is to be given to
    /// [`Shared::cancel_flush`] in the end.
    pub(crate) fn begin_flush(&self, only: Option<DestinationId>) -> Result<Begun, FlushError> {
        let mut state = self.lock();
        let mut destinations = Destinations::new();
        add_flushed(&mut destinations, &state, only);
        if destinations.is_empty() {
            return Ok(Begun::Ended(Flushed::NoDestination));
        }
        if self.is_settled(&mut state, &destinations) {
            return Ok(Begun::Ended(Flushed::Acked(destinations.len())));
        }
        start(&mut state, only, &destinations)
    }

    /// How a flush has ended, if it has; else the destinations ring when they acknowledge more, and `task` is told then.
    pub(crate) fn poll_flush(
        &self,
        ticket: &Ticket,
        deadline: Option<Instant>,
        task: Option<&Waker>,
    ) -> Option<Result<Flushed, FlushError>> {
        // A task is cloned and dropped while the lock is free: that is code of an executor's, and may come back here.
        let mut task = task.cloned();
        let mut state = self.lock();
        let outcome = self.look(&mut state, ticket, deadline);
        if outcome.is_none()
            && let Some(new) = task.take()
        {
            task = state.set_flush_task(ticket.slot, new);
        }
        drop(state);
        drop(task);
        outcome
    }

    /// Who owes acks to a flush, and how many.
    pub(crate) fn flush_left(&self, ticket: &Ticket) -> Vec<(DestinationId, usize)> {
        let mut state = self.lock();
        self.drain_acks(&mut state);
        left_and_gone(&state, ticket).0
    }

    /// Gives the place of a flush to others.
    pub(crate) fn cancel_flush(&self, ticket: &Ticket) {
        let task = self.lock().end_flush(ticket.slot);
        // The lock was free again at the end of the line before.
        drop(task);
    }

    /// Takes acks in, and asks to be rung for more; answers how a flush has ended, if it has.
    fn look(
        &self,
        state: &mut State<P>,
        ticket: &Ticket,
        deadline: Option<Instant>,
    ) -> Option<Result<Flushed, FlushError>> {
        self.await_acks(state);
        match flush_outcome(state, ticket, deadline) {
            Some(acked @ Flushed::Acked(_)) => Some(Ok(acked)),
            // Its destinations are gone because it is.
            _ if state.is_closing() => Some(Err(FlushError::Closed)),
            Some(outcome) => Some(Ok(outcome)),
            None => None,
        }
    }
}

/// A flush that waits: its place, and for whom.
#[derive(Debug)]
pub(crate) struct Ticket {
    slot: usize,
    destinations: Destinations,
}

/// How a flush has begun.
#[derive(Debug)]
pub(crate) enum Begun {
    /// With its end.
    Ended(Flushed),
    Waits(Ticket),
}

/// Notes down what is waited for.
fn start<P: Platform>(
    state: &mut State<P>,
    only: Option<DestinationId>,
    destinations: &[DestinationId],
) -> Result<Begun, FlushError> {
    let session = only.map(|only| state.links.iter().flatten().find(|link| link.id == only));
    let session = match session {
        Some(None) => return Ok(Begun::Ended(Flushed::Gone(destinations.to_vec()))),
        Some(Some(link)) => Some(link.session),
        None => None,
    };
    let slot = state.start_flush(session).ok_or(FlushError::TooMany)?;
    Ok(Begun::Waits(Ticket { slot, destinations: destinations.into() }))
}

/// Adds those that a flush is for. To a list that stays where it is: one that is moved is read in wider pieces than it was just written in.
fn add_flushed<P: Platform>(destinations: &mut Destinations, state: &State<P>, only: Option<DestinationId>) {
    match only {
        Some(only) => destinations.push(only),
        None => state.links.iter().flatten().for_each(|link| destinations.push(link.id)),
    }
}

/// How a flush ended, if it has.
fn flush_outcome<P: Platform>(
    state: &State<P>,
    ticket: &Ticket,
    deadline: Option<Instant>,
) -> Option<Flushed> {
    let (left, gone) = left_and_gone(state, ticket);
    if !left.is_empty() {
        let is_over = deadline.is_some_and(|deadline| P::now() >= deadline);
        return is_over.then_some(Flushed::TimedOut(left));
    }
    Some(if gone.is_empty() { Flushed::Acked(ticket.destinations.len()) } else { Flushed::Gone(gone) })
}

/// Who owes acks to a flush, and how many; and who went away.
fn left_and_gone<P: Platform>(
    state: &State<P>,
    ticket: &Ticket,
) -> (Vec<(DestinationId, usize)>, Vec<DestinationId>) {
    let Ticket { slot, destinations } = ticket;
    let mut left = Vec::new();
    let mut gone = destinations.to_vec();
    // One that was given up is as good as gone, and has not applied what it owed.
    for link in state.links.iter().flatten().filter(|link| !state.core.is_overrun(link.session)) {
        gone.retain(|id| *id != link.id);
        if destinations.contains(&link.id) {
            left.push((link.id, state.core.flush_left(link.session, *slot)));
        }
    }
    left.retain(|&(_, entries)| entries > 0);
    (left, gone)
}
