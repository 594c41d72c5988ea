//! The process at the other end of a link, as the kernel tells of it: doorbells, a socket, a pidfd.

use std::io;
use std::os::fd::AsFd;
#[cfg(feature = "wait-raw-sync")]
use std::time::Instant;

#[cfg(feature = "wait-raw-sync")]
use super::platform::Waits;
use super::platform::{Heard, Peer};
#[cfg(feature = "wait-raw-sync")]
use crate::region::event::{OwnEvent, PeerEvent, SLICE};
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
    pub(crate) doorbells: Doorbells,
}

/// How both sides ring.
#[derive(Debug)]
pub(crate) enum Doorbells {
    /// Each has passed the other an end of a bell of its own.
    Passed {
        /// The peer rings this one.
        bell: Bell,
        /// The peer waits for this one.
        ringer: Ringer,
    },
    /// The socket, on which nothing else is said after the greeting, is the bell of both.
    #[cfg(feature = "named-region")]
    Socket,
    /// As [`Doorbells::Socket`], but this side waits at an event.
    #[cfg(feature = "wait-raw-sync")]
    OwnEvent(OwnEvent),
    /// As [`Doorbells::Socket`], but the peer waits at an event.
    #[cfg(feature = "wait-raw-sync")]
    PeerEvent(PeerEvent),
}

impl Peer<PollSet> for LinuxPeer {
    #[inline]
    fn ring(&self) -> io::Result<()> {
        match &self.doorbells {
            Doorbells::Passed { ringer, .. } => ringer.ring(),
            #[cfg(feature = "wait-raw-sync")]
            Doorbells::PeerEvent(event) => event.ring(),
            #[cfg(feature = "wait-raw-sync")]
            Doorbells::OwnEvent(_) => self.socket.ring(),
            #[cfg(feature = "named-region")]
            Doorbells::Socket => self.socket.ring(),
        }
    }

    fn clear(&self) -> io::Result<()> {
        match &self.doorbells {
            Doorbells::Passed { bell, .. } => bell.clear(),
            #[cfg(feature = "named-region")]
            _ => self.socket.clear_rings(),
        }
    }

    fn watch(&self, waits: &mut PollSet) -> usize {
        let at = match &self.doorbells {
            Doorbells::Passed { bell, .. } => {
                let at = waits.watch(bell.as_fd(), Interest::Read);
                waits.watch(self.socket.as_fd(), Interest::Read);
                at
            }
            // what is said on a socket that is a bell is a ring: so it is watched as the bell, and not again
            #[cfg(feature = "named-region")]
            _ => {
                let at = waits.watch(self.socket.as_fd(), Interest::Read);
                waits.watch_nothing();
                at
            }
        };
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

    /// At an event nothing else is heard: so a wait there is a short one, and then the rest is looked at.
    #[cfg(feature = "wait-raw-sync")]
    fn hear(&self, deadline: Option<Instant>, waits: &mut PollSet) -> io::Result<Heard> {
        let mut deadline = deadline;
        if let Doorbells::OwnEvent(event) = &self.doorbells {
            let now = Instant::now();
            let most = deadline.map_or(SLICE, |deadline| deadline.saturating_duration_since(now));
            if !most.is_zero() {
                event.wait(most)?;
            }
            deadline = Some(now);
        }
        waits.clear();
        let at = self.watch(waits);
        Waits::wait(waits, deadline)?;
        Ok(Self::heard(waits, at))
    }
}

#[cfg(all(test, feature = "named-region"))]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn peer(socket: Socket) -> LinuxPeer {
        let pidfd = Pidfd::open(std::process::id().cast_signed()).unwrap();
        LinuxPeer { socket, pidfd, doorbells: Doorbells::Socket }
    }

    #[test]
    fn socket_that_is_a_bell_is_rung_until_cleared_and_tells_of_the_end() {
        let (one, other) = Socket::pair().unwrap();
        let (rings, waits) = (peer(one), peer(other));
        let mut set = PollSet::new();
        let mut heard = |wait| waits.hear(Some(Instant::now() + wait), &mut set).unwrap();
        assert_eq!(heard(Duration::ZERO), Heard::default());
        for _ in 0..100_000 {
            rings.ring().unwrap();
        }
        let rung = Heard { rung: true, ..Heard::default() };
        assert_eq!(heard(Duration::ZERO), rung);
        waits.clear().unwrap();
        assert_eq!(heard(Duration::ZERO), Heard::default(), "one clear takes all rings");
        // what a peer says is a ring
        rings.socket.send(b"something longer", &[]).unwrap();
        assert_eq!(heard(Duration::ZERO), rung);
        waits.clear().unwrap();
        // an epoll takes each once
        let mut set = PollSet::new();
        waits.watch(&mut set);
        let mut watched: Vec<_> = set.descriptors().map(|(fd, _)| fd).collect();
        watched.sort_unstable();
        watched.dedup();
        assert_eq!((watched.len(), set.descriptors().count()), (2, 2), "the socket and the pidfd");
        drop(rings);
        let deadline = Instant::now() + Duration::from_secs(30);
        while !waits.hear(Some(Instant::now()), &mut set).unwrap().gone {
            assert!(Instant::now() < deadline, "no hang-up");
        }
        waits.clear().unwrap();
        waits.ring().unwrap();
    }
}
