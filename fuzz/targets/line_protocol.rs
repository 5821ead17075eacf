#![no_main]

common::fuzz!(line_protocol);
