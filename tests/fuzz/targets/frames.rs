//! Records of both rings: what is decoded, and what is not.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| shmirror::fuzz::frames(input));
