#![no_main]

common::fuzz!(msgpack);
