#![no_main]

common::fuzz!(payload);
