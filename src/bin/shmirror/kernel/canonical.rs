//! Netlink messages as items: which object a message is about, and its attributes in one fixed form.
//!
//! An entry is a netlink message payload again: the table's fixed header followed by the attributes, sorted by
//! kind, padding zeroed. So it can be read with any netlink parser, and two messages about an unchanged object
//! give the same bytes, whether they came from a dump or from an event.
//!
//! 1. Attributes are copied by kind and not interpreted, so one that this program has never heard of is kept
//!    (routes, rules) or left out (the rest) without an error.
//! 2. What can change without an event is left out. Links, addresses and neighbours name what is kept, because
//!    each release of the kernel adds counters; routes and rules name what is dropped.
//! 3. An opcode starts with the IP version (links excepted) and goes on in big-endian fields, so that opcodes
//!    sort by family, then table or link, then prefix.
//!
//! Source: `rtnetlink(7)`, and the kernel's `net/core/rtnetlink.c`, `neighbour.c`, `fib_rules.c`,
//! `net/ipv4/devinet.c`, `fib_semantics.c`, `net/ipv6/addrconf.c`, `route.c`.

use netlink_packet_core::{DecodeError, Emitable, NLA_HEADER_SIZE, NlasIterator};
use netlink_packet_route::address::{AddressHeader, AddressHeaderFlags};
use netlink_packet_route::link::{LinkFlags, LinkHeader};
use netlink_packet_route::neighbour::{NeighbourFlags, NeighbourHeader, NeighbourState};
use netlink_packet_route::route::{RouteFlags, RouteHeader, RouteNextHopFlags};
use netlink_packet_route::rule::{RuleFlags, RuleHeader};

use super::KernelTable;

/// What the kernel dumps in one request: a table of one address family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Part {
    pub(super) table: KernelTable,
    /// `AF_UNSPEC` for links, else `AF_INET` or `AF_INET6`.
    pub(super) family: u8,
}

impl Part {
    /// Every part, links first: see `Kernel::resync` for why.
    pub(super) const ALL: [Part; 9] = [
        Part { table: KernelTable::Links, family: UNSPEC },
        Part { table: KernelTable::Addresses, family: INET },
        Part { table: KernelTable::Addresses, family: INET6 },
        Part { table: KernelTable::Neighbours, family: INET },
        Part { table: KernelTable::Neighbours, family: INET6 },
        Part { table: KernelTable::Routes, family: INET },
        Part { table: KernelTable::Routes, family: INET6 },
        Part { table: KernelTable::Rules, family: INET },
        Part { table: KernelTable::Rules, family: INET6 },
    ];

    /// This part's place in [`Part::ALL`].
    pub(super) fn index(self) -> usize {
        Part::ALL.iter().position(|part| *part == self).expect("parts are only taken from ALL")
    }

    /// What every opcode of this part starts with, and no other opcode of its table.
    pub(super) fn opcode_prefix(self) -> Vec<u8> {
        if self.family == UNSPEC { Vec::new() } else { vec![ip_version(self.family)] }
    }
}

/// Whether the kernel says that an object is there or that it has gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verb {
    New,
    Deleted,
}

/// One object, as one message shows it.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Entry {
    pub(super) opcode: Vec<u8>,
    pub(super) bytes: Vec<u8>,
    /// False for an object in a state that is not mirrored, such as an unresolved neighbour: the item is absent.
    pub(super) is_item: bool,
}

/// What a message is about, or `None` if it is about nothing that is mirrored.
pub(super) fn classify(message_type: u16, payload: &[u8]) -> Option<(Part, Verb)> {
    let (table, verb) = match message_type {
        libc::RTM_NEWLINK => (KernelTable::Links, Verb::New),
        libc::RTM_DELLINK => (KernelTable::Links, Verb::Deleted),
        libc::RTM_NEWADDR => (KernelTable::Addresses, Verb::New),
        libc::RTM_DELADDR => (KernelTable::Addresses, Verb::Deleted),
        libc::RTM_NEWNEIGH => (KernelTable::Neighbours, Verb::New),
        libc::RTM_DELNEIGH => (KernelTable::Neighbours, Verb::Deleted),
        libc::RTM_NEWROUTE => (KernelTable::Routes, Verb::New),
        libc::RTM_DELROUTE => (KernelTable::Routes, Verb::Deleted),
        libc::RTM_NEWRULE => (KernelTable::Rules, Verb::New),
        libc::RTM_DELRULE => (KernelTable::Rules, Verb::Deleted),
        _ => return None,
    };
    // The family is the first byte of every header. Bridges announce their ports as links and their forwarding
    // tables as neighbours of AF_BRIDGE; MPLS and multicast routing have families of their own.
    let family = *payload.first()?;
    let part = Part { table, family };
    Part::ALL.contains(&part).then_some((part, verb))
}

/// Reads a message of `part`; `None` if it shows something that only looks like an object of that table.
///
/// # Errors
///
/// A header, an attribute or an address that is cut short, or an attribute missing that the opcode needs.
pub(super) fn read(part: Part, payload: &[u8]) -> Result<Option<Entry>, DecodeError> {
    match part.table {
        KernelTable::Links => read_link(payload),
        KernelTable::Addresses => read_address(payload).map(Some),
        KernelTable::Neighbours => read_neighbour(payload),
        KernelTable::Routes => read_route(payload),
        KernelTable::Rules => read_rule(payload).map(Some),
    }
}

/// Adds one route to a value, which is the list of the routes that share a key, each behind its length.
///
/// A route that the list already has is not added again.
pub(super) fn append_route(value: &mut Vec<u8>, route: &[u8]) {
    if routes(value).any(|known| known == route) {
        return;
    }
    let len_bytes = u32::try_from(route.len()).expect("a netlink message is shorter than 4 GiB");
    value.extend_from_slice(&len_bytes.to_be_bytes());
    value.extend_from_slice(route);
}

/// The routes of a value that [`append_route`] built, in the kernel's order.
pub(super) fn routes(mut value: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (len_bytes, rest) = value.split_first_chunk::<4>()?;
        let (route, rest) = rest.split_at_checked(u32::from_be_bytes(*len_bytes) as usize)?;
        value = rest;
        Some(route)
    })
}

fn read_link(payload: &[u8]) -> Result<Option<Entry>, DecodeError> {
    let mut header = LinkHeader::parse(payload)?;
    header.change_mask = LinkFlags::empty();
    let attributes = Attributes::parse(payload, LINK_HEADER)?;
    // Wireless drivers send their own events as links that have nothing but an index.
    if attributes.find(libc::IFLA_IFNAME).is_none() {
        return Ok(None);
    }
    let elsewhere = attributes.find(libc::IFLA_LINK_NETNSID).is_some();
    let mut bytes = emitted(&header);
    for (kind, value) in attributes.iter() {
        match kind {
            libc::IFLA_ADDRESS
            | libc::IFLA_BROADCAST
            | libc::IFLA_IFNAME
            | libc::IFLA_MTU
            | libc::IFLA_MASTER
            | libc::IFLA_TXQLEN
            | libc::IFLA_OPERSTATE => emit(&mut bytes, kind, value)?,
            // A peer in another namespace moves and is renumbered without a word to this one.
            libc::IFLA_LINK if !elsewhere => emit(&mut bytes, kind, value)?,
            libc::IFLA_LINKINFO => emit_nested(&mut bytes, kind, value, |kind| {
                matches!(kind, libc::IFLA_INFO_KIND | libc::IFLA_INFO_SLAVE_KIND)
            })?,
            _ => {}
        }
    }
    Ok(Some(Entry { opcode: header.index.to_be_bytes().to_vec(), bytes, is_item: true }))
}

fn read_address(payload: &[u8]) -> Result<Entry, DecodeError> {
    let mut header = AddressHeader::parse(payload)?;
    // The attribute IFA_FLAGS has all of them, the header only the first eight.
    header.flags = AddressHeaderFlags::empty();
    let attributes = Attributes::parse(payload, ADDRESS_HEADER)?;
    let family = u8::from(header.family);
    let address = attributes.ip(libc::IFA_ADDRESS, family)?;
    // IPv6 has IFA_LOCAL only where there is a peer, which then is IFA_ADDRESS.
    let local = attributes.ip(libc::IFA_LOCAL, family)?.or(address).ok_or("an address without an address")?;

    let mut opcode = vec![ip_version(family)];
    opcode.extend_from_slice(&header.index.to_be_bytes());
    opcode.extend_from_slice(local);
    if family == INET {
        // The same local address may be there once per prefix length and peer; in IPv6 once per link.
        opcode.push(header.prefix_len);
        opcode.extend_from_slice(address.unwrap_or(local));
    }

    let mut bytes = emitted(&header);
    for (kind, value) in attributes.iter() {
        if matches!(
            kind,
            libc::IFA_ADDRESS
                | libc::IFA_LOCAL
                | libc::IFA_LABEL
                | libc::IFA_BROADCAST
                | libc::IFA_FLAGS
                | IFA_RT_PRIORITY
                | IFA_PROTO
        ) {
            emit(&mut bytes, kind, value)?;
        }
    }
    Ok(Entry { opcode, bytes, is_item: true })
}

fn read_neighbour(payload: &[u8]) -> Result<Option<Entry>, DecodeError> {
    let mut header = NeighbourHeader::parse(payload)?;
    if header.flags.contains(NeighbourFlags::Proxy) {
        return Ok(None);
    }
    let is_item = match header.state {
        NeighbourState::Permanent => true,
        // Between these four the kernel moves without telling; that the address is resolved is common to them.
        NeighbourState::Reachable | NeighbourState::Stale | NeighbourState::Delay | NeighbourState::Probe => {
            header.state = NeighbourState::Reachable;
            true
        }
        _ => false,
    };
    header.flags &= NeighbourFlags::Router | NeighbourFlags::ExtLearned;
    let attributes = Attributes::parse(payload, NEIGHBOUR_HEADER)?;
    let family = u8::from(header.family);
    let destination = attributes.ip(libc::NDA_DST, family)?.ok_or("a neighbour without an address")?;

    let mut opcode = vec![ip_version(family)];
    opcode.extend_from_slice(&header.ifindex.to_be_bytes());
    opcode.extend_from_slice(destination);

    let mut bytes = emitted(&header);
    for (kind, value) in attributes.iter() {
        if matches!(kind, libc::NDA_DST | libc::NDA_LLADDR) {
            emit(&mut bytes, kind, value)?;
        }
    }
    Ok(Some(Entry { opcode, bytes, is_item }))
}

fn read_route(payload: &[u8]) -> Result<Option<Entry>, DecodeError> {
    let mut header = RouteHeader::parse(payload)?;
    if header.flags.contains(RouteFlags::Cloned) {
        return Ok(None);
    }
    header.flags &= RouteFlags::Pervasive | RouteFlags::Onlink;
    let attributes = Attributes::parse(payload, ROUTE_HEADER)?;
    let family = u8::from(header.address_family);
    let table = attributes.u32(libc::RTA_TABLE)?.unwrap_or(u32::from(header.table));
    let unspecified = &[0; 16][..address_len_bytes(family)];
    let destination = attributes.ip(libc::RTA_DST, family)?.unwrap_or(unspecified);

    let mut opcode = vec![ip_version(family)];
    opcode.extend_from_slice(&table.to_be_bytes());
    opcode.extend_from_slice(destination);
    opcode.push(header.destination_prefix_length);
    opcode.push(header.source_prefix_length);
    if header.source_prefix_length > 0 {
        opcode.extend_from_slice(attributes.ip(libc::RTA_SRC, family)?.unwrap_or(unspecified));
    }
    opcode.push(header.tos);
    opcode.extend_from_slice(&attributes.u32(libc::RTA_PRIORITY)?.unwrap_or(0).to_be_bytes());

    let mut bytes = emitted(&header);
    for (kind, value) in attributes.iter() {
        match kind {
            libc::RTA_CACHEINFO | libc::RTA_MFC_STATS | RTA_EXPIRES | RTA_PAD => {}
            libc::RTA_METRICS => emit_nested(&mut bytes, kind, value, |_| true)?,
            libc::RTA_MULTIPATH => emit(&mut bytes, kind, &sorted_next_hops(value)?)?,
            _ => emit(&mut bytes, kind, value)?,
        }
    }
    Ok(Some(Entry { opcode, bytes, is_item: true }))
}

/// The next hops of a route without their state, in the order of their bytes.
///
/// An IPv6 event lists them from the one that changed, a dump from the first; the order has no meaning.
fn sorted_next_hops(mut value: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let mut next_hops = Vec::new();
    while let Some(header) = value.first_chunk::<NEXT_HOP_HEADER>() {
        let len_bytes = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let next_hop = value.get(..len_bytes).ok_or("a next hop that is cut short")?;
        let attributes = Attributes::parse(next_hop, NEXT_HOP_HEADER)?;
        let flags = RouteNextHopFlags::from_bits_retain(header[2])
            & (RouteNextHopFlags::Pervasive | RouteNextHopFlags::Onlink);
        let mut bytes = vec![0, 0, flags.bits(), header[3]];
        bytes.extend_from_slice(&header[4..]);
        for (kind, value) in attributes.iter() {
            emit(&mut bytes, kind, value)?;
        }
        let emitted_len_bytes = u16::try_from(bytes.len()).map_err(|_| "an overlong next hop")?;
        bytes[..2].copy_from_slice(&emitted_len_bytes.to_ne_bytes());
        next_hops.push(bytes);
        value = value.get(len_bytes.next_multiple_of(4)..).unwrap_or_default();
    }
    next_hops.sort_unstable();
    Ok(next_hops.concat())
}

fn read_rule(payload: &[u8]) -> Result<Entry, DecodeError> {
    let mut header = RuleHeader::parse(payload)?;
    // Whether the rule's links and the target of its goto exist is not the rule's own state.
    header.flags &= RuleFlags::Permanent | RuleFlags::Invert;
    let attributes = Attributes::parse(payload, RULE_HEADER)?;
    let mut bytes = emitted(&header);
    for (kind, value) in attributes.iter() {
        if kind != FRA_PAD {
            emit(&mut bytes, kind, value)?;
        }
    }
    // A rule is never changed, only added and deleted: all that it says is its identity.
    let mut opcode = vec![ip_version(u8::from(header.family))];
    opcode.extend_from_slice(&attributes.u32(FRA_PRIORITY)?.unwrap_or(0).to_be_bytes());
    opcode.extend_from_slice(&bytes);
    if opcode.len() > MAX_OPCODE_LEN_BYTES {
        let digest = fnv1a_128(&opcode).to_be_bytes();
        opcode.truncate(MAX_OPCODE_LEN_BYTES - digest.len());
        opcode.extend_from_slice(&digest);
    }
    Ok(Entry { opcode, bytes, is_item: true })
}

/// The attributes of one message, in the order of their kinds.
struct Attributes<'a>(Vec<(u16, &'a [u8])>);

impl<'a> Attributes<'a> {
    /// Reads the attributes behind a header of `header_len_bytes`.
    fn parse(message: &'a [u8], header_len_bytes: usize) -> Result<Self, DecodeError> {
        let bytes = message.get(header_len_bytes..).ok_or("a message shorter than its header")?;
        let mut attributes = Vec::with_capacity(8);
        for attribute in NlasIterator::new(bytes) {
            let attribute = attribute?;
            let (kind, end) = (attribute.kind(), usize::from(attribute.length()));
            attributes.push((kind, &attribute.into_inner()[NLA_HEADER_SIZE..end]));
        }
        // Stable: attributes of one kind keep their order.
        attributes.sort_by_key(|(kind, _)| *kind);
        Ok(Attributes(attributes))
    }

    fn iter(&self) -> impl Iterator<Item = (u16, &'a [u8])> {
        self.0.iter().copied()
    }

    fn find(&self, kind: u16) -> Option<&'a [u8]> {
        self.iter().find_map(|(found, value)| (found == kind).then_some(value))
    }

    fn u32(&self, kind: u16) -> Result<Option<u32>, DecodeError> {
        let Some(value) = self.find(kind) else { return Ok(None) };
        let bytes = value.first_chunk().ok_or_else(|| DecodeError::invalid_number(4, value.len()))?;
        Ok(Some(u32::from_ne_bytes(*bytes)))
    }

    /// An address of `family`, checked for its length.
    fn ip(&self, kind: u16, family: u8) -> Result<Option<&'a [u8]>, DecodeError> {
        match self.find(kind) {
            Some(value) if value.len() != address_len_bytes(family) => {
                Err(DecodeError::invalid_ip_address(value.len()))
            }
            value => Ok(value),
        }
    }
}

fn emitted(header: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; header.buffer_len()];
    header.emit(&mut bytes);
    bytes
}

fn emit(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) -> Result<(), DecodeError> {
    let len_bytes = u16::try_from(NLA_HEADER_SIZE + value.len()).map_err(|_| "an overlong attribute")?;
    bytes.extend_from_slice(&len_bytes.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    Ok(())
}

fn emit_nested(
    bytes: &mut Vec<u8>,
    kind: u16,
    value: &[u8],
    keep: impl Fn(u16) -> bool,
) -> Result<(), DecodeError> {
    let mut nested = Vec::with_capacity(value.len());
    for (kind, value) in Attributes::parse(value, 0)?.iter().filter(|(kind, _)| keep(*kind)) {
        emit(&mut nested, kind, value)?;
    }
    emit(bytes, kind, &nested)
}

fn ip_version(family: u8) -> u8 {
    if family == INET { 4 } else { 6 }
}

fn address_len_bytes(family: u8) -> usize {
    if family == INET { 4 } else { 16 }
}

/// FNV-1a with 128 bits: <https://datatracker.ietf.org/doc/html/draft-eastlake-fnv>.
fn fnv1a_128(bytes: &[u8]) -> u128 {
    const OFFSET_BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    bytes.iter().fold(OFFSET_BASIS, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(PRIME))
}

/// No opcode is longer.
pub(super) const MAX_OPCODE_LEN_BYTES: usize = 255;

const UNSPEC: u8 = libc::AF_UNSPEC as u8;
pub(super) const INET: u8 = libc::AF_INET as u8;
pub(super) const INET6: u8 = libc::AF_INET6 as u8;

const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
const NEIGHBOUR_HEADER: usize = 12;
const ROUTE_HEADER: usize = 12;
const RULE_HEADER: usize = 12;
const NEXT_HOP_HEADER: usize = 8;

// Of linux/if_addr.h, rtnetlink.h and fib_rules.h, where libc lacks them.
const IFA_RT_PRIORITY: u16 = 9;
const IFA_PROTO: u16 = 11;
const RTA_EXPIRES: u16 = 23;
const RTA_PAD: u16 = 24;
const FRA_PRIORITY: u16 = 6;
const FRA_PAD: u16 = 18;

#[cfg(test)]
#[path = "canonical_tests.rs"]
mod tests;
