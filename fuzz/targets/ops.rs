#![no_main]

common::fuzz!(ops);
