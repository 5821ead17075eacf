#![no_main]

common::fuzz!(http);
