//! What happens: a source, some destinations, and the faults between them.

use std::collections::VecDeque;
use std::fmt;
use std::time::Instant;

use super::super::resend::ResendPolicy;
use super::super::source::{SourceConfig, SourceCore};
use super::super::store::Value;
use super::channel::Rings;
use super::node::{Asked, Node};
use super::owner::{Call, Items, Owner};
use super::seen::{Hazard, Seen};
use super::{CHANGES, GROUPS, Item, KEYS, QUIET_ROUNDS, STEPS, TABLES, item_of};
use crate::opcode::ToOpcode;
use crate::seq::{ChangeNumber, SyncSeq};

pub(super) struct World {
    pub(super) rng: fastrand::Rng,
    pub(super) now: Instant,
    pub(super) owner: Owner,
    pub(super) source: SourceCore,
    pub(super) config: SourceConfig,
    pub(super) epoch: u64,
    pub(super) ring_records: usize,
    pub(super) nodes: Vec<Node>,
    pub(super) flushes: [Option<Flush>; 3],
    pub(super) step: u32,
    changes: u32,
    pub(super) links: u64,
    pub(super) faults: bool,
    pub(super) seen: Seen,
    pub(super) trace: Trace,
}

/// A flush that has not ended.
pub(super) struct Flush {
    /// The tables that it covers in full: not those of which the source knows only what has changed.
    tables: Vec<&'static str>,
    /// What was there when it began, of these tables.
    items: Items,
    /// The version then.
    version: u64,
    /// The destinations that were attached then and have not yet acknowledged all, each with the number of its link.
    left: Vec<(usize, u64)>,
}

/// The last of what happened, for a person.
pub(super) struct Trace {
    lines: Option<VecDeque<String>>,
}

const TRACED_LINES: usize = 60;

impl World {
    pub(super) fn new(seed: u64, traced: bool) -> World {
        let mut rng = fastrand::Rng::with_seed(seed);
        let starts = [1, u32::MAX - 100, (1 << 31) - 100, rng.u32(..)];
        let policy = ResendPolicy {
            max_entries_per_message: rng.u32(1..20),
            max_messages_per_tick: rng.u32(1..4),
            ..ResendPolicy::default()
        };
        let config = SourceConfig {
            policy,
            send_equal: false,
            first_seq: SyncSeq::from(starts[rng.usize(..starts.len())]),
            max_tombstones: if rng.u32(..3) == 0 { rng.usize(2..10) } else { 1000 },
        };
        let ring_records = if rng.u32(..4) == 0 { 1 } else { rng.usize(2..40) };
        let mut world = World {
            now: Instant::now(),
            owner: Owner::new(&mut rng),
            source: SourceCore::new(config.clone()),
            config,
            epoch: rng.u64(..),
            ring_records,
            nodes: (0..rng.usize(1..4)).map(|_| Node::new(&mut rng)).collect(),
            flushes: [None, None, None],
            step: 0,
            changes: 0,
            links: 0,
            faults: true,
            seen: Seen::default(),
            trace: Trace { lines: traced.then(VecDeque::new) },
            rng,
        };
        world.seen.note_if(ring_records == 1, Hazard::RingOfOne);
        world
    }

    pub(super) fn run(&mut self) {
        while self.step < STEPS || self.changes < CHANGES {
            self.step += 1;
            self.draw();
            self.give_up_overrun();
            self.check_flushes();
            self.check_memory();
        }
        self.end_faults();
        for _ in 0..QUIET_ROUNDS {
            if self.is_quiet() {
                return self.check_end();
            }
            for node in 0..self.nodes.len() {
                self.attach(node);
                self.exchange(node);
                self.check_flushes();
            }
            self.tick(self.config.policy.tick());
        }
        for node in &self.nodes {
            let link = node.link.as_ref().expect("attached in each round");
            let state = self.source.session_state(link.session);
            let (ring, stats) = (link.ring.len(), node.core.stats());
            eprintln!("{state:?} {ring} in the ring, loading {:?}, {stats:?}", node.core.loading());
        }
        panic!("not quiet after {QUIET_ROUNDS} rounds without faults");
    }

    fn draw(&mut self) {
        let node = self.rng.usize(..self.nodes.len());
        match self.rng.u32(..240) {
            0..110 => self.change(),
            110..132 => self.pump(node),
            132..152 => {
                let most = self.rng.usize(..10);
                self.consume(node, most);
            }
            152..168 => self.acknowledge(node),
            168..186 => self.ask(node),
            186..204 => {
                let elapsed = self.config.policy.tick() * self.rng.u32(1..4);
                self.tick(elapsed);
            }
            204..212 => self.attach(node),
            212..216 => self.settle_owed(node),
            216..218 => self.break_link(node),
            218..219 => self.restart_destination(node),
            219..220 => self.restart_source(),
            220..222 => self.skip_changes(),
            222..225 => self.flush(),
            225..226 => self.stall(node),
            226..227 => {
                self.nodes[node].app.poison = self.rng.bool().then(|| self.draw_item());
            }
            227..229 => self.tell_next(),
            229..231 => self.touch_what_is_read(node),
            _ => {
                let table = TABLES[self.rng.usize(..TABLES.len())];
                self.make_and_ready(table);
            }
        }
    }

    fn draw_item(&mut self) -> Item {
        let opcode = (self.rng.u8(..GROUPS), self.rng.u16(..KEYS)).to_opcode().unwrap();
        (TABLES[self.rng.usize(..TABLES.len())], opcode)
    }

    fn end_faults(&mut self) {
        self.trace.note(|| "no faults from here on".into());
        self.faults = false;
        self.owner.end_plans();
        for table in TABLES {
            self.make_and_ready(table);
        }
        self.owner.tell_all();
        while self.tell_next_call() {}
        self.give_up_overrun();
        for node in &mut self.nodes {
            node.app.poison = None;
            node.stalled_until = 0;
        }
    }

    /// All that can happen between the source and a destination without the clock.
    fn exchange(&mut self, node: usize) {
        self.sweep_unwanted(node);
        for _ in 0..2 * TABLES.len() * usize::from(GROUPS) * usize::from(KEYS) {
            self.pump(node);
            self.ask(node);
            while !self.nodes[node].app.tokens.is_empty() {
                self.settle_owed(node);
            }
            let link = self.nodes[node].link.as_ref().expect("attached");
            let idle = link.ring.is_empty() && link.acks.is_empty() && link.asked.is_none();
            if idle && !self.source.has_reads(link.session) {
                return;
            }
            self.consume(node, usize::MAX);
            self.acknowledge(node);
        }
    }

    fn make_and_ready(&mut self, name: &'static str) {
        let Some(table) = self.owner.table(&mut self.source, name, self.step) else { return };
        // What is ready holds all that it should: the source was told of everything.
        if !self.owner.may_be_ready(name, self.step) || self.owner.ready.contains(name) {
            return;
        }
        while self.owner.is_behind(name) {
            self.tell_next_call();
        }
        self.trace.note(|| format!("{name} is ready"));
        self.source.ready(table);
        self.owner.ready.insert(name);
        let waited = self.nodes.iter().any(|node| node.link.is_some());
        self.seen.note_if(waited, Hazard::ReadyLate);
    }

    fn change(&mut self) {
        let before = self.owner.version;
        let told = self.owner.change(&mut self.rng, self.step, &mut self.seen);
        self.changes += u32::from(self.owner.version > before);
        if told {
            while self.tell_next_call() {}
        }
    }

    /// Data changes, and the source is told so, between the snapshot of it and its sending.
    fn touch_what_is_read(&mut self, node: usize) {
        let asked = self.nodes[node].link.as_ref().and_then(|link| link.asked.as_ref());
        let Some(Asked::Snapshot { request, .. }) = asked else { return };
        let table = &self.source.store().tables()[usize::from(request.entry.table)];
        self.owner.touch(&item_of(&table.name, &request.opcode));
        while self.tell_next_call() {}
    }

    fn tell_next(&mut self) {
        self.tell_next_call();
    }

    /// Tells the source of the next change that it was not told of; answers whether there was one.
    fn tell_next_call(&mut self) -> bool {
        let Some(call) = self.owner.next_call() else { return false };
        self.trace.note(|| format!("owner: {call:?}"));
        let name = call.item().0;
        let table = self.owner.table(&mut self.source, name, self.step).expect("made before it changed");
        let before = self.source.store().last_change();
        let unsent = matches!(call, Call::Remove(_)).then(|| self.coalesced_and_tombstones());
        for link in self.nodes.iter().filter_map(|node| node.link.as_ref()) {
            let resends = link.ring.iter().filter(|record| record.resent);
            let beside = resends.filter(|record| record.item.as_ref() == Some(call.item())).count();
            self.seen.note_times(Hazard::ResendBesideNewerChange, beside as u64);
        }
        let (nodes, rng, ring_records) = (&self.nodes, &mut self.rng, self.ring_records);
        let mut rings = Rings { nodes, rng, ring_records, offered: Vec::new() };
        self.owner.tell(&call, &mut self.source, table, &mut rings, &mut self.seen);
        let offered = rings.offered;
        self.seen.note_times(Hazard::SentAtOnce, offered.len() as u64);
        for (node, staged) in offered {
            self.put(node, staged, |_| ());
        }
        if let Some((coalesced, tombstones)) = unsent {
            let after = self.coalesced_and_tombstones();
            let forgotten = after.0 > coalesced && after.1 == tombstones;
            self.seen.note_if(forgotten && self.owner.keeps_newest(name), Hazard::RemovedUnsent);
        }
        self.note_crossings(before);
        true
    }

    fn coalesced_and_tombstones(&self) -> (u64, usize) {
        let sessions = self.nodes.iter().filter_map(|node| node.link.as_ref());
        let states = sessions.filter_map(|link| self.source.session_state(link.session));
        states.fold((0, 0), |sum, state| (sum.0 + state.counters.coalesced, sum.1 + state.tombstones))
    }

    fn note_crossings(&mut self, before: ChangeNumber) {
        let after = self.source.store().last_change();
        let halves = after.value() / (1 << 31) - before.value() / (1 << 31);
        let wraps = after.value() / (1 << 32) - before.value() / (1 << 32);
        self.seen.note_times(Hazard::Crossed31, halves - wraps);
        self.seen.note_times(Hazard::Wrapped, wraps);
    }

    /// As if so many changes had been made elsewhere that sequence numbers come near those of before, or half-way round.
    fn skip_changes(&mut self) {
        let distance = if self.rng.bool() { 1u64 << 31 } else { 1 << 32 };
        let unacked = self.nodes.iter().filter_map(|node| node.link.as_ref());
        let unacked = unacked.filter_map(|link| self.source.session_state(link.session));
        let waits = unacked.map(|state| state.unacked).sum::<usize>() > 0;
        let hazard = if distance == 1 << 31 { Hazard::UnackedAcross31 } else { Hazard::UnackedAcross32 };
        self.seen.note_if(waits, hazard);
        let before = self.source.store().last_change();
        self.trace.note(|| format!("about {distance} changes elsewhere"));
        self.source.skip_changes(distance - self.rng.u64(..40));
        self.note_crossings(before);
    }

    /// Begins a flush, in place of one that has waited for too long if need be.
    fn flush(&mut self) {
        self.owner.tell_all();
        while self.tell_next_call() {}
        self.give_up_overrun();
        let flush = self.rng.usize(..self.flushes.len());
        if self.flushes[flush].take().is_some() {
            self.source.end_flush(flush);
        }
        let only = self.rng.bool().then(|| self.rng.usize(..self.nodes.len()));
        let links = self.nodes.iter().enumerate().filter(|(at, _)| only.is_none_or(|only| only == *at));
        let links = links.filter_map(|(at, node)| Some((at, node.link.as_ref()?)));
        let (mut left, mut sessions) = (Vec::new(), Vec::new());
        for (at, link) in links {
            left.push((at, link.number));
            sessions.push(link.session);
        }
        match (only, sessions.first()) {
            (Some(_), Some(&session)) => self.source.start_flush(flush, Some(session)),
            (Some(_), None) => return,
            (None, _) => self.source.start_flush(flush, None),
        }
        self.trace.note(|| format!("flush {flush} of {left:?}"));
        let states = sessions.into_iter().filter_map(|session| self.source.session_state(session));
        let replaying = states.filter(|state| state.replaying).count();
        self.seen.note_times(Hazard::FlushInReplay, replaying as u64);
        let mut tables = TABLES.to_vec();
        tables.retain(|table| self.owner.keeps_newest(table) || self.owner.ready.contains(table));
        let mut items = self.owner.items();
        items.retain(|item, _| tables.contains(&item.0));
        self.flushes[flush] = Some(Flush { tables, items, version: self.owner.version, left });
    }

    /// Whom a flush waits for no more has applied all that was there when it began, or something newer.
    fn check_flushes(&mut self) {
        for (number, slot) in self.flushes.iter_mut().enumerate() {
            let Some(flush) = slot else { continue };
            flush.left.retain(|&(at, link_number)| {
                let node = &self.nodes[at];
                let Some(link) = node.link.as_ref().filter(|link| link.number == link_number) else {
                    return false;
                };
                if self.source.flush_left(link.session, number) > 0 {
                    return true;
                }
                self.seen.note(Hazard::FlushDone);
                for (item, version) in flush.items.iter().filter(|(item, _)| node.wants(item)) {
                    let applied = node.app.items.get(item).is_some_and(|held| held >= version);
                    assert!(
                        applied || self.owner.was_removed(item, *version),
                        "{item:?} was flushed by {number} and not applied by {at}"
                    );
                }
                for item in node.app.items.keys().filter(|item| node.app.this_link.contains(*item)) {
                    let covered = flush.tables.contains(&item.0);
                    let known = flush.items.contains_key(item) || node.app.items[item] > flush.version;
                    assert!(known || !covered, "the remove of {item:?} was flushed and not applied");
                }
                false
            });
            if flush.left.is_empty() {
                *slot = None;
                self.source.end_flush(number);
            }
        }
    }

    /// What the source keeps is bounded by what there is, and by the removes that a destination may owe.
    fn check_memory(&self) {
        let tables = self.source.store().tables();
        let live: usize = tables.iter().map(|table| table.live as usize).sum();
        let max_tombstones = self.config.max_tombstones;
        let mut entries = 0;
        for link in self.nodes.iter().filter_map(|node| node.link.as_ref()) {
            let state = self.source.session_state(link.session).expect("not overrun, or given up");
            assert!(state.tombstones <= max_tombstones, "{} tombstones", state.tombstones);
            assert!(state.unacked <= live + state.tombstones + 2 * TABLES.len(), "{} entries", state.unacked);
            entries += state.unacked;
        }
        for table in tables.iter().filter(|table| !table.keeps_all()) {
            assert!(table.live as usize <= entries, "{} items without an entry", table.live);
            assert!(table.changed_len() <= max_tombstones, "{} changes noted", table.changed_len());
        }
    }

    /// A session that has too many tombstones is gone; its link is given up.
    fn give_up_overrun(&mut self) {
        for node in 0..self.nodes.len() {
            let link = self.nodes[node].link.as_ref();
            if link.is_some_and(|link| self.source.is_overrun(link.session)) {
                self.seen.note(Hazard::Overrun);
                self.break_link(node);
            }
        }
    }

    fn is_quiet(&self) -> bool {
        self.nodes.iter().all(|node| {
            let settled = node.app.tokens.is_empty() && !node.core.has_unwanted();
            node.link.as_ref().is_some_and(|link| {
                let state = self.source.session_state(link.session).expect("not overrun, or given up");
                settled && state.unacked == 0 && !state.replaying && node.core.is_all_synced()
            })
        }) && self.flushes.iter().all(Option::is_none)
    }

    fn check_end(&mut self) {
        let truth = self.owner.items();
        for at in 0..self.nodes.len() {
            let session = self.nodes[at].link.as_ref().unwrap().session;
            self.collect(session);
            let node = &self.nodes[at];
            let mut expected = truth.clone();
            expected.retain(|item, _| node.wants(item));
            assert_eq!(node.app.items, expected, "destination {at}");
            let held: usize = TABLES.iter().map(|name| node.core.items(name).len()).sum();
            assert_eq!(held, expected.len());
            for ((table, opcode), version) in expected.iter().filter(|_| !node.defers) {
                assert_eq!(node.core.value(table, opcode), Some(&version.to_ne_bytes()[..]));
            }
            let state = self.source.session_state(session).unwrap();
            assert_eq!((state.tombstones, state.failing, state.pointers), (0, 0, 0));
            assert_eq!((node.core.stats().owed, node.core.stats().items), (0, expected.len() as u64));
        }
        for table in self.source.store().tables() {
            let kept = |value: &Value| table.keeps_all() && value.is_live();
            let stale = table
                .items()
                .iter()
                .filter(|item| !matches!(item.value, Value::Vacant) && !kept(&item.value));
            assert_eq!(stale.count(), 0, "nothing is kept for acks that nobody owes");
            let opcodes = usize::from(GROUPS) * usize::from(KEYS);
            assert!(table.items().len() <= opcodes, "a removed item's place is used again");
        }
    }
}

impl Trace {
    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            lines.push_back(line());
            if lines.len() > TRACED_LINES {
                lines.pop_front();
            }
        }
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().flatten().try_for_each(|line| writeln!(f, "  {line}"))
    }
}
