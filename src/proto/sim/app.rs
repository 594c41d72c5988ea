//! The application of a destination, which checks all that it is told.

use std::collections::HashSet;

use super::super::destination::{AckToken, Event};
use super::owner::{Items, Owner};
use super::seen::{Hazard, Seen};
use super::{Item, TABLES, item_of};
use crate::subscription::Subscription;

/// What the application of a destination has, and what it was told.
#[derive(Default)]
pub(super) struct App {
    pub(super) items: Items,
    /// Changes of this epoch that it took.
    told: HashSet<(Item, u64)>,
    synced: HashSet<String>,
    /// Items that were set since the present epoch began.
    this_epoch: HashSet<Item>,
    /// Items that were set on the present link.
    pub(super) this_link: HashSet<Item>,
    /// Acks that were put off.
    pub(super) tokens: Vec<Deferred>,
    /// Items that are gone here, and of which the ack of that was put off and not taken: it may be told again, by a later
    /// remove or a sweep.
    told_gone: HashSet<Item>,
    /// Opcodes whose changes it does not take for now.
    pub(super) poison: Option<Item>,
}

/// A change whose ack was put off, and what to go back to if it is refused.
pub(super) struct Deferred {
    pub(super) token: AckToken,
    item: Item,
    change: u64,
    before: Option<u64>,
    was_this_epoch: bool,
    was_this_link: bool,
    was_told_gone: bool,
    /// The epoch and the number of the link that it came on.
    pub(super) epoch: u64,
    pub(super) link: u64,
}

/// The record in hand, and what is drawn for it.
pub(super) struct Circumstances<'a> {
    pub(super) owner: &'a Owner,
    pub(super) subscription: &'a Subscription,
    /// The full number of the change in the record.
    pub(super) change: u64,
    pub(super) epoch: u64,
    pub(super) link: u64,
    /// Drawn once per record: a sweep hands over its items in no particular order.
    pub(super) salt: u32,
    /// What there was when the destination attached, and the version then, if the source knew all of it.
    pub(super) at_attach: Option<&'a (Items, u64)>,
    pub(super) faults: bool,
    /// Some acks are put off.
    pub(super) defers: bool,
}

impl App {
    /// A new link, of a new epoch or not.
    pub(super) fn attach(&mut self, restarted: bool) {
        if restarted {
            self.told.clear();
            self.this_epoch.clear();
        }
        self.synced.clear();
        self.this_link.clear();
    }

    /// What the handler does. Answers whether it took the event.
    pub(super) fn handle(&mut self, event: Event<'_>, at: &Circumstances<'_>, seen: &mut Seen) -> bool {
        if at.faults && self.fails(at.salt, &event) {
            seen.note(Hazard::HandlerFailed);
            return false;
        }
        match event {
            Event::Set { table, opcode, value, replaced, .. } => {
                let item = item_of(table, opcode);
                let version = u64::from_ne_bytes(value.try_into().unwrap());
                let before = self.items.get(&item).copied();
                self.check_set(&item, before, version, replaced, at);
                seen.note_if(replaced, Hazard::Replaced);
                self.defer_or_not(&event, &item, before, at);
                self.told_gone.remove(&item);
                self.this_epoch.insert(item.clone());
                self.this_link.insert(item.clone());
                self.items.insert(item, version);
            }
            Event::Removed { table, opcode, .. } => {
                let item = item_of(table, opcode);
                let held = self.items.get(&item).copied();
                let told = self.told_gone.contains(&item);
                assert!(held.is_some() || told, "only what was handed over is removed: {item:?}");
                if let Some(held) = held {
                    check_removed(&item, held, at);
                }
                if self.defer_or_not(&event, &item, held, at) {
                    self.told_gone.insert(item.clone());
                } else {
                    self.told_gone.remove(&item);
                }
                self.items.remove(&item);
                if at.owner.has(&item) {
                    // It was not wanted: if it is wanted again, the same change is told again.
                    self.told.retain(|(told, _)| *told != item);
                }
            }
            Event::Synced { table } => {
                assert!(self.synced.insert(table.to_string()), "{table} was synced twice in one attach");
                assert!(at.owner.ready.contains(table), "{table} was synced and is not ready");
                self.check_synced(table, at);
            }
            Event::SourceLost | Event::SourceFound { .. } => unreachable!("the link tells these"),
        }
        true
    }

    /// The application refuses what it had put off, and goes back to what it had.
    pub(super) fn go_back(&mut self, deferred: Deferred) {
        let Deferred { item, change, before, was_this_epoch, was_this_link, was_told_gone, .. } = deferred;
        self.told.remove(&(item.clone(), change));
        if was_told_gone {
            self.told_gone.insert(item.clone());
        } else {
            self.told_gone.remove(&item);
        }
        if !was_this_epoch {
            self.this_epoch.remove(&item);
        }
        if !was_this_link {
            self.this_link.remove(&item);
        }
        match before {
            Some(version) => self.items.insert(item, version),
            None => self.items.remove(&item),
        };
    }

    fn check_set(
        &mut self,
        item: &Item,
        before: Option<u64>,
        version: u64,
        replaced: bool,
        at: &Circumstances<'_>,
    ) {
        assert!(self.told.insert((item.clone(), at.change)), "change {} was handed over twice", at.change);
        let wanted = at.subscription.of(item.0).is_some_and(|selection| selection.takes(&item.1));
        assert!(wanted, "{item:?} is not wanted");
        assert!(before.is_some() || !replaced, "{item:?} was told gone, or never told");
        let Some(old) = before else { return };
        assert!(old <= version, "old value {version} of {item:?} after {old}");
        let gone = at.owner.was_removed_between(item, old, version);
        let same_epoch = self.this_epoch.contains(item);
        // An enumeration may have named what the source was told of later: then the remove before it is told with it again.
        let named_before = old == version && !at.owner.keeps_newest(item.0);
        assert!(!replaced || (gone && same_epoch) || named_before, "{item:?} was not replaced");
        // A source that does not keep its items may not know that there was one before.
        let known = at.owner.keeps_newest(item.0);
        assert!(replaced || !gone || !same_epoch || !known, "{item:?} was replaced, and nobody said so");
    }

    /// Nothing is here that had gone before the attach and has not come back since.
    fn check_synced(&self, table: &str, at: &Circumstances<'_>) {
        let Some((there, version)) = at.at_attach else { return };
        for item in self.items.keys().filter(|item| item.0 == table) {
            let is_known = there.contains_key(item) || self.this_link.contains(item);
            let moved_since = at.owner.has(item) || at.owner.was_removed(item, *version);
            assert!(
                is_known || moved_since,
                "{item:?} is gone at the source, and here when {table} is synced"
            );
        }
    }

    /// Puts the ack off, one time in three; answers whether it did.
    fn defer_or_not(
        &mut self,
        event: &Event<'_>,
        item: &Item,
        before: Option<u64>,
        at: &Circumstances<'_>,
    ) -> bool {
        if !at.defers || !mixed(at.salt.rotate_left(7), item).is_multiple_of(3) {
            return false;
        }
        let Some(token) = event.defer_ack() else { return false };
        self.tokens.push(Deferred {
            token,
            item: item.clone(),
            change: at.change,
            before,
            was_this_epoch: self.this_epoch.contains(item),
            was_this_link: self.this_link.contains(item),
            was_told_gone: self.told_gone.contains(item),
            epoch: at.epoch,
            link: at.link,
        });
        true
    }

    /// The ack of a change that was put off is taken.
    pub(super) fn settle(&mut self, deferred: &Deferred) {
        self.told_gone.remove(&deferred.item);
    }

    /// Whether the handler fails: for one item always, for others one time in twenty, by a salt and the item.
    fn fails(&self, salt: u32, event: &Event<'_>) -> bool {
        let item = match event {
            Event::Set { table, opcode, .. } | Event::Removed { table, opcode, .. } => item_of(table, opcode),
            _ => return salt.is_multiple_of(20),
        };
        self.poison.as_ref() == Some(&item) || mixed(salt, &item).is_multiple_of(20)
    }
}

fn check_removed(item: &Item, held: u64, at: &Circumstances<'_>) {
    if at.subscription.of(item.0).is_none_or(|selection| !selection.takes(&item.1)) {
        return;
    }
    let gone = at.owner.was_removed(item, held);
    assert!(gone || !at.owner.has(item), "{item:?} was removed here but not at the source");
    assert!(
        at.owner.ready.contains(item.0) || at.owner.was_removed(item, held.max(at.owner.life_began)),
        "{item:?} was removed because its source has not loaded it yet"
    );
}

fn mixed(salt: u32, item: &Item) -> u32 {
    let table = TABLES.iter().position(|name| *name == item.0).unwrap() as u32;
    let bytes = item.1.as_bytes().iter();
    bytes.fold(salt ^ table, |sum, byte| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193).rotate_left(5))
}
