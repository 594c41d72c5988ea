//! What can be seen of a source from outside.

use crate::seq::SyncSeq;
use crate::source::DestinationId;

/// Numbers that a source counts from its beginning, and the state of its destinations.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SourceStats {
    /// Items held now.
    pub items: u64,
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
    /// The last thing that went wrong, for a person.
    pub last_error: Option<String>,
    /// The destinations that are attached.
    pub destinations: Vec<DestinationState>,
}

impl SourceStats {
    pub(crate) fn none() -> SourceStats {
        SourceStats {
            items: 0,
            changes: 0,
            last_seq: SyncSeq::from(0),
            attached: 0,
            refused: 0,
            broken: 0,
            last_error: None,
            destinations: Vec::new(),
        }
    }
}

/// What a source keeps and counts for one destination since it attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct DestinationState {
    /// Which one.
    pub id: DestinationId,
    /// Entries of its sync cache: changes that it has not acknowledged. Its lag.
    pub unacked: u64,
    /// Removes among them.
    pub tombstones: u64,
    /// Entries that were sent again at least three times.
    pub failing: u64,
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
}
