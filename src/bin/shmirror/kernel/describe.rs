//! Objects in one readable line each, much as `ip` prints them.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::Parseable;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use super::KernelTable;
use super::canonical;

/// One line about an object: what it is, and unless `value` is empty (the object has gone), what it is like.
pub(crate) fn describe(table: KernelTable, opcode: &[u8], value: &[u8]) -> String {
    let identity = identity(table, opcode)
        .unwrap_or_else(|| format!("unreadable opcode of {} bytes in {}", opcode.len(), table.name()));
    let details = match table {
        _ if value.is_empty() => Some(String::new()),
        KernelTable::Links => LinkMessage::parse(value).ok().map(|message| link(&message)),
        KernelTable::Addresses => AddressMessage::parse(value).ok().map(|message| address(&message)),
        KernelTable::Neighbours => NeighbourMessage::parse(value).ok().map(|message| neighbour(&message)),
        KernelTable::Routes => canonical::routes(value)
            .map(|bytes| RouteMessage::parse(bytes).ok().map(|message| route(&message)))
            .collect::<Option<Vec<_>>>()
            .map(|routes| routes.join(" |")),
        KernelTable::Rules => RuleMessage::parse(value).ok().map(|message| rule(&message)),
    };
    // Attributes newer than the parser are no reason to show nothing.
    identity + &details.unwrap_or_else(|| format!(" ({} bytes)", value.len()))
}

fn identity(table: KernelTable, opcode: &[u8]) -> Option<String> {
    if table == KernelTable::Links {
        return Some(format!("link {}", u32::from_be_bytes(*opcode.first_chunk()?)));
    }
    let (version, rest) = opcode.split_first()?;
    let address_len_bytes = if *version == 4 { 4 } else { 16 };
    let (number, rest) = rest.split_first_chunk::<4>()?;
    let number = u32::from_be_bytes(*number);
    if table == KernelTable::Rules {
        return Some(format!("rule {number} ipv{version}"));
    }
    let (bytes, rest) = rest.split_at_checked(address_len_bytes)?;
    let ip = ip(bytes)?;
    Some(match table {
        KernelTable::Addresses if *version == 4 => format!("address {ip}/{} dev {number}", rest.first()?),
        KernelTable::Addresses => format!("address {ip} dev {number}"),
        KernelTable::Neighbours => format!("neighbour {ip} dev {number}"),
        _ => {
            let (prefixes, metric) = rest.split_last_chunk::<4>()?;
            let (tos, prefixes) = prefixes.split_last()?;
            let mut line = format!("route {ip}/{}", prefixes.first()?);
            let (source_prefix, source) = prefixes.get(1..)?.split_first()?;
            if !source.is_empty() {
                push(&mut line, format_args!(" from {}/{source_prefix}", self::ip(source)?));
            }
            push(&mut line, format_args!(" table {number}"));
            if *tos != 0 {
                push(&mut line, format_args!(" tos {tos:#04x}"));
            }
            push(&mut line, format_args!(" metric {}", u32::from_be_bytes(*metric)));
            line
        }
    })
}

fn link(message: &LinkMessage) -> String {
    let mut line = String::new();
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => push(&mut line, format_args!(" {name}")),
            LinkAttribute::Address(bytes) if !bytes.is_empty() => {
                push(&mut line, format_args!(" {}", hardware_address(bytes)));
            }
            LinkAttribute::Mtu(mtu) => push(&mut line, format_args!(" mtu {mtu}")),
            LinkAttribute::Link(index) => push(&mut line, format_args!(" on {index}")),
            LinkAttribute::Controller(index) => push(&mut line, format_args!(" master {index}")),
            LinkAttribute::OperState(state) => push(&mut line, format_args!(" state {state}")),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        push(&mut line, format_args!(" kind {kind}"));
                    }
                }
            }
            _ => {}
        }
    }
    line + if message.header.flags.contains(LinkFlags::Up) { " up" } else { " down" }
}

fn address(message: &AddressMessage) -> String {
    let mut line = format!(" prefix length {} scope {}", message.header.prefix_len, message.header.scope);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Label(label) => push(&mut line, format_args!(" label {label}")),
            AddressAttribute::Broadcast(ip) => push(&mut line, format_args!(" brd {ip}")),
            AddressAttribute::Flags(flags) => push(&mut line, format_args!(" flags {:#x}", flags.bits())),
            _ => {}
        }
    }
    line
}

fn neighbour(message: &NeighbourMessage) -> String {
    let mut line = String::new();
    for attribute in &message.attributes {
        if let NeighbourAttribute::LinkLayerAddress(bytes) = attribute {
            push(&mut line, format_args!(" lladdr {}", hardware_address(bytes)));
        }
    }
    line + if message.header.state == NeighbourState::Permanent { " permanent" } else { " resolved" }
}

fn route(message: &RouteMessage) -> String {
    let mut line = match message.header.kind {
        RouteType::Unicast => String::new(),
        kind => format!(" {kind:?}").to_lowercase(),
    };
    next_hop(&mut line, &message.attributes);
    for attribute in &message.attributes {
        if let RouteAttribute::MultiPath(hops) = attribute {
            for hop in hops {
                line.push_str(" nexthop");
                next_hop(&mut line, &hop.attributes);
                let weight = u32::from(hop.hops) + 1;
                push(&mut line, format_args!(" dev {} weight {weight}", hop.interface_index));
            }
        }
    }
    push(&mut line, format_args!(" proto {}", message.header.protocol));
    line
}

fn next_hop(line: &mut String, attributes: &[RouteAttribute]) {
    for attribute in attributes {
        match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => push(line, format_args!(" via {ip}")),
            RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => push(line, format_args!(" via {ip}")),
            RouteAttribute::Via(RouteVia::Inet(ip)) => push(line, format_args!(" via {ip}")),
            RouteAttribute::Via(RouteVia::Inet6(ip)) => push(line, format_args!(" via {ip}")),
            RouteAttribute::Oif(index) => push(line, format_args!(" dev {index}")),
            RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => push(line, format_args!(" src {ip}")),
            RouteAttribute::PrefSource(RouteAddress::Inet6(ip)) => push(line, format_args!(" src {ip}")),
            RouteAttribute::NhId(id) => push(line, format_args!(" nhid {id}")),
            _ => {}
        }
    }
}

fn rule(message: &RuleMessage) -> String {
    let header = &message.header;
    let mut line = String::new();
    let mut table = u32::from(header.table);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Source(ip) => push(&mut line, format_args!(" from {ip}/{}", header.src_len)),
            RuleAttribute::Destination(ip) => push(&mut line, format_args!(" to {ip}/{}", header.dst_len)),
            RuleAttribute::Iifname(name) => push(&mut line, format_args!(" iif {name}")),
            RuleAttribute::Oifname(name) => push(&mut line, format_args!(" oif {name}")),
            RuleAttribute::FwMark(mark) => push(&mut line, format_args!(" fwmark {mark:#x}")),
            RuleAttribute::Goto(priority) => push(&mut line, format_args!(" goto {priority}")),
            RuleAttribute::Table(id) => table = *id,
            _ => {}
        }
    }
    match header.action {
        RuleAction::ToTable => push(&mut line, format_args!(" lookup {table}")),
        action => push(&mut line, format_args!(" {}", format!("{action:?}").to_lowercase())),
    }
    line
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(*bytes.first_chunk::<4>()?).into()),
        16 => Some(Ipv6Addr::from(*bytes.first_chunk::<16>()?).into()),
        _ => None,
    }
}

fn hardware_address(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

fn push(line: &mut String, arguments: std::fmt::Arguments<'_>) {
    line.write_fmt(arguments).expect("writing to a String cannot fail");
}
