//! From log to Parquet: what a plan lists becomes files, each row exactly once.

mod builder;
mod chunk;
pub mod columns;
pub mod control;
mod deferred;
mod encodings;
mod footer;
pub mod lake;
pub mod memory;
pub mod name;
mod outputs;
pub mod parquet;
mod paths;
pub mod plan;
pub mod quarantine;
mod release;
mod side;
mod slices;
mod spec;
mod strings;
mod threads;
pub mod worker;
#[cfg(test)]
mod worker_tests;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod lake_tests;
#[cfg(test)]
mod waiting_tests;
#[cfg(test)]
mod memory_tests;
#[cfg(test)]
mod unclean_tests;
#[cfg(test)]
mod bounds_tests;
#[cfg(test)]
mod tests;

pub use columns::SchemaColumn;
pub use name::{Layout, object_name, table_directory};
pub use parquet::{BuildError, Built, CREATED_BY, Codecs, Encodings, OutputSpec, SetAside, WriterSettings, build};
pub use slices::{Payloads, SliceRef};
pub use spec::unknown_setting;
