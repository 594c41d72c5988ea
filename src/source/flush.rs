//! Waiting until destinations have applied what was changed.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::{FORKED, Handle};
use crate::link::flush::{Begun, Ticket};
use crate::link::shared::Shared;
use crate::stats::DestinationId;
use crate::sys::fork::Creator;

/// What became of a flush.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Flushed {
    /// So many destinations have applied all that was changed before the call.
    Acked(usize),
    /// No destination is attached.
    NoDestination,
    /// These destinations went away; the others have applied everything.
    Gone(Vec<DestinationId>),
    /// The time is over; each of these has not yet applied so many items.
    TimedOut(Vec<(DestinationId, usize)>),
}

/// Why a flush cannot be waited for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FlushError {
    /// As many flushes as can wait at a time are waiting.
    #[error("{max} flushes are waiting, which is the most", max = crate::proto::source::MAX_FLUSHES)]
    TooMany,
    /// The source was dropped meanwhile.
    #[error("the source was dropped while the flush waited")]
    Closed,
    /// See [`SetError::Forked`](crate::SetError::Forked).
    #[error("{FORKED}")]
    Forked,
}

/// A flush that does not hold up its caller, from [`Source::start_flush`](crate::Source::start_flush).
///
/// An event loop asks [`try_finish`](Flush::try_finish) after each `dispatch`; an async program awaits it, on whatever runtime.
/// It has no timeout of its own; dropping it gives the flush up. It is done once, and is not to be polled after that.
#[derive(Debug)]
#[must_use = "a flush that is dropped waits for nobody"]
pub struct Flush {
    shared: Arc<Shared>,
    creator: Creator,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Waits(Ticket),
    /// With its end, which nobody has been told.
    Ended(Flushed),
    Told,
}

impl Flush {
    pub(super) fn start(handle: &Handle, only: Option<DestinationId>) -> Result<Flush, FlushError> {
        let shared = handle.shared().map_err(|_| FlushError::Forked)?;
        let stage = match shared.begin_flush(only)? {
            Begun::Ended(flushed) => Stage::Ended(flushed),
            Begun::Waits(ticket) => Stage::Waits(ticket),
        };
        Ok(Flush { shared: handle.shared.clone(), creator: handle.creator, stage })
    }

    /// How the flush has ended, if it has: never [`Flushed::TimedOut`]. Does not wait.
    ///
    /// # Errors
    /// [`FlushError::Closed`] and [`FlushError::Forked`].
    ///
    /// # Panics
    /// It has told its end before.
    pub fn try_finish(&mut self) -> Result<Option<Flushed>, FlushError> {
        match self.poll_end(None) {
            Poll::Ready(outcome) => outcome.map(Some),
            Poll::Pending => Ok(None),
        }
    }

    /// Who has not applied everything yet, and how many items each: what [`Flushed::TimedOut`] would say now. Empty once it has
    /// ended.
    pub fn unfinished(&self) -> Vec<(DestinationId, usize)> {
        match &self.stage {
            Stage::Waits(ticket) if self.creator.is_here() => self.shared.flush_left(ticket),
            _ => Vec::new(),
        }
    }

    fn poll_end(&mut self, context: Option<&Context<'_>>) -> Poll<Result<Flushed, FlushError>> {
        if !self.creator.is_here() {
            return Poll::Ready(Err(FlushError::Forked));
        }
        let outcome = match std::mem::replace(&mut self.stage, Stage::Told) {
            Stage::Waits(ticket) => {
                match self.shared.poll_flush(&ticket, None, context.map(Context::waker)) {
                    Some(outcome) => {
                        self.shared.cancel_flush(&ticket);
                        outcome
                    }
                    None => {
                        self.stage = Stage::Waits(ticket);
                        return Poll::Pending;
                    }
                }
            }
            Stage::Ended(flushed) => Ok(flushed),
            Stage::Told => panic!("a flush was asked for its end after it had told it"),
        };
        Poll::Ready(outcome)
    }
}

impl Future for Flush {
    type Output = Result<Flushed, FlushError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.poll_end(Some(context))
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        if let Stage::Waits(ticket) = &self.stage
            && self.creator.is_this_process()
        {
            self.shared.cancel_flush(ticket);
        }
    }
}
