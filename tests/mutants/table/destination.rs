//! What the destination applies, confirms, sweeps and acknowledges.

use super::Mutant;

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        fault: "incarnation ignored: a new life of the source is taken for the one before",
        file: "proto/destination.rs",
        edits: &[("if «self.epoch != Some(epoch)» { self.epoch = Some(epoch);", "self.epoch.is_none()")],
    },
    Mutant {
        fault: "incarnation ignored: acks of a link that is lost go over the next one",
        file: "proto/destination.rs",
        edits: &[
            ("pub(crate) fn detach(&mut self) { «self.link = None;» }", ""),
            (
                "self.link = Some(«Link::default()»);",
                "Link {
                    acks: self.link.take().map_or_else(PendingAcks::default, |link| link.acks),
                    ..Link::default()
                }",
            ),
        ],
    },
    Mutant {
        fault: "incarnation ignored: a deferred ack names the record of an earlier link",
        file: "proto/destination.rs",
        edits: &[("if «attach == self.attach» && let Some(link) = &mut self.link {", "true")],
    },
    Mutant {
        fault: "incarnation ignored: a token of the source's earlier life acknowledges",
        file: "proto/destination.rs",
        edits: &[
            ("«self.tables.iter_mut().for_each(|table| table.owed.clear()); self.stats.owed = 0;»", ""),
            ("if «self.epoch != Some(token.epoch)» {", "false"),
        ],
    },
    Mutant {
        fault: "incarnation ignored: a remove is compared with a change of the source's earlier life",
        file: "proto/destination.rs",
        edits: &[("if «record.applied_on >= self.epoch_began» && record.change >= change {", "true")],
    },
    Mutant {
        fault: "marks not renewed at a second attach",
        file: "proto/destination.rs",
        edits: &[("|record| «record.confirmed_on != attach»,", "record.confirmed_on + 1 < attach")],
    },
    Mutant {
        fault: "the end marker of a second attach counts as one that came twice",
        file: "proto/destination.rs",
        edits: &[(
            "let table = &mut self.tables[at]; if «table.synced == self.attach» {",
            "table.synced > 0",
        )],
    },
    Mutant {
        fault: "sweep when the link is lost",
        file: "proto/destination.rs",
        edits: &[(
            "pub(crate) fn detach(&mut self) { self.link = None; «» }",
            "let attach = self.attach;
            for table in &mut self.tables {
                table.records.remove_where(|_, record| record.confirmed_on != attach);
            }",
        )],
    },
    Mutant {
        fault: "an item whose handler failed counts as not named",
        file: "proto/destination.rs",
        edits: &[
            (
                "«record.confirmed_on = self.attach;» if record.applied_on >= self.epoch_began {",
                "if record.applied_on >= self.epoch_began && record.change >= change {
                    record.confirmed_on = self.attach;
                }",
            ),
            (
                "record.change = change; record.applied_on = self.attach; «» if let Some(kept) = kept {",
                "record.confirmed_on = self.attach;",
            ),
        ],
    },
    Mutant {
        fault: "an item that could not be read counts as not named",
        file: "proto/destination.rs",
        edits: &[("«record.confirmed_on = self.attach;» } false }", "")],
    },
    Mutant {
        fault: "an item that could not be read is acknowledged",
        file: "proto/destination.rs",
        edits: &[("record.confirmed_on = self.attach; } «false» }", "true")],
    },
    Mutant {
        fault: "items outside a new subscription stay",
        file: "proto/destination.rs",
        edits: &[("if «wanted» && table.synced != attach {", "true")],
    },
    Mutant {
        fault: "an end marker counts although records are missing",
        file: "proto/destination.rs",
        edits: &[("«link.last_gap.is_none_or(|gap| gap < oldest_unacked)»", "true")],
    },
    Mutant {
        fault: "a record of a table without a name is not missed",
        file: "proto/destination.rs",
        edits: &[("«link.last_gap = Some(ordinal);»", "")],
    },
    Mutant {
        fault: "an end marker counts although the application let not go of an item",
        file: "proto/destination.rs",
        edits: &[("«if self.stats.failed > failed_before { return false; }»", "")],
    },
    Mutant {
        fault: "what comes twice is handed over twice",
        file: "proto/destination.rs",
        edits: &[("if «record.change >= change» { self.stats.duplicates += 1;", "record.change > change")],
    },
    Mutant {
        fault: "what comes after later records is taken",
        file: "proto/destination.rs",
        edits: &[("if ordinal < self.next_ordinal { return «false»; }", "true")],
    },
    Mutant {
        fault: "order hangs on the 32-bit sequence number",
        file: "proto/destination.rs",
        edits: &[(
            "if «record.change >= change» { self.stats.duplicates += 1;",
            "record.change.seq().value() >= change.seq().value()",
        )],
    },
    Mutant {
        fault: "order hangs on the distance of 32-bit sequence numbers",
        file: "proto/destination.rs",
        edits: &[(
            "if «record.change >= change» { self.stats.duplicates += 1;",
            "record.change.seq().value().wrapping_sub(change.seq().value()) as i32 >= 0",
        )],
    },
    Mutant {
        fault: "replaced is never told",
        file: "proto/destination.rs",
        edits: &[("replaced = «record.change < created && !was_told»;", "false")],
    },
    Mutant {
        fault: "replaced is told at every change",
        file: "proto/destination.rs",
        edits: &[("replaced = «record.change < created && !was_told»;", "true")],
    },
    Mutant {
        fault: "replaced is told after a remove that was told",
        file: "proto/destination.rs",
        edits: &[("replaced = record.change < created && «!was_told»;", "true")],
    },
    Mutant {
        fault: "a change whose handler failed is acknowledged",
        file: "proto/destination.rs",
        edits: &[("seq: change.seq(), replaced, ack }) { self.stats.failed += 1; return «false»; }", "true")],
    },
    Mutant {
        fault: "a remove whose handler failed is acknowledged",
        file: "proto/destination.rs",
        edits: &[(
            "opcode: &opcode, seq: change.seq(), ack }) { self.stats.failed += 1; return «false»; }",
            "true",
        )],
    },
    Mutant {
        fault: "a deferred ack is given at once",
        file: "proto/destination.rs",
        edits: &[("«!deferred.get()»", "true")],
    },
    Mutant {
        fault: "a duplicate is acknowledged although the ack of its change is owed",
        file: "proto/destination/records.rs",
        edits: &[("owed.received = (attach, self.ordinal); } «false» }", "true")],
    },
    Mutant {
        fault: "a change whose ack is deferred is handed over again",
        file: "proto/destination.rs",
        edits: &[(
            "Some(Known { record, value: kept }) => { «record.change = change;» record.applied_on = self.attach;",
            "if !deferred.get() { record.change = change; }",
        )],
    },
    Mutant {
        fault: "a token acknowledges a newer change of its item",
        file: "proto/destination.rs",
        edits: &[(
            "if «owed.get(&token.opcode)?.change != token.change» {",
            "owed.get(&token.opcode).is_none()",
        )],
    },
    Mutant {
        fault: "a change that was refused counts as applied when it comes again",
        file: "proto/destination.rs",
        edits: &[("«record.change = before.change;» record.applied_on = before.applied_on;", "")],
    },
    Mutant {
        fault: "range ack over an unsent change: a range grows over what was not applied",
        file: "proto/destination/acks.rs",
        edits: &[("Some(range) if «range.last + 1 == ordinal» =>", "range.last < ordinal")],
    },
];
