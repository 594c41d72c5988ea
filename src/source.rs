//! The public face of a source.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_utils::Backoff;

use crate::link::greeting::{AllowedUsers, Host};
use crate::link::rendezvous::bind::{BindError, SourceListener};
use crate::link::rendezvous::place::{NameError, Place, RuntimeDir, RuntimeDirError};
use crate::link::service::{FRAMES_PER_PUBLISH, Service, Shared, State};
use crate::opcode::{Opcode, OpcodeError, ToOpcode};
use crate::proto::ResendPolicy;
use crate::proto::source::SourceCore;
use crate::proto::store::{ItemId, Stored, TableId, Value};
use crate::region::layout;
use crate::ring;
use crate::seq::SyncSeq;
use crate::stats::{DestinationId, DestinationState, SourceStats};
use crate::sys::fork::Creator;
use crate::sys::poll::deadline_after;
use crate::sys::process;
use crate::sys::wake::Wake;
use crate::wire;

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

/// One of a source's tables: a set of items, each with an opcode that is its own in this table. Cheap to clone, and usable
/// from several threads; the changes of one item take effect in the order of the calls.
#[derive(Debug, Clone)]
pub struct Table {
    handle: Handle,
    id: TableId,
    name: Arc<str>,
}

#[derive(Debug, Clone)]
struct Handle {
    shared: Arc<Shared>,
    creator: Creator,
    ring_bytes: u64,
}

/// How a [`Source`] is made. Every option has a default.
#[derive(Debug, Clone)]
#[must_use]
pub struct SourceOptions {
    runtime_dir: Option<PathBuf>,
    ring_bytes: u64,
    resend: ResendPolicy,
    send_equal: bool,
    allowed_users: Vec<u32>,
    first_sync_seq: SyncSeq,
}

/// What became of a change, as far as is known when the call returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// Nothing is left to be sent: it is in the ring of every destination that is attached, if there is any and it needs
    /// to know.
    Now,
    /// It has yet to be put in the ring of at least one destination, which is full or has others in front. It is in that
    /// destination's sync cache and follows by itself.
    Deferred,
    /// The item had this value already, or there was none to remove: no change.
    Unchanged,
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
        if name.len() > MAX_TABLE_NAME_BYTES {
            return Err(TableError::NameTooLong { bytes: name.len() });
        }
        let mut state = self.handle.lock().map_err(|_| TableError::Forked)?;
        let id = state.core.table(name).ok_or(TableError::TooMany)?;
        self.handle.shared.publish(&mut state);
        Ok(Table { handle: self.handle.clone(), id, name: name.into() })
    }

    /// Waits until every destination that is attached now has applied all that was changed before the call; a later
    /// change of the same item counts for an earlier one.
    ///
    /// # Errors
    /// [`FlushError`]; that a destination is slow or gone is an outcome, not an error.
    pub fn flush(&self, timeout: Duration) -> Result<Flushed, FlushError> {
        let deadline = deadline_after(timeout);
        let mut state = self.handle.lock().map_err(|_| FlushError::Forked)?;
        let destinations = attached(&state);
        if destinations.is_empty() {
            return Ok(Flushed::NoDestination);
        }
        let flush = state.start_flush().ok_or(FlushError::TooMany)?;
        let backoff = Backoff::new();
        let outcome = loop {
            if backoff.is_completed() {
                self.handle.shared.await_acks(&mut state);
            } else {
                self.handle.shared.drain_acks(&mut state);
            }
            if let Some(outcome) = flush_outcome(&state, flush, &destinations, deadline) {
                break outcome;
            }
            if state.is_closing() {
                break Err(FlushError::Closed);
            }
            if backoff.is_completed() {
                state = self.handle.shared.wait_flushed(state, deadline);
            } else {
                drop(state);
                backoff.snooze();
                state = self.handle.shared.lock();
            }
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
        let mut stats = SourceStats {
            items: state.core.store().tables().iter().map(|table| u64::from(table.live)).sum(),
            changes: state.core.counters().changes,
            last_seq: state.core.store().last_change().seq(),
            attached: state.counters.attached,
            refused: state.counters.refused,
            broken: state.counters.broken,
            last_error: state.counters.last_error.clone(),
            destinations: Vec::new(),
        };
        for link in state.links.iter().flatten() {
            let Some(session) = state.core.session_state(link.session) else { continue };
            stats.destinations.push(DestinationState {
                id: link.id,
                unacked: session.unacked as u64,
                tombstones: session.tombstones as u64,
                failing: session.failing as u64,
                replaying: session.replaying,
                sent: session.counters.sent,
                resent: session.counters.resent,
                coalesced: session.counters.coalesced,
                acked: session.counters.acked,
            });
        }
        stats
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

impl Table {
    /// The table's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Gives an item its newest value: 0 bytes up to the largest record that the ring holds.
    ///
    /// Setting the value that the item has is no change ([`SourceOptions::send_equal`]).
    ///
    /// # Errors
    /// [`SetError`]; then nothing has changed. A full ring is no error.
    pub fn set(&self, opcode: impl ToOpcode, value: impl AsRef<[u8]>) -> Result<Sent, SetError> {
        let (opcode, value) = (opcode.to_opcode()?, value.as_ref());
        self.check_length(&opcode, value)?;
        let mut state = self.lock()?;
        let (Stored::Created(item) | Stored::Updated(item)) = state.core.set(self.id, opcode, value) else {
            return Ok(Sent::Unchanged);
        };
        Ok(self.publish(&mut state, item))
    }

    /// As [`Table::set`] for each of these, with one lock and one message for some dozens of them. Others may publish in
    /// between: a batch is quicker than single calls, and no transaction.
    ///
    /// Answers [`Sent::Deferred`] if that is so for any of them, [`Sent::Unchanged`] if for all.
    ///
    /// # Errors
    /// [`SetError`]; then those before the wrong one are set, and it and those behind it are not.
    pub fn set_many<O: ToOpcode, V: AsRef<[u8]>>(
        &self,
        items: impl IntoIterator<Item = (O, V)>,
    ) -> Result<Sent, SetError> {
        let mut items = items.into_iter().fuse().peekable();
        let mut sent = Sent::Unchanged;
        while items.peek().is_some() {
            let mut error = None;
            // The application's iterator runs without the lock.
            let mut batch = Vec::with_capacity(CHANGES_PER_LOCK);
            for (opcode, value) in items.by_ref().take(CHANGES_PER_LOCK) {
                match opcode.to_opcode().map_err(SetError::from).and_then(|opcode| {
                    self.check_length(&opcode, value.as_ref())?;
                    Ok(opcode)
                }) {
                    Ok(opcode) => batch.push((opcode, value)),
                    Err(found) => {
                        error = Some(found);
                        break;
                    }
                }
            }
            sent = sent.and(self.set_batch(batch)?);
            if let Some(error) = error {
                return Err(error);
            }
        }
        Ok(sent)
    }

    /// Removes an item.
    ///
    /// # Errors
    /// [`SetError`].
    pub fn remove(&self, opcode: impl ToOpcode) -> Result<Sent, SetError> {
        let opcode = opcode.to_opcode()?;
        let mut state = self.lock()?;
        match state.core.remove(self.id, &opcode) {
            Some(item) => Ok(self.publish(&mut state, item)),
            None => Ok(Sent::Unchanged),
        }
    }

    /// Says that the table is loaded: it holds all that it should. Destinations may now remove what they hold beyond it.
    /// Has an effect once.
    pub fn ready(&self) {
        if let Ok(mut state) = self.lock() {
            state.core.ready(self.id);
            self.handle.shared.publish(&mut state);
        }
    }

    /// The newest value of an item.
    pub fn get(&self, opcode: impl ToOpcode) -> Option<Vec<u8>> {
        let opcode = opcode.to_opcode().ok()?;
        let state = self.lock().ok()?;
        match &state.core.store().find(self.id, &opcode)?.value {
            Value::Data(value) => Some(value.to_vec()),
            Value::Removed | Value::Vacant => None,
        }
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.lock().map_or(0, |state| state.core.store().tables()[usize::from(self.id)].live as usize)
    }

    /// Whether the table has no item.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A copy of all items, in no particular order.
    pub fn items(&self) -> Vec<(Opcode, Vec<u8>)> {
        self.lock().map_or_else(
            |_| Vec::new(),
            |state| {
                let table = &state.core.store().tables()[usize::from(self.id)];
                table.iter().map(|(opcode, value)| (opcode.clone(), value.to_vec())).collect()
            },
        )
    }

    pub(crate) fn lock(&self) -> Result<MutexGuard<'_, State>, SetError> {
        let state = self.handle.lock().map_err(|_| SetError::Forked)?;
        if state.is_closing() { Err(SetError::Closed) } else { Ok(state) }
    }

    /// Sets items whose opcodes and lengths were checked.
    fn set_batch<V: AsRef<[u8]>>(&self, batch: Vec<(Opcode, V)>) -> Result<Sent, SetError> {
        let mut changed = Vec::with_capacity(batch.len());
        let mut state = self.lock()?;
        for (opcode, value) in batch {
            if let Stored::Created(item) | Stored::Updated(item) =
                state.core.set(self.id, opcode, value.as_ref())
            {
                changed.push(item);
            }
        }
        self.handle.shared.publish(&mut state);
        let deferred = changed.iter().any(|item| state.core.is_waiting(*item));
        Ok(match (deferred, changed.is_empty()) {
            (true, _) => Sent::Deferred,
            (false, false) => Sent::Now,
            (false, true) => Sent::Unchanged,
        })
    }

    fn publish(&self, state: &mut State, item: ItemId) -> Sent {
        self.handle.shared.publish(state);
        if state.core.is_waiting(item) { Sent::Deferred } else { Sent::Now }
    }

    fn check_length(&self, opcode: &Opcode, value: &[u8]) -> Result<(), SetError> {
        let ring_bytes = self.handle.ring_bytes;
        let max = ring::max_payload_bytes(ring_bytes) - wire::HEADER_BYTES - opcode.as_bytes().len();
        if value.len() > max {
            return Err(SetError::ValueTooLong { bytes: value.len(), max, ring_bytes });
        }
        Ok(())
    }
}

impl Sent {
    /// What became of two changes together.
    fn and(self, other: Sent) -> Sent {
        match (self, other) {
            (Sent::Deferred, _) | (_, Sent::Deferred) => Sent::Deferred,
            (Sent::Now, _) | (_, Sent::Now) => Sent::Now,
            (Sent::Unchanged, Sent::Unchanged) => Sent::Unchanged,
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

impl Default for SourceOptions {
    fn default() -> Self {
        SourceOptions {
            runtime_dir: None,
            ring_bytes: DEFAULT_RING_BYTES,
            resend: ResendPolicy::default(),
            send_equal: false,
            allowed_users: Vec::new(),
            first_sync_seq: SyncSeq::from(1),
        }
    }
}

impl SourceOptions {
    /// Where sources are found. Default: `$SHMIRROR_RUNTIME_DIR`, else `$XDG_RUNTIME_DIR/shmirror`, else `/run/shmirror`
    /// for root and `/tmp/shmirror-<uid>` for others.
    pub fn runtime_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.runtime_dir = Some(dir.into());
        self
    }

    /// The size of each destination's change ring: a power of two from 4 KiB to 1 GiB, default 1 MiB. The largest record
    /// (opcode, value and 32 bytes) is a quarter of it. The memory is taken per destination.
    pub fn ring_bytes(mut self, bytes: u64) -> Self {
        self.ring_bytes = bytes;
        self
    }

    /// When unacknowledged changes are sent again.
    pub fn resend(mut self, policy: ResendPolicy) -> Self {
        self.resend = policy;
        self
    }

    /// Makes each `set` a change, even of an equal value. Default: false.
    pub fn send_equal(mut self, yes: bool) -> Self {
        self.send_equal = yes;
        self
    }

    /// Takes destinations that run as these users, besides our own and root.
    pub fn allow_users(mut self, users: impl IntoIterator<Item = u32>) -> Self {
        self.allowed_users.extend(users);
        self
    }

    /// The sync sequence number of the first change; for tests of what happens when it wraps. Default: 1.
    pub fn first_sync_seq(mut self, first: impl Into<SyncSeq>) -> Self {
        self.first_sync_seq = first.into();
        self
    }

    /// Creates the source: its name is taken, its socket is there and its timer thread runs when this returns.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub fn create(self, name: &str) -> Result<Source, CreateError> {
        let ring_bytes = self.ring_bytes;
        let in_range = (MIN_RING_BYTES..=layout::MAX_RING_BYTES).contains(&ring_bytes);
        if !in_range || !ring_bytes.is_power_of_two() {
            return Err(CreateError::RingBytes { found: ring_bytes });
        }
        if self.resend.max_entries_per_message == 0 || self.resend.max_messages_per_tick == 0 {
            return Err(CreateError::ResendPolicy);
        }
        let place = Place::new(RuntimeDir::locate(self.runtime_dir.as_deref())?, name)?;
        let creator = Creator::here()?;
        let wake = Wake::new()?;
        let mode = if self.allowed_users.is_empty() { OWN_SOCKET } else { SHARED_SOCKET };
        let listener = SourceListener::bind(&place, mode)?;
        let socket = listener.path().to_path_buf();
        let resend = self.resend;
        let core = SourceCore::new(resend.clone(), self.send_equal, self.first_sync_seq);
        let shared = Arc::new(Shared::new(core, resend, wake));
        let allowed = AllowedUsers::new(&self.allowed_users);
        let host = Host { epoch: process::random_u64()?, ring_bytes, allowed };
        let service = Service::new(shared.clone(), host, listener);
        let timer_thread = process::spawn_signal_free("shmirror-timer", move || service.run())?;
        let handle = Handle { shared, creator, ring_bytes };
        Ok(Source { handle, socket, timer_thread: Some(timer_thread) })
    }
}

/// Room for a few hundred changes of a page, or ten thousand of a cache line.
const DEFAULT_RING_BYTES: u64 = 1 << 20;

/// The smallest ring, whose largest record holds any opcode and more than half a kilobyte.
const MIN_RING_BYTES: u64 = 4096;

/// Changes of a batch that are made under one lock: as many as a publisher sends before it returns.
const CHANGES_PER_LOCK: usize = FRAMES_PER_PUBLISH as usize;

/// A table's name travels in a record, and shall fit any ring.
const MAX_TABLE_NAME_BYTES: usize = 255;

/// The mode of the socket for ourselves alone.
const OWN_SOCKET: u32 = 0o600;
/// The mode of the socket if other users are allowed: then the peer's credentials decide.
const SHARED_SOCKET: u32 = 0o666;

fn attached(state: &State) -> Vec<DestinationId> {
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
    for link in state.links.iter().flatten() {
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

/// Why a source cannot be created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// The ring's size is too small, too large or no power of two.
    #[error(
        "ring of {found} bytes, expected a power of two from {MIN_RING_BYTES} to {max}",
        max = layout::MAX_RING_BYTES
    )]
    RingBytes {
        /// The size asked for.
        found: u64,
    },
    /// A policy under which nothing would ever be sent again.
    #[error("a resend policy with 0 entries per message or 0 messages per tick, expected at least 1 of each")]
    ResendPolicy,
    /// The name cannot be one of a source.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The runtime directory cannot be used.
    #[error(transparent)]
    RuntimeDir(#[from] RuntimeDirError),
    /// The name is taken, or the socket cannot be made.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// No thread, no memory or no descriptors.
    #[error("the source's timer thread cannot be set up: {0}")]
    Io(#[from] io::Error),
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
    /// The source has 65,536 tables.
    #[error("a source has at most 65536 tables")]
    TooMany,
    /// See [`SetError::Forked`].
    #[error("{FORKED}")]
    Forked,
}

/// Why a change was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SetError {
    /// The opcode is too long.
    #[error(transparent)]
    Opcode(#[from] OpcodeError),
    /// The value is too long for the ring.
    #[error(
        "value of {bytes} bytes is longer than this ring's largest for its opcode, {max} bytes \
         (ring_bytes = {ring_bytes}); use a larger ring_bytes"
    )]
    ValueTooLong {
        /// Its length.
        bytes: usize,
        /// The longest value that fits beside this opcode.
        max: usize,
        /// The ring's size.
        ring_bytes: u64,
    },
    /// The source was dropped.
    #[error("the source of this table was dropped")]
    Closed,
    /// The handle was made before a fork and is used in the child, which has no part in the source.
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
