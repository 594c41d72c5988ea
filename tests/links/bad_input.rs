//! Bad input gets an error that says what was found and what was expected, and nothing is lost by it.

#![allow(unsafe_code, reason = "fork, in the tests of forked children")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::common::{PATIENCE, contents, entries, replica, source_options, until};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, alarm, fork};
use shmirror::{
    Destination, Flushed, Opcode, Replica, ResendPolicy, Retention, Sent, SetError, Source, Subscription,
    SyncError, ToOpcode,
};

const OPCODE_TOO_LONG: &str = "opcode of 256 bytes is longer than the largest, 255 bytes";
const FORKED: &str = "this handle belongs to the parent process; a forked child must make its own";

/// In the default place, where others might have put a socket under a source's name.
#[test]
fn directory_that_others_can_write_is_refused_though_a_source_answers_there() {
    const NAME: &str = "directory_that_others_can_write_is_refused_though_a_source_answers_there";
    let Some(parent) = std::env::var_os("SHMIRROR_TEST_DIR") else {
        let parent = tempfile::tempdir().unwrap();
        let outcome = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture"])
            .env_remove("SHMIRROR_RUNTIME_DIR")
            .env("XDG_RUNTIME_DIR", parent.path())
            .env("SHMIRROR_TEST_DIR", parent.path())
            .output()
            .unwrap();
        assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
        return;
    };
    let dir = Path::new(&parent).join("shmirror");
    let source = Source::create("s").unwrap();
    assert!(source.socket_path().starts_with(&dir));
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    let mut destination = Destination::connect("s").unwrap();
    let error = destination.try_recv(|_| Ok(())).unwrap_err().to_string();
    let expected = "has mode 777, expected one that only its owner can write to; chmod go-w it";
    assert_eq!(error, format!("runtime directory {} {expected}", dir.display()));
}

#[test]
fn opcode_of_256_bytes_is_refused_and_nothing_changes() {
    let dir = tempfile::tempdir().unwrap();
    let source = source_options(dir.path()).create("s").unwrap();
    let table = source.table("t").unwrap();
    let bad = [1u8; 256];
    let errors = [
        table.set(bad, b"x").unwrap_err().to_string(),
        table.remove(bad).unwrap_err().to_string(),
        table.edit(bad).map(drop).unwrap_err().to_string(),
        table.set((1u8, "x".repeat(255)), b"x").unwrap_err().to_string(),
        Opcode::from_bytes(&bad).unwrap_err().to_string(),
        bad.to_opcode().unwrap_err().to_string(),
    ];
    assert_eq!(errors, [OPCODE_TOO_LONG; 6]);
    assert_eq!(table.get(bad), None);
    assert_eq!((table.len(), source.stats().changes), (0, 0));

    table.set([1u8; 255], b"longest").unwrap();
    table.ready();
    let mut replica = replica(dir.path(), "s");
    replica.wait_synced(PATIENCE).unwrap();
    assert_eq!(replica.table("t").get([1u8; 255]), Some(&b"longest"[..]));
    assert_eq!(replica.table("t").get(bad), None);
}

#[test]
fn value_that_no_record_holds_is_refused_and_the_old_one_stays() {
    let dir = tempfile::tempdir().unwrap();
    let source = source_options(dir.path()).ring_bytes(4096).create("s").unwrap();
    let table = source.table("t").unwrap();
    table.set("key", b"old").unwrap();
    let expected = "value of 990 bytes is longer than this ring's largest for its opcode, 989 bytes \
                    (ring_bytes = 4096); use a larger ring_bytes";
    assert_eq!(table.set("key", [0; 990]).unwrap_err().to_string(), expected);
    let mut guard = table.edit("key").unwrap();
    guard.resize(990, 0);
    assert_eq!(guard.publish().unwrap_err().to_string(), expected);
    table.edit("key").unwrap().resize(990, 0);
    let told = source.stats().last_error.expect("the guard that was dropped has nobody else to tell");
    assert_eq!(told, format!("an edited item was not published: {expected}"));
    let longest_opcode = table.set([0; 255], [0; 738]).unwrap_err().to_string();
    assert!(longest_opcode.starts_with("value of 738 bytes is longer"), "{longest_opcode}");
    assert!(longest_opcode.contains("for its opcode, 737 bytes"), "{longest_opcode}");

    assert_eq!(table.get("key").as_deref(), Some(&b"old"[..]));
    assert_eq!(table.set("key", [0; 989]).unwrap(), Sent::Now);
    assert_eq!(table.set([0; 255], [0; 737]).unwrap(), Sent::Now);
    assert_eq!(source.stats().changes, 3);
}

#[test]
fn ring_that_is_no_power_of_two_from_4_kib_to_1_gib_is_refused_before_the_name_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    for found in [0, 1, 2048, 4095, 5000, (1 << 20) + 1, 1 << 31, u64::MAX] {
        let error = source_options(dir.path()).ring_bytes(found).create("s").unwrap_err().to_string();
        let expected = format!("ring of {found} bytes, expected a power of two from 4096 to 1073741824");
        assert_eq!(error, expected);
    }
    assert!(entries(dir.path()).is_empty());
    drop(source_options(dir.path()).ring_bytes(4096).create("s").unwrap());
}

#[test]
fn policy_that_sends_nothing_is_refused() {
    let policies = [
        ResendPolicy { max_entries_per_message: 0, ..ResendPolicy::default() },
        ResendPolicy { max_messages_per_tick: 0, ..ResendPolicy::default() },
    ];
    for policy in policies {
        let dir = tempfile::tempdir().unwrap();
        let error = source_options(dir.path()).resend(policy).create("s").unwrap_err().to_string();
        assert_eq!(
            error,
            "a resend policy with 0 entries per message or 0 messages per tick, expected at least 1 of each"
        );
    }
}

#[test]
fn time_that_no_clock_reaches_means_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let never = ResendPolicy { interval: Duration::MAX, ..ResendPolicy::default() };
    let source = source_options(dir.path()).resend(never).create("s").unwrap();
    let table = source.table("t").unwrap();
    table.set(1u8, b"x").unwrap();
    table.ready();
    let mut replica = replica(dir.path(), "s");
    replica.wait_synced(Duration::MAX).unwrap();
    std::thread::scope(|scope| {
        let flush = scope.spawn(|| source.flush(Duration::MAX).unwrap());
        table.set(1u8, b"y").unwrap();
        replica.wait(Duration::MAX).unwrap();
        assert_eq!(flush.join().unwrap(), Flushed::Acked(1));
    });
    let mut destination = Destination::options().runtime_dir(dir.path()).connect("s").unwrap();
    assert!(destination.recv_timeout(Duration::MAX, |_| Ok(())).unwrap() > 0);
}

#[test]
fn name_that_cannot_be_a_file_is_refused_by_all_alike() {
    let dir = tempfile::tempdir().unwrap();
    let longest = "n".repeat(65);
    let cases = [
        ("", "the source's name is empty, expected 1 to 64 bytes"),
        (".", "the source's name is \".\", expected one that does not mean a directory"),
        ("..", "the source's name is \"..\", expected one that does not mean a directory"),
        ("a/b", "the source's name \"a/b\" contains '/', expected neither '/' nor control characters"),
        ("/abs", "the source's name \"/abs\" contains '/', expected neither '/' nor control characters"),
        ("a\0b", "the source's name \"a\\0b\" contains '\\0', expected neither '/' nor control characters"),
        ("a\nb", "the source's name \"a\\nb\" contains '\\n', expected neither '/' nor control characters"),
        (
            "\u{1b}[31m",
            "the source's name \"\\u{1b}[31m\" contains '\\u{1b}', expected neither '/' nor control characters",
        ),
        (longest.as_str(), "the source's name is 65 bytes long, expected at most 64"),
    ];
    for (name, expected) in cases {
        assert_eq!(refusals_of(dir.path(), name), [expected; 3]);
    }
    assert!(entries(dir.path()).is_empty());
}

#[test]
fn path_that_is_too_long_for_a_socket_is_refused_with_its_length() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("d".repeat(90));
    let socket = dir.join("routes.sock");
    let expected = format!(
        "the path {} and its suffix take {} bytes, expected at most 107; use a shorter name or runtime directory",
        socket.display(),
        socket.as_os_str().len() + ".new".len()
    );
    assert_eq!(refusals_of(&dir, "routes"), [expected.as_str(); 3]);
    assert!(!dir.exists());
}

fn refusals_of(dir: &Path, name: &str) -> [String; 3] {
    [
        source_options(dir).create(name).unwrap_err().to_string(),
        Destination::options().runtime_dir(dir).connect(name).map(drop).unwrap_err().to_string(),
        Replica::options().runtime_dir(dir).connect(name).map(drop).unwrap_err().to_string(),
    ]
}

#[test]
fn second_source_of_a_name_is_told_the_pid_of_the_first_which_is_not_disturbed() {
    let dir = tempfile::tempdir().unwrap();
    let first = source_options(dir.path()).create("s").unwrap();
    let table = first.table("t").unwrap();
    table.ready();
    let mut replica = replica(dir.path(), "s");
    replica.wait_synced(PATIENCE).unwrap();
    let error = source_options(dir.path()).create("s").unwrap_err().to_string();
    let (pid, lock) = (std::process::id(), dir.path().join("s.lock"));
    assert_eq!(
        error,
        format!("the name \"s\" is taken by a living source, process {pid} (lock file {})", lock.display())
    );
    assert_eq!(entries(dir.path()), ["s.lock", "s.sock"]);
    table.set(1u8, b"x").unwrap();
    until("a change of the first", || {
        replica.wait(PATIENCE).unwrap();
        replica.table("t").len() == 1
    });
    assert_eq!(replica.stats().attaches, 1);
}

#[test]
fn path_that_is_no_socket_is_told_apart_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s.sock");
    for found in ["a regular file", "a directory", "a special file", "a symbolic link"] {
        match found {
            "a regular file" => fs::write(&socket, "text").unwrap(),
            "a directory" => fs::create_dir(&socket).unwrap(),
            "a special file" => nix::unistd::mkfifo(&socket, nix::sys::stat::Mode::S_IRWXU).unwrap(),
            _ => std::os::unix::fs::symlink("/dev/null", &socket).unwrap(),
        }
        let error = source_options(dir.path()).create("s").unwrap_err().to_string();
        let expected = "expected nothing or a socket; remove it or use another name";
        assert_eq!(error, format!("{} is {found}, {expected}", socket.display()));
        assert_eq!(entries(dir.path()), ["s.sock"]);
        // a link is followed by whoever connects
        let found = if found == "a symbolic link" { "a special file" } else { found };
        let error = first_error(dir.path());
        assert_eq!(error, format!("{} is {found}, expected the socket of a source", socket.display()));
        fs::remove_file(&socket).or_else(|_| fs::remove_dir(&socket)).unwrap();
    }
    let _stream = UnixListener::bind(&socket).unwrap();
    assert_eq!(
        first_error(dir.path()),
        format!("{} is a socket of another kind, expected the socket of a source", socket.display())
    );
}

fn first_error(dir: &Path) -> String {
    let mut destination = Destination::options().runtime_dir(dir).connect("s").unwrap();
    destination.recv_timeout(PATIENCE, |_| Ok(())).unwrap_err().to_string()
}

#[test]
fn wait_for_a_source_that_is_not_there_says_where_it_would_be() {
    let dir = tempfile::tempdir().unwrap();
    let mut replica = replica(dir.path(), "s");
    let error = replica.wait_synced(Duration::from_millis(20)).unwrap_err();
    assert!(matches!(error, SyncError::NoSource { .. }));
    let socket = dir.path().join("s.sock");
    assert_eq!(error.to_string(), format!("no source within 20ms: nobody answers at {}", socket.display()));

    let source = source_options(dir.path()).create("s").unwrap();
    let table = source.table("slow").unwrap();
    let mut timed_out = String::new();
    until("the table", || {
        timed_out = replica.wait_synced(Duration::from_millis(20)).unwrap_err().to_string();
        replica.tables().count() == 1
    });
    timed_out = replica.wait_synced(Duration::from_millis(20)).unwrap_err().to_string();
    assert_eq!(
        timed_out,
        "not complete within 20ms: tables [\"slow\"] are still loading (none named: the source has no table)"
    );
    table.ready();
    replica.wait_synced(PATIENCE).unwrap();

    // a table of an earlier life, which this one does not have, is not waited for
    drop((table, source));
    until("the loss", || {
        replica.update().unwrap();
        !replica.is_attached()
    });
    let source = source_options(dir.path()).create("s").unwrap();
    let other = source.table("other").unwrap();
    until("the other table", || {
        timed_out = replica.wait_synced(Duration::from_millis(20)).unwrap_err().to_string();
        replica.tables().count() == 2
    });
    timed_out = replica.wait_synced(Duration::from_millis(20)).unwrap_err().to_string();
    assert_eq!(
        timed_out,
        "not complete within 20ms: tables [\"other\"] are still loading (none named: the source has no table)"
    );
    other.ready();
    replica.wait_synced(PATIENCE).unwrap();
}

#[test]
fn runtime_dir_that_is_a_file_is_refused_by_both_sides_and_left_alone() {
    let parent = tempfile::tempdir().unwrap();
    let file = parent.path().join("file");
    fs::write(&file, "text").unwrap();
    let expected = format!("runtime directory {} is a regular file, expected a directory", file.display());
    assert_eq!(source_options(&file).create("s").unwrap_err().to_string(), expected);
    assert_eq!(first_error(&file), expected);
    assert_eq!(fs::read(&file).unwrap(), b"text");
    let below = file.join("dir");
    assert_eq!(
        source_options(&below).create("s").unwrap_err().to_string(),
        format!("cannot create runtime directory {}: Not a directory (os error 20)", below.display())
    );
    // the user's own directory may well be a link
    let link = parent.path().join("link");
    fs::create_dir(parent.path().join("dir")).unwrap();
    std::os::unix::fs::symlink("dir", &link).unwrap();
    let _source = source_options(&link).create("s").unwrap();
}

#[test]
fn table_name_of_256_bytes_is_refused_and_one_of_255_travels() {
    let dir = tempfile::tempdir().unwrap();
    let source = source_options(dir.path()).ring_bytes(4096).create("s").unwrap();
    let error = source.table(&"t".repeat(256)).map(drop).unwrap_err().to_string();
    assert_eq!(error, "table name of 256 bytes is longer than the longest, 255 bytes");
    let longest = "t".repeat(255);
    source.table(&longest).unwrap().ready();
    let mut replica = replica(dir.path(), "s");
    replica.wait_synced(PATIENCE).unwrap();
    assert_eq!(replica.tables().collect::<Vec<_>>(), [longest]);
}

#[test]
fn subscription_that_no_hello_holds_is_refused_and_the_one_before_stays() {
    let dir = tempfile::tempdir().unwrap();
    let source = source_options(dir.path()).create("s").unwrap();
    source.table("t").unwrap().ready();
    let prefixes = |count: u16| {
        let none = Subscription::none();
        (0..count).fold(none, |some, n| some.prefix("t", n).unwrap())
    };
    // 40 bytes, and 3 for each prefix
    let longest = prefixes(10_909);
    let cases = [
        (
            Subscription::none().table("t").table(&"n".repeat(256)),
            "a subscription to a table name of 256 bytes, expected at most 255 bytes",
        ),
        (
            prefixes(10_910),
            "a greeting with this subscription has 32770 bytes, expected at most 32768; name fewer prefixes",
        ),
    ];
    let mut destination =
        Destination::options().runtime_dir(dir.path()).subscribe(longest.clone()).connect("s").unwrap();
    for (subscription, expected) in cases {
        let options = Destination::options().runtime_dir(dir.path()).subscribe(subscription.clone());
        assert_eq!(options.connect("s").map(drop).unwrap_err().to_string(), expected);
        let options = Replica::options().runtime_dir(dir.path()).subscribe(subscription.clone());
        assert_eq!(options.connect("s").map(drop).unwrap_err().to_string(), expected);
        assert_eq!(destination.subscribe(subscription).unwrap_err().to_string(), expected);
    }
    until("the longest subscription", || {
        destination.recv_timeout(PATIENCE, |_| Ok(())).unwrap();
        destination.is_all_synced()
    });
    let error = Subscription::none().prefix("t", [0; 256]).unwrap_err().to_string();
    assert_eq!(error, OPCODE_TOO_LONG);
    destination.subscribe(Subscription::none().table(&"n".repeat(255))).unwrap();
}

#[test]
fn table_that_is_there_cannot_be_given_another_retention() {
    let dir = tempfile::tempdir().unwrap();
    let source = source_options(dir.path()).create("s").unwrap();
    let nothing = || Retention::unacked(Vec::<(u8, Vec<u8>)>::new);
    source.table_with("t", nothing()).unwrap();
    let error = source.table_with("t", nothing()).map(drop).unwrap_err().to_string();
    let expected =
        "table t is there already, and what it keeps is settled; make it with Source::table_with first";
    assert_eq!(error, expected);
    source.table("t").unwrap();
    let error = source.table_with(&"t".repeat(256), nothing()).map(drop).unwrap_err().to_string();
    assert_eq!(error, "table name of 256 bytes is longer than the longest, 255 bytes");
}

#[test]
fn table_that_outlives_its_source_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let source = source_options(dir.path()).create("s").unwrap();
    let table = source.table("t").unwrap();
    drop(source);
    assert_eq!(table.set(1u8, b"x"), Err(SetError::Closed));
    assert_eq!(table.remove(1u8).unwrap_err().to_string(), "the source of this table was dropped");
}

#[test]
fn handles_in_a_forked_child_are_inert_and_the_parent_is_not_disturbed() {
    alone("handles_in_a_forked_child_are_inert_and_the_parent_is_not_disturbed", || {
        let dir = tempfile::tempdir().unwrap();
        let source = source_options(dir.path()).create("s").unwrap();
        let table = source.table("t").unwrap();
        table.set(1u8, b"x").unwrap();
        table.ready();
        let mut replica = replica(dir.path(), "s");
        replica.wait_synced(PATIENCE).unwrap();
        let mut destination = Destination::options().runtime_dir(dir.path()).connect("s").unwrap();
        destination.recv_timeout(PATIENCE, |_| Ok(())).unwrap();
        let mut handles = Some((source, table, destination, replica));

        for round in 0..20u8 {
            // The lock is held again and again while the fork happens: a child that waited for it would wait for ever.
            let over = AtomicBool::new(false);
            let status = std::thread::scope(|scope| {
                let publisher = handles.as_ref().unwrap().1.clone();
                let over = &over;
                scope.spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        publisher.set(1u8, [round]).unwrap();
                        publisher.set(1u8, b"x").unwrap();
                    }
                });
                let status = in_forked_child(|| {
                    let (source, table, mut destination, mut replica) = handles.take().unwrap();
                    assert_eq!(table.set(1u8, b"child").unwrap_err().to_string(), FORKED);
                    assert_eq!(table.remove(1u8).unwrap_err().to_string(), FORKED);
                    assert_eq!(table.edit(1u8).map(drop).unwrap_err().to_string(), FORKED);
                    table.ready();
                    assert_eq!((table.get(1u8), table.len(), table.items()), (None, 0, Vec::new()));
                    assert_eq!(source.table("u").map(drop).unwrap_err().to_string(), FORKED);
                    assert_eq!(source.flush(PATIENCE).unwrap_err().to_string(), FORKED);
                    assert_eq!(source.stats().last_error.as_deref(), Some(FORKED));
                    assert_eq!(destination.recv(|_| Ok(())).unwrap_err().to_string(), FORKED);
                    assert_eq!(destination.try_recv(|_| Ok(())).unwrap_err().to_string(), FORKED);
                    assert_eq!(replica.wait(PATIENCE).unwrap_err().to_string(), FORKED);
                    assert_eq!(contents(&replica, "t").len(), 1, "what is private memory can still be read");
                    drop((source, table, destination, replica));
                });
                over.store(true, Ordering::Relaxed);
                status
            });
            assert!(matches!(status, WaitStatus::Exited(_, 0)), "round {round}: {status:?}");
            assert_eq!(entries(dir.path()), ["s.lock", "s.sock"]);
        }

        let (source, table, mut destination, mut replica) = handles.unwrap();
        table.set(2u8, b"after").unwrap();
        until("a change after the forks", || {
            destination.try_recv(|_| Ok(())).unwrap();
            replica.wait(PATIENCE).unwrap();
            replica.table("t").len() == 2
        });
        assert_eq!((replica.stats().attaches, source.stats().broken), (1, 0));
        drop(source);
        assert!(entries(dir.path()).is_empty());
    });
}

#[test]
fn forked_child_may_make_its_own_source_and_then_drop_the_parents() {
    alone("forked_child_may_make_its_own_source_and_then_drop_the_parents", || {
        let dir = tempfile::tempdir().unwrap();
        let mut parents = Some(source_options(dir.path()).create("parent").unwrap());
        let status = in_forked_child(|| {
            let childs = source_options(dir.path()).create("child").unwrap();
            childs.table("t").unwrap().ready();
            drop(parents.take());
            let mut replica = replica(dir.path(), "child");
            replica.wait_synced(PATIENCE).unwrap();
            drop(childs);
        });
        assert!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
        assert_eq!(entries(dir.path()), ["parent.lock", "parent.sock"]);
        drop(parents);
        assert!(entries(dir.path()).is_empty());
    });
}

/// Runs `check` in a forked child, which is killed if it hangs, and tells how the child ended.
fn in_forked_child(check: impl FnOnce()) -> WaitStatus {
    // SAFETY: callers run in `alone`, where no thread but ours and those of the library under test runs; that these may
    // hold its locks is what is tested.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => waitpid(child, None).unwrap(),
        ForkResult::Child => {
            alarm::set(30);
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check));
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(i32::from(outcome.is_err())) }
        }
    }
}

/// Runs `test` in a process in which no other test runs: the test binary calls itself for this one, `name`, alone.
fn alone(name: &str, test: impl FnOnce()) {
    const ALONE: &str = "SHMIRROR_TEST_ALONE";
    let name = &format!("bad_input::{name}");
    if std::env::var_os(ALONE).is_some_and(|running| running == name.as_str()) {
        return test();
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", name, "--nocapture"]).env(ALONE, name).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name} alone: {}\n{stdout}\n{stderr}", output.status);
    assert!(stdout.contains("1 passed"), "{name} is not the name of a test:\n{stdout}");
}
