//! What the sync cache has of one item, and of one record in flight.

use super::super::store::{Item, ItemId, TableId, Value};
use crate::seq::ChangeNumber;

/// What an entry stands for: an item, or one of the two records that each table has of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub(crate) struct EntryId {
    pub(crate) table: TableId,
    pub(super) index: u32,
}

/// The record that tells a table's name.
const TABLE_NAME: u32 = u32::MAX;
/// The record that ends a table's replay.
const TABLE_END: u32 = u32::MAX - 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryKind {
    Item(ItemId),
    TableName,
    TableEnd,
}

impl EntryId {
    pub(crate) fn item(id: ItemId) -> EntryId {
        assert!(id.index < TABLE_END, "a table holds fewer items");
        EntryId { table: id.table, index: id.index }
    }

    pub(crate) fn table_name(table: TableId) -> EntryId {
        EntryId { table, index: TABLE_NAME }
    }

    pub(crate) fn table_end(table: TableId) -> EntryId {
        EntryId { table, index: TABLE_END }
    }

    /// The index of its item among those of the table.
    #[inline(always)]
    pub(crate) fn item_index(self) -> usize {
        self.index as usize
    }

    pub(super) fn is_item(self) -> bool {
        self.index < TABLE_END
    }

    #[inline]
    pub(crate) fn kind(self) -> EntryKind {
        match self.index {
            TABLE_NAME => EntryKind::TableName,
            TABLE_END => EntryKind::TableEnd,
            index => EntryKind::Item(ItemId { table: self.table, index }),
        }
    }
}

/// The state of one entry. Without [`CacheEntry::UNACKED`] there is no entry, only a place for one.
#[derive(Debug, Clone, Copy, Default)]
#[cfg_attr(test, derive(Hash))]
pub(crate) struct CacheEntry {
    pub(super) flags: u16,
    /// The flushes that wait for this entry.
    pub(super) flushes: u16,
    /// How often the newest change was sent again, as far as a u8 counts.
    pub(super) attempts: u8,
    /// The newest change.
    pub(super) change: ChangeNumber,
}

const _: () = assert!(size_of::<CacheEntry>() == 16);

// SAFETY: all are numbers. All zero is the default.
#[allow(unsafe_code)]
unsafe impl bytemuck::Zeroable for CacheEntry {}

/// What an entry stands for, and where its data is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holds {
    Data,
    Pointer,
    Remove,
}

/// What [`SyncCache::record`](super::SyncCache::record) found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Recorded {
    /// There was no entry for the item.
    pub(crate) is_new: bool,
    /// A change that had not been sent was replaced.
    pub(crate) coalesced: bool,
}

impl CacheEntry {
    /// The destination was sent the item on this link and has not acknowledged its removal. In a table that does not keep
    /// its items: it was sent this entry.
    pub(super) const SENT: u16 = 1;
    /// The entry exists: the destination has not acknowledged the newest change.
    pub(super) const UNACKED: u16 = 2;
    /// The newest change must be put in the ring.
    pub(super) const WAITING: u16 = 4;
    /// A queue holds a place for it.
    pub(super) const QUEUED: u16 = 8;
    /// The newest change is a remove.
    pub(super) const TOMBSTONE: u16 = 16;
    /// The data is read through a pointer.
    pub(super) const POINTER: u16 = 32;
    /// The table's end marker waits until it was sent.
    pub(super) const GATED: u16 = 64;
    /// Within [`SyncCache::compact`](super::SyncCache::compact): a record of the newest change was seen.
    pub(super) const NEWEST_KEPT: u16 = 128;
    /// Within [`SyncCache::compact`](super::SyncCache::compact): a record that a flush waits for was seen.
    pub(super) const AWAITED_KEPT: u16 = 256;

    #[inline]
    pub(super) fn has(self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// It is of data that the destination was sent before, unacknowledged or not, and nothing else is to be noted of it.
    #[inline(always)]
    pub(super) fn is_plain(self) -> bool {
        self.flags & !Self::UNACKED == Self::SENT && self.flushes == 0 && self.attempts == 0
    }

    pub(crate) fn is_sent(self) -> bool {
        self.has(Self::SENT)
    }

    pub(crate) fn is_unacked(self) -> bool {
        self.has(Self::UNACKED)
    }

    pub(crate) fn is_waiting(self) -> bool {
        self.has(Self::WAITING)
    }

    pub(crate) fn is_in_flight(self) -> bool {
        self.has(Self::UNACKED) && !self.has(Self::WAITING)
    }

    pub(crate) fn is_gated(self) -> bool {
        self.has(Self::GATED)
    }

    pub(crate) fn is_pointer(self) -> bool {
        self.has(Self::POINTER)
    }

    pub(crate) fn holds(self) -> Holds {
        match (self.has(Self::POINTER), self.has(Self::TOMBSTONE)) {
            (true, _) => Holds::Pointer,
            (false, true) => Holds::Remove,
            (false, false) => Holds::Data,
        }
    }

    pub(super) fn is_waiting_again(self) -> bool {
        self.has(Self::WAITING) && self.has(Self::SENT)
    }

    pub(crate) fn change(self) -> ChangeNumber {
        self.change
    }

    pub(crate) fn attempts(self) -> u8 {
        self.attempts
    }

    /// The flushes that wait for this entry, a bit for each.
    pub(crate) fn flushes(self) -> u16 {
        self.flushes
    }
}

impl Holds {
    #[inline]
    pub(crate) fn of(item: &Item) -> Holds {
        match item.value {
            Value::Data(_) => Holds::Data,
            Value::Pointer(_) => Holds::Pointer,
            Value::Removed => Holds::Remove,
            Value::Vacant => unreachable!("a vacant place has no entry"),
        }
    }

    pub(super) fn flags(self) -> u16 {
        match self {
            Holds::Data => 0,
            Holds::Pointer => CacheEntry::POINTER,
            Holds::Remove => CacheEntry::TOMBSTONE,
        }
    }
}

/// A record in the ring or beyond.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(test, derive(Hash))]
pub(crate) struct InFlight {
    pub(crate) ordinal: u64,
    pub(crate) change: ChangeNumber,
    pub(crate) entry: EntryId,
    /// The flushes that an ack of this record satisfies.
    pub(super) flushes: u16,
}

/// An entry that an ack deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deleted {
    pub(crate) entry: EntryId,
    /// Its item stayed for its sake.
    pub(crate) item_is_owed: bool,
    /// The table's end marker waited for it.
    pub(crate) was_gated: bool,
}
