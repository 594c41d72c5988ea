//! Keeps keyed state identical in several processes of one host: one process, the [`Source`], owns a set of items; others,
//! the [`Destination`]s, come to hold the same, at the latency of a few cache-line transfers, and without fail.
//!
//! Each change travels as one record through a lock-free ring in shared memory and is acknowledged once the destination's
//! handler has applied it. What is unacknowledged stays in the source's sync cache, one entry per item, and is sent again
//! with its newest value. A slow destination therefore costs its source a bounded amount of memory and others nothing; one
//! that attaches late, or again, gets the full state, and then an end marker at which it removes what is gone.
//!
//! ```
//! use std::time::Duration;
//! use shmirror::{Replica, Source};
//!
//! # let dir = tempfile::tempdir()?;
//! # let (source_options, replica_options) = (
//! #     Source::options().runtime_dir(dir.path()), Replica::options().runtime_dir(dir.path()));
//! // The process that owns the state: a socket under this name, and a timer thread.
//! let source = source_options.create("routes")?;
//! let ipv4 = source.table("ipv4")?;
//! ipv4.set((254u32, "10.0.0.0/8"), "via 192.0.2.1")?; // an opcode is one datum or a group of data
//! ipv4.set((254u32, "10.1.0.0/16"), "via 192.0.2.2")?;
//! ipv4.ready(); // loaded: who holds more than this may remove it
//!
//! // A process that just wants the map.
//! let mut replica = replica_options.connect("routes")?;
//! replica.wait_synced(Duration::from_secs(5))?;
//! assert_eq!(replica.table("ipv4").get((254u32, "10.0.0.0/8")), Some(&b"via 192.0.2.1"[..]));
//!
//! ipv4.remove((254u32, "10.1.0.0/16"))?;
//! while replica.table("ipv4").len() > 1 {
//!     replica.wait(Duration::from_secs(5))?;
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Where to go from here
//!
//! - [`Source`], [`Table`]: set, remove, edit, ready, flush. [`SourceOptions`]: ring size, resend policy, users.
//! - [`Snapshot`]: data that stays in the application and is read when it is sent. [`Retention`]: how much a source keeps.
//! - [`Destination`]: events with acknowledgement, for a process with tables of its own; acknowledgement can come later
//!   ([`Event::defer_ack`]). [`Replica`]: the map, kept for you. [`Subscription`]: a part of it.
//! - [`Table::set_with`]: a value that is written in place. [`Destination::recv_batch`]: a [`Batch`] of events, received into
//!   the caller's buffer. Features `zerocopy` and `postcard`: values that are structs of the application's.
//! - Event loops: each destination and replica has a descriptor to watch and a `dispatch` that does not wait
//!   ([`Destination::dispatch`]); so has a source without a thread ([`SourceOptions::create_polled`], [`SourceDriver`]).
//!   With the feature `tokio`, module `tokio`: a destination as a stream, a source driven by a task.
//! - [`Opcode`]: how items are identified. [`SourceStats`], [`DestinationStats`]: what happens, in numbers.
//!
//! # What it promises
//!
//! - A publisher never waits for a destination, and nothing is lost: what does not fit stays in the sync cache, which is
//!   bounded by the items that there are and by [`max_tombstones`](SourceOptions::max_tombstones).
//! - Changes of one item are applied in the order of the calls; intermediate values may be left out (and are counted).
//! - No change is handed to the application twice within one life of a source, and none is acknowledged before it was
//!   applied. A handler that fails gets the item again.
//! - A destination removes what its source does not have when, and only when, the source has said
//!   [`ready`](Table::ready) and named all that it has.
//! - Peers are checked, not trusted: each side can write its own memory only, and nonsense in it closes one link. Named
//!   segments, for where no descriptors can be passed (`Region::Named`, feature `named-region`), protect less.
//!
//! 64-bit Linux only; Linux 5.3 or later (memfd seals, pidfds).

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("shmirror runs on 64-bit Linux only: its cursors are 64-bit atomics in sealed memfds");

mod cpu_cache;
mod destination;
mod dispatch;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod huge_pages;
mod link;
mod monitor;
mod opcode;
mod proto;
mod region;
mod replica;
mod retention;
mod ring;
mod seq;
mod snapshot;
mod source;
mod stats;
mod subscription;
mod sys;
#[cfg(feature = "tokio")]
pub mod tokio;
#[cfg(any(feature = "postcard", feature = "zerocopy"))]
mod typed;
mod wire;

pub use destination::{
    Batch, ConnectionError, Destination, DestinationOptions, OnSourceLost, RecvError, Wait,
};
pub use dispatch::{Dispatched, Next};
pub use link::LinkError;
pub use link::greeting::GreetingError;
#[cfg(feature = "named-region")]
pub use link::greeting::named::Region;
pub use link::rendezvous::ConnectError;
pub use link::rendezvous::bind::BindError;
pub use link::rendezvous::place::{NameError, RuntimeDirError};
pub use monitor::EditGuard;
pub use opcode::{FromOpcode, Opcode, OpcodeError, OpcodeWriter, ToOpcode};
pub use proto::destination::{AckSlot, AckToken, DestinationStats, Event, HandlerResult};
pub use proto::{ProtocolError, ResendPolicy};
pub use region::RegionError;
pub use region::layout::Kind as RegionKind;
pub use replica::{Replica, ReplicaOptions, ReplicaTable, SyncError};
pub use retention::{Enumerator, Retention};
pub use ring::RingError;
pub use seq::SyncSeq;
pub use snapshot::{Snapshot, SnapshotFn, SnapshotResult};
pub use source::{
    CreateError, DriveError, Flush, FlushError, Flushed, Sent, SetError, Source, SourceDriver, SourceOptions,
    Table, TableError,
};
pub use stats::{DestinationId, DestinationState, EntryHolds, EntryState, SourceStats};
pub use subscription::{Subscription, SubscriptionError};
pub use sys::bell::RingerError;
pub use sys::memfd::{CheckError as MemoryCheckError, CreateError as MemoryCreateError};
#[cfg(feature = "named-region")]
pub use sys::segment::SegmentError;
pub use sys::socket::ReceiveError;
pub use sys::thread::{Schedule, ThreadError, ThreadOptions};
#[cfg(any(feature = "postcard", feature = "zerocopy"))]
pub use typed::ValueError;
pub use wire::WireError;
