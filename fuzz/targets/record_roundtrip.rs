#![no_main]

common::fuzz!(record_roundtrip);
