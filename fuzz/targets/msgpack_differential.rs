#![no_main]

common::fuzz!(msgpack_differential);
