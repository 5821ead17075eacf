//! From the configuration to the settings of each part, for whatever opens a log: the server, a drain.

use std::sync::Arc;

use crate::compact::Layout;
use crate::compact::plan::{Bounds as PlanBounds, PlanSettings};
use crate::compact::worker::Settings as CompactSettings;
use crate::config::{self, Config};
use crate::decode::Nested;
use crate::decode::table::Bounds;
use crate::format::manifest::PlanWriter;
use crate::http::Settings as HttpSettings;
use crate::http::engine::WriteSettings;
use crate::limits::BLOCK;
use crate::node::NodeSettings;
use crate::sink::{LocalSink, Sink};
use crate::types::LogId;
use crate::vfs::{Engine as IoEngine, SyncMode};
use crate::wal::shared::LogSettings;

/// How long a first look at a row group's columns may grow in memory, in bytes.
const ROW_GROUP_BYTES: usize = 128 << 20;

/// Opens the store that the configuration names, for the files of `log`.
///
/// # Errors
/// Text that names the setting.
pub fn open_sink(config: &Config, log: LogId) -> Result<Arc<dyn Sink>, String> {
    let lake = &config.storage.local_path;
    let sink = LocalSink::open(lake, log).map_err(|e| format!("storage.local_path {}: {e}", lake.display()))?;
    Ok(Arc::new(sink))
}

fn nested(config: &Config) -> Nested {
    match config.ingest.nested {
        config::Nested::Json => Nested::Json,
        config::Nested::Reject => Nested::Reject,
    }
}

pub fn write_settings(config: &Config) -> WriteSettings {
    WriteSettings {
        max_payload_size: config.server.max_payload_size as usize,
        max_inflated_size: config.ingest.max_inflated_size as usize,
        max_record_size: config.ingest.max_record_size as usize,
        bounds: Bounds {
            max_columns: config.ingest.max_columns,
            max_tables: config.ingest.max_tables,
            max_partitions: config.ingest.max_partitions,
            max_bytes: config.ingest.max_record_size as usize,
        },
        nested: nested(config),
        hive_names: config.storage.layout == config::Layout::Hive,
    }
}

pub fn http_settings(config: &Config) -> HttpSettings {
    HttpSettings {
        max_payload_size: config.server.max_payload_size as usize,
        max_in_flight: config.ingest.max_in_flight as usize,
        header_timeout: config.server.header_timeout,
        read_timeout: config.server.read_timeout,
        idle_timeout: config.server.idle_timeout,
        // The rest is for shipping and for the last mark.
        shutdown_timeout: config.server.shutdown_timeout / 2,
        max_connections: config.server.max_connections,
        ..HttpSettings::default()
    }
}

pub fn node_settings(config: &Config) -> NodeSettings {
    NodeSettings {
        log: log_settings(config),
        compact: compact_settings(config),
        paused: config.compaction.paused,
        max_columns: config.ingest.max_columns,
        max_tables: config.ingest.max_tables,
        idempotency_window: config.ingest.idempotency_window,
        idempotency_max_keys: config.ingest.idempotency_max_keys,
        lake: config.storage.local_path.display().to_string(),
        accept_new_lake: config.storage.accept_new_lake,
    }
}

fn log_settings(config: &Config) -> LogSettings {
    LogSettings {
        directory: config.wal.directory.clone(),
        segment_data: config.wal.segment_size.next_multiple_of(BLOCK as u64),
        max_size: config.wal.max_size,
        reserve: config.wal.reserve,
        pool: config.wal.pool,
        engine: match config.wal.io {
            config::WalIo::Auto | config::WalIo::Pwrite => IoEngine::Pwrite,
            config::WalIo::Mmap => IoEngine::Mmap,
        },
        sync: match config.wal.sync_mode {
            config::SyncMode::Fdatasync => SyncMode::Data,
            config::SyncMode::Fsync => SyncMode::Full,
            config::SyncMode::UnsafeNone => SyncMode::UnsafeNone,
        },
        queue_timeout: config.wal.queue_timeout,
        mark_delay: config.wal.mark_delay,
        queue_bytes: config.ingest.max_in_flight as usize,
        set_aside_damage: config.wal.on_damage == config::OnDamage::SetAside,
    }
}

fn compact_settings(config: &Config) -> CompactSettings {
    let c = &config.compaction;
    let layout = match config.storage.layout {
        config::Layout::Hive => Layout::Hive,
        config::Layout::Arc => Layout::Arc,
    };
    let workers = if c.workers == 0 { std::thread::available_parallelism().map_or(2, usize::from) } else { c.workers };
    CompactSettings {
        trigger_size: c.trigger_size,
        max_delay: c.max_delay,
        plan: PlanSettings {
            bounds: PlanBounds { bytes: c.trigger_size, rows: c.max_rows, outputs: c.max_outputs },
            writer: PlanWriter {
                version: env!("CARGO_PKG_VERSION").into(),
                compression: c.compression.to_string(),
                level: c.level,
                row_group_rows: c.row_group_rows as u64,
                layout: config.storage.layout.to_string(),
            },
            layout,
        },
        workers,
        row_group_bytes: ROW_GROUP_BYTES,
    }
}
