//! Tests of the sockets.

use std::io::{Read as _, Seek as _, Write as _};
use std::time::{Duration, Instant};

use super::*;
use crate::sys::poll::{Interest, PollSet};
use crate::sys::test_process::{alone, die_of_sigpipe};

fn message(socket: &Socket, buffer: &mut [u8], max_fds: usize) -> (usize, Vec<OwnedFd>) {
    match socket.recv(buffer, max_fds).unwrap() {
        Received::Message { len, fds } => (len, fds),
        other => panic!("{other:?}"),
    }
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn descriptors_arrive_with_their_message() {
    let (a, b) = Socket::pair().unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"content").unwrap();
    file.rewind().unwrap();
    let (pipe, writer) = nix::unistd::pipe().unwrap();
    assert_eq!(a.send(b"with", &[file.as_fd(), pipe.as_fd(), writer.as_fd()]).unwrap(), Sent::Done);
    assert_eq!(a.send(b"without", &[]).unwrap(), Sent::Done);
    let mut buffer = [0; 64];
    let (len, fds) = message(&b, &mut buffer, 4);
    assert_eq!((&buffer[..len], fds.len()), (&b"with"[..], 3));
    for fd in &fds {
        let flags = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
    }
    let mut content = String::new();
    std::fs::File::from(fds.into_iter().next().unwrap()).read_to_string(&mut content).unwrap();
    assert_eq!(content, "content");
    let (len, fds) = message(&b, &mut buffer, 4);
    assert_eq!((&buffer[..len], fds.len()), (&b"without"[..], 0));
    assert!(matches!(b.recv(&mut buffer, 4).unwrap(), Received::WouldBlock));
}

#[test]
fn surplus_descriptors_are_an_error_and_closed() {
    alone("sys::socket::tests::surplus_descriptors_are_an_error_and_closed", || {
        let (a, b) = Socket::pair().unwrap();
        let (pipe, _writer) = nix::unistd::pipe().unwrap();
        let before = open_descriptors();
        for max in 0..4 {
            a.send(b"x", &[pipe.as_fd(); 4]).unwrap();
            let error = b.recv(&mut [0; 8], max).unwrap_err();
            let ReceiveError::DescriptorsCut { found, max: told } = error else { panic!("{error:?}") };
            assert_eq!((found, told), (max, max), "those that fitted were taken over, to be closed");
            assert_eq!(open_descriptors(), before);
        }
        a.send(b"x", &[pipe.as_fd(); 4]).unwrap();
        assert_eq!(message(&b, &mut [0; 8], 4).1.len(), 4);
        assert_eq!(open_descriptors(), before);
    });
}

#[test]
fn no_descriptors_left_is_an_error() {
    alone("sys::socket::tests::no_descriptors_left_is_an_error", || {
        let (a, b) = Socket::pair().unwrap();
        a.send(b"x", &[a.as_fd(), b.as_fd()]).unwrap();
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, 64, 64).unwrap();
        let mut fillers = Vec::new();
        while let Ok(filler) = std::fs::File::open("/") {
            fillers.push(filler);
        }
        fillers.pop();
        let text = b.recv(&mut [0; 8], 2).unwrap_err().to_string();
        assert!(
            text.contains("cut off after 1, expected at most 2") && text.contains("RLIMIT_NOFILE"),
            "{text}"
        );
    });
}

#[test]
fn message_longer_than_the_buffer_is_an_error_and_its_descriptors_are_closed() {
    alone(
        "sys::socket::tests::message_longer_than_the_buffer_is_an_error_and_its_descriptors_are_closed",
        || {
            let (a, b) = Socket::pair().unwrap();
            let before = open_descriptors();
            a.send(&[7; 9], &[a.as_fd()]).unwrap();
            let text = b.recv(&mut [0; 8], 1).unwrap_err().to_string();
            assert_eq!(text, "the peer's message was cut off, expected one of at most 8 bytes");
            assert_eq!(open_descriptors(), before);
        },
    );
}

#[test]
fn full_socket_refuses_rather_than_blocks() {
    let (a, b) = Socket::pair().unwrap();
    let sent = (0..100_000).take_while(|_| a.send(&[1; 64], &[]).unwrap() == Sent::Done).count();
    assert!(sent > 0 && sent < 100_000);
    let mut buffer = [0; 64];
    let received =
        (0..=sent).take_while(|_| matches!(b.recv(&mut buffer, 0), Ok(Received::Message { .. }))).count();
    assert_eq!(received, sent);
}

#[test]
fn hang_up_is_polled_received_and_sent_into() {
    let (a, b) = Socket::pair().unwrap();
    a.send(b"last words", &[]).unwrap();
    drop(a);
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut set = PollSet::new();
    set.watch(b.as_fd(), Interest::HangUp);
    assert_eq!(set.wait(Some(deadline)).unwrap(), 1);
    assert!(set.ready(0).hung_up);
    assert_eq!(b.send(b"x", &[]).unwrap(), Sent::Closed);
    let mut buffer = [0; 64];
    assert_eq!(message(&b, &mut buffer, 0).0, 10, "what was sent before the hang-up is still there");
    assert!(matches!(b.recv(&mut buffer, 0).unwrap(), Received::Closed));
}

#[test]
fn sending_to_nobody_raises_no_signal() {
    alone("sys::socket::tests::sending_to_nobody_raises_no_signal", || {
        die_of_sigpipe();
        let (a, b) = Socket::pair().unwrap();
        drop(b);
        assert_eq!(a.send(b"x", &[]).unwrap(), Sent::Closed);
    });
}

#[test]
fn peer_that_hangs_up_on_unread_messages_is_closed_too() {
    let (a, b) = Socket::pair().unwrap();
    b.send(b"unread", &[]).unwrap();
    drop(a);
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut set = PollSet::new();
    set.watch(b.as_fd(), Interest::HangUp);
    set.wait(Some(deadline)).unwrap();
    assert!(matches!(b.recv(&mut [0; 8], 0).unwrap(), Received::Closed), "ECONNRESET");
    assert!(matches!(b.recv(&mut [0; 8], 0).unwrap(), Received::Closed), "end of file");
}

#[test]
fn connections_are_accepted_in_turn() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = Listener::bind(&path).unwrap();
    assert!(listener.accept().unwrap().is_none());
    let client = Socket::connect(&path).unwrap();
    client.send(b"early", &[]).unwrap();
    let served = listener.accept().unwrap().unwrap();
    assert_eq!(message(&served, &mut [0; 8], 0).0, 5);
    assert!(listener.accept().unwrap().is_none());
}
