//! The source's timer thread: takes destinations in, sends again what is due, makes use of room, notices deaths.
//!
//! Publishers do the sending themselves, under the same lock; this thread does what no publisher is there for. It sleeps
//! in one `ppoll` on everything that can happen, until the next resend is due; with nothing unacknowledged it does not
//! wake. It holds the lock for one link at a time and for a bounded number of frames.
//!
//! Invariants:
//! 1. Only this thread takes links in and out; a publisher that finds one broken marks it and wakes this thread.
//! 2. A session of the protocol core and its link exist together.

use std::os::fd::AsFd;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::LinkError;
use super::application::{self, Answer};
use super::greeting::{GREETING_TIMEOUT, GreetingError, Host, Welcomed};
use super::outgoing::{OutgoingLink, Pumped, Room};
use super::rendezvous::bind::SourceListener;
use crate::opcode::Opcode;
use crate::proto::ResendPolicy;
use crate::proto::source::{MAX_FLUSHES, Read, SessionId, SourceCore, Unreadable};
use crate::proto::store::{NewValue, Stored, TableId};
use crate::ring;
use crate::sys::poll::{Interest, PollSet};
use crate::sys::socket::Socket;
use crate::sys::wake::Wake;
use crate::wire;

/// What the publishers and the timer thread share.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Told when acks came or a destination went while a flush waits.
    flushed: Condvar,
    /// The timer thread waits for the lock.
    timer_waits: AtomicBool,
    pub(crate) wake: Wake,
    pub(crate) policy: ResendPolicy,
    /// The longest opcode and value together that fit a record.
    max_item_bytes: usize,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) core: SourceCore,
    /// By session.
    pub(crate) links: Vec<Option<OutgoingLink>>,
    /// A bit for each flush that waits.
    flushes: u16,
    closing: bool,
    pub(crate) counters: ServiceCounters,
}

/// What the timer thread counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct ServiceCounters {
    pub(crate) attached: u64,
    pub(crate) refused: u64,
    pub(crate) broken: u64,
    /// Why the last destination was refused or its link was closed.
    pub(crate) last_error: Option<String>,
}

/// Frames that a publisher sends at most before it returns: those that waited before its own change, and that.
pub(crate) const FRAMES_PER_PUBLISH: u32 = 32;
/// Frames that the timer thread sends on one link before it lets others have the lock.
const FRAMES_PER_TURN: u32 = 1024;
/// How often a publisher yields to the timer thread before it takes the lock all the same.
const YIELDS_TO_TIMER: u32 = 50;
/// How often the timer thread looks at a full ring, giving way to others, without seeing that anything has left it.
const YIELDS_WITHOUT_ROOM: u32 = 32;
/// And for how long at most, whatever leaves it: other links have their turn then.
const AWAKE_FOR_ROOM: Duration = Duration::from_micros(500);
/// Questions to the application on one link before others have their turn.
const READS_PER_TURN: u32 = 64;
/// Connections that have not said hello yet; one more takes the place of the one that has been silent for longest.
const MAX_STRANGERS: usize = 64;
/// How long to leave the listener alone when no descriptors are left.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

impl Shared {
    pub(crate) fn new(core: SourceCore, policy: ResendPolicy, ring_bytes: u64, wake: Wake) -> Shared {
        let state = State {
            core,
            links: Vec::new(),
            flushes: 0,
            closing: false,
            counters: ServiceCounters::default(),
        };
        let timer_waits = AtomicBool::new(false);
        let max_item_bytes = ring::max_payload_bytes(ring_bytes) - wire::HEADER_BYTES;
        let (state, flushed) = (Mutex::new(state), Condvar::new());
        Shared { state, flushed, timer_waits, wake, policy, max_item_bytes }
    }

    /// The longest value that fits a record beside this opcode.
    pub(crate) fn max_value_bytes(&self, opcode: &Opcode) -> usize {
        self.max_item_bytes - opcode.as_bytes().len()
    }

    /// The lock, for publishers. It is not fair, and a publisher in a loop would take it again before the timer thread,
    /// that it has just woken, gets to run: so publishers let that one pass, for a bounded time.
    #[inline]
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // Relaxed: a hint, that orders nothing. If it is missed, the timer thread waits a little longer.
        if self.timer_waits.load(Relaxed) {
            self.let_timer_pass();
        }
        self.lock_now()
    }

    #[cold]
    fn let_timer_pass(&self) {
        for _ in 0..YIELDS_TO_TIMER {
            std::thread::yield_now();
            if !self.timer_waits.load(Relaxed) {
                return;
            }
        }
    }

    /// The lock, for the timer thread.
    fn lock_for_timer(&self) -> MutexGuard<'_, State> {
        self.timer_waits.store(true, Relaxed);
        let state = self.lock_now();
        self.timer_waits.store(false, Relaxed);
        state
    }

    fn lock_now(&self) -> MutexGuard<'_, State> {
        // A panic under the lock is a broken invariant of ours; the publisher that it hit has told its own thread.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives an item its newest value, and puts that in the rings of those destinations for which nothing waits. The caller
    /// publishes then.
    #[inline]
    pub(crate) fn set(
        &self,
        state: &mut State,
        table: TableId,
        opcode: Opcode,
        value: NewValue<'_>,
    ) -> Stored {
        let State { core, links, .. } = state;
        core.set(table, opcode, value, |session, frame| {
            links[session].as_mut().is_some_and(|link| link.offer(frame, &self.policy))
        })
    }

    /// Sends what the caller has just changed, as far as there is room. Answers whether all of it went.
    #[inline]
    pub(crate) fn publish(&self, state: &mut State) -> bool {
        let State { core, links, .. } = state;
        let (mut wake, mut all) = (false, true);
        for link in links.iter_mut().flatten() {
            if core.is_quiet(link.session) {
                // All that there was is in the ring: the way of almost every change.
                wake |= !link.publish_offered(core) || core.request_tick(link.session);
                continue;
            }
            all = false;
            let pumped = link.pump(core, &self.policy, FRAMES_PER_PUBLISH);
            // What must be read from the application is the timer thread's: the publisher may hold a lock that it takes.
            let reads = !link.awaits_room && core.has_reads(link.session);
            let failed = link.failed.is_some() || core.is_overrun(link.session);
            wake |= failed || reads || pumped == Pumped::Budget || core.request_tick(link.session);
        }
        if wake {
            self.wake.wake();
        }
        all
    }

    /// Takes in the acks of every destination.
    pub(crate) fn drain_acks(&self, state: &mut State) {
        self.on_links(state, OutgoingLink::drain_acks);
    }

    /// As [`Shared::drain_acks`], and has each destination ring when it acknowledges more.
    pub(crate) fn await_acks(&self, state: &mut State) {
        self.on_links(state, OutgoingLink::await_acks);
    }

    fn on_links(&self, state: &mut State, act: impl Fn(&mut OutgoingLink, &mut SourceCore)) {
        let State { core, links, .. } = state;
        links.iter_mut().flatten().for_each(|link| act(link, core));
        if links.iter().flatten().any(|link| link.failed.is_some()) {
            self.wake.wake();
        }
    }

    /// Tells the timer thread to end.
    pub(crate) fn close(&self) {
        self.lock().closing = true;
        self.wake.wake();
        self.flushed.notify_all();
    }

    /// Waits for acks, or for the deadline; a wake-up without either is possible.
    pub(crate) fn wait_flushed<'a>(
        &self,
        state: MutexGuard<'a, State>,
        deadline: Instant,
    ) -> MutexGuard<'a, State> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.flushed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
    }
}

impl State {
    pub(crate) fn is_closing(&self) -> bool {
        self.closing
    }

    /// Begins a flush of one session or of all; `None` if too many are waiting.
    pub(crate) fn start_flush(&mut self, only: Option<SessionId>) -> Option<usize> {
        let flush = self.flushes.trailing_ones() as usize;
        if flush == MAX_FLUSHES {
            return None;
        }
        self.flushes |= 1 << flush;
        self.core.start_flush(flush, only);
        Some(flush)
    }

    pub(crate) fn is_flushing(&self) -> bool {
        self.flushes != 0
    }

    pub(crate) fn end_flush(&mut self, flush: usize) {
        self.core.end_flush(flush);
        self.flushes &= !(1 << flush);
    }

    /// What the application must be asked for on a link, if there is room for the answer.
    fn poll_read(&mut self, session: SessionId) -> Option<Read> {
        let State { core, links, .. } = self;
        let link = links[session].as_mut()?;
        if link.may_read(core) { core.poll_read(session) } else { None }
    }

    fn add_link(&mut self, welcomed: Welcomed, socket: Socket) {
        let session = self.core.attach(welcomed.subscription.clone());
        self.counters.attached += 1;
        let link = welcomed.into_link(session, self.counters.attached, socket);
        if self.links.len() <= session {
            self.links.resize_with(session + 1, || None);
        }
        self.links[session] = Some(link);
    }

    fn refuse(&mut self, error: &GreetingError) {
        self.counters.refused += 1;
        self.counters.last_error = Some(format!("a destination was not taken: {error}"));
    }

    /// Takes a link out. The caller drops it once it has let go of the lock: unmapping a large ring takes long.
    fn take_link(&mut self, session: SessionId) -> Option<OutgoingLink> {
        let link = self.links[session].take();
        if let Some(OutgoingLink { failed: Some(error), id, .. }) = &link {
            // An overrun is counted where it is found.
            let is_ours = matches!(error, LinkError::Overrun { .. } | LinkError::Enumerator { .. });
            self.counters.broken += u64::from(!is_ours);
            self.counters.last_error = Some(format!("process {}: {error}", id.pid));
        }
        self.core.detach(session);
        link
    }
}

/// The timer thread's own things.
pub(crate) struct Service {
    shared: Arc<Shared>,
    host: Host,
    listener: SourceListener,
    /// Connections that have not said hello.
    strangers: Vec<(Socket, Instant)>,
    set: PollSet,
    /// Not before then is the listener looked at.
    accept_from: Option<Instant>,
    /// Where data is copied that must be read first.
    snapshot: Vec<u8>,
}

/// Where in the poll set a link's descriptors are.
struct Watched {
    session: SessionId,
    /// The first of three: bell, socket, process.
    at: usize,
}

impl Service {
    pub(crate) fn new(shared: Arc<Shared>, host: Host, listener: SourceListener) -> Service {
        Service {
            shared,
            host,
            listener,
            strangers: Vec::new(),
            set: PollSet::new(),
            accept_from: None,
            snapshot: Vec::new(),
        }
    }

    /// Runs until [`Shared::close`].
    pub(crate) fn run(mut self) {
        // However the thread ends, by a panic of its own at the worst: the source is closed then, and its destinations
        // see that.
        let _closes = CloseAtEnd(self.shared.clone());
        let mut more = false;
        loop {
            let Some((watched, deadline)) = self.watch() else { return };
            let deadline = if more { Some(Instant::now()) } else { deadline };
            if let Err(error) = self.set.wait(deadline) {
                // No memory or too many descriptors: both may pass, and the deadline still holds.
                self.shared.lock().counters.last_error = Some(format!("waiting failed: {error}"));
                std::thread::sleep(ACCEPT_RETRY);
            }
            self.shared.wake.clear();
            more = false;
            for link in watched {
                more |= self.serve(&link);
                more |= self.ask_application(link.session);
            }
            self.greet();
            self.accept();
        }
    }

    /// Fills the poll set; `None` if the source is closing.
    fn watch(&mut self) -> Option<(Vec<Watched>, Option<Instant>)> {
        let now = Instant::now();
        self.set.clear();
        self.set.watch(self.shared.wake.as_fd(), Interest::Read);
        let mut deadline = self.accept_from;
        if self.accept_from.is_none() {
            self.set.watch(self.listener.as_fd(), Interest::Read);
        }
        for (socket, since) in &self.strangers {
            self.set.watch(socket.as_fd(), Interest::Read);
            deadline = earlier(deadline, Some(*since + GREETING_TIMEOUT));
        }
        let state = self.shared.lock_for_timer();
        if state.closing {
            return None;
        }
        let mut watched = Vec::new();
        for link in state.links.iter().flatten() {
            let at = self.set.watch(link.bell.as_fd(), Interest::Read);
            self.set.watch(link.socket.as_fd(), Interest::Read);
            self.set.watch(link.pidfd.as_fd(), Interest::Read);
            watched.push(Watched { session: link.session, at });
            let broken = (link.failed.is_some() || state.core.is_overrun(link.session)).then_some(now);
            deadline = earlier(deadline, earlier(broken, state.core.poll_timeout(link.session, now)));
        }
        Some((watched, deadline))
    }

    /// Does what is to be done on one link; answers whether there is more.
    fn serve(&mut self, watched: &Watched) -> bool {
        let bell = self.set.ready(watched.at);
        let rung = bell.readable;
        // A bell that nobody can ring any more would be readable for ever.
        let socket = self.set.ready(watched.at + 1);
        let gone = bell.hung_up || bell.error || socket.any() || self.set.ready(watched.at + 2).any();
        let mut guard = self.shared.lock_for_timer();
        let state = &mut *guard;
        let Some(link) = state.links[watched.session].as_mut() else { return false };
        let session = link.session;
        link.handle_awake();
        if rung
            && !gone
            && let Err(error) = link.bell.clear()
        {
            link.failed = Some(error.into());
        }
        if socket.readable && !socket.hung_up {
            link.failed = Some(LinkError::Spoke);
        }
        // Where the destination is comes before its acks: what it has released by then, it has acknowledged by then.
        let positions = link.positions();
        link.drain_acks(&mut state.core);
        let now = Instant::now();
        match positions {
            Ok((written, released))
                if state.core.poll_timeout(session, now).is_some_and(|due| due <= now) =>
            {
                state.core.handle_timeout(session, now, written, released);
            }
            Ok(_) => {}
            Err(error) => link.failed = Some(error),
        }
        let pumped = link.pump(&mut state.core, &self.shared.policy, FRAMES_PER_TURN);
        state.core.request_tick(session);
        if state.flushes != 0 {
            link.await_acks(&mut state.core);
        }
        if state.core.is_overrun(session) {
            link.failed = Some(LinkError::Overrun { max: state.core.max_tombstones() });
        }
        let more = pumped == Pumped::Budget && !link.awaits_room;
        let is_full = pumped == Pumped::Full && link.failed.is_none();
        let dead = if gone || link.failed.is_some() { state.take_link(session) } else { None };
        if state.is_flushing() {
            self.shared.flushed.notify_all();
        }
        drop(guard);
        if is_full && !gone {
            return self.await_room(session);
        }
        more && dead.is_none()
    }

    /// A destination that is awake makes room sooner than it could wake this thread: as long as it goes on doing so, others get
    /// the cpu and the lock, until there is enough to be worth a turn, or it is time for other links. Answers whether there is.
    fn await_room(&self, session: SessionId) -> bool {
        let mut patience = Patience::new(Instant::now());
        loop {
            std::thread::yield_now();
            let mut state = self.shared.lock_for_timer();
            let Some(link) = state.links[session].as_mut() else { return false };
            match link.room() {
                Ok(Room { enough: true, .. }) => return true,
                Ok(Room { released, .. }) if patience.lasts(released, Instant::now()) => {}
                Ok(_) => return false,
                Err(error) => {
                    link.failed = Some(error);
                    return true;
                }
            }
        }
    }

    /// Asks the application for what must be read before it can be sent: copies of the data that pointers lead to, items of
    /// enumerations. It answers with the lock free. Says whether it was asked for anything: then there may be more, and what
    /// it answered is still to be sent.
    fn ask_application(&mut self, session: SessionId) -> bool {
        for asked in 0..READS_PER_TURN {
            let Some(read) = self.shared.lock_for_timer().poll_read(session) else { return asked > 0 };
            let longest = |opcode: &Opcode| self.shared.max_value_bytes(opcode);
            let answer = application::ask(read, &mut self.snapshot, longest);
            let mut guard = self.shared.lock_for_timer();
            let State { core, links, counters, .. } = &mut *guard;
            let Some(link) = links[session].as_mut() else { return false };
            match answer {
                Answer::Snapshot { request, length: Ok(length) } => {
                    link.send_snapshot(core, &self.shared.policy, &request, Ok(&self.snapshot[..length]));
                }
                Answer::Snapshot { request, length: Err(why) } => {
                    if let Some(item) = core.describe(&request) {
                        counters.last_error = Some(format!("{item} could not be read: {why}"));
                    }
                    link.send_snapshot(core, &self.shared.policy, &request, Err(Unreadable));
                }
                Answer::Drawn { table, drawn: Ok(drawn) } => core.handle_drawn(session, table, drawn),
                Answer::Drawn { table, drawn: Err(why) } => {
                    let table = core.store().tables()[usize::from(table)].name.to_string();
                    link.failed = Some(LinkError::Enumerator { table, why });
                }
            }
        }
        true
    }

    /// Answers those who have said hello.
    fn greet(&mut self) {
        for (socket, since) in std::mem::take(&mut self.strangers) {
            let answer = match self.host.answer(&socket) {
                Ok(None) if since.elapsed() >= GREETING_TIMEOUT => Err(GreetingError::TimedOut),
                answer => answer,
            };
            match answer {
                Ok(None) => self.strangers.push((socket, since)),
                Ok(Some(welcomed)) => {
                    let mut state = self.shared.lock_for_timer();
                    state.add_link(welcomed, socket);
                    // The next turn sends it the first ring-full.
                    self.shared.wake.wake();
                }
                Err(error) => self.shared.lock().refuse(&error),
            }
        }
    }

    /// Takes in those who have connected, at most as many as have a place: whoever came in this turn is greeted in the
    /// next before it can lose its place again.
    fn accept(&mut self) {
        self.accept_from = self.accept_from.filter(|from| *from > Instant::now());
        if self.accept_from.is_some() {
            return;
        }
        for _ in 0..MAX_STRANGERS {
            match self.listener.accept() {
                Ok(None) => return,
                Ok(Some(socket)) => {
                    if self.strangers.len() == MAX_STRANGERS {
                        self.strangers.remove(0);
                        self.shared.lock().refuse(&GreetingError::Crowded { others: MAX_STRANGERS });
                    }
                    self.strangers.push((socket, Instant::now()));
                    self.shared.wake.wake();
                }
                Err(error) => {
                    self.accept_from = Some(Instant::now() + ACCEPT_RETRY);
                    let mut state = self.shared.lock();
                    state.counters.last_error = Some(format!("a destination could not be accepted: {error}"));
                    return;
                }
            }
        }
    }
}

/// How long a full ring is looked at.
struct Patience {
    until: Instant,
    /// How far the destination had consumed the ring at the last look.
    released: Option<u64>,
    in_vain: u32,
}

impl Patience {
    fn new(now: Instant) -> Patience {
        Patience { until: now + AWAKE_FOR_ROOM, released: None, in_vain: 0 }
    }

    /// Whether to look again, after a look that has found the ring consumed so far.
    fn lasts(&mut self, released: u64, now: Instant) -> bool {
        let in_vain = self.released.replace(released) == Some(released);
        self.in_vain = if in_vain { self.in_vain + 1 } else { 0 };
        self.in_vain < YIELDS_WITHOUT_ROOM && now < self.until
    }
}

/// Closes the source when it is dropped: tables may outlive it, and must not keep its links alive.
struct CloseAtEnd(Arc<Shared>);

impl Drop for CloseAtEnd {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.closing = true;
        let links: Vec<_> = (0..state.links.len()).map(|session| state.take_link(session)).collect();
        drop(state);
        self.0.flushed.notify_all();
        drop(links);
    }
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destination_that_makes_room_little_by_little_does_not_hold_the_timer_thread_for_ever() {
        let start = Instant::now();
        let mut patience = Patience::new(start);
        let looks = (1u32..).take_while(|&look| {
            let now = start + AWAKE_FOR_ROOM / 1000 * look;
            patience.lasts(8 * u64::from(look), now)
        });
        assert_eq!(looks.count(), 999);
    }

    #[test]
    fn ring_that_nothing_leaves_is_looked_at_a_few_times_only() {
        let start = Instant::now();
        let mut patience = Patience::new(start);
        let looks = (0..10 * YIELDS_WITHOUT_ROOM).take_while(|_| patience.lasts(8, start)).count();
        assert_eq!(looks, YIELDS_WITHOUT_ROOM as usize);
        assert!(patience.lasts(16, start), "a little has left it: it is looked at again");
    }
}
