//! A source's core whose destinations acknowledge anything.
//!
//! An input says what happens: items are set and removed, destinations come and go, frames are sent, and acks come, right
//! ones, almost right ones and others.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::{Choices, Saw};
use crate::opcode::{Opcode, ToOpcode};
use crate::proto::source::{Attaching, SessionId, Set, SourceConfig, SourceCore};
use crate::proto::store::{ItemId, NewValue, TableId, Value};
use crate::proto::{ProtocolError, ResendPolicy};
use crate::retention::Retention;
use crate::seq::{ChangeNumber, SyncSeq};
use crate::subscription::Subscription;
use crate::wire::{Ack, Frame, Payload};

const MAX_STEPS: usize = 512;
const MAX_TOMBSTONES: usize = 3;
const MAX_SESSIONS: usize = 3;
/// More than these few items can need.
const MAX_FRAMES: usize = 1000;
const NAMES: [&str; 2] = ["a", "b"];

struct World<'a> {
    choices: Choices<'a>,
    core: SourceCore,
    sessions: Vec<(SessionId, Session)>,
    attaching: Option<Attaching>,
    now: Instant,
}

/// A destination, as what was sent to it tells.
#[derive(Default)]
struct Session {
    subscription: Subscription,
    sent: Vec<Sent>,
    /// Ordinals that were acknowledged.
    acked: BTreeSet<u64>,
    /// What it holds by what it was sent.
    items: BTreeMap<(TableId, Vec<u8>), Vec<u8>>,
}

struct Sent {
    /// The table, which record of it, and the item.
    what: (TableId, u8, Vec<u8>),
    change: ChangeNumber,
}

pub(super) fn run(input: &[u8], saw: Saw<'_>) {
    let mut choices = Choices::new(input);
    let first_seq = SyncSeq::from(choices.number(4) as u32);
    let config = SourceConfig {
        policy: ResendPolicy::default(),
        send_equal: choices.one_in(2),
        first_seq,
        max_tombstones: MAX_TOMBSTONES,
    };
    let core = SourceCore::new(config);
    let mut world = World { choices, core, sessions: Vec::new(), attaching: None, now: Instant::now() };
    for name in NAMES {
        world.core.table(name, Retention::Newest).expect("there are few");
    }
    let mut steps = 0;
    while !world.choices.is_used_up() && steps < MAX_STEPS {
        steps += 1;
        world.step(saw);
        world.drop_overrun(saw);
        world.check(saw);
    }
    world.finish(saw);
}

impl World<'_> {
    fn step(&mut self, saw: Saw<'_>) {
        match self.choices.byte() % 16 {
            0..=3 => self.set(saw),
            4 | 5 => {
                let (table, opcode) = self.item();
                self.core.remove(table, &opcode);
            }
            6 => self.core.ready(self.choices.below(2) as TableId),
            7 => self.attach(saw),
            8 => self.detach(saw),
            9 | 10 => {
                let most = 1 + self.choices.below(8) as usize;
                self.send(most, saw);
            }
            11 => self.tick(saw),
            _ => self.ack(saw),
        }
    }

    fn item(&mut self) -> (TableId, Opcode) {
        let table = self.choices.below(2) as TableId;
        (table, self.choices.below(5).to_opcode().expect("a number is short"))
    }

    fn set(&mut self, saw: Saw<'_>) {
        let (table, opcode) = self.item();
        let value = self.choices.bytes(2);
        // All sessions have room, none has, or every other one.
        let room = self.choices.below(3);
        let sessions = &mut self.sessions;
        let mut took = Vec::new();
        let mut offer = |id: SessionId, frame: &Frame<'_>| {
            let session = sessions.iter_mut().find(|(other, _)| *other == id);
            let (_, session) = session.expect("an offer to nobody");
            let takes = room == 0 || (room == 1 && id.is_multiple_of(2));
            if takes {
                took.push(id);
                session.handle_frame(frame);
                saw("sent at once");
            }
            takes
        };
        match self.core.set(table, &opcode, NewValue::Data(value), &mut offer) {
            None => saw("unchanged"),
            Some(Set { changed, at_once: true }) => {
                let item = ItemId { table, index: changed.index };
                assert!(!self.core.is_waiting(item), "it waits, and was said to have gone");
                for id in took {
                    assert!(!self.core.request_tick(id), "a tick was needed");
                    saw("nothing left to be done");
                }
            }
            Some(_) => {}
        }
    }

    /// At once, or in steps between which something else happens.
    fn attach(&mut self, saw: Saw<'_>) {
        let Some(mut attaching) = self.attaching.take() else {
            let subscription = self.subscription();
            self.attaching = Some(self.core.start_attach(subscription));
            return;
        };
        match self.choices.below(4) {
            0 if !attaching.is_counted() => {
                self.core.go_on_attaching(&mut attaching);
                saw("counted");
                self.attaching = Some(attaching);
            }
            _ if self.sessions.len() < MAX_SESSIONS => {
                let session =
                    Session { subscription: attaching.subscription().clone(), ..Session::default() };
                let id = self.core.attach(attaching);
                assert!(self.sessions.iter().all(|(other, _)| *other != id), "a place for two");
                self.sessions.push((id, session));
            }
            _ => self.attaching = Some(attaching),
        }
    }

    fn subscription(&mut self) -> Subscription {
        let name = NAMES[self.choices.below(2) as usize];
        match self.choices.below(4) {
            0 => Subscription::none().table(name),
            1 => Subscription::none().prefix(name, self.choices.below(5)).expect("a number is short"),
            _ => Subscription::all(),
        }
    }

    fn detach(&mut self, saw: Saw<'_>) {
        if let Some(at) = self.session() {
            let (id, _) = self.sessions.swap_remove(at);
            self.core.detach(id);
            saw("detached");
        }
    }

    fn session(&mut self) -> Option<usize> {
        let len = self.sessions.len() as u64;
        (len > 0).then(|| self.choices.below(len) as usize)
    }

    fn send(&mut self, most: usize, saw: Saw<'_>) {
        let Some(at) = self.session() else { return };
        self.send_to(at, most, saw);
    }

    fn send_to(&mut self, at: usize, most: usize, saw: Saw<'_>) {
        let (id, session) = &mut self.sessions[at];
        for _ in 0..most {
            let Some(outgoing) = self.core.poll_frame(*id) else {
                if self.core.is_walking(*id) {
                    continue;
                }
                return;
            };
            session.handle_frame(&outgoing.frame);
            let entry = outgoing.entry;
            self.core.handle_sent(*id, entry);
            saw("sent");
        }
    }

    fn tick(&mut self, saw: Saw<'_>) {
        let Some(at) = self.session() else { return };
        let (id, session) = &self.sessions[at];
        self.core.request_tick(*id);
        self.now += Duration::from_millis(self.choices.below(256));
        let written = session.sent.len() as u64;
        let released = if self.choices.one_in(4) { self.choices.below(written + 1) } else { written };
        if self.core.poll_timeout(*id, self.now).is_some_and(|due| due <= self.now) {
            self.core.handle_timeout(*id, self.now, written, released);
            saw("tick");
        }
    }

    fn ack(&mut self, saw: Saw<'_>) {
        let Some(at) = self.session() else { return };
        let sent = self.sessions[at].1.sent.len() as u64;
        let first = self.choices.below(sent + 1);
        let last = first + self.choices.below(4);
        let mut ack = Ack { first, last, first_seq: self.seq(at, first), last_seq: self.seq(at, last) };
        match self.choices.below(32) {
            0 => ack.first = self.choices.number(8),
            1 => ack.last = self.choices.number(8),
            2 => ack.first_seq = SyncSeq::from(self.choices.number(4) as u32),
            3 => ack.last_seq = SyncSeq::from(self.choices.number(4) as u32),
            4 => ack.last = first.wrapping_sub(self.choices.below(3)),
            _ => ack.last = ack.last.min(sent.saturating_sub(1)).max(first),
        }
        if ack.last < sent && self.choices.one_in(2) {
            ack.last_seq = self.seq(at, ack.last);
        }
        self.handle_ack(at, ack, saw);
    }

    fn seq(&self, at: usize, ordinal: u64) -> SyncSeq {
        let sent = self.sessions[at].1.sent.get(ordinal as usize);
        sent.map_or(SyncSeq::default(), |sent| sent.change.seq())
    }

    /// Gives an ack to the core, and looks whether it is right to take it, or not to.
    fn handle_ack(&mut self, at: usize, ack: Ack, saw: Saw<'_>) {
        let (id, session) = &mut self.sessions[at];
        let sent = session.sent.len() as u64;
        let ends = [(ack.first, ack.first_seq), (ack.last, ack.last_seq)];
        // What counts no more is not looked at.
        let counts = ends.map(|(ordinal, _)| session.counts(ordinal, &self.core));
        let outcome = self.core.handle_ack(*id, ack);
        if ack.first > ack.last || ack.last >= sent {
            let error = ProtocolError::AckOutOfRange { first: ack.first, last: ack.last, sent };
            assert_eq!(outcome, Err(error));
            return saw("ack out of range");
        }
        match outcome {
            Ok(()) => {
                for ((ordinal, seq), counts) in ends.into_iter().zip(counts) {
                    let is_right = session.sent[ordinal as usize].change.seq() == seq;
                    assert!(is_right || !counts, "record {ordinal} was acknowledged with {seq}");
                }
                session.acked.extend(ack.first..=ack.last);
                saw(if ack.first < ack.last { "ack of several" } else { "ack of one" });
            }
            Err(ProtocolError::AckOfOther { ordinal, found, expected }) => {
                assert!(ends.contains(&(ordinal, found)), "{ordinal} is no end of the ack");
                assert!(found != expected && expected == session.sent[ordinal as usize].change.seq());
                saw("ack of another");
                // The link is closed.
                let (id, _) = self.sessions.swap_remove(at);
                self.core.detach(id);
            }
            Err(error) => panic!("{error} for an ack within what was sent"),
        }
    }

    fn drop_overrun(&mut self, saw: Saw<'_>) {
        let core = &mut self.core;
        self.sessions.retain(|(id, _)| {
            let is_overrun = core.is_overrun(*id);
            if is_overrun {
                core.detach(*id);
                saw("overrun");
            }
            !is_overrun
        });
    }

    /// What was not acknowledged is kept, and what is kept has its bounds.
    fn check(&self, saw: Saw<'_>) {
        let tables = self.core.store().tables();
        let live: u32 = tables.iter().map(|table| table.live).sum();
        for (id, session) in &self.sessions {
            let state = self.core.session_state(*id).expect("it is attached");
            assert!(state.tombstones <= MAX_TOMBSTONES);
            let most = live as usize + state.tombstones + 2 * NAMES.len();
            assert!(state.unacked <= most, "{} entries, at most {most}", state.unacked);
            let entries: BTreeSet<(&str, &Opcode)> =
                self.core.entries(*id).map(|entry| (entry.table, entry.opcode)).collect();
            for (table, number) in tables.iter().zip(0..) {
                for item in table.items().iter().filter(|item| item.value != Value::Vacant) {
                    let opcode = item.opcode.as_bytes().to_vec();
                    let was_sent = session.items.contains_key(&(number, opcode.clone()));
                    let newest = (number, u8::from(item.value.is_live()), opcode);
                    if was_sent && !session.has_acked(&newest, item.change) {
                        assert!(
                            entries.contains(&(&*table.name, &item.opcode)),
                            "{} is forgotten",
                            item.opcode
                        );
                        saw("unacked");
                    }
                }
            }
        }
    }

    /// Everybody gets everything, acknowledges it, and nothing is left.
    fn finish(&mut self, saw: Saw<'_>) {
        for table in 0..NAMES.len() {
            self.core.ready(table as TableId);
        }
        for at in 0..self.sessions.len() {
            // A table's end may wait for an ack.
            for _ in 0..2 {
                self.send_to(at, MAX_FRAMES, saw);
                let (id, session) = &self.sessions[at];
                for (ordinal, sent) in (0..).zip(&session.sent) {
                    let seq = sent.change.seq();
                    let ack = Ack { first: ordinal, last: ordinal, first_seq: seq, last_seq: seq };
                    self.core.handle_ack(*id, ack).expect("a right ack");
                }
            }
            let (id, session) = &self.sessions[at];
            assert!(self.core.is_settled(*id), "{:?}", self.core.session_state(*id));
            session.check_equal(&self.core);
            saw("settled");
        }
        for (id, _) in self.sessions.drain(..) {
            self.core.detach(id);
        }
        let tables = self.core.store().tables();
        let mut left = tables.iter().flat_map(|table| table.items().iter());
        assert!(left.all(|item| item.value != Value::Removed), "a tombstone is left");
    }
}

impl Session {
    fn handle_frame(&mut self, frame: &Frame<'_>) {
        assert_eq!(frame.ordinal, self.sent.len() as u64);
        let bytes = frame.to_bytes();
        assert_eq!(Frame::decode(&bytes, frame.ordinal), Ok(*frame));
        let (kind, opcode) = match frame.payload {
            Payload::Set { opcode, value, .. } => {
                self.items.insert((frame.table, opcode.to_vec()), value.to_vec());
                (1, opcode)
            }
            Payload::Remove { opcode } => {
                self.items.remove(&(frame.table, opcode.to_vec()));
                (0, opcode)
            }
            Payload::Table { name, .. } => {
                assert_eq!(name, NAMES[usize::from(frame.table)]);
                (2, &[][..])
            }
            Payload::End { .. } => (3, &[][..]),
            Payload::Named { .. } => panic!("there are no pointers"),
        };
        self.sent.push(Sent { what: (frame.table, kind, opcode.to_vec()), change: frame.change });
    }

    /// Whether an item waits for the ack of this very record: it carries the newest change, and was not sent again.
    fn counts(&self, ordinal: u64, core: &SourceCore) -> bool {
        let Some((sent, later)) = self.sent.get(ordinal as usize..).and_then(|from| from.split_first())
        else {
            return false;
        };
        let (table, kind, opcode) = &sent.what;
        let opcode = Opcode::from_bytes(opcode).expect("it was sent");
        let newest = core.store().find(*table, &opcode).map(|item| item.change);
        *kind < 2
            && newest == Some(sent.change)
            && !later.iter().any(|later| later.change == sent.change)
            && !self.has_acked(&sent.what, sent.change)
    }

    fn has_acked(&self, what: &(TableId, u8, Vec<u8>), change: ChangeNumber) -> bool {
        let mut acked = self.acked.iter().map(|ordinal| &self.sent[*ordinal as usize]);
        acked.any(|sent| sent.what == *what && sent.change == change)
    }

    /// By what it was sent the destination holds what the source does, as far as it wants it.
    fn check_equal(&self, core: &SourceCore) {
        for (table, number) in core.store().tables().iter().zip(0..) {
            if !self.sent.iter().any(|sent| sent.what.0 == number) {
                continue;
            }
            let held: Vec<_> = self.items.iter().filter(|((of, _), _)| *of == number).collect();
            let selection = self.subscription.of(&table.name).expect("something of it was sent");
            let wanted: Vec<_> = table.iter().filter(|item| selection.takes(&item.opcode)).collect();
            assert_eq!(held.len(), wanted.len());
            for item in wanted {
                let held = self.items.get(&(number, item.opcode.as_bytes().to_vec()));
                assert!(
                    matches!(&item.value, Value::Data(data) if held.is_some_and(|held| **held == **data))
                );
            }
        }
    }
}
