//! How a source is made.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::{DrivenBy, Handle, Source, SourceDriver};
#[cfg(feature = "named-region")]
use crate::link::greeting::named::Region;
use crate::link::greeting::{AllowedUsers, Host, Means};
use crate::link::polled::Seat;
use crate::link::rendezvous::bind::{BindError, SourceListener};
#[cfg(feature = "named-region")]
use crate::link::rendezvous::lease::Lease;
use crate::link::rendezvous::place::{NameError, Place, RuntimeDir, RuntimeDirError};
use crate::link::service::{Drive, Service};
use crate::link::shared::Shared;
use crate::proto::ResendPolicy;
use crate::proto::source::{SourceConfig, SourceCore};
use crate::region::layout;
use crate::seq::SyncSeq;
use crate::sys::fork::Creator;
use crate::sys::process;
use crate::sys::thread::{ThreadError, ThreadOptions, spawn_signal_free};
use crate::sys::wake::Wake;

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
    max_tombstones: usize,
    timer_thread: ThreadOptions,
    #[cfg(feature = "named-region")]
    region: Region,
    #[cfg(feature = "wait-raw-sync")]
    allow_raw_sync: bool,
}

impl Default for SourceOptions {
    fn default() -> Self {
        SourceOptions {
            runtime_dir: None,
            ring_bytes: DEFAULT_RING_BYTES,
            resend: ResendPolicy::default(),
            send_equal: false,
            allowed_users: Vec::new(),
            first_sync_seq: SyncSeq::from(1),
            max_tombstones: DEFAULT_MAX_TOMBSTONES,
            timer_thread: ThreadOptions::default(),
            #[cfg(feature = "named-region")]
            region: Region::default(),
            #[cfg(feature = "wait-raw-sync")]
            allow_raw_sync: false,
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

    /// The most removes that a destination may leave unacknowledged; default 1,048,576. Above it, what is kept for that
    /// destination is dropped and its link closed; it attaches again and is given the full state
    /// ([`SourceStats::overruns`](crate::SourceStats::overruns)). Only what a destination was sent and has not let go of
    /// counts, so it is reached by one that stands still while items that it holds are removed. For a table that keeps
    /// [unacknowledged changes only](crate::Retention::Unacked), every remove that it has not acknowledged counts, and so do
    /// the changes that are made while it is being given the full state.
    pub fn max_tombstones(mut self, most: usize) -> Self {
        self.max_tombstones = most;
        self
    }

    /// How the shared memory of its links is made. Default: [`Region::Memfd`]. A destination that has chosen otherwise is
    /// refused.
    #[cfg(feature = "named-region")]
    pub fn region(mut self, region: Region) -> Self {
        self.region = region;
        self
    }

    /// Takes destinations that wait through `raw_sync` ([`Wait::RawSync`](crate::Wait::RawSync)); with [`Region::Named`]
    /// only, else of no consequence. Default: false, and such a destination is refused.
    ///
    /// Each of them then has to be trusted with this process. Publishers ring at an event in memory that the destination
    /// can write, with the source's lock held: one that is killed or stopped at the wrong moment holds them up, for ever
    /// or as long, and with them all of the source; one that overwrites the event can make this process abort, or write
    /// to wrong memory.
    #[cfg(feature = "wait-raw-sync")]
    pub fn allow_raw_sync(mut self, yes: bool) -> Self {
        self.allow_raw_sync = yes;
        self
    }

    /// The sync sequence number of the first change; for tests of what happens when it wraps. Default: 1.
    pub fn first_sync_seq(mut self, first: impl Into<SyncSeq>) -> Self {
        self.first_sync_seq = first.into();
        self
    }

    /// How the timer thread is called and scheduled, and where it runs. Default: `shmirror-timer`, as the thread that
    /// creates the source, with which it shares the policy, the nice value and the cpus. A publisher under a real-time policy
    /// should not wait for a timer thread under another one, that was preempted while it held the lock.
    pub fn timer_thread(mut self, options: ThreadOptions) -> Self {
        self.timer_thread = options;
        self
    }

    /// Creates the source: its name is taken, its socket is there and its timer thread runs when this returns.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub fn create(self, name: &str) -> Result<Source, CreateError> {
        let thread = self.timer_thread.clone();
        let (service, mut source) = self.prepare(name, Drive::OwnThread)?;
        let timer_thread = spawn_signal_free("shmirror-timer", &thread, move || service.run())?;
        source.driven_by = Some(DrivenBy::TimerThread(timer_thread));
        Ok(source)
    }

    /// Creates the source without a thread: the application's event loop drives it. Nothing is taken in, sent again or noticed
    /// but in [`SourceDriver::dispatch`] and in [`Source::flush`]; publishers still send by themselves.
    /// [`timer_thread`](SourceOptions::timer_thread) is of no consequence then.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub fn create_polled(self, name: &str) -> Result<(Source, SourceDriver), CreateError> {
        let (service, mut source) = self.prepare(name, Drive::Loop)?;
        let seat = Arc::new(Seat::new(source.handle.shared.clone(), service)?);
        let driver = SourceDriver::new(seat.clone(), source.handle.creator);
        source.driven_by = Some(DrivenBy::Loop(seat));
        Ok((source, driver))
    }

    /// A source that nobody drives yet, and what goes round.
    fn prepare(self, name: &str, drive: Drive) -> Result<(Service, Source), CreateError> {
        let ring_bytes = self.ring_bytes;
        let in_range = (MIN_RING_BYTES..=layout::MAX_RING_BYTES).contains(&ring_bytes);
        if !in_range || !ring_bytes.is_power_of_two() {
            return Err(CreateError::RingBytes { found: ring_bytes });
        }
        if self.resend.max_entries_per_message == 0 || self.resend.max_messages_per_tick == 0 {
            return Err(CreateError::ResendPolicy);
        }
        #[cfg(feature = "named-region")]
        if self.region == Region::Named && !self.allowed_users.is_empty() {
            return Err(CreateError::NamedRegionUsers { found: self.allowed_users });
        }
        let place = Place::new(RuntimeDir::locate(self.runtime_dir.as_deref())?, name)?;
        let creator = Creator::here()?;
        let wake = Wake::new()?;
        let mode = if self.allowed_users.is_empty() { OWN_SOCKET } else { SHARED_SOCKET };
        let listener = SourceListener::bind(&place, mode)?;
        let socket = listener.path().to_path_buf();
        let epoch = process::random_u64()?;
        let (means, allowed) = self.means(&place, epoch)?;
        let resend = self.resend;
        let core = SourceCore::new(SourceConfig {
            policy: resend.clone(),
            send_equal: self.send_equal,
            first_seq: self.first_sync_seq,
            max_tombstones: self.max_tombstones,
        });
        let shared = Arc::new(Shared::new(core, resend, ring_bytes, wake));
        let host = Host { epoch, ring_bytes, allowed, means };
        let service = Service::new(shared.clone(), creator, host, listener, drive);
        let handle = Handle { shared, creator, ring_bytes };
        Ok((service, Source { handle, socket, driven_by: None }))
    }

    /// How regions reach destinations, and whose those may be. The name is taken.
    #[cfg_attr(not(feature = "named-region"), expect(unused_variables, reason = "a lease needs them"))]
    fn means(&self, place: &Place, epoch: u64) -> Result<(Means, AllowedUsers), CreateError> {
        #[cfg(feature = "named-region")]
        if self.region == Region::Named {
            let means = Means::Names {
                _lease: Lease::take(place, epoch)?,
                #[cfg(feature = "wait-raw-sync")]
                events: self.allow_raw_sync,
            };
            return Ok((means, AllowedUsers::own_only()));
        }
        Ok((Means::Descriptors, AllowedUsers::new(&self.allowed_users)))
    }
}

/// Room for a few hundred changes of a page, or ten thousand of a cache line.
const DEFAULT_RING_BYTES: u64 = 1 << 20;

/// The smallest ring, whose largest record holds any opcode and more than half a kilobyte.
const MIN_RING_BYTES: u64 = 4096;

/// As many as a large table has items: then a replay costs no more than what is dropped.
const DEFAULT_MAX_TOMBSTONES: usize = 1 << 20;

/// The mode of the socket for ourselves alone.
const OWN_SOCKET: u32 = 0o600;
/// The mode of the socket if other users are allowed: then the peer's credentials decide.
const SHARED_SOCKET: u32 = 0o666;

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
    /// Named regions are of one user, and others were allowed.
    #[cfg(feature = "named-region")]
    #[error(
        "users {found:?} are allowed besides our own, expected none with Region::Named: others cannot open its segments"
    )]
    NamedRegionUsers {
        /// The users that were allowed.
        found: Vec<u32>,
    },
    /// The name cannot be one of a source.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The runtime directory cannot be used.
    #[error(transparent)]
    RuntimeDir(#[from] RuntimeDirError),
    /// The name is taken, or the socket cannot be made.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The timer thread cannot be started as it should be.
    #[error("the source's timer thread cannot be set up: {0}")]
    Thread(#[from] ThreadError),
    /// No memory or no descriptors.
    #[error("the source cannot be set up: {0}")]
    Io(#[from] io::Error),
}
