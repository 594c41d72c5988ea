//! Redis, the way the state tables of SONiC use it: the state is hashes in a server, a change is written there, the server
//! publishes the key, and whoever has subscribed reads the hash.
//!
//! After `SubscriberStateTable` in
//! <https://github.com/sonic-net/sonic-swss-common/blob/master/common/subscriberstatetable.cpp>: the publisher's `HSET` makes
//! the server send a keyspace notification, which the subscriber answers with a read of that key. The publisher gathers
//! [`PIPELINE`] commands, as `RedisPipeline` does by default (common/redispipeline.h); the subscriber here does so with its
//! reads as well, which SONiC's does not: it reads one by one. The server is of the cell's own, on a Unix socket, without
//! persistence, and without a limit of what it keeps for a slow subscriber, which could not be verified otherwise: by default it
//! cuts one off at 32 MB (`client-output-buffer-limit pubsub`).
//!
//! The client is the least that does it, so that what is measured is the server and the kernel.

#![allow(unsafe_code)]

use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::direction::{Buffer, Direction, MARK, Receiver, Sender, Shape};
use crate::harness::{BOUND, record};

/// Commands that are sent before an answer is read.
const PIPELINE: usize = 128;

/// Keys of a stream, as many as shmirror's.
const KEYS: u64 = 1000;

/// What a key begins with, and what its notification begins with before that.
const TABLE: &str = "T:";
const KEYSPACE: &str = "__keyspace@0__:";

/// The server, and what is needed to reach it.
pub(crate) struct Redis {
    socket: PathBuf,
    table: String,
    value_bytes: usize,
    /// In the process that has started it.
    _server: Option<Server>,
}

/// A server that ends with the value.
struct Server(Child);

/// A client's connection.
struct Connection {
    out: Vec<u8>,
    stream: UnixStream,
    replies: BufReader<UnixStream>,
    line: Vec<u8>,
}

pub(crate) struct RedisSender {
    connection: Connection,
    table: String,
    record: Buffer,
    unanswered: usize,
}

pub(crate) struct RedisReceiver {
    notifications: Connection,
    reads: Connection,
    table: String,
    value: Vec<u8>,
    /// Keys that were notified, to be read.
    keys: Vec<Vec<u8>>,
}

/// The server's version, if it is installed.
pub(crate) fn version() -> Option<String> {
    let output = Command::new("redis-server").arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split_whitespace().find_map(|word| word.strip_prefix("v="))?;
    Some(version.to_owned())
}

impl Direction for Redis {
    type Sender = RedisSender;
    type Receiver = RedisReceiver;

    /// The first direction starts the server; a second one in the same directory uses it.
    fn new(shape: Shape, dir: &Path, name: &'static str) -> Redis {
        let socket = dir.join("redis.socket");
        let server = (!socket.exists()).then(|| Server::start(dir, &socket));
        Redis { socket, table: format!("{TABLE}{name}:"), value_bytes: shape.value_bytes, _server: server }
    }

    fn sender(&mut self) -> RedisSender {
        let connection = Connection::new(&self.socket);
        RedisSender {
            connection,
            table: self.table.clone(),
            record: Buffer::new(self.value_bytes),
            unanswered: 0,
        }
    }

    fn receiver(&mut self) -> RedisReceiver {
        let mut notifications = Connection::new(&self.socket);
        let pattern = format!("{KEYSPACE}{}*", self.table);
        notifications.command(&[b"PSUBSCRIBE", pattern.as_bytes()]);
        notifications.send();
        // The kind, the pattern, and how many there are.
        assert_eq!(notifications.array_len(), 3);
        (0..2).for_each(|_| drop(notifications.bulk()));
        assert_eq!(notifications.number(b':'), 1);
        RedisReceiver {
            notifications,
            reads: Connection::new(&self.socket),
            table: self.table.clone(),
            value: Vec::new(),
            keys: Vec::new(),
        }
    }
}

impl Sender for RedisSender {
    fn send(&mut self, n: u64) {
        let key = match n {
            MARK => format!("{}mark", self.table),
            _ => format!("{}{}", self.table, n % KEYS),
        };
        self.connection.command(&[b"HSET", key.as_bytes(), b"value", self.record.fill(n)]);
        self.unanswered += 1;
        if self.unanswered == PIPELINE {
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.connection.send();
        for _ in 0..self.unanswered {
            // How many fields are new.
            assert!(self.connection.number(b':') <= 1);
        }
        self.unanswered = 0;
    }
}

impl Receiver for RedisReceiver {
    const NEWEST: bool = true;

    fn receive(&mut self, mut take: impl FnMut(u64)) {
        self.keys.clear();
        while self.keys.is_empty() || self.keys.len() < PIPELINE && self.notifications.has_more() {
            self.notification();
        }
        for key in &self.keys {
            self.reads.command(&[b"HGET", key, b"value"]);
        }
        self.reads.send();
        for key in &self.keys {
            self.reads.bulk_into(&mut self.value);
            let n = record::verify(&self.value);
            let tail = &key[self.table.len()..];
            let good = if n == MARK { tail == b"mark" } else { tail == (n % KEYS).to_string().as_bytes() };
            assert!(good, "the value of another key than {}", String::from_utf8_lossy(key));
            take(n);
        }
    }
}

impl RedisReceiver {
    /// One notification: the kind, the pattern, the channel, which holds the key, and what was done.
    fn notification(&mut self) {
        assert_eq!(self.notifications.array_len(), 4);
        (0..2).for_each(|_| drop(self.notifications.bulk()));
        let channel = self.notifications.bulk();
        assert_eq!(self.notifications.bulk(), b"hset");
        self.keys.push(channel[KEYSPACE.len()..].to_vec());
    }
}

impl Connection {
    fn new(socket: &Path) -> Connection {
        let stream = UnixStream::connect(socket).expect("the server is there");
        let replies = BufReader::with_capacity(64 << 10, stream.try_clone().expect("a descriptor"));
        Connection { out: Vec::new(), stream, replies, line: Vec::new() }
    }

    /// Adds a command: an array of bulk strings (<https://redis.io/docs/latest/develop/reference/protocol-spec/>).
    fn command(&mut self, parts: &[&[u8]]) {
        let written: io::Result<()> = (|| {
            write!(self.out, "*{}\r\n", parts.len())?;
            for part in parts {
                write!(self.out, "${}\r\n", part.len())?;
                self.out.extend_from_slice(part);
                self.out.extend_from_slice(b"\r\n");
            }
            Ok(())
        })();
        written.expect("memory takes all");
    }

    fn send(&mut self) {
        self.stream.write_all(&self.out).expect("the server is there");
        self.out.clear();
    }

    /// Whether there is more in memory, for which no system call is needed.
    fn has_more(&self) -> bool {
        !self.replies.buffer().is_empty()
    }

    /// The number in a line of this kind.
    fn number(&mut self, kind: u8) -> usize {
        self.line.clear();
        io::BufRead::read_until(&mut self.replies, b'\n', &mut self.line).expect("the server is there");
        let text = self.line.strip_prefix(&[kind]).and_then(|line| line.strip_suffix(b"\r\n"));
        let number = text.and_then(|text| str::from_utf8(text).ok()).and_then(|text| text.parse().ok());
        number.unwrap_or_else(|| panic!("a reply that is none: {}", String::from_utf8_lossy(&self.line)))
    }

    fn array_len(&mut self) -> usize {
        self.number(b'*')
    }

    fn bulk(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.bulk_into(&mut bytes);
        bytes
    }

    fn bulk_into(&mut self, bytes: &mut Vec<u8>) {
        let len = self.number(b'$');
        bytes.resize(len + 2, 0);
        self.replies.read_exact(bytes).expect("the server is there");
        bytes.truncate(len);
    }
}

impl Server {
    fn start(dir: &Path, socket: &Path) -> Server {
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--appendonly", "no", "--notify-keyspace-events", "KA"]);
        command.args(["--client-output-buffer-limit", "pubsub 0 0 0", "--loglevel", "warning"]);
        command.arg("--dir").arg(dir).arg("--unixsocket").arg(socket);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        let die_with_parent = || {
            // SAFETY: asks for a signal at the parent's death; no memory is involved.
            match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        };
        // SAFETY: the closure allocates nothing and takes no lock.
        unsafe { command.pre_exec(die_with_parent) };
        let server = Server(command.spawn().expect("redis-server is installed"));
        let since = Instant::now();
        while UnixStream::connect(socket).is_err() {
            assert!(since.elapsed() < BOUND, "redis-server does not listen");
            thread::sleep(Duration::from_millis(1));
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself, which the cell has noticed then.
        let killed = self.0.kill();
        let waited = self.0.wait();
        if let Err(error) = killed.and(waited) {
            eprintln!("redis-server {} could not be ended: {error}", self.0.id());
        }
    }
}
