//! A source's tables.

mod set_with;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use super::{FORKED, Handle};
use crate::link::application;
use crate::link::shared::{FRAMES_PER_PUBLISH, Guard, State};
use crate::opcode::{Opcode, OpcodeError, ToOpcode};
use crate::proto::source::Set;
use crate::proto::store::{Changed, ItemId, NewValue, OtherValue, TableId, Value};
use crate::snapshot::{Pointer, Snapshot};

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
        self.check_length(&opcode, value.len())?;
        self.set_value(&opcode, NewValue::Data(value))
    }

    /// Gives an item a pointer to its data: the data stays where it is, in the application, and a consistent copy of it is
    /// taken each time that it is sent. After each change of the data, say [`Table::touch`].
    ///
    /// The copy is taken on the source's timer thread, or by whoever drives a source without one (see [`Snapshot`]), with no lock
    /// of the library held: a lock of the application's own may be held during this call. So it answers [`Sent::Deferred`] if there is a destination that wants the item. Data that
    /// cannot be read, or is too long, is tried again as an unacknowledged change is; see
    /// [`DestinationState::unreadable`](crate::DestinationState::unreadable).
    ///
    /// Setting a pointer is always a change; the item may have held data before, and [`Table::set`] makes it hold data again.
    ///
    /// # Errors
    /// [`SetError`]; then nothing has changed.
    pub fn set_shared<S: Snapshot>(&self, opcode: impl ToOpcode, data: &Arc<S>) -> Result<Sent, SetError> {
        let opcode = opcode.to_opcode()?;
        let pointer = Pointer::new(data.clone());
        self.set_value(&opcode, NewValue::Other(&OtherValue::Pointer(&pointer)))
    }

    /// The data that an item's pointer leads to has changed: it is sent, as it is when it is sent.
    ///
    /// # Errors
    /// [`SetError`], among them that the item holds no pointer.
    pub fn touch(&self, opcode: impl ToOpcode) -> Result<Sent, SetError> {
        let opcode = opcode.to_opcode()?;
        let hashed = self.handle.shared.hashed(&opcode);
        let mut state = self.lock()?;
        match state.core.touch_hashed(self.id, hashed) {
            Some(item) => Ok(self.publish(&mut state, item)),
            None => Err(SetError::NoPointer { opcode }),
        }
    }

    /// As [`Table::set`] for each of these, with one lock and one message for some dozens of them. Others may publish in
    /// between: a batch is quicker than single calls, and no transaction. Of an item that a batch sets twice, destinations may be
    /// sent the newest value only, as they may of one that is set twice within a moment.
    ///
    /// Answers [`Sent::Deferred`] if that is so for any of them, [`Sent::Unchanged`] if for all.
    ///
    /// # Errors
    /// [`SetError`]; then those before the wrong one are set, and it and those behind it are not.
    ///
    /// # Panics
    /// If the iterator does, or a value that is asked for its bytes. Some of those before it may be set then, and destinations
    /// are told of these.
    pub fn set_many<O: ToOpcode, V: AsRef<[u8]>>(
        &self,
        items: impl IntoIterator<Item = (O, V)>,
    ) -> Result<Sent, SetError> {
        let mut items = items.into_iter();
        let mut sent = Sent::Unchanged;
        let (mut batch, mut changed) =
            (Vec::with_capacity(CHANGES_PER_LOCK), Vec::with_capacity(CHANGES_PER_LOCK));
        loop {
            batch.clear();
            let taken = self.take_batch(&mut items, &mut batch);
            if !batch.is_empty() {
                sent = sent.and(self.set_batch(&batch, &mut changed)?);
            }
            taken?;
            if batch.len() < CHANGES_PER_LOCK {
                return Ok(sent);
            }
        }
    }

    /// Removes an item.
    ///
    /// # Errors
    /// [`SetError`].
    pub fn remove(&self, opcode: impl ToOpcode) -> Result<Sent, SetError> {
        let opcode = opcode.to_opcode()?;
        let hashed = self.handle.shared.hashed(&opcode);
        let mut state = self.lock()?;
        match self.handle.shared.remove(&mut state, self.id, hashed) {
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

    /// The newest value of an item; if that is a pointer, a copy of its data as it is now. `None` also if that cannot be read.
    ///
    /// A table that keeps [unacknowledged changes only](crate::Retention::Unacked) knows of no others here, nor in
    /// [`Table::len`] and [`Table::items`].
    pub fn get(&self, opcode: impl ToOpcode) -> Option<Vec<u8>> {
        let opcode = opcode.to_opcode().ok()?;
        let hashed = self.handle.shared.hashed(&opcode);
        let content = {
            let state = self.lock().ok()?;
            Content::of(&state.core.store().find_hashed(self.id, hashed)?.value)
        };
        content?.read()
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.lock().map_or(0, |state| state.core.store().tables()[usize::from(self.id)].live as usize)
    }

    /// Whether the table has no item.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A copy of all items, in no particular order, without those whose data cannot be read.
    pub fn items(&self) -> Vec<(Opcode, Vec<u8>)> {
        let contents: Vec<(Opcode, Content)> = {
            let Ok(state) = self.lock() else { return Vec::new() };
            let items = state.core.store().tables()[usize::from(self.id)].iter();
            items.filter_map(|item| Some((item.opcode.clone(), Content::of(&item.value)?))).collect()
        };
        let items = contents.into_iter();
        items.filter_map(|(opcode, content)| Some((opcode, content.read()?))).collect()
    }

    #[inline]
    pub(crate) fn lock(&self) -> Result<Guard<'_>, SetError> {
        let state = self.handle.lock().map_err(|_| SetError::Forked)?;
        if state.is_closing() { Err(SetError::Closed) } else { Ok(state) }
    }

    fn set_value(&self, opcode: &Opcode, value: NewValue<'_>) -> Result<Sent, SetError> {
        let opcode = self.handle.shared.hashed(opcode);
        let mut state = self.lock()?;
        match self.handle.shared.set(&mut state, self.id, opcode, value) {
            None => Ok(Sent::Unchanged),
            Some(Set { at_once: true, .. }) => Ok(Sent::Now),
            Some(Set { changed: Changed { index, .. }, .. }) => {
                Ok(self.publish(&mut state, ItemId { table: self.id, index }))
            }
        }
    }

    /// Takes items until the batch is full, there are none, or one is wrong. The application's iterator runs without the lock.
    #[inline]
    fn take_batch<O: ToOpcode, V: AsRef<[u8]>>(
        &self,
        items: &mut impl Iterator<Item = (O, V)>,
        batch: &mut Vec<(Opcode, V)>,
    ) -> Result<(), SetError> {
        for (opcode, value) in items {
            let opcode = opcode.to_opcode()?;
            self.check_length(&opcode, value.as_ref().len())?;
            batch.push((opcode, value));
            if batch.len() == CHANGES_PER_LOCK {
                break;
            }
        }
        Ok(())
    }

    /// Sets items whose opcodes and lengths were checked.
    fn set_batch<V: AsRef<[u8]>>(
        &self,
        batch: &[(Opcode, V)],
        changed: &mut Vec<Changed>,
    ) -> Result<Sent, SetError> {
        changed.clear();
        let mut state = self.lock()?;
        state.core.prefetch(self.id, batch.iter().map(|(opcode, _)| opcode));
        let shared = &self.handle.shared;
        let items = batch.iter().map(|(opcode, value)| {
            let value = value.as_ref();
            // The application's code, once more.
            assert!(value.len() <= shared.max_value_bytes(opcode), "a value has become longer meanwhile");
            (opcode, value)
        });
        // If it panics, what was set before goes out all the same.
        let outcome = catch_unwind(AssertUnwindSafe(|| shared.set_many(&mut state, self.id, items, changed)));
        let all_sent = shared.publish(&mut state);
        outcome.unwrap_or_else(|panic| resume_unwind(panic));
        let waiting = |item: &Changed| state.core.is_waiting(ItemId { table: self.id, index: item.index });
        let deferred = !all_sent && changed.iter().any(waiting);
        Ok(match (deferred, changed.is_empty()) {
            (true, _) => Sent::Deferred,
            (false, false) => Sent::Now,
            (false, true) => Sent::Unchanged,
        })
    }

    fn publish(&self, state: &mut State, item: ItemId) -> Sent {
        let deferred = !self.handle.shared.publish(state) && state.core.is_waiting(item);
        if deferred { Sent::Deferred } else { Sent::Now }
    }

    #[inline]
    fn check_length(&self, opcode: &Opcode, bytes: usize) -> Result<(), SetError> {
        let max = self.handle.shared.max_value_bytes(opcode);
        if bytes > max {
            let ring_bytes = self.handle.ring_bytes;
            return Err(SetError::ValueTooLong { bytes, max, ring_bytes });
        }
        Ok(())
    }
}

/// What is taken of an item under the lock.
enum Content {
    Data(Vec<u8>),
    Pointer(Pointer),
}

impl Content {
    fn of(value: &Value) -> Option<Content> {
        match value {
            Value::Data(data) => Some(Content::Data(data.to_vec())),
            Value::Pointer(pointer) => Some(Content::Pointer(pointer.clone())),
            Value::Removed | Value::Vacant => None,
        }
    }

    /// The data, read without the lock if it must be.
    fn read(self) -> Option<Vec<u8>> {
        match self {
            Content::Data(data) => Some(data),
            Content::Pointer(pointer) => {
                let mut copy = Vec::new();
                application::snapshot(&pointer, &mut copy).ok().map(|()| copy)
            }
        }
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
    /// The value could not be written: what [`Table::set_with`] or an encoder said.
    #[error("the value of item {opcode} was not written: {why}")]
    NotWritten {
        /// The item.
        opcode: Opcode,
        /// What was said.
        why: String,
    },
    /// The item is not there, or holds its data itself.
    #[error("item {opcode} holds no pointer that could have changed; use set_shared first")]
    NoPointer {
        /// The item.
        opcode: Opcode,
    },
    /// The source was dropped.
    #[error("the source of this table was dropped")]
    Closed,
    /// The handle was made before a fork and is used in the child, which has no part in the source.
    #[error("{FORKED}")]
    Forked,
}
