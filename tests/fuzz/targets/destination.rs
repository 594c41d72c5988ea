//! A destination whose source sends any records in any order.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| shmirror::fuzz::destination(input));
