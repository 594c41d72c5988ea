//! What hostile peers can send, as functions of an input that a fuzzer makes up. The package in `tests/fuzz` calls them,
//! and `seeded` does in `cargo test`. They are not there in any other build.
//!
//! An input is a list of decisions, which [`Choices`] takes from it one after the other, so that each input means something,
//! and a small change of it is a small change of what happens. Each function compares what the production code does with a
//! model of its own, written after the documents and not after the code, and panics if they differ.

#![allow(clippy::missing_panics_doc)]

mod destination;
mod frames;
mod greetings;
mod hostile_memory;
mod ring;
mod ring_pair;
#[cfg(test)]
mod seeded;
mod source;

/// What a run came across, so that a test can tell whether it came across everything.
type Saw<'a> = &'a mut dyn FnMut(&'static str);

/// Records of both rings: what is decoded, and what is not.
pub fn frames(input: &[u8]) {
    frames::run(input, &mut |_| ());
}

/// What either side says before there is a link.
pub fn greetings(input: &[u8]) {
    greetings::run(input, &mut |_| ());
}

/// One end of a ring, whose other end writes whatever it likes whenever it is looked at.
pub fn ring(input: &[u8]) {
    ring::run(input, &mut |_| ());
}

/// Both ends of a ring, beside a queue.
pub fn ring_pair(input: &[u8]) {
    ring_pair::run(input, &mut |_| ());
}

/// A destination whose source sends any records in any order.
pub fn destination(input: &[u8]) {
    destination::run(input, &mut |_| ());
}

/// A source whose destinations acknowledge anything.
pub fn source(input: &[u8]) {
    source::run(input, &mut |_| ());
}

/// Takes decisions from an input. One that is used up decides on zero.
#[derive(Debug)]
struct Choices<'a> {
    rest: &'a [u8],
}

impl<'a> Choices<'a> {
    fn new(input: &'a [u8]) -> Choices<'a> {
        Choices { rest: input }
    }

    fn is_used_up(&self) -> bool {
        self.rest.is_empty()
    }

    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.rest.split_first() else { return 0 };
        self.rest = rest;
        first
    }

    /// A number of so many bytes.
    fn number(&mut self, bytes: u32) -> u64 {
        (0..bytes).fold(0, |number, _| number << 8 | u64::from(self.byte()))
    }

    /// A number below `bound`, which takes no more of the input than it has to.
    fn below(&mut self, bound: u64) -> u64 {
        let bytes = (u64::BITS - (bound - 1).leading_zeros()).div_ceil(8);
        self.number(bytes) % bound
    }

    /// `true` once in so many times.
    fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == times - 1
    }

    /// Where a ring begins: from the middle on, and once in a while across the end of u64.
    fn begin(&mut self) -> u64 {
        (self.number(2) << 4).wrapping_sub(if self.one_in(4) { 1 << 12 } else { 0 }) & !7
    }

    /// So many bytes, or what is left.
    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (bytes, rest) = self.rest.split_at(count.min(self.rest.len()));
        self.rest = rest;
        bytes
    }
}
