//! A ring of variable-size records from one producer to one consumer, over memory that it is given.
//!
//! # What it is
//!
//! [`Producer`] and [`Consumer`] are the two ends of one ring. They live in different processes and share
//! nothing but five words and the data bytes, which they reach through [`ProducerMemory`] and
//! [`ConsumerMemory`]: a mapping in production, a heap in tests, checked cells in the concurrency models. The
//! algorithm is the same code in all of them, and it is free of `unsafe`.
//!
//! # How it works
//!
//! Positions are byte counts (u64) that only grow; the place in the ring is `(position - start) & (capacity - 1)`. At a
//! gigabyte a second a position takes five centuries to wrap, so callers may compare positions as plain
//! numbers. (Inside the ring all distances are wrapping ones, which costs nothing, so the ring itself would
//! survive it.)
//!
//! ```text
//!                 head                    published      tail = written
//!                  |                          |           |
//!  ----------------+--------------------------+-----------+------------------
//!   left the ring  | readable by the consumer |  staged   |  free, up to head + capacity
//!  ----------------+--------------------------+-----------+------------------
//!
//!  record   | length: u32 | kind: u32 | payload: length bytes | 0 to 7 bytes | the next one
//!           ^ a multiple of 8                                                ^ a multiple of 8
//! ```
//!
//! A record lies in one piece. One that does not fit before the end of the ring is preceded by a padding
//! record that fills the ring up to its end. The largest record takes a quarter of the ring, so such padding and
//! record together never take more than half of it and always fit when the consumer has caught up.
//!
//! A ring that has run empty does not go on through memory that no near cache has: when the producer sees that the consumer has
//! released everything, it begins anew at the ring's start. From then on places are counted from that position, the start. It stores that in its start
//! word with the next tail, and the consumer, which must be there, takes it over. When the producer looks is for its caller to say
//! ([`Producer::look`]: when it costs nothing); behind some KiB it does so by itself.
//!
//! The producer stages records, one by one or as a run, and publishes a batch of them with one store of its cursor. The consumer
//! copies records out one by one and hands their room back with one store of its own cursor. Each side keeps
//! a copy of the other's cursor and looks again only when the ring seems full or empty, or when the cursor is at hand, so that
//! cache lines travel once per batch rather than once per record.
//!
//! A consumer that looks in vain may meanwhile give up cache lines that it has read, if the producer is quicker then: see
//! [`eviction`]. That is the only thing here that depends on time, which the caller says.
//!
//! A side that finds nothing to do may sleep. It says so in its waits word, looks once more, and sleeps; the
//! other side, after it has published or released, asks whether the peer must be rung: see [`handshake`].
//! The doorbell itself belongs to the caller, it must
//! - stay signalled until the sleeper takes the signal (a socket, a pipe), and
//! - be drained only after a sleep or before `start_waiting`, never between `start_waiting` and the sleep:
//!   the one ring of that generation may already be in it.
//!
//! # Invariants
//!
//! 1. `head <= published <= tail <= head + capacity`, all of them multiples of 8; `start <= tail`, and the consumer's start is the
//!    producer's, at the latest when it has seen a tail behind that.
//! 2. Bytes from `head` to `published` are not written. The producer publishes by a Release store of the tail
//!    and the consumer acquires it before it reads them.
//! 3. Bytes from `tail` to `head + capacity` are not read. The consumer releases by a Release store of the
//!    head and the producer acquires it before it overwrites them.
//! 4. A header is never split, a payload is never split, padding reaches exactly to the end of the ring and
//!    is published together with the record behind it.
//! 5. A side never reads back what it wrote, and believes nothing that the peer wrote: cursors are checked by
//!    distance, headers are copied once, checked, and used from the copy. Nonsense is a [`RingError`],
//!    never a panic, and each call makes a bounded number of accesses, whatever the peer does.
//! 6. After a wake-up a side starts a new generation before it sleeps again; each generation is rung at most
//!    once.
//!
//! # Who writes what
//!
//! | shared                         | written by | how                                       |
//! |--------------------------------|------------|-------------------------------------------|
//! | tail (the producer's cursor)   | producer   | Release, by [`Producer::publish`]         |
//! | start (where it began anew)    | producer   | Relaxed, before the tail                  |
//! | data                           | producer   | plain copies, before the tail              |
//! | the producer's waits word      | producer   | Relaxed, then a SeqCst fence              |
//! | head (the consumer's cursor)   | consumer   | Release, by [`Consumer::store_released`]  |
//! | the consumer's waits word      | consumer   | Relaxed, then a SeqCst fence              |
//!
//! # What it does not do
//!
//! It knows nothing of frames, sleeps nowhere, owns no doorbell and no mapping, and does not notice the
//! peer's death. An end cannot be replaced while the other lives on: both begin together with their memory,
//! whose words then hold the first position (cursors), the last multiple of the capacity up to there (start) and zero (waits). It
//! does not hide the data from the consumer's process before they are published: memory that is mapped can be read.

mod combine;
mod consumer;
mod error;
mod eviction;
mod handshake;
mod layout;
mod memory;
mod producer;

#[cfg(any(test, fuzzing))]
pub(crate) mod heap;
#[cfg(test)]
mod hostile;
#[cfg(test)]
pub(crate) mod loom_memory;
#[cfg(test)]
pub(crate) mod models;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use consumer::Consumer;
pub use error::RingError;
pub(crate) use layout::{NEAR_BYTES, max_payload_bytes, record_bytes};
pub(crate) use memory::{ConsumerMemory, Memory, ProducerMemory, RecordPieces, Word, pieces_bytes};
pub(crate) use producer::Producer;
