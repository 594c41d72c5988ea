//! Keeps keyed state identical in several processes of one host.
#![allow(missing_docs)]

mod opcode;
mod proto;
mod seq;
mod wire;

pub use opcode::{FromOpcode, Opcode, OpcodeError, OpcodeWriter, ToOpcode};
pub use proto::ResendPolicy;
pub use proto::destination::*;
pub use seq::SyncSeq;
