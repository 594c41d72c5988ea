//! One end of a ring, whose other end writes whatever it likes whenever it is looked at.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| shmirror::fuzz::ring(input));
