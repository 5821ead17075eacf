//! What tests of the log, and of what reads it, build logs with.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::Appender;
use super::recover::{OpenError, OpenedLog, open};
use super::shared::LogSettings;
use crate::batch::{TableBatch, ValidBatch};
use crate::clock::SystemClock;
use crate::format::payload::{EncodedRecord, PayloadView, encode};
use crate::metrics::Metrics;
use crate::sync::Mutex;
use crate::types::Sequence;
use crate::vfs::{Engine, OsVfs, SyncMode, Vfs};

pub(crate) fn settings(dir: &Path, data: u64, engine: Engine) -> LogSettings {
    LogSettings {
        directory: dir.to_path_buf(),
        segment_data: data,
        max_size: 64 << 20,
        reserve: 4096,
        pool: 2,
        engine,
        sync: SyncMode::Data,
        queue_timeout: Duration::from_secs(2),
        mark_delay: Duration::from_millis(5),
        queue_bytes: 1 << 20,
        set_aside_damage: true,
        limits: None,
    }
}

/// A record of one table with `rows` rows that all carry `id` as their time.
pub(crate) fn record(id: i64, rows: usize) -> EncodedRecord {
    // Distinct times defeat the frame of reference, so that the size follows the rows.
    let time = (0..rows as i64).map(|i| id + i * (1 << 40)).collect();
    let t = TableBatch { table: "t".into(), time, columns: vec![] };
    encode(&ValidBatch::new("db".into(), vec![t]).unwrap(), None, false, 7, 1 << 26).unwrap()
}

pub(crate) fn vfs() -> Arc<dyn Vfs> {
    Arc::new(OsVfs)
}

/// Opens the log; also gives the (sequence, id) pairs that recovery visited.
pub(crate) fn reopen(s: LogSettings) -> Result<(OpenedLog, Vec<(Sequence, i64)>), OpenError> {
    let mut seen = Vec::new();
    let log = open(
        &vfs(),
        s,
        SystemClock::shared(),
        Metrics::new(),
        &mut |v| {
            let b = PayloadView::parse(v.payload).unwrap().to_batch().unwrap();
            seen.push((v.header.sequence, b.tables()[0].time[0]));
        },
        &mut |_| {},
    )?;
    Ok((log, seen))
}

pub(crate) struct Running {
    appender: Appender,
    pub(crate) log: Arc<super::Shared>,
    /// Committer and preallocator.
    threads: Vec<std::thread::JoinHandle<()>>,
    pub(crate) prealloc: Arc<super::prealloc::Preallocator>,
    pub(crate) manifest: Mutex<super::manifest::Manifest>,
    _lock: Box<dyn std::any::Any + Send + Sync>,
}

impl Running {
    pub(crate) fn start(o: OpenedLog) -> Self {
        let committer = o.committer;
        let p = Arc::clone(&o.prealloc);
        let threads = vec![std::thread::spawn(move || committer.run()), std::thread::spawn(move || p.run())];
        Self {
            appender: Appender::new(Arc::clone(&o.shared)),
            log: o.shared,
            threads,
            prealloc: o.prealloc,
            manifest: Mutex::new(o.manifest),
            _lock: o.lock,
        }
    }

    pub(crate) fn append(&self, id: i64, rows: usize) -> Sequence {
        self.append_record(record(id, rows))
    }

    pub(crate) fn append_record(&self, record: EncodedRecord) -> Sequence {
        let rt = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        rt.block_on(self.appender.append(record, None)).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.prealloc.stop();
        self.log.close_queue();
        // Nothing of the log changes after this.
        for t in self.threads.drain(..) {
            t.join().unwrap();
        }
    }
}
