//! The two netlink sockets: one that hears events, one that asks for dumps.
//!
//! They are separate because a dump's reply would compete with events for one receive buffer, and because an
//! overrun of the event socket must not cut a dump short.
//!
//! 1. Nothing here blocks for longer than a dump's deadline.
//! 2. Only the kernel is believed: a datagram from another port is dropped.
//! 3. Both sockets stay in the network namespace in which they were opened, wherever the caller goes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use netlink_packet_core::{
    DecodeError, DoneBuffer, ErrorBuffer, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE,
    NLMSG_ERROR, NetlinkBuffer, NetlinkMessage,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::RuleMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{setsockopt, sockopt};

use super::canonical::Part;
use super::{KernelError, KernelTable};

/// The socket that is a member of the multicast groups.
pub(super) struct EventSocket {
    socket: Socket,
    buffer: Vec<u8>,
}

/// What a look at the event socket found.
pub(super) enum Received<'a> {
    /// One or several messages; see [`messages`].
    Datagram(&'a [u8]),
    /// Nothing is waiting. After an overrun the kernel queues again from here on, and not before.
    Empty,
    /// Events were lost: the buffer was full, or a datagram was larger than ours (which has grown since).
    Overrun,
}

impl EventSocket {
    /// Joins the groups of every mirrored table.
    ///
    /// # Errors
    ///
    /// No netlink socket to be had.
    pub(super) fn open(receive_buffer_bytes: usize) -> Result<Self, KernelError> {
        let mut socket = socket()?;
        // Beyond net.core.rmem_max only with CAP_NET_ADMIN; without it, as much as the limit allows.
        if setsockopt(&socket, sockopt::RcvBufForce, &receive_buffer_bytes).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &receive_buffer_bytes).map_err(|source| {
                KernelError::Socket { doing: "setting its buffer", source: source.into() }
            })?;
        }
        socket.bind_auto().map_err(|source| KernelError::Socket { doing: "binding an address", source })?;
        for group in GROUPS {
            match socket.add_membership(group) {
                // A kernel without next hop objects (before 5.3) has no group for them either.
                Err(_) if group == libc::RTNLGRP_NEXTHOP => {}
                result => {
                    result
                        .map_err(|source| KernelError::Socket { doing: "joining an event group", source })?;
                }
            }
        }
        Ok(EventSocket { socket, buffer: vec![0; FIRST_BUFFER_BYTES] })
    }

    /// Takes one datagram without waiting.
    ///
    /// # Errors
    ///
    /// The socket is broken: none of the conditions that [`Received`] names.
    pub(super) fn try_receive(&mut self) -> Result<Received<'_>, KernelError> {
        for _ in 0..MAX_FOREIGN_DATAGRAMS {
            let received =
                self.socket.recv_from(&mut &mut self.buffer[..], libc::MSG_DONTWAIT | libc::MSG_TRUNC);
            match received {
                Ok((len_bytes, _)) if len_bytes > self.buffer.len() => {
                    self.buffer.resize(len_bytes.next_power_of_two(), 0);
                    return Ok(Received::Overrun);
                }
                Ok((len_bytes, sender)) if sender.port_number() == KERNEL_PORT => {
                    return Ok(Received::Datagram(&self.buffer[..len_bytes]));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Received::Empty),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(Received::Overrun),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(KernelError::Socket { doing: "receiving events", source }),
            }
        }
        Ok(Received::Empty)
    }

    /// Whether an event or an overrun is waiting to be taken.
    pub(super) fn is_ready(&self) -> bool {
        wait_readable(self.socket.as_fd(), Duration::ZERO).unwrap_or(true)
    }
}

impl AsFd for EventSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The socket that asks.
pub(super) struct DumpSocket {
    socket: Socket,
    buffer: Vec<u8>,
    /// Of the newest request; replies to older ones are skipped.
    sequence_number: u32,
    /// An earlier dump was given up before its end, and the kernel refuses another one until it has been read.
    unfinished: bool,
}

/// How a dump ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Dumped {
    Whole,
    /// The table changed meanwhile, so objects may be missing or shown twice.
    Interrupted,
}

impl DumpSocket {
    /// # Errors
    ///
    /// No netlink socket to be had.
    pub(super) fn open() -> Result<Self, KernelError> {
        let mut socket = socket()?;
        socket.bind_auto().map_err(|source| KernelError::Socket { doing: "binding an address", source })?;
        Ok(DumpSocket { socket, buffer: vec![0; FIRST_BUFFER_BYTES], sequence_number: 0, unfinished: false })
    }

    /// Asks for one part and hands over each message's type and payload.
    ///
    /// # Errors
    ///
    /// The kernel refuses, or has not finished within `limit`.
    pub(super) fn dump(
        &mut self,
        part: Part,
        limit: Duration,
        mut object: impl FnMut(u16, &[u8]),
    ) -> Result<Dumped, KernelError> {
        let deadline = Instant::now() + limit;
        if self.unfinished {
            self.receive(part, limit, deadline, &mut |_, _| {})?;
        }
        self.sequence_number = self.sequence_number.wrapping_add(1);
        let request = request(part, self.sequence_number);
        self.socket
            .send_to(&request, &SocketAddr::new(KERNEL_PORT, 0), 0)
            .map_err(|source| KernelError::Socket { doing: "asking for a dump", source })?;
        self.unfinished = true;
        self.receive(part, limit, deadline, &mut object)
    }

    fn receive(
        &mut self,
        part: Part,
        limit: Duration,
        deadline: Instant,
        object: &mut dyn FnMut(u16, &[u8]),
    ) -> Result<Dumped, KernelError> {
        let mut dumped = Dumped::Whole;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(KernelError::Timeout { table: part.table, limit });
            }
            let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
            let (len_bytes, sender) = match self.socket.recv_from(&mut &mut self.buffer[..], flags) {
                Ok(received) => received,
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
                {
                    wait_readable(self.socket.as_fd(), left)
                        .map_err(|source| KernelError::Socket { doing: "waiting for a dump", source })?;
                    continue;
                }
                Err(source) => return Err(KernelError::Socket { doing: "receiving a dump", source }),
            };
            if sender.port_number() != KERNEL_PORT {
                continue;
            }
            if len_bytes > self.buffer.len() {
                self.buffer.resize(len_bytes.next_power_of_two(), 0);
                dumped = Dumped::Interrupted;
                continue;
            }
            for message in messages(&self.buffer[..len_bytes]) {
                let message = message.map_err(|source| KernelError::Garbled { table: part.table, source })?;
                if message.sequence_number() != self.sequence_number {
                    continue;
                }
                if message.flags() & NLM_F_DUMP_INTR != 0 {
                    dumped = Dumped::Interrupted;
                }
                match message.message_type() {
                    NLMSG_DONE | NLMSG_ERROR => {
                        self.unfinished = false;
                        return match error_code(&message) {
                            0 => Ok(dumped),
                            // A kernel without IPv6 (or without rules) has none of them.
                            libc::EAFNOSUPPORT | libc::EOPNOTSUPP => Ok(dumped),
                            code => Err(KernelError::Refused {
                                table: part.table,
                                source: io::Error::from_raw_os_error(code),
                            }),
                        };
                    }
                    message_type => object(message_type, message.payload()),
                }
            }
        }
    }
}

/// The messages of one datagram, up to the first that is cut short, which is an error.
pub(super) fn messages(
    mut datagram: &[u8],
) -> impl Iterator<Item = Result<NetlinkBuffer<&[u8]>, DecodeError>> {
    std::iter::from_fn(move || {
        if datagram.is_empty() {
            return None;
        }
        let message = NetlinkBuffer::new_checked(datagram);
        let len_bytes = message.as_ref().map_or(datagram.len(), |message| message.length() as usize);
        datagram = datagram.get(len_bytes.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The positive error number of a message that ends a dump, 0 for success.
fn error_code(message: &NetlinkBuffer<&[u8]>) -> i32 {
    let bytes = message.payload();
    let code = match message.message_type() {
        NLMSG_ERROR => ErrorBuffer::new_checked(bytes).map_or(0, |error| error.code().map_or(0, i32::from)),
        _ => DoneBuffer::new_checked(bytes).map_or(0, |done| done.code()),
    };
    code.saturating_neg()
}

fn request(part: Part, sequence_number: u32) -> Vec<u8> {
    let family = part.family.into();
    let payload = match part.table {
        KernelTable::Links => {
            let mut message = LinkMessage::default();
            message.header.interface_family = family;
            RouteNetlinkMessage::GetLink(message)
        }
        KernelTable::Addresses => {
            let mut message = AddressMessage::default();
            message.header.family = family;
            RouteNetlinkMessage::GetAddress(message)
        }
        KernelTable::Neighbours => {
            let mut message = NeighbourMessage::default();
            message.header.family = family;
            RouteNetlinkMessage::GetNeighbour(message)
        }
        KernelTable::Routes => {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            RouteNetlinkMessage::GetRoute(message)
        }
        KernelTable::Rules => {
            let mut message = RuleMessage::default();
            message.header.family = family;
            RouteNetlinkMessage::GetRule(message)
        }
    };
    let mut message = NetlinkMessage::from(payload);
    message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    message.header.sequence_number = sequence_number;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn socket() -> Result<Socket, KernelError> {
    Socket::new(NETLINK_ROUTE).map_err(|source| KernelError::Socket { doing: "opening it", source })
}

/// Waits until `fd` has something to read; false after `limit`, or earlier if a signal came.
pub(super) fn wait_readable(fd: BorrowedFd<'_>, limit: Duration) -> io::Result<bool> {
    // Rounded up, so that a wait that is nearly over does not spin.
    let limit_ms = limit.as_micros().div_ceil(1000);
    let timeout = PollTimeout::try_from(limit_ms).unwrap_or(PollTimeout::MAX);
    match nix::poll::poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
        Ok(ready) => Ok(ready > 0),
        Err(nix::Error::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

const GROUPS: [u32; 9] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV6_RULE,
    libc::RTNLGRP_NEXTHOP,
];

const KERNEL_PORT: u32 = 0;

/// The kernel fills at most 32 KiB of a dump at a time; a single event may be larger, and the buffer then grows.
const FIRST_BUFFER_BYTES: usize = 64 << 10;

/// No unprivileged process can send to our port; one that may and does so must not keep us here.
const MAX_FOREIGN_DATAGRAMS: usize = 64;
