//! Orders of memory accesses, each weakened; a test sees to it that none is left out.

use super::Mutant;

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        fault: "the tail is stored Relaxed: it may be seen before the records",
        file: "ring/producer.rs",
        edits: &[("store_own(Word::Cursor, tail, «Release»)", "Relaxed")],
    },
    Mutant {
        fault: "the tail is stored before what was combined is in the ring",
        file: "ring/producer.rs",
        edits: &[
            ("«self.write_combined();» self.combined.close(); self.store_tail(self.tail);", ""),
            ("«self.handle_published();» true", "{ self.write_combined(); self.handle_published(); }"),
        ],
    },
    Mutant {
        fault: "the tail is stored before a record that is published at once is in the ring",
        file: "ring/producer.rs",
        edits: &[(
            "«self.copy_in(len, head, pieces);» let tail = self.tail.wrapping_add(record_bytes(len));",
            "{ self.store_tail(self.tail.wrapping_add(record_bytes(len))); self.copy_in(len, head, pieces); }",
        )],
    },
    Mutant {
        fault: "no Acquire behind the load of the tail: records may be read before they were written",
        file: "ring/consumer.rs",
        edits: &[("«self.memory.fence(Acquire);»", "")],
    },
    Mutant {
        fault: "the head is stored Relaxed: it may be seen before the copies out are done",
        file: "ring/consumer.rs",
        edits: &[(
            "store_own(Word::Cursor, self.position, «Release»)",
            "std::sync::atomic::Ordering::Relaxed",
        )],
    },
    Mutant {
        fault: "no Acquire behind the load of the head: what is still being copied out may be overwritten",
        file: "ring/producer.rs",
        edits: &[("«self.memory.fence(Acquire);»", "")],
    },
    Mutant {
        fault: "where the ring was begun anew is stored behind the tail: it may be missed",
        file: "ring/producer.rs",
        edits: &[(
            "«self.memory.store_own(Word::Start, self.geometry.start(), Relaxed);»",
            "{ self.memory.store_own(Word::Cursor, tail, Release); self.memory.store_own(Word::Start, self.geometry.start(), Relaxed); }",
        )],
    },
    Mutant {
        fault: "the ring is begun anew while records are in it",
        file: "ring/producer.rs",
        edits: &[(
            "if «found == self.tail» && found != self.geometry.start()",
            "self.published == self.tail",
        )],
    },
    Mutant {
        fault: "no fence between saying that one sleeps and the last look",
        file: "ring/handshake.rs",
        edits: &[("«memory.fence(SeqCst);» }", "")],
    },
    Mutant {
        fault: "that fence is AcqRel",
        file: "ring/handshake.rs",
        edits: &[("memory.fence(«SeqCst»); }", "std::sync::atomic::Ordering::AcqRel")],
    },
    Mutant {
        fault: "no fence between publishing and the look whether the peer sleeps",
        file: "ring/handshake.rs",
        edits: &[("«memory.fence(SeqCst);» // Relaxed: ordered by the fence above", "")],
    },
    Mutant {
        fault: "that fence is AcqRel",
        file: "ring/handshake.rs",
        edits: &[(
            "memory.fence(«SeqCst»); // Relaxed: ordered by the fence above",
            "std::sync::atomic::Ordering::AcqRel",
        )],
    },
];
