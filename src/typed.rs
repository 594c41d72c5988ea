//! Values of the application's own types.
//!
//! To the protocol a value is bytes. Here they are made from values and values from them, in two ways, each behind the feature
//! of the crate that does it:
//!
//! - `zerocopy`: a struct is its own bytes, as in C. For plain structs of fixed size ([`Table::set_struct`](crate::Table::set_struct),
//!   [`Event::read_struct`](crate::Event::read_struct)).
//! - `postcard`: what serde can serialise, encoded compactly. For strings, lists, options and enums
//!   ([`Table::encode`](crate::Table::encode), [`Event::decode`](crate::Event::decode)).
//!
//! Neither puts a type or a version on the wire. What the two sides must agree on is said at each method.

#[cfg(feature = "postcard")]
mod encoded;
#[cfg(feature = "zerocopy")]
mod plain;

use crate::proto::destination::Event;

/// Why bytes are no value of that type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ValueError {
    /// The struct has another size.
    #[error(
        "value of {found} bytes, expected {expected} bytes, the size of {of}; \
         source and destination must be built with the same definition of it"
    )]
    Size {
        /// The value's length, in bytes.
        found: usize,
        /// The struct's size, in bytes.
        expected: usize,
        /// The struct.
        of: &'static str,
    },
    /// A field of the struct has bytes that are none of its type's values, as a 2 for a `bool`.
    #[error("value of {bytes} bytes is no {of}: a field holds none of the values of its type")]
    Field {
        /// The value's length, in bytes.
        bytes: usize,
        /// The struct.
        of: &'static str,
    },
    /// The bytes cannot be decoded.
    #[error(
        "value of {bytes} bytes is no {of}: {why}; source and destination must be built with the same definition of it"
    )]
    Encoding {
        /// The value's length, in bytes.
        bytes: usize,
        /// The type.
        of: &'static str,
        /// What the decoder said.
        why: String,
    },
    /// The value goes on where the decoded type ends.
    #[error(
        "value of {found} bytes, expected {expected} bytes, where its {of} ends; \
         source and destination must be built with the same definition of it"
    )]
    Trailing {
        /// The value's length, in bytes.
        found: usize,
        /// How many of these were decoded.
        expected: usize,
        /// The type.
        of: &'static str,
    },
    /// The event is not [`Event::Set`].
    #[error("this event has no value; expected Event::Set, as which type {of} was asked for")]
    NoValue {
        /// The type.
        of: &'static str,
    },
}

/// The value of an event that was asked for as a `V`.
fn value_of<'a, V>(event: &Event<'a>) -> Result<&'a [u8], ValueError> {
    match event {
        Event::Set { value, .. } => Ok(value),
        _ => Err(ValueError::NoValue { of: std::any::type_name::<V>() }),
    }
}
