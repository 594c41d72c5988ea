//! What the models are checked against: what the source's application has done, and what the destination's was told.
//!
//! A change of an item has a *version*, which counts all changes and is the value that the item is set to. So what the
//! destination is told says by itself how old it is, whatever numbers the protocol gives it.

use super::super::destination::Event;

/// Items, which are their opcodes as well.
pub(super) const KEYS: usize = 2;
pub(super) const TABLES: [&str; KEYS] = ["a", "b"];

/// 0 for an item that is not there.
pub(super) type Version = u8;

/// What is kept of a table, and how its items are given to the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The source keeps the values.
    Data,
    /// The source keeps pointers to them.
    Pointers,
    /// The application keeps the items and enumerates them.
    Enumerated,
}

/// The source's application.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Truth {
    pub(super) items: [Version; KEYS],
    /// What the pointers lead to.
    pub(super) pointed_to: [Version; KEYS],
    /// The version counter.
    pub(super) version: Version,
    /// By item, a bit for each version at which it was removed.
    removed: [u32; KEYS],
    /// The newest version that the source was told of.
    pub(super) told: [Version; KEYS],
    /// Tables that this life of the source has called ready.
    pub(super) ready: [bool; KEYS],
    /// The version counter when this life began.
    life_began: Version,
}

/// The destination's application, and what it was told in the present epoch.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct App {
    pub(super) items: [Version; KEYS],
    /// The newest version that each item was set to in this epoch.
    newest: [Version; KEYS],
}

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Subject {
    Item(usize),
    Synced,
}

impl Truth {
    /// The item has a new value, which a pointer to it leads to.
    pub(super) fn set(&mut self, key: usize) {
        self.set_data(key);
        self.pointed_to[key] = self.version;
    }

    /// The item has a new value, and no pointer leads there.
    pub(super) fn set_data(&mut self, key: usize) {
        self.version += 1;
        self.items[key] = self.version;
    }

    pub(super) fn remove(&mut self, key: usize) {
        self.version += 1;
        self.items[key] = 0;
        self.removed[key] |= 1 << self.version;
    }

    /// The source is told of the item as it is.
    pub(super) fn tell(&mut self, key: usize) {
        self.told[key] = self.changed_at(key);
    }

    pub(super) fn is_told(&self, key: usize) -> bool {
        self.told[key] == self.changed_at(key)
    }

    /// The version at which the item was changed or removed last.
    fn changed_at(&self, key: usize) -> Version {
        let removed = self.removed[key].checked_ilog2().unwrap_or(0) as Version;
        self.items[key].max(removed)
    }

    /// A new life of the source begins, without items.
    pub(super) fn begin_life(&mut self) {
        self.version += 1;
        self.life_began = self.version;
        self.ready = [false; KEYS];
    }

    /// The new life does not load the item.
    pub(super) fn lose(&mut self, key: usize) {
        self.items[key] = 0;
        self.removed[key] |= 1 << self.life_began;
    }

    fn was_removed_after(&self, key: usize, version: Version) -> bool {
        self.removed[key] >> version > 1
    }

    fn was_removed_between(&self, key: usize, old: Version, new: Version) -> bool {
        self.removed[key] & ((1 << new) - 1) & !((1 << old) - 1) != 0
    }

    /// An ack has deleted the item's entry: is the newest change that the source was told of applied?
    pub(super) fn check_acked(&self, key: usize, app: &App) -> Result<(), String> {
        let (held, told) = (app.items[key], self.told[key]);
        let applied = if held == 0 { self.removed[key] & (1 << told) != 0 } else { held >= told };
        let what =
            || format!("the entry of item {key} went at version {told}, and the destination has {held}");
        if applied { Ok(()) } else { Err(what()) }
    }
}

impl App {
    /// The destination has attached to another life of the source.
    pub(super) fn begin_epoch(&mut self) {
        self.newest = [0; KEYS];
    }

    /// The destination is told an event; `at_end` says that an end marker was delivered. Answers whether a set was told as
    /// replaced.
    pub(super) fn handle(
        &mut self,
        event: &Event<'_>,
        truth: &Truth,
        kind: Kind,
        at_end: bool,
    ) -> Result<bool, String> {
        match event {
            Event::Set { opcode, value, replaced, .. } => {
                let (key, version) = (usize::from(opcode.as_bytes()[0]), value[0]);
                self.handle_set(key, version, *replaced, truth, kind).map(|()| *replaced)
            }
            Event::Removed { table, opcode, .. } => {
                let key = usize::from(opcode.as_bytes()[0]);
                let table = TABLES.iter().position(|name| name == table).expect("one of ours");
                self.handle_removed(key, truth, truth.ready[table], at_end).map(|()| false)
            }
            _ => Ok(false),
        }
    }

    fn handle_set(
        &mut self,
        key: usize,
        version: Version,
        replaced: bool,
        truth: &Truth,
        kind: Kind,
    ) -> Result<(), String> {
        let (held, newest) = (self.items[key], self.newest[key]);
        if version < newest {
            return Err(format!("version {version} of item {key} came after {newest}"));
        }
        // Of other tables a value may have two changes: it was read before the second was told.
        if kind == Kind::Data && version == newest {
            return Err(format!("version {version} of item {key} was handed over twice"));
        }
        if version < held {
            return Err(format!("version {version} of item {key} came in place of {held}"));
        }
        let was_gone = held != 0 && newest != 0 && truth.was_removed_between(key, held, version);
        if kind == Kind::Data && replaced != was_gone {
            return Err(format!(
                "version {version} of item {key} in place of {held}: replaced is {replaced}"
            ));
        }
        self.items[key] = version;
        self.newest[key] = version;
        Ok(())
    }

    fn handle_removed(&mut self, key: usize, truth: &Truth, ready: bool, at_end: bool) -> Result<(), String> {
        let held = std::mem::take(&mut self.items[key]);
        if held == 0 {
            return Err(format!("item {key} was removed and not there"));
        }
        if truth.items[key] != 0 && !truth.was_removed_after(key, held) {
            return Err(format!("version {held} of item {key} was removed, and not at the source"));
        }
        let by_this_life = truth.was_removed_after(key, held.max(truth.life_began));
        if !(ready || (by_this_life && !at_end)) {
            return Err(format!("item {key} was removed, and its source has not loaded it"));
        }
        Ok(())
    }
}

pub(super) fn subject(event: &Event<'_>) -> Subject {
    match event {
        Event::Set { opcode, .. } | Event::Removed { opcode, .. } => {
            Subject::Item(usize::from(opcode.as_bytes()[0]))
        }
        _ => Subject::Synced,
    }
}
