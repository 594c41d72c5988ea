//! Tests of the rendezvous.

use std::ffi::OsString;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::bind::{BindError, SourceListener};
use super::place::RuntimeDir;
use super::watch::SourceWatch;
use super::*;
use crate::sys::poll::{Interest, PollSet};
use crate::sys::socket::{Listener, Received};
use crate::sys::test_process::{alone, cloned, fork_until_closed, forked};

const MODE: u32 = 0o600;

fn place_in(dir: &Path, name: &str) -> Place {
    Place::new(RuntimeDir::locate(Some(dir)).unwrap(), name).unwrap()
}

fn routes() -> (TempDir, Place) {
    let dir = tempfile::tempdir().unwrap();
    let place = place_in(dir.path(), "routes");
    (dir, place)
}

fn entries(dir: &TempDir) -> Vec<OsString> {
    let mut names: Vec<_> =
        fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

/// A child process that another test has just forked holds a lock until it calls exec.
fn bind_soon(place: &Place) -> SourceListener {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match SourceListener::bind(place, MODE) {
            Err(BindError::NameTaken { .. }) if Instant::now() < deadline => std::thread::yield_now(),
            outcome => return outcome.unwrap(),
        }
    }
}

/// What kill -9 leaves: a socket without listener, a lock file without lock, perhaps a socket not yet
/// renamed.
fn leave_stale_files(place: &Place) {
    for path in [place.socket(), place.new_socket()] {
        drop(Listener::bind(&path).unwrap());
    }
    fs::write(place.lock(), "4194305\n").unwrap();
}

#[test]
fn source_is_found_and_leaves_nothing_behind() {
    let (dir, place) = routes();
    assert!(matches!(connect(&place), Err(ConnectError::NoSource { .. })));
    let source = SourceListener::bind(&place, MODE).unwrap();
    assert_eq!(entries(&dir), ["routes.lock", "routes.sock"]);
    assert_eq!(fs::read_to_string(place.lock()).unwrap(), format!("{}\n", std::process::id()));
    assert_eq!(fs::metadata(source.path()).unwrap().permissions().mode() & 0o777, MODE);
    let socket = connect(&place).unwrap();
    socket.send(b"hello", &[]).unwrap();
    let served = source.accept().unwrap().unwrap();
    assert!(matches!(served.recv(&mut [0; 8], 0), Ok(Received::Message { len: 5, .. })));
    drop(source);
    assert!(entries(&dir).is_empty());
    assert!(matches!(connect(&place), Err(ConnectError::NoSource { .. })));
}

#[test]
fn second_source_of_a_name_is_told_who_has_it_and_disturbs_nothing() {
    let (dir, place) = routes();
    let first = SourceListener::bind(&place, MODE).unwrap();
    let text = SourceListener::bind(&place, MODE).unwrap_err().to_string();
    let lock = place.lock();
    let pid = std::process::id();
    assert_eq!(
        text,
        format!(
            "the name \"routes\" is taken by a living source, process {pid} (lock file {})",
            lock.display()
        )
    );
    connect(&place).unwrap();
    assert!(first.accept().unwrap().is_some());
    let _other = SourceListener::bind(&place_in(dir.path(), "leases"), MODE).unwrap();
}

#[test]
fn stale_files_are_taken_over_and_removed_in_the_end() {
    let (dir, place) = routes();
    leave_stale_files(&place);
    assert!(matches!(connect(&place), Err(ConnectError::NoSource { .. })), "a stale socket is no source");
    let source = SourceListener::bind(&place, MODE).unwrap();
    connect(&place).unwrap();
    assert!(source.accept().unwrap().is_some());
    drop(source);
    assert!(entries(&dir).is_empty());
}

struct KilledOnDrop(std::process::Child);

impl KilledOnDrop {
    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        self.kill();
    }
}

#[test]
fn killed_source_frees_its_name() {
    const NAME: &str = "link::rendezvous::tests::killed_source_frees_its_name";
    if let Some(dir) = std::env::var_os("SHMIRROR_TEST_DIR") {
        let _source = SourceListener::bind(&place_in(Path::new(&dir), "routes"), MODE).unwrap();
        loop {
            std::thread::park();
        }
    }
    let (dir, place) = routes();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--test-threads=1"])
        .env("SHMIRROR_TEST_DIR", dir.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut child = KilledOnDrop(child);
    let deadline = Instant::now() + Duration::from_secs(30);
    let socket = loop {
        match connect(&place) {
            Ok(socket) => break socket,
            Err(_) => assert!(Instant::now() < deadline),
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let text = SourceListener::bind(&place, MODE).unwrap_err().to_string();
    assert!(text.contains(&format!("process {}", child.0.id())), "{text}");
    child.kill();
    let mut set = PollSet::new();
    set.watch(socket.as_fd(), Interest::HangUp);
    set.wait(Some(deadline)).unwrap();
    assert!(set.ready(0).hung_up, "its death is seen, accepted or not");
    assert_eq!(entries(&dir), ["routes.lock", "routes.sock"], "kill -9 leaves both");
    drop(bind_soon(&place));
    assert!(entries(&dir).is_empty());
}

#[test]
fn names_that_change_hands_quickly_never_have_two_sources() {
    let (dir, place) = routes();
    let held = std::sync::atomic::AtomicU32::new(0);
    let binds = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..300 {
                    match SourceListener::bind(&place, MODE) {
                        Ok(source) => {
                            assert_eq!(held.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                            connect(&place).expect("whoever holds the name is reachable");
                            binds.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                            held.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                            drop(source);
                        }
                        Err(BindError::NameTaken { .. } | BindError::Contended { .. }) => {
                            std::thread::yield_now()
                        }
                        Err(other) => panic!("{other}"),
                    }
                }
            });
        }
    });
    assert!(binds.into_inner() > 10);
    assert!(entries(&dir).is_empty());
}

#[test]
fn lock_file_removed_by_hand_does_not_make_the_old_source_remove_the_new_ones_files() {
    let (dir, place) = routes();
    let old = SourceListener::bind(&place, MODE).unwrap();
    fs::remove_file(place.lock()).unwrap();
    let new = SourceListener::bind(&place, MODE).unwrap();
    drop(old);
    assert_eq!(entries(&dir), ["routes.lock", "routes.sock"]);
    connect(&place).unwrap();
    drop(new);
    assert!(entries(&dir).is_empty());
}

#[test]
fn child_that_drops_a_source_leaves_its_files_and_its_lock() {
    alone("link::rendezvous::tests::child_that_drops_a_source_leaves_its_files_and_its_lock", || {
        let (dir, place) = routes();
        let mut source = Some(SourceListener::bind(&place, MODE).unwrap());
        let status = forked(|| {
            drop(source.take());
            true
        });
        assert_eq!(status, Ok(()));
        assert_eq!(entries(&dir), ["routes.lock", "routes.sock"]);
        assert!(matches!(SourceListener::bind(&place, MODE), Err(BindError::NameTaken { .. })));
        connect(&place).unwrap();
        assert!(source.as_ref().unwrap().accept().unwrap().is_some());
    });
}

#[test]
fn child_of_a_bare_clone_that_drops_a_source_leaves_its_files() {
    alone("link::rendezvous::tests::child_of_a_bare_clone_that_drops_a_source_leaves_its_files", || {
        let (dir, place) = routes();
        let mut source = Some(SourceListener::bind(&place, MODE).unwrap());
        let status = cloned(|| {
            drop(source.take());
            true
        });
        assert_eq!(status, Ok(()));
        assert_eq!(entries(&dir), ["routes.lock", "routes.sock"]);
        connect(&place).unwrap();
    });
}

#[test]
fn child_that_lives_on_hides_neither_the_death_nor_the_name() {
    alone("link::rendezvous::tests::child_that_lives_on_hides_neither_the_death_nor_the_name", || {
        let (dir, place) = routes();
        let source = SourceListener::bind(&place, MODE).unwrap();
        let peer = connect(&place).unwrap();
        let served = source.accept().unwrap().unwrap();
        let (hold, release) = nix::unistd::pipe().unwrap();
        let child = fork_until_closed(hold, release);
        // as a crash would: everything is closed, nothing is removed
        let (lock, socket) = (place.lock(), place.socket());
        fs::rename(&lock, dir.path().join("kept")).unwrap();
        drop(source);
        drop(served);
        fs::rename(dir.path().join("kept"), &lock).unwrap();
        assert!(socket.exists());
        let mut set = PollSet::new();
        set.watch(peer.as_fd(), Interest::HangUp);
        set.wait(Some(Instant::now() + Duration::from_secs(10))).unwrap();
        assert!(set.ready(0).hung_up, "the peer sees the hang-up");
        drop(bind_soon(&place));
        assert!(entries(&dir).is_empty());
        child.finish();
    });
}

#[test]
fn whatever_is_no_source_is_told_apart() {
    let (dir, place) = routes();
    fs::write(place.socket(), "text").unwrap();
    let text = connect(&place).unwrap_err().to_string();
    assert_eq!(
        text,
        format!("{} is a regular file, expected the socket of a source", place.socket().display())
    );
    let text = SourceListener::bind(&place, MODE).unwrap_err().to_string();
    assert!(text.contains("is a regular file, expected nothing or a socket"), "{text}");
    assert_eq!(entries(&dir), ["routes.sock"], "and it is left alone");
    fs::remove_file(place.socket()).unwrap();
    fs::create_dir(place.socket()).unwrap();
    assert!(matches!(connect(&place), Err(ConnectError::NotASource { found: "a directory", .. })));
    fs::remove_dir(place.socket()).unwrap();
    let _stream = std::os::unix::net::UnixListener::bind(place.socket()).unwrap();
    assert!(matches!(
        connect(&place),
        Err(ConnectError::NotASource { found: "a socket of another kind", .. })
    ));
}

#[test]
fn names_are_checked() {
    let longest = "x".repeat(64);
    for good in ["routes", "a", "ipv4.unicast", "with space", "ü", "...", "-", "a.lock", longest.as_str()] {
        let dir = RuntimeDir::locate(Some(Path::new("/run/shmirror"))).unwrap();
        assert_eq!(Place::new(dir, good).unwrap().name(), good);
    }
    let too_long = "x".repeat(65);
    let bad = [
        ("", "the source's name is empty, expected 1 to 64 bytes"),
        (".", "the source's name is \".\", expected one that does not mean a directory"),
        ("..", "the source's name is \"..\", expected one that does not mean a directory"),
        ("a/b", "the source's name \"a/b\" contains '/', expected neither '/' nor control characters"),
        ("a\0b", "the source's name \"a\\0b\" contains '\\0', expected neither '/' nor control characters"),
        ("a\nb", "the source's name \"a\\nb\" contains '\\n', expected neither '/' nor control characters"),
        (
            "\u{9b}",
            "the source's name \"\\u{9b}\" contains '\\u{9b}', expected neither '/' nor control characters",
        ),
        (too_long.as_str(), "the source's name is 65 bytes long, expected at most 64"),
    ];
    for (name, expected) in bad {
        let dir = RuntimeDir::locate(Some(Path::new("/run/shmirror"))).unwrap();
        assert_eq!(Place::new(dir, name).unwrap_err().to_string(), expected);
    }
}

#[test]
fn path_too_long_for_a_socket_is_told_before_anything_is_made() {
    let longest_dir = format!("/{}", "d".repeat(107 - 1 - "/routes.sock.new".len()));
    Place::new(RuntimeDir::locate(Some(Path::new(&longest_dir))).unwrap(), "routes").unwrap();
    let dir = RuntimeDir::locate(Some(Path::new(&format!("{longest_dir}d")))).unwrap();
    let text = Place::new(dir, "routes").unwrap_err().to_string();
    assert!(text.contains("take 108 bytes, expected at most 107"), "{text}");
}

#[test]
fn runtime_dir_is_chosen_in_order() {
    let choose = |explicit: Option<&str>, variables: &[(&str, &str)], uid| {
        let variables = variables.to_vec();
        let lookup = move |name: &str| {
            variables.iter().find(|(variable, _)| *variable == name).map(|(_, value)| OsString::from(value))
        };
        RuntimeDir::choose(explicit.map(Path::new), lookup, uid).unwrap().path().to_str().unwrap().to_owned()
    };
    let both = [("SHMIRROR_RUNTIME_DIR", "/s"), ("XDG_RUNTIME_DIR", "/x")];
    assert_eq!(choose(Some("/e"), &both, 0), "/e");
    assert_eq!(choose(None, &both, 0), "/s");
    assert_eq!(choose(None, &both[1..], 0), "/x/shmirror");
    assert_eq!(choose(None, &[("XDG_RUNTIME_DIR", "relative")], 1000), "/tmp/shmirror-1000");
    assert_eq!(choose(None, &[("SHMIRROR_RUNTIME_DIR", ""), ("XDG_RUNTIME_DIR", "")], 0), "/run/shmirror");
    assert_eq!(choose(None, &[], 1000), "/tmp/shmirror-1000");
    assert!(choose(Some("relative"), &[], 0).starts_with('/'));
}

#[test]
fn default_dir_must_be_ours_and_closed_to_others() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("shmirror");
    let lookup = |name: &str| (name == "XDG_RUNTIME_DIR").then(|| parent.path().as_os_str().to_owned());
    let chosen = RuntimeDir::choose(None, lookup, 0).unwrap();
    chosen.prepare().unwrap();
    chosen.prepare().unwrap();
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o1777)).unwrap();
    let text = chosen.prepare().unwrap_err().to_string();
    assert!(text.contains("has mode 1777, expected one that only its owner can write to"), "{text}");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    chosen.prepare().unwrap();
    RuntimeDir::locate(Some(&dir)).unwrap().prepare().unwrap();
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&dir, Some(12345), None).unwrap();
        let text = chosen.prepare().unwrap_err().to_string();
        assert!(text.contains("belongs to user 12345, expected 0; set SHMIRROR_RUNTIME_DIR"), "{text}");
    }
    fs::remove_dir(&dir).unwrap();
    std::os::unix::fs::symlink(parent.path(), &dir).unwrap();
    let text = chosen.prepare().unwrap_err().to_string();
    assert!(text.contains("is a symbolic link, expected a directory"), "{text}");
}

#[test]
fn watch_wakes_for_its_source_only() {
    let (dir, place) = routes();
    let mut watch = SourceWatch::new(&place).unwrap();
    let mut noticed = move |wait: u64| {
        let mut set = PollSet::new();
        set.watch(watch.as_fd(), Interest::Read);
        set.wait(Some(Instant::now() + Duration::from_millis(wait))).unwrap();
        watch.drain().unwrap()
    };
    assert!(!noticed(0));
    let other = SourceListener::bind(&place_in(dir.path(), "leases"), MODE).unwrap();
    assert!(!noticed(0));
    let source = SourceListener::bind(&place, MODE).unwrap();
    assert!(noticed(10_000));
    connect(&place).unwrap();
    assert!(!noticed(0));
    drop((other, source));
    assert!(!noticed(0));
}

#[test]
fn watch_creates_its_directory_again_when_it_is_removed() {
    let parent = tempfile::tempdir().unwrap();
    let place = place_in(&parent.path().join("run"), "routes");
    let mut watch = SourceWatch::new(&place).unwrap();
    fs::remove_dir(place.dir().path()).unwrap();
    assert!(watch.drain().unwrap());
    assert!(!watch.drain().unwrap(), "noticed once");
    let _source = SourceListener::bind(&place, MODE).unwrap();
    assert!(watch.drain().unwrap());
    fs::rename(place.dir().path(), parent.path().join("moved")).unwrap();
    assert!(watch.drain().unwrap());
    assert!(place.dir().path().exists());
}
