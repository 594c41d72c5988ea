//! A source whose destinations acknowledge anything.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| shmirror::fuzz::source(input));
