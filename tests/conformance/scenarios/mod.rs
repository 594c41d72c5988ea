//! What a link does.

pub(crate) mod acks;
pub(crate) mod lives;
pub(crate) mod pace;
pub(crate) mod processes;
pub(crate) mod state;
