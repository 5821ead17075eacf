#![no_main]

common::fuzz!(recover_dir);
