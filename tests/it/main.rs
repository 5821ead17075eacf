//! The one integration test binary: the real server process, through HTTP to Parquet, and rules over the source.
#![allow(clippy::unwrap_used)]

mod accepted;
mod access;
mod bad_inputs;
mod core;
mod corpus;
mod damage;
mod drain;
mod exactly_once;
mod golden;
mod known_errors;
mod lake;
mod layering;
mod lifecycle;
mod line_protocol;
mod line_protocol_cases;
mod line_protocol_oracle;
mod log_model;
mod mem_vfs;
mod msgpack;
mod notify;
mod openapi;
mod operations;
mod outside;
mod server;
mod sim;
