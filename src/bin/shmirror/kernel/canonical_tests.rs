//! Messages made by hand, in the forms in which dumps and events differ.

use std::net::{Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{DefaultNla, Emitable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, CacheInfo};
use netlink_packet_route::link::{LinkAttribute, LinkMessage, State};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteNextHop};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};

use super::super::describe;
use super::*;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 3);

fn part(table: KernelTable, family: u8) -> Part {
    *Part::ALL.iter().find(|part| part.table == table && part.family == family).expect("a part")
}

fn entry(part: Part, message: &impl Emitable) -> Entry {
    read(part, &emitted(message)).expect("well formed").expect("an object")
}

fn route(attributes: Vec<RouteAttribute>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = 24;
    message.attributes = attributes;
    message
}

fn route_entry(message: &RouteMessage) -> Entry {
    entry(part(KernelTable::Routes, INET), message)
}

fn default_attributes() -> Vec<RouteAttribute> {
    vec![
        RouteAttribute::Table(254),
        RouteAttribute::Destination(RouteAddress::Inet(ADDRESS)),
        RouteAttribute::Priority(100),
        RouteAttribute::Metrics(vec![RouteMetric::Mtu(1400), RouteMetric::Hoplimit(3)]),
        RouteAttribute::Oif(2),
    ]
}

#[test]
fn a_route_is_the_same_whatever_the_order_of_its_attributes() {
    let plain = route_entry(&route(default_attributes()));
    let mut reversed = default_attributes();
    reversed.reverse();
    reversed[1] = RouteAttribute::Metrics(vec![RouteMetric::Hoplimit(3), RouteMetric::Mtu(1400)]);
    assert_eq!(route_entry(&route(reversed)), plain);
}

#[test]
fn a_route_is_the_same_however_old_it_is_and_whatever_state_its_links_are_in() {
    let plain = route_entry(&route(default_attributes()));
    let mut message = route(default_attributes());
    message.attributes.push(RouteAttribute::Other(DefaultNla::new(libc::RTA_CACHEINFO, vec![7; 32])));
    message.header.flags = RouteFlags::Dead | RouteFlags::Linkdown | RouteFlags::RtOffload;
    assert_eq!(route_entry(&message), plain);
    message.header.flags |= RouteFlags::Onlink;
    assert_ne!(route_entry(&message), plain);
}

#[test]
fn what_tells_routes_apart_is_in_the_opcode_and_nothing_else() {
    let plain = route_entry(&route(default_attributes()));
    let with = |change: &dyn Fn(&mut RouteMessage)| {
        let mut message = route(default_attributes());
        change(&mut message);
        route_entry(&message)
    };
    for (other, same_opcode) in [
        (with(&|message| message.attributes[0] = RouteAttribute::Table(70_000)), false),
        (with(&|message| message.attributes[2] = RouteAttribute::Priority(101)), false),
        (with(&|message| message.header.tos = 16), false),
        (with(&|message| message.header.destination_prefix_length = 32), false),
        (with(&|message| message.attributes[4] = RouteAttribute::Oif(3)), true),
        (with(&|message| message.header.kind = netlink_packet_route::route::RouteType::BlackHole), true),
    ] {
        assert_eq!(other.opcode == plain.opcode, same_opcode);
        assert_ne!(other.bytes, plain.bytes);
    }
    assert!(with(&|message| message.attributes[0] = RouteAttribute::Table(70_000)).opcode > plain.opcode);
}

#[test]
fn a_missing_destination_is_the_default_route_and_a_missing_metric_is_zero() {
    let bare = route_entry(&route(vec![]));
    let spelt_out = route_entry(&route(vec![
        RouteAttribute::Destination(RouteAddress::Inet(Ipv4Addr::UNSPECIFIED)),
        RouteAttribute::Priority(0),
        RouteAttribute::Table(0),
    ]));
    assert_eq!(bare.opcode, spelt_out.opcode);
}

#[test]
fn next_hops_have_no_order_and_no_state() {
    let hop = |link| {
        let mut hop = RouteNextHop::default();
        hop.interface_index = link;
        hop.attributes = vec![RouteAttribute::Gateway(RouteAddress::Inet(ADDRESS))];
        hop
    };
    let plain = route_entry(&route(vec![RouteAttribute::MultiPath(vec![hop(1), hop(2), hop(3)])]));
    let mut dead = hop(2);
    dead.flags = RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown;
    let turned = route_entry(&route(vec![RouteAttribute::MultiPath(vec![dead, hop(3), hop(1)])]));
    assert_eq!(turned, plain);
    let mut heavier = hop(3);
    heavier.hops = 1;
    assert_ne!(route_entry(&route(vec![RouteAttribute::MultiPath(vec![hop(1), hop(2), heavier])])), plain);
}

#[test]
fn cached_routes_are_no_objects() {
    let mut message = route(default_attributes());
    message.header.flags = RouteFlags::Cloned;
    assert_eq!(read(part(KernelTable::Routes, INET), &emitted(&message)).expect("well formed"), None);
}

#[test]
fn an_attribute_that_nobody_knows_belongs_to_a_route() {
    let mut message = route(default_attributes());
    message.attributes.push(RouteAttribute::Other(DefaultNla::new(999, vec![1, 2, 3])));
    assert_ne!(route_entry(&message), route_entry(&route(default_attributes())));
}

#[test]
fn a_link_has_no_counters_and_no_event_reasons() {
    let links = part(KernelTable::Links, UNSPEC);
    let message = |extra: Vec<LinkAttribute>, change_mask| {
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.header.change_mask = change_mask;
        message.attributes = vec![LinkAttribute::IfName("v0".into()), LinkAttribute::OperState(State::Up)];
        message.attributes.extend(extra);
        message
    };
    let plain = entry(links, &message(vec![], LinkFlags::empty()));
    assert_eq!(plain.opcode, [0, 0, 0, 7]);
    let event = message(
        vec![
            LinkAttribute::CarrierChanges(9),
            LinkAttribute::Promiscuity(1),
            LinkAttribute::Other(DefaultNla::new(999, vec![1])),
        ],
        LinkFlags::all(),
    );
    assert_eq!(entry(links, &event), plain);
    assert_ne!(entry(links, &message(vec![LinkAttribute::Mtu(1400)], LinkFlags::empty())), plain);
    // A parent counts only in the namespace whose index it is.
    let near = message(vec![LinkAttribute::Link(3)], LinkFlags::empty());
    let far = message(vec![LinkAttribute::Link(3), LinkAttribute::LinkNetNsId(0)], LinkFlags::empty());
    assert_ne!(entry(links, &near), plain);
    assert_eq!(entry(links, &far), plain);
}

#[test]
fn a_link_without_a_name_is_a_wireless_event_and_no_link() {
    let mut message = LinkMessage::default();
    message.header.index = 7;
    assert_eq!(read(part(KernelTable::Links, UNSPEC), &emitted(&message)).expect("well formed"), None);
}

#[test]
fn an_address_is_the_same_however_long_it_lives() {
    let message = |info: Option<CacheInfo>, prefix_len| {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = prefix_len;
        message.header.index = 2;
        message.attributes = vec![AddressAttribute::Local(ADDRESS.into())];
        message.attributes.extend(info.map(AddressAttribute::CacheInfo));
        message
    };
    let addresses = part(KernelTable::Addresses, INET);
    let plain = entry(addresses, &message(None, 24));
    assert_eq!(plain.opcode, [4, 0, 0, 0, 2, 10, 1, 2, 3, 24, 10, 1, 2, 3]);
    assert_eq!(entry(addresses, &message(Some(CacheInfo::default()), 24)), plain);
    assert_ne!(entry(addresses, &message(None, 25)).opcode, plain.opcode);
}

#[test]
fn an_ipv6_address_with_a_peer_is_known_by_its_own_end() {
    let own = Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 1);
    let peer = Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 2);
    let message = |attributes| {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet6;
        message.attributes = attributes;
        message
    };
    let addresses = part(KernelTable::Addresses, INET6);
    let alone = entry(addresses, &message(vec![AddressAttribute::Address(own.into())]));
    let paired = entry(
        addresses,
        &message(vec![AddressAttribute::Address(peer.into()), AddressAttribute::Local(own.into())]),
    );
    assert_eq!(alone.opcode, paired.opcode);
    assert_ne!(alone.bytes, paired.bytes);
}

#[test]
fn neighbours_between_the_resolved_states_do_not_change() {
    let neighbours = part(KernelTable::Neighbours, INET);
    let state = |state| {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = 2;
        message.header.state = state;
        message.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ADDRESS)),
            NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 1]),
            NeighbourAttribute::Probes(4),
        ];
        entry(neighbours, &message)
    };
    let resolved = state(NeighbourState::Reachable);
    assert!(resolved.is_item);
    for same in [NeighbourState::Stale, NeighbourState::Delay, NeighbourState::Probe] {
        assert_eq!(state(same), resolved);
    }
    assert_ne!(state(NeighbourState::Permanent).bytes, resolved.bytes);
    for absent in
        [NeighbourState::Incomplete, NeighbourState::Failed, NeighbourState::Noarp, NeighbourState::None]
    {
        assert!(!state(absent).is_item);
        assert_eq!(state(absent).opcode, resolved.opcode);
    }
}

#[test]
fn proxies_are_no_objects() {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.flags = NeighbourFlags::Proxy;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![NeighbourAttribute::Destination(NeighbourAddress::Inet(ADDRESS))];
    assert_eq!(read(part(KernelTable::Neighbours, INET), &emitted(&message)).expect("well formed"), None);
}

#[test]
fn rules_of_one_priority_are_told_apart_and_long_ones_still_fit() {
    let rules = part(KernelTable::Rules, INET);
    let rule = |attributes: Vec<RuleAttribute>| {
        let mut message = RuleMessage::default();
        message.header.family = AddressFamily::Inet;
        message.attributes = attributes;
        message.attributes.push(RuleAttribute::Priority(5));
        message
    };
    let from = entry(rules, &rule(vec![RuleAttribute::FwMark(1)]));
    let other = entry(rules, &rule(vec![RuleAttribute::FwMark(2)]));
    assert_eq!(from.opcode[..5], [4, 0, 0, 0, 5]);
    assert_ne!(from.opcode, other.opcode);

    let long = |last| {
        let filler = (0..40).map(|kind| RuleAttribute::Other(DefaultNla::new(900 + kind, vec![last])));
        entry(rules, &rule(filler.collect())).opcode
    };
    assert_eq!(long(1).len(), MAX_OPCODE_LEN_BYTES);
    assert_ne!(long(1), long(2));

    // A goto whose target comes and goes is not itself another rule.
    let mut unresolved = rule(vec![RuleAttribute::FwMark(1)]);
    unresolved.header.flags = RuleFlags::Unresolved | RuleFlags::IifDetached;
    assert_eq!(entry(rules, &unresolved), from);
}

#[test]
fn only_the_families_that_are_mirrored_are_ours() {
    assert_eq!(classify(libc::RTM_NEWLINK, &[libc::AF_BRIDGE as u8]), None);
    assert_eq!(classify(libc::RTM_NEWNEIGH, &[libc::AF_BRIDGE as u8]), None);
    assert_eq!(classify(libc::RTM_NEWROUTE, &[libc::AF_MPLS as u8]), None);
    assert_eq!(classify(libc::RTM_NEWROUTE, &[]), None);
    assert_eq!(
        classify(libc::RTM_DELROUTE, &[INET6]),
        Some((part(KernelTable::Routes, INET6), Verb::Deleted))
    );
}

#[test]
fn a_message_cut_short_or_garbled_is_an_error_and_never_a_panic() {
    let hop = RouteNextHop::default();
    let mut attributes = default_attributes();
    attributes.push(RouteAttribute::MultiPath(vec![hop.clone(), hop]));
    let whole = emitted(&route(attributes));
    let mut random = 0x5eed_u64;
    for part in Part::ALL {
        for len_bytes in 0..whole.len() {
            let _ = read(part, &whole[..len_bytes]);
        }
        for _ in 0..5_000 {
            let mut garbled = whole.clone();
            for _ in 0..3 {
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let at = (random >> 33) as usize % garbled.len();
                garbled[at] = (random >> 56) as u8;
            }
            if let Ok(Some(entry)) = read(part, &garbled) {
                assert!(entry.opcode.len() <= MAX_OPCODE_LEN_BYTES);
                let mut value = Vec::new();
                append_route(&mut value, &entry.bytes);
                for value in [&value, &entry.bytes, &garbled] {
                    assert!(!describe(part.table, &entry.opcode, value).is_empty());
                }
            }
        }
    }
    assert!(read(part(KernelTable::Routes, INET), &whole[..11]).is_err());
}
