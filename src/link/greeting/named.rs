//! Greetings between peers that can pass no descriptors: regions are segments, told by their numbers, and the socket is
//! the bell of both sides.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::{
    AllowedUsers, Greeting, GreetingError, Header, Host, Joined, Kind, MAX_ACK_RING_BYTES, OfferedBell,
    OwnRegion, PeerRegion, send,
};
use crate::link::peer::Doorbells;
#[cfg(feature = "wait-raw-sync")]
use crate::region::event::{OwnEvent, PeerEvent};
use crate::sys::socket::Socket;
use crate::wire::{Hello, Offer};

/// How the shared memory of a link is made, and how it reaches the other side. Both sides must choose the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Region {
    /// Sealed memfds, whose descriptors are passed over the socket: neither side can write the other's, or take it away,
    /// and nothing is left whoever is killed.
    #[default]
    Memfd,
    /// Segments in `/dev/shm` ([`shm_overview(7)`](https://man7.org/linux/man-pages/man7/shm_overview.7.html)), for hosts
    /// and sandboxes in which no descriptors can be passed. The names are there while a link is being made; what a
    /// process that was killed then has left, the next that starts under the same source's name removes. The protection is
    /// weaker: both sides must run as one user, nothing is sealed, and a peer could write to our region, or cut it
    /// short, which kills us by SIGBUS.
    Named,
}

impl Host {
    /// Opens the destination's segment, and tells it of one of ours.
    pub(super) fn answer_by_name(
        &self,
        socket: &Socket,
        ours: Header,
        theirs: Header,
        number: u64,
        event: bool,
    ) -> Result<Joined, GreetingError> {
        if event && !self.means.allows_events() {
            return Err(GreetingError::NoEvents);
        }
        let theirs = Arc::new(PeerRegion::open_named(number, theirs, MAX_ACK_RING_BYTES, event)?);
        let doorbells = match event {
            #[cfg(feature = "wait-raw-sync")]
            true => Doorbells::PeerEvent(PeerEvent::of(theirs.clone())?),
            _ => Doorbells::Socket,
        };
        let ours = Arc::new(OwnRegion::create_named(ours)?);
        let accept = self.accept(ours.segment());
        send(socket, &accept.encode(), &[])?;
        Ok(Joined { ours, theirs, doorbells })
    }
}

impl Greeting {
    /// As [`Greeting::start`], with a segment; its number takes the place of the one in `hello`. With `event`, this side
    /// will wait at one in there.
    pub(crate) fn start_by_name(
        socket: Socket,
        hello: Hello,
        allowed: &AllowedUsers,
        event: bool,
    ) -> Result<Greeting, GreetingError> {
        let peer = allowed.check(socket.as_fd())?;
        let ring_bytes = hello.ack_ring_bytes;
        let header = Header { kind: Kind::Ack, ring_bytes, identity: hello.incarnation };
        let region = Arc::new(OwnRegion::create_named(header)?);
        let number = region.segment().expect("a named region has a number");
        let bell = match event {
            #[cfg(feature = "wait-raw-sync")]
            true => Doorbells::OwnEvent(OwnEvent::new(region.clone())?),
            _ => Doorbells::Socket,
        };
        let hello = Hello { offer: Offer::Segment { number, event }, ..hello };
        send(&socket, &hello.encode(), &[])?;
        Ok(Greeting::said(socket, peer, region, ring_bytes, OfferedBell::Named(bell)))
    }
}
