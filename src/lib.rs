//! Keeps keyed state identical in several processes of one host.

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("shmirror runs on 64-bit Linux only: its cursors are 64-bit atomics in sealed memfds");

mod destination;
mod link;
mod monitor;
mod opcode;
mod proto;
mod region;
mod replica;
mod ring;
mod seq;
mod source;
mod stats;
mod sys;
mod wire;

pub use destination::{ConnectionError, Destination, DestinationOptions, RecvError, Wait};
pub use link::LinkError;
pub use link::greeting::GreetingError;
pub use link::rendezvous::ConnectError;
pub use link::rendezvous::bind::BindError;
pub use link::rendezvous::place::{NameError, RuntimeDirError};
pub use monitor::EditGuard;
pub use opcode::{FromOpcode, Opcode, OpcodeError, OpcodeWriter, ToOpcode};
pub use proto::destination::{DestinationStats, Event, HandlerResult};
pub use proto::{ProtocolError, ResendPolicy};
pub use region::RegionError;
pub use replica::{Replica, ReplicaOptions, ReplicaTable, SyncError};
pub use ring::RingError;
pub use seq::SyncSeq;
pub use source::{
    CreateError, DestinationId, FlushError, Flushed, Sent, SetError, Source, SourceOptions, Table, TableError,
};
pub use stats::{DestinationState, SourceStats};
pub use wire::WireError;
