//! What a source's timer thread asks the application for, with no lock held.
//!
//! The application's code may do what it likes: a panic in it is an answer, too.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::opcode::Opcode;
use crate::proto::source::{Drawn, Read, SnapshotRequest};
use crate::proto::store::TableId;
use crate::snapshot::Pointer;

/// Items that are drawn from an enumeration at a time.
const ITEMS_PER_DRAW: usize = 64;

/// What the application answered.
pub(super) enum Answer {
    /// The data has this length and lies in the buffer, or cannot be had.
    Snapshot {
        request: SnapshotRequest,
        length: Result<usize, String>,
    },
    Drawn {
        table: TableId,
        drawn: Result<Drawn, String>,
    },
}

/// Asks. `longest` says how long a value may be.
pub(super) fn ask(read: Read, buffer: &mut Vec<u8>, longest: impl Fn(&Opcode) -> usize) -> Answer {
    match read {
        Read::Pointer(request) => {
            let length =
                snapshot(&request.pointer, buffer).and_then(|()| check(buffer, longest(&request.opcode)));
            Answer::Snapshot { request, length: length.map(|()| buffer.len()) }
        }
        Read::Enumeration { table, items } => {
            let check = |opcode: &Opcode, value: &[u8]| check(value, longest(opcode));
            let drawn =
                guarded(|| Drawn::draw(items, ITEMS_PER_DRAW, check).map_err(|error| error.to_string()));
            Answer::Drawn { table, drawn }
        }
    }
}

/// Copies the data that a pointer leads to into `buffer`, or says why that could not be done.
pub(crate) fn snapshot(pointer: &Pointer, buffer: &mut Vec<u8>) -> Result<(), String> {
    guarded(|| pointer.read(buffer).map_err(|error| error.to_string()))
}

fn guarded<T>(ask: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(ask)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<&str>().copied();
        let said = said.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Err(format!("it panicked: {}", said.unwrap_or("no text")))
    })
}

fn check(value: &[u8], longest: usize) -> Result<(), String> {
    if value.len() > longest {
        return Err(format!(
            "it has {} bytes, expected at most {longest}; use a larger ring_bytes",
            value.len()
        ));
    }
    Ok(())
}
