#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| outray::cluster::fuzzing::letters(input));
