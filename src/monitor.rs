//! Data monitoring (S1): how a change of the application's data becomes a change of an item.
//!
//! The application says [`Table::set`] and [`Table::remove`], and a value that is equal to the one before is no change. Or
//! it takes a value out with [`Table::edit`], changes it in place, and the guard sees at its end whether it has changed.

use std::ops::{Deref, DerefMut};

use crate::opcode::{Opcode, ToOpcode};
use crate::source::{Sent, SetError, Table};

impl Table {
    /// The value of an item to be changed in place; it is published when the guard is dropped, if it has changed.
    /// An item that is not there begins empty.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let source = shmirror::Source::options().runtime_dir(dir.path()).create("ports")?;
    /// let ports = source.table("ports")?;
    /// ports.edit("eth0")?.extend_from_slice(b"up");
    /// assert_eq!(ports.get("eth0").as_deref(), Some(&b"up"[..]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`SetError`].
    pub fn edit(&self, opcode: impl ToOpcode) -> Result<EditGuard<'_>, SetError> {
        let opcode = opcode.to_opcode()?;
        drop(self.lock()?);
        let before = self.get(&opcode);
        let value = before.clone().unwrap_or_default();
        Ok(EditGuard { table: self, opcode, before, value, published: false })
    }

    /// Notes an error that has no caller to go to.
    fn report(&self, error: &SetError) {
        if let Ok(mut state) = self.lock() {
            state.counters.last_error = Some(format!("an edited item was not published: {error}"));
        }
    }
}

/// A copy of an item's value, published when the guard is dropped if it differs from what the item had.
///
/// An item changed by others meanwhile gets the guard's value: the last write wins, as with [`Table::set`].
#[derive(Debug)]
pub struct EditGuard<'a> {
    table: &'a Table,
    opcode: Opcode,
    before: Option<Vec<u8>>,
    value: Vec<u8>,
    published: bool,
}

impl EditGuard<'_> {
    /// Publishes now, and says what became of it. A drop does the same, and an error then shows in
    /// [`SourceStats::last_error`](crate::SourceStats::last_error).
    ///
    /// # Errors
    /// See [`Table::set`].
    pub fn publish(mut self) -> Result<Sent, SetError> {
        self.publish_if_changed()
    }

    fn publish_if_changed(&mut self) -> Result<Sent, SetError> {
        self.published = true;
        // An item that was not there and is still empty was not touched.
        if self.before.as_deref().unwrap_or_default() == self.value {
            return Ok(Sent::Unchanged);
        }
        self.table.set(&self.opcode, &self.value)
    }
}

impl Deref for EditGuard<'_> {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.value
    }
}

impl DerefMut for EditGuard<'_> {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.value
    }
}

impl Drop for EditGuard<'_> {
    fn drop(&mut self) {
        // What a panic has left half made is not published.
        if !self.published
            && !std::thread::panicking()
            && let Err(error) = self.publish_if_changed()
        {
            self.table.report(&error);
        }
    }
}
