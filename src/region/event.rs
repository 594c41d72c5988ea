//! The event of `raw_sync`, in a region, as the doorbell of one link and direction.
//!
//! It is a mutex and a condition variable of the C library, shared between processes. It lies in the region of the
//! destination that waits, in memory that both sides can write; so it goes with [`named`](super::named) regions.
//!
//! An event is a hint and nothing else: whatever a wait answers, who waits looks at the cursors, the peer and its own clock.
//!
//! What it does not do, and nobody can do on top of it:
//! - It is not safe against `kill -9`, or against a peer that is stopped: the mutex is not robust. A process that dies
//!   while it holds it (for a moment around each wait and each ring) leaves it locked: then
//!   [`PeerEvent::ring`], and [`OwnEvent::wait`] when it comes back from the condition variable, wait for ever. A
//!   condition variable can also hang who signals it when one of two waiters was killed; here each event has one waiter
//!   in its life.
//! - It does not protect from the peer, which has to be trusted. It can hold the mutex as long as it likes, or overwrite it.
//!   Then `raw_sync` panics where the C library refuses to unlock, which is an error here (in a program that does not
//!   abort on panic). But with the bits of a robust or priority-inheriting mutex set, the C library follows list pointers
//!   out of it, and writes where they lead.
//! - Its time is CLOCK_REALTIME: set back, a wait is longer by as much, unless it is rung.
//!
//! Source: `pthread_cond_timedwait(3)`, `pthread_mutexattr_setrobust(3)`; `raw_sync` 0.1.5's `src/events/unix.rs` and
//! `src/locks/unix.rs`, where the end of a wait is now plus the time to wait, nanoseconds added to nanoseconds without a
//! carry: an end with a thousand million of them or more is refused by the C library, and the wait is over at once.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use raw_sync::Timeout;
use raw_sync::events::{Event, EventImpl, EventInit, EventState};

use super::layout::{EVENT, EVENT_BYTES};
use super::{Mapping, OwnRegion, PeerRegion};

/// Where this side waits.
pub(crate) struct OwnEvent {
    event: Box<dyn EventImpl>,
    /// Where the event lies.
    _region: Arc<OwnRegion>,
}

/// Where the peer waits.
pub(crate) struct PeerEvent {
    event: Box<dyn EventImpl>,
    /// Where the event lies.
    _region: Arc<PeerRegion>,
}

// SAFETY: an event is pointers to a mutex, a condition variable and a flag in a mapping, which `_region` keeps in its place
// whichever thread has it.
unsafe impl Send for OwnEvent {}
// SAFETY: all that is called through `&self` locks that mutex, which is made for threads of several processes, before it looks at
// the flag.
unsafe impl Sync for OwnEvent {}
// SAFETY: as of `OwnEvent`.
unsafe impl Send for PeerEvent {}
// SAFETY: as of `OwnEvent`.
unsafe impl Sync for PeerEvent {}

impl OwnEvent {
    /// Makes the event, before the peer knows the region.
    ///
    /// # Errors
    /// The C library refuses.
    pub(crate) fn new(region: Arc<OwnRegion>) -> io::Result<OwnEvent> {
        assert!(region.segment().is_some(), "a peer can ring in a named region only");
        let at = place(&region.map);
        // SAFETY: `place` has room for an event, in memory that is mapped writable for as long as the region lives, which
        // this keeps; nobody uses that memory otherwise.
        let (event, _) = unsafe { Event::new(at, AUTO_RESET) }.map_err(to_io)?;
        Ok(OwnEvent { event, _region: region })
    }

    /// Waits until it is rung, `most` or [`SLICE`] has passed, or for no reason. A ring that came before ends it at once.
    ///
    /// # Errors
    /// The peer has overwritten the mutex, so that it cannot be given back.
    pub(crate) fn wait(&self, most: Duration) -> io::Result<()> {
        let start = Instant::now();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let slice = slice(most, now.subsec_nanos());
        // An error is as good as a ring: whoever waits looks at everything that could have happened. The end of the time
        // is one, too; one that comes before it may come each time, and nobody shall spin on it.
        let waited = contained(|| self.event.wait(Timeout::Val(slice)))?;
        if waited.is_err() && start.elapsed() < slice / 2 {
            std::thread::sleep(PAUSE_AFTER_ERROR);
        }
        Ok(())
    }
}

impl PeerEvent {
    /// Takes the event over that the peer has made in its region.
    ///
    /// # Errors
    /// What lies there is none.
    pub(crate) fn of(region: Arc<PeerRegion>) -> io::Result<PeerEvent> {
        let at = place(&region.map);
        // SAFETY: as in `OwnEvent::new`; the region was opened to stay writable, by who calls this.
        let (event, _) = unsafe { Event::from_existing(at) }.map_err(to_io)?;
        Ok(PeerEvent { event, _region: region })
    }

    /// Rings. This is where a peer that died, or was stopped, at the wrong moment, holds the caller up.
    ///
    /// # Errors
    /// The C library refuses, as it does if the peer has overwritten the mutex.
    pub(crate) fn ring(&self) -> io::Result<()> {
        contained(|| self.event.set(EventState::Signaled))?.map_err(to_io)
    }
}

/// Where an event lies, in a mapping with room for it.
fn place(map: &Mapping) -> *mut u8 {
    let at = map.at(EVENT);
    let needed = Event::size_of(Some(at));
    assert!(needed <= EVENT_BYTES, "an event of {needed} bytes");
    at
}

/// How long to wait so that the end has no more nanoseconds than a second has.
fn slice(most: Duration, nanos_of_now: u32) -> Duration {
    let to_full_second = Duration::from_secs(1).saturating_sub(Duration::from_nanos(nanos_of_now.into()));
    most.min(SLICE).min(to_full_second.saturating_sub(BEFORE_FULL_SECOND))
}

/// Calls `raw_sync`, which unwraps what comes of unlocking: that is in the peer's hand. The link shall end, and not the
/// publisher, or the source whose lock it holds.
fn contained<T>(call: impl FnOnce() -> T) -> io::Result<T> {
    // Unwind safe: what may be half done lies in the peer's memory, where anything may lie.
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| {
        let said = panic.downcast_ref::<String>().map_or("no text", String::as_str);
        io::Error::other(format!(
            "the event of raw_sync panicked, as it does if the peer overwrites it: {said}"
        ))
    })
}

fn to_io(error: Box<dyn std::error::Error>) -> io::Error {
    io::Error::other(format!("the event of raw_sync: {error}"))
}

impl fmt::Debug for OwnEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnEvent")
    }
}

impl fmt::Debug for PeerEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PeerEvent")
    }
}

/// A ring is heard by one wait, and by that one only.
const AUTO_RESET: bool = true;

/// The longest wait: after it who waits looks whether its peer lives.
pub(crate) const SLICE: Duration = Duration::from_millis(20);

/// How long a wait lasts that has failed at once.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(1);

/// What may pass between our look at the clock and that of `raw_sync`. In the last of each second there is no waiting.
const BEFORE_FULL_SECOND: Duration = Duration::from_micros(50);

#[cfg(test)]
#[path = "event_tests.rs"]
mod tests;
