//! The timer's work on the links: sends again what is due, makes use of room, asks the application, notices deaths. Whose
//! thread does it is not settled here: the source's own ([`service`](super::service)), or the application's ([`polled`](super::polled)).
//!
//! It holds the lock for one link at a time and for a bounded number of frames. With nothing unacknowledged there is no
//! deadline, and nothing to do until something happens.
//!
//! A round is [`Timer::watch`], then a wait for what it has watched or until what it has answered, then [`Timer::turn`].

use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use super::LinkError;
use super::application::{self, Answer};
use super::outgoing::{Pumped, Room};
use super::platform::{Alarm, Linux, Peer, Platform};
use super::shared::{Shared, State};
use crate::opcode::Opcode;
use crate::proto::source::{SessionId, Unreadable};

/// The timer thread's half of what is [`Shared`].
#[derive(Debug)]
pub(crate) struct Timer<P: Platform = Linux> {
    shared: Arc<Shared<P>>,
    /// Where among what is waited for the alarm is.
    alarm_at: usize,
    watched: Vec<Watched>,
    /// A full ring may be looked at for a while: the thread has nothing else to do.
    lingers: bool,
    /// A link has more to do, and need not wait for anything.
    more: bool,
    /// Links that were given up.
    closed: u64,
    /// Where data is copied that must be read first.
    snapshot: Vec<u8>,
}

/// Where among what is waited for a link's peer is.
#[derive(Debug, Clone, Copy)]
struct Watched {
    session: SessionId,
    at: usize,
}

/// Frames that are sent on one link before others can have the lock.
const FRAMES_PER_TURN: u32 = 1024;
/// How often a full ring is looked at, giving way to others, without seeing that anything has left it.
const YIELDS_WITHOUT_ROOM: u32 = 32;
/// And for how long at most, whatever leaves it: other links have their turn then.
const AWAKE_FOR_ROOM: Duration = Duration::from_micros(500);
/// Questions to the application on one link before others have their turn.
const READS_PER_TURN: u32 = 64;

impl<P: Platform> Timer<P> {
    /// One that `lingers` may spend half a millisecond per turn in looking at a ring that is full; another waits for nothing but the lock.
    pub(crate) fn new(shared: Arc<Shared<P>>, lingers: bool) -> Timer<P> {
        Timer {
            shared,
            alarm_at: 0,
            watched: Vec::new(),
            lingers,
            more: false,
            closed: 0,
            snapshot: Vec::new(),
        }
    }

    /// How many links it has given up so far.
    pub(super) fn closed(&self) -> u64 {
        self.closed
    }

    /// Watches all links and the alarm; answers when to wake at the latest, or `None` if the source is closing.
    pub(crate) fn watch(&mut self, waits: &mut P::Waits) -> Option<Option<Instant>> {
        let now = P::now();
        self.alarm_at = self.shared.wake.watch(waits);
        let state = self.shared.lock_for_timer();
        if state.is_closing() {
            return None;
        }
        let mut deadline = self.more.then_some(now);
        self.watched.clear();
        for link in state.links.iter().flatten() {
            self.watched.push(Watched { session: link.session, at: link.peer.watch(waits) });
            let broken = (link.failed.is_some() || state.core.is_overrun(link.session)).then_some(now);
            deadline = earlier(deadline, earlier(broken, state.core.poll_timeout(link.session, now)));
        }
        Some(deadline)
    }

    /// Does what is to be done on each link, after a wait.
    pub(crate) fn turn(&mut self, waits: &P::Waits) {
        // Before anything is looked at: who wakes it from now on has something new. Who has done so since the wait ends the next one.
        if P::Wake::is_woken(waits, self.alarm_at) {
            self.shared.wake.clear();
        }
        self.more = false;
        for at in 0..self.watched.len() {
            let watched = self.watched[at];
            self.more |= self.serve(watched, waits);
            self.more |= self.ask_application(watched.session);
        }
    }

    /// Does what is to be done on one link; answers whether there is more.
    fn serve(&mut self, watched: Watched, waits: &P::Waits) -> bool {
        let heard = P::Peer::heard(waits, watched.at);
        let mut guard = self.shared.lock_for_timer();
        let state = &mut *guard;
        let Some(link) = state.links[watched.session].as_mut() else { return false };
        let session = link.session;
        link.handle_awake();
        if heard.spoke {
            link.failed = Some(LinkError::Spoke);
        } else if heard.rung
            && !heard.gone
            && let Err(error) = link.peer.clear()
        {
            link.failed = Some(error.into());
        }
        // Where the destination is comes before its acks: what it has released by then, it has acknowledged by then.
        let positions = link.positions();
        link.drain_acks(&mut state.core);
        let now = P::now();
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
        if state.core.is_overrun(session) {
            link.failed = Some(LinkError::Overrun { max: state.core.max_tombstones() });
        }
        let more = pumped == Pumped::Budget && !link.awaits_room;
        let is_full = pumped == Pumped::Full && link.failed.is_none();
        let dead = if heard.gone || link.failed.is_some() { state.take_link(session) } else { None };
        self.closed += u64::from(dead.is_some());
        let tasks = state.take_flush_tasks();
        if state.is_flushing() {
            // They ask to be rung anew: this turn has said that the source is awake.
            self.shared.tell_flushes();
        }
        drop(guard);
        tasks.into_iter().for_each(Waker::wake);
        if is_full && !heard.gone && self.lingers {
            return self.await_room(session);
        }
        more && dead.is_none()
    }

    /// A destination that is awake makes room sooner than it could wake this thread: as long as it goes on doing so, others get
    /// the cpu and the lock, until there is enough to be worth a turn, or it is time for other links. Answers whether there is.
    fn await_room(&self, session: SessionId) -> bool {
        let mut patience = Patience::new(P::now());
        loop {
            P::yield_now();
            let mut state = self.shared.lock_for_timer();
            let Some(link) = state.links[session].as_mut() else { return false };
            match link.room() {
                Ok(Room { enough: true, .. }) => return true,
                Ok(Room { released, .. }) if patience.lasts(released, P::now()) => {}
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
    /// it answered is still to be sent; unless there was no room for it, of which the destination will tell.
    fn ask_application(&mut self, session: SessionId) -> bool {
        for asked in 0..READS_PER_TURN {
            let read = {
                let mut state = self.shared.lock_for_timer();
                let Some(read) = state.poll_read(session) else {
                    return asked > 0 && !state.awaits_room(session);
                };
                read
            };
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

pub(super) fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
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
