//! From the configuration to the settings of each part, for whatever opens a log: the server, a drain.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::clock::SharedClock;
use crate::compact::Layout;
use crate::compact::memory::row_group_bytes;
use crate::compact::plan::{Bounds as PlanBounds, MAX_CHUNKS, MAX_SLICES, PlanSettings};
use crate::compact::worker::{PATIENCE, Settings as CompactSettings};
use crate::config::{self, Config};
use crate::decode::Nested;
use crate::decode::table::Bounds;
use crate::format::manifest::{NodeLimits, PlanWriter};
use crate::http::engine::WriteSettings;
use crate::http::{Origins, Settings as HttpSettings};
use crate::limits::BLOCK;
use crate::metrics::Metrics;
use crate::node::NodeSettings;
use crate::sink::object::{
    AzureSettings, CreateOnly, Driver, Endpoint, GcsSettings, ObjectSettings, RACE_KEYS, Remote, S3Settings, Verify,
};
use crate::sink::{LocalSink, ObjectSink, Sink};
use crate::types::{LargeUnsigned, LogId};
use crate::vfs::{Engine as IoEngine, SyncMode};
use crate::wal::shared::LogSettings;

/// Opens the store that the configuration names, for the files of `log`.
///
/// # Errors
/// Text that names the setting.
pub fn open_sink(config: &Config, log: LogId, metrics: &Arc<Metrics>, clock: &SharedClock) -> Result<Arc<dyn Sink>, String> {
    let s = &config.storage;
    if s.backend == config::Backend::Local {
        let lake = &s.local_path;
        let sink = LocalSink::open(lake, log).map_err(|e| format!("storage.local_path {}: {e}", lake.display()))?;
        return Ok(Arc::new(sink));
    }
    let endpoint = Endpoint { timeout: s.timeout, env: config.cloud.clone(), connector: None };
    // A client library that panics over a setting is an error that names the settings.
    let remote = catch_unwind(AssertUnwindSafe(|| match s.backend {
        config::Backend::Azure => Remote::azure(&azure_settings(config), &endpoint),
        config::Backend::Gcs => Remote::gcs(&gcs_settings(config), &endpoint),
        _ => Remote::s3(&s3_settings(config), &endpoint),
    }));
    let remote =
        remote.unwrap_or_else(|_| Err(format!("storage.{}_*: the client of the store panicked over these settings", s.backend)))?;
    let prefix = match s.backend {
        config::Backend::Azure => &s.azure_prefix,
        config::Backend::Gcs => &s.gcs_prefix,
        _ => &s.s3_prefix,
    };
    let object = ObjectSettings {
        prefix: prefix.trim_matches('/').to_owned(),
        part_size: s.part_size as usize,
        parts_in_flight: s.parts_in_flight,
        puts: s.puts,
        timeout: s.timeout,
        verify: match s.verify {
            config::Verify::Head => Verify::Head,
            config::Verify::Read => Verify::Read,
        },
        create_only: match s.create_only {
            config::CreateOnly::Probe => CreateOnly::Probe,
            config::CreateOnly::Trust => CreateOnly::Trust,
        },
        race_keys: RACE_KEYS,
    };
    let driver = Driver::threads().map_err(|e| format!("starting the threads of the store: {e}"))?;
    Ok(Arc::new(ObjectSink::new(remote, object, log, driver, Arc::clone(metrics), clock.clone())))
}

fn s3_settings(config: &Config) -> S3Settings {
    let s = &config.storage;
    S3Settings {
        bucket: s.s3_bucket.clone(),
        region: s.s3_region.clone(),
        endpoint: s.s3_endpoint.clone(),
        ssl: s.s3_use_ssl,
        path_style: s.s3_path_style,
        access_key: s.s3_access_key.clone(),
        secret_key: s.s3_secret_key.clone(),
        checksums: s.s3_checksums,
    }
}

fn azure_settings(config: &Config) -> AzureSettings {
    let s = &config.storage;
    AzureSettings {
        account: s.azure_account.clone(),
        container: s.azure_container.clone(),
        endpoint: s.azure_endpoint.clone(),
        emulator: s.azure_use_emulator,
        access_key: s.azure_access_key.clone(),
        sas_token: s.azure_sas_token.clone(),
    }
}

fn gcs_settings(config: &Config) -> GcsSettings {
    let s = &config.storage;
    GcsSettings { bucket: s.gcs_bucket.clone(), endpoint: s.gcs_endpoint.clone(), service_account_file: s.gcs_service_account_file.clone() }
}

/// Where the lake is, for people.
pub fn lake_name(config: &Config) -> String {
    let s = &config.storage;
    let (scheme, root, prefix) = match s.backend {
        config::Backend::Local => return s.local_path.display().to_string(),
        config::Backend::S3 => ("s3", s.s3_bucket.clone(), &s.s3_prefix),
        config::Backend::Azure => ("azure", format!("{}/{}", s.azure_account, s.azure_container), &s.azure_prefix),
        config::Backend::Gcs => ("gs", s.gcs_bucket.clone(), &s.gcs_prefix),
    };
    let prefix = prefix.trim_matches('/');
    let place = if prefix.is_empty() { format!("{scheme}://{root}") } else { format!("{scheme}://{root}/{prefix}") };
    if s.backend == config::Backend::S3 && !s.s3_endpoint.is_empty() { format!("{place} at {}", s.s3_endpoint) } else { place }
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
        large_unsigned: match config.ingest.large_unsigned {
            config::LargeUnsigned::Refuse => LargeUnsigned::Refuse,
            config::LargeUnsigned::Saturate => LargeUnsigned::Saturate,
        },
        max_in_flight: config.ingest.max_in_flight as usize,
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
        origins: Origins::of(&config.server.cors_origins),
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
        max_total_columns: config.ingest.max_total_columns,
        max_name_bytes: config.ingest.max_name_bytes as usize,
        idempotency_window: config.ingest.idempotency_window,
        idempotency_max_keys: config.ingest.idempotency_max_keys,
        lake: lake_name(config),
        accept_new_lake: config.storage.accept_new_lake,
        require_existing: config.wal.require_existing,
        host: Some(host_name()),
    }
}

/// The name of this machine.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").map(|n| n.trim().to_owned()).ok();
    name.filter(|n| !n.is_empty()).or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_else(|| "localhost".into())
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
        limits: Some(NodeLimits {
            idempotency_window_ms: config.ingest.idempotency_window.as_millis() as u64,
            idempotency_max_keys: config.ingest.idempotency_max_keys as u64,
        }),
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
            bounds: PlanBounds { bytes: c.trigger_size, rows: c.max_rows, outputs: c.max_outputs, slices: MAX_SLICES, chunks: MAX_CHUNKS },
            writer: PlanWriter {
                version: env!("CARGO_PKG_VERSION").into(),
                compression: c.compression.to_string(),
                level: c.level,
                row_group_rows: c.row_group_rows as u64,
                layout: config.storage.layout.to_string(),
                encoding: Some(c.encoding.to_string()),
                row_group_bytes: Some(row_group_bytes(c.memory)),
            },
            layout,
        },
        workers,
        // A record that is one row takes four times its bytes.
        memory: c.memory.max(4 * config.ingest.max_record_size) as usize,
        patience: PATIENCE,
    }
}
