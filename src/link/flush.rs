//! How a publisher waits until destinations have acknowledged what it has changed.

use std::time::{Duration, Instant};

use smallvec::{SmallVec, smallvec};

use super::platform::Platform;
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
        let destinations = only.map_or_else(|| attached(&state), |only| smallvec![only]);
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
    fn is_settled(&self, state: &mut State<P>, destinations: &[DestinationId]) -> bool {
        self.drain_acks(state);
        destinations.iter().all(|destination| {
            let link = state.links.iter().flatten().find(|link| link.id == *destination);
            link.is_some_and(|link| link.failed.is_none() && state.core.is_settled(link.session))
        })
    }

    /// Waits asleep: the timer thread tells of acks.
    fn wait_acked<'a>(
        &'a self,
        mut state: Guard<'a, P>,
        only: Option<DestinationId>,
        destinations: &[DestinationId],
        deadline: Instant,
    ) -> Result<Flushed, FlushError> {
        let session = only.map(|only| state.links.iter().flatten().find(|link| link.id == only));
        let session = match session {
            Some(None) => return Ok(Flushed::Gone(destinations.to_vec())),
            Some(Some(link)) => Some(link.session),
            None => None,
        };
        let flush = state.start_flush(session).ok_or(FlushError::TooMany)?;
        let outcome = loop {
            self.await_acks(&mut state);
            match flush_outcome(&state, flush, destinations, deadline) {
                Some(acked @ Flushed::Acked(_)) => break Ok(acked),
                // Its destinations are gone because it is.
                _ if state.is_closing() => break Err(FlushError::Closed),
                Some(outcome) => break Ok(outcome),
                None => state = self.wait_flushed(state, deadline),
            }
        };
        state.end_flush(flush);
        outcome
    }
}

fn attached<P: Platform>(state: &State<P>) -> Destinations {
    state.links.iter().flatten().map(|link| link.id).collect()
}

/// How a flush ended, if it has.
fn flush_outcome<P: Platform>(
    state: &State<P>,
    flush: usize,
    destinations: &[DestinationId],
    deadline: Instant,
) -> Option<Flushed> {
    let mut left = Vec::new();
    let mut gone = destinations.to_vec();
    // One that was given up is as good as gone, and has not applied what it owed.
    for link in state.links.iter().flatten().filter(|link| !state.core.is_overrun(link.session)) {
        gone.retain(|id| *id != link.id);
        if destinations.contains(&link.id) {
            left.push((link.id, state.core.flush_left(link.session, flush)));
        }
    }
    left.retain(|&(_, entries)| entries > 0);
    if !left.is_empty() {
        return (P::now() >= deadline).then_some(Flushed::TimedOut(left));
    }
    Some(if gone.is_empty() { Flushed::Acked(destinations.len()) } else { Flushed::Gone(gone) })
}
