//! What links and the timer thread stand on: rings, the peer, waits, a lock, a clock.
//!
//! In production that is [`Linux`]. The concurrency models have another, in which every access that two threads could
//! quarrel about is loom's: so they run the code of this module's neighbours and not a copy of it.

use std::fmt::Debug;
use std::io;
use std::ops::DerefMut;
use std::os::fd::AsFd;
use std::time::Instant;

use super::lock::StateLock;
use super::peer::LinuxPeer;
use crate::region::ring_memory::{ConsumerMapping, ProducerMapping};
use crate::ring::{ConsumerMemory, ProducerMemory};
use crate::sys::poll::{Interest, PollSet};
use crate::sys::wake::Wake;

/// A choice of all of these.
pub(crate) trait Platform: Debug + Sized + 'static {
    /// The ring that a side writes.
    type Writable: ProducerMemory + Debug;
    /// The ring that a side reads.
    type Readable: ConsumerMemory + Debug;
    /// The process at the other end.
    type Peer: Peer<Self::Waits>;
    /// What wakes the timer thread.
    type Wake: Alarm<Self::Waits>;
    /// What a thread waits for.
    type Waits: Waits;
    /// What publishers and the timer thread share, one at a time.
    type Lock<T: Debug>: Lock<T>;

    /// How often a flush looks for acks without giving way to others, unless one of them has the lock.
    const SPINS_BEFORE_FLUSH: u32;

    fn now() -> Instant;

    /// Gives way to other threads.
    fn yield_now();
}

/// The process at the other end of a link: it rings and is rung, it dies.
pub(crate) trait Peer<W>: Debug {
    /// Rings it. Returns at once, whatever it does.
    fn ring(&self) -> io::Result<()>;

    /// Forgets that it has rung.
    fn clear(&self) -> io::Result<()>;

    /// Has the next wait end when it rings or dies. Answers the place to ask [`Peer::heard`] for.
    fn watch(&self, waits: &mut W) -> usize;

    /// What the last wait found.
    fn heard(waits: &W, at: usize) -> Heard;

    /// Waits for it alone, until the deadline at the latest; it may be over sooner for no reason.
    fn hear(&self, deadline: Option<Instant>, waits: &mut W) -> io::Result<Heard>
    where
        W: Waits,
    {
        waits.clear();
        let at = self.watch(waits);
        waits.wait(deadline)?;
        Ok(Self::heard(waits, at))
    }
}

/// What a wait found out about a peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    /// It has rung.
    pub(crate) rung: bool,
    /// It has died, or given the link up.
    pub(crate) gone: bool,
    /// It has sent something on the socket, on which nothing is said after the greeting.
    pub(crate) spoke: bool,
}

/// Wakes a thread of this process: once woken, its waits end at once until it is cleared.
pub(crate) trait Alarm<W>: Debug {
    fn wake(&self);

    fn clear(&self);

    /// Has the next wait end when it is woken. Answers the place to ask [`Alarm::is_woken`] for.
    fn watch(&self, waits: &mut W) -> usize;

    /// Whether the last wait found it woken.
    fn is_woken(waits: &W, at: usize) -> bool;
}

/// What a thread waits for, watched anew before each wait.
pub(crate) trait Waits {
    /// Watches nothing any more.
    fn clear(&mut self);

    /// Waits until something watched happens or the deadline has passed.
    fn wait(&mut self, deadline: Option<Instant>) -> io::Result<()>;
}

/// A lock in which one can also wait until told.
pub(crate) trait Lock<T>: Debug {
    type Guard<'a>: DerefMut<Target = T>
    where
        Self: 'a;

    fn new(value: T) -> Self;

    fn lock(&self) -> Self::Guard<'_>;

    /// As [`Lock::lock`], for those who take it all the time: one that finds it taken lets others go before it.
    #[inline]
    fn lock_giving_way(&self) -> Self::Guard<'_> {
        self.lock()
    }

    /// If threads sleep until the lock is free, waits for a bounded time until one of them has had it: for one that has just let go
    /// of it and is about to take it again, which it would before they are awake.
    #[inline]
    fn let_sleeper_pass(&self) {}

    /// Lets go of the lock until [`Lock::notify_all`] or the deadline, or for no reason.
    fn wait_until<'a>(&'a self, guard: Self::Guard<'a>, deadline: Instant) -> Self::Guard<'a>;

    fn notify_all(&self);
}

/// The kernel's, the standard library's and [`StateLock`].
#[derive(Debug)]
pub(crate) struct Linux;

impl Platform for Linux {
    type Writable = ProducerMapping;
    type Readable = ConsumerMapping;
    type Peer = LinuxPeer;
    type Wake = Wake;
    type Waits = PollSet;
    type Lock<T: Debug> = StateLock<T>;

    const SPINS_BEFORE_FLUSH: u32 = 16;

    #[inline]
    fn now() -> Instant {
        Instant::now()
    }

    fn yield_now() {
        std::thread::yield_now();
    }
}

impl Alarm<PollSet> for Wake {
    fn wake(&self) {
        Wake::wake(self);
    }

    fn clear(&self) {
        Wake::clear(self);
    }

    fn watch(&self, waits: &mut PollSet) -> usize {
        waits.watch(self.as_fd(), Interest::Read)
    }

    fn is_woken(waits: &PollSet, at: usize) -> bool {
        waits.ready(at).readable
    }
}

impl Waits for PollSet {
    fn clear(&mut self) {
        PollSet::clear(self);
    }

    fn wait(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        PollSet::wait(self, deadline).map(drop)
    }
}
