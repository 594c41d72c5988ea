//! What each action of a model does to its state.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::super::cache::EntryKind;
use super::super::source::{Drawn, Read, SessionId, Unreadable};
use super::super::store::{NewValue, OtherValue, TableId, Value};
use super::oracle::{App, KEYS, Kind, Subject, Truth, subject};
use super::seen::{Seen, Situation};
use super::world::{
    Action, Link, Reading, World, encoded, hash_of, new_destination, new_source, no_items, opcode, payload_of,
};
use crate::retention::{EnumeratedItems, Retention};
use crate::seq::SyncSeq;
use crate::subscription::Subscription;
use crate::wire::{Ack, Frame, Payload};

impl World {
    pub(super) fn act(&mut self, action: Action, before: &World, seen: &Seen) -> Option<Result<(), String>> {
        let fruitless = matches!(action, Action::Tick | Action::Read | Action::Answer);
        self.fruitless = if fruitless { self.fruitless + 1 } else { 0 };
        match action {
            Action::Set(key) => self.change(key, |truth| truth.set(key)),
            Action::Remove(key) => self.change(key, |truth| truth.remove(key)),
            Action::SetData(key) => {
                self.left.changes -= 1;
                self.truth.set_data(key);
                self.tell_data(key);
            }
            Action::Tell(key) => self.tell(key),
            Action::Ready(table) => {
                self.source_mut().ready(table as TableId);
                self.truth.ready[table] = true;
            }
            Action::Attach => self.attach(seen),
            Action::Send => return self.send(before, seen).map(Ok),
            Action::Read => return self.read(before).map(Ok),
            Action::Answer => return self.answer(true, seen).map(Ok),
            Action::AnswerUnreadable => {
                self.left.failures -= 1;
                return self.answer(false, seen).map(Ok);
            }
            Action::Deliver => return Some(self.deliver(None, seen).map(|_| ())),
            Action::DeliverFailing(subject) => {
                self.left.failures -= 1;
                return match self.deliver(Some(subject), seen) {
                    Ok(false) => None,
                    outcome => Some(outcome.map(|_| ())),
                };
            }
            Action::LoseRecord => {
                self.left.lost_records -= 1;
                self.link_mut().ring.pop_front();
            }
            Action::DeliverAndKeepCopy => {
                self.left.copies -= 1;
                let link = self.link_mut();
                link.record_copy = link.ring.front().cloned();
                return Some(self.deliver(None, seen).map(|_| ()));
            }
            Action::DeliverCopy => {
                let record = self.link_mut().record_copy.take()?;
                return Some(self.hand_over(&record, None, seen).map(|_| ()));
            }
            Action::SendAck => {
                let destination = Arc::make_mut(&mut self.destination);
                let ack = destination.poll_ack()?;
                destination.handle_ack_sent();
                self.link_mut().ack = Some(ack.encode());
            }
            Action::TakeAck => {
                let ack = self.link_mut().ack.take()?;
                return Some(self.take_ack(ack, seen));
            }
            Action::LoseAck => {
                self.left.lost_acks -= 1;
                self.link_mut().ack = None;
            }
            Action::TakeAckAndKeepCopy => {
                self.left.copies -= 1;
                let ack = self.link_mut().ack.take()?;
                self.link_mut().ack_copy = Some(ack);
                return Some(self.take_ack(ack, seen));
            }
            Action::TakeAckCopy => {
                let ack = self.link_mut().ack_copy.take()?;
                return Some(self.take_ack(ack, seen));
            }
            Action::Tick => return self.tick(before, seen),
            Action::Break => {
                let session = self.link.as_ref()?.session;
                let is_overrun = self.source().is_overrun(session);
                self.left.breaks -= u8::from(!is_overrun);
                self.detach();
                seen.note(if is_overrun { Situation::Overrun } else { Situation::LinkBroken });
            }
            Action::CrashDestination => {
                self.left.destination_crashes -= 1;
                self.detach();
                self.destination = Arc::new(new_destination());
                self.app = App::default();
                seen.note(Situation::DestinationCrashed);
            }
            Action::CrashSource(loads) => self.crash_source(loads, seen),
        }
        Some(Ok(()))
    }

    fn change(&mut self, key: usize, change: impl Fn(&mut Truth)) {
        self.left.changes -= 1;
        change(&mut self.truth);
        // The application has its state first, and a source that reads it may do so before it is told.
        if self.scene.kind == Kind::Data {
            self.tell(key);
        }
    }

    pub(super) fn tell(&mut self, key: usize) {
        let (version, pointer) = (self.truth.items[key], self.pointers[key].clone());
        let (kind, table, opcode) = (self.scene.kind, self.table_of(key), opcode(key));
        if version != 0 && kind != Kind::Pointers {
            return self.tell_data(key);
        }
        let skipped = self.scene.stride - 1;
        let source = self.source_mut();
        if version == 0 {
            source.remove(table, &opcode);
        } else if source.touch(table, &opcode).is_none() {
            source.set(table, &opcode, NewValue::Other(&OtherValue::Pointer(&pointer)), &mut ());
        }
        source.skip_changes(skipped);
        self.truth.tell(key);
    }

    fn tell_data(&mut self, key: usize) {
        let (version, skipped) = (self.truth.items[key], self.scene.stride - 1);
        let table = self.table_of(key);
        let room = self.link.as_ref().is_some_and(|link| link.ring.len() < self.scene.ring);
        let source = self.source_mut();
        // One key's changes go at once if they may, another's wait: as from a publisher that finds the ring full.
        let mut offered = None;
        source.set(
            table,
            &opcode(key),
            NewValue::Data(&[version]),
            &mut |_: SessionId, frame: &Frame<'_>| {
                let takes = room && key == 0;
                offered = takes.then(|| encoded(frame));
                takes
            },
        );
        source.skip_changes(skipped);
        if let Some(record) = offered {
            self.put(record);
        }
        self.truth.tell(key);
    }

    fn attach(&mut self, seen: &Seen) {
        let session = self.source_mut().attach_at_once(Subscription::all());
        let epoch = self.epoch;
        let restarted = Arc::make_mut(&mut self.destination).attach(epoch);
        if restarted {
            self.app.begin_epoch();
        }
        seen.note_if(Situation::AttachedWithItems, self.app.items != [0; KEYS]);
        let none = (None, None, None);
        let (ack, record_copy, ack_copy) = none;
        self.link = Some(Link { session, ring: VecDeque::new(), written: 0, ack, record_copy, ack_copy });
    }

    fn send(&mut self, before: &World, seen: &Seen) -> Option<()> {
        let session = self.link.as_ref()?.session;
        let is_full = self.link.as_ref()?.ring.len() == self.scene.ring;
        let source = self.source_mut();
        let Some(outgoing) = source.poll_frame(session) else {
            // To look for a frame may have been a step of a replay's walk.
            self.fruitless = before.fruitless + 1;
            return (hash_of(&*self.source()) != hash_of(&*before.source())).then_some(());
        };
        if is_full {
            source.handle_full(session);
            source.end_turn(session);
            seen.note(Situation::RingFull);
            return (hash_of(&*self.source()) != hash_of(&*before.source())).then_some(());
        }
        let (record, entry) = (encoded(&outgoing.frame), outgoing.entry);
        source.handle_sent(session, entry);
        source.end_turn(session);
        self.put(record);
        let resent = |world: &World| world.state(session).map_or(0, |state| state.counters.resent);
        seen.note_if(Situation::SentAgain, resent(self) > resent(before));
        Some(())
    }

    fn put(&mut self, record: Arc<[u8]>) {
        self.fruitless = 0;
        let link = self.link_mut();
        link.ring.push_back(record);
        link.written += 1;
    }

    fn read(&mut self, before: &World) -> Option<()> {
        let session = self.link.as_ref()?.session;
        if self.link.as_ref()?.ring.len() == self.scene.ring {
            return None;
        }
        self.reading = Some(match self.source_mut().poll_read(session)? {
            Read::Pointer(request) => {
                let key = usize::from(request.opcode.as_bytes()[0]);
                Reading::Snapshot(request, self.truth.pointed_to[key])
            }
            Read::Enumeration { table, .. } => {
                let there = |key: &usize| before.truth.items[*key] != 0 && before.table_of(*key) == table;
                let all = (0..KEYS).filter(there).map(|key| (key, before.truth.items[key]));
                let listing = self.listing.get_or_insert_with(|| all.collect());
                Reading::Drawn(table, listing.pop_front())
            }
        });
        Some(())
    }

    fn answer(&mut self, readable: bool, seen: &Seen) -> Option<()> {
        let session = self.link.as_ref()?.session;
        let is_full = self.link.as_ref()?.ring.len() == self.scene.ring;
        match self.reading.take()? {
            Reading::Snapshot(request, version) => {
                let value = [version];
                let snapshot = if readable { Ok(&value[..]) } else { Err(Unreadable) };
                let source = self.source_mut();
                let Some(outgoing) = source.poll_snapshot(session, &request, snapshot) else {
                    seen.note(Situation::SnapshotStale);
                    return Some(());
                };
                if is_full {
                    source.handle_full(session);
                    seen.note(Situation::RingFull);
                    return Some(());
                }
                let record = encoded(&outgoing.frame);
                let EntryKind::Item(item) = request.entry.kind() else { return None };
                source.handle_snapshot_sent(session, &request);
                seen.note_if(Situation::SnapshotOlder, source.is_waiting(item));
                self.put(record);
            }
            Reading::Drawn(table, item) => {
                let listing = self.listing.take_if(|listing| listing.is_empty());
                let retention = Retention::unacked(no_items);
                let rest = match (listing, retention.enumerator()) {
                    (None, Some(enumerator)) => Some(EnumeratedItems::NotStarted(enumerator.clone())),
                    _ => None,
                };
                let named = |(key, version)| (opcode(key), Value::Data([version][..].into()));
                let entries = |world: &World| world.source().entries(session).count();
                let before = entries(self);
                let drawn = Drawn { items: item.map(named).into_iter().collect(), rest };
                self.source_mut().handle_drawn(session, table, drawn);
                seen.note_if(Situation::EnumeratedPassedOver, item.is_some() && entries(self) == before);
            }
        }
        Some(())
    }

    /// Delivers the first record of the ring; answers whether the handler failed.
    fn deliver(&mut self, failing: Option<Subject>, seen: &Seen) -> Result<bool, String> {
        let record = self.link_mut().ring.pop_front().expect("it was there when the action was drawn");
        self.hand_over(&record, failing, seen)
    }

    fn hand_over(&mut self, record: &[u8], failing: Option<Subject>, seen: &Seen) -> Result<bool, String> {
        let at_end = matches!(payload_of(record), Payload::End { .. });
        let World { destination, app, truth, scene, .. } = self;
        let destination = Arc::make_mut(destination);
        let (before, owed_before) = (destination.stats(), destination.poll_ack());
        let mut outcome = Ok(());
        let handled = destination.handle_record(record, |event| {
            if failing == Some(subject(&event)) {
                return false;
            }
            match app.handle(&event, truth, scene.kind, at_end) {
                Ok(replaced) => seen.note_if(Situation::Replaced, replaced),
                Err(violation) => outcome = Err(violation),
            }
            true
        });
        outcome?;
        handled.map_err(|error| error.to_string())?;
        let after = destination.stats();
        let failed = after.failed > before.failed;
        seen.note_if(Situation::Gap, after.missing > before.missing);
        seen.note_if(Situation::Duplicate, after.duplicates > before.duplicates);
        seen.note_if(Situation::Swept, after.swept > before.swept);
        seen.note_if(Situation::HandlerFailed, failed);
        seen.note_if(Situation::Unreadable, after.unreadable > before.unreadable);
        let owed = destination.poll_ack();
        seen.note_if(Situation::MarkerHeldBack, at_end && !failed && owed == owed_before);
        Ok(failed)
    }

    /// S6, and the rule that goes with it: no entry goes before its newest change was applied.
    fn take_ack(&mut self, ack: [[u8; 8]; Ack::WORDS], seen: &Seen) -> Result<(), String> {
        let ack = Ack::decode(ack.as_flattened()).map_err(|error| error.to_string())?;
        let session = self.link.as_ref().expect("acks come on a link").session;
        let entries = |world: &World| -> Vec<(usize, SyncSeq)> {
            let source = world.source();
            let entries = source.entries(session);
            entries.map(|entry| (usize::from(entry.opcode.as_bytes()[0]), entry.change.seq())).collect()
        };
        let before = entries(self);
        self.source_mut().handle_ack(session, ack).map_err(|error| error.to_string())?;
        let after = entries(self);
        for &(key, seq) in &before {
            if !after.contains(&(key, seq)) {
                self.truth.check_acked(key, &self.app)?;
            } else if ack.first == ack.last {
                seen.note_if(Situation::OldAckOfSameSeq, ack.first_seq == seq);
            }
        }
        seen.note_if(Situation::AckWithoutEffect, after.len() == before.len());
        Ok(())
    }

    /// What the timer thread does for the link when its time has come.
    fn tick(&mut self, before: &World, seen: &Seen) -> Option<Result<(), String>> {
        let link = self.link.as_ref()?;
        let (session, written) = (link.session, link.written);
        let released = written - link.ring.len() as u64;
        let is_idle = before.is_idle();
        let source = self.source_mut();
        source.request_tick(session);
        let now = source.poll_timeout(session, before.now).map(|due| due.max(before.now));
        if let Some(now) = now {
            source.handle_timeout(session, now, written, released);
            self.now = now;
        }
        self.fruitless = before.fruitless;
        let changes = self.fingerprint() != before.fingerprint();
        self.fruitless += 1;
        if !is_idle {
            self.left.ticks -= 1;
            seen.note_if(Situation::EarlyTick, changes);
        }
        if !changes && is_idle && self.state(session).is_some_and(|state| state.unacked > 0) {
            return Some(Err("something is unacknowledged, and no tick will send it again".into()));
        }
        changes.then_some(Ok(()))
    }

    fn detach(&mut self) {
        let Some(link) = self.link.take() else { return };
        self.reading = None;
        self.listing = None;
        self.source_mut().detach(link.session);
        Arc::make_mut(&mut self.destination).detach();
    }

    /// A new life of the source has some of the items from the beginning.
    fn crash_source(&mut self, loads: [bool; KEYS], seen: &Seen) {
        self.left.source_crashes -= 1;
        self.detach();
        self.epoch += 1;
        self.source = Arc::new(Mutex::new(new_source(&self.scene)));
        self.truth.begin_life();
        for (key, loaded) in loads.into_iter().enumerate() {
            if loaded && self.scene.kind != Kind::Enumerated {
                self.tell(key);
            } else if !loaded && self.truth.items[key] != 0 {
                self.truth.lose(key);
            }
            self.truth.tell(key);
        }
        seen.note(Situation::SourceCrashed);
    }
}
