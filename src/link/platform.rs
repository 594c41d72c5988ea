//! What links and the timer thread stand on: rings, the peer, waits, a lock, a clock.
//!
//! In production that is [`Linux`]. The concurrency models have another, in which every access that two threads could
//! quarrel about is loom's: so they run the code of this module's neighbours and not a copy of it.

use std::fmt::Debug;
use std::io;
use std::ops::DerefMut;
use std::os::fd::AsFd;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

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

/// The kernel's and the standard library's.
#[derive(Debug)]
pub(crate) struct Linux;

impl Platform for Linux {
    type Writable = ProducerMapping;
    type Readable = ConsumerMapping;
    type Peer = LinuxPeer;
    type Wake = Wake;
    type Waits = PollSet;
    type Lock<T: Debug> = StdLock<T>;

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

/// A mutex and a condition variable. A panic under it is a broken invariant of ours, and the publisher that it hit has told
/// its own thread: others go on.
#[derive(Debug)]
pub(crate) struct StdLock<T> {
    value: Mutex<T>,
    told: Condvar,
    /// Threads that sleep until it is free, without those that do not give way.
    sleepers: AtomicU32,
    /// How many of them have had it, modulo 2^32.
    passed: AtomicU32,
}

/// How often one that finds the lock taken gives way to others before it waits for it.
const YIELDS_TO_HOLDER: u32 = 3;
/// How long a sleeper has until one that lets it pass goes before it all the same: a halted cpu of a virtual machine takes some
/// 50 us to wake up.
pub(super) const WAKE_UP: Duration = Duration::from_micros(200);

impl<T> StdLock<T> {
    #[inline]
    fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.value.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(error)) => Some(error.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Gives way to others, and then waits as the mutex does: it looks at it for a moment, and sleeps.
    ///
    /// Whoever only looked would take the lock in between two changes of the one that has it, and each time the cache lines of all
    /// that is under it. And if there are more busy threads than cpus, a destination can have the cpu meanwhile, which needs it more.
    #[cold]
    fn lock_behind_another(&self) -> MutexGuard<'_, T> {
        for _ in 0..YIELDS_TO_HOLDER {
            Linux::yield_now();
            if let Some(guard) = self.try_lock() {
                return guard;
            }
        }
        // Relaxed, all: hints, that order nothing. If one is missed, this thread sleeps a little longer.
        self.sleepers.fetch_add(1, Relaxed);
        let guard = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_sub(1, Relaxed);
        self.passed.fetch_add(1, Relaxed);
        guard
    }

    /// Waits until one of them has had the lock; others that come meanwhile make it no longer.
    #[cold]
    fn wait_for_sleeper(&self, longest: Duration) {
        let began = Instant::now();
        // Relaxed, all: as above.
        let passed = self.passed.load(Relaxed);
        while self.sleepers.load(Relaxed) > 0
            && self.passed.load(Relaxed) == passed
            && began.elapsed() < longest
        {
            Linux::yield_now();
        }
    }
}

impl<T: Debug> Lock<T> for StdLock<T> {
    type Guard<'a>
        = MutexGuard<'a, T>
    where
        T: 'a;

    fn new(value: T) -> Self {
        let (sleepers, passed) = (AtomicU32::new(0), AtomicU32::new(0));
        Self { value: Mutex::new(value), told: Condvar::new(), sleepers, passed }
    }

    fn lock(&self) -> MutexGuard<'_, T> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    fn lock_giving_way(&self) -> MutexGuard<'_, T> {
        self.try_lock().unwrap_or_else(|| self.lock_behind_another())
    }

    #[inline]
    fn let_sleeper_pass(&self) {
        // Relaxed: as above.
        if self.sleepers.load(Relaxed) > 0 {
            self.wait_for_sleeper(WAKE_UP);
        }
    }

    fn wait_until<'a>(&'a self, guard: MutexGuard<'a, T>, deadline: Instant) -> MutexGuard<'a, T> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.told.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0
    }

    fn notify_all(&self) {
        self.told.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc;

    use super::*;

    /// Longer than any thread takes to get the cpu.
    const LONG: Duration = Duration::from_secs(60);

    impl<T> StdLock<T> {
        /// Waits until a thread sleeps until the lock is free, which is held.
        pub(in crate::link) fn await_sleeper(&self) {
            let began = Instant::now();
            while self.sleepers.load(Relaxed) == 0 {
                assert!(began.elapsed() < LONG, "nobody sleeps");
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn thread_that_sleeps_over_the_lock_has_it_before_one_that_lets_it_pass() {
        let lock = StdLock::new(0u32);
        std::thread::scope(|scope| {
            for round in 0..100 {
                let held = lock.lock();
                scope.spawn(|| *lock.lock_giving_way() += 1);
                lock.await_sleeper();
                drop(held);
                lock.wait_for_sleeper(LONG);
                assert_eq!(*lock.lock(), round + 1);
            }
        });
        assert_eq!(lock.sleepers.load(Relaxed), 0);
    }

    #[test]
    fn one_that_lets_a_sleeper_pass_does_not_wait_for_those_behind_it() {
        const SLEEPERS: u32 = 8;
        let lock = StdLock::new(0u32);
        let (let_go, begins, is_over) = (AtomicU32::new(0), AtomicBool::new(false), AtomicBool::new(false));
        let is_over_within = |longest: Duration| {
            let began = Instant::now();
            while !is_over.load(Relaxed) && began.elapsed() < longest {
                std::thread::yield_now();
            }
            is_over.load(Relaxed)
        };
        let left_asleep = std::thread::scope(|scope| {
            let held = lock.lock();
            for _ in 0..SLEEPERS {
                scope.spawn(|| {
                    let mut passed = lock.lock_giving_way();
                    *passed += 1;
                    while let_go.load(Relaxed) < *passed {
                        std::thread::yield_now();
                    }
                });
            }
            while lock.sleepers.load(Relaxed) < SLEEPERS {
                std::thread::yield_now();
            }
            scope.spawn(|| {
                begins.store(true, Relaxed);
                lock.wait_for_sleeper(Duration::MAX);
                is_over.store(true, Relaxed);
            });
            while !begins.load(Relaxed) {
                std::thread::yield_now();
            }
            drop(held);
            // If it loses the cpu right here, the first ones may pass before it waits; at least one is left behind.
            let mut rounds = 1..SLEEPERS - 1;
            while let Some(round) = rounds.next()
                && !is_over_within(Duration::from_secs(5))
            {
                let_go.store(round, Relaxed);
            }
            let left_asleep = is_over_within(LONG / 2).then(|| lock.sleepers.load(Relaxed));
            let_go.store(SLEEPERS, Relaxed);
            left_asleep
        });
        assert!(left_asleep.is_some_and(|sleepers| sleepers > 0), "{left_asleep:?}");
        assert_eq!(*lock.lock(), SLEEPERS);
    }

    #[test]
    fn threads_that_find_the_lock_taken_get_it_once_it_is_free_whatever_became_of_an_earlier_holder() {
        let lock = StdLock::new(0u32);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _guard = lock.lock();
            panic!("on purpose");
        }));
        assert!(panicked.is_err());
        let held = lock.try_lock().expect("nobody has it");
        let (starts, started) = mpsc::channel();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let (lock, starts) = (&lock, starts.clone());
                scope.spawn(move || {
                    starts.send(()).unwrap();
                    for _ in 0..10_000 {
                        *lock.lock_giving_way() += 1;
                    }
                });
            }
            started.iter().take(4).for_each(drop);
            // Mostly long enough for all of them to give up giving way. It is as good if they have not.
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!(*held, 0);
            drop(held);
        });
        assert_eq!(*lock.lock(), 40_000);
    }
}
