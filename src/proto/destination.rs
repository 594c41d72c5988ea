//! The destination's end: its own record of every item, and what it owes acks for (S4, S5).
//!
//! [`DestinationCore::attach`], then [`DestinationCore::handle_record`] for each record of the change ring in turn, and
//! [`DestinationCore::poll_ack`] for the acks to send; [`DestinationCore::detach`] when the link is gone.
//! [`DestinationCore::acknowledge`] whenever the application has applied what it had put off.
//!
//! Invariants:
//! 1. A record is acknowledged if and only if its change, or a newer one of its item, was applied: after the handler
//!    returned Ok, or after the application gave its token back, and never before.
//! 2. Within one epoch no change is handed to the application twice, unless its handler failed or the application refused
//!    it, and none after a newer one of its item.
//! 3. At each attach every item is unconfirmed; the end marker of a table removes those that its replay did not name, and a
//!    subscription those of the tables that it does not name. Nothing else does: no timer, no lost link.
//! 4. An end marker counts only if no record is missing that its source has not sent again since.

mod acks;
mod event;
mod records;

use std::cell::Cell;

use hashbrown::{HashMap, HashSet};
use smallvec::SmallVec;

use crate::opcode::Opcode;
use crate::seq::{ChangeNumber, SyncSeq};
use crate::subscription::Subscription;
use crate::wire::{Ack, Frame, Payload, WireError};

use acks::PendingAcks;
use records::{Applied, Known, LocalTable, Owed, Received, Record, Records, owes_remove, set_value};

pub use event::{AckSlot, AckToken, Event, HandlerResult};

/// Numbers that a destination counts from its beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DestinationStats {
    /// Records received.
    pub received: u64,
    /// Changes that the handler applied, or whose ack it put off.
    pub applied: u64,
    /// Changes that came again although they were applied, or are owed an ack; they are not handed over.
    pub duplicates: u64,
    /// Times that a handler failed or panicked.
    pub failed: u64,
    /// Times that an item was named without its value, which its source could not read.
    pub unreadable: u64,
    /// Items that were removed because a replay did not name them, or because they are not wanted any more.
    pub swept: u64,
    /// Records that never came; their source sends them again.
    pub missing: u64,
    /// Items held now.
    pub items: u64,
    /// Changes that were handed over and whose acks are owed now.
    pub owed: u64,
    /// Attachments to a source.
    pub attaches: u64,
}

/// On a link, for so many items at most room is made before they come, whatever the source says of their number.
const MAX_RESERVED: u64 = 1 << 20;

/// The most ranges of acks that wait while the ack ring is full; then the destination consumes no more.
pub(crate) const MAX_PENDING_ACKS: usize = 1024;

#[derive(Debug)]
#[cfg_attr(test, derive(Clone, Hash))]
pub(crate) struct DestinationCore {
    /// Records hold their values, too, and no ack is put off.
    keep_values: bool,
    subscription: Subscription,
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

/// What is known of the current link.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone, Hash))]
struct Link {
    /// For each table number of the source, the place of that table here.
    tables: Vec<Option<usize>>,
    next_ordinal: u64,
    /// The newest record that is missing.
    last_gap: Option<u64>,
    /// Items for which room was made before they came.
    reserved: u64,
    acks: PendingAcks,
}

impl Link {
    /// A record comes that is not the next one. Answers whether it is ahead of that, and those between them are missing. Else it
    /// has come before.
    #[cold]
    fn handle_out_of_turn(&mut self, ordinal: u64, stats: &mut DestinationStats) -> bool {
        if ordinal < self.next_ordinal {
            return false;
        }
        stats.missing = stats.missing.saturating_add(ordinal - self.next_ordinal);
        self.last_gap = Some(ordinal - 1);
        true
    }
}

impl DestinationCore {
    pub(crate) fn new(keep_values: bool, subscription: Subscription) -> DestinationCore {
        DestinationCore {
            keep_values,
            subscription,
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
            // Nobody waits for these acks any more.
            self.tables.iter_mut().for_each(|table| table.owed.clear());
            self.stats.owed = 0;
        }
        restarted
    }

    pub(crate) fn detach(&mut self) {
        self.link = None;
    }

    pub(crate) fn subscription(&self) -> &Subscription {
        &self.subscription
    }

    /// What is wanted from the next attach on.
    pub(crate) fn set_subscription(&mut self, subscription: Subscription) {
        self.subscription = subscription;
    }

    /// Whether there are items that [`DestinationCore::sweep_unwanted`] gives up.
    pub(crate) fn has_unwanted(&self) -> bool {
        self.tables.iter().any(|table| {
            let wanted = self.subscription.of(&table.name).is_some();
            (!wanted || table.synced == self.attach)
                && table.records.iter().any(|(opcode, record)| {
                    (!wanted || record.confirmed_on != self.attach) && !owes_remove(&table.owed, opcode)
                })
        })
    }

    /// Gives up the items of tables that are not wanted, and those whose remove was refused after the replay had ended
    /// without them; no source will ever end a replay of these. What the handler does not let go of stays. Answers how
    /// many it was shown.
    pub(crate) fn sweep_unwanted(&mut self, mut handler: impl FnMut(Event<'_>) -> Applied) -> usize {
        let attach = self.attach;
        let mut shown = 0;
        let mut handler = |event: Event<'_>| {
            shown += 1;
            handler(event)
        };
        for table in &mut self.tables {
            let wanted = self.subscription.of(&table.name).is_some();
            if wanted && table.synced != attach {
                continue;
            }
            let swept = table
                .give_up(&mut self.stats, &mut handler, |record| !wanted || record.confirmed_on != attach);
            self.stats.swept += swept;
        }
        shown
    }

    /// Gives all items up, because the application wants none without their source. What its handler does not let go of
    /// is swept when a source is back.
    pub(crate) fn flush(&mut self, mut handler: impl FnMut(Event<'_>) -> Applied) {
        for table in &mut self.tables {
            table.give_up(&mut self.stats, &mut handler, |_| true);
        }
    }

    /// S4: applies a record through the handler and notes the ack that is due for it.
    pub(crate) fn handle_record(
        &mut self,
        bytes: &[u8],
        mut handler: impl FnMut(Event<'_>) -> Applied,
    ) -> Result<(), WireError> {
        let Some(link) = &mut self.link else { return Ok(()) };
        let Frame { change, ordinal, table, payload } = Frame::decode(bytes, link.next_ordinal)?;
        self.stats.received += 1;
        if ordinal != link.next_ordinal && !link.handle_out_of_turn(ordinal, &mut self.stats) {
            return Ok(());
        }
        link.next_ordinal = ordinal + 1;
        let local = link.tables.get(usize::from(table)).copied().flatten();
        let applied = match (payload, local) {
            (Payload::Set { opcode, value, created }, Some(table)) => {
                let received = Received { table, opcode, change, ordinal };
                self.handle_set(received, value, created, &mut handler)
            }
            (payload, local) => {
                let frame = Frame { change, ordinal, table, payload };
                self.handle_other(frame, local, &mut handler)
            }
        };
        if applied && let Some(link) = &mut self.link {
            link.acks.add(ordinal, change.seq());
        }
        Ok(())
    }

    /// Has what these records will need brought near, all at the same time, so that handling them does not wait for memory one
    /// after the other.
    pub(crate) fn prefetch<'a>(&self, records: impl Iterator<Item = &'a [u8]>) {
        let Some(link) = &self.link else { return };
        if self.stats.items < records::FAR_RECORDS as u64 {
            return;
        }
        let mut hashes = SmallVec::<[_; 16]>::new();
        for record in records {
            let Ok(Frame { table, payload: Payload::Set { opcode, .. }, .. }) =
                Frame::decode(record, link.next_ordinal)
            else {
                continue;
            };
            let Some(&Some(table)) = link.tables.get(usize::from(table)) else { continue };
            let records = &self.tables[table].records;
            if let Some(hash) = records.hash_if_far(opcode) {
                records.prefetch_index(hash);
                hashes.push((records, hash));
            }
        }
        for (records, hash) in hashes {
            records.prefetch(hash);
        }
    }

    /// S5, later: the application has applied a change whose ack it had put off. Answers whether that ack was owed: it is
    /// not if a newer change of the item was applied, or the source has another life now.
    pub(crate) fn acknowledge(&mut self, token: &AckToken) -> bool {
        let Some(Owed { removes, received: (attach, ordinal), .. }) = self.take_owed(token) else {
            return false;
        };
        let LocalTable { records, told_gone, .. } = &mut self.tables[token.table];
        if removes {
            told_gone.remove(&token.opcode);
            self.stats.items -= u64::from(records.remove(&token.opcode).is_some());
        }
        // Else it comes again on the present link, and is known then.
        if attach == self.attach
            && let Some(link) = &mut self.link
        {
            link.acks.add(ordinal, token.change.seq());
        }
        true
    }

    /// The application could not apply a change whose ack it had put off: it is as if its handler had failed. Answers
    /// whether the ack was owed.
    pub(crate) fn refuse(&mut self, token: &AckToken) -> bool {
        let Some(Owed { before, .. }) = self.take_owed(token) else { return false };
        self.stats.failed += 1;
        let LocalTable { records, told_gone, .. } = &mut self.tables[token.table];
        told_gone.remove(&token.opcode);
        let Some(before) = before else {
            self.stats.items -= u64::from(records.remove(&token.opcode).is_some());
            return true;
        };
        if let Some(record) = records.get_mut(&token.opcode) {
            record.change = before.change;
            record.applied_on = before.applied_on;
        }
        if before.told_gone {
            told_gone.insert(token.opcode.clone());
        }
        true
    }

    /// Whether the item of a token that was refused is one that its source did not name on this link: it will not come
    /// again, and is to be swept.
    pub(crate) fn is_unnamed(&self, token: &AckToken) -> bool {
        let table = &self.tables[token.table];
        let record = table.records.get(&token.opcode);
        table.synced == self.attach && record.is_some_and(|record| record.confirmed_on != self.attach)
    }

    /// S5: the ack that goes next, if any. It stays the next until [`DestinationCore::handle_ack_sent`].
    pub(crate) fn poll_ack(&self) -> Option<Ack> {
        self.link.as_ref()?.acks.first()
    }

    pub(crate) fn handle_ack_sent(&mut self) {
        if let Some(link) = &mut self.link {
            link.acks.pop();
        }
    }

    /// How many acks are to be sent.
    #[inline]
    pub(crate) fn acks_due(&self) -> usize {
        self.link.as_ref().map_or(0, |link| link.acks.len())
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

    /// The tables whose end marker was not applied on this link: those that were asked for by name, and those that the
    /// source has announced.
    pub(crate) fn loading(&self) -> Vec<&str> {
        let named = self.subscription.named().into_iter().flatten().map(|(name, _)| name);
        let mut loading: Vec<&str> = named.chain(self.announced()).collect();
        loading.sort_unstable();
        loading.dedup();
        loading.retain(|table| !self.is_synced(table));
        loading
    }

    /// Whether the end marker was applied of each table that was asked for by name, or else of each that the source has
    /// announced, of which there must be one.
    pub(crate) fn is_all_synced(&self) -> bool {
        let Some(named) = self.subscription.named() else {
            let mut announced = self.announced().peekable();
            return announced.peek().is_some() && announced.all(|table| self.is_synced(table));
        };
        self.link.is_some() && named.into_iter().all(|(table, _)| self.is_synced(table))
    }

    /// The value of an item, if values are kept.
    pub(crate) fn value(&self, table: &str, opcode: &Opcode) -> Option<&[u8]> {
        let table = self.tables.iter().find(|local| &*local.name == table)?;
        table.records.find(opcode).map(|place| table.records.item(place).1)
    }

    /// The items of a table; values are empty unless kept.
    pub(crate) fn items(&self, table: &str) -> impl ExactSizeIterator<Item = (&Opcode, &[u8])> {
        let records = self.tables.iter().find(|local| &*local.name == table).map(|table| &table.records);
        let item = move |place| records.expect("there is no place without records").item(place);
        (0..records.map_or(0, Records::len)).map(item)
    }

    /// Whether the ack of an item's change is owed.
    #[cfg(test)]
    pub(crate) fn is_owed(&self, item: Option<(&str, &Opcode)>) -> bool {
        let Some((table, opcode)) = item else { return false };
        self.tables.iter().any(|local| &*local.name == table && local.owed.contains_key(opcode))
    }

    /// The tables that the source has announced on this link.
    fn announced(&self) -> impl Iterator<Item = &str> {
        let announced = self.link.iter().flat_map(|link| link.tables.iter().flatten());
        announced.map(|&at| &*self.tables[at].name)
    }

    /// A record that does not set an item, or not one of a table that is known.
    #[inline(never)]
    fn handle_other(
        &mut self,
        frame: Frame<'_>,
        local: Option<usize>,
        handler: &mut impl FnMut(Event<'_>) -> Applied,
    ) -> Applied {
        let Frame { change, ordinal, table: number, payload } = frame;
        let (table, link) = match (payload, local, &self.link) {
            (Payload::Table { name, items }, _, _) => return self.handle_table(number, name, items),
            (_, Some(table), Some(link)) => (table, link),
            _ => {
                // Its table's announcement is missing. That comes again, and so does this, which counts as missing until then.
                if let Some(link) = &mut self.link {
                    link.last_gap = Some(ordinal);
                }
                return false;
            }
        };
        match payload {
            Payload::Remove { opcode } => {
                self.handle_remove(Received { table, opcode, change, ordinal }, handler)
            }
            Payload::Named { opcode } => self.handle_named(table, opcode),
            Payload::End { oldest_unacked } => {
                let complete = link.last_gap.is_none_or(|gap| gap < oldest_unacked);
                complete && self.handle_end(table, change.seq(), handler)
            }
            Payload::Set { .. } | Payload::Table { .. } => unreachable!("handled before"),
        }
    }

    fn handle_table(&mut self, number: u16, name: &str, items: u64) -> Applied {
        let Some(link) = &mut self.link else { return false };
        let at = self.tables.iter().position(|table| &*table.name == name).unwrap_or_else(|| {
            self.tables.push(LocalTable {
                name: name.into(),
                records: Records::new(self.keep_values),
                owed: HashMap::new(),
                told_gone: HashSet::new(),
                synced: 0,
            });
            self.tables.len() - 1
        });
        let reserved = items.min(MAX_RESERVED - link.reserved);
        link.reserved += reserved;
        self.tables[at].records.reserve(reserved as usize);
        let number = usize::from(number);
        if link.tables.len() <= number {
            link.tables.resize(number + 1, None);
        }
        link.tables[number] = Some(at);
        true
    }

    fn handle_set(
        &mut self,
        received: Received<'_>,
        value: &[u8],
        created: ChangeNumber,
        handler: &mut impl FnMut(Event<'_>) -> Applied,
    ) -> Applied {
        let Received { table: at, change, .. } = received;
        let LocalTable { name, records, owed, told_gone, .. } = &mut self.tables[at];
        let opcode = Opcode::from_checked(received.opcode);
        let mut known = records.find_to_change(&opcode);
        let mut replaced = false;
        if let Some(Known { record, .. }) = &mut known {
            record.confirmed_on = self.attach;
            if record.applied_on >= self.epoch_began {
                if record.change >= change {
                    self.stats.duplicates += 1;
                    return received.is_settled(owed.get_mut(&opcode), self.attach);
                }
                let was_told = !told_gone.is_empty() && told_gone.contains(&opcode);
                replaced = record.change < created && !was_told;
            }
        }
        let deferred = Cell::new(false);
        let epoch = self.epoch.filter(|_| !self.keep_values);
        let ack = AckSlot::new(&deferred, epoch, at, change);
        if !handler(Event::Set { table: name, opcode: &opcode, value, seq: change.seq(), replaced, ack }) {
            self.stats.failed += 1;
            return false;
        }
        self.stats.applied += 1;
        let was_told = !told_gone.is_empty() && told_gone.remove(&opcode);
        let superseded = if owed.is_empty() { None } else { owed.remove(&opcode) };
        self.stats.owed -= u64::from(superseded.is_some());
        if deferred.get() {
            self.stats.owed += 1;
            let before = known.as_ref().map(|known| known.record.before(was_told));
            owed.insert(opcode.clone(), received.owed(before, false, self.attach));
        }
        match known {
            Some(Known { record, value: kept }) => {
                record.change = change;
                record.applied_on = self.attach;
                if let Some(kept) = kept {
                    set_value(kept, value);
                }
            }
            None => {
                let record = Record { change, applied_on: self.attach, confirmed_on: self.attach };
                self.stats.items += 1;
                records.insert(opcode, record, value);
            }
        }
        !deferred.get()
    }

    fn handle_remove(
        &mut self,
        received: Received<'_>,
        handler: &mut impl FnMut(Event<'_>) -> Applied,
    ) -> Applied {
        let Received { table: at, change, .. } = received;
        let LocalTable { name, records, owed, told_gone, .. } = &mut self.tables[at];
        let opcode = Opcode::from_checked(received.opcode);
        let Some(record) = records.get_mut(&opcode) else {
            self.stats.duplicates += 1;
            return true;
        };
        record.confirmed_on = self.attach;
        if record.applied_on >= self.epoch_began && record.change >= change {
            self.stats.duplicates += 1;
            return received.is_settled(owed.get_mut(&opcode), self.attach);
        }
        let deferred = Cell::new(false);
        let epoch = self.epoch.filter(|_| !self.keep_values);
        let ack = AckSlot::new(&deferred, epoch, at, change);
        if !handler(Event::Removed { table: name, opcode: &opcode, seq: change.seq(), ack }) {
            self.stats.failed += 1;
            return false;
        }
        self.stats.applied += 1;
        let was_told = !told_gone.is_empty() && told_gone.remove(&opcode);
        let before = Some(record.before(was_told));
        self.stats.owed -= u64::from(owed.remove(&opcode).is_some());
        if deferred.get() {
            record.change = change;
            record.applied_on = self.attach;
            self.stats.owed += 1;
            told_gone.insert(opcode.clone());
            owed.insert(opcode, received.owed(before, true, self.attach));
            return false;
        }
        self.stats.items -= 1;
        records.remove(&opcode);
        true
    }

    /// The item is at its source, whose application could not say what it is now: what is here stays.
    fn handle_named(&mut self, table: usize, opcode: &[u8]) -> Applied {
        self.stats.unreadable += 1;
        let opcode = Opcode::from_bytes(opcode).expect("a frame's opcode has at most 255 bytes");
        if let Some(record) = self.tables[table].records.get_mut(&opcode) {
            record.confirmed_on = self.attach;
        }
        false
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
        let attach = self.attach;
        let failed_before = self.stats.failed;
        let swept = table.remove_where(
            &mut self.stats,
            |record| record.confirmed_on != attach,
            |table, opcode, _| handler(Event::Removed { table, opcode, seq, ack: AckSlot::NONE }),
        );
        self.stats.swept += swept;
        if self.stats.failed > failed_before {
            return false;
        }
        if !handler(Event::Synced { table: &table.name }) {
            self.stats.failed += 1;
            return false;
        }
        table.synced = attach;
        true
    }

    fn take_owed(&mut self, token: &AckToken) -> Option<Owed> {
        if self.epoch != Some(token.epoch) {
            return None;
        }
        let owed = &mut self.tables.get_mut(token.table)?.owed;
        if owed.get(&token.opcode)?.change != token.change {
            return None;
        }
        self.stats.owed -= 1;
        owed.remove(&token.opcode)
    }
}
