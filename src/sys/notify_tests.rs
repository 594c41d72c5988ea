use std::os::unix::net::UnixStream;

use super::*;
use crate::sys::poll::Interest;
use crate::sys::test_process::alone;
use crate::sys::wake::Wake;

const LONG: Duration = Duration::from_secs(30);

fn is_readable(notifier: &Notifier, wait: Duration) -> bool {
    let mut set = PollSet::new();
    let at = set.watch(notifier.fd().as_fd(), Interest::Read);
    set.wait(Some(Instant::now() + wait)).unwrap();
    set.ready(at).readable
}

fn set_of(fds: &[BorrowedFd<'_>]) -> PollSet {
    let mut set = PollSet::new();
    for fd in fds {
        set.watch(*fd, Interest::Read);
    }
    set
}

#[test]
fn it_is_readable_at_first_and_then_for_as_long_as_something_watched_is() {
    let (wake, other) = (Wake::new().unwrap(), Wake::new().unwrap());
    let mut notifier = Notifier::new().unwrap();
    assert!(is_readable(&notifier, LONG), "nothing was looked at yet");
    let set = set_of(&[wake.as_fd(), other.as_fd()]);
    notifier.mirror(&set, 1, None).unwrap();
    assert!(!is_readable(&notifier, Duration::ZERO));
    for _ in 0..2 {
        wake.wake();
        assert!(is_readable(&notifier, LONG));
        assert!(is_readable(&notifier, LONG), "level-triggered");
        notifier.mirror(&set, 1, None).unwrap();
        assert!(is_readable(&notifier, LONG), "to watch the same silences nothing");
        wake.clear();
        assert!(!is_readable(&notifier, Duration::ZERO));
    }
    other.wake();
    assert!(is_readable(&notifier, LONG));
    notifier.mirror(&set_of(&[wake.as_fd()]), 1, None).unwrap();
    assert!(!is_readable(&notifier, Duration::ZERO), "the other is not watched any more");
    wake.wake();
    notifier.silence().unwrap();
    assert!(!is_readable(&notifier, Duration::ZERO));
    let outlives = notifier.fd().clone();
    drop(notifier);
    let mut set = set_of(&[outlives.as_fd()]);
    assert_eq!(set.wait(Some(Instant::now())).unwrap(), 0);
}

#[test]
fn hang_up_makes_it_readable() {
    let (a, b) = UnixStream::pair().unwrap();
    let mut notifier = Notifier::new().unwrap();
    notifier.mirror(&set_of(&[a.as_fd()]), 1, None).unwrap();
    assert!(!is_readable(&notifier, Duration::ZERO));
    drop(b);
    assert!(is_readable(&notifier, LONG));
}

#[test]
fn number_that_was_used_again_is_watched_as_what_it_is_now() {
    // Alone, so that nobody else takes the number.
    alone("sys::notify::tests::number_that_was_used_again_is_watched_as_what_it_is_now", || {
        let mut notifier = Notifier::new().unwrap();
        let first = Wake::new().unwrap();
        let number = first.as_fd().as_raw_fd();
        notifier.mirror(&set_of(&[first.as_fd()]), 1, None).unwrap();
        drop(first);
        let second = Wake::new().unwrap();
        assert_eq!(second.as_fd().as_raw_fd(), number);
        second.wake();
        notifier.mirror(&set_of(&[second.as_fd()]), 1, None).unwrap();
        assert!(!is_readable(&notifier, Duration::ZERO), "as nobody has said that it is another");
        notifier.mirror(&set_of(&[second.as_fd()]), 2, None).unwrap();
        assert!(is_readable(&notifier, LONG));
    });
}

/// A copy of a descriptor keeps its registration, wherever the copy is; in a child that runs no fork handlers, say.
#[test]
fn what_a_copy_keeps_open_is_forgotten_all_the_same() {
    let mut notifier = Notifier::new().unwrap();
    let (a, b) = UnixStream::pair().unwrap();
    let _copy = a.try_clone().unwrap();
    notifier.mirror(&set_of(&[a.as_fd()]), 1, None).unwrap();
    drop((a, b));
    assert!(is_readable(&notifier, LONG), "the registration has outlived the descriptor");
    notifier.mirror(&set_of(&[]), 2, None).unwrap();
    assert!(!is_readable(&notifier, Duration::ZERO));
}

#[test]
fn deadline_makes_it_readable_and_a_later_one_silences_it() {
    let mut notifier = Notifier::new().unwrap();
    let set = PollSet::new();
    for micros in [0, 1, 100, 20_000] {
        let deadline = Instant::now() + Duration::from_micros(micros);
        notifier.mirror(&set, 1, Some(deadline)).unwrap();
        assert!(is_readable(&notifier, LONG));
        assert!(Instant::now() >= deadline, "{micros} us: early");
        notifier.mirror(&set, 1, Some(Instant::now() + LONG)).unwrap();
        assert!(!is_readable(&notifier, Duration::ZERO));
    }
    notifier.mirror(&set, 1, Some(Instant::now() - LONG)).unwrap();
    assert!(is_readable(&notifier, LONG), "a deadline of long ago");
    notifier.mirror(&set, 1, None).unwrap();
    assert!(!is_readable(&notifier, Duration::ZERO));
    let century = crate::sys::poll::deadline_after(Duration::MAX);
    notifier.mirror(&set, 1, Some(century)).unwrap();
    assert!(!is_readable(&notifier, Duration::ZERO));
}

#[test]
fn alarm_moves_to_an_earlier_deadline_and_stays_for_a_later_one_until_the_set_changes() {
    let wake = Wake::new().unwrap();
    let mut notifier = Notifier::new().unwrap();
    let (set, start) = (PollSet::new(), Instant::now());
    let [soon, late] = [start + LONG, start + 2 * LONG];
    notifier.mirror(&set, 1, Some(late)).unwrap();
    notifier.mirror(&set, 1, Some(soon)).unwrap();
    assert_eq!(notifier.alarm, Some(soon));
    for later in [Some(late), None] {
        notifier.mirror(&set, 1, later).unwrap();
        assert_eq!(notifier.alarm, Some(soon), "one wake-up for nothing costs less than to set it each time");
    }
    notifier.mirror(&set_of(&[wake.as_fd()]), 2, Some(late)).unwrap();
    assert_eq!(notifier.alarm, Some(late));
    notifier.mirror(&set, 3, None).unwrap();
    assert_eq!(notifier.alarm, None);
}

#[test]
fn without_descriptors_left_it_becomes_readable_now_and_then_and_recovers() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    alone(
        "sys::notify::tests::without_descriptors_left_it_becomes_readable_now_and_then_and_recovers",
        || {
            let [wake, other] = [Wake::new().unwrap(), Wake::new().unwrap()];
            let mut notifier = Notifier::new().unwrap();
            let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
            let lowest_free = std::fs::File::open("/dev/null").unwrap().as_raw_fd();
            setrlimit(Resource::RLIMIT_NOFILE, lowest_free as u64, hard).unwrap();
            let set = set_of(&[wake.as_fd()]);
            let error = notifier.mirror(&set, 1, None).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
            wake.wake();
            assert!(!is_readable(&notifier, Duration::ZERO), "nothing is watched");
            assert!(is_readable(&notifier, LONG), "but it is looked at again");
            assert!(notifier.mirror(&set, 1, None).is_err());
            assert!(!is_readable(&notifier, Duration::ZERO), "now and then, not all the time");
            setrlimit(Resource::RLIMIT_NOFILE, lowest_free as u64 + 1, hard).unwrap();
            notifier.mirror(&set, 1, None).unwrap();
            assert!(is_readable(&notifier, LONG));
            wake.clear();
            assert!(!is_readable(&notifier, Duration::ZERO));
            // The one descriptor that is left is that of the set that is replaced.
            other.wake();
            notifier.mirror(&set_of(&[other.as_fd()]), 2, None).unwrap();
            assert!(is_readable(&notifier, LONG));
        },
    );
}
