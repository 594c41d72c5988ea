//! What goes between the source and its destinations, and what becomes of it on the way.

use std::time::Duration;

use super::super::destination::{DestinationCore, Event};
use super::super::source::{Drawn, Outlet, Read, Runway, SessionId, SourceCore, Unreadable};
use super::app::{App, Circumstances};
use super::node::{Asked, Link, Node, Record, draw_subscription};
use super::seen::Hazard;
use super::world::World;
use super::{Item, item_of};
use crate::opcode::Opcode;
use crate::wire::{Ack, Frame, Payload};

impl World {
    /// Puts in the ring what is here, until it is full.
    pub(super) fn pump(&mut self, node: usize) {
        let Some(session) = self.session(node) else { return };
        self.source.end_turn(session);
        for _ in 0..1000 {
            let full = self.is_full(node);
            let Some(outgoing) = self.source.poll_frame(session) else { return };
            if full {
                let at_marker = matches!(outgoing.frame.payload, Payload::End { .. });
                self.seen.note(Hazard::RingFull);
                self.seen.note_if(at_marker, Hazard::RingFullAtMarker);
                return self.source.handle_full(session);
            }
            let (staged, entry) = (Staged::of(&outgoing.frame), outgoing.entry);
            self.put(node, staged, |source| source.handle_sent(session, entry));
        }
    }

    /// Asks the application for what must be read, and takes its answer in, now or later.
    pub(super) fn ask(&mut self, node: usize) {
        let Some(link) = &mut self.nodes[node].link else { return };
        if link.asked.is_none() {
            let most = self.rng.usize(1..8);
            let Some(read) = self.source.poll_read(link.session) else { return };
            link.asked = Some(match read {
                Read::Pointer(request) => {
                    let mut data = Vec::new();
                    request.pointer.read(&mut data).unwrap();
                    let fails = self.faults && self.rng.u32(..10) == 0;
                    self.seen.note_if(fails, Hazard::SnapshotFailed);
                    Asked::Snapshot { request, data: (!fails).then_some(data) }
                }
                Read::Enumeration { table, items } => {
                    Asked::Drawn { table, drawn: Drawn::draw(items, most, |_, _| Ok(())).unwrap() }
                }
            });
            if self.faults && self.rng.bool() {
                return;
            }
        }
        self.take_answer(node);
    }

    fn take_answer(&mut self, node: usize) {
        let full = self.is_full(node);
        let Some(link) = &mut self.nodes[node].link else { return };
        let session = link.session;
        match link.asked.take() {
            None => {}
            Some(Asked::Snapshot { request, data }) => {
                let snapshot = data.as_deref().ok_or(Unreadable);
                let Some(outgoing) = self.source.poll_snapshot(session, &request, snapshot) else {
                    return self.seen.note(Hazard::SnapshotOutdated);
                };
                if full {
                    self.seen.note(Hazard::RingFullAtRead);
                    return self.source.handle_full(session);
                }
                let staged = Staged::of(&outgoing.frame);
                self.put(node, staged, |source| source.handle_snapshot_sent(session, &request));
            }
            Some(Asked::Drawn { table, drawn }) => {
                let name = self.source.store().tables()[usize::from(table)].name.to_string();
                self.trace.note(|| format!("enumerated of {name} for {node}: {:?}", drawn.items));
                self.seen.note_if(self.owner.is_behind(&name), Hazard::CallBehindState);
                let began = self.source.enumeration_began(session, table);
                let stored = &self.source.store().tables()[usize::from(table)];
                let passed = drawn.items.iter().filter(|(opcode, _)| stored.changed_since(opcode, began));
                self.seen.note_times(Hazard::EnumeratedPassedOver, passed.count() as u64);
                self.source.handle_drawn(session, table, drawn);
            }
        }
    }

    fn session(&self, node: usize) -> Option<SessionId> {
        self.nodes[node].link.as_ref().map(|link| link.session)
    }

    fn is_full(&self, node: usize) -> bool {
        self.nodes[node].link.as_ref().is_some_and(|link| link.ring.len() >= self.ring_records)
    }

    fn resent(&self, session: SessionId) -> u64 {
        self.source.session_state(session).map_or(0, |state| state.counters.resent)
    }

    /// Puts a record in a ring that has room for it.
    pub(super) fn put(&mut self, node: usize, staged: Staged, sent: impl FnOnce(&mut SourceCore)) {
        let Some(session) = self.session(node) else { return };
        let before = self.resent(session);
        sent(&mut self.source);
        let resent = self.resent(session) > before;
        let Staged { bytes, table, opcode, change } = staged;
        let name = &self.source.store().tables()[usize::from(table)].name;
        let item = opcode.map(|opcode| item_of(name, &opcode));
        let newest = item.as_ref().and_then(|item| newest_change(&self.source, item));
        self.seen.note_if(newest.is_some_and(|newest| newest > change), Hazard::SnapshotOlder);
        self.trace.note(|| {
            let again = if resent { " again" } else { "" };
            format!("to {node}{again}: {}", told(&bytes, name))
        });
        let link = self.nodes[node].link.as_mut().expect("it was put in its ring");
        link.sent.push((item.clone(), change));
        let here = link.ring.iter().any(|record| record.item == item && record.change == change);
        // An enumeration may name what was acknowledged before, under the number that it had: an earlier copy is due then.
        let kept = item.as_ref().is_some_and(|item| self.owner.keeps_newest(item.0));
        assert!(!here || !kept, "what is still in the ring was sent again");
        link.written += 1;
        link.ring.push_back(Record { bytes, item, change, resent });
    }

    /// Takes up to so many records out of the ring.
    pub(super) fn consume(&mut self, node: usize, most: usize) {
        if self.nodes[node].stalled_until > self.step {
            return;
        }
        self.sweep_unwanted(node);
        for _ in 0..most {
            let Some(link) = &mut self.nodes[node].link else { return };
            if self.faults && !link.late_records.is_empty() && self.rng.u32(..4) == 0 {
                let late = link.late_records.remove(0);
                self.deliver(node, &late);
                continue;
            }
            let Some(record) = link.ring.pop_front() else { return };
            match self.rng.u32(..90) {
                0..3 if self.faults => self.seen.note(Hazard::RecordLost),
                3..5 if self.faults => {
                    self.seen.note(Hazard::RecordLate);
                    link.late_records.push(record);
                }
                5..6 if self.faults => {
                    // once now and once after later ones
                    self.seen.note(Hazard::RecordRepeated);
                    link.late_records.push(record.clone());
                    self.deliver(node, &record);
                }
                6..8 if self.faults => {
                    self.seen.note(Hazard::RecordRepeated);
                    self.deliver(node, &record);
                    self.deliver(node, &record);
                }
                _ => self.deliver(node, &record),
            }
        }
    }

    fn deliver(&mut self, at: usize, record: &Record) {
        let node = &mut self.nodes[at];
        let Some(link) = &node.link else { return };
        let frame = Frame::decode(&record.bytes, 0).unwrap();
        let subscription = node.core.subscription().clone();
        let circumstances = Circumstances {
            owner: &self.owner,
            subscription: &subscription,
            change: frame.change.value(),
            epoch: self.epoch,
            link: link.number,
            salt: self.rng.u32(..),
            at_attach: node.at_attach.as_ref(),
            faults: self.faults,
            defers: node.defers,
        };
        let before = node.core.stats();
        self.trace
            .note(|| format!("{at} receives ordinal {}, change {}", frame.ordinal, frame.change.value()));
        let (app, seen, trace) = (&mut node.app, &mut self.seen, &mut self.trace);
        let handler = |event: Event<'_>| {
            let took = app.handle(event, &circumstances, seen);
            trace.note(|| format!("  {event:?}: {}", if took { "taken" } else { "not taken" }));
            took
        };
        node.core.handle_record(&record.bytes, handler).unwrap();
        let after = node.core.stats();
        let duplicates = after.duplicates - before.duplicates;
        let of_owed = node.core.is_owed(record.item.as_ref().map(|item| (item.0, &item.1)));
        self.seen.note_times(Hazard::Swept, after.swept - before.swept);
        self.seen.note_times(Hazard::Duplicate, duplicates);
        self.seen.note_if(duplicates > 0 && of_owed, Hazard::DuplicateOfOwed);
    }

    /// Gives up what is not wanted, as the public face does now and then.
    pub(super) fn sweep_unwanted(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if node.link.is_none() || !node.core.has_unwanted() {
            return;
        }
        let subscription = node.core.subscription().clone();
        let circumstances = Circumstances {
            owner: &self.owner,
            subscription: &subscription,
            change: 0,
            epoch: self.epoch,
            link: 0,
            salt: self.rng.u32(..),
            at_attach: node.at_attach.as_ref(),
            faults: self.faults,
            defers: node.defers,
        };
        let before = node.core.stats().swept;
        let (app, seen) = (&mut node.app, &mut self.seen);
        node.core.sweep_unwanted(|event| app.handle(event, &circumstances, seen));
        let swept = node.core.stats().swept - before;
        self.seen.note_times(Hazard::UnwantedSwept, swept);
    }

    /// A put-off ack is given, or its change refused.
    pub(super) fn settle_owed(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if node.app.tokens.is_empty() {
            return;
        }
        let deferred = node.app.tokens.swap_remove(self.rng.usize(..node.app.tokens.len()));
        if self.faults && self.rng.u32(..4) == 0 {
            let refused = node.core.refuse(&deferred.token);
            assert!(!refused || deferred.epoch == node.epoch, "of another life of the source");
            self.trace.note(|| format!("{at} refuses {:?}: {refused}", deferred.token));
            self.seen.note_if(refused, Hazard::Refused);
            if refused {
                node.app.go_back(deferred);
            }
            return;
        }
        let link = node.link.as_ref().map_or(0, |link| link.number);
        let owed = node.core.acknowledge(&deferred.token);
        assert!(!owed || deferred.epoch == node.epoch, "of another life of the source");
        self.trace.note(|| format!("{at} has applied {:?}: {owed}", deferred.token));
        if owed {
            node.app.settle(&deferred);
        }
        self.seen.note_if(owed, Hazard::AckDeferred);
        self.seen.note_if(owed && link > deferred.link, Hazard::AckOnLaterLink);
    }

    /// Acks go to the source.
    pub(super) fn acknowledge(&mut self, node: usize) {
        let Node { core, link: Some(link), .. } = &mut self.nodes[node] else { return };
        while let Some(ack) = core.poll_ack() {
            core.handle_ack_sent();
            link.acks.push_back(Ack::decode(ack.encode().as_flattened()).unwrap());
        }
        while let Some(link) = &mut self.nodes[node].link
            && let Some(ack) = link.acks.pop_front()
        {
            match self.rng.u32(..20) {
                0..2 if self.faults => self.seen.note(Hazard::AckLost),
                2..3 if self.faults => {
                    self.seen.note(Hazard::AckLate);
                    link.late_acks.push(ack);
                }
                3..5 if self.faults => {
                    self.seen.note(Hazard::AckRepeated);
                    self.take_ack(node, ack);
                    self.take_ack(node, ack);
                }
                5..8 if self.faults && !link.late_acks.is_empty() => {
                    let late = link.late_acks.remove(0);
                    self.take_ack(node, ack);
                    self.take_ack(node, late);
                }
                _ => self.take_ack(node, ack),
            }
        }
    }

    fn take_ack(&mut self, node: usize, ack: Ack) {
        let Some(link) = &self.nodes[node].link else { return };
        self.trace.note(|| format!("{node} acknowledges {}..={}", ack.first, ack.last));
        for (item, change) in &link.sent[ack.first as usize..=ack.last as usize] {
            let newest = item.as_ref().and_then(|item| newest_change(&self.source, item));
            self.seen.note_if(newest.is_some_and(|newest| newest > *change), Hazard::AckOfOlderChange);
        }
        self.source.handle_ack(link.session, ack).unwrap();
    }

    pub(super) fn tick(&mut self, elapsed: Duration) {
        self.now += elapsed;
        self.trace.note(|| format!("{elapsed:?} later"));
        for link in self.nodes.iter().filter_map(|node| node.link.as_ref()) {
            self.source.request_tick(link.session);
            if self.source.poll_timeout(link.session, self.now).is_some_and(|due| due <= self.now) {
                let released = link.written - link.ring.len() as u64;
                self.source.handle_timeout(link.session, self.now, link.written, released);
                let again = self.source.request_tick(link.session);
                assert!(!again, "a tick asks for no other at once: the timer thread would never sleep");
                let next = self.source.poll_timeout(link.session, self.now);
                assert!(next.is_none_or(|next| next > self.now), "what a tick leaves waits for the next one");
            }
        }
    }

    pub(super) fn attach(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if node.link.is_some() {
            return;
        }
        let source = &mut self.source;
        let mut attaching =
            node.attaching.take().unwrap_or_else(|| source.start_attach(node.core.subscription().clone()));
        // It is not always counted to the end, and others come between.
        if self.rng.bool() {
            source.go_on_attaching(&mut attaching);
        }
        if self.faults && self.rng.u32(..3) == 0 {
            node.attaching = Some(attaching);
            return;
        }
        let session = source.attach(attaching);
        let restarted = node.core.attach(self.epoch);
        node.epoch = self.epoch;
        node.at_attach = self.owner.is_all_told().then(|| (self.owner.items(), self.owner.version));
        node.app.attach(restarted);
        self.links += 1;
        self.trace.note(|| format!("{at} attaches, {:?}", node.core.subscription()));
        node.link = Some(Link::new(session, self.links));
    }

    /// The link breaks with all that is on it. The destination may want something else when it comes again.
    pub(super) fn break_link(&mut self, at: usize) {
        let Some(link) = self.nodes[at].link.take() else { return };
        self.seen.note(Hazard::LinkBroken);
        self.trace.note(|| format!("the link of {at} breaks"));
        self.collect(link.session);
        self.source.detach(link.session);
        let node = &mut self.nodes[at];
        node.core.detach();
        if self.faults && self.rng.u32(..3) == 0 {
            self.seen.note(Hazard::SubscriptionChanged);
            node.core.set_subscription(draw_subscription(&mut self.rng));
        }
    }

    pub(super) fn restart_destination(&mut self, at: usize) {
        self.break_link(at);
        self.seen.note(Hazard::DestinationRestarted);
        self.trace.note(|| format!("{at} restarts"));
        if let Some(attaching) = self.nodes[at].attaching.take() {
            // Its source finds out only once it has attached.
            let session = self.source.attach(attaching);
            self.source.detach(session);
        }
        let Node { core, defers, .. } = &self.nodes[at];
        let core = DestinationCore::new(!defers, core.subscription().clone());
        let (app, epoch, at_attach) = (App::default(), self.epoch, None);
        self.nodes[at] = Node {
            core,
            attaching: None,
            link: None,
            app,
            defers: *defers,
            epoch,
            at_attach,
            stalled_until: 0,
        };
    }

    pub(super) fn restart_source(&mut self) {
        self.seen.note(Hazard::SourceRestarted);
        for node in 0..self.nodes.len() {
            self.break_link(node);
            self.nodes[node].attaching = None;
        }
        self.trace.note(|| "the source restarts".into());
        self.epoch = self.rng.u64(..);
        self.source = SourceCore::new(self.config.clone());
        self.flushes = [None, None, None];
        self.owner.restart(&mut self.rng, self.step, &mut self.source);
    }

    pub(super) fn stall(&mut self, node: usize) {
        self.seen.note(Hazard::DestinationStalled);
        self.nodes[node].stalled_until = self.step + self.rng.u32(20..100);
    }

    /// Counts what a link has seen, before it goes.
    pub(super) fn collect(&mut self, session: SessionId) {
        let Some(state) = self.source.session_state(session) else { return };
        self.seen.note_times(Hazard::Resent, state.counters.resent);
        self.seen.note_times(Hazard::Coalesced, state.counters.coalesced);
        let enumerating = self.source.is_enumerating(session);
        self.seen.note_if(state.replaying, Hazard::ReplayInterrupted);
        self.seen.note_if(enumerating, Hazard::EnumerationInterrupted);
    }
}

/// A record on its way into the ring.
pub(super) struct Staged {
    bytes: Vec<u8>,
    table: u16,
    opcode: Option<Opcode>,
    change: u64,
}

/// The rings of all links, while the owner tells of a change; now and then there is no room for what could go at once.
pub(super) struct Rings<'a> {
    pub(super) nodes: &'a [Node],
    pub(super) rng: &'a mut fastrand::Rng,
    pub(super) ring_records: usize,
    /// What has been put in them, by node.
    pub(super) offered: Vec<(usize, Staged)>,
}

impl Rings<'_> {
    /// The node of a session, and how many records there is room for.
    fn room(&self, session: SessionId) -> (usize, usize) {
        let is_its = |node: &Node| node.link.as_ref().is_some_and(|link| link.session == session);
        let node = self.nodes.iter().position(is_its).expect("a session has a link");
        let here = self.offered.iter().filter(|(other, _)| *other == node).count();
        let ring = self.nodes[node].link.as_ref().map_or(0, |link| link.ring.len());
        (node, self.ring_records.saturating_sub(ring + here))
    }
}

impl Outlet for Rings<'_> {
    fn offer(&mut self, session: SessionId, frame: &Frame<'_>, _: bool) -> bool {
        let (node, room) = self.room(session);
        let takes = room > 0 && self.rng.bool();
        if takes {
            self.offered.push((node, Staged::of(frame)));
        }
        takes
    }

    fn runway(&mut self, session: SessionId) -> Runway {
        let (_, room) = self.room(session);
        Runway { frames: self.rng.usize(..=room) as u32, bytes: u64::MAX }
    }

    fn put<'a>(&mut self, session: SessionId, frames: impl ExactSizeIterator<Item = Frame<'a>>) {
        let (node, room) = self.room(session);
        assert!(frames.len() <= room, "more than there was a runway for");
        self.offered.extend(frames.map(|frame| (node, Staged::of(&frame))));
    }
}

impl Staged {
    pub(super) fn of(frame: &Frame<'_>) -> Staged {
        let bytes = frame.to_bytes();
        let opcode = match frame.payload {
            Payload::Set { opcode, .. } | Payload::Remove { opcode } | Payload::Named { opcode } => {
                Some(opcode)
            }
            Payload::Table { .. } | Payload::End { .. } => None,
        };
        let opcode = opcode.map(|opcode| Opcode::from_bytes(opcode).unwrap());
        Staged { bytes, table: frame.table, opcode, change: frame.change.value() }
    }
}

fn newest_change(source: &SourceCore, item: &Item) -> Option<u64> {
    let table = source.store().table_named(item.0)?;
    source.store().find(table, &item.1).map(|item| item.change.value())
}

/// A record, for a person.
fn told(bytes: &[u8], table: &str) -> String {
    let frame = Frame::decode(bytes, 0).unwrap();
    let what = match frame.payload {
        Payload::Set { opcode, value, .. } => {
            format!("set {opcode:?} {}", u64::from_ne_bytes(value.try_into().unwrap()))
        }
        Payload::Remove { opcode } => format!("remove {opcode:?}"),
        Payload::Named { opcode } => format!("named {opcode:?}"),
        Payload::Table { .. } => "name".into(),
        Payload::End { oldest_unacked } => format!("end, oldest unacked {oldest_unacked}"),
    };
    format!("ordinal {}, change {}, {table}: {what}", frame.ordinal, frame.change.value())
}
