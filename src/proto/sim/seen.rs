//! How often each fault happened, and each situation that the protocol must survive.

use std::fmt;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hazard {
    RecordLost,
    RecordRepeated,
    RecordLate,
    AckLost,
    AckRepeated,
    AckLate,
    HandlerFailed,
    SnapshotFailed,
    DestinationStalled,
    DestinationRestarted,
    LinkBroken,
    SourceRestarted,
    SubscriptionChanged,
    RingOfOne,
    RingFull,
    RingFullAtMarker,
    RingFullAtRead,
    SentAtOnce,
    Coalesced,
    Resent,
    ResendBesideNewerChange,
    AckOfOlderChange,
    Duplicate,
    DuplicateOfOwed,
    AckDeferred,
    AckOnLaterLink,
    Refused,
    Replaced,
    RemovedUnsent,
    TombstoneRevived,
    Swept,
    UnwantedSwept,
    ReplayInterrupted,
    EnumerationInterrupted,
    EnumeratedPassedOver,
    CallBehindState,
    ReadyLate,
    PointerChangedUntold,
    SnapshotOutdated,
    SnapshotOlder,
    KindChanged,
    EqualValue,
    SetTwice,
    Overrun,
    FlushDone,
    FlushInReplay,
    Crossed31,
    Wrapped,
    UnackedAcross31,
    UnackedAcross32,
}

/// Each with words for a person, in the order of the enum.
const HAZARDS: [(Hazard, &str); 50] = [
    (Hazard::RecordLost, "a record was lost"),
    (Hazard::RecordRepeated, "a record came twice"),
    (Hazard::RecordLate, "a record came after later ones"),
    (Hazard::AckLost, "an ack was lost"),
    (Hazard::AckRepeated, "an ack came twice"),
    (Hazard::AckLate, "an ack came after later ones"),
    (Hazard::HandlerFailed, "a handler failed"),
    (Hazard::SnapshotFailed, "pointed-to data could not be read"),
    (Hazard::DestinationStalled, "a destination stood still"),
    (Hazard::DestinationRestarted, "a destination restarted"),
    (Hazard::LinkBroken, "a link broke"),
    (Hazard::SourceRestarted, "the source restarted"),
    (Hazard::SubscriptionChanged, "a destination wanted something else"),
    (Hazard::RingOfOne, "a ring held one record"),
    (Hazard::RingFull, "a ring was full"),
    (Hazard::RingFullAtMarker, "a ring was full at an end marker"),
    (Hazard::RingFullAtRead, "a ring was full at a snapshot"),
    (Hazard::SentAtOnce, "a change went past the queues"),
    (Hazard::Coalesced, "a change replaced one that was not sent"),
    (Hazard::Resent, "a record was sent again"),
    (Hazard::ResendBesideNewerChange, "an item changed while a resend of it was in the ring"),
    (Hazard::AckOfOlderChange, "an ack came for a change with a newer one behind it"),
    (Hazard::Duplicate, "an applied change came again"),
    (Hazard::DuplicateOfOwed, "a change came again while its ack was owed"),
    (Hazard::AckDeferred, "an ack was put off and given later"),
    (Hazard::AckOnLaterLink, "an ack was given on a later link than its change came on"),
    (Hazard::Refused, "a change was refused after its ack was put off"),
    (Hazard::Replaced, "an item was replaced, its remove untold"),
    (Hazard::RemovedUnsent, "an item was removed before it was sent"),
    (Hazard::TombstoneRevived, "an item came back before its remove was acknowledged"),
    (Hazard::Swept, "an item was swept at an end marker"),
    (Hazard::UnwantedSwept, "an item was given up because nobody wants it any more"),
    (Hazard::ReplayInterrupted, "a replay was cut off"),
    (Hazard::EnumerationInterrupted, "an enumeration was cut off"),
    (Hazard::EnumeratedPassedOver, "an item changed or went under an enumeration that named it"),
    (Hazard::CallBehindState, "an enumeration saw a change that the source was told of later"),
    (Hazard::ReadyLate, "a table became ready while a destination waited"),
    (Hazard::PointerChangedUntold, "pointed-to data changed and the source was not told yet"),
    (Hazard::SnapshotOutdated, "an entry held something else when its data had been read"),
    (Hazard::SnapshotOlder, "an entry got a newer number while its data was read"),
    (Hazard::KindChanged, "an entry changed between data and pointer"),
    (Hazard::EqualValue, "an equal value was set"),
    (Hazard::SetTwice, "a batch set an item twice"),
    (Hazard::Overrun, "a destination had too many tombstones"),
    (Hazard::FlushDone, "a flush was done"),
    (Hazard::FlushInReplay, "a flush waited for a replay"),
    (Hazard::Crossed31, "the sync sequence number crossed 2^31"),
    (Hazard::Wrapped, "the sync sequence number wrapped"),
    (Hazard::UnackedAcross31, "an entry stayed unacknowledged for 2^31 changes"),
    (Hazard::UnackedAcross32, "an entry stayed unacknowledged for 2^32 changes"),
];

#[derive(Debug)]
pub(super) struct Seen([u64; HAZARDS.len()]);

impl Default for Seen {
    fn default() -> Self {
        Seen([0; HAZARDS.len()])
    }
}

impl Seen {
    pub(super) fn note(&mut self, hazard: Hazard) {
        self.note_times(hazard, 1);
    }

    pub(super) fn note_if(&mut self, happened: bool, hazard: Hazard) {
        self.note_times(hazard, u64::from(happened));
    }

    pub(super) fn note_times(&mut self, hazard: Hazard, times: u64) {
        self.0[hazard as usize] += times;
    }

    pub(super) fn add(&mut self, other: &Seen) {
        for (sum, count) in self.0.iter_mut().zip(other.0) {
            *sum += count;
        }
    }

    /// What was seen less often than that.
    pub(super) fn rarer_than(&self, least: u64) -> impl Iterator<Item = (Hazard, u64)> {
        let counts = HAZARDS.iter().zip(self.0);
        counts.filter(move |(_, count)| *count < least).map(|((hazard, _), count)| (*hazard, count))
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        HAZARDS.iter().zip(self.0).try_for_each(|((_, words), count)| writeln!(f, "{count:>10}  {words}"))
    }
}

#[test]
fn hazards_are_listed_in_their_order() {
    assert!(HAZARDS.iter().enumerate().all(|(at, (hazard, _))| *hazard as usize == at));
}
