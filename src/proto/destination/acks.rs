//! Acks that wait to be sent.

use std::collections::VecDeque;

use crate::seq::SyncSeq;
use crate::wire::Ack;

/// Ranges of records that were applied, sorted, none next to another.
#[derive(Debug, Clone, Default)]
#[cfg_attr(test, derive(Hash))]
pub(super) struct PendingAcks {
    /// All but the last.
    others: VecDeque<Ack>,
    /// The last, to which nearly every record is added. There are no others without it.
    last: Option<Ack>,
}

impl PendingAcks {
    /// Takes a record in. Usually the one behind the last.
    #[inline]
    pub(super) fn add(&mut self, ordinal: u64, seq: SyncSeq) {
        match &mut self.last {
            Some(range) if range.last + 1 == ordinal => {
                range.last = ordinal;
                range.last_seq = seq;
            }
            Some(_) => self.add_elsewhere(ordinal, seq),
            None => self.last = Some(Ack { first: ordinal, last: ordinal, first_seq: seq, last_seq: seq }),
        }
    }

    #[inline(never)]
    fn add_elsewhere(&mut self, ordinal: u64, seq: SyncSeq) {
        self.others.extend(self.last);
        add_to(&mut self.others, ordinal, seq);
        self.last = self.others.pop_back();
    }

    pub(super) fn first(&self) -> Option<Ack> {
        self.others.front().copied().or(self.last)
    }

    pub(super) fn pop(&mut self) {
        if self.others.pop_front().is_none() {
            self.last = None;
        }
    }

    pub(super) fn len(&self) -> usize {
        self.others.len() + usize::from(self.last.is_some())
    }
}

/// Takes a record in wherever it belongs among these ranges.
fn add_to(ranges: &mut VecDeque<Ack>, ordinal: u64, seq: SyncSeq) {
    let at = ranges.partition_point(|range| range.last < ordinal);
    if ranges.get(at).is_some_and(|next| next.first <= ordinal) {
        return;
    }
    let joins_next = ranges.get(at).is_some_and(|next| ordinal + 1 == next.first);
    let joins_before = at > 0 && ranges[at - 1].last + 1 == ordinal;
    match (joins_before, joins_next) {
        (true, true) => {
            let next = ranges.remove(at).expect("there is one that begins behind");
            let before = &mut ranges[at - 1];
            before.last = next.last;
            before.last_seq = next.last_seq;
        }
        (true, false) => {
            let before = &mut ranges[at - 1];
            before.last = ordinal;
            before.last_seq = seq;
        }
        (false, true) => {
            let next = &mut ranges[at];
            next.first = ordinal;
            next.first_seq = seq;
        }
        (false, false) => {
            let ack = Ack { first: ordinal, last: ordinal, first_seq: seq, last_seq: seq };
            ranges.insert(at, ack);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acks_in_any_order_merge_into_the_ranges_that_they_fill() {
        let mut rng = fastrand::Rng::with_seed(2);
        for _ in 0..300 {
            let mut all: Vec<u64> = (0..rng.u64(1..12)).filter(|_| rng.u32(..5) > 0).collect();
            let mut acks = PendingAcks::default();
            let mut shuffled = all.clone();
            rng.shuffle(&mut shuffled);
            // some of them twice
            let again: Vec<u64> = shuffled.iter().copied().take(2).collect();
            let mut covered = Vec::new();
            for ordinal in shuffled.into_iter().chain(again) {
                acks.add(ordinal, SyncSeq::from(ordinal as u32 + 100));
                if rng.u32(..8) == 0 {
                    // some are sent meanwhile
                    covered.extend(sent(&mut acks).map(|ack| ack.first..=ack.last));
                }
            }
            let mut before: Option<u64> = None;
            for left in (0..acks.len()).rev() {
                let ack = sent(&mut acks).expect("there are as many");
                assert_eq!(acks.len(), left);
                assert!(before.is_none_or(|before| before + 1 < ack.first), "two ranges that are one");
                assert_eq!(u64::from(ack.first_seq.value()), ack.first + 100);
                assert_eq!(u64::from(ack.last_seq.value()), ack.last + 100);
                covered.push(ack.first..=ack.last);
                before = Some(ack.last);
            }
            assert_eq!(acks.first(), None);
            let mut covered: Vec<u64> = covered.into_iter().flatten().collect();
            // one that is named again after it was sent is sent again
            covered.sort_unstable();
            covered.dedup();
            all.sort_unstable();
            assert_eq!(covered, all);
        }
    }

    fn sent(acks: &mut PendingAcks) -> Option<Ack> {
        let ack = acks.first();
        acks.pop();
        ack
    }
}
