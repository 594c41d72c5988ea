//! Both ends of a ring, beside a queue.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| shmirror::fuzz::ring_pair(input));
