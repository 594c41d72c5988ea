//! What each means promises, beside what it costs: the five things that keeping state equal needs.
//!
//! Each answer is about the means as it is measured here, not about what can be built on top of it. A note says what else a
//! reader must know, and the comments say where it comes from. Paths are those of the crates' sources, in the versions of
//! Cargo.lock.

/// An answer is "yes", "no", or a few words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guarantees {
    /// The writer learns that the reader has applied a record, not just that it was taken.
    pub(crate) acked: &'static str,
    /// What a slow reader has not taken is kept: it is not dropped, and the writer does not wait.
    pub(crate) slow_reader: &'static str,
    /// A reader that lags gets the newest value of each key, not all that were before.
    pub(crate) newest: &'static str,
    /// A reader that comes late, or again, gets the whole state.
    pub(crate) late_reader: &'static str,
    /// After `kill -9` of either side the other one goes on, and a new process in its place ends with the same state.
    pub(crate) killed: &'static str,
    pub(crate) note: &'static str,
}

impl Guarantees {
    pub(crate) const TITLES: [&'static str; 5] = ["acked", "slow reader", "newest", "late reader", "kill -9"];

    /// What the titles mean.
    pub(crate) const LEGEND: &'static str = "\
acked: the writer learns that a record was applied. slow reader: whether what it has not taken is kept, without drops and
without making the writer wait. newest: a reader that lags gets the newest value of a key (conflation). late reader: one that
comes late or again gets the full state. kill -9: of either side; the other goes on, and a new process gets the state.";

    pub(crate) fn answers(&self) -> [&'static str; 5] {
        [self.acked, self.slow_reader, self.newest, self.late_reader, self.killed]
    }
}

/// docs/protocol.md of this repository.
pub(crate) const SHMIRROR: Guarantees = Guarantees {
    acked: "yes",
    slow_reader: "kept, merged",
    newest: "yes",
    late_reader: "yes",
    killed: "yes",
    note: "what is kept for a slow reader is bounded by the items, since changes of one item are merged; intermediate values \
           may be left out. After a kill of the source its replicas keep what they have until a new source has loaded.",
};

/// Dropping and waiting: `enable_safe_overflow` (default true, src/config.rs) and `BackpressureStrategy`
/// (src/port/backpressure_strategy.rs); history: `history_size` (src/service/builder/publish_subscribe.rs, default 0); the
/// blackboard: src/service/messaging_pattern.rs, its keys: `Creator::add` (src/service/builder/blackboard.rs).
/// A killed process: `Node` (src/node/mod.rs) finds dead nodes and removes what they held, by default when a node is
/// created or destroyed and when a service is opened (`cleanup_dead_nodes_on_*`, src/config.rs). A limit of it:
/// <https://github.com/eclipse-iceoryx/iceoryx2/issues/1584>.
pub(crate) const ICEORYX2: Guarantees = Guarantees {
    acked: "no",
    slow_reader: "writer waits",
    newest: "no",
    late_reader: "last N samples",
    killed: "cleaned up",
    note: "measured so that the publisher waits for a slow subscriber; by default the oldest sample is dropped instead. The \
           history is by number of samples, not by key. What a killed process held is cleaned up by the others, but its \
           state is not sent again. Its blackboard (not measured) keeps the newest value of each key, of keys that are fixed \
           when it is made.",
};

/// `send` of src/ringbuf.rs writes nothing when the ring is full; each side keeps its index in its own memory, from 0 on
/// (`attach`), and only the count is shared: a new process cannot go on where a killed one was.
pub(crate) const SHMEM_IPC: Guarantees = Guarantees {
    acked: "no",
    slow_reader: "writer waits",
    newest: "no",
    late_reader: "no",
    killed: "new ring needed",
    note: "with a full ring `send` writes nothing, and the writer waits or drops as it likes. Nothing tells that the other \
           side has died; a new process does not know the old one's place in the ring.",
};

/// `push` of src/lib.rs answers `PushError::Full`; `is_abandoned` tells that the other end was dropped.
pub(crate) const RTRB: Guarantees = Guarantees {
    acked: "no",
    slow_reader: "writer waits",
    newest: "no",
    late_reader: "no",
    killed: "both die",
    note: "between threads of one process, not between processes: a lower limit, not an alternative. With a full ring `push` \
           gives the record back.",
};

/// Of Aeron 1.54's sources in C, as rusteron-media-driver has them: a publication's limit is the least position of its subscribers
/// and a window (`aeron_ipc_publication_update_pub_pos_and_lmt`, aeron-driver/src/main/c/aeron_ipc_publication.c), but for one that
/// is not tethered and is left behind; a new one begins at the newest position (`aeron_ipc_publication_join_position`). A client that
/// is not heard of for 10 s is dead (`AERON_CLIENT_LIVENESS_TIMEOUT_NS_DEFAULT`, aeron_driver_context.c).
#[cfg(feature = "aeron")]
pub(crate) const AERON: Guarantees = Guarantees {
    acked: "no",
    slow_reader: "writer waits",
    newest: "no",
    late_reader: "no",
    killed: "cleaned up",
    note: "a stream of messages, which has a driver, a third process, without which nothing works. The writer waits for the slowest \
           subscriber, unless that may be left behind (not tethered); one that comes late begins with what is new, and gets older \
           messages from Aeron Archive only (not measured). What a killed process held is cleaned up ten seconds later, and until \
           then a dead subscriber makes the writer wait, too.",
};

/// A socket of kind `SOCK_SEQPACKET`, written to with a blocking `sendmsg` (src/platform/unix/mod.rs); the receiver gets
/// `IpcError::Disconnected` when all senders are gone (src/error.rs).
pub(crate) const IPC_CHANNEL: Guarantees = Guarantees {
    acked: "no",
    slow_reader: "writer waits",
    newest: "no",
    late_reader: "no",
    killed: "noticed only",
    note: "the other side learns of a death; what was in the socket of a dead receiver is lost.",
};

/// unix(7), socket(7), send(2): a full send buffer blocks, `EPIPE` after the peer's end.
pub(crate) const SEQPACKET: Guarantees = Guarantees {
    acked: "no",
    slow_reader: "writer waits",
    newest: "no",
    late_reader: "no",
    killed: "noticed only",
    note: "the other side learns of a death; what was in the socket of a dead reader is lost.",
};

/// pipe(7): a full pipe blocks, end of file after the last writer's end, `SIGPIPE` and `EPIPE` after the last reader's.
pub(crate) const PIPE: Guarantees = Guarantees {
    acked: "no",
    slow_reader: "writer waits",
    newest: "no",
    late_reader: "no",
    killed: "noticed only",
    note: "the other side learns of a death; what is in a pipe without ends is lost. A reader that dies in the middle of a \
           record leaves half of it to the next one.",
};

/// As a pipe, and what is in the writer's buffer is nowhere else.
pub(crate) const PIPE_BUFFERED: Guarantees = Guarantees {
    note: "as a pipe; in addition a record waits until 16 KiB are full or the writer flushes, and is lost with a writer that \
           dies before.",
    ..PIPE
};

/// mq_overview(7): "POSIX message queues have kernel persistence"; mq_send(3): "If the message queue is already full ...
/// mq_send() blocks until sufficient space becomes available". Of 10 messages without privilege (msg_max).
pub(crate) const MESSAGE_QUEUE: Guarantees = Guarantees {
    acked: "no",
    slow_reader: "writer waits",
    newest: "no",
    late_reader: "no",
    killed: "queue stays",
    note: "the queue and what is in it outlive both processes, and a new one goes on with it; what a killed reader had taken \
           but not applied is lost, and nobody is told of the death.",
};

/// Notifications: "Redis Pub/Sub is fire and forget; that is, if your Pub/Sub client disconnects, and reconnects later, all the
/// events delivered during the time the client was disconnected are lost" (<https://redis.io/topics/notifications/>). The limit
/// for slow subscribers: `client-output-buffer-limit pubsub 32mb 8mb 60` of redis.conf. The full state on attach: the
/// constructor of `SubscriberStateTable`, which subscribes, and then reads all keys. The newest value: a read of the key when
/// its notification is looked at (`pops` there).
pub(crate) const REDIS: Guarantees = Guarantees {
    acked: "no",
    slow_reader: "kept, to a limit",
    newest: "yes",
    late_reader: "yes",
    killed: "yes",
    note: "the state is in the server, a third process, without which nothing works; the writer knows that the server has it. \
           A subscriber that lags by 32 MB of notifications is cut off (not here, where that limit is off), and reads all keys \
           again; keys deleted meanwhile it must find itself. A lagging one reads the newest value, once for each notification.",
};
