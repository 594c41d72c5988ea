//! Who sleeps, and who must be rung: the same for both sides.
//!
//! The sleeper announces its wait, then looks at the peer's cursor once more. The ringer stores its cursor,
//! then looks at the peer's waits word. At least one of them must see what the other stored, else the sleeper
//! sleeps on something that it was never told of:
//!
//! ```text
//!   sleeper                               ringer
//!   store waits = generation   Relaxed    store cursor   Release
//!   fence                      SeqCst     fence          SeqCst
//!   load the peer's cursor     Relaxed    load waits     Relaxed
//! ```
//!
//! Neither acquire nor release forbids that both loads run ahead of both stores; the two fences do. They
//! stand in one order: if the sleeper's is first, the ringer sees the generation and rings; if the ringer's
//! is first, the sleeper sees the cursor and stays awake.
//!
//! The word carries a generation rather than a flag so that a ringer that publishes a thousand batches while
//! the sleeper is waking up rings once, not a thousand times. Generations begin at one and are compared for
//! equality only. Zero is "awake", and no generation has been rung at the start, so the first wait is always
//! rung. A hostile peer that makes up generations earns itself rings and nothing else.
//!
//! A side that polls and will never sleep says so once; from when its peer has seen that, the peer saves the fence, which
//! is the better part of what publishing one record costs.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use super::memory::{Memory, Word};

/// One side's half of the sleep and wake protocol.
#[derive(Debug, Default)]
pub(super) struct Handshake {
    /// The generation of this side's newest wait; zero before the first.
    own: u64,
    /// The generation of the peer's wait that this side rang for; zero before the first.
    rung: u64,
    /// The peer has said that it never sleeps.
    peer_never_sleeps: bool,
}

/// What the waits word says of a side that never sleeps; no generation gets that far.
const NEVER: u64 = u64::MAX;

impl Handshake {
    /// Announces a new wait. The caller looks at the peer's cursor once more before it sleeps.
    pub(super) fn start_waiting(&mut self, memory: &impl Memory) {
        self.own += 1;
        // Relaxed: ordered by the fence below, and nothing is published with it.
        memory.store_own(Word::Waits, self.own, Relaxed);
        // Keeps the load of the peer's cursor that follows behind the store above; its partner is the fence
        // in the peer's `peer_must_be_rung`.
        memory.fence(SeqCst);
    }

    /// Says that this side will never sleep. It keeps to that as long as the ring lives.
    pub(super) fn never_wait(&self, memory: &impl Memory) {
        // Relaxed: a hint that saves fences, nothing hangs on when it is seen.
        memory.store_own(Word::Waits, NEVER, Relaxed);
    }

    /// Says that this side is awake. If the peer does not see it in time, it rings once for nothing.
    pub(super) fn stop_waiting(&self, memory: &impl Memory) {
        // Relaxed: a hint that saves a ring, nothing hangs on when it is seen.
        memory.store_own(Word::Waits, 0, Relaxed);
    }

    /// Whether the peer waits and has not been rung for this wait. To be called after the cursor was stored.
    #[inline]
    pub(super) fn peer_must_be_rung(&mut self, memory: &impl Memory) -> bool {
        if self.peer_never_sleeps {
            return false;
        }
        // Keeps the load below behind the store of the cursor before; its partner is the fence in the peer's
        // `start_waiting`.
        memory.fence(SeqCst);
        // Relaxed: ordered by the fence above, and nothing is acquired with it.
        let generation = memory.load_peer(Word::Waits);
        if generation == 0 || generation == self.rung {
            return false;
        }
        if generation == NEVER {
            self.peer_never_sleeps = true;
            return false;
        }
        self.rung = generation;
        true
    }
}
