#![no_main]

common::fuzz!(manifest);
