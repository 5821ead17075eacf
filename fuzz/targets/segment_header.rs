#![no_main]

common::fuzz!(segment_header);
