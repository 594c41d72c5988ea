//! The public face of a source.

mod options;
mod table;

use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use smallvec::{SmallVec, smallvec};

use crate::link::service::{Shared, State};
use crate::proto::store::TableStore;
use crate::retention::Retention;
use crate::stats::{DestinationId, DestinationState, EntryState, SourceStats};
use crate::sys::fork::Creator;
use crate::sys::poll::deadline_after;

pub use options::{CreateError, SourceOptions};
pub use table::{Sent, SetError, Table};

/// Owns a set of items, and keeps them the same in every destination that attaches.
///
/// A source has a name, under which destinations of the same host find it, and a timer thread of its own. Its items live
/// in [`Table`]s. A publisher never waits for a destination: what does not fit a destination's ring stays in that
/// destination's sync cache and follows when there is room.
///
/// Dropping the source ends its thread and its links; a [`Table`] that outlives it answers [`SetError::Closed`].
///
/// ```
/// use std::time::Duration;
/// # let dir = tempfile::tempdir()?;
/// # let options = shmirror::Source::options().runtime_dir(dir.path());
/// let source = options.create("routes")?;
/// let ipv4 = source.table("ipv4")?;
/// ipv4.set((254u32, "10.0.0.0/8"), b"via 192.0.2.1")?;
/// ipv4.remove((254u32, "10.0.0.0/8"))?;
/// ipv4.ready();
/// source.flush(Duration::from_secs(1))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Source {
    handle: Handle,
    socket: PathBuf,
    timer_thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Clone)]
struct Handle {
    shared: Arc<Shared>,
    creator: Creator,
    ring_bytes: u64,
}

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

impl Source {
    /// Creates a source with the default options. Destinations find it under `name`.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub fn create(name: &str) -> Result<Source, CreateError> {
        Source::options().create(name)
    }

    /// Options to create a source with.
    pub fn options() -> SourceOptions {
        SourceOptions::default()
    }

    /// The table of that name, which is made if there is none yet. A table is *loading* until [`Table::ready`]: until
    /// then destinations keep what they hold under its name, whatever this source has.
    ///
    /// # Errors
    /// A name longer than 255 bytes, more than 65,536 tables, or the use in a forked child.
    pub fn table(&self, name: &str) -> Result<Table, TableError> {
        self.table_of(name, None)
    }

    /// As [`Source::table`], and says what the source keeps of the table's items.
    ///
    /// # Errors
    /// As [`Source::table`], and if the table is there already: what it keeps is settled.
    pub fn table_with(&self, name: &str, retention: Retention) -> Result<Table, TableError> {
        self.table_of(name, Some(retention))
    }

    fn table_of(&self, name: &str, retention: Option<Retention>) -> Result<Table, TableError> {
        if name.len() > MAX_TABLE_NAME_BYTES {
            return Err(TableError::NameTooLong { bytes: name.len() });
        }
        let mut state = self.handle.lock().map_err(|_| TableError::Forked)?;
        if retention.is_some() && state.core.store().table_named(name).is_some() {
            return Err(TableError::Exists { name: name.into() });
        }
        let id = state.core.table(name, retention.unwrap_or_default()).ok_or(TableError::TooMany)?;
        self.handle.shared.publish(&mut state);
        Ok(Table::new(self.handle.clone(), id, name))
    }

    /// Waits until every destination that is attached now has applied all that was changed before the call; a later
    /// change of the same item counts for an earlier one. Of a table that keeps
    /// [unacknowledged changes only](Retention::Unacked) and is not [`ready`](Table::ready), it waits for the changes since the
    /// destination attached.
    ///
    /// An item whose data must be read ([`Table::set_shared`]) is read on the timer thread: do not hold a lock meanwhile that
    /// its snapshot takes.
    ///
    /// # Errors
    /// [`FlushError`]; that a destination is slow or gone is an outcome, not an error.
    pub fn flush(&self, timeout: Duration) -> Result<Flushed, FlushError> {
        self.flush_to(None, timeout)
    }

    /// As [`Source::flush`], but waits for one destination only, of those in [`SourceStats::destinations`]. If it is not
    /// attached any more, that is [`Flushed::Gone`].
    ///
    /// # Errors
    /// [`FlushError`].
    pub fn flush_destination(
        &self,
        destination: DestinationId,
        timeout: Duration,
    ) -> Result<Flushed, FlushError> {
        self.flush_to(Some(destination), timeout)
    }

    fn flush_to(&self, only: Option<DestinationId>, timeout: Duration) -> Result<Flushed, FlushError> {
        let mut state = self.handle.lock().map_err(|_| FlushError::Forked)?;
        let destinations = only.map_or_else(|| attached(&state), |only| smallvec![only]);
        if destinations.is_empty() {
            return Ok(Flushed::NoDestination);
        }
        // A destination that is awake acknowledges sooner than a flush is set up, and before the clock was read twice.
        let acked = Ok(Flushed::Acked(destinations.len()));
        for _ in 0..SPINS_BEFORE_FLUSH {
            if self.is_settled(&mut state, &destinations) {
                return acked;
            }
            drop(state);
            std::hint::spin_loop();
            state = self.handle.shared.lock();
        }
        let deadline = deadline_after(timeout);
        let awake_until = deadline.min(Instant::now() + AWAKE_BEFORE_FLUSH);
        while Instant::now() < awake_until {
            if self.is_settled(&mut state, &destinations) {
                return acked;
            }
            drop(state);
            std::thread::yield_now();
            state = self.handle.shared.lock();
        }
        self.flush_registered(state, only, &destinations, deadline)
    }

    /// Takes acks in; answers whether these destinations are all attached and have acknowledged everything.
    fn is_settled(&self, state: &mut State, destinations: &[DestinationId]) -> bool {
        self.handle.shared.drain_acks(state);
        destinations.iter().all(|destination| {
            let link = state.links.iter().flatten().find(|link| link.id == *destination);
            link.is_some_and(|link| link.failed.is_none() && state.core.is_settled(link.session))
        })
    }

    fn flush_registered(
        &self,
        mut state: MutexGuard<'_, State>,
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
            self.handle.shared.await_acks(&mut state);
            if let Some(outcome) = flush_outcome(&state, flush, destinations, deadline) {
                break outcome;
            }
            if state.is_closing() {
                break Err(FlushError::Closed);
            }
            state = self.handle.shared.wait_flushed(state, deadline);
        };
        state.end_flush(flush);
        outcome
    }

    /// What the source counts, and the state of each destination. In a forked child, which has no part in the source,
    /// nothing but a [`last_error`](SourceStats::last_error) that says so.
    pub fn stats(&self) -> SourceStats {
        let Ok(mut state) = self.handle.lock() else {
            return SourceStats { last_error: Some(FORKED.to_string()), ..SourceStats::default() };
        };
        self.handle.shared.drain_acks(&mut state);
        let sum =
            |of: fn(&TableStore) -> u32| state.core.store().tables().iter().map(of).map(u64::from).sum();
        let mut stats = SourceStats {
            items: sum(|table| table.live),
            pointers: sum(|table| table.pointers),
            changes: state.core.counters().changes,
            last_seq: state.core.store().last_change().seq(),
            attached: state.counters.attached,
            refused: state.counters.refused,
            broken: state.counters.broken,
            overruns: state.core.counters().overruns,
            last_error: state.counters.last_error.clone(),
            destinations: Vec::new(),
        };
        for link in state.links.iter().flatten() {
            let Some(session) = state.core.session_state(link.session) else { continue };
            stats.destinations.push(DestinationState {
                id: link.id,
                unacked: session.unacked as u64,
                pointers: session.pointers as u64,
                tombstones: session.tombstones as u64,
                failing: session.failing as u64,
                failing_items: state.core.failing(link.session).map(EntryState::of).collect(),
                replaying: session.replaying,
                sent: session.counters.sent,
                resent: session.counters.resent,
                coalesced: session.counters.coalesced,
                acked: session.counters.acked,
                unreadable: session.counters.unreadable,
            });
        }
        stats
    }

    /// What a destination has not acknowledged: at most so many entries of its sync cache, those of one table after the
    /// other. Looks at every item while publishers wait, so it is for a person, not for a loop.
    pub fn unacked(&self, destination: DestinationId, most: usize) -> Vec<EntryState> {
        let Ok(mut state) = self.handle.lock() else { return Vec::new() };
        self.handle.shared.drain_acks(&mut state);
        let Some(link) = state.links.iter().flatten().find(|link| link.id == destination) else {
            return Vec::new();
        };
        state.core.entries(link.session).take(most).map(EntryState::of).collect()
    }

    /// The path of the socket at which destinations find this source.
    pub fn socket_path(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let Some(thread) = self.timer_thread.take() else { return };
        // In a forked child there is neither the thread nor a lock that could be relied upon; the thread's handle may
        // stand for one that the child has started since.
        if !self.handle.creator.is_this_process() {
            return std::mem::forget(thread);
        }
        self.handle.shared.close();
        if thread.join().is_err() && !std::thread::panicking() {
            panic!("the timer thread of a source has panicked");
        }
    }
}

impl Handle {
    fn lock(&self) -> Result<MutexGuard<'_, State>, Forked> {
        if !self.creator.is_here() {
            return Err(Forked);
        }
        Ok(self.shared.lock())
    }
}

/// The handle was made before a fork and is used in the child.
struct Forked;

/// A table's name travels in a record, and shall fit any ring.
const MAX_TABLE_NAME_BYTES: usize = 255;

/// How often a flush looks for acks without giving way to others.
const SPINS_BEFORE_FLUSH: u32 = 16;
/// And for how long it looks after that, giving way to others, before it has itself woken.
const AWAKE_BEFORE_FLUSH: Duration = Duration::from_micros(20);

/// Mostly there are few.
type Destinations = SmallVec<[DestinationId; 4]>;

fn attached(state: &State) -> Destinations {
    state.links.iter().flatten().map(|link| link.id).collect()
}

/// How a flush ended, if it has.
fn flush_outcome(
    state: &State,
    flush: usize,
    destinations: &[DestinationId],
    deadline: Instant,
) -> Option<Result<Flushed, FlushError>> {
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
        return (Instant::now() >= deadline).then_some(Ok(Flushed::TimedOut(left)));
    }
    let all = if gone.is_empty() { Flushed::Acked(destinations.len()) } else { Flushed::Gone(gone) };
    Some(Ok(all))
}

/// Why there is no such table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// The name is too long.
    #[error("table name of {bytes} bytes is longer than the longest, {MAX_TABLE_NAME_BYTES} bytes")]
    NameTooLong {
        /// Its length.
        bytes: usize,
    },
    /// There is a table of that name, so it is too late to say what is to be kept of it.
    #[error(
        "table {name} is there already, and what it keeps is settled; make it with Source::table_with first"
    )]
    Exists {
        /// Its name.
        name: String,
    },
    /// The source has 65,536 tables.
    #[error("a source has at most 65536 tables")]
    TooMany,
    /// See [`SetError::Forked`].
    #[error("{FORKED}")]
    Forked,
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
    /// See [`SetError::Forked`].
    #[error("{FORKED}")]
    Forked,
}

const FORKED: &str = "this handle belongs to the parent process; a forked child must make its own";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::test_process::{alone, forked};

    #[test]
    fn handles_can_be_used_from_several_threads() {
        fn shared<T: Send + Sync + 'static>() {}
        fn cloned<T: Clone>() {}
        shared::<Source>();
        shared::<Table>();
        cloned::<Table>();
    }

    #[test]
    fn handles_in_a_forked_child_touch_nothing_and_do_not_wait_for_the_parents_lock() {
        alone(
            "source::tests::handles_in_a_forked_child_touch_nothing_and_do_not_wait_for_the_parents_lock",
            || {
                let dir = tempfile::tempdir().unwrap();
                let mut source = Some(Source::options().runtime_dir(dir.path()).create("s").unwrap());
                let table = source.as_ref().unwrap().table("t").unwrap();
                table.ready();
                let mut replica = crate::Replica::options().runtime_dir(dir.path()).connect("s").unwrap();
                replica.wait_synced(Duration::from_secs(30)).unwrap();
                let shared = source.as_ref().unwrap().handle.shared.clone();
                let held = shared.lock();
                let outcome = forked(|| {
                    // The lock is held, as a thread of the parent could: a wait for it would be for ever.
                    nix::unistd::alarm::set(10);
                    let stats = source.as_ref().map(Source::stats);
                    stats.is_some_and(|stats| stats.destinations.is_empty())
                        && table.set(1u8, b"x") == Err(SetError::Forked)
                        && table.get(1u8).is_none()
                        && {
                            drop(source.take());
                            true
                        }
                });
                drop(held);
                assert_eq!(outcome, Ok(()));
                assert_eq!(source.unwrap().stats().destinations.len(), 1);
            },
        );
    }
}
