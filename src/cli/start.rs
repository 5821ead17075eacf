//! What a start needs from outside, tried without starting: directories, port, store, tokens, certificate.
//!
//! Nothing is left behind: a file that shows that a directory can be written is removed at once.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::access::exit_code;
use super::settings;
use crate::auth::Tokens;
use crate::clock::SystemClock;
use crate::config::{Backend, Config};
use crate::http::{Tls, listen};
use crate::metrics::Metrics;
use crate::types::LogId;
use crate::vfs::{OsVfs, SyncMode, Vfs as _, filesystem_risk};
use crate::wal::files;

/// What was tried, and what is wrong with it.
pub type Tried = Vec<(&'static str, Result<String, String>)>;

/// The directory, or the nearest one above it that is there.
fn existing(dir: &Path) -> PathBuf {
    let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_path_buf());
    dir.ancestors().find(|d| d.exists()).unwrap_or(Path::new("/")).to_path_buf()
}

/// The name of the filesystem of a log's directory, if it is one to be warned of.
///
/// # Errors
/// What is on it goes with the machine's memory, and the configuration does not allow that.
pub fn filesystem(config: &Config) -> Result<Option<&'static str>, String> {
    let dir = &config.wal.directory;
    // One that cannot be asked is none that is known.
    let kind = OsVfs.unsafe_filesystem(&existing(dir)).ok().flatten();
    match kind.map(|k| (k, filesystem_risk(k))) {
        Some((kind, risk)) if risk.is_volatile && !config.wal.allow_volatile => Err(format!(
            "wal.directory = {}: expected a disk, found {kind}: {}; use a directory on a disk, or set wal.allow_volatile = true if \
             acknowledged rows may be lost",
            dir.display(),
            risk.text
        )),
        _ => Ok(kind),
    }
}

/// Writes and syncs a file there, and removes it. A directory that is missing would be made: then the one above it must allow that.
fn writable(dir: &Path) -> Result<String, String> {
    let place = existing(dir);
    let shown = place.display();
    if !place.is_dir() {
        return Err(format!("{shown}: expected a directory, found something else"));
    }
    let probe = place.join(format!(".arc-check-{}", std::process::id()));
    let written = OsVfs.create_new(&probe).and_then(|f| {
        f.write_all_at(&[b"arc"], 0)?;
        f.sync(SyncMode::Full)
    });
    let removed = OsVfs.remove(&probe);
    match written.and(removed) {
        Ok(()) if place == std::path::absolute(dir).unwrap_or_else(|_| dir.to_path_buf()) => Ok(format!("{shown} can be written")),
        Ok(()) => Ok(format!("{} would be made in {shown}", dir.display())),
        Err(e) => Err(format!("{shown}: cannot be written: {e}; give it to the user that the server runs as")),
    }
}

fn log_directory(config: &Config) -> Result<String, String> {
    let dir = &config.wal.directory;
    filesystem(config)?;
    let written = writable(dir)?;
    let lock = dir.join(files::LOCK);
    if lock.exists() {
        match OsVfs.lock(&lock) {
            Ok(Some(_)) => {}
            Ok(None) => return Err(format!("{}: another process has this log open", lock.display())),
            Err(e) => return Err(format!("{}: {e}", lock.display())),
        }
    }
    Ok(written)
}

fn tokens(config: &Config) -> Result<String, String> {
    let file = &config.auth.token_file;
    let tokens = Tokens::open(file, SystemClock::shared(), true).map_err(|e| format!("{e} (exit code {})", exit_code(&e)))?;
    if !file.exists() {
        let parent = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        return writable(parent).map(|_| format!("{} would be made by the first start", file.display()));
    }
    Ok(format!("{}: {} tokens", file.display(), tokens.list().len()))
}

fn store(config: &Config) -> Result<String, String> {
    if config.storage.backend == Backend::Local {
        return writable(&config.storage.local_path);
    }
    let clock = SystemClock::shared();
    let sink = settings::open_sink(config, LogId([0; 16]), &Metrics::new(), &clock)?;
    sink.ready().map_err(|e| e.to_string())?;
    Ok(format!("{} answers", settings::lake_name(config)))
}

async fn port(config: &Config) -> Result<String, String> {
    let (host, port) = (&config.server.host, config.server.port);
    match tokio::time::timeout(Duration::from_secs(10), listen(host, port)).await {
        Ok(Ok(_)) => Ok(format!("{host}:{port} can be listened on")),
        Ok(Err(e)) => Err(listen_error(config, &e).0),
        Err(_) => Err(format!("server.host = {host}: not resolved within 10s")),
    }
}

/// What to say when nothing can be listened on, and whether the configuration cannot work: another process may end, a name may be resolved
/// later; an address that is not this machine's stays so.
pub fn listen_error(config: &Config, e: &std::io::Error) -> (String, bool) {
    let (host, port) = (&config.server.host, config.server.port);
    let (hint, is_config) = match e.kind() {
        std::io::ErrorKind::AddrInUse => ("stop what uses it, or choose another server.port", false),
        std::io::ErrorKind::AddrNotAvailable => {
            ("server.host is no address of this machine; use one of its own, or 0.0.0.0 or [::] for all", true)
        }
        std::io::ErrorKind::PermissionDenied => {
            ("ports below 1024 need a right that this process has not; choose another server.port", true)
        }
        // The library says in its text alone whether asking again may help.
        _ if e.raw_os_error().is_none() && !e.to_string().contains("Temporary failure") => {
            ("server.host is not a name that can be resolved", true)
        }
        _ => ("choose another server.host or server.port", false),
    };
    (format!("cannot listen on {host}:{port}: {e}; {hint}"), is_config)
}

/// Tries everything.
///
/// # Errors
/// No thread can be started.
pub fn try_start(config: &Config) -> Result<Tried, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| format!("starting the runtime: {e}"))?;
    let mut tried: Tried = vec![("wal.directory", log_directory(config)), ("storage", store(config))];
    tried.push(("server.host, server.port", runtime.block_on(port(config))));
    if config.server.tls_enabled {
        let s = &config.server;
        let tls = Tls::open(&s.tls_cert_file, &s.tls_key_file).map_err(|e| e.to_string());
        tried.push(("server.tls_*", tls.map(|_| format!("{} and its key fit", s.tls_cert_file.display()))));
    }
    if config.auth.enabled {
        tried.push(("auth.token_file", tokens(config)));
    }
    Ok(tried)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &Path) -> Config {
        let mut c = Config::default();
        c.wal.directory = dir.join("a/wal");
        c.storage.local_path = dir.join("b/lake");
        c.auth.token_file = dir.join("c/tokens.json");
        c.server.port = 0;
        // Wherever the tests keep their files.
        c.wal.allow_volatile = true;
        c
    }

    #[test]
    fn filesystem_of_a_container_or_a_network_is_named() {
        for (name, is_volatile, says) in [
            ("tmpfs", true, "memory"),
            ("ramfs", true, "memory"),
            ("overlayfs", false, "mount a volume"),
            ("9p", false, "local disk"),
            ("ceph", false, "local disk"),
            ("fuse", false, "local disk"),
            ("btrfs (copy-on-write)", false, "full disk"),
        ] {
            let risk = filesystem_risk(name);
            assert!(risk.is_volatile == is_volatile && risk.text.contains(says), "{name}: {risk:?}");
        }
    }

    #[test]
    fn start_that_would_work_is_tried_without_a_trace() {
        let dir = tempfile::tempdir().unwrap();
        let mut c = config(dir.path());
        c.auth.enabled = true;
        let tried = try_start(&c).unwrap();
        assert!(tried.len() == 4 && tried.iter().all(|(_, r)| r.is_ok()), "{tried:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn each_thing_that_would_stop_a_start_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut c = config(dir.path());
        std::fs::write(dir.path().join("a"), "").unwrap();
        std::fs::create_dir(dir.path().join("c")).unwrap();
        std::fs::write(&c.auth.token_file, "{").unwrap();
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        c.server.port = taken.local_addr().unwrap().port();
        (c.auth.enabled, c.server.tls_enabled) = (true, true);
        c.server.tls_cert_file = dir.path().join("none");
        let tried = try_start(&c).unwrap();
        let wrong: Vec<&str> = tried.iter().filter(|(_, r)| r.is_err()).map(|(what, _)| *what).collect();
        assert_eq!(wrong, ["wal.directory", "server.host, server.port", "server.tls_*", "auth.token_file"], "{tried:?}");
        drop(taken);

        let c = config(&dir.path().join("d"));
        std::fs::create_dir_all(&c.wal.directory).unwrap();
        let held = OsVfs.lock(&c.wal.directory.join(files::LOCK)).unwrap();
        let tried = try_start(&c).unwrap();
        assert!(tried[0].1.as_ref().unwrap_err().contains("another process has this log open"), "{tried:?}");
        drop(held);
    }

    #[test]
    fn address_that_is_not_this_machines_is_a_fault_of_the_configuration() {
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut c = Config::default();
        c.server.port = 0;
        c.server.host = "192.0.2.1".into();
        let e = rt.block_on(listen(&c.server.host, 0)).unwrap_err();
        assert!(listen_error(&c, &e).1, "{e}");
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        c.server.host = "127.0.0.1".into();
        let e = rt.block_on(listen(&c.server.host, taken.local_addr().unwrap().port())).unwrap_err();
        assert!(!listen_error(&c, &e).1, "{e}");
    }
}
