//! What either side says before there is a link.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| shmirror::fuzz::greetings(input));
