//! How a destination is made.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::Destination;
use crate::link::rendezvous::place::{NameError, RuntimeDirError};
use crate::subscription::{Subscription, SubscriptionError};

/// How a [`Destination`] or a [`Replica`](crate::Replica) is made. Every option has a default.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct DestinationOptions {
    pub(super) runtime_dir: Option<PathBuf>,
    pub(super) wait: Wait,
    pub(super) on_source_lost: OnSourceLost,
    pub(super) allowed_users: Vec<u32>,
    pub(super) subscription: Subscription,
}

/// How a destination that has found nothing waits for its source. However it waits, it notices the source's death: asleep at
/// once, else within a millisecond.
///
/// This is about what comes over a link that stands. Without one a destination sleeps until a source appears, and
/// [`Destination::try_recv`] never waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Wait {
    /// Sleeps; the source rings. For everyone with other things to do on the cpu.
    #[default]
    Block,
    /// Looks at the ring again and again: no change waits for a wake-up, for a cpu of its own.
    Spin,
    /// Looks at the ring again and again for so long; then it offers the cpu to others between two looks
    /// (`sched_yield(2)`). It uses what others leave, never sleeps, and is never rung. For a cpu that is shared with
    /// others that poll. Mind that a yield gives way to threads of the same priority only: with SCHED_FIFO it starves lower
    /// ones.
    SpinThenYield {
        /// From the beginning of the call that found nothing; zero yields at once.
        spin: Duration,
    },
    /// Looks at the ring again and again for so long; then it sleeps, and the source rings. What comes in quick
    /// succession waits for no wake-up, and an idle destination costs nothing.
    SpinThenSleep {
        /// From the beginning of the call that found nothing; zero is [`Wait::Block`].
        spin: Duration,
    },
}

/// What to do next, while there is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pause {
    Spin,
    Yield,
    Sleep,
}

impl Wait {
    /// Whether the source never needs to ring.
    pub(super) fn never_sleeps(self) -> bool {
        matches!(self, Wait::Spin | Wait::SpinThenYield { .. })
    }

    /// What is next for a call that began to wait at `since`.
    pub(super) fn pause(self, since: Instant) -> Pause {
        match self {
            Wait::Spin => Pause::Spin,
            Wait::SpinThenYield { spin } | Wait::SpinThenSleep { spin } if since.elapsed() < spin => {
                Pause::Spin
            }
            Wait::SpinThenYield { .. } => Pause::Yield,
            Wait::Block | Wait::SpinThenSleep { .. } => Pause::Sleep,
        }
    }
}

/// What becomes of the items when the source is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnSourceLost {
    /// They stay and go on serving. When a source is back, what it does not have is removed, and nothing else.
    #[default]
    Keep,
    /// They are removed, after [`Event::SourceLost`](crate::Event::SourceLost), each with an [`Event::Removed`](crate::Event::Removed). An item whose handler fails then
    /// stays until a source is back.
    Flush,
}

impl DestinationOptions {
    /// Where sources are found; see [`SourceOptions::runtime_dir`](crate::SourceOptions::runtime_dir).
    pub fn runtime_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.runtime_dir = Some(dir.into());
        self
    }

    /// How to wait. Default: [`Wait::Block`].
    pub fn wait(mut self, wait: Wait) -> Self {
        self.wait = wait;
        self
    }

    /// What becomes of the items when the source is gone. Default: [`OnSourceLost::Keep`].
    pub fn on_source_lost(mut self, policy: OnSourceLost) -> Self {
        self.on_source_lost = policy;
        self
    }

    /// Accepts a source that runs as one of these users, besides our own and root.
    pub fn allow_users(mut self, users: impl IntoIterator<Item = u32>) -> Self {
        self.allowed_users.extend(users);
        self
    }

    /// What of the source's items is wanted. Default: everything.
    pub fn subscribe(mut self, subscription: Subscription) -> Self {
        self.subscription = subscription;
        self
    }

    /// Makes the destination.
    ///
    /// # Errors
    /// See [`ConnectionError`].
    pub fn connect(self, name: &str) -> Result<Destination, ConnectionError> {
        Destination::make(self, name, false)
    }
}

/// Why a destination cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The name cannot be one of a source.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The runtime directory cannot be used.
    #[error(transparent)]
    RuntimeDir(#[from] RuntimeDirError),
    /// The subscription cannot be told to a source.
    #[error(transparent)]
    Subscription(#[from] SubscriptionError),
    /// The system has no memory or no random numbers.
    #[error("the destination cannot be set up: {0}")]
    Io(#[from] io::Error),
}
