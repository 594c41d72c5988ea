//! The application that has the items: its own state, what it has told the source of it, and what it knows of the past.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::super::source::{Outlet, SessionId, SourceCore};
use super::super::store::{NewValue, OtherValue, TableId};
use super::seen::{Hazard, Seen};
use super::{GROUPS, Item, KEYS, STEPS, TABLES};
use crate::opcode::{Opcode, ToOpcode};
use crate::retention::Retention;
use crate::snapshot::{Pointer, Snapshot, SnapshotResult};
use crate::wire::Frame;

pub(super) type Items = BTreeMap<Item, u64>;

pub(super) struct Owner {
    /// Counts changes; an item's value is the count at its newest change.
    pub(super) version: u64,
    /// What there is. Enumerators read it.
    own: Arc<Mutex<Items>>,
    /// Items whose values the source reads through a pointer.
    shared: BTreeMap<Item, Arc<SharedVersion>>,
    /// Those of them that have changed and of which the source was not told.
    untold: BTreeSet<Item>,
    /// Changes of the application's own state of which the source was not told yet.
    calls: VecDeque<Call>,
    /// For each item, the version at each of its removals.
    removed_at: BTreeMap<Item, Vec<u64>>,
    /// Tables that this life of the source has called ready.
    pub(super) ready: HashSet<&'static str>,
    /// The version when this life of the source began.
    pub(super) life_began: u64,
    plans: [TablePlan; TABLES.len()],
}

/// What this life of the source does with one of its tables.
#[derive(Clone, Copy, Default)]
struct TablePlan {
    keeps: Keeps,
    /// The step from which on it has the table, and that from which on it may be ready.
    made: u32,
    ready: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Keeps {
    #[default]
    Newest,
    /// The enumerator copies everything when it is asked.
    Copied,
    /// The enumerator notes the opcodes when it is asked, and reads each value when it is drawn.
    Drawn,
}

/// A change to tell the source.
#[derive(Debug)]
pub(super) enum Call {
    Set(Item, u64),
    /// The pointer is that of the time when the change was made: the item may have another by now.
    Share(Item, Arc<SharedVersion>),
    Touch(Item, Arc<SharedVersion>),
    Remove(Item),
}

/// A version that others read while it changes.
#[derive(Debug)]
pub(super) struct SharedVersion(AtomicU64);

impl Snapshot for SharedVersion {
    fn snapshot(&self, out: &mut Vec<u8>) -> SnapshotResult {
        // Relaxed: one thread.
        out.extend_from_slice(&self.0.load(Ordering::Relaxed).to_ne_bytes());
        Ok(())
    }
}

impl Owner {
    pub(super) fn new(rng: &mut fastrand::Rng) -> Owner {
        let mut owner = Owner {
            version: 0,
            own: Arc::default(),
            shared: BTreeMap::new(),
            untold: BTreeSet::new(),
            calls: VecDeque::new(),
            removed_at: BTreeMap::new(),
            ready: HashSet::new(),
            life_began: 0,
            plans: [TablePlan::default(); TABLES.len()],
        };
        owner.plan(rng, 0);
        owner
    }

    /// Draws what this life of the source does with its tables.
    fn plan(&mut self, rng: &mut fastrand::Rng, step: u32) {
        for plan in &mut self.plans {
            let keeps = [Keeps::Newest, Keeps::Newest, Keeps::Copied, Keeps::Drawn];
            let made = step + if rng.bool() { 0 } else { rng.u32(..STEPS) };
            let ready = made + if rng.bool() { 0 } else { rng.u32(..STEPS) };
            *plan = TablePlan { keeps: keeps[rng.usize(..keeps.len())], made, ready };
        }
    }

    pub(super) fn items(&self) -> Items {
        self.own.lock().unwrap().clone()
    }

    pub(super) fn has(&self, item: &Item) -> bool {
        self.own.lock().unwrap().contains_key(item)
    }

    /// Whether the item was removed since it had that version.
    pub(super) fn was_removed(&self, item: &Item, version: u64) -> bool {
        self.removed_at.get(item).is_some_and(|all| all.iter().any(|&at| at > version))
    }

    /// Whether the item was removed between two of its versions.
    pub(super) fn was_removed_between(&self, item: &Item, old: u64, new: u64) -> bool {
        self.removed_at.get(item).is_some_and(|all| all.iter().any(|at| (old..new).contains(at)))
    }

    pub(super) fn keeps_newest(&self, table: &str) -> bool {
        self.plan_of(table).keeps == Keeps::Newest
    }

    fn plan_of(&self, table: &str) -> TablePlan {
        self.plans[TABLES.iter().position(|name| *name == table).unwrap()]
    }

    /// The table of that name, if this life of the source has it at that step.
    pub(super) fn table(&self, source: &mut SourceCore, table: &'static str, step: u32) -> Option<TableId> {
        let plan = self.plan_of(table);
        (step >= plan.made).then(|| source.table(table, self.retention(table, plan.keeps)).unwrap())
    }

    fn retention(&self, table: &'static str, keeps: Keeps) -> Retention {
        let own = self.own.clone();
        let of_table = move || -> Vec<(Opcode, u64)> {
            let own = own.lock().unwrap();
            own.iter().filter(|((name, _), _)| *name == table).map(|((_, o), v)| (o.clone(), *v)).collect()
        };
        let own = self.own.clone();
        match keeps {
            Keeps::Newest => Retention::Newest,
            Keeps::Copied => Retention::unacked(move || {
                of_table().into_iter().map(|(opcode, version)| (opcode, version.to_ne_bytes()))
            }),
            Keeps::Drawn => Retention::unacked(move || {
                let own = own.clone();
                of_table().into_iter().filter_map(move |(opcode, _)| {
                    let version = own.lock().unwrap().get(&(table, opcode.clone())).copied()?;
                    Some((opcode, version.to_ne_bytes()))
                })
            }),
        }
    }

    pub(super) fn may_be_ready(&self, table: &str, step: u32) -> bool {
        let plan = self.plan_of(table);
        step >= plan.made.max(plan.ready)
    }

    /// From now on everything may be made and ready.
    pub(super) fn end_plans(&mut self) {
        for plan in &mut self.plans {
            (plan.made, plan.ready) = (0, 0);
        }
    }

    /// Changes something of its own, and answers whether the source is to be told at once. It is told later if there are
    /// others before it.
    pub(super) fn change(&mut self, rng: &mut fastrand::Rng, step: u32, seen: &mut Seen) -> bool {
        let table = TABLES[rng.usize(..TABLES.len())];
        if step < self.plan_of(table).made {
            return false;
        }
        let opcode = (rng.u8(..GROUPS), rng.u16(..KEYS)).to_opcode().unwrap();
        let item: Item = (table, opcode);
        let (there, shared) = (self.has(&item), self.shared.get(&item).cloned());
        let version = self.version + 1;
        let call = match rng.u32(..20) {
            0..7 if there => {
                self.own.lock().unwrap().remove(&item);
                self.shared.remove(&item);
                self.untold.remove(&item);
                self.removed_at.entry(item.clone()).or_default().push(version);
                Call::Remove(item)
            }
            7..10 => {
                self.own.lock().unwrap().insert(item.clone(), version);
                let cell = Arc::new(SharedVersion(AtomicU64::new(version)));
                seen.note_if(there && shared.is_none(), Hazard::KindChanged);
                self.shared.insert(item.clone(), cell.clone());
                self.untold.remove(&item);
                Call::Share(item, cell)
            }
            10..14 if shared.is_some() => {
                let cell = shared.expect("it has one");
                self.own.lock().unwrap().insert(item.clone(), version);
                cell.0.store(version, Ordering::Relaxed);
                if rng.bool() {
                    self.version = version;
                    self.untold.insert(item);
                    seen.note(Hazard::PointerChangedUntold);
                    return false;
                }
                self.untold.remove(&item);
                Call::Touch(item, cell.clone())
            }
            _ => {
                self.own.lock().unwrap().insert(item.clone(), version);
                seen.note_if(shared.is_some(), Hazard::KindChanged);
                self.shared.remove(&item);
                self.untold.remove(&item);
                Call::Set(item, version)
            }
        };
        self.version = version;
        self.calls.push_back(call);
        rng.u32(..4) > 0
    }

    /// Changes an item's pointed-to data, if it has any, and lines up the call that tells so.
    pub(super) fn touch(&mut self, item: &Item) {
        if let Some(cell) = self.shared.get(item) {
            self.version += 1;
            cell.0.store(self.version, Ordering::Relaxed);
            self.own.lock().unwrap().insert(item.clone(), self.version);
            self.untold.remove(item);
            self.calls.push_back(Call::Touch(item.clone(), cell.clone()));
        }
    }

    /// The next change that the source was not told of.
    pub(super) fn next_call(&mut self) -> Option<Call> {
        self.calls.pop_front()
    }

    /// Items of the table of which the source was not told yet.
    pub(super) fn is_behind(&self, table: &str) -> bool {
        self.calls.iter().any(|call| call.item().0 == table)
    }

    /// Whether the source was told of all changes of the application's own state.
    pub(super) fn is_all_told(&self) -> bool {
        self.calls.is_empty()
    }

    /// Lines up calls for all pointed-to data of which the source was not told.
    pub(super) fn tell_all(&mut self) {
        for item in std::mem::take(&mut self.untold) {
            let cell = self.shared[&item].clone();
            self.calls.push_back(Call::Touch(item, cell));
        }
    }

    /// Tells the source of a change. What may go at once does, into `outlet`.
    pub(super) fn tell(
        &self,
        call: &Call,
        source: &mut SourceCore,
        table: TableId,
        outlet: &mut impl Outlet,
        seen: &mut Seen,
    ) {
        let (name, opcode) = call.item();
        let keeps_newest = self.keeps_newest(name);
        let before = source.store().find(table, opcode).map(|item| item.value.is_live());
        match call {
            Call::Set(_, version) => {
                let value = version.to_ne_bytes();
                if version % 3 == 0 {
                    // What a batch sets first is nothing that a destination may be told.
                    let untold = u64::MAX.to_ne_bytes();
                    let batch = [(opcode, &untold[..]), (opcode, &value[..])];
                    let mut changed = Vec::new();
                    source.set_many(table, batch.into_iter(), &mut changed, outlet);
                    assert_eq!(changed.len(), 2, "each is another value");
                    seen.note_if(before == Some(true), Hazard::SetTwice);
                    return;
                }
                // Every other one in a buffer that the store keeps.
                let mut set = || {
                    let buffer = OtherValue::Buffer(RefCell::new(value[..].into()));
                    let value = match version % 2 {
                        0 => NewValue::Data(&value),
                        _ => NewValue::Other(&buffer),
                    };
                    source.set(table, opcode, value, outlet)
                };
                let stored = set();
                assert!(stored.is_some(), "each version is another value");
                seen.note_if(before == Some(false), Hazard::TombstoneRevived);
                let again = set();
                assert_eq!(again.is_none(), keeps_newest, "an equal value is no change if it is known");
                seen.note_if(again.is_none(), Hazard::EqualValue);
            }
            Call::Share(_, cell) => share(source, table, opcode, cell),
            Call::Touch(_, cell) => {
                // A table that does not keep its items may not know this one.
                if source.touch(table, opcode).is_none() {
                    assert!(!keeps_newest, "an item that is kept keeps its pointer");
                    share(source, table, opcode, cell);
                }
            }
            Call::Remove(_) => {
                let removed = source.remove(table, opcode);
                assert!(
                    !keeps_newest || removed.is_some() == (before == Some(true)),
                    "what was there is removed"
                );
            }
        }
    }

    /// A new life of the source has a part of what the old one had.
    pub(super) fn restart(&mut self, rng: &mut fastrand::Rng, step: u32, source: &mut SourceCore) {
        self.version += 1;
        self.plan(rng, step);
        self.ready.clear();
        self.life_began = self.version;
        self.calls.clear();
        self.shared.clear();
        self.untold.clear();
        for (item, version) in self.items() {
            match self.table(source, item.0, step).filter(|_| rng.bool()) {
                Some(table) if self.keeps_newest(item.0) => {
                    source.set(table, &item.1, NewValue::Data(&version.to_ne_bytes()), &mut ());
                }
                Some(_) => {}
                None => {
                    self.own.lock().unwrap().remove(&item);
                    self.removed_at.entry(item).or_default().push(self.version);
                }
            }
        }
    }
}

fn share(source: &mut SourceCore, table: TableId, opcode: &Opcode, cell: &Arc<SharedVersion>) {
    let pointer = Pointer::new(cell.clone());
    source.set(
        table,
        opcode,
        NewValue::Other(&OtherValue::Pointer(&pointer)),
        &mut |_: SessionId, _: &Frame<'_>| unreachable!("it must be read first"),
    );
}

impl Call {
    pub(super) fn item(&self) -> &Item {
        match self {
            Call::Set(item, _) | Call::Share(item, _) | Call::Touch(item, _) | Call::Remove(item) => item,
        }
    }
}
