//! Records that stay where they were copied to: in a buffer of the caller's own.

use std::ops::Range;

use crate::proto::destination::Event;

/// The caller's buffer while a link receives into it.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) bytes: Vec<u8>,
    /// No record is begun behind this.
    pub(crate) full_at: usize,
    /// How far the buffer is filled.
    pub(crate) end: usize,
    /// Where the values lie that were handed over, in turn.
    pub(crate) values: Vec<Range<usize>>,
}

impl Kept {
    /// Hands an event of a record on that ends there; a value is the end of its record.
    pub(crate) fn hand_over(
        &mut self,
        event: Event<'_>,
        record_end: usize,
        handler: &mut impl FnMut(Event<'_>) -> bool,
    ) -> bool {
        if let Event::Set { value, .. } = event {
            self.values.push(record_end - value.len()..record_end);
        }
        handler(event)
    }
}
