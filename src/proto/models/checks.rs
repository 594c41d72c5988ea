//! What must hold of a state of a model.

use super::super::source::SessionState;
use super::super::store::Value;
use super::oracle::{KEYS, Kind, TABLES};
use super::seen::{Seen, Situation};
use super::world::{Budget, World, opcode};

/// More fruitless steps than these and nothing will ever happen: a tick that notes what was sent, one that sends it again, a
/// reading of each item.
const MAX_FRUITLESS: u8 = 6;

impl World {
    /// Nothing is on its way, and nothing goes on before a tick, a change or a fault.
    pub(super) fn is_idle(&self) -> bool {
        let Some(link) = &self.link else { return false };
        let untold = (0..KEYS).any(|key| !self.truth.is_told(key));
        let loading = self.truth.ready[..self.scene.tables].contains(&false);
        if untold || loading || self.reading.is_some() || !link.ring.is_empty() || link.ack.is_some() {
            return false;
        }
        if self.destination.poll_ack().is_some() || self.source().is_overrun(link.session) {
            return false;
        }
        // Looking for a frame may walk a replay; so this looks in a copy.
        let mut source = self.source().clone();
        if source.is_walking(link.session) {
            return false;
        }
        source.poll_frame(link.session).is_none() && !source.has_reads(link.session)
    }

    /// Nothing can happen although it should.
    pub(super) fn is_stuck(&self) -> bool {
        let Some(link) = &self.link else { return false };
        let on_its_way = !link.ring.is_empty() || link.ack.is_some() || self.destination.poll_ack().is_some();
        if self.violation.is_some() || on_its_way {
            return false;
        }
        let is_settled = self.state(link.session).is_some_and(|state| state.unacked == 0) && self.is_idle();
        let mut actions = Vec::new();
        self.progress(&mut actions);
        !is_settled && actions.into_iter().all(|action| self.step(action, &Seen::default()).is_none())
    }

    /// What must hold of every state.
    pub(super) fn check(&self, seen: &Seen) -> Result<(), String> {
        let Some(link) = &self.link else { return Ok(()) };
        let Some(state) = self.state(link.session) else { return Ok(()) };
        let source = self.source();
        let tables = source.store().tables();
        let live: u32 = tables.iter().map(|table| table.live).sum();
        let places: usize = tables.iter().map(|table| table.items().len()).sum();
        if state.unacked > live as usize + state.tombstones + 2 * self.scene.tables || places > KEYS {
            return Err(format!("{} entries and {places} places for {live} items", state.unacked));
        }
        drop(source);
        if self.fruitless > MAX_FRUITLESS {
            return Err("one step follows the other, and nothing comes of it".into());
        }
        if state.counters.resent > self.resends_that_faults_explain() {
            return Err(format!("{} records were sent again without a cause", state.counters.resent));
        }
        if state.unacked == 0 && self.is_idle() {
            seen.note(Situation::Settled);
            return self.check_settled(&state);
        }
        Ok(())
    }

    /// Each fault may cost two rounds: one for what it hit, and one for the end marker that had to wait for that.
    fn resends_that_faults_explain(&self) -> u64 {
        let faults = |budget: &Budget| {
            u64::from(budget.lost_records + budget.lost_acks + budget.failures + budget.ticks)
        };
        (faults(&self.scene.budget) - faults(&self.left)) * 2 * (KEYS + 2 * self.scene.tables) as u64
    }

    /// Nothing more will happen by itself: both ends are equal.
    fn check_settled(&self, state: &SessionState) -> Result<(), String> {
        let World { truth, app, destination, .. } = self;
        if app.items != truth.items {
            return Err(format!("it ends with {:?} here and {:?} at the source", app.items, truth.items));
        }
        for key in 0..KEYS {
            let table = TABLES[usize::from(self.table_of(key))];
            let kept = destination.value(table, &opcode(key)).map_or(0, |value| value[0]);
            if kept != truth.items[key] {
                return Err(format!("the destination's record of item {key} is {kept}"));
            }
        }
        if !destination.is_all_synced() || state.replaying || state.tombstones + state.failing > 0 {
            return Err(format!("it ends unsynced: {:?} loading, {state:?}", destination.loading()));
        }
        let source = self.source();
        let items = source.store().tables().iter().flat_map(|table| table.items().iter());
        let left = items.filter(|item| match self.scene.kind {
            Kind::Enumerated => item.value != Value::Vacant,
            _ => item.value == Value::Removed,
        });
        if left.count() > 0 { Err("items stay at the source that nobody needs".into()) } else { Ok(()) }
    }
}
