//! How a destination is made.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::Destination;
#[cfg(feature = "named-region")]
use crate::link::greeting::named::Region;
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
    #[cfg(feature = "named-region")]
    pub(super) region: Region,
}

/// How a destination that has found nothing waits for its source. However it waits, it notices the source's death: asleep at
/// once, else within a millisecond.
///
/// This is about what comes over a link that stands. Without one a destination sleeps until a source appears, and
/// [`Destination::try_recv`] never waits.
///
/// While changes come without a break, a call that waits looks away for up to some 15 us first: the source publishes them sooner if nobody
/// takes from it what it is about to write. A change that comes alone is not waited for.
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
    /// Sleeps at an event of the `raw_sync` crate in shared memory, for comparison and for systems built on it; with
    /// `Region::Named` only. It wakes every 20 ms to look whether the source lives. Not safe against `kill -9`: a
    /// destination that is killed or stopped at the wrong moment (while it takes or gives back the event's mutex) holds
    /// the source's publishers up for ever, and a source so killed its destination. Nor against a hostile peer, which can
    /// also hold up who rings it, for ever, and by overwriting the mutex make it panic, abort or write to wrong memory: it
    /// must be trusted. The source has to allow it ([`SourceOptions::allow_raw_sync`](crate::SourceOptions::allow_raw_sync)).
    #[cfg(feature = "wait-raw-sync")]
    RawSync,
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

    /// Whether it sleeps at an event in its region.
    #[cfg(feature = "named-region")]
    pub(super) fn is_at_event(self) -> bool {
        #[cfg(feature = "wait-raw-sync")]
        let is_at_event = self == Wait::RawSync;
        #[cfg(not(feature = "wait-raw-sync"))]
        let is_at_event = false;
        is_at_event
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
            #[cfg(feature = "wait-raw-sync")]
            Wait::RawSync => Pause::Sleep,
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

    /// How the shared memory of its links is made. Default: [`Region::Memfd`]. A source that has chosen otherwise refuses
    /// this destination.
    #[cfg(feature = "named-region")]
    pub fn region(mut self, region: Region) -> Self {
        self.region = region;
        self
    }

    /// Whether the options go together.
    pub(super) fn check(&self) -> Result<(), ConnectionError> {
        #[cfg(feature = "named-region")]
        if self.region == Region::Named && !self.allowed_users.is_empty() {
            return Err(ConnectionError::NamedRegionUsers { found: self.allowed_users.clone() });
        }
        #[cfg(feature = "wait-raw-sync")]
        if self.wait == Wait::RawSync && self.region != Region::Named {
            return Err(ConnectionError::RawSyncRegion { found: self.region });
        }
        Ok(())
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
    /// Named regions are of one user, and others were allowed.
    #[cfg(feature = "named-region")]
    #[error(
        "users {found:?} are allowed besides our own, expected none with Region::Named: others cannot open its segments"
    )]
    NamedRegionUsers {
        /// The users that were allowed.
        found: Vec<u32>,
    },
    /// An event of `raw_sync` lies in memory that both sides can write.
    #[cfg(feature = "wait-raw-sync")]
    #[error(
        "Wait::RawSync with Region::{found:?}, expected Region::Named: both sides must be able to write to the event"
    )]
    RawSyncRegion {
        /// The region that was chosen.
        found: Region,
    },
    /// The system has no memory or no random numbers.
    #[error("the destination cannot be set up: {0}")]
    Io(#[from] io::Error),
}
