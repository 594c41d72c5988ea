//! The destination's end: its own record of every item, and what it owes acks for (S4, S5).
//!
//! [`DestinationCore::attach`], then [`DestinationCore::handle_record`] for each record of the change ring in turn, and
//! [`DestinationCore::poll_ack`] for the acks to send; [`DestinationCore::detach`] when the link is gone.
//!
//! Invariants:
//! 1. A record is acknowledged if and only if its change, or a newer one of its item, was applied: after the handler
//!    returned Ok, and never before.
//! 2. Within one epoch no change is handed to the application twice, and none after a newer one of its item.
//! 3. At each attach every item is unconfirmed; the end marker of a table removes those that its replay did not name.
//!    Nothing else does: no timer, no lost link.
//! 4. An end marker counts only if no record is missing that its source has not sent again since.

use hashbrown::HashMap;

use std::collections::VecDeque;

use crate::opcode::Opcode;
use crate::seq::{ChangeNumber, SyncSeq};
use crate::wire::{Ack, Frame, Payload, WireError};

/// What a handler answers; an error means: not applied, send it again.
pub type HandlerResult = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Something that the application is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// An item is there, or has a new value.
    #[non_exhaustive]
    Set {
        /// The item's table.
        table: &'a str,
        /// The item's identity.
        opcode: &'a Opcode,
        /// Its value.
        value: &'a [u8],
        /// The change's sync sequence number.
        seq: SyncSeq,
        /// The item was removed and made anew since the value that was applied last; that remove is not told otherwise.
        replaced: bool,
    },
    /// An item is gone: it was removed, or a replay has ended without it, or the source is gone and so are its items
    /// ([`OnSourceLost::Flush`](crate::OnSourceLost::Flush)).
    #[non_exhaustive]
    Removed {
        /// The item's table.
        table: &'a str,
        /// The item's identity.
        opcode: &'a Opcode,
        /// The sync sequence number of the remove, or of the end marker whose replay did not name the item. If the items
        /// are flushed because the source is gone, that of the item's last change.
        seq: SyncSeq,
    },
    /// The table holds all that it held at its source when this destination attached, and nothing else, except for items
    /// that the handler has refused: they are as they were, and come again.
    Synced {
        /// The table.
        table: &'a str,
    },
    /// The source is gone; the items stay unless they are to be flushed.
    SourceLost,
    /// Attached to the source; its full state follows.
    #[non_exhaustive]
    SourceFound {
        /// The source's process.
        pid: u32,
        /// It is not the source that this destination was attached to before, but a new life of it.
        restarted: bool,
    },
}

/// Numbers that a destination counts from its beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DestinationStats {
    /// Records received.
    pub received: u64,
    /// Changes that the handler applied.
    pub applied: u64,
    /// Changes that came again although they were applied; they are acknowledged and not handed over.
    pub duplicates: u64,
    /// Times that a handler failed or panicked.
    pub failed: u64,
    /// Items that were removed because a replay did not name them.
    pub swept: u64,
    /// Records that never came; their source sends them again.
    pub missing: u64,
    /// Items held now.
    pub items: u64,
    /// Attachments to a source.
    pub attaches: u64,
}

/// The most ranges of acks that wait while the ack ring is full; then the destination consumes no more.
pub(crate) const MAX_PENDING_ACKS: usize = 1024;

#[derive(Debug)]
pub(crate) struct DestinationCore {
    /// Records hold their values, too.
    keep_values: bool,
    tables: Vec<LocalTable>,
    link: Option<Link>,
    /// Epochs are random and compared for equality only.
    epoch: Option<u64>,
    /// Counts attaches; a record that bears the newest count is confirmed.
    attach: u32,
    /// The attach at which the present epoch began; a record applied before it says nothing about order.
    epoch_began: u32,
    stats: DestinationStats,
}

#[derive(Debug)]
struct LocalTable {
    name: Box<str>,
    records: HashMap<Opcode, Record>,
    /// The attach whose end marker was applied last; 0 for none.
    synced: u32,
}

#[derive(Debug)]
struct Record {
    /// The change applied last.
    change: ChangeNumber,
    /// The attach on which that was.
    applied_on: u32,
    /// The newest attach whose source named the item.
    confirmed_on: u32,
    value: Box<[u8]>,
}

/// What is known of the current link.
#[derive(Debug, Default)]
struct Link {
    /// For each table number of the source, the place of that table here.
    tables: Vec<Option<usize>>,
    next_ordinal: u64,
    /// The newest record that is missing.
    last_gap: Option<u64>,
    acks: VecDeque<Ack>,
}

/// What the handler of one event answered, as far as the protocol cares.
type Applied = bool;

impl DestinationCore {
    pub(crate) fn new(keep_values: bool) -> DestinationCore {
        DestinationCore {
            keep_values,
            tables: Vec::new(),
            link: None,
            epoch: None,
            attach: 0,
            epoch_began: 0,
            stats: DestinationStats::default(),
        }
    }

    /// A new link. Answers whether the source is another life than the one before it.
    pub(crate) fn attach(&mut self, epoch: u64) -> bool {
        self.attach += 1;
        self.stats.attaches += 1;
        self.link = Some(Link::default());
        let restarted = self.epoch.is_some_and(|before| before != epoch);
        if self.epoch != Some(epoch) {
            self.epoch = Some(epoch);
            self.epoch_began = self.attach;
        }
        restarted
    }

    pub(crate) fn detach(&mut self) {
        self.link = None;
    }

    /// Gives all items up, because the application wants none without their source. What its handler does not let go of
    /// is swept when a source is back.
    pub(crate) fn flush(&mut self, mut handler: impl FnMut(Event<'_>) -> Applied) {
        for table in &mut self.tables {
            let LocalTable { name, records, .. } = table;
            let flushed = records.extract_if(|opcode, record| {
                handler(Event::Removed { table: name, opcode, seq: record.change.seq() })
            });
            self.stats.items -= flushed.count() as u64;
            self.stats.failed += records.len() as u64;
        }
    }

    /// S4: applies a record through the handler and notes the ack that is due for it.
    pub(crate) fn handle_record(
        &mut self,
        bytes: &[u8],
        mut handler: impl FnMut(Event<'_>) -> Applied,
    ) -> Result<(), WireError> {
        let Some(link) = &mut self.link else { return Ok(()) };
        let frame = Frame::decode(bytes, link.next_ordinal)?;
        self.stats.received += 1;
        if frame.ordinal < link.next_ordinal {
            return Ok(());
        }
        if frame.ordinal > link.next_ordinal {
            self.stats.missing += frame.ordinal - link.next_ordinal;
            link.last_gap = Some(frame.ordinal - 1);
        }
        link.next_ordinal = frame.ordinal + 1;
        let applied = match frame.payload {
            Payload::Table { name } => self.handle_table(frame.table, name),
            payload => {
                // A table without a name: its announcement is missing. It comes again, and so does this, which counts
                // as missing until then.
                let Some(&Some(at)) = link.tables.get(usize::from(frame.table)) else {
                    link.last_gap = Some(frame.ordinal);
                    return Ok(());
                };
                match payload {
                    Payload::Set { opcode, value, created } => {
                        self.handle_set(at, opcode, value, frame.change, created, &mut handler)
                    }
                    Payload::Remove { opcode } => self.handle_remove(at, opcode, frame.change, &mut handler),
                    Payload::End { oldest_unacked } => {
                        let complete = link.last_gap.is_none_or(|gap| gap < oldest_unacked);
                        complete && self.handle_end(at, frame.change.seq(), &mut handler)
                    }
                    Payload::Table { .. } => unreachable!("handled above"),
                }
            }
        };
        if applied {
            self.owe_ack(frame.ordinal, frame.change.seq());
        }
        Ok(())
    }

    /// S5: the ack that goes next, if any. It stays the next until [`DestinationCore::handle_ack_sent`].
    pub(crate) fn poll_ack(&self) -> Option<Ack> {
        self.link.as_ref()?.acks.front().copied()
    }

    pub(crate) fn handle_ack_sent(&mut self) {
        if let Some(link) = &mut self.link {
            link.acks.pop_front();
        }
    }

    /// Whether so many acks wait that nothing more may be consumed.
    pub(crate) fn is_congested(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.acks.len() >= MAX_PENDING_ACKS)
    }

    pub(crate) fn stats(&self) -> DestinationStats {
        self.stats
    }

    pub(crate) fn tables(&self) -> impl Iterator<Item = &str> {
        self.tables.iter().map(|table| &*table.name)
    }

    pub(crate) fn is_synced(&self, table: &str) -> bool {
        let table = self.tables.iter().find(|local| &*local.name == table);
        self.link.is_some() && table.is_some_and(|table| table.synced == self.attach)
    }

    /// The tables that the source has announced on this link and whose end marker was not applied.
    pub(crate) fn loading(&self) -> impl Iterator<Item = &str> {
        let announced = self.link.iter().flat_map(|link| link.tables.iter().flatten());
        let tables = announced.map(|&at| &self.tables[at]);
        tables.filter(|table| table.synced != self.attach).map(|table| &*table.name)
    }

    /// Whether the source has announced tables on this link and the end marker of each was applied.
    pub(crate) fn is_all_synced(&self) -> bool {
        let Some(link) = &self.link else { return false };
        let mut announced = link.tables.iter().flatten().peekable();
        announced.peek().is_some() && announced.all(|&at| self.tables[at].synced == self.attach)
    }

    /// The value of an item, if values are kept.
    pub(crate) fn value(&self, table: &str, opcode: &Opcode) -> Option<&[u8]> {
        let table = self.tables.iter().find(|local| &*local.name == table)?;
        table.records.get(opcode).map(|record| &*record.value)
    }

    /// The items of a table; values are empty unless kept.
    pub(crate) fn items(&self, table: &str) -> impl ExactSizeIterator<Item = (&Opcode, &[u8])> {
        static NO_RECORDS: std::sync::OnceLock<HashMap<Opcode, Record>> = std::sync::OnceLock::new();
        let table = self.tables.iter().find(|local| &*local.name == table);
        let records = table.map_or_else(|| NO_RECORDS.get_or_init(HashMap::new), |table| &table.records);
        records.iter().map(|(opcode, record)| (opcode, &*record.value))
    }

    fn handle_table(&mut self, number: u16, name: &str) -> Applied {
        let Some(link) = &mut self.link else { return false };
        let at = self.tables.iter().position(|table| &*table.name == name).unwrap_or_else(|| {
            self.tables.push(LocalTable { name: name.into(), records: HashMap::new(), synced: 0 });
            self.tables.len() - 1
        });
        let number = usize::from(number);
        if link.tables.len() <= number {
            link.tables.resize(number + 1, None);
        }
        link.tables[number] = Some(at);
        true
    }

    fn handle_set(
        &mut self,
        at: usize,
        opcode: &[u8],
        value: &[u8],
        change: ChangeNumber,
        created: ChangeNumber,
        handler: &mut impl FnMut(Event<'_>) -> Applied,
    ) -> Applied {
        let LocalTable { name, records, .. } = &mut self.tables[at];
        let opcode = Opcode::from_bytes(opcode).expect("a frame's opcode has at most 255 bytes");
        let mut replaced = false;
        let record = records.get_mut(&opcode);
        let record = match record {
            Some(record) => {
                record.confirmed_on = self.attach;
                if record.applied_on >= self.epoch_began {
                    if record.change >= change {
                        self.stats.duplicates += 1;
                        return true;
                    }
                    replaced = record.change < created;
                }
                Some(record)
            }
            None => None,
        };
        if !handler(Event::Set { table: name, opcode: &opcode, value, seq: change.seq(), replaced }) {
            self.stats.failed += 1;
            return false;
        }
        self.stats.applied += 1;
        let kept: &[u8] = if self.keep_values { value } else { &[] };
        match record {
            Some(record) => {
                record.change = change;
                record.applied_on = self.attach;
                if record.value.len() == kept.len() {
                    record.value.copy_from_slice(kept);
                } else {
                    record.value = kept.into();
                }
            }
            None => {
                let record =
                    Record { change, applied_on: self.attach, confirmed_on: self.attach, value: kept.into() };
                self.stats.items += 1;
                records.insert(opcode, record);
            }
        }
        true
    }

    fn handle_remove(
        &mut self,
        at: usize,
        opcode: &[u8],
        change: ChangeNumber,
        handler: &mut impl FnMut(Event<'_>) -> Applied,
    ) -> Applied {
        let LocalTable { name, records, .. } = &mut self.tables[at];
        let opcode = Opcode::from_bytes(opcode).expect("a frame's opcode has at most 255 bytes");
        let Some(record) = records.get_mut(&opcode) else {
            self.stats.duplicates += 1;
            return true;
        };
        record.confirmed_on = self.attach;
        if record.applied_on >= self.epoch_began && record.change >= change {
            self.stats.duplicates += 1;
            return true;
        }
        if !handler(Event::Removed { table: name, opcode: &opcode, seq: change.seq() }) {
            self.stats.failed += 1;
            return false;
        }
        self.stats.applied += 1;
        self.stats.items -= 1;
        records.remove(&opcode);
        true
    }

    /// The sweep: removes what this attach has not confirmed. If a handler fails, the marker stays unacknowledged and
    /// the rest is swept when it comes again.
    fn handle_end(
        &mut self,
        at: usize,
        seq: SyncSeq,
        handler: &mut impl FnMut(Event<'_>) -> Applied,
    ) -> Applied {
        let table = &mut self.tables[at];
        if table.synced == self.attach {
            self.stats.duplicates += 1;
            return true;
        }
        let mut failed = 0;
        let (name, attach) = (&*table.name, self.attach);
        let swept = table.records.extract_if(|opcode, record| {
            let goes = record.confirmed_on != attach && handler(Event::Removed { table: name, opcode, seq });
            failed += u64::from(record.confirmed_on != attach && !goes);
            goes
        });
        let swept = swept.count() as u64;
        self.stats.swept += swept;
        self.stats.items -= swept;
        self.stats.failed += failed;
        if failed > 0 {
            return false;
        }
        if !handler(Event::Synced { table: name }) {
            self.stats.failed += 1;
            return false;
        }
        table.synced = attach;
        true
    }

    fn owe_ack(&mut self, ordinal: u64, seq: SyncSeq) {
        let Some(link) = &mut self.link else { return };
        match link.acks.back_mut() {
            Some(ack) if ack.last + 1 == ordinal => {
                ack.last = ordinal;
                ack.last_seq = seq;
            }
            _ => link.acks.push_back(Ack { first: ordinal, last: ordinal, first_seq: seq, last_seq: seq }),
        }
    }
}
