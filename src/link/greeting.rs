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

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::incoming::IncomingLink;
use super::outgoing::OutgoingLink;
use super::peer::LinuxPeer;
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
use crate::wire::{Accept, Hello, Refusal, Reply, WireError};

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
    #[error("the peer's greeting came with {found} file descriptors, expected {FDS}")]
    Descriptors {
        /// How many came.
        found: usize,
    },
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

    fn check(&self, socket: BorrowedFd<'_>) -> Result<Credentials, GreetingError> {
        let peer = process::peer_credentials(socket)?;
        if !self.0.contains(&peer.uid) {
            return Err(GreetingError::WrongUser { found: peer.uid, expected: self.0.clone() });
        }
        Ok(peer)
    }
}

/// What a source needs in order to answer a destination.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) epoch: u64,
    pub(crate) ring_bytes: u64,
    pub(crate) allowed: AllowedUsers,
}

/// Everything that a link is made of, before it has a session.
pub(crate) struct Welcomed {
    pub(crate) subscription: Subscription,
    credentials: Credentials,
    pidfd: Pidfd,
    bell: Bell,
    ringer: Ringer,
    changes: Producer<ProducerMapping>,
    acks: Consumer<ConsumerMapping>,
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
        let peer = self.allowed.check(socket.as_fd())?;
        let Some((message, fds)) = receive(socket)? else { return Ok(None) };
        let hello = Hello::decode(&message)?;
        let [region, bell_end] = two(fds)?;
        let theirs =
            Header { kind: Kind::Ack, ring_bytes: hello.ack_ring_bytes, identity: hello.incarnation };
        let theirs = Arc::new(PeerRegion::open(region, theirs, MAX_ACK_RING_BYTES)?);
        let ringer = Ringer::from_fd(bell_end)?;
        let ours = Header { kind: Kind::Change, ring_bytes: self.ring_bytes, identity: self.epoch };
        let ours = Arc::new(OwnRegion::create(ours)?);
        let (bell, their_end) = Bell::new()?;
        let pidfd = Pidfd::of_peer(socket.as_fd())?;
        let accept = Accept { epoch: self.epoch, change_ring_bytes: self.ring_bytes };
        send(socket, &accept.encode(), [ours.fd(), their_end.as_fd()])?;
        Ok(Some(Welcomed {
            subscription: hello.subscription,
            credentials: peer,
            pidfd,
            bell,
            ringer,
            changes: Producer::new(ProducerMapping::new(ours.clone(), theirs.clone()), self.ring_bytes),
            acks: Consumer::new(ConsumerMapping::new(ours, theirs), hello.ack_ring_bytes),
        }))
    }
}

impl Welcomed {
    pub(crate) fn into_link(self, session: SessionId, attachment: u64, socket: Socket) -> OutgoingLink {
        let Welcomed { credentials, pidfd, bell, ringer, changes, acks, .. } = self;
        let id = DestinationId { pid: credentials.pid.unsigned_abs(), attachment };
        OutgoingLink::new(session, id, LinuxPeer { socket, pidfd, bell, ringer }, changes, acks)
    }
}

/// A destination that has said hello and waits for the answer.
#[derive(Debug)]
pub(crate) struct Greeting {
    socket: Socket,
    peer: Credentials,
    region: OwnRegion,
    ring_bytes: u64,
    bell: Bell,
    deadline: Instant,
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
        send(&socket, &hello.encode(), [region.fd(), their_end.as_fd()])?;
        Ok(Greeting { socket, peer, region, ring_bytes, bell, deadline: Instant::now() + GREETING_TIMEOUT })
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
        let [region, bell_end] = two(fds)?;
        let theirs =
            Header { kind: Kind::Change, ring_bytes: accept.change_ring_bytes, identity: accept.epoch };
        let theirs = Arc::new(PeerRegion::open(region, theirs, layout::MAX_RING_BYTES)?);
        let ours = Arc::new(self.region);
        let pidfd = Pidfd::of_peer(self.socket.as_fd())?;
        let changes =
            Consumer::new(ConsumerMapping::new(ours.clone(), theirs.clone()), accept.change_ring_bytes);
        let acks = Producer::new(ProducerMapping::new(ours, theirs), self.ring_bytes);
        let ringer = Ringer::from_fd(bell_end)?;
        let peer = LinuxPeer { socket: self.socket, pidfd, bell: self.bell, ringer };
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

/// A peer's words, for a terminal or a log.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

fn send(socket: &Socket, message: &[u8], fds: [BorrowedFd<'_>; FDS]) -> Result<(), GreetingError> {
    match socket.send(message, &fds)? {
        Sent::Done => Ok(()),
        Sent::Closed => Err(GreetingError::HungUp),
        Sent::WouldBlock => Err(GreetingError::Io(io::ErrorKind::WouldBlock.into())),
    }
}

/// A greeting's bytes, and the descriptors that came with it.
type Message = (Vec<u8>, Vec<OwnedFd>);

/// The peer's greeting, if it has come.
fn receive(socket: &Socket) -> Result<Option<Message>, GreetingError> {
    let mut message = vec![0; Hello::MAX_BYTES];
    match socket.recv(&mut message, FDS)? {
        Received::WouldBlock => Ok(None),
        Received::Closed => Err(GreetingError::HungUp),
        Received::Message { len, fds } => {
            message.truncate(len);
            Ok(Some((message, fds)))
        }
    }
}

fn two(fds: Vec<OwnedFd>) -> Result<[OwnedFd; FDS], GreetingError> {
    fds.try_into().map_err(|fds: Vec<OwnedFd>| GreetingError::Descriptors { found: fds.len() })
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
