//! The public face of a destination.

mod batch;
mod options;
mod polled;

use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::link::LinkError;
#[cfg(feature = "named-region")]
use crate::link::greeting::named::Region;
use crate::link::greeting::{AllowedUsers, Attached, Greeting, GreetingError};
use crate::link::incoming::{IncomingLink, Woken};
use crate::link::kept::Kept;
#[cfg(feature = "named-region")]
use crate::link::rendezvous::lease::Lease;
use crate::link::rendezvous::place::{Place, RuntimeDir, RuntimeDirError};
use crate::link::rendezvous::watch::{SourceWatch, WatchError};
use crate::link::rendezvous::{self, ConnectError};
use crate::proto::destination::{AckToken, DestinationCore, DestinationStats, Event, HandlerResult};
use crate::subscription::{Subscription, SubscriptionError};
use crate::sys::fork::Creator;
use crate::sys::poll::{Interest, PollSet, deadline_after};
use crate::sys::process;
use crate::sys::socket::Socket;
use crate::wire::{Hello, Offer};

use polled::Polled;

pub use batch::Batch;
use options::Pause;
pub use options::{ConnectionError, DestinationOptions, OnSourceLost, Wait};

/// Receives a source's items and their changes, one by one, and acknowledges each once the application has applied it.
///
/// A destination has no thread: it works within the calls of `recv` and its kin, or of [`dispatch`](Destination::dispatch), if
/// an event loop watches its descriptor ([`AsFd`]). It attaches by itself, as soon as there is
/// a source of that name, and again after a loss; each time it gets the full state and then, per table, an
/// [`Event::Synced`]. It remembers the opcodes (not the values) that it has handed over, so that it can tell what is gone.
///
/// ```no_run
/// use shmirror::{Destination, Event};
/// # struct Fib;
/// # impl Fib {
/// #     fn install(&self, _: &shmirror::Opcode, _: &[u8]) -> std::io::Result<()> { Ok(()) }
/// #     fn withdraw(&self, _: &shmirror::Opcode) -> std::io::Result<()> { Ok(()) }
/// # }
/// # let fib = Fib;
/// let mut destination = Destination::connect("routes")?;
/// loop {
///     destination.recv(|event| {
///         match event {
///             Event::Set { opcode, value, .. } => fib.install(opcode, value)?, // an error: comes again
///             Event::Removed { opcode, .. } => fib.withdraw(opcode)?,
///             _ => {}
///         }
///         Ok(())
///     })?;
/// }
/// # #[allow(unreachable_code)]
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Destination {
    place: Place,
    wait: Wait,
    on_source_lost: OnSourceLost,
    allowed: AllowedUsers,
    incarnation: u64,
    creator: Creator,
    core: DestinationCore,
    attachment: Attachment,
    attached_at: Instant,
    retry: Retry,
    set: PollSet,
    /// When it was last seen that the source lives; `None` when there is reason to look.
    source_seen: Option<Instant>,
    last_failure: Option<String>,
    /// The link broke outside of `recv`, whose next call says so.
    broken: Option<LinkError>,
    /// When to try again to give up what is not wanted any more.
    unwanted_retry: Option<Instant>,
    /// The caller's buffer, while one is being filled and no link has it.
    kept: Option<Kept>,
    /// What the next call says: events came before it, and went into a batch.
    held_back: Option<RecvError>,
    /// For an event loop.
    polled: Polled,
    #[cfg(feature = "named-region")]
    region: Region,
    /// From the first segment on. The last field, as no segment outlives it.
    #[cfg(feature = "named-region")]
    lease: Option<Lease>,
}

#[derive(Debug)]
enum Attachment {
    /// Looking for the source; with a watch unless the system has none left.
    Detached(Option<SourceWatch>),
    Greeting(Box<Greeting>),
    Attached(Box<IncomingLink>),
}

/// When to look for the source again.
#[derive(Debug)]
struct Retry {
    at: Instant,
    pause: Duration,
}

/// The most records of one call.
const RECORDS_PER_CALL: usize = 1024;
/// The ring of acks; small, as one ack covers many changes.
const ACK_RING_BYTES: u64 = 64 * 1024;
/// How often a destination that finds its ring empty looks whether its source lives.
const SOURCE_CHECK: Duration = Duration::from_millis(1);
/// How often an empty ring is looked at before anything else is.
const SPINS: usize = 256;
/// A link that breaks sooner than this is not made again at once.
const SHORT_LIVED: Duration = Duration::from_secs(1);
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_MOST: Duration = Duration::from_secs(1);

impl Destination {
    /// A destination of the source of that name, with the default options. Waits for no one: a source that is not there
    /// yet is an event that comes later.
    ///
    /// # Errors
    /// See [`ConnectionError`].
    pub fn connect(name: &str) -> Result<Destination, ConnectionError> {
        Destination::options().connect(name)
    }

    /// Makes a destination, which keeps the values of its items or not.
    pub(crate) fn make(
        options: DestinationOptions,
        name: &str,
        keep_values: bool,
    ) -> Result<Destination, ConnectionError> {
        let now = Instant::now();
        options.check()?;
        Hello::check(&options.subscription)?;
        Ok(Destination {
            place: Place::new(RuntimeDir::locate(options.runtime_dir.as_deref())?, name)?,
            wait: options.wait,
            on_source_lost: options.on_source_lost,
            #[cfg(feature = "named-region")]
            allowed: match options.region {
                Region::Memfd => AllowedUsers::new(&options.allowed_users),
                Region::Named => AllowedUsers::own_only(),
            },
            #[cfg(not(feature = "named-region"))]
            allowed: AllowedUsers::new(&options.allowed_users),
            incarnation: process::random_u64()?,
            creator: Creator::here()?,
            core: DestinationCore::new(keep_values, options.subscription),
            attachment: Attachment::Detached(None),
            attached_at: now,
            retry: Retry::now(),
            set: PollSet::new(),
            source_seen: None,
            last_failure: None,
            broken: None,
            unwanted_retry: None,
            kept: None,
            held_back: None,
            polled: Polled::new()?,
            #[cfg(feature = "named-region")]
            region: options.region,
            #[cfg(feature = "named-region")]
            lease: None,
        })
    }

    /// Options to connect with.
    pub fn options() -> DestinationOptions {
        DestinationOptions::default()
    }

    /// Waits for events, hands them over and acknowledges those that were applied. Answers how many records it took in, at
    /// most 1024; that a source was found or lost counts as one, and so do all items together that it gives up because they are
    /// not wanted any more ([`Destination::subscribe`]).
    ///
    /// The handler's error, or a panic in it, means: not applied. That change comes again, with its newest value; others
    /// are not held up.
    ///
    /// # Errors
    /// [`RecvError`]. The destination is still good: the next call goes on, and attaches again if need be.
    pub fn recv(&mut self, handler: impl FnMut(Event<'_>) -> HandlerResult) -> Result<usize, RecvError> {
        self.recv_until(None, handler)
    }

    /// As [`Destination::recv`], but waits no longer than `timeout`; then it answers 0.
    ///
    /// # Errors
    /// See [`Destination::recv`].
    pub fn recv_timeout(
        &mut self,
        timeout: Duration,
        handler: impl FnMut(Event<'_>) -> HandlerResult,
    ) -> Result<usize, RecvError> {
        self.recv_until(Some(deadline_after(timeout)), handler)
    }

    /// As [`Destination::recv`], but does not wait at all.
    ///
    /// # Errors
    /// See [`Destination::recv`].
    pub fn try_recv(
        &mut self,
        mut handler: impl FnMut(Event<'_>) -> HandlerResult,
    ) -> Result<usize, RecvError> {
        self.check_process()?;
        let received = self.step(RECORDS_PER_CALL, &mut handler);
        self.polled.alarm();
        received
    }

    /// Acknowledges a change whose ack was put off ([`Event::defer_ack`]), on whatever link stands now; without one, its
    /// source is told when the change comes again. Answers whether that ack was owed: it is not if a newer change of the item
    /// was applied meanwhile, or the source has another life now.
    ///
    /// # Errors
    /// [`RecvError::Forked`] only. That the link has broken is told by the next `recv`, and the ack is given when the change
    /// comes again.
    pub fn ack(&mut self, token: AckToken) -> Result<bool, RecvError> {
        self.ack_all([token]).map(|owed| owed == 1)
    }

    /// As [`Destination::ack`] for each of these, in one message. Answers how many were owed.
    ///
    /// # Errors
    /// See [`Destination::ack`].
    pub fn ack_all(&mut self, tokens: impl IntoIterator<Item = AckToken>) -> Result<usize, RecvError> {
        self.check_process()?;
        let owed = tokens.into_iter().filter(|token| self.core.acknowledge(token)).count();
        if let Attachment::Attached(link) = &mut self.attachment {
            let was_full = link.is_ack_ring_full();
            if let Err(error) = link.send_acks(&mut self.core) {
                self.broken = Some(error);
                self.polled.alarm();
            } else if was_full && !link.is_ack_ring_full() {
                // An event loop that sleeps until the source rings for room waits in vain: the source is told that nobody
                // waits for that any more, and the records that could not be consumed are still there.
                self.polled.alarm();
            }
        }
        Ok(owed)
    }

    /// Says that a change whose ack was put off could not be applied: it comes again, as if the handler had failed. Answers
    /// whether the ack was owed.
    pub fn refuse(&mut self, token: AckToken) -> bool {
        let owed = self.core.refuse(&token);
        if owed {
            self.last_failure = Some(format!("item {}, change {}: refused", token.opcode(), token.seq()));
            if self.core.is_unnamed(&token) {
                self.unwanted_retry.get_or_insert_with(Instant::now);
                self.polled.alarm();
            }
        }
        owed
    }

    /// Wants other items from now on. The present link is given up, without an [`Event::SourceLost`], and the next calls
    /// attach anew; what is not wanted any more is told as [`Event::Removed`] then: items of tables that are not named at
    /// once, others at the end marker of their table.
    ///
    /// # Errors
    /// [`SubscriptionError`]; then nothing has changed.
    pub fn subscribe(&mut self, subscription: Subscription) -> Result<(), SubscriptionError> {
        Hello::check(&subscription)?;
        self.core.set_subscription(subscription);
        self.core.detach();
        self.broken = None;
        self.enter(Attachment::Detached(None));
        self.retry = Retry::now();
        self.polled.alarm();
        Ok(())
    }

    /// Whether a link to a source stands.
    pub fn is_attached(&self) -> bool {
        matches!(self.attachment, Attachment::Attached(_))
    }

    /// Whether the table's end marker was applied on the present link.
    pub fn is_synced(&self, table: &str) -> bool {
        self.core.is_synced(table)
    }

    /// Whether every table that the subscription names is synced; if it names none, every table that the source has
    /// announced, of which there must be one.
    pub fn is_all_synced(&self) -> bool {
        self.core.is_all_synced()
    }

    /// What the destination counts.
    pub fn stats(&self) -> DestinationStats {
        self.core.stats()
    }

    /// The last event that the handler did not apply, and why.
    pub fn last_failure(&self) -> Option<&str> {
        self.last_failure.as_deref()
    }

    pub(crate) fn core(&self) -> &DestinationCore {
        &self.core
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    pub(crate) fn recv_until(
        &mut self,
        deadline: Option<Instant>,
        mut handler: impl FnMut(Event<'_>) -> HandlerResult,
    ) -> Result<usize, RecvError> {
        self.check_process()?;
        if let Attachment::Attached(link) = &mut self.attachment {
            link.look_away();
        }
        let mut since = None;
        let received = loop {
            match self.step(RECORDS_PER_CALL, &mut handler) {
                Ok(0) => {}
                outcome => break outcome,
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                break Ok(0);
            }
            let since = *since.get_or_insert_with(Instant::now);
            if let Err(error) = self.wait(since, deadline) {
                break Err(self.lose_link(error, &mut handler));
            }
        };
        self.polled.alarm();
        received
    }

    fn check_process(&self) -> Result<(), RecvError> {
        if self.creator.is_here() { Ok(()) } else { Err(RecvError::Forked) }
    }

    fn enter(&mut self, attachment: Attachment) {
        self.attachment = attachment;
        self.polled.handle_opened();
    }

    /// Does what can be done without waiting, with at most so many records.
    fn step(
        &mut self,
        most: usize,
        handler: &mut impl FnMut(Event<'_>) -> HandlerResult,
    ) -> Result<usize, RecvError> {
        if let Some(error) = self.held_back.take() {
            return Err(error);
        }
        if let Some(error) = self.broken.take() {
            return Err(self.lose_link(error, handler));
        }
        match &mut self.attachment {
            Attachment::Attached(link) => {
                let last_failure = &mut self.last_failure;
                let mut guarded = |event: Event<'_>| hand_over(event, &mut *handler, &mut *last_failure);
                let mut given_up = 0;
                if self.unwanted_retry.is_some_and(|at| at <= Instant::now()) {
                    given_up = self.core.sweep_unwanted(&mut guarded);
                    self.unwanted_retry = self.core.has_unwanted().then(|| Instant::now() + RETRY_MOST);
                }
                match link.receive(&mut self.core, most, &mut guarded) {
                    // Who has been shown something must not be told that nothing came.
                    Ok(0) if given_up > 0 => Ok(1),
                    Ok(0) => self.check_source(most, handler),
                    Ok(received) => Ok(received),
                    Err(error) => Err(self.lose_link(error, handler)),
                }
            }
            Attachment::Detached(watch) => {
                let appeared = match watch.as_mut().map(SourceWatch::drain) {
                    Some(Ok(appeared)) => appeared,
                    Some(Err(_)) | None => false, // the retry finds it, too
                };
                if !appeared && Instant::now() < self.retry.at {
                    return Ok(0);
                }
                self.look_for_source()?;
                Ok(0)
            }
            Attachment::Greeting(_) => self.finish_greeting(handler),
        }
    }

    /// With an empty ring: notices the source's death.
    fn check_source(
        &mut self,
        most: usize,
        handler: &mut impl FnMut(Event<'_>) -> HandlerResult,
    ) -> Result<usize, RecvError> {
        let Attachment::Attached(link) = &mut self.attachment else { return Ok(0) };
        if self.source_seen.is_some_and(|seen| seen.elapsed() < SOURCE_CHECK) {
            return Ok(0);
        }
        self.source_seen = Some(Instant::now());
        match link.is_source_gone(&mut self.set) {
            Ok(false) => Ok(0),
            Ok(true) => {
                // What it published before it died is still to be applied.
                link.handle_source_gone();
                let last_failure = &mut self.last_failure;
                let mut guarded = |event: Event<'_>| hand_over(event, &mut *handler, &mut *last_failure);
                if let Ok(received @ 1..) = link.receive(&mut self.core, most, &mut guarded) {
                    self.source_seen = None;
                    return Ok(received);
                }
                self.detach(handler);
                Ok(1)
            }
            Err(error) => Err(self.lose_link(error, handler)),
        }
    }

    fn look_for_source(&mut self) -> Result<(), RecvError> {
        let Attachment::Detached(watch) = &mut self.attachment else { return Ok(()) };
        // Whoever can write there could put another socket under the name.
        if let Err(error) = self.place.dir().prepare() {
            self.retry.later();
            return Err(error.into());
        }
        let mut connected = rendezvous::connect(&self.place);
        // Only now: to close a watch takes Linux some ten milliseconds. And then once more, so that a source that appears in
        // between is not missed.
        if matches!(connected, Err(ConnectError::NoSource { .. })) && watch.is_none() {
            match SourceWatch::new(&self.place) {
                Ok(new) => {
                    *watch = Some(new);
                    self.polled.handle_opened();
                }
                Err(WatchError::RuntimeDir(error)) => {
                    self.retry.later();
                    return Err(error.into());
                }
                // The system has no watches left: the retry must do.
                Err(WatchError::Os { .. }) => {}
            }
            connected = rendezvous::connect(&self.place);
        }
        let watched = watch.is_some();
        match connected {
            Ok(socket) => match self.start_greeting(socket) {
                Ok(greeting) => {
                    self.enter(Attachment::Greeting(Box::new(greeting)));
                    Ok(())
                }
                // It died between our connecting and our first word.
                Err(GreetingError::HungUp) => {
                    self.retry.later();
                    Ok(())
                }
                Err(error) => {
                    self.retry.later();
                    Err(error.into())
                }
            },
            Err(ConnectError::Busy { .. }) => {
                self.retry.later();
                Ok(())
            }
            Err(ConnectError::NoSource { .. }) => {
                let pause = if watched { RETRY_MOST } else { RETRY_FIRST };
                self.retry = Retry { at: Instant::now() + pause, pause: RETRY_FIRST };
                Ok(())
            }
            Err(error) => {
                self.retry.later();
                Err(error.into())
            }
        }
    }

    fn start_greeting(&mut self, socket: Socket) -> Result<Greeting, GreetingError> {
        #[cfg(feature = "named-region")]
        if self.region == Region::Named {
            if self.lease.is_none() {
                let lease = Lease::take(&self.place, self.incarnation).map_err(GreetingError::Lease)?;
                self.lease = Some(lease);
            }
            return Greeting::start_by_name(socket, self.hello(), &self.allowed, self.wait.is_at_event());
        }
        Greeting::start(socket, &self.hello(), &self.allowed)
    }

    fn hello(&self) -> Hello {
        Hello {
            incarnation: self.incarnation,
            ack_ring_bytes: ACK_RING_BYTES,
            offer: Offer::Descriptors,
            subscription: self.core.subscription().clone(),
        }
    }

    fn finish_greeting(
        &mut self,
        handler: &mut impl FnMut(Event<'_>) -> HandlerResult,
    ) -> Result<usize, RecvError> {
        let Attachment::Greeting(greeting) =
            std::mem::replace(&mut self.attachment, Attachment::Detached(None))
        else {
            unreachable!("called while greeting");
        };
        let finished = greeting.finish();
        if !matches!(finished, Ok(Err(_))) {
            self.polled.handle_opened();
        }
        match finished {
            Ok(Err(greeting)) => {
                self.attachment = Attachment::Greeting(Box::new(greeting));
                Ok(0)
            }
            Ok(Ok(Attached { mut link, epoch, pid })) => {
                if self.wait.never_sleeps() {
                    link.never_wait();
                }
                self.attachment = Attachment::Attached(Box::new(link));
                self.attached_at = Instant::now();
                let restarted = self.core.attach(epoch);
                self.unwanted_retry = self.core.has_unwanted().then(Instant::now);
                let event = Event::SourceFound { pid: pid.unsigned_abs(), restarted };
                hand_over(event, handler, &mut self.last_failure);
                Ok(1)
            }
            Err(GreetingError::HungUp) => {
                self.retry.later();
                Ok(0)
            }
            Err(error) => {
                self.retry.later();
                Err(error.into())
            }
        }
    }

    /// Gives the link up: the next calls attach afresh.
    fn lose_link(
        &mut self,
        error: LinkError,
        handler: &mut impl FnMut(Event<'_>) -> HandlerResult,
    ) -> RecvError {
        self.detach(handler);
        RecvError::Link(error)
    }

    /// The link is gone: the next calls look for the source at once, unless this one broke as soon as it stood.
    fn detach(&mut self, handler: &mut impl FnMut(Event<'_>) -> HandlerResult) {
        if let Attachment::Attached(link) = &mut self.attachment {
            link.swap_kept(&mut self.kept);
        }
        self.enter(Attachment::Detached(None));
        if self.attached_at.elapsed() < SHORT_LIVED {
            self.retry.later();
        } else {
            self.retry = Retry::now();
        }
        self.core.detach();
        hand_over(Event::SourceLost, handler, &mut self.last_failure);
        if self.on_source_lost == OnSourceLost::Flush {
            let last_failure = &mut self.last_failure;
            self.core.flush(|event| hand_over(event, &mut *handler, &mut *last_failure));
        }
    }

    /// Waits for a while, as the call did that has found nothing since then.
    fn wait(&mut self, since: Instant, deadline: Option<Instant>) -> Result<(), LinkError> {
        let until = |other: Option<Instant>| deadline.into_iter().chain(other).min();
        match &mut self.attachment {
            Attachment::Attached(link) => {
                match self.wait.pause(since) {
                    Pause::Spin => return link.spin(SPINS),
                    Pause::Yield => {
                        link.handle_gap();
                        std::thread::yield_now();
                        return Ok(());
                    }
                    Pause::Sleep => {}
                }
                match link.wait(&self.core, until(self.unwanted_retry), &mut self.set)? {
                    Woken::NotAsleep => {}
                    Woken::SourceLives => self.source_seen = Some(Instant::now()),
                    Woken::SourceGone => self.source_seen = None,
                }
                Ok(())
            }
            Attachment::Greeting(greeting) => {
                self.set.clear();
                self.set.watch(greeting.as_fd(), Interest::Read);
                self.set.wait(until(Some(greeting.deadline())))?;
                Ok(())
            }
            Attachment::Detached(watch) => {
                self.set.clear();
                if let Some(watch) = watch {
                    self.set.watch(watch.as_fd(), Interest::Read);
                }
                self.set.wait(until(Some(self.retry.at)))?;
                Ok(())
            }
        }
    }
}

impl Retry {
    fn now() -> Retry {
        Retry { at: Instant::now(), pause: RETRY_FIRST }
    }

    fn later(&mut self) {
        self.at = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(RETRY_MOST);
    }
}

/// Calls the handler; a panic is a failure of this event and of nothing else.
fn hand_over(
    event: Event<'_>,
    handler: &mut impl FnMut(Event<'_>) -> HandlerResult,
    last_failure: &mut Option<String>,
) -> bool {
    let why = match catch_unwind(AssertUnwindSafe(|| handler(event))) {
        Ok(Ok(())) => return true,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the handler panicked".to_string(),
    };
    *last_failure = Some(match event {
        Event::Set { table, opcode, seq, .. } => format!("set {opcode} in {table}, change {seq}: {why}"),
        Event::Removed { table, opcode, seq, .. } => {
            format!("remove {opcode} from {table}, change {seq}: {why}")
        }
        Event::Synced { table } => format!("end of the replay of {table}: {why}"),
        Event::SourceLost | Event::SourceFound { .. } => format!("{event:?}: {why}"),
    });
    false
}

/// Why nothing was received. The next call tries again, after a pause that grows up to a second.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecvError {
    /// The runtime directory cannot be used.
    #[error(transparent)]
    RuntimeDir(#[from] RuntimeDirError),
    /// What lies under the source's name cannot be connected to.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The source and this destination did not come to terms.
    #[error(transparent)]
    Greeting(#[from] GreetingError),
    /// The link broke.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// What an event loop is to be woken for cannot be watched; it is woken every 20 ms instead.
    #[error("the destination's descriptors cannot be watched for an event loop: {0}")]
    Watch(std::io::Error),
    /// The handle was made before a fork and is used in the child.
    #[error("this handle belongs to the parent process; a forked child must make its own")]
    Forked,
}
