//! Plain structs, through the crate `zerocopy` (feature `zerocopy`).
//!
//! A value lies in memory at any address. So it is copied out, or viewed in place if its type asks for no alignment.

use std::any::type_name;

use zerocopy::{ConvertError, Immutable, IntoBytes, KnownLayout, TryFromBytes, Unaligned};

use super::{ValueError, value_of};
use crate::opcode::ToOpcode;
use crate::proto::destination::Event;
use crate::replica::ReplicaTable;
use crate::source::{Sent, SetError, Table};

impl Table {
    /// As [`Table::set`], with the bytes of a struct. `V` has no padding, as `IntoBytes` makes sure.
    ///
    /// The struct's own bytes are the value: byte order and layout are this process's, and the struct's definition must be the
    /// same on both sides. A change that keeps its size is noticed by nobody: give the table another name then, or begin
    /// the struct with a version. The derives are in `zerocopy` itself: the application depends on it, with its feature
    /// `derive`.
    ///
    /// ```
    /// use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};
    ///
    /// #[derive(Debug, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
    /// #[repr(C)]
    /// struct Neighbour {
    ///     interface: u32,
    ///     address: [u8; 6],
    ///     state: u16,
    /// }
    /// # let dir = tempfile::tempdir()?;
    /// # let source = shmirror::Source::options().runtime_dir(dir.path()).create("s")?;
    /// let neighbours = source.table("neighbours")?;
    /// let router = Neighbour { interface: 2, address: [2, 0, 0, 0, 0, 1], state: 1 };
    /// neighbours.set_struct([192, 0, 2, 1], &router)?;
    /// assert_eq!(neighbours.get_struct::<Neighbour>([192, 0, 2, 1])?, Some(router));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// See [`Table::set`].
    pub fn set_struct<V: IntoBytes + Immutable + ?Sized>(
        &self,
        opcode: impl ToOpcode,
        value: &V,
    ) -> Result<Sent, SetError> {
        self.set(opcode, value.as_bytes())
    }

    /// As [`Table::get`], as a struct.
    ///
    /// # Errors
    /// [`ValueError`]: the item has another size, or none of the struct's values.
    pub fn get_struct<V: TryFromBytes>(&self, opcode: impl ToOpcode) -> Result<Option<V>, ValueError> {
        self.get(opcode).map(|value| read(&value)).transpose()
    }
}

impl<'a> Event<'a> {
    /// The value of an [`Event::Set`] as a struct: a copy, whatever its alignment. The source has set it by
    /// [`Table::set_struct`].
    ///
    /// # Errors
    /// [`ValueError`]: the value has another size than `V`, or none of its values, or the event has none. A handler that hands
    /// the error on (`?`) has not applied the change: it comes again, and shows in
    /// [`DestinationStats::failed`](crate::DestinationStats::failed), in [`Destination::last_failure`](crate::Destination::last_failure), and at
    /// the source in [`DestinationState::failing`](crate::DestinationState::failing).
    pub fn read_struct<V: TryFromBytes>(&self) -> Result<V, ValueError> {
        read(value_of::<V>(self)?)
    }

    /// As [`Event::read_struct`], without a copy, for structs that ask for no alignment: of bytes, or of `zerocopy`'s integers
    /// with a byte order.
    ///
    /// # Errors
    /// See [`Event::read_struct`].
    pub fn view_struct<V>(&self) -> Result<&'a V, ValueError>
    where
        V: TryFromBytes + KnownLayout + Immutable + Unaligned,
    {
        view(value_of::<V>(self)?)
    }
}

impl<'a> ReplicaTable<'a> {
    /// As [`ReplicaTable::get`], as a struct: a copy.
    ///
    /// # Errors
    /// [`ValueError`]: the item has another size, or none of the struct's values.
    pub fn get_struct<V: TryFromBytes>(&self, opcode: impl ToOpcode) -> Result<Option<V>, ValueError> {
        self.get(opcode).map(read).transpose()
    }

    /// As [`ReplicaTable::get_struct`], without a copy, for structs that ask for no alignment.
    ///
    /// # Errors
    /// See [`ReplicaTable::get_struct`].
    pub fn view_struct<V>(&self, opcode: impl ToOpcode) -> Result<Option<&'a V>, ValueError>
    where
        V: TryFromBytes + KnownLayout + Immutable + Unaligned,
    {
        self.get(opcode).map(view).transpose()
    }
}

fn read<V: TryFromBytes>(bytes: &[u8]) -> Result<V, ValueError> {
    V::try_read_from_bytes(bytes).map_err(|error| match error {
        ConvertError::Size(_) => wrong_size::<V>(bytes),
        ConvertError::Validity(_) => wrong_field::<V>(bytes),
    })
}

fn view<V: TryFromBytes + KnownLayout + Immutable + Unaligned>(bytes: &[u8]) -> Result<&V, ValueError> {
    V::try_ref_from_bytes(bytes).map_err(|error| match error {
        ConvertError::Size(_) => wrong_size::<V>(bytes),
        ConvertError::Validity(_) => wrong_field::<V>(bytes),
        ConvertError::Alignment(_) => unreachable!("it is Unaligned"),
    })
}

fn wrong_size<V>(bytes: &[u8]) -> ValueError {
    ValueError::Size { found: bytes.len(), expected: size_of::<V>(), of: type_name::<V>() }
}

fn wrong_field<V>(bytes: &[u8]) -> ValueError {
    ValueError::Field { bytes: bytes.len(), of: type_name::<V>() }
}
