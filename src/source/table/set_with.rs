//! Values that are written where they stay.
//!
//! The value is written into a buffer of exactly its length, with no lock held. Then that buffer becomes the item's value in
//! the store, and what the item held before becomes the thread's buffer for the next time. So the store allocates nothing while
//! values keep their length, and copies nothing but what is so short that it lies in the item itself. Each destination's ring gets its copy from
//! the store, as of any value.
//!
//! Why not straight into the ring: there is one ring per destination, a full one takes nothing, and a resend needs the value
//! once more. So it would have to be copied back out of the ring, and whoever writes it would do so under the lock.

use std::cell::{Cell, RefCell};
use std::error::Error;

use smallvec::smallvec;

use super::{Sent, SetError, Table};
use crate::opcode::ToOpcode;
use crate::proto::ValueBytes;
use crate::proto::store::{NewValue, OtherValue};

impl Table {
    /// As [`Table::set`], with a value of `len` bytes that `write` puts in place: for what is encoded as it is sent, without a
    /// buffer of the caller's own.
    ///
    /// `write` gets `len` zero bytes. No lock is held while it runs: it may call the library, this table included, and takes
    /// nobody's time. Changes of the same item by others take effect before or after it as a whole.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let source = shmirror::Source::options().runtime_dir(dir.path()).create("ports")?;
    /// let ports = source.table("ports")?;
    /// let (up, mtu) = (true, 1500u32);
    /// ports.set_with("eth0", 5, |out| {
    ///     out[0] = up.into();
    ///     out[1..].copy_from_slice(&mtu.to_be_bytes());
    ///     Ok(())
    /// })?;
    /// assert_eq!(ports.get("eth0").as_deref(), Some(&[1, 0, 0, 0x05, 0xdc][..]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`SetError`], among them [`SetError::NotWritten`] with what `write` said; then nothing has changed. Nor has it if
    /// `write` panics. A value that is too long is refused before `write` is called.
    pub fn set_with(
        &self,
        opcode: impl ToOpcode,
        len: usize,
        write: impl FnOnce(&mut [u8]) -> Result<(), Box<dyn Error + Send + Sync>>,
    ) -> Result<Sent, SetError> {
        let opcode = opcode.to_opcode()?;
        self.check_length(&opcode, len)?;
        let mut buffer = take_buffer(len);
        if let Err(why) = write(&mut buffer) {
            return Err(SetError::NotWritten { opcode, why: why.to_string() });
        }
        let value = OtherValue::Buffer(RefCell::new(buffer));
        let sent = self.set_value(&opcode, NewValue::Other(&value));
        if let OtherValue::Buffer(buffer) = value {
            keep_buffer(buffer.into_inner());
        }
        sent
    }
}

thread_local! {
    /// What the last long value that was replaced was kept in.
    static BUFFER: Cell<Option<ValueBytes>> = const { Cell::new(None) };
}

/// A thread keeps no larger buffer.
const LONGEST_KEPT: usize = 64 * 1024;

/// A buffer of so many zero bytes: none of an earlier value's bytes, which may be of another table, get into this one.
#[inline]
fn take_buffer(len: usize) -> ValueBytes {
    if len <= ValueBytes::new().inline_size() {
        return smallvec![0; len];
    }
    // It is taken out, so that `write` may set values itself. At the end of a thread there is none.
    let kept = BUFFER.try_with(Cell::take).ok().flatten();
    match kept {
        Some(mut kept) if kept.len() == len => {
            kept.fill(0);
            kept
        }
        _ => smallvec![0; len],
    }
}

fn keep_buffer(buffer: ValueBytes) {
    if buffer.spilled() && buffer.len() <= LONGEST_KEPT {
        // At the end of a thread nothing is kept.
        let _ended = BUFFER.try_with(|kept| kept.set(Some(buffer)));
    }
}
