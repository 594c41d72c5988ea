//! What an event loop is told by whatever it drives.

use std::time::Instant;

/// When an event loop has to call `dispatch` again: a [`Destination`](crate::Destination)'s, a [`Replica`](crate::Replica)'s
/// or a [`SourceDriver`](crate::SourceDriver)'s.
///
/// The descriptor is readable at these times, too: a loop that does nothing but watch it needs none of this. A loop that has
/// a busy round anyway, or keeps timers of its own, saves a look at the descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// There is more to do already.
    Now,
    /// When the descriptor is readable, or at this time.
    At(Instant),
    /// When the descriptor is readable.
    Readable,
}

/// What [`Destination::dispatch`](crate::Destination::dispatch) has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Dispatched {
    /// Records taken in, at most 1024; that a source was found or lost counts as one.
    pub received: usize,
    /// When to call it again.
    pub next: Next,
}

impl Next {
    pub(crate) fn by(deadline: Option<Instant>) -> Next {
        match deadline {
            Some(deadline) if deadline <= Instant::now() => Next::Now,
            Some(deadline) => Next::At(deadline),
            None => Next::Readable,
        }
    }
}
