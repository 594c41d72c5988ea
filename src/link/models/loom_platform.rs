//! A platform in which loom sees every access that two threads could quarrel about.
//!
//! Rings lie in [`loom_memory`](crate::ring::loom_memory). Doorbells, the alarm and deaths are signals under one mutex, with
//! one condition variable for whoever waits, as the kernel's are. That mutex orders memory, as system calls may or may not, so it
//! is touched to ring, to wait and to clear only, and never by who publishes to a peer that is awake.
//!
//! Time goes on by a millisecond whenever it is asked for, so that no loop of a bounded duration is taken twice. A deadline that
//! is [far](FAR) does not come: who waits for it waits to be told, and if nobody tells it, loom reports a deadlock. One that is
//! not far has come. loom runs its threads one at a time on one system thread, so thread-local is global
//! here, and `Rc` may be shared.

use std::cell::Cell;
use std::fmt::Debug;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use loom::sync::{Condvar, Mutex, MutexGuard};

use crate::link::platform::{Alarm, Heard, Lock, Peer, Platform, Waits};
use crate::ring::loom_memory::LoomMemory;

/// What the models stand on.
#[derive(Debug)]
pub(super) struct Loom;

/// A deadline this far away does not come.
pub(super) const FAR: Duration = Duration::from_secs(60);

/// What passes whenever the time is asked for.
const STEP: Duration = Duration::from_millis(1);

thread_local! {
    static CLOCK: Cell<Instant> = Cell::new(Instant::now());
}

impl Platform for Loom {
    type Writable = LoomMemory;
    type Readable = LoomMemory;
    type Peer = LoomPeer;
    type Wake = LoomAlarm;
    type Waits = LoomWaits;
    type Lock<T: Debug> = LoomLock<T>;

    /// More looks show nothing that one does not, and take long to explore.
    const SPINS_BEFORE_FLUSH: u32 = 1;

    fn now() -> Instant {
        CLOCK.set(CLOCK.get() + STEP);
        CLOCK.get()
    }

    fn yield_now() {
        loom::thread::yield_now();
    }
}

/// All signals of a model.
#[derive(Debug)]
pub(super) struct Kernel {
    signals: Mutex<Vec<Heard>>,
    changed: Condvar,
}

impl Kernel {
    pub(super) fn new() -> Rc<Kernel> {
        Rc::new(Kernel { signals: Mutex::new(Vec::new()), changed: Condvar::new() })
    }

    /// The two ends of a link.
    pub(super) fn peers(self: &Rc<Kernel>) -> (LoomPeer, LoomPeer) {
        let (a, b) = (self.add(), self.add());
        let peer = |own, other| LoomPeer { kernel: self.clone(), own, other };
        (peer(a, b), peer(b, a))
    }

    pub(super) fn alarm(self: &Rc<Kernel>) -> LoomAlarm {
        LoomAlarm { kernel: self.clone(), own: self.add() }
    }

    pub(super) fn waits(self: &Rc<Kernel>) -> LoomWaits {
        LoomWaits { kernel: self.clone(), watched: Vec::new() }
    }

    fn add(&self) -> usize {
        let mut signals = self.signals.lock().unwrap();
        signals.push(Heard::default());
        signals.len() - 1
    }

    fn signal(&self, at: usize, act: impl FnOnce(&mut Heard)) {
        act(&mut self.signals.lock().unwrap()[at]);
        self.changed.notify_all();
    }
}

#[derive(Debug)]
pub(super) struct LoomPeer {
    kernel: Rc<Kernel>,
    /// What this end hears, and the other.
    own: usize,
    other: usize,
}

impl Peer<LoomWaits> for LoomPeer {
    fn ring(&self) -> io::Result<()> {
        self.kernel.signal(self.other, |heard| heard.rung = true);
        Ok(())
    }

    fn clear(&self) -> io::Result<()> {
        self.kernel.signal(self.own, |heard| heard.rung = false);
        Ok(())
    }

    fn watch(&self, waits: &mut LoomWaits) -> usize {
        waits.watch(self.own)
    }

    fn heard(waits: &LoomWaits, at: usize) -> Heard {
        waits.watched[at].1
    }
}

impl Drop for LoomPeer {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.kernel.signal(self.other, |heard| heard.gone = true);
        }
    }
}

#[derive(Debug)]
pub(super) struct LoomAlarm {
    kernel: Rc<Kernel>,
    own: usize,
}

impl Alarm<LoomWaits> for LoomAlarm {
    fn wake(&self) {
        self.kernel.signal(self.own, |heard| heard.rung = true);
    }

    fn clear(&self) {
        self.kernel.signal(self.own, |heard| heard.rung = false);
    }

    fn watch(&self, waits: &mut LoomWaits) -> usize {
        waits.watch(self.own)
    }

    fn is_woken(waits: &LoomWaits, at: usize) -> bool {
        waits.watched[at].1.rung
    }
}

/// Signals that end a wait, and what the last wait found of each.
#[derive(Debug)]
pub(super) struct LoomWaits {
    kernel: Rc<Kernel>,
    watched: Vec<(usize, Heard)>,
}

impl LoomWaits {
    fn watch(&mut self, signal: usize) -> usize {
        self.watched.push((signal, Heard::default()));
        self.watched.len() - 1
    }

    fn look(&mut self, signals: &[Heard]) -> bool {
        self.watched.iter_mut().for_each(|(signal, heard)| *heard = signals[*signal]);
        self.watched.iter().any(|(_, heard)| *heard != Heard::default())
    }
}

impl Waits for LoomWaits {
    fn clear(&mut self) {
        self.watched.clear();
    }

    fn wait(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        let kernel = self.kernel.clone();
        let mut signals = kernel.signals.lock().unwrap();
        if deadline.is_some_and(|deadline| !is_far(deadline)) {
            self.look(&signals);
            return Ok(());
        }
        while !self.look(&signals) {
            signals = kernel.changed.wait(signals).unwrap();
        }
        Ok(())
    }
}

fn is_far(deadline: Instant) -> bool {
    deadline.saturating_duration_since(CLOCK.get()) >= FAR
}

#[derive(Debug)]
pub(super) struct LoomLock<T> {
    value: Mutex<T>,
    told: Condvar,
}

impl<T: Debug> Lock<T> for LoomLock<T> {
    type Guard<'a>
        = MutexGuard<'a, T>
    where
        T: 'a;

    fn new(value: T) -> Self {
        Self { value: Mutex::new(value), told: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, T> {
        self.value.lock().unwrap()
    }

    fn wait_until<'a>(&'a self, guard: MutexGuard<'a, T>, deadline: Instant) -> MutexGuard<'a, T> {
        assert!(is_far(deadline), "models wait to be told");
        self.told.wait(guard).unwrap()
    }

    fn notify_all(&self) {
        self.told.notify_all();
    }
}
