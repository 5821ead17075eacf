//! Durable ingest: HTTP requests are validated, appended to a segmented write-ahead log, acknowledged once they are
//! on stable storage, and compacted into Parquet files, each acknowledged row exactly once.
//!
//! The library is what the binary `arc` is made of ([`cli`]); its parts can be used alone:
//!
//! * [`mod@format`] reads and writes the log's bytes, without files: the published format, see `wal-format.md`.
//! * [`wal`] is the log: [`wal::Appender`] puts records in, [`wal::recover::inspect`] looks at a log without touching it.
//! * [`compact`] turns records into Parquet: [`compact::build`] makes one file, [`compact::worker`] carries out plans.
//! * [`http`] serves whatever implements [`http::Backend`].
//!
//! Reading the records of one segment:
//!
//! ```no_run
//! use arc_ingest::format::file_header::{FileHeader, FileKind};
//! use arc_ingest::format::payload::PayloadView;
//! use arc_ingest::format::record::RecordKind;
//! use arc_ingest::format::scan::{Known, Scanner, judge};
//! use arc_ingest::limits::FILE_HEADER_BYTES;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let bytes = std::fs::read("data/wal/seg-0000000000000001.wal")?;
//! let head = bytes.get(..FILE_HEADER_BYTES).ok_or("shorter than a header")?;
//! let (header, _) = FileHeader::parse_file(head, FileKind::Segment).map_err(|[a, b]| format!("{a}; {b}"))?;
//! let found: Vec<_> = Scanner::new(&bytes, header.salt, FILE_HEADER_BYTES as u64, bytes.len() as u64).collect();
//! let verdict = judge(Known { first_sequence: header.first_sequence, declared: None, floor: 0 }, &found);
//! for r in verdict.records.iter().filter(|r| r.kind == RecordKind::Write) {
//!     let payload = PayloadView::parse(Scanner::payload(&bytes, r))?;
//!     println!("{}: {} rows for {}", r.sequence, payload.index.rows(), payload.index.database);
//! }
//! for f in &verdict.findings {
//!     println!("offset {}: {}: expected {}, found {}", f.from, f.label.name(), f.expected, f.found);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The modules below stand in layer order: a module imports only from those above it.

pub mod limits;
pub mod types;
pub mod error;
pub mod clock;
pub mod sync;
pub mod log_limit;
pub mod log_writer;

pub mod config;
pub mod metrics;
pub mod names;
pub mod batch;
pub mod format;
pub mod vfs;
pub mod wal;
pub mod catalog;
pub mod idempotency;
pub mod decode;
pub mod sink;
pub mod compact;
pub mod node;
pub mod auth;
pub mod http;
pub mod tools;
pub mod cli;

#[cfg(test)]
mod doc_test;
