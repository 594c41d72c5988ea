//! What is unacknowledged: acks, places in queues, flushes.

use super::Mutant;

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        fault: "ack ignores the entry's newer sequence number",
        file: "proto/cache.rs",
        edits: &[
            ("if «entry.change == record.change && entry.is_unacked()» {", "entry.is_unacked()"),
            ("&& «self.is_newest(record)» { deleted(", "self.entry(record.entry).is_unacked()"),
        ],
    },
    Mutant {
        fault: "range ack over an unsent change: it covers what waits with a sequence number in the range",
        file: "proto/cache.rs",
        edits: &[(
            "«»self.drop_superseded(); Ok(before - self.unacked)",
            "let covers = |(_, entry): &(ItemId, CacheEntry)| {
                (ack.first_seq.value()..=ack.last_seq.value()).contains(&entry.change.seq().value())
            };
            let covered: Vec<ItemId> = self.unacked_items().filter(covers).map(|(item, _)| item).collect();
            for item in covered {
                deleted(self.delete(EntryId::item(item)));
            }",
        )],
    },
    Mutant {
        fault: "whatever record an ack is of, the oldest counts as acknowledged",
        file: "proto/cache.rs",
        edits: &[("if «!is_of_oldest» || !self", "false")],
    },
    Mutant {
        fault: "what waits for its ack at the end of the in-flight list leaves it",
        file: "proto/cache.rs",
        edits: &[("back() && «!self.is_wanted(back)» {", "true")],
    },
    Mutant {
        fault: "acks match by the 32-bit sequence number",
        file: "proto/cache.rs",
        edits: &[
            (
                "if «entry.change == record.change» && entry.is_unacked() {",
                "entry.change.seq() == record.change.seq()",
            ),
            (
                "entry.is_unacked() && «entry.change == record.change» }",
                "entry.change.seq() == record.change.seq()",
            ),
        ],
    },
    Mutant {
        fault: "a change that goes at once keeps its item's old number",
        file: "proto/cache.rs",
        edits: &[("entry.flags |= CacheEntry::UNACKED; «entry.change = change;»", "")],
    },
    Mutant {
        fault: "an item that a batch sets twice goes twice",
        file: "proto/source/session.rs",
        edits: &[("if «entry.change() != item.change» {", "true")],
    },
    Mutant {
        fault: "with a batch goes what was sent before it, too",
        file: "proto/cache.rs",
        edits: &[(
            "self.in_flight.range(self.in_flight.len() - «count»..)",
            "(2 * count).min(self.in_flight.len())",
        )],
    },
    Mutant {
        fault: "a change that goes at once satisfies the flushes of the one before",
        file: "proto/cache/entry.rs",
        edits: &[("&& «self.flushes == 0» && self.attempts == 0", "true")],
    },
    Mutant {
        fault: "a change that goes at once leaves its item among those that fail",
        file: "proto/cache/entry.rs",
        edits: &[("&& self.flushes == 0 && «self.attempts == 0»", "true")],
    },
    Mutant {
        fault: "the ack of what a source does not keep leaves its item there",
        file: "proto/cache.rs",
        edits: &[("if !entry.is_plain() || «!table.keeps_all» {", "false")],
    },
    Mutant {
        fault: "a change of an item that is in flight gets no place in the queue",
        file: "proto/cache.rs",
        edits: &[(
            "if «!before.has(CacheEntry::QUEUED)» { self.enqueue(id, after); }",
            "!before.has(CacheEntry::QUEUED) && !before.is_in_flight()",
        )],
    },
    Mutant {
        fault: "an entry that waits and becomes a pointer is lost from both queues",
        file: "proto/cache.rs",
        edits: &[("if entry.has(CacheEntry::WAITING) { «self.enqueue(id, entry);» } else {", "")],
    },
    Mutant {
        fault: "the end marker does not say that an item waits to be sent again",
        file: "proto/cache.rs",
        edits: &[("«if self.waiting_again > 0 { return 0; }»", "")],
    },
    Mutant {
        fault: "a flush is satisfied by what was sent",
        file: "proto/cache.rs",
        edits: &[(
            "push_back(InFlight { ordinal, change, entry: id, flushes }); «»",
            "self.satisfy_flushes(InFlight { ordinal, change, entry: id, flushes });",
        )],
    },
    Mutant {
        fault: "a flush does not wait for what waits for room",
        file: "proto/cache/flush.rs",
        edits: &[("if «entry.is_waiting() && entry.flushes & bit == 0» {", "false")],
    },
];
