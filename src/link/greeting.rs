//! How a destination and a source agree on a link, over the rendezvous socket.
//!
//! ```text
//! destination                                        source
//!     | connect                                        |
//!     | Hello + [ack region, end of its bell]   ------->  |  checks user, version, region
//!     |  <-------  Accept + [change region, end of its bell], or Refuse with a reason
//!     | checks user, version, region                   |
//!     |  <======== the two rings ========>             |
//! ```
//!
//! Afterwards nothing more is said on the socket: its hang-up is the peer's death notice. Neither side waits for the
//! other while it greets; who says nothing is given up after [`GREETING_TIMEOUT`].
//!
//! Where no descriptors can be passed, both sides name segments instead (`named`, with the feature `named-region`), and
//! then ring on the socket. Each side says which it means; who means the other is refused.

#[cfg(feature = "named-region")]
pub(crate) mod named;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::incoming::IncomingLink;
use super::outgoing::OutgoingLink;
use super::peer::{Doorbells, LinuxPeer};
#[cfg(feature = "named-region")]
use super::rendezvous::bind::BindError;
#[cfg(feature = "named-region")]
use super::rendezvous::lease::Lease;
use crate::proto::source::SessionId;
use crate::region::layout::{self, Header, Kind};
use crate::region::ring_memory::{ConsumerMapping, ProducerMapping};
use crate::region::{OwnRegion, PeerRegion, RegionError};
use crate::ring::{Consumer, Producer};
use crate::stats::DestinationId;
use crate::subscription::Subscription;
use crate::sys::bell::{Bell, Ringer, RingerError};
use crate::sys::process::{self, Credentials, Pidfd};
use crate::sys::socket::{ReceiveError, Received, Sent, Socket};
use crate::wire::{Accept, Hello, Offer, Refusal, Reply, WireError};

/// The longest that a peer may take to say what it has to say.
pub(crate) const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

/// The most that a destination may offer for acks: they are taken in under the source's lock.
const MAX_ACK_RING_BYTES: u64 = 1 << 20;

/// Each greeting passes a region and a bell.
const FDS: usize = 2;

/// Why a destination and a source did not come to terms.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GreetingError {
    /// The source does not take this destination.
    #[error("the source refused: {0}")]
    Refused(String),
    /// The peer runs as a user that is not allowed.
    #[error("the peer runs as user {found}, expected one of {expected:?}")]
    WrongUser {
        /// The peer's user.
        found: u32,
        /// The users that are allowed.
        expected: Vec<u32>,
    },
    /// The peer's greeting cannot be understood.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The peer passed another number of descriptors.
    #[error("the peer's greeting came with {found} file descriptors, expected {expected}")]
    Descriptors {
        /// How many came.
        found: usize,
        /// How many were expected.
        expected: usize,
    },
    /// The peer means another kind of region.
    #[error(
        "the peer has {found}, expected {expected}; choose the same region on both sides (SourceOptions::region, \
         DestinationOptions::region, with the feature named-region)"
    )]
    RegionKind {
        /// What the peer has.
        found: &'static str,
        /// What this side has.
        expected: &'static str,
    },
    /// This side's segments would be left behind if it were killed.
    #[cfg(feature = "named-region")]
    #[error("no segments can be made without a lease: {0}")]
    Lease(BindError),
    /// The destination waits in a way that this source does not allow, or was not built for.
    #[cfg(feature = "named-region")]
    #[error(
        "the destination waits through raw_sync, which the source does not allow \
         (SourceOptions::allow_raw_sync, with the feature wait-raw-sync)"
    )]
    NoEvents,
    /// The peer's region cannot be used, or none could be made.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// The peer's greeting is too long, or comes with too many descriptors.
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    /// The peer's doorbell cannot be rung.
    #[error(transparent)]
    Bell(#[from] RingerError),
    /// The peer hung up.
    #[error("the peer hung up before the link was made")]
    HungUp,
    /// The peer said nothing.
    #[error("the peer did not answer within {} s", GREETING_TIMEOUT.as_secs())]
    TimedOut,
    /// The peer said nothing, and others want its place.
    #[error("the peer said nothing while {others} others connected")]
    Crowded {
        /// Connections that came after its own.
        others: usize,
    },
    /// A system call failed.
    #[error("a system call failed: {0}")]
    Io(#[from] io::Error),
}

/// The users whose processes are taken as peers: our own, root, and those that were named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AllowedUsers(Vec<u32>);

impl AllowedUsers {
    pub(crate) fn new(named: &[u32]) -> AllowedUsers {
        let mut users = vec![process::own_uid(), 0];
        users.extend_from_slice(named);
        users.sort_unstable();
        users.dedup();
        AllowedUsers(users)
    }

    /// Segments have one user, and no others can open them.
    #[cfg(feature = "named-region")]
    pub(crate) fn own_only() -> AllowedUsers {
        AllowedUsers(vec![process::own_uid()])
    }

    fn check(&self, socket: BorrowedFd<'_>) -> Result<Credentials, GreetingError> {
        let peer = process::peer_credentials(socket)?;
        if !self.0.contains(&peer.uid) {
            return Err(GreetingError::WrongUser { found: peer.uid, expected: self.0.clone() });
        }
        Ok(peer)
    }
}

/// How this side's regions reach its peers, and theirs this side.
#[derive(Debug)]
pub(crate) enum Means {
    /// As descriptors that come with the greetings.
    Descriptors,
    /// Under names, which are this side's as long as it holds the lease.
    #[cfg(feature = "named-region")]
    Names {
        _lease: Lease,
        /// Peers may wait at events.
        #[cfg(feature = "wait-raw-sync")]
        events: bool,
    },
}

impl Means {
    fn describe(&self) -> &'static str {
        match self {
            Means::Descriptors => DESCRIPTORS,
            #[cfg(feature = "named-region")]
            Means::Names { .. } => NAMES,
        }
    }

    /// Whether a peer may wait at an event, at which this side rings then.
    #[cfg(feature = "named-region")]
    fn allows_events(&self) -> bool {
        #[cfg(feature = "wait-raw-sync")]
        if let Means::Names { events, .. } = self {
            return *events;
        }
        false
    }

    /// The peer means another kind than this side.
    fn mismatch(&self, theirs: &'static str) -> GreetingError {
        GreetingError::RegionKind { found: theirs, expected: self.describe() }
    }
}

/// What a source needs in order to answer a destination.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) epoch: u64,
    pub(crate) ring_bytes: u64,
    pub(crate) allowed: AllowedUsers,
    pub(crate) means: Means,
}

/// Everything that a link is made of, before it has a session.
#[derive(Debug)]
pub(crate) struct Welcomed {
    pub(crate) subscription: Subscription,
    credentials: Credentials,
    pidfd: Pidfd,
    joined: Joined,
    ack_ring_bytes: u64,
    change_ring_bytes: u64,
}

/// Both regions and the doorbells between their makers.
#[derive(Debug)]
struct Joined {
    ours: Arc<OwnRegion>,
    theirs: Arc<PeerRegion>,
    doorbells: Doorbells,
}

impl Host {
    /// Answers the greeting on a new connection; `None` if none has come yet. If the peer is not taken, it is told why.
    pub(crate) fn answer(&self, socket: &Socket) -> Result<Option<Welcomed>, GreetingError> {
        let outcome = self.try_answer(socket);
        if let Err(error) = &outcome {
            // Whether the reason gets through or not, the connection is closed.
            let _ = socket.send(&Refusal(error.to_string()).encode(), &[]);
        }
        outcome
    }

    fn try_answer(&self, socket: &Socket) -> Result<Option<Welcomed>, GreetingError> {
        let credentials = self.allowed.check(socket.as_fd())?;
        let Some((message, fds)) = receive(socket)? else { return Ok(None) };
        let hello = Hello::decode(&message)?;
        let theirs =
            Header { kind: Kind::Ack, ring_bytes: hello.ack_ring_bytes, identity: hello.incarnation };
        let ours = Header { kind: Kind::Change, ring_bytes: self.ring_bytes, identity: self.epoch };
        let pidfd = Pidfd::of_peer(socket.as_fd());
        let joined = match (&self.means, hello.offer) {
            (Means::Descriptors, Offer::Descriptors) => {
                let [region, bell_end] = exactly(fds)?;
                let theirs = Arc::new(PeerRegion::open(region, theirs, MAX_ACK_RING_BYTES)?);
                let ringer = Ringer::from_fd(bell_end)?;
                let ours = Arc::new(OwnRegion::create(ours)?);
                let (bell, their_end) = Bell::new()?;
                let accept = self.accept(None);
                send(socket, &accept.encode(), &[ours.fd(), their_end.as_fd()])?;
                Joined { ours, theirs, doorbells: Doorbells::Passed { bell, ringer } }
            }
            #[cfg(feature = "named-region")]
            (Means::Names { .. }, Offer::Segment { number, event }) => {
                exactly::<0>(fds)?;
                self.answer_by_name(socket, ours, theirs, number, event)?
            }
            (means, Offer::Segment { .. }) => return Err(means.mismatch(NAMES)),
            #[cfg(feature = "named-region")]
            (means, Offer::Descriptors) => return Err(means.mismatch(DESCRIPTORS)),
        };
        Ok(Some(Welcomed {
            subscription: hello.subscription,
            credentials,
            pidfd: pidfd?,
            joined,
            ack_ring_bytes: hello.ack_ring_bytes,
            change_ring_bytes: self.ring_bytes,
        }))
    }

    fn accept(&self, segment: Option<u64>) -> Accept {
        Accept { epoch: self.epoch, change_ring_bytes: self.ring_bytes, segment }
    }
}

impl Welcomed {
    pub(crate) fn into_link(self, session: SessionId, attachment: u64, socket: Socket) -> OutgoingLink {
        let id = DestinationId { pid: self.credentials.pid.unsigned_abs(), attachment };
        let Joined { ours, theirs, doorbells } = self.joined;
        let changes =
            Producer::new(ProducerMapping::new(ours.clone(), theirs.clone()), self.change_ring_bytes);
        let acks = Consumer::new(ConsumerMapping::new(ours, theirs), self.ack_ring_bytes);
        let peer = LinuxPeer { socket, pidfd: self.pidfd, doorbells };
        OutgoingLink::new(session, id, peer, changes, acks)
    }
}

/// A destination that has said hello and waits for the answer.
#[derive(Debug)]
pub(crate) struct Greeting {
    socket: Socket,
    peer: Credentials,
    region: Arc<OwnRegion>,
    ring_bytes: u64,
    bell: OfferedBell,
    deadline: Instant,
}

/// Where a destination will wait.
#[derive(Debug)]
enum OfferedBell {
    Passed(Bell),
    #[cfg(feature = "named-region")]
    Named(Doorbells),
}

impl Greeting {
    /// Says hello on a connection, and offers a ring for acks.
    pub(crate) fn start(
        socket: Socket,
        hello: &Hello,
        allowed: &AllowedUsers,
    ) -> Result<Greeting, GreetingError> {
        let peer = allowed.check(socket.as_fd())?;
        let ring_bytes = hello.ack_ring_bytes;
        let region = OwnRegion::create(Header { kind: Kind::Ack, ring_bytes, identity: hello.incarnation })?;
        let (bell, their_end) = Bell::new()?;
        send(&socket, &hello.encode(), &[region.fd(), their_end.as_fd()])?;
        Ok(Greeting::said(socket, peer, Arc::new(region), ring_bytes, OfferedBell::Passed(bell)))
    }

    fn said(
        socket: Socket,
        peer: Credentials,
        region: Arc<OwnRegion>,
        ring_bytes: u64,
        bell: OfferedBell,
    ) -> Greeting {
        Greeting { socket, peer, region, ring_bytes, bell, deadline: Instant::now() + GREETING_TIMEOUT }
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Reads the answer; `Err(self)` inside `Ok` means that there is none yet.
    pub(crate) fn finish(self) -> Result<Result<Attached, Greeting>, GreetingError> {
        let Some((message, fds)) = receive(&self.socket)? else {
            if Instant::now() >= self.deadline {
                return Err(GreetingError::TimedOut);
            }
            return Ok(Err(self));
        };
        let accept = match Reply::decode(&message)? {
            Reply::Accepted(accept) => accept,
            Reply::Refused(Refusal(reason)) => return Err(GreetingError::Refused(printable(&reason))),
        };
        let theirs =
            Header { kind: Kind::Change, ring_bytes: accept.change_ring_bytes, identity: accept.epoch };
        let (theirs, doorbells) = match (self.bell, accept.segment) {
            (OfferedBell::Passed(bell), None) => {
                let [region, bell_end] = exactly(fds)?;
                let theirs = PeerRegion::open(region, theirs, layout::MAX_RING_BYTES)?;
                (theirs, Doorbells::Passed { bell, ringer: Ringer::from_fd(bell_end)? })
            }
            #[cfg(feature = "named-region")]
            (OfferedBell::Named(doorbells), Some(number)) => {
                exactly::<0>(fds)?;
                (PeerRegion::open_named(number, theirs, layout::MAX_RING_BYTES, false)?, doorbells)
            }
            (OfferedBell::Passed(_), Some(_)) => return Err(Means::Descriptors.mismatch(NAMES)),
            #[cfg(feature = "named-region")]
            (OfferedBell::Named(_), None) => {
                return Err(GreetingError::RegionKind { found: DESCRIPTORS, expected: NAMES });
            }
        };
        let (ours, theirs) = (self.region, Arc::new(theirs));
        let pidfd = Pidfd::of_peer(self.socket.as_fd())?;
        let changes =
            Consumer::new(ConsumerMapping::new(ours.clone(), theirs.clone()), accept.change_ring_bytes);
        let acks = Producer::new(ProducerMapping::new(ours, theirs), self.ring_bytes);
        let peer = LinuxPeer { socket: self.socket, pidfd, doorbells };
        let link = IncomingLink::new(peer, changes, acks, accept.change_ring_bytes);
        Ok(Ok(Attached { link, epoch: accept.epoch, pid: self.peer.pid }))
    }
}

impl AsFd for Greeting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A destination's link, and whom it leads to.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) link: IncomingLink,
    pub(crate) epoch: u64,
    pub(crate) pid: i32,
}

/// What a side has, in the words of [`GreetingError::RegionKind`].
const DESCRIPTORS: &str = "regions that are passed as descriptors (memfd)";
const NAMES: &str = "regions with names";

/// A peer's words, for a terminal or a log.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

fn send(socket: &Socket, message: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), GreetingError> {
    match socket.send(message, fds)? {
        Sent::Done => Ok(()),
        Sent::Closed => Err(GreetingError::HungUp),
        Sent::WouldBlock => Err(GreetingError::Io(io::ErrorKind::WouldBlock.into())),
    }
}

/// A greeting's bytes, and the descriptors that came with it.
type Message = (Vec<u8>, Vec<OwnedFd>);

/// The peer's greeting, if it has come.
fn receive(socket: &Socket) -> Result<Option<Message>, GreetingError> {
    let mut message = vec![0; Hello::LONGEST_BYTES];
    match socket.recv(&mut message, FDS)? {
        Received::WouldBlock => Ok(None),
        Received::Closed => Err(GreetingError::HungUp),
        Received::Message { len, fds } => {
            message.truncate(len);
            Ok(Some((message, fds)))
        }
    }
}

fn exactly<const N: usize>(fds: Vec<OwnedFd>) -> Result<[OwnedFd; N], GreetingError> {
    fds.try_into().map_err(|fds: Vec<OwnedFd>| GreetingError::Descriptors { found: fds.len(), expected: N })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn user_that_is_not_allowed_is_refused_with_those_that_are() {
        let (socket, _peer) = UnixStream::pair().unwrap();
        let own = process::own_uid();
        let others = AllowedUsers(vec![own + 1, own + 2]);
        let text = others.check(socket.as_fd()).unwrap_err().to_string();
        assert_eq!(text, format!("the peer runs as user {own}, expected one of [{}, {}]", own + 1, own + 2));
        assert_eq!(AllowedUsers::new(&[own]).check(socket.as_fd()).unwrap().uid, own);
    }
}
