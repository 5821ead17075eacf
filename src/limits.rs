//! Hard bounds of the format and the wire, with compile-time assertions between them.
//!
//! Configuration may lower most of these, never raise them: a reader of the log relies on them to
//! bound what it allocates.

/// Unit in which the log reaches the disk: a group starts on a multiple of this and a block that
/// has been synced is never written again in that generation of the segment.
pub const BLOCK: usize = 4096;
/// Records start at multiples of this.
pub const RECORD_ALIGN: usize = 8;
/// Two copies of the file header, each in a block of its own.
pub const FILE_HEADER_BYTES: usize = 2 * BLOCK;
/// Length of the fixed header in front of each record's payload.
pub const RECORD_HEADER_BYTES: usize = 64;
/// Largest payload of one record. `ingest.max_record_size` may not exceed it.
pub const MAX_PAYLOAD: usize = 1 << 30;
/// Smallest data area of a segment.
pub const MIN_SEGMENT_DATA: usize = BLOCK;
/// Largest data area configuration may ask for (`wal.segment_size`).
pub const MAX_SEGMENT_DATA: usize = 1 << 30;

/// Largest number of bytes the committer writes and syncs as one group, unless a single record is larger.
pub const MAX_GROUP_BYTES: usize = 4 << 20;
/// Largest number of records in one group.
pub const MAX_GROUP_RECORDS: usize = 4096;

/// Longest table name in bytes, before escaping.
pub const MAX_TABLE_NAME: usize = 128;
/// Longest table path segment in bytes, after percent escaping.
pub const MAX_ESCAPED_TABLE: usize = 200;
/// Longest database name in bytes.
pub const MAX_DATABASE_NAME: usize = 64;
/// Longest column name in bytes.
pub const MAX_COLUMN_NAME: usize = 256;
/// Columns of one table, whatever configuration says.
pub const MAX_COLUMNS: usize = 16_384;
/// Tables of one request, whatever configuration says.
pub const MAX_TABLES_PER_REQUEST: usize = 65_536;
/// Rows of one table in one request (row numbers are 32 bits in the log).
pub const MAX_ROWS_PER_TABLE: usize = 1 << 27;
/// Nesting of maps and arrays in a MessagePack body.
pub const MAX_NESTING: usize = 64;
/// Longest `Idempotency-Key` in bytes.
pub const MAX_IDEMPOTENCY_KEY: usize = 128;

/// 0001-01-01T00:00:00Z in microseconds since the Unix epoch.
pub const MIN_TIME_US: i64 = -62_135_596_800_000_000;
/// 9999-12-31T23:59:59.999999Z in microseconds since the Unix epoch.
pub const MAX_TIME_US: i64 = 253_402_300_799_999_999;
/// Microseconds in the hour by which Parquet files are partitioned.
pub const HOUR_US: i64 = 3_600_000_000;

const _: () = assert!(BLOCK.is_multiple_of(RECORD_ALIGN) && RECORD_HEADER_BYTES.is_multiple_of(RECORD_ALIGN));
const _: () = assert!(MIN_SEGMENT_DATA >= RECORD_HEADER_BYTES * 2);
const _: () = assert!(MAX_PAYLOAD <= u32::MAX as usize - BLOCK * 2);
const _: () = assert!(MAX_GROUP_BYTES <= MAX_SEGMENT_DATA);
const _: () = assert!(MIN_TIME_US % 1_000_000 == 0 && MIN_TIME_US < MAX_TIME_US);
const _: () = assert!(MAX_ROWS_PER_TABLE <= u32::MAX as usize);
