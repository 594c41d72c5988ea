//! How often each situation occurred, over all transitions of a model: a model without its hazards shows nothing.
//!
//! These counts are beside the states, and not part of them.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Situation {
    /// Nothing was on its way and nothing unacknowledged.
    Settled,
    RingFull,
    SentAgain,
    /// A tick came while something was on its way.
    EarlyTick,
    Gap,
    Duplicate,
    HandlerFailed,
    Replaced,
    Coalesced,
    Swept,
    MarkerHeldBack,
    AckWithoutEffect,
    /// The ack of an old change, whose sync sequence number was that of its item's newest.
    OldAckOfSameSeq,
    /// A change's sync sequence number was below that of the change before.
    Wrapped,
    LinkBroken,
    AttachedWithItems,
    DestinationCrashed,
    SourceCrashed,
    SnapshotStale,
    /// A snapshot went out under an older number than its item had by then.
    SnapshotOlder,
    Unreadable,
    EnumeratedPassedOver,
    Overrun,
}

const ALL: [Situation; 23] = {
    use Situation::*;
    [
        Settled,
        RingFull,
        SentAgain,
        EarlyTick,
        Gap,
        Duplicate,
        HandlerFailed,
        Replaced,
        Coalesced,
        Swept,
        MarkerHeldBack,
        AckWithoutEffect,
        OldAckOfSameSeq,
        Wrapped,
        LinkBroken,
        AttachedWithItems,
        DestinationCrashed,
        SourceCrashed,
        SnapshotStale,
        SnapshotOlder,
        Unreadable,
        EnumeratedPassedOver,
        Overrun,
    ]
};
const SITUATIONS: usize = ALL.len();

#[derive(Debug, Default)]
pub(super) struct Seen([AtomicU64; SITUATIONS]);

impl Seen {
    pub(super) fn note(&self, situation: Situation) {
        // Relaxed: read when the threads have been joined.
        self.0[situation as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn note_if(&self, situation: Situation, occurred: bool) {
        if occurred {
            self.note(situation);
        }
    }

    pub(super) fn count(&self, situation: Situation) -> u64 {
        self.0[situation as usize].load(Ordering::Relaxed)
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, situation) in
            ALL.into_iter().enumerate().filter(|(at, _)| self.0[*at].load(Ordering::Relaxed) > 0)
        {
            write!(f, "{situation:?} {}, ", self.0[at].load(Ordering::Relaxed))?;
        }
        Ok(())
    }
}
