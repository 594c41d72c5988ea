//! Every system call that needs more than the standard library offers.
//!
//! - [`futex`]: sleeping until a word of this process changes
//! - [`fork`]: handles that are inert in a forked child
//! - [`memfd`]: sealed, fully allocated shared memory, and the checks on a peer's
//! - `segment`, with the feature `named-region`: shared memory with a name, where no descriptors can be passed
//! - [`bell`]: the doorbell of one link and direction, which never blocks the one who rings
//! - [`wake`]: wakes a thread of this process
//! - [`socket`]: Unix sequenced-packet sockets that carry file descriptors
//! - [`poll`]: a bounded wait for any of these
//! - [`notify`]: one descriptor that stands for all of these, for somebody else's event loop
//! - [`process`]: who the peer is, and when it dies
//! - [`advice`]: how memory will be used
//! - [`thread`]: a thread that no signal reaches, scheduled as it is told
//!
//! This module decides nothing about the protocol. Every file descriptor made here is close-on-exec.

pub(crate) mod advice;
pub(crate) mod bell;
pub(crate) mod fork;
pub(crate) mod futex;
pub(crate) mod memfd;
pub(crate) mod notify;
pub(crate) mod poll;
pub(crate) mod process;
#[cfg(feature = "named-region")]
pub(crate) mod segment;
pub(crate) mod socket;
pub(crate) mod thread;
pub(crate) mod wake;

#[cfg(test)]
pub(crate) mod test_process;
