//! A source's tables.

use std::sync::{Arc, MutexGuard};

use super::{FORKED, Handle};
use crate::link::service::{FRAMES_PER_PUBLISH, State};
use crate::opcode::{Opcode, OpcodeError, ToOpcode};
use crate::proto::store::{ItemId, Stored, TableId, Value};
use crate::ring;
use crate::wire;

/// One of a source's tables: a set of items, each with an opcode that is its own in this table. Cheap to clone, and usable
/// from several threads; the changes of one item take effect in the order of the calls.
#[derive(Debug, Clone)]
pub struct Table {
    handle: Handle,
    id: TableId,
    name: Arc<str>,
}

/// What became of a change, as far as is known when the call returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// Nothing is left to be sent: it is in the ring of every destination that is attached, if there is any and it needs
    /// to know.
    Now,
    /// It has yet to be put in the ring of at least one destination, which is full or has others in front. It is in that
    /// destination's sync cache and follows by itself.
    Deferred,
    /// The item had this value already, or there was none to remove: no change.
    Unchanged,
}

impl Table {
    pub(super) fn new(handle: Handle, id: TableId, name: &str) -> Table {
        Table { handle, id, name: name.into() }
    }

    /// The table's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Gives an item its newest value: 0 bytes up to the largest record that the ring holds.
    ///
    /// Setting the value that the item has is no change ([`SourceOptions::send_equal`](crate::SourceOptions::send_equal)).
    ///
    /// # Errors
    /// [`SetError`]; then nothing has changed. A full ring is no error.
    pub fn set(&self, opcode: impl ToOpcode, value: impl AsRef<[u8]>) -> Result<Sent, SetError> {
        let (opcode, value) = (opcode.to_opcode()?, value.as_ref());
        self.check_length(&opcode, value)?;
        let mut state = self.lock()?;
        let (Stored::Created(item) | Stored::Updated(item)) = state.core.set(self.id, opcode, value) else {
            return Ok(Sent::Unchanged);
        };
        Ok(self.publish(&mut state, item))
    }

    /// As [`Table::set`] for each of these, with one lock and one message for some dozens of them. Others may publish in
    /// between: a batch is quicker than single calls, and no transaction.
    ///
    /// Answers [`Sent::Deferred`] if that is so for any of them, [`Sent::Unchanged`] if for all.
    ///
    /// # Errors
    /// [`SetError`]; then those before the wrong one are set, and it and those behind it are not.
    pub fn set_many<O: ToOpcode, V: AsRef<[u8]>>(
        &self,
        items: impl IntoIterator<Item = (O, V)>,
    ) -> Result<Sent, SetError> {
        let mut items = items.into_iter().fuse().peekable();
        let mut sent = Sent::Unchanged;
        while items.peek().is_some() {
            let mut error = None;
            // The application's iterator runs without the lock.
            let mut batch = Vec::with_capacity(CHANGES_PER_LOCK);
            for (opcode, value) in items.by_ref().take(CHANGES_PER_LOCK) {
                match opcode.to_opcode().map_err(SetError::from).and_then(|opcode| {
                    self.check_length(&opcode, value.as_ref())?;
                    Ok(opcode)
                }) {
                    Ok(opcode) => batch.push((opcode, value)),
                    Err(found) => {
                        error = Some(found);
                        break;
                    }
                }
            }
            sent = sent.and(self.set_batch(batch)?);
            if let Some(error) = error {
                return Err(error);
            }
        }
        Ok(sent)
    }

    /// Removes an item.
    ///
    /// # Errors
    /// [`SetError`].
    pub fn remove(&self, opcode: impl ToOpcode) -> Result<Sent, SetError> {
        let opcode = opcode.to_opcode()?;
        let mut state = self.lock()?;
        match state.core.remove(self.id, &opcode) {
            Some(item) => Ok(self.publish(&mut state, item)),
            None => Ok(Sent::Unchanged),
        }
    }

    /// Says that the table is loaded: it holds all that it should. Destinations may now remove what they hold beyond it.
    /// Has an effect once.
    pub fn ready(&self) {
        if let Ok(mut state) = self.lock() {
            state.core.ready(self.id);
            self.handle.shared.publish(&mut state);
        }
    }

    /// The newest value of an item.
    pub fn get(&self, opcode: impl ToOpcode) -> Option<Vec<u8>> {
        let opcode = opcode.to_opcode().ok()?;
        let state = self.lock().ok()?;
        match &state.core.store().find(self.id, &opcode)?.value {
            Value::Data(value) => Some(value.to_vec()),
            Value::Removed | Value::Vacant => None,
        }
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.lock().map_or(0, |state| state.core.store().tables()[usize::from(self.id)].live as usize)
    }

    /// Whether the table has no item.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A copy of all items, in no particular order.
    pub fn items(&self) -> Vec<(Opcode, Vec<u8>)> {
        self.lock().map_or_else(
            |_| Vec::new(),
            |state| {
                let table = &state.core.store().tables()[usize::from(self.id)];
                table.iter().map(|(opcode, value)| (opcode.clone(), value.to_vec())).collect()
            },
        )
    }

    pub(crate) fn lock(&self) -> Result<MutexGuard<'_, State>, SetError> {
        let state = self.handle.lock().map_err(|_| SetError::Forked)?;
        if state.is_closing() { Err(SetError::Closed) } else { Ok(state) }
    }

    /// Sets items whose opcodes and lengths were checked.
    fn set_batch<V: AsRef<[u8]>>(&self, batch: Vec<(Opcode, V)>) -> Result<Sent, SetError> {
        let mut changed = Vec::with_capacity(batch.len());
        let mut state = self.lock()?;
        for (opcode, value) in batch {
            if let Stored::Created(item) | Stored::Updated(item) =
                state.core.set(self.id, opcode, value.as_ref())
            {
                changed.push(item);
            }
        }
        self.handle.shared.publish(&mut state);
        let deferred = changed.iter().any(|item| state.core.is_waiting(*item));
        Ok(match (deferred, changed.is_empty()) {
            (true, _) => Sent::Deferred,
            (false, false) => Sent::Now,
            (false, true) => Sent::Unchanged,
        })
    }

    fn publish(&self, state: &mut State, item: ItemId) -> Sent {
        self.handle.shared.publish(state);
        if state.core.is_waiting(item) { Sent::Deferred } else { Sent::Now }
    }

    fn check_length(&self, opcode: &Opcode, value: &[u8]) -> Result<(), SetError> {
        let ring_bytes = self.handle.ring_bytes;
        let max = ring::max_payload_bytes(ring_bytes) - wire::HEADER_BYTES - opcode.as_bytes().len();
        if value.len() > max {
            return Err(SetError::ValueTooLong { bytes: value.len(), max, ring_bytes });
        }
        Ok(())
    }
}

impl Sent {
    /// What became of two changes together.
    fn and(self, other: Sent) -> Sent {
        match (self, other) {
            (Sent::Deferred, _) | (_, Sent::Deferred) => Sent::Deferred,
            (Sent::Now, _) | (_, Sent::Now) => Sent::Now,
            (Sent::Unchanged, Sent::Unchanged) => Sent::Unchanged,
        }
    }
}

/// Changes of a batch that are made under one lock: as many as a publisher sends before it returns.
const CHANGES_PER_LOCK: usize = FRAMES_PER_PUBLISH as usize;

/// Why a change was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SetError {
    /// The opcode is too long.
    #[error(transparent)]
    Opcode(#[from] OpcodeError),
    /// The value is too long for the ring.
    #[error(
        "value of {bytes} bytes is longer than this ring's largest for its opcode, {max} bytes \
         (ring_bytes = {ring_bytes}); use a larger ring_bytes"
    )]
    ValueTooLong {
        /// Its length.
        bytes: usize,
        /// The longest value that fits beside this opcode.
        max: usize,
        /// The ring's size.
        ring_bytes: u64,
    },
    /// The source was dropped.
    #[error("the source of this table was dropped")]
    Closed,
    /// The handle was made before a fork and is used in the child, which has no part in the source.
    #[error("{FORKED}")]
    Forked,
}
