#![no_main]

common::fuzz!(scan);
