//! Where the frames of changes go that may go at once (S2).

use super::SessionId;
use crate::wire::Frame;

/// The rings of all sessions, as the core sees them while it records changes.
///
/// A change that is made alone is offered before it is recorded, and is on its way as soon as can be. Those of a batch
/// are recorded first, as many as there is a runway for, and then put in the ring one behind the other.
pub(crate) trait Outlet {
    /// Puts a frame in the ring of a session, and publishes it if it comes alone; `false` if there is no room.
    fn offer(&mut self, session: SessionId, frame: &Frame<'_>, alone: bool) -> bool;

    /// How much [`Outlet::put`] takes. If that is not enough, a single frame may still find room.
    fn runway(&mut self, session: SessionId) -> Runway {
        let _ = session;
        Runway::NONE
    }

    /// What a frame of so many bytes takes of that.
    fn bytes_of(frame_bytes: usize) -> u64 {
        frame_bytes as u64
    }

    /// Puts frames in the ring of a session, for which there is an [`Outlet::runway`].
    fn put<'a>(&mut self, session: SessionId, frames: impl ExactSizeIterator<Item = Frame<'a>>) {
        let _ = session;
        assert!(frames.len() == 0, "frames are put where there is no runway");
    }
}

/// What a ring takes without another look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Runway {
    pub(crate) frames: u32,
    pub(crate) bytes: u64,
}

impl Runway {
    pub(crate) const NONE: Runway = Runway { frames: 0, bytes: 0 };

    /// Takes a place for a frame, if there is one.
    #[inline(always)]
    pub(super) fn take(&mut self, bytes: u64) -> bool {
        let fits = self.frames > 0 && bytes <= self.bytes;
        if fits {
            self.frames -= 1;
            self.bytes -= bytes;
        }
        fits
    }
}

/// None: everything waits.
impl Outlet for () {
    fn offer(&mut self, _: SessionId, _: &Frame<'_>, _: bool) -> bool {
        false
    }
}

/// Takes frames one by one.
impl<F: FnMut(SessionId, &Frame<'_>) -> bool> Outlet for F {
    fn offer(&mut self, session: SessionId, frame: &Frame<'_>, _: bool) -> bool {
        self(session, frame)
    }
}
