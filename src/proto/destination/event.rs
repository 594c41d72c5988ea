//! What the application of a destination is told, and what it may answer later.

use std::cell::Cell;

use crate::opcode::Opcode;
use crate::seq::{ChangeNumber, SyncSeq};

/// What a handler answers; an error means: not applied, send it again.
pub type HandlerResult = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Something that the application is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// An item is there, or has a new value.
    #[non_exhaustive]
    Set {
        /// The item's table.
        table: &'a str,
        /// The item's identity.
        opcode: &'a Opcode,
        /// Its value.
        value: &'a [u8],
        /// The change's sync sequence number.
        seq: SyncSeq,
        /// The item was removed and made anew since the value that was applied last; that remove is not told otherwise.
        replaced: bool,
        /// For [`Event::defer_ack`].
        ack: AckSlot<'a>,
    },
    /// An item is gone: it was removed, or a replay has ended without it, or it is not wanted any more
    /// ([`Destination::subscribe`](crate::Destination::subscribe)), or the source is gone and so are its items
    /// ([`OnSourceLost::Flush`](crate::OnSourceLost::Flush)).
    #[non_exhaustive]
    Removed {
        /// The item's table.
        table: &'a str,
        /// The item's identity.
        opcode: &'a Opcode,
        /// The sync sequence number of the remove, or of the end marker whose replay did not name the item. If the item is
        /// not wanted any more, or flushed because the source is gone, that of the item's last change.
        seq: SyncSeq,
        /// For [`Event::defer_ack`].
        ack: AckSlot<'a>,
    },
    /// The table holds all that it held at its source when this destination attached, as far as it is wanted, and nothing
    /// else, except for items that the handler has refused or the source could not read: they are as they were, and come
    /// again.
    Synced {
        /// The table.
        table: &'a str,
    },
    /// The source is gone; the items stay unless they are to be flushed.
    SourceLost,
    /// Attached to the source; its full state follows.
    #[non_exhaustive]
    SourceFound {
        /// The source's process.
        pid: u32,
        /// It is not the source that this destination was attached to before, but a new life of it.
        restarted: bool,
    },
}

impl Event<'_> {
    /// Puts the ack of this change off: if the handler returns Ok, the change counts as handed over, and is acknowledged
    /// when the token is given to [`Destination::ack`](crate::Destination::ack), on whatever link stands then. Until then the
    /// source keeps the change and sends it again, which is passed over here.
    ///
    /// `None` for an event that has no ack of its own, or in a [`Replica`](crate::Replica), which has applied it.
    pub fn defer_ack(&self) -> Option<AckToken> {
        match self {
            Event::Set { opcode, ack, .. } | Event::Removed { opcode, ack, .. } => ack.defer(opcode),
            Event::Synced { .. } | Event::SourceLost | Event::SourceFound { .. } => None,
        }
    }
}

/// Where an event notes that its ack is put off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AckSlot<'a>(Option<Deferrable<'a>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Deferrable<'a> {
    deferred: &'a Cell<bool>,
    epoch: u64,
    table: usize,
    change: ChangeNumber,
}

impl<'a> AckSlot<'a> {
    /// Of an event that has no ack of its own.
    pub(crate) const NONE: AckSlot<'static> = AckSlot(None);

    pub(super) fn new(
        deferred: &'a Cell<bool>,
        epoch: Option<u64>,
        table: usize,
        change: ChangeNumber,
    ) -> AckSlot<'a> {
        AckSlot(epoch.map(|epoch| Deferrable { deferred, epoch, table, change }))
    }

    fn defer(&self, opcode: &Opcode) -> Option<AckToken> {
        let Deferrable { deferred, epoch, table, change } = self.0?;
        deferred.set(true);
        Some(AckToken { epoch, table, opcode: opcode.clone(), change })
    }
}

/// The right to acknowledge one change later; see [`Event::defer_ack`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[must_use = "a change whose token is dropped is never acknowledged"]
pub struct AckToken {
    pub(super) epoch: u64,
    pub(super) table: usize,
    pub(super) opcode: Opcode,
    pub(super) change: ChangeNumber,
}

impl AckToken {
    /// The item.
    pub fn opcode(&self) -> &Opcode {
        &self.opcode
    }

    /// The change's sync sequence number.
    pub fn seq(&self) -> SyncSeq {
        self.change.seq()
    }
}
