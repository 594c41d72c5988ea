//! Sessions with strings, lists and options in them: `cargo run --example session_context --features postcard`.
//!
//! A session manager hands PDU session contexts over to whoever may have to take over from it. They are serde types, encoded
//! by postcard.

use std::error::Error;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shmirror::{Replica, Source};

const NAME: &str = "session-context-example";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct SessionContext {
    supi: String,
    dnn: String,
    address: UeAddress,
    ambr_kbps: (u64, u64),
    flows: Vec<QosFlow>,
    /// The handover target, while there is a handover.
    target: Option<Tunnel>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum UeAddress {
    V4(Ipv4Addr),
    V6(Ipv6Addr),
    Both(Ipv4Addr, Ipv6Addr),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct QosFlow {
    qfi: u8,
    five_qi: u8,
    filters: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Tunnel {
    teid: u32,
    peer: Ipv4Addr,
}

fn main() -> Result<(), Box<dyn Error>> {
    let source = Source::create(NAME)?;
    let sessions = source.table("pdu-sessions")?;
    let mut context = SessionContext {
        supi: "imsi-001010000000001".into(),
        dnn: "internet".into(),
        address: UeAddress::Both([10, 45, 0, 2].into(), "2001:db8:45::2".parse()?),
        ambr_kbps: (50_000, 200_000),
        flows: vec![QosFlow {
            qfi: 1,
            five_qi: 9,
            filters: vec!["permit out ip from any to assigned".into()],
        }],
        target: None,
    };
    let key = (context.supi.clone(), 5u8); // the subscriber and the PDU session's id
    sessions.encode(&key, &context)?;
    sessions.ready();

    let mut standby = Replica::connect(NAME)?;
    standby.wait_synced(Duration::from_secs(5))?;
    assert_eq!(standby.table("pdu-sessions").decode(&key)?, Some(context.clone()));

    // A dedicated flow, and a handover that begins: the value gets longer.
    context.flows.push(QosFlow { qfi: 2, five_qi: 1, filters: vec![] });
    context.target = Some(Tunnel { teid: 0x1000_0001, peer: [192, 0, 2, 7].into() });
    sessions.encode(&key, &context)?;
    loop {
        let held: Option<SessionContext> = standby.table("pdu-sessions").decode(&key)?;
        if held.as_ref() == Some(&context) {
            println!("the standby has {held:#?}");
            return Ok(());
        }
        if standby.wait(Duration::from_secs(5))? == 0 {
            return Err("the change has not come within 5 s".into());
        }
    }
}
