//! A destination's core whose source sends any records in any order.
//!
//! An input says whether values are kept, and then what happens: links come and go, records of all kinds come, almost right
//! ones mostly, and the application applies, fails, puts acks off, gives or refuses them.

use std::collections::{BTreeMap, BTreeSet};

use super::{Choices, Saw};
use crate::opcode::Opcode;
use crate::proto::destination::{AckToken, DestinationCore, Event};
use crate::seq::{ChangeNumber, SyncSeq};
use crate::subscription::Subscription;
use crate::wire::{Frame, Payload};

const MAX_STEPS: usize = 512;
const NAMES: [&str; 3] = ["a", "b", ""];

type ItemName = (String, Vec<u8>);

struct World<'a> {
    choices: Choices<'a>,
    keeps_values: bool,
    core: DestinationCore,
    link: Option<Link>,
    epoch: Option<u64>,
    app: App,
    /// And the tables of their items.
    tokens: Vec<(AckToken, String)>,
    newest_change: u64,
}

/// What came on the present link.
#[derive(Default)]
struct Link {
    next_ordinal: u64,
    tables: BTreeMap<u16, String>,
    received: BTreeMap<u64, SyncSeq>,
    /// What must not be acknowledged: the handler has failed, or there was nothing to apply. Of a change whose ack was put off
    /// it says which, until that is given.
    unapplied: BTreeMap<u64, Option<(ItemName, ChangeNumber)>>,
    acked: BTreeSet<u64>,
}

/// The application, as its handler sees it.
#[derive(Default)]
struct App {
    items: BTreeMap<ItemName, Held>,
    /// How many epochs there were.
    epochs: u32,
}

#[derive(Clone)]
struct Held {
    value: Vec<u8>,
    /// The change applied last, and in which epoch; `None` if a refusal makes that unsure.
    change: Option<(ChangeNumber, u32)>,
    /// The newest is a remove whose ack was put off.
    leaves: bool,
}

/// What the handler answers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Applied,
    Failed,
    Deferred,
}

pub(super) fn run(input: &[u8], saw: Saw<'_>) {
    let mut choices = Choices::new(input);
    let keeps_values = choices.one_in(4);
    let mut world = World {
        choices,
        keeps_values,
        core: DestinationCore::new(keeps_values, Subscription::all()),
        link: None,
        epoch: None,
        app: App::default(),
        tokens: Vec::new(),
        newest_change: 1,
    };
    world.attach(saw);
    let mut steps = 0;
    while !world.choices.is_used_up() && steps < MAX_STEPS {
        steps += 1;
        world.step(saw);
        world.check();
    }
    while world.take_ack(saw) {}
}

impl World<'_> {
    fn step(&mut self, saw: Saw<'_>) {
        match self.choices.byte() % 32 {
            0 if self.choices.one_in(2) => self.attach(saw),
            1 if self.choices.one_in(2) => {
                self.core.detach();
                self.link = None;
            }
            2..=5 => {
                self.take_ack(saw);
            }
            6 | 7 => self.give_ack(saw),
            8 => self.refuse_ack(saw),
            9 => {
                let subscription = self.subscription();
                self.core.set_subscription(subscription);
            }
            10 => self.sweep(saw),
            11 => {
                let record = self.choices.bytes(40);
                self.core.prefetch([record].into_iter());
                self.receive(record, saw);
            }
            12 => self.receive_table(saw),
            _ => {
                let record = self.record();
                self.core.prefetch([&record[..]].into_iter());
                self.receive(&record, saw);
            }
        }
    }

    /// A link, on which two tables are announced, mostly.
    fn attach(&mut self, saw: Saw<'_>) {
        let epoch = self.choices.below(3);
        let restarted = self.core.attach(epoch);
        assert_eq!(restarted, self.epoch.is_some_and(|before| before != epoch));
        if self.epoch != Some(epoch) {
            self.app.epochs += 1;
        }
        self.epoch = Some(epoch);
        self.link = Some(Link::default());
        if !self.choices.one_in(4) {
            for (number, name) in (0..).zip(&NAMES[..2]) {
                let record = self.frame(number, Payload::Table { name, items: 1 });
                self.receive(&record, saw);
            }
        }
    }

    fn subscription(&mut self) -> Subscription {
        let name = NAMES[self.choices.below(3) as usize];
        match self.choices.below(4) {
            0 => Subscription::none(),
            1 => Subscription::none().table(name),
            2 => Subscription::none().prefix(name, self.choices.byte()).expect("a short prefix"),
            _ => Subscription::all(),
        }
    }

    fn receive_table(&mut self, saw: Saw<'_>) {
        let number = self.choices.below(4) as u16;
        let number = if self.choices.one_in(32) { self.choices.number(2) as u16 } else { number };
        let items = self.choices.below(8);
        // Room is made for so many, which takes time.
        let items = if self.choices.one_in(64) { self.choices.number(8) } else { items };
        let name = NAMES[self.choices.below(3) as usize];
        let record = self.frame(number, Payload::Table { name, items });
        self.receive(&record, saw);
    }

    /// A record of an item or an end, as a source could send it, or with a byte of it changed.
    fn record(&mut self) -> Vec<u8> {
        let table = if self.choices.one_in(8) { 2 } else { self.choices.below(2) as u16 };
        let opcode = [self.choices.below(6) as u8];
        let created = ChangeNumber::from_wire(self.newest_change.saturating_sub(self.choices.below(4)));
        let value = self.choices.bytes(2);
        let payload = match self.choices.below(8) {
            0 | 1 => Payload::Remove { opcode: &opcode },
            2 => Payload::Named { opcode: &opcode },
            3 => {
                let next = self.link.as_ref().map_or(0, |link| link.next_ordinal);
                Payload::End { oldest_unacked: next.saturating_sub(self.choices.below(8)) }
            }
            _ => Payload::Set { opcode: &opcode, value, created },
        };
        let mut record = self.frame(table, payload);
        if self.choices.one_in(32) {
            let at = self.choices.below(record.len() as u64) as usize;
            record[at] = self.choices.byte();
        }
        record
    }

    fn frame(&mut self, table: u16, payload: Payload<'_>) -> Vec<u8> {
        let next = self.link.as_ref().map_or(0, |link| link.next_ordinal);
        let ordinal = match self.choices.below(64) {
            0 => next + self.choices.below(4),
            1 => next.saturating_sub(self.choices.below(4)),
            2 => self.choices.number(4),
            _ => next,
        };
        let change = match self.choices.below(16) {
            0 => self.newest_change.saturating_sub(self.choices.below(8)),
            1 => self.choices.number(8),
            _ => self.newest_change.wrapping_add(1 + self.choices.below(2)),
        };
        self.newest_change = change;
        Frame { change: ChangeNumber::from_wire(change), ordinal, table, payload }.to_bytes()
    }

    fn receive(&mut self, record: &[u8], saw: Saw<'_>) {
        let next = self.link.as_ref().map_or(0, |link| link.next_ordinal);
        let decoded = Frame::decode(record, next);
        let World { choices, core, app, tokens, link, keeps_values, .. } = self;
        let (items_before, failed_before) = (app.items.len(), core.stats().failed);
        let mut outcomes = Vec::new();
        let outcome = core.handle_record(record, |event| {
            let frame = decoded.as_ref().expect("what cannot be decoded is not told");
            let table = link.as_ref().and_then(|link| link.tables.get(&frame.table));
            let answer = app.handle(&event, Some((frame, table.expect("no table"))), choices, tokens);
            assert!(answer != Answer::Deferred || !*keeps_values, "a replica puts nothing off");
            outcomes.push(answer);
            answer != Answer::Failed
        });
        let Some(link) = link else {
            assert!(outcome.is_ok() && outcomes.is_empty(), "without a link there is nothing");
            return;
        };
        let frame = match (&outcome, &decoded) {
            (Ok(()), Ok(frame)) => frame,
            (Err(error), Err(expected)) => {
                assert!(error == expected && outcomes.is_empty(), "{error}");
                return saw("record that is none");
            }
            _ => panic!("{outcome:?} of {decoded:?}"),
        };
        if frame.ordinal < next {
            assert!(outcomes.is_empty());
            return saw("old record");
        }
        if frame.ordinal > next {
            saw("gap");
        }
        link.next_ordinal = frame.ordinal + 1;
        link.received.insert(frame.ordinal, frame.change.seq());
        if let Payload::Table { name, .. } = frame.payload {
            link.tables.insert(frame.table, name.to_string());
            return saw("table announced");
        }
        let Some(table) = link.tables.get(&frame.table) else {
            assert!(outcomes.is_empty());
            link.unapplied.insert(frame.ordinal, None);
            return saw("record of no table");
        };
        let failed = core.stats().failed > failed_before;
        assert_eq!(failed, outcomes.contains(&Answer::Failed));
        let opcode = match frame.payload {
            Payload::Set { opcode, .. } | Payload::Remove { opcode } | Payload::Named { opcode } => opcode,
            _ => &[],
        };
        if failed || matches!(frame.payload, Payload::Named { .. }) {
            link.unapplied.insert(frame.ordinal, None);
        } else if outcomes == [Answer::Deferred] && !matches!(frame.payload, Payload::End { .. }) {
            let item = (table.clone(), opcode.to_vec());
            link.unapplied.insert(frame.ordinal, Some((item, frame.change)));
        }
        saw(match frame.payload {
            Payload::End { .. } if failed => "sweep failed",
            Payload::End { .. } if app.items.len() < items_before => "sweep",
            Payload::End { .. } if outcomes.is_empty() => "end that is too early, or known",
            Payload::End { .. } => "end",
            Payload::Named { .. } => "named",
            _ if failed => "handler failed",
            _ if outcomes == [Answer::Deferred] => "ack put off",
            _ if outcomes.is_empty() => "duplicate",
            Payload::Set { .. } => "set applied",
            _ => "remove applied",
        });
    }

    /// S5: an ack is of records that came, and that were applied.
    fn take_ack(&mut self, saw: Saw<'_>) -> bool {
        let Some(ack) = self.core.poll_ack() else { return false };
        let link = self.link.as_mut().expect("acks are of a link");
        assert!(ack.first <= ack.last);
        let covered: Vec<(u64, SyncSeq)> =
            link.received.range(ack.first..=ack.last).map(|(at, seq)| (*at, *seq)).collect();
        assert_eq!(covered.len() as u64, ack.last - ack.first + 1, "an ack of what never came");
        assert_eq!(covered.first(), Some(&(ack.first, ack.first_seq)));
        assert_eq!(covered.last(), Some(&(ack.last, ack.last_seq)));
        for (ordinal, _) in covered {
            assert!(!link.unapplied.contains_key(&ordinal), "record {ordinal} was not applied");
            assert!(link.acked.insert(ordinal), "record {ordinal} was acknowledged twice");
        }
        self.core.handle_ack_sent();
        saw(if ack.first < ack.last { "ack of several" } else { "ack of one" });
        true
    }

    fn give_ack(&mut self, saw: Saw<'_>) {
        let Some((token, table)) = self.take_token() else { return };
        if !self.core.acknowledge(&token) {
            return saw("ack that nobody waits for");
        }
        let item = (table, token.opcode().as_bytes().to_vec());
        let held = self.app.items.get(&item).expect("what is owed an ack is held");
        if held.leaves {
            self.app.items.remove(&item);
        }
        if let Some(link) = &mut self.link {
            link.unapplied.retain(|_, change| {
                change.as_ref().is_none_or(|(of, change)| *of != item || change.seq() != token.seq())
            });
        }
        saw("ack given");
    }

    fn refuse_ack(&mut self, saw: Saw<'_>) {
        let Some((token, table)) = self.take_token() else { return };
        if !self.core.refuse(&token) {
            return saw("refusal that nobody waits for");
        }
        let item = (table, token.opcode().as_bytes().to_vec());
        let is_there = self.core.items(&item.0).any(|(opcode, _)| opcode == token.opcode());
        let held = self.app.items.get_mut(&item).expect("what is owed an ack is held");
        (held.change, held.leaves) = (None, false);
        if !is_there {
            self.app.items.remove(&item);
        } else {
            let _ = self.core.is_unnamed(&token);
        }
        saw("ack refused");
    }

    fn take_token(&mut self) -> Option<(AckToken, String)> {
        if self.tokens.is_empty() {
            return None;
        }
        let at = self.choices.below(self.tokens.len() as u64) as usize;
        Some(self.tokens.swap_remove(at))
    }

    fn sweep(&mut self, saw: Saw<'_>) {
        let World { choices, core, app, tokens, .. } = self;
        let flushes = choices.one_in(2);
        let before = app.items.len();
        let handler = |event: Event<'_>| app.handle(&event, None, choices, tokens) == Answer::Applied;
        if flushes {
            core.flush(handler);
        } else {
            core.sweep_unwanted(handler);
        }
        if self.app.items.len() < before {
            saw(if flushes { "flushed" } else { "swept what is not wanted" });
        }
    }

    /// The core, the application and the numbers hold the same.
    fn check(&self) {
        let mut items = 0;
        for table in self.core.tables() {
            for (opcode, value) in self.core.items(table) {
                let held = self.app.items.get(&(table.to_string(), opcode.as_bytes().to_vec()));
                let held = held.unwrap_or_else(|| panic!("{opcode} of {table} was never told"));
                assert!(!self.keeps_values || value == held.value, "{opcode} of {table} has another value");
                items += 1;
            }
        }
        let stats = self.core.stats();
        assert_eq!((items, self.app.items.len()), (stats.items, stats.items as usize));
        assert!(stats.owed <= self.tokens.len() as u64, "{} acks are owed", stats.owed);
    }
}

impl App {
    /// What the application does with an event, which a record has caused or nothing has that came.
    fn handle(
        &mut self,
        event: &Event<'_>,
        cause: Option<(&Frame<'_>, &String)>,
        choices: &mut Choices<'_>,
        tokens: &mut Vec<(AckToken, String)>,
    ) -> Answer {
        let wish = choices.below(8);
        if wish == 7 {
            return Answer::Failed;
        }
        let deferred = if wish == 6 { event.defer_ack() } else { None };
        let answer = if deferred.is_some() { Answer::Deferred } else { Answer::Applied };
        match *event {
            Event::Set { table, opcode, value, seq, .. } => {
                let (frame, name) = cause.expect("a set comes in a record");
                let Payload::Set { opcode: sent, value: sent_value, .. } = frame.payload else {
                    panic!("{event:?} from {frame:?}")
                };
                assert_eq!((table, opcode.as_bytes(), value), (&**name, sent, sent_value));
                assert_eq!(seq, frame.change.seq());
                self.check_order(table, opcode, frame.change);
                let change = Some((frame.change, self.epochs));
                self.items.insert(key(table, opcode), Held { value: value.to_vec(), change, leaves: false });
                tokens.extend(deferred.map(|token| (token, table.to_string())));
            }
            Event::Removed { table, opcode, seq, .. } => {
                assert!(self.items.contains_key(&key(table, opcode)), "{opcode} of {table} is not there");
                if let Some((frame, name)) = cause {
                    assert_eq!((table, seq), (&**name, frame.change.seq()));
                    if let Payload::Remove { opcode: sent } = frame.payload {
                        assert_eq!(opcode.as_bytes(), sent);
                        self.check_order(table, opcode, frame.change);
                    }
                }
                match (deferred, cause) {
                    (Some(token), Some((frame, _))) => {
                        let held = self.items.get_mut(&key(table, opcode)).expect("looked up above");
                        (held.change, held.leaves) = (Some((frame.change, self.epochs)), true);
                        tokens.push((token, table.to_string()));
                    }
                    _ => drop(self.items.remove(&key(table, opcode))),
                }
            }
            Event::Synced { table } => {
                let (frame, name) = cause.expect("a table is ended by a record");
                assert!(matches!(frame.payload, Payload::End { .. }) && table == &**name);
            }
            Event::SourceLost | Event::SourceFound { .. } => panic!("{event:?} is not the core's to tell"),
        }
        answer
    }

    /// Invariant 2 of the core.
    fn check_order(&self, table: &str, opcode: &Opcode, change: ChangeNumber) {
        let held = self.items.get(&key(table, opcode)).and_then(|held| held.change);
        if let Some((before, epoch)) = held
            && epoch == self.epochs
        {
            assert!(before < change, "change {change:?} of {opcode} after {before:?}");
        }
    }
}

fn key(table: &str, opcode: &Opcode) -> ItemName {
    (table.to_string(), opcode.as_bytes().to_vec())
}
