//! Entries of the manifest: what is planned, intended, committed and released, and the checkpoints of catalog and keys.
//!
//! The manifest has the log's framing (file header, record headers, groups, marks); the payload of an entry record is
//! one JSON object, of a keys record the binary list described at [`put_keys`]. `wal-format.md` section "Manifest".

use serde::{Deserialize, Serialize};

use super::bytes::{Parsed, Reader, Writer};
use super::payload::{KeyEntry, get_key, put_key};
use crate::types::{ColumnType, Hour, Sequence};

/// A segment as a plan names it. `end` and `last_sequence` are its declared end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanInput {
    pub segment: u64,
    pub salt: u64,
    pub end: u64,
    pub first_sequence: Sequence,
    pub last_sequence: Sequence,
}

/// A column of a file to be written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanColumn {
    pub name: String,
    #[serde(rename = "type")]
    pub ty: u8,
    pub tag: bool,
}

impl PlanColumn {
    pub fn column_type(&self) -> Option<ColumnType> {
        ColumnType::from_u8(self.ty)
    }
}

/// One schema of one table: a table whose column was widened within the plan has one for each side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanSchema {
    pub database: String,
    pub table: String,
    /// How often the table's columns had been widened.
    pub version: u32,
    pub columns: Vec<PlanColumn>,
}

/// One file to be written: index `n` of the plan's outputs is the last part of its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanOutput {
    /// Index into the plan's schemas.
    pub schema: u32,
    pub hour: Hour,
    /// Only records from this sequence on, up to `last_sequence`.
    pub first_sequence: Sequence,
    pub last_sequence: Sequence,
    pub rows: u64,
    pub name: String,
}

/// How the files of a plan are written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanWriter {
    pub version: String,
    pub compression: String,
    pub level: i32,
    pub row_group_rows: u64,
    pub layout: String,
    /// Which encodings of values the files may have. None in plans of format 1.0, which means "compact".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<String>,
    /// Bytes of raw columns of a row group. Versions that do not say it had 128 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row_group_bytes: Option<u64>,
}

/// A run of sealed segments and the files made from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// From 1, contiguous.
    pub plan: u64,
    pub first_sequence: Sequence,
    pub last_sequence: Sequence,
    pub inputs: Vec<PlanInput>,
    pub writer: PlanWriter,
    pub schemas: Vec<PlanSchema>,
    pub outputs: Vec<PlanOutput>,
}

/// A slice that could not be turned into Parquet: its bytes are in the quarantine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAside {
    pub sequence: Sequence,
    pub rows: u64,
    pub reason: String,
}

/// A file that was about to be published, or is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputFile {
    pub length: u64,
    pub sha256: String,
    pub rows: u64,
    pub set_aside: Vec<SetAside>,
}

impl OutputFile {
    pub fn intent(self, plan: u64, output: u32) -> Entry {
        let Self { length, sha256, rows, set_aside } = self;
        Entry::Intent { plan, output, length, sha256, rows, set_aside }
    }

    pub fn commit(self, plan: u64, output: u32) -> Entry {
        let Self { length, sha256, rows, set_aside } = self;
        Entry::Commit { plan, output, length, sha256, rows, set_aside }
    }
}

/// A deferred output of a shipped plan. Since 1.1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingOutput {
    pub plan: u64,
    pub output: u32,
    /// Bytes of its side segment.
    pub bytes: u64,
    /// Of the plan.
    pub first_sequence: Sequence,
    pub last_sequence: Sequence,
    pub writer: PlanWriter,
    /// As in the plan; its `schema` is 0, the one of the entry.
    pub file: PlanOutput,
    pub intents: Vec<OutputFile>,
    pub suspects: Vec<Sequence>,
}

/// What the manifest knows of the newest segment from which rows were acknowledged. Since 1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentEntry {
    pub segment: u64,
    pub salt: u64,
    pub first_sequence: Sequence,
    /// Every sequence through this one was durable when the entry was written.
    pub durable: Sequence,
}

/// Limits of the node that a promise to its clients rests on: whoever takes up its log keeps them. Since 1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLimits {
    /// For how long of the log's running time a key is remembered.
    pub idempotency_window_ms: u64,
    /// How many keys are remembered.
    pub idempotency_max_keys: u64,
}

/// A column definition as the catalog remembers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnEntry {
    pub name: String,
    #[serde(rename = "type")]
    pub ty: u8,
    pub tag: bool,
    /// Sequence of the record that defined the column.
    pub since: Sequence,
    /// Sequence of the record that widened it from int64 to float64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub widened: Option<Sequence>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableEntry {
    pub database: String,
    pub table: String,
    pub since: Sequence,
    pub columns: Vec<ColumnEntry>,
}

/// One record of the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case")]
pub enum Entry {
    /// The log was opened by a server for the `epoch`th time. `segment`: the newest segment then, 0 while there is none.
    Opened {
        epoch: u64,
        running_ms: u64,
        segment: u64,
    },
    Plan(Plan),
    /// A build of the plan is about to begin.
    Attempt {
        plan: u64,
    },
    /// The build was left in good order: the attempt did not end uncleanly.
    Stopped {
        plan: u64,
    },
    /// The process ended uncleanly while the record `sequence` of output `output` was being tried on its own.
    Suspect {
        plan: u64,
        output: u32,
        sequence: Sequence,
    },
    /// The file of an output is complete and about to be published.
    Intent {
        plan: u64,
        output: u32,
        length: u64,
        sha256: String,
        rows: u64,
        set_aside: Vec<SetAside>,
    },
    /// The output is published under its final name and durable. An output of which every row was set aside has no file (`length` 0).
    Commit {
        plan: u64,
        output: u32,
        length: u64,
        sha256: String,
        rows: u64,
        set_aside: Vec<SetAside>,
    },
    /// The records of an output that cannot be published now are in a side segment of their own; its commit follows some day.
    Deferred {
        plan: u64,
        output: u32,
        bytes: u64,
    },
    /// All outputs of the plan are committed or deferred.
    Shipped {
        plan: u64,
        last_sequence: Sequence,
    },
    /// The tables as defined or changed by records through `last_sequence`, those named by `tables` replaced.
    Catalog {
        last_sequence: Sequence,
        tables: Vec<TableEntry>,
    },
    /// What the node has promised. Since 1.1.
    Limits(NodeLimits),
    /// Rows of this segment are about to be acknowledged. Since 1.1.
    Segment(SegmentEntry),
    /// Segments through `segment` may be removed; catalog and keys through `last_sequence` stand in this manifest.
    Released {
        segment: u64,
        last_sequence: Sequence,
    },
    /// Every sequence through this one was durable when the server stopped in good order.
    Durable {
        sequence: Sequence,
        running_ms: u64,
    },
    /// Outputs of shipped plans that are still deferred, all of one schema. Since 1.1.
    Waiting {
        schema: PlanSchema,
        outputs: Vec<WaitingOutput>,
    },
    /// Damage reported by a recovery, so that it is counted once.
    Damage {
        segment: u64,
        from: u64,
        to: u64,
        label: String,
        first_missing: Sequence,
        last_missing: Sequence,
    },
}

impl Entry {
    /// # Errors
    /// What serde_json says; never for an entry made here.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// # Errors
    /// What serde_json says of the bytes.
    pub fn decode(payload: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(payload)
    }
}

/// A key together with the sequence of the record that stored it.
pub type StoredKey = (Sequence, KeyEntry);

/// Payload of a keys record: varint count, then for each key varint sequence, 16-byte id, 32-byte body hash, status as
/// 16 bits, varint running milliseconds.
pub fn put_keys(keys: &[StoredKey]) -> Vec<u8> {
    let mut out = Vec::with_capacity(keys.len() * 60 + 10);
    out.put_varint(keys.len() as u64);
    for (sequence, k) in keys {
        out.put_varint(*sequence);
        put_key(&mut out, k);
    }
    out
}

/// # Errors
/// [`super::bytes::Malformed`] with the offset within the payload.
pub fn get_keys(payload: &[u8]) -> Parsed<Vec<StoredKey>> {
    let mut r = Reader::new(payload);
    let n = r.count(52, "key count")?;
    let mut keys = Vec::with_capacity(n);
    for _ in 0..n {
        let sequence = r.varint("key sequence")?;
        keys.push((sequence, get_key(&mut r)?));
    }
    r.finish("the end of the keys")?;
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_and_keys_round_trip() {
        let e = Entry::Intent {
            plan: 1,
            output: 2,
            length: 3,
            sha256: "ab".into(),
            rows: 4,
            set_aside: vec![SetAside { sequence: 9, rows: 1, reason: "x".into() }],
        };
        assert_eq!(Entry::decode(&e.encode().unwrap()).unwrap(), e);
        // A plan is compared with its object in the store byte by byte.
        let old = br#"{"version":"0.1.0","compression":"zstd","level":1,"row_group_rows":1048576,"layout":"hive"}"#;
        let writer: PlanWriter = serde_json::from_slice(old).unwrap();
        assert_eq!((writer.encoding.as_deref(), serde_json::to_vec(&writer).unwrap()), (None, old.to_vec()));
        let keys = vec![(5, KeyEntry { id: [1; 16], body: [2; 32], running_ms: 3, status: 204 }); 3];
        let b = put_keys(&keys);
        assert_eq!(get_keys(&b).unwrap(), keys);
        for n in 0..b.len() {
            assert!(get_keys(&b[..n]).is_err());
        }
    }
}
