//! Batches: events that are received into memory of the caller's own.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::{Attachment, Destination, RecvError};
use crate::dispatch::{Dispatched, Next};
use crate::link::kept::Kept;
use crate::opcode::Opcode;
use crate::proto::destination::{AckSlot, AckToken, Event};
use crate::seq::SyncSeq;
use crate::sys::poll::deadline_after;

/// Events that [`Destination::recv_batch`] has received, and the buffer that their values lie in.
///
/// Each record is copied once, out of the ring and into this buffer, and stays there for as long as the caller likes. A batch can
/// be handed to another thread while its destination receives into the next one.
///
/// Its changes are acknowledged when it comes back: by [`Destination::ack_batch`], or when it is filled again. Until then
/// their source keeps them. One that is dropped acknowledges nothing: its changes stay unacknowledged, and are not handed over
/// again, until their items change or the destination is made anew.
#[derive(Debug, Default)]
#[must_use = "a batch that is dropped acknowledges nothing"]
pub struct Batch {
    /// What the records are copied into. Only ever grows.
    bytes: Vec<u8>,
    /// Once so many bytes are full, the batch is.
    full_at: usize,
    entries: Vec<Entry>,
    /// The names of the tables that were seen.
    tables: Vec<Box<str>>,
    /// Where in these the last event's is.
    last_table: usize,
}

#[derive(Debug)]
struct Entry {
    what: What,
    ack: Option<AckToken>,
    refused: bool,
}

#[derive(Debug)]
enum What {
    Set { table: usize, opcode: Opcode, seq: SyncSeq, replaced: bool, value: Range<usize> },
    Removed { table: usize, opcode: Opcode, seq: SyncSeq },
    Synced { table: usize },
    SourceLost,
    SourceFound { pid: u32, restarted: bool },
}

impl Batch {
    /// An empty batch over this buffer: it is full when the records in it, of 24 bytes, opcode and value each, fill the buffer's
    /// capacity. A record that is longer than what is left, of 256 MiB at most, is still taken in, and the buffer grows for it,
    /// or for the up to 7 bytes behind a last one that fits exactly: records are copied in words of 8.
    pub fn new(buffer: Vec<u8>) -> Batch {
        Batch { full_at: buffer.capacity(), bytes: buffer, ..Batch::default() }
    }

    /// An empty batch of so many bytes.
    pub fn with_capacity(bytes: usize) -> Batch {
        Batch::new(Vec::with_capacity(bytes))
    }

    /// Number of events.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no event.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The events, in the order in which they came, as a handler gets them. Their acks are the batch's: [`Event::defer_ack`]
    /// answers `None`.
    pub fn events(&self) -> impl ExactSizeIterator<Item = Event<'_>> {
        self.entries.iter().map(|entry| self.event(entry))
    }

    /// Where the value of an event lies in the [buffer](Batch::buffer); `None` if there is no such event or it has no value.
    pub fn value_range(&self, event: usize) -> Option<Range<usize>> {
        match &self.entries.get(event)?.what {
            What::Set { value, .. } => Some(value.clone()),
            _ => None,
        }
    }

    /// The buffer. What lies between the values is of no use.
    pub fn buffer(&self) -> &[u8] {
        &self.bytes
    }

    /// The change of that event was not applied: when the batch comes back, it is refused, and comes again with its newest value.
    /// Answers whether there is such an event, and it is a change whose ack is the batch's.
    pub fn refuse(&mut self, event: usize) -> bool {
        let Some(entry) = self.entries.get_mut(event).filter(|entry| entry.ack.is_some()) else {
            return false;
        };
        entry.refused = true;
        true
    }

    /// Takes the ack of that event out of the batch, to be given on its own ([`Destination::ack`]). `None` if there is none.
    pub fn take_ack(&mut self, event: usize) -> Option<AckToken> {
        self.entries.get_mut(event)?.ack.take()
    }

    fn event<'a>(&'a self, entry: &'a Entry) -> Event<'a> {
        let (table, ack) = (|table: usize| &*self.tables[table], AckSlot::NONE);
        match &entry.what {
            What::Set { table: of, opcode, seq, replaced, value } => Event::Set {
                table: table(*of),
                opcode,
                value: &self.bytes[value.clone()],
                seq: *seq,
                replaced: *replaced,
                ack,
            },
            What::Removed { table: of, opcode, seq } => {
                Event::Removed { table: table(*of), opcode, seq: *seq, ack }
            }
            What::Synced { table: of } => Event::Synced { table: table(*of) },
            What::SourceLost => Event::SourceLost,
            &What::SourceFound { pid, restarted } => Event::SourceFound { pid, restarted },
        }
    }

    /// Notes an event; where its value lies is told at the end.
    fn push(&mut self, event: Event<'_>) {
        let ack = event.defer_ack();
        let what = match event {
            Event::Set { table, opcode, seq, replaced, .. } => {
                What::Set { table: self.place_of(table), opcode: opcode.clone(), seq, replaced, value: 0..0 }
            }
            Event::Removed { table, opcode, seq, .. } => {
                What::Removed { table: self.place_of(table), opcode: opcode.clone(), seq }
            }
            Event::Synced { table } => What::Synced { table: self.place_of(table) },
            Event::SourceLost => What::SourceLost,
            Event::SourceFound { pid, restarted } => What::SourceFound { pid, restarted },
        };
        self.entries.push(Entry { what, ack, refused: false });
    }

    fn place_of(&mut self, table: &str) -> usize {
        // Most likely the last event's: changes of one table come together.
        if self.tables.get(self.last_table).is_none_or(|last| **last != *table) {
            self.last_table = self.tables.iter().position(|known| **known == *table).unwrap_or_else(|| {
                self.tables.push(table.into());
                self.tables.len() - 1
            });
        }
        self.last_table
    }

    fn place_values(&mut self, kept: Kept) {
        self.bytes = kept.bytes;
        let mut values = kept.values.into_iter();
        for entry in &mut self.entries {
            if let What::Set { value, .. } = &mut entry.what {
                *value = values.next().expect("each value that was handed over was noted");
            }
        }
    }
}

/// How long to wait for the first event.
#[derive(Debug, Clone, Copy)]
enum Patience {
    None,
    Until(Option<Instant>),
    /// Nor is there any, and then an event loop sleeps.
    EventLoop,
}

impl Destination {
    /// As [`Destination::recv`], but puts what comes in a batch, whose changes are acknowledged when it comes back: what is in
    /// `batch` now is acknowledged first ([`Destination::ack_batch`]). Answers how many records it took in, at most 1024; those
    /// of them that the application has already are no events.
    ///
    /// ```
    /// use shmirror::{Batch, Destination, Event};
    /// # let dir = tempfile::tempdir()?;
    /// # let source = shmirror::Source::options().runtime_dir(dir.path()).create("routes")?;
    /// # source.table("ipv4")?.set("10.0.0.0/8", b"via 192.0.2.1")?;
    /// # source.table("ipv4")?.ready();
    /// # let options = Destination::options().runtime_dir(dir.path());
    /// let mut destination = options.connect("routes")?;
    /// let mut batch = Batch::with_capacity(64 * 1024);
    /// let mut routes = Vec::new();
    /// while !destination.is_synced("ipv4") {
    ///     destination.recv_batch(&mut batch)?; // what was in it is acknowledged
    ///     for event in batch.events() {
    ///         if let Event::Set { opcode, value, .. } = event {
    ///             routes.push((opcode.to_string(), value.len())); // `value` lies in the batch's buffer
    ///         }
    ///     }
    /// }
    /// destination.ack_batch(&mut batch)?;
    /// assert_eq!(routes, [("10.0.0.0/8".to_string(), 13)]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// [`Event::Synced`] has no ack of its own: its table counts as synced when it is received.
    ///
    /// # Errors
    /// See [`Destination::recv`]; then the batch is empty. If events came before the error, they are in the batch, and the error
    /// is that of the next call.
    pub fn recv_batch(&mut self, batch: &mut Batch) -> Result<usize, RecvError> {
        Ok(self.receive_batch(batch, Patience::Until(None))?.received)
    }

    /// As [`Destination::recv_batch`], but waits no longer than `timeout`; then it answers 0, and the batch is empty.
    ///
    /// # Errors
    /// See [`Destination::recv_batch`].
    pub fn recv_batch_timeout(&mut self, batch: &mut Batch, timeout: Duration) -> Result<usize, RecvError> {
        Ok(self.receive_batch(batch, Patience::Until(Some(deadline_after(timeout))))?.received)
    }

    /// As [`Destination::recv_batch`], but does not wait at all. An event loop calls [`Destination::dispatch_batch`], which
    /// also silences the descriptor.
    ///
    /// # Errors
    /// See [`Destination::recv_batch`].
    pub fn try_recv_batch(&mut self, batch: &mut Batch) -> Result<usize, RecvError> {
        Ok(self.receive_batch(batch, Patience::None)?.received)
    }

    /// As [`Destination::dispatch`], for an event loop, but puts what comes in a batch, as [`Destination::recv_batch`]: what is
    /// in `batch` now is acknowledged first. When the batch is full, there may be more to do already.
    ///
    /// # Errors
    /// See [`Destination::recv_batch`]; as after an error of [`Destination::dispatch`], the descriptor becomes readable when
    /// there is reason to go on.
    pub fn dispatch_batch(&mut self, batch: &mut Batch) -> Result<Dispatched, RecvError> {
        self.receive_batch(batch, Patience::EventLoop)
    }

    /// Acknowledges the changes in a batch, except for those that it was told to [refuse](Batch::refuse), and empties it. Answers
    /// how many of these acks were owed; see [`Destination::ack`].
    ///
    /// # Errors
    /// See [`Destination::ack`].
    pub fn ack_batch(&mut self, batch: &mut Batch) -> Result<usize, RecvError> {
        self.check_process()?;
        let mut applied = Vec::with_capacity(batch.len());
        for Entry { ack, refused, .. } in batch.entries.drain(..) {
            match (ack, refused) {
                (Some(token), true) => {
                    self.refuse(token);
                }
                (Some(token), false) => applied.push(token),
                (None, _) => {}
            }
        }
        self.ack_all(applied)
    }

    fn receive_batch(&mut self, batch: &mut Batch, patience: Patience) -> Result<Dispatched, RecvError> {
        self.ack_batch(batch)?;
        let bytes = std::mem::take(&mut batch.bytes);
        self.kept = Some(Kept { bytes, full_at: batch.full_at.max(1), end: 0, values: Vec::new() });
        // A link that is made meanwhile does not get the buffer: to have found a source is all that such a call answers.
        if let Attachment::Attached(link) = &mut self.attachment {
            link.swap_kept(&mut self.kept);
        }
        let push = |event: Event<'_>| {
            batch.push(event);
            Ok(())
        };
        let taken_in = |received| Dispatched { received, next: Next::Now };
        let outcome = match patience {
            Patience::None => self.try_recv(push).map(taken_in),
            Patience::Until(deadline) => self.recv_until(deadline, push).map(taken_in),
            Patience::EventLoop => self.dispatch(push),
        };
        // A link that was lost meanwhile has given it back.
        if let (None, Attachment::Attached(link)) = (&self.kept, &mut self.attachment) {
            link.swap_kept(&mut self.kept);
        }
        batch.place_values(self.kept.take().expect("it is with the link or here"));
        match outcome {
            Err(error) if !batch.is_empty() => {
                self.held_back = Some(error);
                self.polled.alarm();
                Ok(taken_in(batch.len()))
            }
            outcome => outcome,
        }
    }
}
