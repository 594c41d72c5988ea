//! The lock of what publishers and the timer thread share. It is let go of by a plain store.
//!
//! A mutex that finds out whether somebody sleeps over it, in the same step as it is let go of, does so by an atomic exchange. On x86-64 that
//! waits until all that was stored before is in the cache: with each change, for the lines of the ring, which the destination has. So
//! whoever lets go of this one stores first, and then looks whether somebody asks to be woken.
//!
//! Invariants:
//! 1. Who has it is [`SpinMutex`]'s affair alone; what else says that it is taken, or that somebody sleeps, is a hint.
//! 2. The look may come before the store is seen, and miss a request that was made because the lock seemed taken. So who sleeps looks again
//!    after [a while](LONGEST_SLEEP), which is far longer than a store takes to be seen.
//!    So it does if whoever is to wake it, or was woken before it, has no cpu.
//! 3. Nobody waits for a thread that does not have the lock for longer than that.

use std::fmt::{self, Debug, Formatter};
use std::ops::{Deref, DerefMut};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use spin::mutex::{SpinMutex, SpinMutexGuard};

use super::platform::{Linux, Lock, Platform};
use crate::sys::futex;

/// A lock that is let go of by a plain store; who waits for it sleeps.
pub(crate) struct StateLock<T> {
    value: SpinMutex<T>,
    /// 1 if one of those who sleep is to be woken when the lock is free, else 0. They go to sleep only if it is 1.
    asks: AtomicU32,
    /// Threads that sleep until it is free.
    sleepers: AtomicU32,
    /// How many of them have had it, modulo 2^32.
    passed: AtomicU32,
    /// How often [`Lock::notify_all`] was called, modulo 2^32.
    told: AtomicU32,
}

/// The lock, held. Fields are dropped in this order: it is free before anybody is woken.
pub(crate) struct StateGuard<'a, T> {
    value: SpinMutexGuard<'a, T>,
    _next: Next<'a, T>,
}

/// Dropped once the lock is free: wakes one who sleeps, if that was asked for.
struct Next<'a, T>(&'a StateLock<T>);

/// How often one that finds the lock taken gives way to others before it waits for it.
const YIELDS_TO_HOLDER: u32 = 3;
/// How often it looks then before it sleeps, and whenever it is awake again.
const LOOKS_BEFORE_SLEEP: u32 = 100;
/// After so long one that sleeps looks by itself.
const LONGEST_SLEEP: Duration = Duration::from_millis(1);
/// How long a sleeper has until one that lets it pass goes before it all the same: a halted cpu of a virtual machine takes some
/// 50 us to wake up.
pub(super) const WAKE_UP: Duration = Duration::from_micros(200);

/// A panic under it is a broken invariant of ours, and the publisher that it hit has told its own thread: others go on.
impl<T> UnwindSafe for StateLock<T> {}
impl<T> RefUnwindSafe for StateLock<T> {}

impl<T> StateLock<T> {
    #[inline(always)]
    fn try_lock(&self) -> Option<StateGuard<'_, T>> {
        Some(StateGuard { value: self.value.try_lock()?, _next: Next(self) })
    }

    /// Gives way to others, and then waits as [`StateLock::lock_soon`] does.
    ///
    /// Whoever only looked would take the lock in between two changes of the one that has it, and each time the cache lines of all
    /// that is under it. And if there are more busy threads than cpus, a destination can have the cpu meanwhile, which needs it more.
    #[cold]
    fn lock_behind_another(&self) -> StateGuard<'_, T> {
        for _ in 0..YIELDS_TO_HOLDER {
            Linux::yield_now();
            if let Some(guard) = self.try_lock() {
                return guard;
            }
        }
        self.lock_soon()
    }

    /// Looks at the lock for a moment, and sleeps until it is free.
    #[cold]
    fn lock_soon(&self) -> StateGuard<'_, T> {
        self.look().unwrap_or_else(|| self.lock_asleep(LONGEST_SLEEP))
    }

    /// Looks at the lock for a moment.
    fn look(&self) -> Option<StateGuard<'_, T>> {
        (0..LOOKS_BEFORE_SLEEP).find_map(|_| {
            std::hint::spin_loop();
            if self.value.is_locked() { None } else { self.try_lock() }
        })
    }

    /// Sleeps until the lock is free, and looks after each `longest` in any case.
    fn lock_asleep(&self, longest: Duration) -> StateGuard<'_, T> {
        // Relaxed, all: hints, that order nothing. If one is missed, the timer thread goes before this one.
        self.sleepers.fetch_add(1, Relaxed);
        let guard = loop {
            // Relaxed: see the module's second invariant.
            self.asks.store(1, Relaxed);
            if let Some(guard) = self.try_lock() {
                break guard;
            }
            futex::wait(&self.asks, 1, longest);
            if let Some(guard) = self.look() {
                break guard;
            }
        };
        if self.sleepers.fetch_sub(1, Relaxed) > 1 {
            // Another is to be woken behind this one.
            self.asks.store(1, Relaxed);
        }
        self.passed.fetch_add(1, Relaxed);
        guard
    }

    /// Wakes one of those who sleep, if one has asked since the last time.
    #[cold]
    fn wake_next(&self) {
        // Relaxed: see the module's second invariant.
        if self.asks.swap(0, Relaxed) != 0 {
            futex::wake_one(&self.asks);
        }
    }

    /// Waits until one of those who sleep has had the lock; others that come meanwhile make it no longer.
    #[cold]
    fn wait_for_sleeper(&self, longest: Duration) {
        let began = Instant::now();
        // Relaxed, all: as in `lock_asleep`.
        let passed = self.passed.load(Relaxed);
        // If that was missed when the lock became free: else it would be waited for in vain.
        self.wake_next();
        while self.sleepers.load(Relaxed) > 0
            && self.passed.load(Relaxed) == passed
            && began.elapsed() < longest
        {
            Linux::yield_now();
        }
    }
}

impl<T: Debug> Lock<T> for StateLock<T> {
    type Guard<'a>
        = StateGuard<'a, T>
    where
        T: 'a;

    fn new(value: T) -> Self {
        let [asks, sleepers, passed, told] = [0; 4].map(AtomicU32::new);
        Self { value: SpinMutex::new(value), asks, sleepers, passed, told }
    }

    fn lock(&self) -> StateGuard<'_, T> {
        self.try_lock().unwrap_or_else(|| self.lock_soon())
    }

    #[inline(always)]
    fn lock_giving_way(&self) -> StateGuard<'_, T> {
        self.try_lock().unwrap_or_else(|| self.lock_behind_another())
    }

    #[inline]
    fn let_sleeper_pass(&self) {
        // Relaxed: as in `lock_asleep`.
        if self.sleepers.load(Relaxed) > 0 {
            self.wait_for_sleeper(WAKE_UP);
        }
    }

    fn wait_until<'a>(&'a self, guard: StateGuard<'a, T>, deadline: Instant) -> StateGuard<'a, T> {
        // Relaxed: what was done before this guard was seen under it. Who does something behind it, and tells, changes the word, and the kernel
        // does not let anybody sleep over one that has changed.
        let told = self.told.load(Relaxed);
        drop(guard);
        futex::wait(&self.told, told, deadline.saturating_duration_since(Instant::now()));
        self.lock()
    }

    fn notify_all(&self) {
        // Relaxed: as in `wait_until`.
        self.told.fetch_add(1, Relaxed);
        futex::wake_all(&self.told);
    }
}

/// Not as that of [`SpinMutex`], which lets go of the lock by itself, and wakes nobody.
impl<T: Debug> Debug for StateLock<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.try_lock() {
            Some(value) => f.debug_tuple("StateLock").field(&*value).finish(),
            None => f.write_str("StateLock(<taken>)"),
        }
    }
}

impl<T> Deref for StateGuard<'_, T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for StateGuard<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T> Drop for Next<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        // Relaxed: see the module's second invariant.
        if self.0.asks.load(Relaxed) != 0 {
            self.0.wake_next();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::AtomicBool;
    use std::sync::atomic::Ordering::{Acquire, Release};
    use std::sync::mpsc;

    use super::*;

    /// Longer than any thread takes to get the cpu.
    const LONG: Duration = Duration::from_secs(60);

    impl<T> StateLock<T> {
        /// Waits until a thread sleeps until the lock is free, which is held.
        pub(in crate::link) fn await_sleeper(&self) {
            let began = Instant::now();
            while self.sleepers.load(Relaxed) == 0 {
                assert!(began.elapsed() < LONG, "nobody sleeps");
                std::thread::yield_now();
            }
        }
    }

    /// Waits until a thread asks to be woken: who sees that, and has the lock, sees it when it lets go, too.
    fn await_request<T>(lock: &StateLock<T>) {
        let began = Instant::now();
        while lock.asks.load(Relaxed) == 0 {
            assert!(began.elapsed() < LONG, "nobody asks");
            std::thread::yield_now();
        }
    }

    #[test]
    fn those_who_sleep_over_the_lock_are_woken_one_behind_the_other() {
        const SLEEPERS: u32 = 4;
        let lock = StateLock::new(0u32);
        let began = Instant::now();
        for round in 1..=20 {
            let held = lock.lock();
            std::thread::scope(|scope| {
                for _ in 0..SLEEPERS {
                    lock.asks.store(0, Relaxed);
                    scope.spawn(|| *lock.lock_asleep(LONG) += 1);
                    await_request(&lock);
                }
                drop(held);
                // A request that is missed is heard by whoever lets go the next time.
                while *lock.lock() < round * SLEEPERS && began.elapsed() < LONG {
                    std::thread::yield_now();
                }
            });
            assert_eq!(*lock.lock(), round * SLEEPERS);
            assert!(began.elapsed() < LONG, "somebody was not woken");
        }
    }

    #[test]
    fn one_that_sleeps_over_the_lock_has_it_although_its_request_to_be_woken_was_missed() {
        let lock = StateLock::new(0u32);
        let is_over = AtomicBool::new(false);
        let woke_by_itself = std::thread::scope(|scope| {
            let held = lock.lock();
            let (says, said) = mpsc::channel();
            let is_over = &is_over;
            let lock = &lock;
            scope.spawn(move || {
                says.send(nix::unistd::gettid()).unwrap();
                drop(lock.lock_soon());
                is_over.store(true, Relaxed);
            });
            let sleeper = said.recv().unwrap();
            let began = Instant::now();
            // If it is awake right behind this, it asks anew: nothing is missed then.
            while lock.asks.load(Relaxed) == 0 || !is_asleep(sleeper) {
                assert!(began.elapsed() < LONG, "nobody sleeps");
                std::thread::yield_now();
            }
            lock.asks.store(0, Relaxed);
            drop(held);
            while !is_over.load(Relaxed) && began.elapsed() < LONG {
                std::thread::yield_now();
            }
            lock.asks.store(1, Relaxed);
            lock.wake_next();
            began.elapsed() < LONG
        });
        assert!(woke_by_itself);
    }

    /// As `proc_pid_stat(5)` has it: the state is behind the name, which is in brackets.
    fn is_asleep(thread: nix::unistd::Pid) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap();
        stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('S'))
    }

    #[test]
    fn one_that_sleeps_over_the_lock_is_woken_by_who_shows_what_is_under_it() {
        /// Shown, it waits.
        #[derive(Default)]
        struct Shown {
            begins: AtomicBool,
            may_end: AtomicBool,
        }

        impl Debug for &Shown {
            fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
                self.begins.store(true, Relaxed);
                while !self.may_end.load(Acquire) {
                    std::thread::yield_now();
                }
                f.write_str("value")
            }
        }

        let (shown, began) = (Shown::default(), Instant::now());
        let lock = StateLock::new(&shown);
        std::thread::scope(|scope| {
            let text = scope.spawn(|| format!("{lock:?}"));
            while !shown.begins.load(Relaxed) && began.elapsed() < LONG {
                std::thread::yield_now();
            }
            assert_eq!(format!("{lock:?}"), "StateLock(<taken>)");
            scope.spawn(|| drop(lock.lock_asleep(LONG)));
            await_request(&lock);
            // Release: what this thread has seen, the one that lets go sees; its partner is the load in `fmt`.
            shown.may_end.store(true, Release);
            assert_eq!(text.join().unwrap(), "StateLock(value)");
        });
        assert!(began.elapsed() < LONG, "it was not woken");
    }

    #[test]
    fn public_handles_may_be_used_behind_a_panic_as_with_a_mutex() {
        fn is_unwind_safe<T: UnwindSafe + RefUnwindSafe>() {}
        is_unwind_safe::<StateLock<std::cell::Cell<u32>>>();
        is_unwind_safe::<crate::Table>();
    }

    #[test]
    fn one_that_sleeps_over_the_lock_has_it_after_a_panic() {
        let lock = StateLock::new(0u32);
        let began = Instant::now();
        std::thread::scope(|scope| {
            let held = lock.lock();
            scope.spawn(|| *lock.lock_asleep(LONG) += 1);
            await_request(&lock);
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                let _held = held;
                panic!("on purpose");
            }));
            assert!(panicked.is_err());
        });
        assert_eq!(*lock.lock(), 1);
        assert!(began.elapsed() < LONG, "it was not woken");
    }

    #[test]
    fn what_is_told_once_the_lock_is_free_is_heard_by_those_who_wait_for_it() {
        let lock = StateLock::new(0u32);
        let began = Instant::now();
        for round in 1..=1000 {
            std::thread::scope(|scope| {
                let mut held = lock.lock();
                scope.spawn(|| {
                    *lock.lock() = round;
                    lock.notify_all();
                });
                while *held != round {
                    held = lock.wait_until(held, began + LONG);
                    assert!(began.elapsed() < LONG, "it was not heard");
                }
            });
        }
        // Nobody tells anything any more.
        let deadline = Instant::now() + Duration::from_millis(1);
        while Instant::now() < deadline {
            drop(lock.wait_until(lock.lock(), deadline));
        }
    }

    #[test]
    fn thread_that_sleeps_over_the_lock_has_it_before_one_that_lets_it_pass() {
        let lock = StateLock::new(0u32);
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
        let lock = StateLock::new(0u32);
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
        let lock = StateLock::new(0u32);
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
