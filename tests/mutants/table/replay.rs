//! The full state, its end marker, and enumerations.

use super::Mutant;

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        fault: "end marker before the replay",
        file: "proto/replay.rs",
        edits: &[(
            "«matches!(self.gate, Gate::Open { left: 0, .. })»",
            "matches!(self.gate, Gate::Open { .. })",
        )],
    },
    Mutant {
        fault: "marker before `ready`",
        file: "proto/replay.rs",
        edits: &[("«stored.ready» && self.handle_ready(table, store)", "true")],
    },
    Mutant {
        fault: "items that were made after `ready` count for the end marker",
        file: "proto/replay.rs",
        edits: &[("= &mut walk.gate && «created <= *until»", "true")],
    },
    Mutant {
        fault: "enumerator's old value kept: what changed meanwhile is taken from the enumeration",
        file: "proto/source/reads.rs",
        edits: &[(
            "if «is_gone || self.store.tables()[usize::from(table)].changed_since(&opcode, began)» {",
            "false",
        )],
    },
    Mutant {
        fault: "enumerator's old value kept: a change during an enumeration is not noted",
        file: "proto/store.rs",
        edits: &[(
            "«table.note_changed(opcode, change);» let Some(index) = index else { let created = if",
            "",
        )],
    },
    Mutant {
        fault: "enumerator's old value kept: a remove during an enumeration is not noted",
        file: "proto/store.rs",
        edits: &[(
            "«table.note_changed(opcode, change);» let Some(index) = index else { let created = ChangeNumber::NONE;",
            "",
        )],
    },
    Mutant {
        fault: "an enumeration's end marker goes before the items that wait",
        file: "proto/replay.rs",
        edits: &[("let due = «self.gated == 0» && matches!(self.stage, Stage::Drawn);", "true")],
    },
    Mutant {
        fault: "an enumeration's end marker does not wait for items that changed meanwhile",
        file: "proto/source/reads.rs",
        edits: &[("«session.gate(EntryId::item(item));»", "")],
    },
    Mutant {
        fault: "an enumeration names what was not subscribed to",
        file: "proto/source/reads.rs",
        edits: &[("if «!session.wants(table, &opcode)» { continue; }", "false")],
    },
    Mutant {
        fault: "a replay names what was not subscribed to",
        file: "proto/replay.rs",
        edits: &[(
            "«matches!(self, TableReplay::Kept(walk) if walk.selection.takes(&item.opcode))»",
            "matches!(self, TableReplay::Kept(_))",
        )],
    },
    Mutant {
        fault: "a flush does not wait for what a replay has yet to send",
        file: "proto/replay.rs",
        edits: &[("let left = «unsent - entries»;", "0")],
    },
    Mutant {
        fault: "a flush does not wait for what an enumeration has yet to name",
        file: "proto/replay.rs",
        edits: &[("«enumeration.flushes |= 1 << flush;»", "")],
    },
];
