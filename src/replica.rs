//! A destination that keeps the map for its application.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::destination::{ConnectionError, Destination, DestinationOptions, OnSourceLost, RecvError, Wait};
use crate::dispatch::Dispatched;
use crate::opcode::{Opcode, ToOpcode};
use crate::proto::destination::{DestinationStats, Event};
use crate::subscription::{Subscription, SubscriptionError};
use crate::sys::poll::deadline_after;

/// A copy of a source's tables, to be read like maps.
///
/// A replica has no thread: it takes changes in within [`Replica::update`], [`Replica::wait`] and
/// [`Replica::wait_synced`], so that what is read between two of these calls is one state that does not move. If the
/// source goes, the items stay; when it is back they are brought in step, and what is gone is removed only once the table
/// was replayed to its end.
///
/// ```
/// use std::time::Duration;
/// use shmirror::{Replica, Source};
/// # let dir = tempfile::tempdir()?;
/// # let source = Source::options().runtime_dir(dir.path()).create("routes")?;
/// # source.table("ipv4")?.set((254u32, "10.0.0.0/8"), b"via 192.0.2.1")?;
/// # source.table("ipv4")?.ready();
/// # let options = Replica::options().runtime_dir(dir.path());
/// let mut replica = options.connect("routes")?;
/// replica.wait_synced(Duration::from_secs(5))?;
/// let hops = replica.table("ipv4").get((254u32, "10.0.0.0/8"));
/// assert_eq!(hops, Some(&b"via 192.0.2.1"[..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Replica {
    destination: Destination,
}

/// How a [`Replica`] is made. Every option has a default.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct ReplicaOptions {
    destination: DestinationOptions,
}

/// One table of a replica. A table that the source does not have is empty.
#[derive(Debug, Clone, Copy)]
pub struct ReplicaTable<'a> {
    replica: &'a Replica,
    name: &'a str,
}

impl Replica {
    /// A replica of the source of that name, with the default options; see [`Destination::connect`].
    ///
    /// # Errors
    /// See [`ConnectionError`].
    pub fn connect(name: &str) -> Result<Replica, ConnectionError> {
        Replica::options().connect(name)
    }

    /// Options to connect with.
    pub fn options() -> ReplicaOptions {
        ReplicaOptions::default()
    }

    /// Takes in what is there, without waiting; answers how many records that was, at most 1024.
    ///
    /// # Errors
    /// See [`Destination::recv`].
    pub fn update(&mut self) -> Result<usize, RecvError> {
        self.destination.try_recv(|_| Ok(()))
    }

    /// Waits until something has come, and takes it in; answers how many records that was, 0 after the timeout.
    ///
    /// # Errors
    /// See [`Destination::recv`].
    pub fn wait(&mut self, timeout: Duration) -> Result<usize, RecvError> {
        self.wait_observed(timeout, |_| ())
    }

    /// As [`Replica::wait`], and shows each event before it is applied to the map.
    ///
    /// # Errors
    /// See [`Destination::recv`].
    pub fn wait_observed(
        &mut self,
        timeout: Duration,
        mut observer: impl FnMut(Event<'_>),
    ) -> Result<usize, RecvError> {
        self.destination.recv_timeout(timeout, |event| {
            observer(event);
            Ok(())
        })
    }

    /// Takes in what is there and does not wait, for an event loop that watches the replica's descriptor; see
    /// [`Destination::dispatch`].
    ///
    /// # Errors
    /// See [`Destination::dispatch`].
    pub fn dispatch(&mut self) -> Result<Dispatched, RecvError> {
        self.dispatch_observed(|_| ())
    }

    /// As [`Replica::dispatch`], and shows each event before it is applied to the map.
    ///
    /// # Errors
    /// See [`Destination::dispatch`].
    pub fn dispatch_observed(
        &mut self,
        mut observer: impl FnMut(Event<'_>),
    ) -> Result<Dispatched, RecvError> {
        self.destination.dispatch(|event| {
            observer(event);
            Ok(())
        })
    }

    /// Waits until every table of the source is complete: all that it held when this replica attached is here, and
    /// nothing else. A source without a table is not complete. With a subscription: every table that it names.
    ///
    /// # Errors
    /// [`SyncError`]; the replica is still good, and keeps what it has got so far.
    pub fn wait_synced(&mut self, timeout: Duration) -> Result<(), SyncError> {
        let deadline = deadline_after(timeout);
        while !self.destination.is_all_synced() {
            self.destination.recv_until(Some(deadline), |_| Ok(()))?;
            if Instant::now() < deadline || self.destination.is_all_synced() {
                continue;
            }
            if !self.destination.is_attached() {
                return Err(SyncError::NoSource { timeout, socket: self.destination.place().socket() });
            }
            let loading = self.destination.core().loading().into_iter().map(String::from).collect();
            return Err(SyncError::TimedOut { timeout, loading });
        }
        Ok(())
    }

    /// Whether every table that the source has announced is complete, and there is at least one. With a subscription:
    /// whether every table that it names is.
    pub fn is_synced(&self) -> bool {
        self.destination.is_all_synced()
    }

    /// Whether a link to a source stands.
    pub fn is_attached(&self) -> bool {
        self.destination.is_attached()
    }

    /// A table.
    pub fn table<'a>(&'a self, name: &'a str) -> ReplicaTable<'a> {
        ReplicaTable { replica: self, name }
    }

    /// The names of the tables that were seen.
    pub fn tables(&self) -> impl Iterator<Item = &str> {
        self.destination.core().tables()
    }

    /// Wants other items from now on; see [`Destination::subscribe`].
    ///
    /// # Errors
    /// See [`Destination::subscribe`].
    pub fn subscribe(&mut self, subscription: Subscription) -> Result<(), SubscriptionError> {
        self.destination.subscribe(subscription)
    }

    /// What the replica counts.
    pub fn stats(&self) -> DestinationStats {
        self.destination.stats()
    }
}

/// See [`Destination`]: the descriptor stays the same one.
impl AsFd for Replica {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.destination.as_fd()
    }
}

impl<'a> ReplicaTable<'a> {
    /// The value of an item.
    pub fn get(&self, opcode: impl ToOpcode) -> Option<&'a [u8]> {
        self.replica.destination.core().value(self.name, &opcode.to_opcode().ok()?)
    }

    /// All items, in no particular order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&'a Opcode, &'a [u8])> + use<'a> {
        self.replica.destination.core().items(self.name)
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.iter().len()
    }

    /// Whether there is no item.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the table is complete; see [`Replica::wait_synced`].
    pub fn is_synced(&self) -> bool {
        self.replica.destination.core().is_synced(self.name)
    }
}

impl ReplicaOptions {
    /// Where sources are found; see [`SourceOptions::runtime_dir`](crate::SourceOptions::runtime_dir).
    pub fn runtime_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.destination = self.destination.runtime_dir(dir);
        self
    }

    /// How to wait. Default: [`Wait::Block`].
    pub fn wait(mut self, wait: Wait) -> Self {
        self.destination = self.destination.wait(wait);
        self
    }

    /// What becomes of the items when the source is gone. Default: [`OnSourceLost::Keep`].
    pub fn on_source_lost(mut self, policy: OnSourceLost) -> Self {
        self.destination = self.destination.on_source_lost(policy);
        self
    }

    /// Accepts a source that runs as one of these users, besides our own and root.
    pub fn allow_users(mut self, users: impl IntoIterator<Item = u32>) -> Self {
        self.destination = self.destination.allow_users(users);
        self
    }

    /// How the shared memory of its links is made; see [`DestinationOptions::region`].
    #[cfg(feature = "named-region")]
    pub fn region(mut self, region: crate::Region) -> Self {
        self.destination = self.destination.region(region);
        self
    }

    /// What of the source's items is wanted; see [`DestinationOptions::subscribe`]. Default: everything.
    pub fn subscribe(mut self, subscription: Subscription) -> Self {
        self.destination = self.destination.subscribe(subscription);
        self
    }

    /// Makes the replica.
    ///
    /// # Errors
    /// See [`ConnectionError`].
    pub fn connect(self, name: &str) -> Result<Replica, ConnectionError> {
        Ok(Replica { destination: Destination::make(self.destination, name, true)? })
    }
}

/// Why a replica is not complete.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SyncError {
    /// There was no source.
    #[error("no source within {timeout:?}: nobody answers at {}", socket.display())]
    NoSource {
        /// How long it was waited for.
        timeout: Duration,
        /// Where a source of that name would be.
        socket: PathBuf,
    },
    /// The source has not said that all its tables are loaded, or has not sent all of them yet.
    #[error(
        "not complete within {timeout:?}: tables {loading:?} are still loading (none named: the source has no table)"
    )]
    TimedOut {
        /// How long it was waited for.
        timeout: Duration,
        /// The tables that are not complete.
        loading: Vec<String>,
    },
    /// Nothing could be received.
    #[error(transparent)]
    Recv(#[from] RecvError),
}
