//! What publishers and the timer thread share: the protocol core and the links, under one lock.
//!
//! Publishers do the sending themselves; what no publisher is there for is the [`timer`](super::timer)'s.
//!
//! Invariants:
//! 1. Only the timer thread takes links in and out; a publisher that finds one broken marks it and wakes that thread.
//! 2. A session of the protocol core and its link exist together.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Waker;
use std::time::Instant;

use super::LinkError;
use super::greeting::GreetingError;
use super::outgoing::{OutgoingLink, Pumped};
use super::platform::{Alarm, Linux, Lock, Platform};
use crate::opcode::Opcode;
use crate::proto::ResendPolicy;
use crate::proto::source::{
    Attaching, Detached, MAX_FLUSHES, Outlet, Read, Runway, SessionId, Set, SourceCore,
};
use crate::proto::store::{Changed, HashedOpcode, ItemId, NewValue, OpcodeHasher, TableId};
use crate::ring;
use crate::stats::SourceStats;
use crate::subscription::Subscription;
use crate::wire::{self, Frame};

/// What the publishers and the timer thread share.
#[derive(Debug)]
pub(crate) struct Shared<P: Platform = Linux> {
    /// Told when acks came or a destination went while a flush waits.
    state: P::Lock<State<P>>,
    /// The timer thread waits for the lock.
    timer_waits: AtomicBool,
    /// Wakes the timer thread.
    pub(crate) wake: P::Wake,
    pub(crate) policy: ResendPolicy,
    /// The longest opcode and value together that fit a record.
    max_item_bytes: usize,
    /// As the core has it.
    hasher: OpcodeHasher,
}

/// What is under the lock.
#[derive(Debug)]
pub(crate) struct State<P: Platform = Linux> {
    pub(crate) core: SourceCore,
    /// By session.
    pub(crate) links: Vec<Option<OutgoingLink<P>>>,
    /// A bit for each flush that waits.
    flushes: u16,
    /// Those among them that do not wait on a thread, and what is to be told.
    flush_tasks: Vec<(usize, Waker)>,
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
/// How often a publisher yields to the timer thread before it takes the lock all the same.
const YIELDS_TO_TIMER: u32 = 50;

/// The lock, held.
pub(crate) type Guard<'a, P = Linux> = <<P as Platform>::Lock<State<P>> as Lock<State<P>>>::Guard<'a>;

impl<P: Platform> Shared<P> {
    pub(crate) fn new(core: SourceCore, policy: ResendPolicy, ring_bytes: u64, wake: P::Wake) -> Shared<P> {
        let hasher = core.store().hasher().clone();
        let state = State {
            core,
            links: Vec::new(),
            flushes: 0,
            flush_tasks: Vec::new(),
            closing: false,
            counters: ServiceCounters::default(),
        };
        let timer_waits = AtomicBool::new(false);
        let max_item_bytes = ring::max_payload_bytes(ring_bytes) - wire::HEADER_BYTES;
        Shared { state: P::Lock::new(state), timer_waits, wake, policy, max_item_bytes, hasher }
    }

    /// The longest value that fits a record beside this opcode.
    #[inline]
    pub(crate) fn max_value_bytes(&self, opcode: &Opcode) -> usize {
        self.max_item_bytes - opcode.as_bytes().len()
    }

    /// An opcode for [`Shared::set`] and its like: to be hashed before the lock is taken, which then does not wait for it.
    #[inline]
    pub(crate) fn hashed<'a>(&self, opcode: &'a Opcode) -> HashedOpcode<'a> {
        self.hasher.hashed(opcode)
    }

    /// The lock, for publishers. It is not fair, and a publisher in a loop would take it again before the timer thread,
    /// that it has just woken, gets to run: so publishers let that one pass, for a bounded time.
    #[inline]
    pub(crate) fn lock(&self) -> Guard<'_, P> {
        // Relaxed: a hint, that orders nothing. If it is missed, the timer thread waits a little longer.
        if self.timer_waits.load(Relaxed) {
            self.let_timer_pass();
        }
        self.state.lock_giving_way()
    }

    #[cold]
    fn let_timer_pass(&self) {
        for _ in 0..YIELDS_TO_TIMER {
            P::yield_now();
            // Relaxed: as in `lock`.
            if !self.timer_waits.load(Relaxed) {
                return;
            }
        }
    }

    /// The lock, for the timer thread, which does not give way: publishers let it pass, and wait for it meanwhile. Only if some
    /// went to sleep over that, one of them goes before it.
    pub(super) fn lock_for_timer(&self) -> Guard<'_, P> {
        self.state.let_sleeper_pass();
        // Relaxed, both: as in `lock`.
        self.timer_waits.store(true, Relaxed);
        let state = self.state.lock();
        self.timer_waits.store(false, Relaxed);
        state
    }

    /// Gives an item its newest value, and puts that in the rings of those destinations for which nothing waits. The caller
    /// publishes then, unless all of it went at once.
    #[inline]
    pub(crate) fn set(
        &self,
        state: &mut State<P>,
        table: TableId,
        opcode: HashedOpcode<'_>,
        value: NewValue<'_>,
    ) -> Option<Set> {
        let State { core, links, .. } = state;
        let mut links = Links { links, policy: &self.policy, is_drain_due: false };
        let set = core.set_hashed(table, opcode, value, &mut links)?;
        Some(Set { at_once: set.at_once && !links.is_drain_due, ..set })
    }

    /// As [`Shared::set`], for data of several items; adds those that have changed to `changed`.
    #[inline]
    pub(crate) fn set_many<'a>(
        &self,
        state: &mut State<P>,
        table: TableId,
        items: impl Iterator<Item = (&'a Opcode, &'a [u8])>,
        changed: &mut Vec<Changed>,
    ) {
        let State { core, links, .. } = state;
        core.set_many(table, items, changed, &mut Links { links, policy: &self.policy, is_drain_due: false });
    }

    /// Removes an item, as [`SourceCore::remove_hashed`]. One tombstone too many costs a destination its state, so where that is at stake its
    /// acks are looked at before.
    pub(crate) fn remove(
        &self,
        state: &mut State<P>,
        table: TableId,
        opcode: HashedOpcode<'_>,
    ) -> Option<ItemId> {
        if state.core.is_at_bound() {
            self.drain_acks(state);
        }
        state.core.remove_hashed(table, opcode)
    }

    /// Sends what the caller has just changed, as far as there is room. Answers whether all of it went.
    #[inline]
    pub(crate) fn publish(&self, state: &mut State<P>) -> bool {
        let State { core, links, .. } = state;
        let (mut wake, mut all) = (false, true);
        for link in links.iter_mut().flatten() {
            if core.is_quiet(link.session) {
                // All that there was is in the ring: the way of almost every change.
                wake |= !link.publish_staged(core) || core.request_tick(link.session);
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

    /// A destination comes that wants this: [`Shared::go_on_attaching`] until all is counted, then [`Shared::add_link`].
    pub(super) fn start_attach(&self, subscription: Subscription) -> Attaching {
        self.lock_for_timer().core.start_attach(subscription)
    }

    /// Counts some of what a destination wants, at most `budget` times, of which it takes off what it needs; answers whether nothing
    /// is left to be counted. Publishers get the lock and the cpu in between.
    pub(super) fn go_on_attaching(&self, attaching: &mut Attaching, budget: &mut u32) -> bool {
        while !attaching.is_counted() && *budget > 0 {
            *budget -= 1;
            self.lock_for_timer().core.go_on_attaching(attaching);
            P::yield_now();
        }
        attaching.is_counted()
    }

    /// Takes a destination in, whose link `make` makes for this session and attachment. The timer's next turn sends it the
    /// first ring-full.
    pub(super) fn add_link(
        &self,
        attaching: Attaching,
        make: impl FnOnce(SessionId, u64) -> OutgoingLink<P>,
    ) {
        let mut state = self.lock_for_timer();
        let session = state.core.attach(attaching);
        state.counters.attached += 1;
        if state.links.len() <= session {
            state.links.resize_with(session + 1, || None);
        }
        state.links[session] = Some(make(session, state.counters.attached));
        self.wake.wake();
    }

    /// What the source counts, all of one moment.
    pub(crate) fn stats(&self) -> SourceStats {
        let mut state = self.lock();
        self.drain_acks(&mut state);
        SourceStats::of(&state)
    }

    /// Takes in the acks of every destination.
    pub(crate) fn drain_acks(&self, state: &mut State<P>) {
        self.on_links(state, OutgoingLink::drain_acks);
    }

    /// As [`Shared::drain_acks`], and has each destination ring when it acknowledges more.
    pub(crate) fn await_acks(&self, state: &mut State<P>) {
        self.on_links(state, OutgoingLink::await_acks);
    }

    fn on_links(&self, state: &mut State<P>, act: impl Fn(&mut OutgoingLink<P>, &mut SourceCore)) {
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
        self.state.notify_all();
    }

    /// Closes for good: links do not outlive the timer thread, however that ends.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.closing = true;
        let links: Vec<_> = (0..state.links.len()).map(|session| state.take_link(session)).collect();
        let tasks = state.take_flush_tasks();
        drop(state);
        self.tell_flushes();
        tasks.into_iter().for_each(Waker::wake);
        // Unmapping them may take long.
        drop(links);
    }

    /// Waits for acks, or for the deadline; a wake-up without either is possible.
    pub(super) fn wait_flushed<'a>(&'a self, guard: Guard<'a, P>, deadline: Instant) -> Guard<'a, P> {
        self.state.wait_until(guard, deadline)
    }

    /// Tells those who wait for acks that some came, or that a destination went.
    pub(super) fn tell_flushes(&self) {
        self.state.notify_all();
    }
}

/// All links, by session.
struct Links<'a, P: Platform> {
    links: &'a mut [Option<OutgoingLink<P>>],
    policy: &'a ResendPolicy,
    /// One of those that took a frame should look for acks.
    is_drain_due: bool,
}

impl<P: Platform> Outlet for Links<'_, P> {
    #[inline(always)]
    fn offer(&mut self, session: SessionId, frame: &Frame<'_>, alone: bool) -> bool {
        let Some(link) = &mut self.links[session] else { return false };
        let takes = link.offer(frame, alone, self.policy);
        self.is_drain_due |= link.is_drain_due();
        takes
    }

    #[inline(always)]
    fn runway(&mut self, session: SessionId) -> Runway {
        self.links[session].as_ref().map_or(Runway::NONE, |link| link.runway(self.policy))
    }

    #[inline(always)]
    fn bytes_of(frame_bytes: usize) -> u64 {
        ring::record_bytes(frame_bytes)
    }

    #[inline(always)]
    fn put<'a>(&mut self, session: SessionId, frames: impl ExactSizeIterator<Item = Frame<'a>>) {
        if let Some(link) = &mut self.links[session] {
            link.put(frames, self.policy);
        }
    }
}

impl<P: Platform> State<P> {
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

    /// Ends a flush. Answers its task, to be dropped once the lock is free: that may drop all that the task owns, such as
    /// another flush, which takes the lock then.
    #[must_use]
    pub(super) fn end_flush(&mut self, flush: usize) -> Option<Waker> {
        self.core.end_flush(flush);
        self.flushes &= !(1 << flush);
        let at = self.flush_tasks.iter().position(|(waits, _)| *waits == flush)?;
        Some(self.flush_tasks.swap_remove(at).1)
    }

    /// Has that task woken, in place of the one before, once there is news for a flush. Answers the one of them that is not
    /// needed, to be dropped as that of [`State::end_flush`] is.
    #[must_use]
    pub(super) fn set_flush_task(&mut self, flush: usize, task: Waker) -> Option<Waker> {
        match self.flush_tasks.iter_mut().find(|(waits, _)| *waits == flush) {
            Some((_, known)) if known.will_wake(&task) => Some(task),
            Some((_, known)) => Some(std::mem::replace(known, task)),
            None => {
                self.flush_tasks.push((flush, task));
                None
            }
        }
    }

    /// The tasks to wake, once the lock is free.
    pub(super) fn take_flush_tasks(&mut self) -> Vec<Waker> {
        self.flush_tasks.drain(..).map(|(_, task)| task).collect()
    }

    /// Whether a link's ring was full, and the destination has yet to say that there is room.
    pub(super) fn awaits_room(&self, session: SessionId) -> bool {
        self.links[session].as_ref().is_some_and(|link| link.awaits_room)
    }

    /// What the application must be asked for on a link, if there is room for the answer.
    pub(super) fn poll_read(&mut self, session: SessionId) -> Option<Read> {
        let State { core, links, .. } = self;
        let link = links[session].as_mut()?;
        if link.may_read(core) { core.poll_read(session) } else { None }
    }

    pub(super) fn refuse(&mut self, error: &GreetingError) {
        self.counters.refused += 1;
        self.counters.last_error = Some(format!("a destination was not taken: {error}"));
    }

    /// Takes a link out. The caller drops it once it has let go of the lock: freeing what was kept for a large table and unmapping
    /// a large ring takes long.
    pub(super) fn take_link(&mut self, session: SessionId) -> Option<(OutgoingLink<P>, Detached)> {
        let link = self.links[session].take()?;
        if let OutgoingLink { failed: Some(error), id, .. } = &link {
            // An overrun is counted where it is found.
            let is_ours = matches!(error, LinkError::Overrun { .. } | LinkError::Enumerator { .. });
            self.counters.broken += u64::from(!is_ours);
            self.counters.last_error = Some(format!("process {}: {error}", id.pid));
        }
        Some((link, self.core.detach(session)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::link::lock::WAKE_UP;
    use crate::opcode::ToOpcode;
    use crate::proto::source::SourceConfig;
    use crate::retention::Retention;
    use crate::seq::SyncSeq;
    use crate::sys::wake::Wake;

    fn shared() -> Shared {
        let policy = ResendPolicy::default();
        let core = SourceCore::new(SourceConfig {
            policy: policy.clone(),
            send_equal: false,
            first_seq: SyncSeq::from(1),
            max_tombstones: 1000,
        });
        Shared::new(core, policy, 1 << 16, Wake::new().unwrap())
    }

    #[test]
    fn those_who_come_at_once_share_what_is_counted_in_a_turn() {
        let shared = shared();
        {
            let core = &mut shared.lock().core;
            let table = core.table("t", Retention::Newest).unwrap();
            for opcode in (0..5000u32).map(|number| number.to_opcode().unwrap()) {
                core.set(table, &opcode, NewValue::Data(b"x"), &mut ()).unwrap();
            }
        }
        let start = || shared.start_attach(Subscription::none().prefix("t", 0u8).unwrap());
        let (mut first, mut second) = (start(), start());
        // Each takes ten times, of 512 places.
        let mut budget = 16;
        assert!(shared.go_on_attaching(&mut first, &mut budget));
        assert_eq!(budget, 6);
        assert!(!shared.go_on_attaching(&mut second, &mut budget));
        assert_eq!(budget, 0);
        assert!(!shared.go_on_attaching(&mut second, &mut budget), "nothing is left of this turn");
        assert!(shared.go_on_attaching(&mut first, &mut budget), "that is done in any case");
        budget = 16;
        assert!(shared.go_on_attaching(&mut second, &mut budget));
        assert_eq!(budget, 12);
    }

    #[test]
    fn timer_thread_lets_a_publisher_pass_that_sleeps_over_the_lock_for_a_bounded_time() {
        let shared = shared();
        std::thread::scope(|scope| {
            let held = shared.lock();
            scope.spawn(|| drop(shared.lock()));
            shared.state.await_sleeper();
            let began = Instant::now();
            scope.spawn(|| drop(shared.lock_for_timer()));
            while !shared.timer_waits.load(Relaxed) {
                assert!(began.elapsed() < Duration::from_secs(60), "it still lets the publisher pass");
                std::thread::yield_now();
            }
            assert!(began.elapsed() >= WAKE_UP, "the publisher cannot pass as long as the lock is held");
            drop(held);
        });
        assert!(!shared.timer_waits.load(Relaxed));
    }
}
