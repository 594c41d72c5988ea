//! What the application must be asked for before it can be sent: snapshots of the data that pointers lead to, and the items
//! of enumerations. It is asked with no lock held, so that much may have changed when it has answered.

use super::super::ValueBytes;
use super::super::cache::{EntryId, EntryKind};
use super::super::store::{Item, TableId, Value};
use super::{Outgoing, SessionId, SourceCore};
use crate::opcode::{Opcode, OpcodeError};
use crate::retention::EnumeratedItems;
use crate::seq::ChangeNumber;
use crate::snapshot::Pointer;
use crate::wire::Payload;

/// What the application must be asked for, with no lock held.
#[derive(Debug)]
pub(crate) enum Read {
    /// A copy of the data that a pointer leads to, for [`SourceCore::poll_snapshot`].
    Pointer(SnapshotRequest),
    /// Some items of an enumeration, for [`SourceCore::handle_drawn`].
    Enumeration { table: TableId, items: EnumeratedItems },
}

/// For which change of which entry a snapshot is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub(crate) struct SnapshotRequest {
    pub(crate) entry: EntryId,
    change: ChangeNumber,
    pub(crate) opcode: Opcode,
    pub(crate) pointer: Pointer,
}

/// Data that could not be had: the item is named without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unreadable;

/// What was drawn from an enumeration.
#[derive(Debug)]
pub(crate) struct Drawn {
    pub(crate) items: Vec<(Opcode, Value)>,
    /// Where to go on; `None` at the end.
    pub(crate) rest: Option<EnumeratedItems>,
}

impl SourceCore {
    /// What the application is to be asked for next, if anything. An enumeration that was lent must be given back.
    pub(crate) fn poll_read(&mut self, id: SessionId) -> Option<Read> {
        let session = self.sessions[id].as_mut()?;
        if !session.has_reads() {
            return None;
        }
        if session.enumeration_goes() {
            let (table, items) = session.replay.take_items()?;
            return Some(Read::Enumeration { table, items });
        }
        let entry = session.cache.next_waiting(true)?;
        let EntryKind::Item(item) = entry.kind() else { return None };
        let item = self.store.item(item);
        let Value::Pointer(pointer) = &item.value else { return None };
        let (opcode, pointer) = (item.opcode.clone(), pointer.clone());
        Some(Read::Pointer(SnapshotRequest { entry, change: item.change, opcode, pointer }))
    }

    /// The frame for a snapshot, unless the item has gone or holds something else since it was asked for. If only its data
    /// has changed, the frame carries the number that the item had then, and the entry goes on waiting: an item that changes
    /// all the time is sent nevertheless.
    pub(crate) fn poll_snapshot<'a>(
        &'a mut self,
        id: SessionId,
        request: &SnapshotRequest,
        snapshot: Result<&'a [u8], Unreadable>,
    ) -> Option<Outgoing<'a>> {
        let session = self.sessions[id].as_mut()?;
        let SnapshotRequest { entry, change, .. } = *request;
        let EntryKind::Item(item) = entry.kind() else { return None };
        let item = self.store.item(item);
        if !session.cache.entry(entry).is_waiting() || !request.is_for(item) {
            return None;
        }
        let opcode = item.opcode.as_bytes();
        let payload = match snapshot {
            Ok(value) => Payload::Set { opcode, value, created: item.created },
            Err(Unreadable) => Payload::Named { opcode },
        };
        session.counters.unreadable += u64::from(snapshot.is_err());
        Some(Outgoing { entry, frame: session.frame_of(entry, change, payload) })
    }

    /// S2: the frame of a snapshot is in the ring.
    pub(crate) fn handle_snapshot_sent(&mut self, id: SessionId, request: &SnapshotRequest) {
        if let Some(session) = self.sessions[id].as_mut() {
            session.handle_sent(request.entry, request.change, &mut self.store);
        }
    }

    /// Takes in what was drawn from an enumeration. What is known to have changed or gone since it began is passed over.
    pub(crate) fn handle_drawn(&mut self, id: SessionId, table: TableId, drawn: Drawn) {
        let Some(session) = self.sessions[id].as_mut() else { return };
        let Some(began) = session.replay.enumeration_began(table) else { return };
        for (opcode, value) in drawn.items {
            if !session.wants(table, &opcode) {
                continue;
            }
            let known = self.store.find_id(table, self.store.hasher().hashed(&opcode));
            let is_gone = known.is_some_and(|item| !self.store.item(item).value.is_live());
            if is_gone || self.store.tables()[usize::from(table)].changed_since(&opcode, began) {
                if let Some(item) = known {
                    session.gate(EntryId::item(item));
                }
                continue;
            }
            let item = known.unwrap_or_else(|| self.store.insert_enumerated(table, opcode, value));
            session.handle_enumerated(item, &mut self.store);
        }
        session.handle_read();
        if session.replay.give_items(table, drawn.rest, &mut self.store) {
            session.mark_end(table, &mut self.store);
        }
    }

    /// The item that was to be read, for a person; `None` if it has gone or holds something else by now.
    pub(crate) fn describe(&self, request: &SnapshotRequest) -> Option<String> {
        let EntryKind::Item(item) = request.entry.kind() else { return None };
        let table = &self.store.tables()[usize::from(item.table)].name;
        request.is_for(self.store.item(item)).then(|| format!("item {} of table {table}", request.opcode))
    }
}

impl SnapshotRequest {
    /// Whether the item is the one whose data was read, in the same life, and holds the same pointer.
    fn is_for(&self, item: &Item) -> bool {
        matches!(&item.value, Value::Pointer(pointer) if *pointer == self.pointer)
            && item.opcode == self.opcode
            && item.created <= self.change
    }
}

impl Drawn {
    /// Draws up to `most` items, in the order of the enumeration. `check` says what is wrong with a value, if anything: then the item
    /// gets a pointer that leads to nothing else.
    pub(crate) fn draw(
        mut items: EnumeratedItems,
        most: usize,
        check: impl Fn(&Opcode, &[u8]) -> Result<(), String>,
    ) -> Result<Drawn, OpcodeError> {
        let mut drawn = Vec::with_capacity(most);
        while drawn.len() < most {
            let Some(item) = items.next() else { return Ok(Drawn { items: drawn, rest: None }) };
            let (opcode, mut value) = item?;
            // So that a long one is kept as it is, and a short one goes into its item.
            value.shrink_to_fit();
            let value = match check(&opcode, &value) {
                Ok(()) => Value::Data(ValueBytes::from_vec(value)),
                Err(why) => Value::Pointer(Pointer::to_nothing(why)),
            };
            drawn.push((opcode, value));
        }
        Ok(Drawn { items: drawn, rest: Some(items) })
    }
}
