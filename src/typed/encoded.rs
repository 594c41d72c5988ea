//! Values that serde can serialise, in the format of the crate `postcard` (feature `postcard`).

use std::any::type_name;

use postcard::ser_flavors::Size;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{ValueError, value_of};
use crate::opcode::ToOpcode;
use crate::proto::destination::Event;
use crate::replica::ReplicaTable;
use crate::source::{Sent, SetError, Table};

impl Table {
    /// As [`Table::set`], with a value encoded by `postcard` (<https://postcard.jamesmunns.com>): without names, with
    /// integers of variable length.
    ///
    /// The encoding says nothing of the type: its definition must be the same on both sides. Most changes of it are noticed,
    /// as an error at the destination, but not all: give the table another name when the type changes. The application depends
    /// on `serde`, with its feature `derive`.
    ///
    /// ```
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Debug, PartialEq, Serialize, Deserialize)]
    /// struct Session {
    ///     apn: String,
    ///     bearers: Vec<u8>,
    /// }
    /// # let dir = tempfile::tempdir()?;
    /// # let source = shmirror::Source::options().runtime_dir(dir.path()).create("s")?;
    /// let sessions = source.table("sessions")?;
    /// let session = Session { apn: "internet".into(), bearers: vec![5, 6] };
    /// sessions.encode(7u32, &session)?;
    /// assert_eq!(sessions.decode::<Session>(7u32)?, Some(session));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// It is serialised twice: for its length, and where it stays ([`Table::set_with`]); a third time if its length has changed in
    /// between, as that of data behind a lock may.
    ///
    /// # Errors
    /// See [`Table::set`]; [`SetError::NotWritten`] if the value cannot be serialised.
    pub fn encode<V: Serialize + ?Sized>(&self, opcode: impl ToOpcode, value: &V) -> Result<Sent, SetError> {
        let opcode = opcode.to_opcode()?;
        let not_written = |why| {
            let why = format!("{}: {why}", type_name::<V>());
            SetError::NotWritten { opcode: opcode.clone(), why }
        };
        let len = postcard::serialize_with_flavor(value, Size::default()).map_err(not_written)?;
        let mut is_whole = false;
        let sent = self.set_with(&opcode, len, |out| {
            is_whole = postcard::to_slice(value, out)?.len() == len;
            if is_whole { Ok(()) } else { Err("shorter than a moment before".into()) }
        });
        match sent {
            // What lies behind a lock may have changed in between.
            Err(SetError::NotWritten { .. }) if !is_whole => {
                self.set(&opcode, postcard::to_allocvec(value).map_err(not_written)?)
            }
            sent => sent,
        }
    }

    /// As [`Table::get`], decoded.
    ///
    /// # Errors
    /// [`ValueError`]: the item is no `V`.
    pub fn decode<V: DeserializeOwned>(&self, opcode: impl ToOpcode) -> Result<Option<V>, ValueError> {
        self.get(opcode).map(|value| decode(&value)).transpose()
    }
}

impl<'a> Event<'a> {
    /// The value of an [`Event::Set`], decoded; the source has set it by [`Table::encode`]. A `V` that borrows, as of `&str`,
    /// borrows from the event.
    ///
    /// # Errors
    /// [`ValueError`]: the value is no `V`, or goes on behind it, or the event has none. A handler that hands the error on (`?`)
    /// has not applied the change: it comes again, and shows in
    /// [`DestinationStats::failed`](crate::DestinationStats::failed), in [`Destination::last_failure`](crate::Destination::last_failure), and at
    /// the source in [`DestinationState::failing`](crate::DestinationState::failing).
    pub fn decode<V: Deserialize<'a>>(&self) -> Result<V, ValueError> {
        decode(value_of::<V>(self)?)
    }
}

impl<'a> ReplicaTable<'a> {
    /// As [`ReplicaTable::get`], decoded.
    ///
    /// # Errors
    /// [`ValueError`]: the item is no `V`.
    pub fn decode<V: Deserialize<'a>>(&self, opcode: impl ToOpcode) -> Result<Option<V>, ValueError> {
        self.get(opcode).map(decode).transpose()
    }
}

fn decode<'a, V: Deserialize<'a>>(bytes: &'a [u8]) -> Result<V, ValueError> {
    let of = type_name::<V>();
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => {
            Err(ValueError::Trailing { found: bytes.len(), expected: bytes.len() - rest.len(), of })
        }
        Err(why) => Err(ValueError::Encoding { bytes: bytes.len(), of, why: why.to_string() }),
    }
}
