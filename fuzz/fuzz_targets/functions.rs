//! To be run with `--sanitizer none`: `resolve` reads words anywhere in the program's constant data, also between
//! two constants, and the address sanitizer takes that for an overflow.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| outray::cluster::fuzzing::functions(input));
