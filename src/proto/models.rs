//! Models of the protocol: `stateright` runs both production cores through every order of events within a budget.
//!
//! A state is a [`SourceCore`](super::source::SourceCore) and a [`DestinationCore`](super::destination::DestinationCore) as
//! they are, the rings between them (of one or two records; the ack ring holds one ack), both applications, and what is left
//! of the budget: so many changes of two items, so many losses, copies that come later, failures of a handler or a snapshot,
//! ticks that come while something is on its way, broken links and crashes. All else may happen at any time. Two states are
//! the same if all is the same that can have an influence; what is counted for a person has none.
//!
//! *Safety* is checked in each state and on each step: no old value after a newer one, no change handed over twice, no
//! entry gone before its newest change was applied, nothing removed that the source has, or that it has not loaded yet, no
//! more entries than items and tombstones ([`oracle`], [`checks`]).
//!
//! *Liveness*: in each state in which nothing is under way, both ends are equal, acknowledged and synced; in each other
//! state something can happen, and what happens gets somewhere: no more than a few steps in a row may leave nothing in
//! a ring and nothing taken out. Changes and faults are bounded, each lost or failed record explains a bounded number of
//! resends, and more is an error. So every run ends, and it ends equal.
//!
//! *Time* is abstract: the resend interval is zero, and the clock stands still but for a tick that is due. So whatever has
//! left the ring is due with each tick, and a tick may come at any time, early ones within the budget.
//!
//! *Sequence numbers*: each change skips numbers, so that the 32-bit sync sequence number takes two values only (a stride of
//! 2^31), or one (2^32), and wraps and repeats all the time. Nothing may hang on it.
//!
//! `SHMIRROR_MODEL_BUDGET=n` adds n to each part of each budget that is not zero. Two or three are as much as most machines
//! have memory for.

mod checks;
mod oracle;
mod seen;
mod steps;
mod world;

use std::sync::Arc;
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model, Property};

use oracle::Kind;
use seen::Seen;
use seen::Situation::{self, *};
use world::{Action, Budget, Scene, World};

struct Protocol {
    scene: Arc<Scene>,
    begin: Instant,
    seen: Arc<Seen>,
}

impl Model for Protocol {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.scene.clone(), self.begin)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.violation.is_none() {
            world.progress(actions);
            world.changes_and_faults(actions);
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        world.step(action, &self.seen)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nothing is wrong", |_, world: &World| world.violation.is_none()),
            Property::always("something goes on", |_, world: &World| !world.is_stuck()),
        ]
    }
}

/// Explores a model in full; panics with the shortest path to what is wrong.
fn check(name: &str, mut scene: Scene, must_see: &[Situation]) {
    let more = std::env::var("SHMIRROR_MODEL_BUDGET").ok();
    let more = more.map_or(0, |more| more.parse().expect("SHMIRROR_MODEL_BUDGET is a small number"));
    scene.budget.raise(more);
    let (begin, seen) = (Instant::now(), Arc::new(Seen::default()));
    let protocol = Protocol { scene: Arc::new(scene), begin, seen: seen.clone() };
    let checker = protocol.checker().threads(2).finish_when(HasDiscoveries::Any).spawn_bfs().join();
    println!(
        "{name}: {} states, {} generated, depth {}, {:?}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        begin.elapsed()
    );
    println!("    {seen}");
    if let Some((property, path)) = checker.discoveries().into_iter().next() {
        let violation = path.last_state().violation.clone().unwrap_or_default();
        let actions: Vec<String> = path.into_actions().iter().map(|action| format!("{action:?}")).collect();
        panic!("{name}: not \"{property}\": {violation}\nafter {}", actions.join(", "));
    }
    for &situation in must_see {
        assert!(seen.count(situation) > 0, "{name}: {situation:?} never occurred");
    }
}

/// Nothing but changes: two, in a ring of one record.
const SCENE: Scene = Scene {
    kind: Kind::Data,
    tables: 1,
    ring: 1,
    stride: 1 << 31,
    settled: true,
    max_tombstones: 1000,
    budget: Budget { changes: 2, ..Budget::NONE },
};

#[test]
fn lost_repeated_and_failing_records_in_a_ring_of_one() {
    let budget = Budget { lost_records: 1, lost_acks: 1, copies: 1, failures: 1, ..SCENE.budget };
    let must_see =
        [SentAgain, Gap, Duplicate, HandlerFailed, Replaced, Coalesced, AckWithoutEffect, RingFull];
    check("faults, a ring of one", Scene { budget, ..SCENE }, &must_see);
}

#[test]
fn lost_repeated_and_failing_records_in_a_ring_of_two() {
    let budget = Budget { lost_records: 1, lost_acks: 1, copies: 1, failures: 1, ..SCENE.budget };
    let must_see = [SentAgain, Gap, Duplicate, HandlerFailed, Replaced, Coalesced, AckWithoutEffect];
    check("faults, a ring of two", Scene { ring: 2, budget, ..SCENE }, &must_see);
}

#[test]
fn changes_whose_sequence_numbers_are_all_the_same() {
    let budget = Budget { changes: 3, lost_records: 1, copies: 1, ..SCENE.budget };
    let must_see = [OldAckOfSameSeq, SentAgain, Gap, Replaced, Duplicate];
    check("one sequence number", Scene { stride: 1 << 32, budget, ..SCENE }, &must_see);
}

#[test]
fn ticks_that_come_early() {
    let budget = Budget { ticks: 2, lost_acks: 1, copies: 1, ..SCENE.budget };
    check("early ticks", Scene { budget, ..SCENE }, &[EarlyTick, SentAgain, Duplicate, Coalesced]);
}

#[test]
fn a_link_that_breaks_in_a_replay() {
    let budget = Budget { breaks: 1, lost_records: 1, ..SCENE.budget };
    let must_see = [LinkBroken, AttachedWithItems, Swept, MarkerHeldBack, OldAckOfSameSeq, Wrapped];
    check("a broken link", Scene { ring: 2, budget, ..SCENE }, &must_see);
}

#[test]
fn a_destination_that_crashes() {
    let budget = Budget { destination_crashes: 1, lost_acks: 1, ..SCENE.budget };
    check("a crashed destination", Scene { budget, ..SCENE }, &[DestinationCrashed, SentAgain, Coalesced]);
}

#[test]
fn a_source_that_crashes_and_loads_a_part() {
    let budget = Budget { source_crashes: 1, lost_records: 1, ..SCENE.budget };
    let must_see = [SourceCrashed, AttachedWithItems, Swept, MarkerHeldBack, Gap];
    check("a crashed source", Scene { budget, ..SCENE }, &must_see);
}

#[test]
fn a_table_for_each_item() {
    let budget = Budget { lost_records: 1, lost_acks: 1, ..SCENE.budget };
    check("two tables", Scene { tables: 2, budget, ..SCENE }, &[SentAgain, Gap, Coalesced]);
}

#[test]
fn removes_above_the_bound() {
    let budget = Budget { changes: 3, ..SCENE.budget };
    check(
        "no tombstones",
        Scene { max_tombstones: 0, budget, ..SCENE },
        &[Overrun, AttachedWithItems, Swept],
    );
}

#[test]
fn pointers_whose_data_changes_while_it_is_read() {
    let budget = Budget { failures: 1, lost_records: 1, ..SCENE.budget };
    let must_see = [SnapshotStale, SnapshotOlder, Unreadable, HandlerFailed, SentAgain, Coalesced];
    check("pointers", Scene { kind: Kind::Pointers, budget, ..SCENE }, &must_see);
}

#[test]
fn pointers_whose_places_others_take() {
    let budget = Budget { changes: 3, ..SCENE.budget };
    check(
        "pointers, more changes",
        Scene { kind: Kind::Pointers, budget, ..SCENE },
        &[SnapshotStale, SnapshotOlder],
    );
}

#[test]
fn a_link_that_breaks_while_pointers_are_replayed() {
    let budget = Budget { breaks: 1, ..SCENE.budget };
    let must_see = [LinkBroken, SnapshotStale, SnapshotOlder, AttachedWithItems, Swept, Coalesced];
    check("pointers, replayed", Scene { kind: Kind::Pointers, budget, ..SCENE }, &must_see);
}

#[test]
fn a_source_that_crashes_under_an_enumeration() {
    let budget = Budget { changes: 1, source_crashes: 1, lost_records: 1, ..SCENE.budget };
    let must_see = [SourceCrashed, EnumeratedPassedOver, AttachedWithItems, Swept, MarkerHeldBack, Gap];
    check("a crash under an enumeration", Scene { kind: Kind::Enumerated, budget, ..SCENE }, &must_see);
}

#[test]
fn an_enumeration_under_which_items_change_and_that_is_cut_off() {
    let budget = Budget { breaks: 1, ..SCENE.budget };
    let must_see = [EnumeratedPassedOver, LinkBroken, AttachedWithItems, Swept];
    check("an enumeration", Scene { kind: Kind::Enumerated, budget, ..SCENE }, &must_see);
}

#[test]
fn an_enumerated_table_whose_handler_fails() {
    let budget = Budget { changes: 3, failures: 1, ..SCENE.budget };
    let must_see = [HandlerFailed, SentAgain, Replaced, Coalesced];
    check("an enumerated table", Scene { kind: Kind::Enumerated, budget, ..SCENE }, &must_see);
}
