#![no_main]

common::fuzz!(compression);
