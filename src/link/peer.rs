//! The process at the other end of a link, as the kernel tells of it: two doorbells, a socket, a pidfd.

use std::io;
use std::os::fd::AsFd;

use super::platform::{Heard, Peer};
use crate::sys::bell::{Bell, Ringer};
use crate::sys::poll::{Interest, PollSet};
use crate::sys::process::Pidfd;
use crate::sys::socket::Socket;

/// Its death shows three times: the socket and the bell hang up, and the pidfd becomes readable. The socket also hangs up
/// when it gives the link up; the pidfd tells of a death even if a child of it has inherited the others.
#[derive(Debug)]
pub(crate) struct LinuxPeer {
    pub(crate) socket: Socket,
    pub(crate) pidfd: Pidfd,
    /// It rings this one.
    pub(crate) bell: Bell,
    /// It waits for this one.
    pub(crate) ringer: Ringer,
}

impl Peer<PollSet> for LinuxPeer {
    #[inline]
    fn ring(&self) -> io::Result<()> {
        self.ringer.ring()
    }

    fn clear(&self) -> io::Result<()> {
        self.bell.clear()
    }

    fn watch(&self, waits: &mut PollSet) -> usize {
        let at = waits.watch(self.bell.as_fd(), Interest::Read);
        waits.watch(self.socket.as_fd(), Interest::Read);
        waits.watch(self.pidfd.as_fd(), Interest::Read);
        at
    }

    fn heard(waits: &PollSet, at: usize) -> Heard {
        let [bell, socket, process] = [0, 1, 2].map(|offset| waits.ready(at + offset));
        let spoke = socket.readable && !socket.hung_up;
        Heard {
            rung: bell.readable,
            // A bell that nobody can ring any more would be readable for ever.
            gone: bell.hung_up || bell.error || (socket.any() && !spoke) || process.any(),
            spoke,
        }
    }
}
