//! What can be seen of a source from outside.

use crate::link::platform::Platform;
use crate::link::shared::State;
use crate::opcode::Opcode;
use crate::proto::cache::Holds;
use crate::proto::source::EntryView;
use crate::proto::store::TableStore;
use crate::seq::SyncSeq;

/// Numbers that a source counts from its beginning, and the state of its destinations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SourceStats {
    /// Items held now. Of a table that keeps [unacknowledged changes only](crate::Retention::Unacked), those.
    pub items: u64,
    /// Those among them whose data is the application's, and is read when it is sent.
    pub pointers: u64,
    /// Calls that changed an item.
    pub changes: u64,
    /// The sync sequence number given last.
    pub last_seq: SyncSeq,
    /// Destinations that have attached, each attachment counted.
    pub attached: u64,
    /// Connections that were not taken.
    pub refused: u64,
    /// Links that were closed because the destination broke the protocol.
    pub broken: u64,
    /// Destinations that were given up because they left too many removes unacknowledged
    /// ([`SourceOptions::max_tombstones`](crate::SourceOptions::max_tombstones)); they attach again.
    pub overruns: u64,
    /// The last thing that went wrong, for a person.
    pub last_error: Option<String>,
    /// The destinations that are attached.
    pub destinations: Vec<DestinationState>,
}

/// What a source keeps and counts for one destination since it attached.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DestinationState {
    /// Which one.
    pub id: DestinationId,
    /// Entries of its sync cache: changes that it has not acknowledged. Its lag.
    pub unacked: u64,
    /// Those among them that hold a pointer to their data.
    pub pointers: u64,
    /// Those among them that stand for a remove.
    pub tombstones: u64,
    /// Entries that were sent again at least three times.
    pub failing: u64,
    /// Some of these, at most eight.
    pub failing_items: Vec<EntryState>,
    /// The full state is still on its way.
    pub replaying: bool,
    /// Records put in its ring.
    pub sent: u64,
    /// Those among them that were sent before.
    pub resent: u64,
    /// Changes that were replaced by a newer one of the same item before they were sent.
    pub coalesced: u64,
    /// Entries that it acknowledged.
    pub acked: u64,
    /// Times that data could not be read when it was to be sent.
    pub unreadable: u64,
}

/// An entry of a sync cache: a change that a destination has not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EntryState {
    /// The item's table.
    pub table: String,
    /// The item.
    pub opcode: Opcode,
    /// The sync sequence number of its newest change.
    pub seq: SyncSeq,
    /// What the entry holds.
    pub holds: EntryHolds,
    /// The change has yet to be put in the ring, for the first time or again.
    pub waiting: bool,
    /// How often the change was sent again, up to 255.
    pub resent: u8,
}

/// What an entry of a sync cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EntryHolds {
    /// The item's data.
    Data,
    /// A pointer to the item's data, which is read when it is sent ([`Table::set_shared`](crate::Table::set_shared)).
    Pointer,
    /// That the item is gone.
    Remove,
}

impl SourceStats {
    /// What can be seen under the lock, all of one moment.
    pub(crate) fn of<P: Platform>(state: &State<P>) -> SourceStats {
        let sum =
            |of: fn(&TableStore) -> u32| state.core.store().tables().iter().map(of).map(u64::from).sum();
        let mut stats = SourceStats {
            items: sum(|table| table.live),
            pointers: sum(|table| table.pointers),
            changes: state.core.counters().changes,
            last_seq: state.core.store().last_change().seq(),
            attached: state.counters.attached,
            refused: state.counters.refused,
            broken: state.counters.broken,
            overruns: state.core.counters().overruns,
            last_error: state.counters.last_error.clone(),
            destinations: Vec::new(),
        };
        for link in state.links.iter().flatten() {
            let Some(session) = state.core.session_state(link.session) else { continue };
            stats.destinations.push(DestinationState {
                id: link.id,
                unacked: session.unacked as u64,
                pointers: session.pointers as u64,
                tombstones: session.tombstones as u64,
                failing: session.failing as u64,
                failing_items: state.core.failing(link.session).map(EntryState::of).collect(),
                replaying: session.replaying,
                sent: session.counters.sent,
                resent: session.counters.resent,
                coalesced: session.counters.coalesced,
                acked: session.counters.acked,
                unreadable: session.counters.unreadable,
            });
        }
        stats
    }
}

impl EntryState {
    pub(crate) fn of(view: EntryView<'_>) -> EntryState {
        EntryState {
            table: view.table.to_string(),
            opcode: view.opcode.clone(),
            seq: view.change.seq(),
            holds: match view.holds {
                Holds::Data => EntryHolds::Data,
                Holds::Pointer => EntryHolds::Pointer,
                Holds::Remove => EntryHolds::Remove,
            },
            waiting: view.waiting,
            resent: view.attempts,
        }
    }
}

/// One attachment of a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct DestinationId {
    /// The destination's process.
    pub pid: u32,
    /// Counts the attachments to this source, from 1.
    pub attachment: u64,
}
