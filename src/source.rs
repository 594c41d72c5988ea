//! The public face of a source.

mod driver;
mod flush;
mod options;
mod table;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::link::polled::Seat;
use crate::link::shared::{Guard, Shared};
use crate::retention::Retention;
use crate::stats::{DestinationId, EntryState, SourceStats};
use crate::sys::fork::Creator;

pub use driver::{DriveError, SourceDriver};
pub use flush::{Flush, FlushError, Flushed};
pub use options::{CreateError, SourceOptions};
pub use table::{Sent, SetError, Table};

/// Owns a set of items, and keeps them the same in every destination that attaches.
///
/// A source has a name, under which destinations of the same host find it, and a timer thread of its own, unless an event
/// loop drives it ([`SourceOptions::create_polled`]). Its items live in [`Table`]s. A publisher never waits for a destination: what does not fit a destination's ring stays in that
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
    /// None once it is dropped.
    driven_by: Option<DrivenBy>,
}

/// Who does what no publisher is there for.
#[derive(Debug)]
enum DrivenBy {
    TimerThread(JoinHandle<()>),
    /// The application, with a [`SourceDriver`].
    Loop(Arc<Seat>),
}

#[derive(Debug, Clone)]
struct Handle {
    shared: Arc<Shared>,
    creator: Creator,
    ring_bytes: u64,
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
    /// An item whose data must be read ([`Table::set_shared`]) is read on the timer thread, or, of a source without one, within this
    /// call: do not hold a lock meanwhile that its snapshot takes.
    ///
    /// # Errors
    /// [`FlushError`]; that a destination is slow or gone is an outcome, not an error.
    pub fn flush(&self, timeout: Duration) -> Result<Flushed, FlushError> {
        self.flush_some(None, timeout)
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
        self.flush_some(Some(destination), timeout)
    }

    /// A source that an event loop drives is driven by whoever waits here, too: the loop cannot meanwhile.
    fn flush_some(&self, only: Option<DestinationId>, timeout: Duration) -> Result<Flushed, FlushError> {
        let shared = self.handle.shared().map_err(|_| FlushError::Forked)?;
        match &self.driven_by {
            Some(DrivenBy::Loop(seat)) => seat.flush(only, timeout),
            Some(DrivenBy::TimerThread(_)) | None => shared.flush(only, timeout),
        }
    }

    /// As [`Source::flush`], without waiting: for an event loop, which asks the [`Flush`] again and again, or for an async
    /// program, which awaits it. Up to sixteen flushes wait at a time.
    ///
    /// # Errors
    /// [`FlushError`].
    pub fn start_flush(&self) -> Result<Flush, FlushError> {
        Flush::start(&self.handle, None)
    }

    /// As [`Source::start_flush`], of one destination only; see [`Source::flush_destination`].
    ///
    /// # Errors
    /// [`FlushError`].
    pub fn start_flush_destination(&self, destination: DestinationId) -> Result<Flush, FlushError> {
        Flush::start(&self.handle, Some(destination))
    }

    /// What the source counts, and the state of each destination. In a forked child, which has no part in the source,
    /// nothing but a [`last_error`](SourceStats::last_error) that says so.
    pub fn stats(&self) -> SourceStats {
        self.handle.shared().map_or_else(
            |Forked| SourceStats { last_error: Some(FORKED.to_string()), ..SourceStats::default() },
            Shared::stats,
        )
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
        let Some(driven_by) = self.driven_by.take() else { return };
        let is_ours = self.handle.creator.is_this_process();
        match driven_by {
            // In a forked child there is neither the thread nor a lock that could be relied upon; the thread's handle may
            // stand for one that the child has started since.
            DrivenBy::TimerThread(thread) if !is_ours => std::mem::forget(thread),
            DrivenBy::TimerThread(thread) => {
                self.handle.shared.close();
                if thread.join().is_err() && !std::thread::panicking() {
                    panic!("the timer thread of a source has panicked");
                }
            }
            DrivenBy::Loop(seat) if is_ours => seat.close(),
            DrivenBy::Loop(_) => {}
        }
    }
}

impl Handle {
    #[inline]
    fn lock(&self) -> Result<Guard<'_>, Forked> {
        self.shared().map(Shared::lock)
    }

    fn shared(&self) -> Result<&Shared, Forked> {
        if self.creator.is_here() { Ok(&self.shared) } else { Err(Forked) }
    }
}

/// The handle was made before a fork and is used in the child.
struct Forked;

/// A table's name travels in a record, and shall fit any ring.
const MAX_TABLE_NAME_BYTES: usize = 255;

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
