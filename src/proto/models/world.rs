//! The state of a model: both ends, the link between them, and their applications; and what each action does to it.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use super::super::destination::DestinationCore;
use super::super::resend::ResendPolicy;
use super::super::source::{SessionId, SessionState, SnapshotRequest, SourceConfig, SourceCore};
use super::super::store::TableId;
use super::oracle::{App, KEYS, Kind, Subject, TABLES, Truth, Version};
use super::seen::{Seen, Situation};
use crate::opcode::Opcode;
use crate::retention::Retention;
use crate::seq::SyncSeq;
use crate::snapshot::{Pointer, SnapshotFn};
use crate::subscription::Subscription;
use crate::wire::{Ack, Frame, Payload};

/// What a model is about: everything that does not change within it.
#[derive(Clone, Debug)]
pub(super) struct Scene {
    pub(super) kind: Kind,
    /// With two, each item is in a table of its own.
    pub(super) tables: usize,
    /// Records that the change ring holds.
    pub(super) ring: usize,
    /// Change numbers per change, so that the sync sequence number takes few values.
    pub(super) stride: u64,
    /// It begins with item 0 at the source, both ends equal and nothing under way.
    pub(super) settled: bool,
    pub(super) max_tombstones: usize,
    pub(super) budget: Budget,
}

/// How often each thing may happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Budget {
    pub(super) changes: u8,
    pub(super) lost_records: u8,
    pub(super) lost_acks: u8,
    /// Records and acks that come a second time, at any later moment.
    pub(super) copies: u8,
    pub(super) failures: u8,
    /// Ticks while something is on its way.
    pub(super) ticks: u8,
    pub(super) breaks: u8,
    pub(super) destination_crashes: u8,
    pub(super) source_crashes: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// The source's application changes an item, and tells the source at once or, if that keeps no values, in a step of its own.
    Set(usize),
    /// With data in the place of a pointer.
    SetData(usize),
    Remove(usize),
    Tell(usize),
    Ready(usize),
    Attach,
    Send,
    /// The application is asked for a snapshot or an item; it answers in a step of its own.
    Read,
    Answer,
    AnswerUnreadable,
    Deliver,
    DeliverFailing(Subject),
    LoseRecord,
    DeliverAndKeepCopy,
    DeliverCopy,
    SendAck,
    TakeAck,
    LoseAck,
    TakeAckAndKeepCopy,
    TakeAckCopy,
    Tick,
    Break,
    CrashDestination,
    /// The new life has these items.
    CrashSource([bool; KEYS]),
}

#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) scene: Arc<Scene>,
    /// The mutex makes it `Sync`, which an enumeration under way would not be. It is never waited for.
    pub(super) source: Arc<Mutex<SourceCore>>,
    pub(super) destination: Arc<DestinationCore>,
    pub(super) epoch: u64,
    pub(super) link: Option<Link>,
    pub(super) truth: Truth,
    pub(super) app: App,
    /// What was read and is not answered.
    pub(super) reading: Option<Reading>,
    /// What is left of the copy that an enumeration made at its beginning.
    pub(super) listing: Option<VecDeque<(usize, Version)>>,
    pub(super) left: Budget,
    /// Steps of a tick or a reading since anything else happened.
    pub(super) fruitless: u8,
    pub(super) violation: Option<String>,
    /// Of no influence but on what is due; see the module doc.
    pub(super) now: Instant,
    pub(super) pointers: Arc<[Pointer; KEYS]>,
}

#[derive(Clone, Debug, Hash)]
pub(super) struct Link {
    pub(super) session: SessionId,
    pub(super) ring: VecDeque<Arc<[u8]>>,
    pub(super) written: u64,
    /// The ack ring, which holds one.
    pub(super) ack: Option<[[u8; 8]; Ack::WORDS]>,
    pub(super) record_copy: Option<Arc<[u8]>>,
    pub(super) ack_copy: Option<[[u8; 8]; Ack::WORDS]>,
}

#[derive(Clone, Debug, Hash)]
pub(super) enum Reading {
    Snapshot(SnapshotRequest, Version),
    Drawn(TableId, Option<(usize, Version)>),
}

impl Budget {
    pub(super) const NONE: Budget = Budget {
        changes: 0,
        lost_records: 0,
        lost_acks: 0,
        copies: 0,
        failures: 0,
        ticks: 0,
        breaks: 0,
        destination_crashes: 0,
        source_crashes: 0,
    };

    /// So much more of everything that is in it.
    pub(super) fn raise(&mut self, more: u8) {
        let Budget { changes, lost_records, lost_acks, copies, failures, .. } = self;
        let Budget { ticks, breaks, destination_crashes, source_crashes, .. } = self;
        for all in [changes, lost_records, lost_acks, copies, failures] {
            *all += if *all > 0 { more } else { 0 };
        }
        for all in [ticks, breaks, destination_crashes, source_crashes] {
            *all += if *all > 0 { more } else { 0 };
        }
    }
}

impl World {
    pub(super) fn new(scene: Arc<Scene>, begin: Instant) -> World {
        let pointer = |_| Pointer::new(Arc::new(SnapshotFn(|_: &mut Vec<u8>| Ok(()))));
        let mut world = World {
            source: Arc::new(Mutex::new(new_source(&scene))),
            destination: Arc::new(new_destination()),
            epoch: 1,
            link: None,
            truth: Truth::default(),
            app: App::default(),
            reading: None,
            listing: None,
            left: scene.budget,
            fruitless: 0,
            violation: None,
            now: begin,
            pointers: Arc::new(std::array::from_fn(pointer)),
            scene,
        };
        if world.scene.settled {
            world.truth.set(0);
            world.tell(0);
            world.settle();
        }
        world
    }

    /// All that happens without a change or a fault.
    fn settle(&mut self) {
        let mut actions = Vec::new();
        loop {
            actions.clear();
            self.progress(&mut actions);
            let next = actions.iter().find_map(|&action| self.step(action, &Seen::default()));
            let Some(next) = next else { return };
            *self = next;
        }
    }

    /// What may happen without a change or a fault.
    pub(super) fn progress(&self, actions: &mut Vec<Action>) {
        let truth = &self.truth;
        actions.extend((0..KEYS).filter(|&key| !truth.is_told(key)).map(Action::Tell));
        actions.extend((0..self.scene.tables).filter(|&table| !truth.ready[table]).map(Action::Ready));
        let Some(link) = &self.link else { return actions.push(Action::Attach) };
        if self.source().is_overrun(link.session) {
            return actions.push(Action::Break);
        }
        actions.push(Action::Send);
        match self.reading {
            Some(_) => actions.push(Action::Answer),
            None if self.scene.kind != Kind::Data => actions.push(Action::Read),
            None => {}
        }
        if !link.ring.is_empty() {
            actions.push(Action::Deliver);
        }
        if link.ack.is_some() {
            actions.push(Action::TakeAck);
        } else if self.destination.poll_ack().is_some() {
            actions.push(Action::SendAck);
        }
        if self.left.ticks > 0 || self.is_idle() {
            actions.push(Action::Tick);
        }
    }

    pub(super) fn changes_and_faults(&self, actions: &mut Vec<Action>) {
        let Budget { changes, lost_records, lost_acks, copies, failures, .. } = self.left;
        for key in (0..KEYS).filter(|&key| changes > 0 && self.truth.is_told(key)) {
            // Items of one table are alike: the first change is that of the first.
            if self.truth.version == 0 && key > 0 && self.scene.tables == 1 {
                continue;
            }
            actions.push(Action::Set(key));
            if self.truth.items[key] != 0 {
                actions.push(Action::Remove(key));
                if self.scene.kind == Kind::Pointers {
                    actions.push(Action::SetData(key));
                }
            }
        }
        self.crashes(actions);
        let Some(link) = &self.link else { return };
        if failures > 0 && matches!(self.reading, Some(Reading::Snapshot(..))) {
            actions.push(Action::AnswerUnreadable);
        }
        if let Some(record) = link.ring.front() {
            if lost_records > 0 {
                actions.push(Action::LoseRecord);
            }
            if copies > 0 && link.record_copy.is_none() {
                actions.push(Action::DeliverAndKeepCopy);
            }
            if failures > 0 {
                actions.extend(subjects_of(record).iter().map(|&subject| Action::DeliverFailing(subject)));
            }
        }
        if link.ack.is_some() {
            if lost_acks > 0 {
                actions.push(Action::LoseAck);
            }
            if copies > 0 && link.ack_copy.is_none() {
                actions.push(Action::TakeAckAndKeepCopy);
            }
        }
        if link.record_copy.is_some() {
            actions.push(Action::DeliverCopy);
        }
        if link.ack_copy.is_some() {
            actions.push(Action::TakeAckCopy);
        }
    }

    fn crashes(&self, actions: &mut Vec<Action>) {
        if self.left.breaks > 0 && self.link.is_some() {
            actions.push(Action::Break);
        }
        if self.left.destination_crashes > 0 {
            actions.push(Action::CrashDestination);
        }
        if self.left.source_crashes > 0 {
            let there = self.truth.items.map(|version| version != 0);
            let reloads = [[false, false], [true, false], [false, true], [true, true]];
            let some = reloads.into_iter().filter(|some| (0..KEYS).all(|key| there[key] || !some[key]));
            actions.extend(some.map(Action::CrashSource));
        }
    }

    /// The state after an action; `None` if that changes nothing.
    pub(super) fn step(&self, action: Action, seen: &Seen) -> Option<World> {
        let mut next = self.clone();
        let changed = next.act(action, self, seen)?;
        next.note_changes(self, seen);
        let result = match changed {
            Ok(()) => next.check(seen),
            wrong => wrong,
        };
        if let Err(violation) = result {
            next.violation = Some(violation);
        }
        Some(next)
    }

    fn note_changes(&self, before: &World, seen: &Seen) {
        let Some(link) = &self.link else { return };
        if Arc::ptr_eq(&self.source, &before.source) {
            return;
        }
        let (now, before) = (self.source(), before.source());
        let coalesced = |source: &SourceCore| {
            source.session_state(link.session).map_or(0, |state| state.counters.coalesced)
        };
        seen.note_if(Situation::Coalesced, coalesced(&now) > coalesced(&before));
        let last = |source: &SourceCore| source.store().last_change().seq().value();
        seen.note_if(Situation::Wrapped, last(&now) < last(&before));
    }

    pub(super) fn source(&self) -> MutexGuard<'_, SourceCore> {
        self.source.lock().expect("no thread panics with it")
    }

    /// A core of its own for this state.
    pub(super) fn source_mut(&mut self) -> &mut SourceCore {
        if Arc::get_mut(&mut self.source).is_none() {
            let own = self.source().clone();
            self.source = Arc::new(Mutex::new(own));
        }
        let own = Arc::get_mut(&mut self.source).expect("nobody else has it");
        own.get_mut().expect("no thread panics with it")
    }

    pub(super) fn link_mut(&mut self) -> &mut Link {
        self.link.as_mut().expect("the action needs a link")
    }

    pub(super) fn table_of(&self, key: usize) -> TableId {
        if self.scene.tables > 1 { key as TableId } else { 0 }
    }

    pub(super) fn state(&self, session: SessionId) -> Option<SessionState> {
        self.source().session_state(session)
    }

    pub(super) fn fingerprint(&self) -> u64 {
        hash_of(self)
    }
}

pub(super) fn hash_of(what: &impl Hash) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

/// The cores with all that can have an influence (see their `Hash`), but neither the clock nor what is the same in all
/// states.
impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.source().hash(state);
        self.destination.hash(state);
        (self.epoch, &self.link, &self.truth, &self.app).hash(state);
        (&self.reading, &self.listing, self.left, self.fruitless, &self.violation).hash(state);
    }
}

impl PartialEq for World {
    fn eq(&self, other: &World) -> bool {
        self.fingerprint() == other.fingerprint()
    }
}

pub(super) fn new_source(scene: &Scene) -> SourceCore {
    let policy = ResendPolicy {
        interval: std::time::Duration::ZERO,
        max_interval: std::time::Duration::ZERO,
        ..ResendPolicy::default()
    };
    let mut source = SourceCore::new(SourceConfig {
        policy,
        send_equal: false,
        first_seq: SyncSeq::from(u32::MAX),
        max_tombstones: scene.max_tombstones,
    });
    for name in &TABLES[..scene.tables] {
        let retention = match scene.kind {
            Kind::Enumerated => Retention::unacked(no_items),
            _ => Retention::Newest,
        };
        source.table(name, retention).expect("there are few tables");
    }
    source
}

/// The models draw for themselves.
pub(super) fn no_items() -> Vec<(u32, Vec<u8>)> {
    unreachable!("no model draws from its enumerator")
}

pub(super) fn new_destination() -> DestinationCore {
    DestinationCore::new(true, Subscription::all())
}

pub(super) fn opcode(key: usize) -> Opcode {
    Opcode::from_bytes(&[key as u8]).expect("one byte is not too long")
}

pub(super) fn encoded(frame: &Frame<'_>) -> Arc<[u8]> {
    let record = frame.to_bytes();
    record.into()
}

pub(super) fn payload_of(record: &[u8]) -> Payload<'_> {
    Frame::decode(record, 0).expect("the source has encoded it").payload
}

/// What the events of a record can be about.
fn subjects_of(record: &[u8]) -> Vec<Subject> {
    match payload_of(record) {
        Payload::Set { opcode, .. } | Payload::Remove { opcode } => {
            vec![Subject::Item(usize::from(opcode[0]))]
        }
        Payload::End { .. } => (0..KEYS).map(Subject::Item).chain([Subject::Synced]).collect(),
        Payload::Table { .. } | Payload::Named { .. } => Vec::new(),
    }
}
