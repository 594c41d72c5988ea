//! Who wakes whom, what is looked at before what: between the publishers, the timer thread and the destinations.

use super::Mutant;

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        fault: "the timer thread forgets that it was woken after it has looked, not before",
        file: "link/timer.rs",
        edits: &[
            ("«self.shared.wake.clear();»", ""),
            ("self.more |= self.ask_application(watched.session); } «»", "self.shared.wake.clear();"),
        ],
    },
    Mutant {
        fault: "what must be read from the application wakes nobody",
        file: "link/shared.rs",
        edits: &[("wake |= failed || «reads» || pumped", "false")],
    },
    Mutant {
        fault: "a source that waits for room does not look again once it has said so",
        file: "link/outgoing.rs",
        edits: &[("self.awaits_room = true; if «!self.changes.has_room_for(length)?» {", "true")],
    },
    Mutant {
        fault: "a source that waits for room does not say so",
        file: "link/outgoing.rs",
        edits: &[("«self.changes.start_waiting();» self.awaits_room = true;", "")],
    },
    Mutant {
        fault: "a source that was woken for room does not say so again when it waits for more",
        file: "link/outgoing.rs",
        edits: &[("self.changes.stop_waiting(); «self.awaits_room = false;» } /// Whether it is worth", "")],
    },
    Mutant {
        fault: "a source that found room after all does not say so again when it waits for more",
        file: "link/outgoing.rs",
        edits: &[("self.changes.stop_waiting(); «self.awaits_room = false;» Ok(true)", "")],
    },
    Mutant {
        fault: "a source that has no room for what must be read does not wait for some",
        file: "link/outgoing.rs",
        edits: &[("Ok(self.changes.has_room_for(length)? || «self.await_room(length)?»)", "false")],
    },
    Mutant {
        fault: "a destination that is about to sleep does not look again once it has said so",
        file: "link/incoming.rs",
        edits: &[("room in the ack ring. if «!core.is_congested() && !self.changes.is_empty()?» {", "false")],
    },
    Mutant {
        fault: "a destination that is about to sleep does not say so",
        file: "link/incoming.rs",
        edits: &[("«self.changes.start_waiting();» let outcome", "")],
    },
    Mutant {
        fault: "a destination whose event loop is about to sleep does not look again once it has said so",
        file: "link/incoming.rs",
        edits: &[(
            "self.changes.start_waiting(); if «self.must_stay_awake(core)?» { self.changes.stop_waiting();",
            "false",
        )],
    },
    Mutant {
        fault: "a destination whose event loop is about to sleep does not say so",
        file: "link/incoming.rs",
        edits: &[("«self.changes.start_waiting();» if self.must_stay_awake", "")],
    },
    Mutant {
        fault: "a destination that an event loop has woken leaves its bell rung",
        file: "link/incoming.rs",
        edits: &[("if heard.rung { «self.peer.clear()?;» }", "")],
    },
    Mutant {
        fault: "a destination that has made room rings nobody",
        file: "link/incoming.rs",
        edits: &[("if «self.changes.producer_must_be_rung()» {", "false")],
    },
    Mutant {
        fault: "a destination that has acknowledged rings nobody",
        file: "link/incoming.rs",
        edits: &[("if «published && self.acks.consumer_must_be_rung()» {", "false")],
    },
    Mutant {
        fault: "a destination makes room before it acknowledges",
        file: "link/incoming.rs",
        edits: &[("let is_last = «core.acks_due() == 1»;", "{ self.changes.release(); true }")],
    },
    Mutant {
        fault: "a destination does not see that its source is gone",
        file: "link/incoming.rs",
        edits: &[("Ok(if «heard.gone» { Woken::SourceGone }", "false")],
    },
    Mutant {
        fault: "where the destination is, is looked at after its acks",
        file: "link/timer.rs",
        edits: &[
            ("let positions = «link.positions()»;", "{ link.drain_acks(&mut state.core); link.positions() }"),
            ("«link.drain_acks(&mut state.core);» let now", ""),
        ],
    },
    Mutant {
        fault: "a flush does not ask to be rung for acks",
        file: "link/outgoing.rs",
        edits: &[("«self.acks.start_waiting();» self.try_drain_acks(core)", "")],
    },
    Mutant {
        fault: "a flush asks to be rung for acks, and does not look again",
        file: "link/outgoing.rs",
        edits: &[("self.acks.start_waiting(); «self.try_drain_acks(core)»", "Ok(())")],
    },
    Mutant {
        fault: "the timer thread tells no flush of acks",
        file: "link/timer.rs",
        edits: &[("«self.shared.tell_flushes();» } drop(guard);", "")],
    },
    Mutant {
        fault: "a flush that waits does not see that the source is closed",
        file: "link/flush.rs",
        edits: &[("_ if «state.is_closing()» =>", "false")],
    },
    Mutant {
        fault: "a source that is closed leaves its flushes asleep",
        file: "link/shared.rs",
        edits: &[("drop(state); «self.tell_flushes();» tasks.into_iter()", "")],
    },
    Mutant {
        fault: "to close a source does not wake its timer thread",
        file: "link/shared.rs",
        edits: &[("self.lock().closing = true; «self.wake.wake();»", "")],
    },
    Mutant {
        fault: "a destination that comes in wakes nobody",
        file: "link/shared.rs",
        edits: &[("«self.wake.wake();» } /// What the source counts, all of one moment.", "")],
    },
    Mutant {
        fault: "a change that is made alone is not published",
        file: "link/outgoing.rs",
        edits: &[(
            "«self.changes.try_publish_headed(frame.header(), [opcode, value], release)?»",
            "self.changes.try_write_headed(frame.header(), [opcode, value])?",
        )],
    },
    Mutant {
        fault: "a dead destination stays",
        file: "link/timer.rs",
        edits: &[("if «heard.gone || link.failed.is_some()» {", "link.failed.is_some()")],
    },
    Mutant {
        fault: "statistics are of two moments",
        file: "link/shared.rs",
        edits: &[(
            "self.drain_acks(&mut state); «SourceStats::of(&state)»",
            "let mut stats = SourceStats::of(&state);
            drop(state);
            stats.destinations = SourceStats::of(&self.lock()).destinations;
            stats",
        )],
    },
];
