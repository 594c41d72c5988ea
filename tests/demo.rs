//! The main job: the demo, as a person or a program starts it.

mod common;

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::until;
use nix::sys::signal::Signal;
use serde_json::Value;

/// Ended when it is dropped, should a test fail.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn demo(runtime_dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shmirror"));
    command.arg("demo").arg("--runtime-dir").arg(runtime_dir).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn object(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    serde_json::from_str(&text).unwrap_or_else(|wrong| panic!("{wrong} in {text:?}, with {error:?}"))
}

fn assert_empty(dir: &Path) {
    let left: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?} were left");
}

#[test]
fn the_demo_is_equal_after_both_kills_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["--json", "--seconds", "3", "--items", "20000", "--rate", "5000", "--destinations", "3"];
    let output = demo(dir.path(), &arguments).output().unwrap();
    let verdict = object(&output);
    assert!(output.status.success(), "{verdict:#}");
    assert_eq!(verdict["equal"], true, "{verdict:#}");
    assert_eq!(verdict["kernel_equal"], true);
    assert_eq!(verdict["lost"], 0);
    let (items, kernel_items) =
        (verdict["items"].as_u64().unwrap(), verdict["kernel_items"].as_u64().unwrap());
    assert!(kernel_items > 0, "every kernel has a loopback link");
    assert!(
        (20_000 - 1..=20_000).contains(&(items - kernel_items)),
        "{items} items, {kernel_items} of the kernel"
    );
    assert!(verdict["changes"].as_u64().unwrap() > 20_000);
    assert_eq!(verdict["destinations"].as_array().unwrap().len(), 3);
    for replica in verdict["destinations"].as_array().unwrap() {
        assert_eq!((&replica["items"], &replica["equal"]), (&verdict["items"], &Value::Bool(true)));
    }
    let kills = verdict["kills"].as_array().unwrap();
    assert_eq!(
        kills.iter().map(|kill| kill["what"].as_str().unwrap()).collect::<Vec<_>>(),
        ["destination 1", "source"]
    );
    for kill in kills {
        assert!(kill["equal_again_ms"].as_f64().unwrap() > 0.0);
        assert_ne!(kill["pid"], kill["back_pid"]);
    }
    let latency = &verdict["latency_ns"];
    assert!(latency["count"].as_u64().unwrap() > 0);
    let percentiles = ["p50", "p90", "p99", "p99.9", "max"].map(|name| latency[name].as_u64().unwrap());
    assert!(percentiles.is_sorted() && percentiles[0] > 0, "{percentiles:?}");
    assert_empty(dir.path());
}

#[test]
fn the_plain_view_tells_of_the_kills_and_the_verdict() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["--plain", "--seconds", "2", "--items", "1000", "--rate", "1000"];
    let output = demo(dir.path(), &arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text} {}", String::from_utf8_lossy(&output.stderr));
    for part in
        ["destination 1 (pid ", "source (pid ", "killed with SIGKILL", "equal to a fresh dump", "\nEQUAL: "]
    {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert_empty(dir.path());
}

#[test]
fn a_second_demo_of_the_same_name_says_that_it_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let _source = shmirror::Source::options().runtime_dir(dir.path()).create("demo").unwrap();
    let output = demo(dir.path(), &["--seconds", "1", "--items", "10"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8_lossy(&output.stderr);
    let pid = std::process::id().to_string();
    assert!(error.contains("\"demo\"") && error.contains(&pid), "{error}");
}

/// The processes below a process, as the kernel lists them.
fn children_of(pid: u32) -> Vec<u32> {
    let listed = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = listed.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>())
        .collect()
}

fn is_gone(pid: u32) -> bool {
    // A zombie that init has yet to take is as dead.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

fn signal(pid: u32, signal: Signal) {
    let pid = nix::unistd::Pid::from_raw(pid.try_into().unwrap());
    nix::sys::signal::kill(pid, signal).unwrap();
}

fn running_demo(dir: &Path) -> (Running, Vec<u32>) {
    let demo = Running(demo(dir, &["--json", "--seconds", "60", "--items", "1000"]).spawn().unwrap());
    let mut parts = Vec::new();
    until("the demo's parts and the source's socket", || {
        parts = children_of(demo.0.id());
        parts.len() == 3 && dir.join("demo.sock").exists()
    });
    (demo, parts)
}

#[test]
fn the_parts_end_in_good_order_when_the_demo_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let (demo, parts) = running_demo(dir.path());
    drop(demo);
    until("the parts to end", || parts.iter().all(|&pid| is_gone(pid)));
    assert_empty(dir.path());
}

#[test]
fn after_a_kill_of_the_whole_demo_a_new_one_cleans_up() {
    let dir = tempfile::tempdir().unwrap();
    let (running, parts) = running_demo(dir.path());
    // Stopped, the demo cannot end its parts in good order.
    signal(running.0.id(), Signal::SIGSTOP);
    for pid in parts {
        signal(pid, Signal::SIGKILL);
        until("the part to die", || is_gone(pid));
    }
    drop(running);
    assert!(dir.path().join("demo.sock").exists(), "a killed source leaves its socket");
    let output = demo(dir.path(), &["--json", "--seconds", "1", "--items", "1000"]).output().unwrap();
    assert!(output.status.success(), "{:#}", object(&output));
    assert_empty(dir.path());
}

/// Runs `ip` with these commands, one a line.
fn ip(commands: &str) {
    let mut ip = Command::new("ip");
    ip.args(["-force", "-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut ip = ip.spawn().unwrap();
    ip.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
    let output = ip.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn thousands_of_real_routes_come_and_go_while_the_demo_runs() {
    if !nix::unistd::geteuid().is_root() || Command::new("ip").arg("-V").output().is_err() {
        println!("skipped: needs root and iproute2");
        return;
    }
    // What a thread starts is in the thread's namespace.
    let verdict = std::thread::spawn(|| {
        if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            println!("skipped: no network namespace of its own: {error}");
            return None;
        }
        ip("link set lo up\naddr add 192.0.2.1/24 dev lo\n");
        Some(routes_while_the_demo_runs())
    });
    let Some(verdict) = verdict.join().unwrap() else { return };
    assert_eq!(verdict["equal"], true, "{verdict:#}");
    assert!(verdict["kernel_items"].as_u64().unwrap() > 2000, "{verdict:#}");
}

fn routes_while_the_demo_runs() -> Value {
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["--json", "--seconds", "6", "--items", "1000", "--rate", "1000"];
    let mut demo = Running(demo(dir.path(), &arguments).spawn().unwrap());
    let began = Instant::now();
    let mut round = 0;
    // The demo compares after six seconds, when the kernel must have come to rest.
    while round < 4 || began.elapsed() < Duration::from_secs(4) {
        let verb = if round % 2 == 0 { "replace" } else { "del" };
        // Each even round adds 2,000 routes and each odd one deletes half of them, over and over; some stay.
        let count = if round % 2 == 0 { 1000 } else { 500 };
        let network = round / 2 % 200;
        let mut commands = String::new();
        for n in 0..count {
            let (high, low) = (n / 250, n % 250);
            commands += &format!("route {verb} 10.{network}.{high}.{low}/32 dev lo\n");
            commands += &format!("route {verb} fd00:{network:x}::{n:x}/128 dev lo\n");
        }
        ip(&commands);
        round += 1;
    }
    let (mut text, mut error) = (String::new(), String::new());
    demo.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    demo.0.stderr.take().unwrap().read_to_string(&mut error).unwrap();
    demo.0.wait().unwrap();
    assert_empty(dir.path());
    serde_json::from_str(&text).unwrap_or_else(|wrong| panic!("{wrong} in {text:?}, with {error:?}"))
}
