//! For programs on tokio: a destination as a stream of events, a source that a task drives. Feature `tokio`.
//!
//! No thread is started. Both rest on what any event loop can use: a descriptor that becomes readable, and a `dispatch` that
//! does not wait. A flush needs nothing of tokio: [`Source::start_flush`](crate::Source::start_flush) is a future for any
//! runtime.
//!
//! ```no_run
//! use std::time::Duration;
//! use shmirror::{Destination, Source, tokio as sm};
//! # async fn next(_: &mut sm::Events) -> Option<Result<sm::OwnedEvent, shmirror::RecvError>> { None }
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! // The process that owns the state. The driver goes to a task, the source stays here.
//! let (source, mut driver) = Source::options().create_polled("routes")?;
//! tokio::spawn(async move { sm::drive(&mut driver).await });
//! let ipv4 = source.table("ipv4")?;
//! ipv4.set((254u32, "10.0.0.0/8"), "via 192.0.2.1")?;
//! ipv4.ready();
//! let flushed = tokio::time::timeout(Duration::from_secs(1), source.start_flush()?).await??;
//!
//! // Another, with `StreamExt::next` of tokio-stream or futures.
//! let mut events = sm::Events::new(Destination::connect("routes")?)?;
//! while let Some(event) = next(&mut events).await {
//!     match event {
//!         Ok(event) => println!("{event:?}"), // acknowledged when the next is asked for
//!         Err(error) => eprintln!("{error}"), // and goes on by itself
//!     }
//! }
//! # let _ = flushed;
//! # Ok(())
//! # }
//! ```

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use ::tokio::io::Interest;
use ::tokio::io::unix::AsyncFd;
use futures_core::Stream;

use crate::destination::{Destination, RecvError};
use crate::dispatch::Next;
use crate::opcode::Opcode;
use crate::proto::destination::{AckToken, Event};
use crate::seq::SyncSeq;
use crate::source::{DriveError, SourceDriver};
use crate::sys::notify::NotifierFd;
use crate::sys::poll::{Interest as PollInterest, PollSet};

/// Something that the application is told: an [`Event`] that is its own.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum OwnedEvent {
    /// See [`Event::Set`].
    #[non_exhaustive]
    Set {
        /// The item's table.
        table: Arc<str>,
        /// The item's identity.
        opcode: Opcode,
        /// Its value.
        value: Vec<u8>,
        /// The change's sync sequence number.
        seq: SyncSeq,
        /// See [`Event::Set`].
        replaced: bool,
    },
    /// See [`Event::Removed`].
    #[non_exhaustive]
    Removed {
        /// The item's table.
        table: Arc<str>,
        /// The item's identity.
        opcode: Opcode,
        /// See [`Event::Removed`].
        seq: SyncSeq,
    },
    /// See [`Event::Synced`].
    Synced {
        /// The table.
        table: Arc<str>,
    },
    /// See [`Event::SourceLost`].
    SourceLost,
    /// See [`Event::SourceFound`].
    #[non_exhaustive]
    SourceFound {
        /// The source's process.
        pid: u32,
        /// It is not the source that this destination was attached to before, but a new life of it.
        restarted: bool,
    },
}

/// A destination's events as a [`Stream`], which never ends.
///
/// **Acks.** To ask for the next event is to say that the last one was applied: then it is acknowledged. Before that,
/// [`refuse_last`](Events::refuse_last) has it come again, and [`defer_last`](Events::defer_last) takes its ack out, to be given
/// later. What was not handed out is not acknowledged. An end marker and the removes that belong to it ([`OwnedEvent::Synced`])
/// have no acks of their own: they are acknowledged when they are taken in.
///
/// **Back-pressure.** Up to 64 records are taken in at a time, and none before all of these are handed out. A consumer that
/// does not ask lets the ring fill; the source keeps what does not fit, newest values only. (The removes that one end marker
/// causes are held at once, however many.)
///
/// **Cancellation.** What waits for the next event may be dropped at any time, in a `select!`, say: nothing is lost, as
/// everything is kept here. The event handed out last counts as applied then, as the next was asked for.
///
/// An error does not end the stream; the destination tries again by itself, as after an error of
/// [`Destination::recv`].
#[derive(Debug)]
pub struct Events {
    // First: it leaves the runtime before the descriptor is closed.
    fd: AsyncFd<Watched>,
    destination: Destination,
    /// Taken in and not handed out.
    buffer: VecDeque<(OwnedEvent, Option<AckToken>)>,
    /// The ack of what was handed out last.
    last: Option<AckToken>,
    /// The table of the last event; the next is mostly of the same.
    table: Arc<str>,
}

/// Records that are taken in at a time.
const RECORDS_AT_A_TIME: usize = 64;

/// Keeps the descriptor open for as long as the runtime knows it.
#[derive(Debug)]
struct Watched(Arc<NotifierFd>);

impl AsRawFd for Watched {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Watched {
    /// Whether there is reason to go on. The runtime tells of changes only, and its word may be of before.
    fn is_readable(&self) -> bool {
        let mut set = PollSet::new();
        let at = set.watch(self.0.as_fd(), PollInterest::Read);
        // What cannot be looked at is looked at again.
        set.wait(Some(Instant::now())).is_err() || set.ready(at).any()
    }
}

impl Events {
    /// The events of a destination, which should be a new one: what another handler was told is not told again.
    ///
    /// # Errors
    /// The runtime cannot watch its descriptor.
    ///
    /// # Panics
    /// Outside of a tokio runtime, or in one without IO.
    pub fn new(destination: Destination) -> io::Result<Events> {
        Ok(Events {
            fd: watch(destination.notifier_fd())?,
            destination,
            buffer: VecDeque::new(),
            last: None,
            table: "".into(),
        })
    }

    /// The destination; for its state and its numbers.
    pub fn destination(&self) -> &Destination {
        &self.destination
    }

    /// Takes the ack of the event that was handed out last, to be given by [`Events::ack`]. `None` if it has none, or it was
    /// taken or given before.
    pub fn defer_last(&mut self) -> Option<AckToken> {
        self.last.take()
    }

    /// Says that the event that was handed out last could not be applied: it comes again, with its newest value. Answers whether
    /// there was such an event: not if it had no ack of its own, or a newer change of the item is here already, and comes next.
    pub fn refuse_last(&mut self) -> bool {
        self.last.take().is_some_and(|token| self.refuse(token))
    }

    /// See [`Destination::ack`].
    ///
    /// # Errors
    /// See [`Destination::ack`].
    pub fn ack(&mut self, token: AckToken) -> Result<bool, RecvError> {
        self.destination.ack(token)
    }

    /// See [`Destination::refuse`].
    pub fn refuse(&mut self, token: AckToken) -> bool {
        self.destination.refuse(token)
    }
}

impl Stream for Events {
    type Item = Result<OwnedEvent, RecvError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Events { fd, destination, buffer, last, table } = self.get_mut();
        if let Some(token) = last.take()
            && let Err(error) = destination.ack(token)
        {
            return Poll::Ready(Some(Err(error)));
        }
        loop {
            if let Some((event, token)) = buffer.pop_front() {
                *last = token;
                return Poll::Ready(Some(Ok(event)));
            }
            let mut ready = match ready!(fd.poll_read_ready(context)) {
                Ok(ready) => ready,
                Err(error) => return Poll::Ready(Some(Err(RecvError::Watch(error)))),
            };
            let dispatched = destination.dispatch_at_most(RECORDS_AT_A_TIME, |event| {
                buffer.push_back((OwnedEvent::of(&event, table), event.defer_ack()));
                Ok(())
            });
            if dispatched.as_ref().is_ok_and(|dispatched| dispatched.next == Next::Now) {
                if buffer.is_empty() {
                    // Other tasks have their turn before the next look.
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
            } else if !fd.get_ref().is_readable() {
                ready.clear_ready();
            }
            // What was taken in before the error comes next time.
            if let Err(error) = dispatched {
                return Poll::Ready(Some(Err(error)));
            }
        }
    }
}

impl OwnedEvent {
    /// `last_table` is that of the event before.
    fn of(event: &Event<'_>, last_table: &mut Arc<str>) -> OwnedEvent {
        let mut own = |table: &str| {
            if **last_table != *table {
                *last_table = table.into();
            }
            last_table.clone()
        };
        match *event {
            Event::Set { table, opcode, value, seq, replaced, .. } => OwnedEvent::Set {
                table: own(table),
                opcode: opcode.clone(),
                value: value.to_vec(),
                seq,
                replaced,
            },
            Event::Removed { table, opcode, seq, .. } => {
                OwnedEvent::Removed { table: own(table), opcode: opcode.clone(), seq }
            }
            Event::Synced { table } => OwnedEvent::Synced { table: own(table) },
            Event::SourceLost => OwnedEvent::SourceLost,
            Event::SourceFound { pid, restarted } => OwnedEvent::SourceFound { pid, restarted },
        }
    }
}

/// Drives a source for as long as it is awaited; it ends when the [`Source`](crate::Source) is dropped. Spawn it, or select
/// it beside other work: it may be dropped at any time and called again, and nothing is lost.
///
/// # Errors
/// The runtime cannot watch the driver's descriptor, or the driver belongs to the parent of a forked child.
///
/// # Panics
/// Outside of a tokio runtime, or in one without IO.
pub async fn drive(driver: &mut SourceDriver) -> io::Result<()> {
    let fd = watch(driver.notifier_fd())?;
    loop {
        let mut ready = fd.readable().await?;
        match driver.dispatch() {
            Ok(Next::Now) => give_way().await,
            Ok(Next::At(_) | Next::Readable) => {
                if fd.get_ref().is_readable() {
                    give_way().await;
                } else {
                    ready.clear_ready();
                }
            }
            Err(DriveError::Closed) => return Ok(()),
            Err(DriveError::Forked) => return Err(io::Error::other(DriveError::Forked)),
        }
    }
}

#[allow(
    deprecated,
    reason = "the function that replaces it, new in tokio 1.54, is unsafe for the sake of values that close their descriptor \
              or return another one; `Watched` does neither"
)]
fn watch(fd: Arc<NotifierFd>) -> io::Result<AsyncFd<Watched>> {
    AsyncFd::with_interest(Watched(fd), Interest::READABLE)
}

/// Lets other tasks have their turn.
async fn give_way() {
    let mut gave_way = false;
    poll_fn(|context| {
        if std::mem::replace(&mut gave_way, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
