//! A source and its destinations on [`Loom`], and what its threads do.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use loom::sync::atomic::AtomicU8;

use super::loom_platform::{FAR, Kernel, Loom, LoomPeer, LoomWaits};
use crate::link::incoming::{IncomingLink, Woken};
use crate::link::outgoing::OutgoingLink;
use crate::link::platform::{Platform, Waits};
use crate::link::service::Drive;
use crate::link::shared::Shared;
use crate::link::timer::Timer;
use crate::opcode::{Opcode, ToOpcode};
use crate::proto::ResendPolicy;
use crate::proto::destination::{DestinationCore, Event};
use crate::proto::source::{SourceConfig, SourceCore};
use crate::proto::store::{NewValue, OtherValue, TableId};
use crate::retention::Retention;
use crate::ring::loom_memory::{LoomMemory, ring_at};
use crate::ring::{Consumer, Producer};
use crate::snapshot::{Pointer, SnapshotFn};
use crate::stats::DestinationId;
use crate::subscription::Subscription;

/// The name of a table and five small changes of it.
const CHANGE_RING_BYTES: u64 = 256;
/// Eight acks, of which the source holds the room of one back.
const ACK_RING_BYTES: u64 = 256;

/// A source with one table.
#[derive(Debug, Clone)]
pub(super) struct World {
    pub(super) kernel: Rc<Kernel>,
    pub(super) shared: Arc<Shared<Loom>>,
    pub(super) table: TableId,
    drive: Drive,
}

/// The source's end of a link.
type Rings = (LoomPeer, Producer<LoomMemory>, Consumer<LoomMemory>);

/// When unacknowledged changes are sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resends {
    /// In this model never: nothing may depend on it.
    Never,
    /// As soon as time goes on.
    Soon,
}

impl World {
    pub(super) fn new(resends: Resends) -> World {
        World::driven(Drive::OwnThread, resends)
    }

    /// Both sides are driven by event loops: they sleep on what the descriptors show that they are given.
    pub(super) fn in_event_loops(resends: Resends) -> World {
        World::driven(Drive::Loop, resends)
    }

    fn driven(drive: Drive, resends: Resends) -> World {
        let interval = match resends {
            Resends::Never => FAR * 100,
            Resends::Soon => Duration::from_millis(1),
        };
        let policy = ResendPolicy { interval, max_interval: interval, ..ResendPolicy::default() };
        let mut core = SourceCore::new(SourceConfig {
            policy: policy.clone(),
            send_equal: false,
            first_seq: 1.into(),
            max_tombstones: 10,
        });
        let table = core.table("t", Retention::default()).expect("the first table");
        let kernel = Kernel::new();
        let shared = Shared::new(core, policy, CHANGE_RING_BYTES, kernel.alarm());
        #[expect(
            clippy::arc_with_non_send_sync,
            reason = "loom runs its threads on one thread of the system"
        )]
        let shared = Arc::new(shared);
        World { kernel, shared, table, drive }
    }

    /// A link: the source's end, which takes effect with [`World::add`], and the destination's.
    pub(super) fn link(&self) -> (Rings, Destination) {
        let (of_source, of_destination) = self.kernel.peers();
        let (change_in, change_out) = ring_at(CHANGE_RING_BYTES, 0);
        let (ack_in, ack_out) = ring_at(ACK_RING_BYTES, 0);
        let mut core = DestinationCore::new(true, Subscription::all());
        core.attach(1);
        let link = IncomingLink::new(of_destination, change_out, ack_in, CHANGE_RING_BYTES);
        let (kernel, drive) = (self.kernel.clone(), self.drive);
        let destination = Destination { kernel, drive, link, core, told: Vec::new(), refusals: 0 };
        ((of_source, change_in, ack_out), destination)
    }

    /// Takes a destination in, as the timer thread does.
    pub(super) fn add(&self, (peer, changes, acks): Rings) {
        let attaching = self.shared.start_attach(Subscription::all());
        self.shared.add_link(attaching, |session, attachment| {
            OutgoingLink::new(session, DestinationId { pid: 1, attachment }, peer, changes, acks)
        });
    }

    /// A destination that is attached already.
    pub(super) fn attach(&self) -> Destination {
        let (rings, destination) = self.link();
        self.add(rings);
        destination
    }

    /// What a publisher does.
    pub(super) fn set(&self, opcode: u8, value: u8) {
        self.set_value(opcode, NewValue::Data(&[value]));
    }

    /// As [`World::set`], with data of the application.
    pub(super) fn set_pointer(&self, opcode: u8, data: &Arc<AtomicU8>) {
        let data = data.clone();
        let snapshot = SnapshotFn(move |out: &mut Vec<u8>| {
            // Relaxed: who changes the data says so under the source's lock.
            out.push(data.load(Relaxed));
            Ok(())
        });
        let pointer = Pointer::new(Arc::new(snapshot));
        self.set_value(opcode, NewValue::Other(&OtherValue::Pointer(&pointer)));
    }

    /// The data of a pointer has changed.
    pub(super) fn touch(&self, opcode: u8) {
        let mut state = self.shared.lock();
        state.core.touch(self.table, &self::opcode(opcode)).expect("a pointer");
        self.shared.publish(&mut state);
    }

    fn set_value(&self, opcode: u8, value: NewValue<'_>) {
        let opcode = self::opcode(opcode);
        let opcode = self.shared.hashed(&opcode);
        let mut state = self.shared.lock();
        let set = self.shared.set(&mut state, self.table, opcode, value);
        if !set.is_some_and(|set| set.at_once) {
            self.shared.publish(&mut state);
        }
    }

    pub(super) fn remove(&self, opcode: u8) {
        let mut state = self.shared.lock();
        self.shared
            .remove(&mut state, self.table, self.shared.hashed(&self::opcode(opcode)))
            .expect("it is there");
        self.shared.publish(&mut state);
    }

    pub(super) fn ready(&self) {
        let mut state = self.shared.lock();
        state.core.ready(self.table);
        self.shared.publish(&mut state);
    }

    /// Ends the source; to be called once its threads are not needed any more.
    pub(super) fn close(&self, timer: Thread<()>) {
        self.shared.close();
        timer.join().expect("the timer thread does not panic");
    }

    /// Starts the timer thread, which ends when the source is closed.
    pub(super) fn start_timer(&self) -> Thread<()> {
        self.timer().start(None)
    }

    pub(super) fn timer(&self) -> TimerThread {
        TimerThread {
            world: self.clone(),
            timer: Timer::new(self.shared.clone(), self.drive == Drive::OwnThread),
            waits: self.kernel.waits(),
        }
    }
}

/// What the timer thread has.
#[derive(Debug)]
pub(super) struct TimerThread {
    world: World,
    timer: Timer<Loom>,
    waits: LoomWaits,
}

impl TimerThread {
    /// Runs in a thread of its own until the source is closed. If a destination comes, it is taken in after the first turn.
    pub(super) fn start(mut self, mut comes: Option<Rings>) -> Thread<()> {
        loom::thread::spawn(move || {
            // As if there were somebody at the door.
            while self.turn(comes.as_ref().map(|_| Loom::now())) {
                if let Some(rings) = comes.take() {
                    self.world.add(rings);
                }
            }
            self.world.shared.end();
        })
    }

    /// One round, as in [`service`](crate::link::service); with a deadline if there is one. `false` if the source is closing.
    pub(super) fn turn(&mut self, deadline: Option<Instant>) -> bool {
        self.waits.clear();
        let Some(due) = self.timer.watch(&mut self.waits) else { return false };
        self.waits.wait(deadline.or(due)).unwrap();
        if self.world.drive == Drive::Loop {
            // That was the loop's. The round begins with a look of its own.
            self.waits.wait(Some(Loom::now())).unwrap();
        }
        self.timer.turn(&self.waits);
        true
    }

    /// Three rounds, in each of which time has passed.
    pub(super) fn tick_three_times(&mut self) {
        for _ in 0..3 {
            assert!(self.turn(Some(Loom::now())));
        }
    }
}

/// A destination, and what its application was told.
#[derive(Debug)]
pub(super) struct Destination {
    kernel: Rc<Kernel>,
    drive: Drive,
    pub(super) link: IncomingLink<Loom>,
    core: DestinationCore,
    pub(super) told: Vec<Told>,
    /// So many changes its application does not apply.
    pub(super) refusals: u32,
}

/// An event, as the models look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Set(u8, u8),
    Removed(u8),
    Synced,
}

impl Destination {
    /// Receives in a thread of its own until the source is gone; the thread answers what the application was told.
    pub(super) fn start(self) -> Thread<Vec<Told>> {
        self.start_until(|_| false)
    }

    /// As [`Destination::start`], but ends when its application has been told enough. As nobody flushes meanwhile, nobody is
    /// woken for acks either.
    pub(super) fn start_until(mut self, enough: impl Fn(&[Told]) -> bool + 'static) -> Thread<Vec<Told>> {
        let mut waits = self.kernel.waits();
        loom::thread::spawn(move || {
            while !enough(&self.told) && (!self.receive() || enough(&self.told) || self.wait(&mut waits)) {}
            self.told
        })
    }

    /// Receives once; answers whether there is nothing left.
    pub(super) fn receive(&mut self) -> bool {
        let (told, refusals) = (&mut self.told, &mut self.refusals);
        let received = self.link.receive(&mut self.core, usize::MAX, &mut |event| {
            if *refusals > 0 && matches!(event, Event::Set { .. }) {
                *refusals -= 1;
                return false;
            }
            told.push(match event {
                Event::Set { opcode, value, .. } => Told::Set(number(opcode), value[0]),
                Event::Removed { opcode, .. } => Told::Removed(number(opcode)),
                Event::Synced { .. } => Told::Synced,
                other => panic!("{other:?}"),
            });
            true
        });
        received.unwrap() == 0
    }

    /// Waits for more; `false` if there will be none.
    fn wait(&mut self, waits: &mut LoomWaits) -> bool {
        let woken = match self.drive {
            Drive::OwnThread => self.link.wait(&self.core, None, waits).unwrap(),
            Drive::Loop => self.sleep(waits),
        };
        if woken != Woken::SourceGone {
            return true;
        }
        // What was published before is still there.
        self.link.handle_source_gone();
        while !self.receive() {}
        false
    }
}

impl Destination {
    /// The end of a dispatch, the loop's wait, and the beginning of the next dispatch.
    fn sleep(&mut self, waits: &mut LoomWaits) -> Woken {
        if !self.link.fall_asleep(&self.core).unwrap() {
            return Woken::NotAsleep;
        }
        waits.clear();
        self.link.watch(waits);
        waits.wait(None).unwrap();
        self.link.wake_up(waits).unwrap()
    }
}

fn opcode(number: u8) -> Opcode {
    number.to_opcode().expect("a byte is an opcode")
}

fn number(opcode: &Opcode) -> u8 {
    *opcode.as_bytes().last().expect("opcodes are not empty")
}

pub(super) type Thread<T> = loom::thread::JoinHandle<T>;
