//! What the source sends, and when.

use super::Mutant;

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        fault: "a change that is made alone goes again to those who had it before it had to wait for one",
        file: "proto/source.rs",
        edits: &[("if «id >= from» {", "true")],
    },
    Mutant {
        fault: "a change goes at once whatever its entry is to be noted of",
        file: "proto/cache.rs",
        edits: &[("get_mut(index as usize).filter(|entry| «entry.is_plain()»)?", "true")],
    },
    Mutant {
        fault: "a count that has passed an item does not hear that it goes",
        file: "proto/store.rs",
        edits: &[("self.live -= 1; if «!self.counts.is_empty()» {", "false")],
    },
    Mutant {
        fault: "a count hears of items that it has yet to come to",
        file: "proto/store.rs",
        edits: &[("filter(move |count| «index < count.next» &&", "true")],
    },
    Mutant {
        fault: "what an index has yet to move is not found",
        file: "proto/index.rs",
        edits: &[(
            "found.is_some() || «self.old.is_empty()» { return found; } find_in_old(&self.old, hash, is_it) }",
            "true",
        )],
    },
    Mutant {
        fault: "sweep on timer: a table counts as ready once a tick has passed",
        file: "proto/source.rs",
        edits: &[(
            "session.tick_requested = false; «»",
            "for table in 0..self.store.tables().len() as TableId {
                if session.replay.handle_ready(table, &mut self.store) {
                    session.mark_end(table, &mut self.store);
                }
            }",
        )],
    },
    Mutant {
        fault: "resend of a cached old value: a snapshot of before a change counts for that change",
        file: "proto/source/reads.rs",
        edits: &[
            (
                "session.handle_sent(request.entry, «request.change», &mut self.store);",
                "session.change_of(request.entry, &self.store)",
            ),
            ("session.frame_of(entry, «change», payload)", "session.change_of(entry, &self.store)"),
        ],
    },
    Mutant {
        fault: "resend of a cached old value: a snapshot counts for whatever has its item's place by now",
        file: "proto/source/reads.rs",
        edits: &[("|| «!request.is_for(item)» {", "false")],
    },
    Mutant {
        fault: "resend of a cached old value: a change replaces the number and not the data",
        file: "proto/store.rs",
        edits: &[
            ("item.change = self.last_change; «old.copy_from_slice(new);»", ""),
            ("if old.len() == new.len() => «old.copy_from_slice(new)»,", "()"),
        ],
    },
    Mutant {
        fault: "tombstone dropped before ack: a remove that was sent counts as acknowledged",
        file: "proto/source.rs",
        edits: &[(
            "session.handle_sent(entry, change, &mut self.store); «»",
            "let is_remove = matches!(
                entry.kind(),
                EntryKind::Item(item) if self.store.item(item).value == super::store::Value::Removed
            );
            let (last, seq) = (session.cache.next_ordinal() - 1, change.seq());
            if is_remove {
                self.handle_ack(id, Ack { first: last, last, first_seq: seq, last_seq: seq }).unwrap();
            }",
        )],
    },
    Mutant {
        fault: "tombstone dropped before ack: its place is used again while its ack is owed",
        file: "proto/store.rs",
        edits: &[("if «item.owed == 0» && may_go {", "true")],
    },
    Mutant {
        fault: "tombstone dropped before ack: the first ack of two frees its place",
        file: "proto/store.rs",
        edits: &[("«self.item_mut(id).owed -= 1;»", "self.item_mut(id).owed = 0;")],
    },
    Mutant {
        fault: "a destination that is gone leaves its tombstones",
        file: "proto/source.rs",
        edits: &[("«for item in session.cache.owed() { self.store.settle(item); }»", "")],
    },
    Mutant {
        fault: "a destination that is gone leaves its enumerations under way",
        file: "proto/source.rs",
        edits: &[("«for table in session.replay.enumerating() { self.store.end_enumeration(table); }»", "")],
    },
    Mutant {
        fault: "a session that has too many tombstones is not given up",
        file: "proto/source.rs",
        edits: &[("if enumerates || «session.cache.tombstones() > max» {", "false")],
    },
    Mutant {
        fault: "an enumeration under which too much changes is not given up",
        file: "proto/source.rs",
        edits: &[("if «enumerates» || session.cache.tombstones() > max {", "false")],
    },
    Mutant {
        fault: "full ring loses the record: what did not fit counts as sent and acknowledged",
        file: "proto/source.rs",
        edits: &[(
            "session.handle_full(); «»",
            "if let Some(entry) = session.next(&self.store) {
                let change = session.change_of(entry, &self.store);
                session.handle_sent(entry, change, &mut self.store);
                let (last, seq) = (session.cache.next_ordinal() - 1, change.seq());
                self.handle_ack(id, Ack { first: last, last, first_seq: seq, last_seq: seq }).unwrap();
            }",
        )],
    },
    Mutant {
        fault: "the remove of an item that was never sent is kept and sent",
        file: "proto/source.rs",
        edits: &[("if «before.is_sent() || !keeps_all» {", "true")],
    },
    Mutant {
        fault: "the remove of an item that is not kept is forgotten if it was not sent on this link",
        file: "proto/source.rs",
        edits: &[("if before.is_sent() || «!keeps_all» {", "false")],
    },
    Mutant {
        fault: "an item that is removed before it was sent holds up the end marker",
        file: "proto/source.rs",
        edits: &[(
            "«if session.replay.handle_named(table, created) { session.mark_end(table, &mut self.store); }»",
            "",
        )],
    },
    Mutant {
        fault: "a touch leaves the number as it is",
        file: "proto/store.rs",
        edits: &[("«self.item_mut(id).change = change;»", "")],
    },
    Mutant {
        fault: "an item that is set after its remove does not begin a new life",
        file: "proto/store.rs",
        edits: &[("«item.created = change;»", "")],
    },
    Mutant {
        fault: "live changes of what was not subscribed to are sent",
        file: "proto/source/session.rs",
        edits: &[("is_some_and(|selection| «selection.takes(opcode)»)", "true")],
    },
    Mutant {
        fault: "no resend",
        file: "proto/source/session.rs",
        edits: &[("if «self.cache.entry(entry).is_in_flight()» { self.cache.resend(entry); }", "false")],
    },
    Mutant {
        fault: "no second resend",
        file: "proto/source/session.rs",
        edits: &[("«self.timer.hold(resend_at, (record.entry, record.change));»", "")],
    },
    Mutant {
        fault: "what a tick has no budget for is not sent again",
        file: "proto/source/session.rs",
        edits: &[("«scanned = record.ordinal;»", "")],
    },
    Mutant {
        fault: "what has not left the ring is sent again",
        file: "proto/resend.rs",
        edits: &[("&& «mark.written <= released»;", "true")],
    },
    Mutant {
        fault: "the end marker says that nothing is unacknowledged",
        file: "proto/source/session.rs",
        edits: &[("oldest_unacked: «self.cache.oldest_unacked()»", "self.cache.next_ordinal()")],
    },
];
