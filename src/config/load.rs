//! Reads the layers, and checks what came out.

use super::cloud::CloudVariables;
use super::keys::{Backend, Compression, Config, KEYS, Key, SyncMode, find};
use super::paths::{is_within, mistaken, real};
use super::value::{Kind, show_size};
use super::{ConfigError, LoadOptions, Origin, Origins, Warning};
use crate::limits;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// Variables beside `ARC_SECTION_KEY` that mean something to us.
const OTHER_VARIABLES: [&str; 2] = ["ARC_LOG", "ARC_AUTH_BOOTSTRAP_TOKEN"];

impl Config {
    /// Reads every layer and checks the result.
    ///
    /// # Errors
    /// [`ConfigError`], naming the key, where it stands, what was expected and what was found.
    pub fn load(options: &LoadOptions) -> Result<(Self, Origins, Vec<Warning>), ConfigError> {
        let mut config = Self::default();
        let mut origins = Origins::new();
        let mut warnings = Vec::new();
        if let Some((path, text)) = read_file(options)? {
            apply_file(&mut config, &mut origins, &path, &text)?;
            origins.file = Some(path);
        }
        apply_env(&mut config, &mut origins, &mut warnings, options)?;
        for set in &options.sets {
            apply_set(&mut config, &mut origins, set)?;
        }
        let block = limits::BLOCK as u64;
        config.wal.segment_size = config.wal.segment_size.next_multiple_of(block);
        config.cloud = CloudVariables::read(&config, &options.env)?;
        check(&config, &origins, &mut warnings)?;
        Ok((config, origins, warnings))
    }
}

fn read_file(options: &LoadOptions) -> Result<Option<(PathBuf, String)>, ConfigError> {
    if let Some(path) = &options.config_path {
        let text =
            std::fs::read_to_string(options.cwd.join(path)).map_err(|source| ConfigError::Unreadable { path: path.clone(), source })?;
        return Ok(Some((path.clone(), text)));
    }
    // Shown as people know them, read from where they are.
    for (shown, path) in [(Path::new("./arc.toml"), options.cwd.join("arc.toml")), (&options.system_file, options.system_file.clone())] {
        match std::fs::read_to_string(path) {
            Ok(text) => return Ok(Some((shown.to_path_buf(), text))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            // A file that is there but cannot be read was meant to be used.
            Err(source) => return Err(ConfigError::Unreadable { path: shown.to_path_buf(), source }),
        }
    }
    Ok(None)
}

fn line_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.bytes().filter(|b| *b == b'\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    (line, column)
}

fn apply_file(config: &mut Config, origins: &mut Origins, path: &Path, text: &str) -> Result<(), ConfigError> {
    let root = DeTable::parse(text).map_err(|e| {
        let (line, column) = line_column(text, e.span().map_or(0, |s| s.start));
        ConfigError::Syntax { path: path.to_path_buf(), line, column, message: e.message().to_owned() }
    })?;
    let at = |offset: usize| Origin::File { path: path.to_path_buf(), line: line_column(text, offset).0 };
    for (section, table) in root.get_ref() {
        let origin = at(section.span().start);
        let section = section.get_ref().as_ref();
        if !super::SECTIONS.iter().any(|(s, _)| *s == section) {
            return Err(unknown(section, &origin.place()));
        }
        let DeValue::Table(table) = table.get_ref() else {
            return Err(ConfigError::Value {
                key: section.to_owned(),
                place: origin.place(),
                expected: format!("a table [{section}]"),
                found: describe(table.get_ref()),
            });
        };
        for (name, value) in table {
            let origin = at(name.span().start);
            let dotted = format!("{section}.{}", name.get_ref());
            let Some(i) = find(&dotted) else {
                return Err(unknown(&dotted, &origin.place()));
            };
            let value = value.get_ref();
            match scalar(value, KEYS[i].kind) {
                Some(text) => set(config, origins, i, &text, origin, || describe(value))?,
                None if KEYS[i].secret => return Err(refused(&KEYS[i], &origin, "something else".into())),
                None => return Err(refused(&KEYS[i], &origin, describe(value))),
            }
        }
    }
    Ok(())
}

/// The value as text, if its TOML type suits the kind: a string for a number would hide a mistake.
fn scalar(value: &DeValue<'_>, kind: Kind) -> Option<String> {
    match (value, kind) {
        (DeValue::String(s), Kind::Text | Kind::Choice | Kind::Size | Kind::Duration) => Some(s.to_string()),
        (DeValue::Integer(n), Kind::Integer | Kind::Size | Kind::Duration) => {
            i128::from_str_radix(n.as_str(), n.radix()).ok().map(|n| n.to_string())
        }
        (DeValue::Boolean(b), Kind::Bool) => Some(b.to_string()),
        _ => None,
    }
}

fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(s) => format!("{s:?}"),
        DeValue::Integer(n) => format!("the integer {}", n.as_str()),
        DeValue::Float(n) => format!("the float {}", n.as_str()),
        DeValue::Boolean(b) => format!("the boolean {b}"),
        DeValue::Datetime(d) => format!("the date {d}"),
        DeValue::Array(_) => "an array".into(),
        DeValue::Table(_) => "a table".into(),
    }
}

fn set(
    config: &mut Config,
    origins: &mut Origins,
    i: usize,
    text: &str,
    origin: Origin,
    found: impl FnOnce() -> String,
) -> Result<(), ConfigError> {
    if !(KEYS[i].set)(config, text) {
        let found = if KEYS[i].secret { "something else".into() } else { found() };
        return Err(refused(&KEYS[i], &origin, found));
    }
    origins.by_key[i] = origin;
    Ok(())
}

fn refused(key: &Key, origin: &Origin, found: String) -> ConfigError {
    ConfigError::Value { key: key.path(), place: origin.place(), expected: (key.expected)(), found }
}

fn unknown(name: &str, place: &str) -> ConfigError {
    let near = KEYS.iter().map(|k| k.path()).map(|k| (distance(name, &k), k)).min_by_key(|(d, _)| *d);
    let suggestion = near.filter(|(d, _)| *d <= 3).map(|(_, k)| k);
    // A file may hold any text as a key: quoted, so that it cannot upset a terminal.
    ConfigError::UnknownKey { name: format!("{name:?}"), place: place.to_owned(), suggestion }
}

/// Edits from `a` to `b`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().take(200).enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}

fn apply_env(config: &mut Config, origins: &mut Origins, warnings: &mut Vec<Warning>, options: &LoadOptions) -> Result<(), ConfigError> {
    let names: Vec<String> = KEYS.iter().map(Key::env).collect();
    for (name, value) in &options.env {
        let Some(name) = name.to_str().filter(|n| n.starts_with("ARC_")) else { continue };
        // Compose files and pods set an empty variable where none is meant.
        if value.is_empty() {
            continue;
        }
        if let Some(i) = names.iter().position(|n| n == name) {
            let origin = Origin::Env(name.to_owned());
            let Some(text) = value.to_str() else {
                return Err(refused(&KEYS[i], &origin, "bytes that are not UTF-8".into()));
            };
            set(config, origins, i, text, origin, || format!("{text:?}{}", service_link(text)))?;
        } else if name == "ARC_LOG" {
            let text = value.to_string_lossy();
            config.log_filter = (!text.trim().is_empty()).then(|| text.into_owned());
        } else if !OTHER_VARIABLES.contains(&name) {
            let near = names.iter().map(|n| (distance(name, n), n)).min_by_key(|(d, _)| *d).filter(|(d, _)| *d <= 3);
            let hint = near.map(|(_, n)| format!(", did you mean {n}?")).unwrap_or_default();
            warnings.push(Warning(format!("unknown environment variable {name:?} is ignored{hint}")));
        }
    }
    Ok(())
}

/// Kubernetes sets `<NAME>_PORT=tcp://<address>` for each Service in the namespace of a pod.
fn service_link(text: &str) -> &'static str {
    if ["tcp://", "udp://", "sctp://"].iter().any(|s| text.starts_with(s)) {
        "; Kubernetes sets this variable for a Service of that name: set enableServiceLinks: false in the pod's spec"
    } else {
        ""
    }
}

fn apply_set(config: &mut Config, origins: &mut Origins, text: &str) -> Result<(), ConfigError> {
    let Some((path, value)) = text.split_once('=') else {
        return Err(ConfigError::BadSet { text: text.to_owned() });
    };
    let (path, value) = (path.trim(), value.trim());
    let Some(i) = find(path) else {
        return Err(unknown(path, "--set"));
    };
    set(config, origins, i, value, Origin::Set, || format!("{value:?}"))
}

/// What holds between keys.
const MAX_GZIP_LEVEL: i32 = 9;

fn check(config: &Config, origins: &Origins, warnings: &mut Vec<Warning>) -> Result<(), ConfigError> {
    let Config { server, ingest, wal, compaction, .. } = config;
    // `section.key = value (origin)`
    let named = |path: &str| {
        let Some(i) = find(path) else { return path.to_owned() };
        format!("{path} = {} ({})", (KEYS[i].show)(config), origins.by_key[i].place())
    };
    let refuse = |text: String| Err(ConfigError::Conflict(text));

    let wanted = compaction.trigger_size + 4 * wal.segment_size;
    if wal.max_size < wanted {
        return refuse(format!(
            "{} is too small: it must be at least {} + 4 x {}, together {}; raise wal.max_size or lower the others",
            named("wal.max_size"),
            named("compaction.trigger_size"),
            named("wal.segment_size"),
            show_size(wanted)
        ));
    }
    let wanted = ingest.max_record_size + wal.segment_size;
    if wal.max_size < wanted {
        return refuse(format!(
            "{} cannot hold one record: it must be at least {} + {}, together {}; raise wal.max_size or lower ingest.max_record_size",
            named("wal.max_size"),
            named("ingest.max_record_size"),
            named("wal.segment_size"),
            show_size(wanted)
        ));
    }
    for (path, size) in [("server.max_payload_size", server.max_payload_size), ("ingest.max_inflated_size", ingest.max_inflated_size)] {
        if ingest.max_in_flight < size {
            return refuse(format!(
                "{} would never let in a request of {}; raise ingest.max_in_flight or lower {path}",
                named("ingest.max_in_flight"),
                named(path)
            ));
        }
    }
    if ingest.max_inflated_size < server.max_payload_size {
        return refuse(format!(
            "{} is smaller than {}, so that an uncompressed body is refused by the wrong limit; raise ingest.max_inflated_size or lower \
             server.max_payload_size",
            named("ingest.max_inflated_size"),
            named("server.max_payload_size")
        ));
    }
    if !is_host(&server.host) {
        return refuse(format!(
            "{}: expected an IP address, such as 0.0.0.0 or [::], or a host name, without a port",
            named("server.host")
        ));
    }
    if compaction.compression == Compression::Gzip && compaction.level > MAX_GZIP_LEVEL {
        return refuse(format!(
            "{} is no level of {}: expected 1 to {MAX_GZIP_LEVEL}",
            named("compaction.level"),
            named("compaction.compression")
        ));
    }
    check_storage(config, &named)?;
    check_paths(config, &named)?;
    // Both are locked, and token edits would wait for ever for the server's lock.
    let token_directory = config.auth.token_file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if config.auth.enabled && real(token_directory) == real(&wal.directory) {
        return refuse(format!("{} is in {}: put it into another directory", named("auth.token_file"), named("wal.directory")));
    }
    if !server.insecure && !config.auth.enabled && !is_loopback(&server.host) {
        return Err(ConfigError::OpenBind { host: named("server.host") });
    }
    for (path, file) in [("server.tls_cert_file", &server.tls_cert_file), ("server.tls_key_file", &server.tls_key_file)] {
        let absent = file.as_os_str().is_empty();
        if server.tls_enabled && absent {
            return refuse(format!("{} needs {path}: expected the path of a PEM file, found none", named("server.tls_enabled")));
        }
        if !server.tls_enabled && !absent {
            warnings.push(Warning(format!("{} has no effect with {}", named(path), named("server.tls_enabled"))));
        }
    }
    if config.auth.enabled && !server.tls_enabled && !is_loopback(&server.host) {
        warnings.push(Warning(format!(
            "{} with {}: tokens travel readable for everybody on the way; set server.tls_enabled, or let a proxy on this machine do TLS",
            named("auth.enabled"),
            named("server.host")
        )));
    }
    if is_loopback(&server.host) && server.insecure {
        warnings.push(Warning(format!("{} has no effect with {}", named("server.insecure"), named("server.host"))));
    }
    if wal.sync_mode == SyncMode::UnsafeNone {
        warnings.push(Warning(format!("{}: acknowledged writes may be lost; for tests only", named("wal.sync_mode"))));
    }
    if wal.reserve < wal.segment_size {
        warnings.push(Warning(format!(
            "{} is smaller than {}: a full disk may not leave room to write the Parquet of one segment",
            named("wal.reserve"),
            named("wal.segment_size")
        )));
    }
    Ok(())
}

/// What a backend cannot do without, and what does not go together.
fn check_storage(config: &Config, named: &dyn Fn(&str) -> String) -> Result<(), ConfigError> {
    let s = &config.storage;
    let refuse = |text: String| Err(ConfigError::Conflict(text));
    let needed: &[(&str, &String)] = match s.backend {
        Backend::Local => &[],
        Backend::S3 => &[("storage.s3_bucket", &s.s3_bucket)],
        Backend::Azure => &[("storage.azure_account", &s.azure_account), ("storage.azure_container", &s.azure_container)],
        Backend::Gcs => &[("storage.gcs_bucket", &s.gcs_bucket)],
    };
    if let Some((path, _)) = needed.iter().find(|(_, v)| v.is_empty()) {
        return refuse(format!("{} needs {path}: set it", named("storage.backend")));
    }
    if s.s3_access_key.is_empty() != s.s3_secret_key.is_empty() {
        return refuse(
            "storage.s3_access_key and storage.s3_secret_key go together: set both, or neither for the credentials of the environment"
                .into(),
        );
    }
    for (path, prefix) in
        [("storage.s3_prefix", &s.s3_prefix), ("storage.azure_prefix", &s.azure_prefix), ("storage.gcs_prefix", &s.gcs_prefix)]
    {
        let bare = prefix.trim_matches('/');
        if !bare.is_empty() && bare.split('/').any(|p| p.is_empty() || p.starts_with('.')) {
            return refuse(format!("{}: expected names with single slashes between them, none beginning with a dot", named(path)));
        }
    }
    Ok(())
}

/// Paths that are none, and a log and a lake in one place.
fn check_paths(config: &Config, named: &dyn Fn(&str) -> String) -> Result<(), ConfigError> {
    let refuse = |text: String| Err(ConfigError::Conflict(text));
    let home = std::env::var("HOME").ok().filter(|h| h.starts_with('/'));
    for key in KEYS.iter().filter(|k| k.path_of_machine) {
        if let Some(why) = mistaken(&(key.show)(config), home.as_deref()) {
            return refuse(format!("{}: {why}", named(&key.path())));
        }
    }
    let (log, lake) = (&config.wal.directory, &config.storage.local_path);
    if config.storage.backend != Backend::Local || !(is_within(log, lake) || is_within(lake, log)) {
        return Ok(());
    }
    let (real_log, real_lake) = (real(log), real(lake));
    let real = if (&real_log, &real_lake) == (log, lake) {
        String::new()
    } else {
        format!(" (in reality {} and {})", real_log.display(), real_lake.display())
    };
    refuse(format!(
        "{} and {} are one directory, or one is in the other{real}: names of databases and those of the log's own directories could meet \
         there; put them side by side",
        named("wal.directory"),
        named("storage.local_path")
    ))
}

/// A host without its brackets: `[::1]` is how an IPv6 address stands before a port.
pub fn bare_host(host: &str) -> &str {
    host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host)
}

/// Whether it can be the name or the address of a host.
fn is_host(host: &str) -> bool {
    let bare = bare_host(host);
    // With a zone, such as fe80::1%eth0.
    let address = bare.split_once('%').map_or(bare, |(a, _)| a);
    if address.parse::<std::net::IpAddr>().is_ok() {
        return bare.len() == host.len() || address.contains(':');
    }
    let label = |l: &str| !l.is_empty() && l.len() <= 63 && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    let name = host.strip_suffix('.').unwrap_or(host);
    // Numbers alone were meant as an address.
    name.split('.').all(label) && !name.bytes().all(|b| b.is_ascii_digit() || b == b'.')
}

/// Whether only this machine can reach the host. A name other than `localhost` may resolve to anything.
pub fn is_loopback(host: &str) -> bool {
    match bare_host(host).parse::<std::net::IpAddr>() {
        Ok(ip) => ip.to_canonical().is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys::{self, WalIo};
    use std::time::Duration;

    fn options(file: &str, env: &[(&str, &str)], sets: &[&str]) -> (tempfile::TempDir, LoadOptions) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("arc.toml"), file).unwrap();
        let mut o = LoadOptions::new(dir.path());
        o.system_file = dir.path().join("etc.toml");
        o.env = env.iter().map(|(k, v)| (k.into(), v.into())).collect();
        o.sets = sets.iter().map(|s| (*s).to_owned()).collect();
        (dir, o)
    }

    fn load(file: &str, env: &[(&str, &str)], sets: &[&str]) -> Result<(Config, Origins, Vec<Warning>), ConfigError> {
        let (_dir, o) = options(file, env, sets);
        Config::load(&o)
    }

    fn error(file: &str, env: &[(&str, &str)], sets: &[&str]) -> String {
        let e = load(file, env, sets).expect_err("refused");
        assert_eq!(e.exit_code(), 78);
        e.to_string()
    }

    fn has(text: &str, parts: &[&str]) {
        for p in parts {
            assert!(text.contains(p), "{p:?} is not in {text:?}");
        }
    }

    #[test]
    fn defaults_are_valid_and_read_back() {
        let (config, origins, warnings) = load("", &[], &[]).unwrap();
        assert_eq!(config, Config::default());
        assert!(warnings.is_empty(), "{warnings:?}");
        assert!(origins.iter().all(|(_, o)| *o == Origin::Default));
        for key in KEYS {
            let mut c = Config::default();
            let text = (key.show)(&c);
            assert!((key.set)(&mut c, &text), "{}", key.path());
            assert_eq!(c, config, "{}", key.path());
            assert!(super::super::SECTIONS.iter().any(|(s, _)| *s == key.section));
        }
    }

    #[test]
    fn defaults_are_the_published_ones() {
        let c = Config::default();
        for (path, value) in [
            ("server.host", "127.0.0.1"),
            ("server.port", "8000"),
            ("server.max_payload_size", "64MB"),
            ("server.header_timeout", "10s"),
            ("server.read_timeout", "30s"),
            ("server.idle_timeout", "120s"),
            ("server.shutdown_timeout", "30s"),
            ("server.max_connections", "4096"),
            ("server.cors_origins", ""),
            ("server.insecure", "false"),
            ("server.tls_enabled", "false"),
            ("server.tls_cert_file", ""),
            ("server.tls_key_file", ""),
            ("auth.enabled", "false"),
            ("auth.token_file", "./data/auth/tokens.json"),
            ("ingest.max_inflated_size", "128MB"),
            ("ingest.max_record_size", "128MB"),
            ("ingest.max_in_flight", "256MB"),
            ("ingest.max_columns", "1024"),
            ("ingest.max_tables", "10000"),
            ("ingest.max_total_columns", "200000"),
            ("ingest.max_name_bytes", "16MB"),
            ("ingest.max_partitions", "1024"),
            ("ingest.large_unsigned", "refuse"),
            ("ingest.nested", "json"),
            ("ingest.idempotency_window", "1h"),
            ("ingest.idempotency_max_keys", "1000000"),
            ("log.level", "info"),
            ("log.format", "auto"),
            ("wal.directory", "./data/wal"),
            ("wal.require_existing", "false"),
            ("wal.segment_size", "64MB"),
            ("wal.max_size", "16GB"),
            ("wal.reserve", "64MB"),
            ("wal.pool", "4"),
            ("wal.io", "auto"),
            ("wal.sync_mode", "fdatasync"),
            ("wal.on_damage", "set-aside"),
            ("wal.poison_exit_after", "30s"),
            ("wal.queue_timeout", "2s"),
            ("wal.allow_volatile", "false"),
            ("wal.mark_delay", "50ms"),
            ("storage.backend", "local"),
            ("storage.local_path", "./data/lake"),
            ("storage.layout", "hive"),
            ("storage.accept_new_lake", "false"),
            ("compaction.trigger_size", "512MB"),
            ("compaction.max_delay", "60s"),
            ("compaction.row_group_rows", "1048576"),
            ("compaction.compression", "zstd"),
            ("compaction.level", "1"),
            ("compaction.encoding", "compatible"),
            ("compaction.paused", "false"),
            ("compaction.max_outputs", "4096"),
            ("compaction.max_rows", "1073741824"),
            ("compaction.workers", "0"),
            ("compaction.memory", "512MB"),
            ("storage.create_only", "probe"),
        ] {
            let i = find(path).unwrap_or_else(|| panic!("{path} is missing"));
            assert_eq!((KEYS[i].show)(&c), value, "{path}");
        }
        assert_eq!(KEYS.len(), 83);
    }

    #[test]
    fn set_goes_before_env_before_file_before_default() {
        let file = "[server]\nport = 1\nidle_timeout = 7\n[compaction]\nlevel = 3\ncompression = \"lz4\"\n";
        let env = [("ARC_SERVER_PORT", "2"), ("ARC_COMPACTION_LEVEL", "4"), ("HOME", "/x"), ("ARC_WAL_MAX_SIZE", "8GiB")];
        let (c, o, w) = load(file, &env, &["server.port=3", "server.port = 4"]).unwrap();
        assert_eq!((c.server.port, c.compaction.level, c.server.idle_timeout), (4, 4, Duration::from_secs(7)));
        assert_eq!((c.compaction.compression, c.wal.max_size), (Compression::Lz4, 8 << 30));
        assert!(w.is_empty());
        let shown = |p: &str| o.get(p).map(ToString::to_string).unwrap();
        assert_eq!(shown("server.port"), "--set");
        assert_eq!(shown("compaction.level"), "env ARC_COMPACTION_LEVEL");
        assert_eq!(shown("server.idle_timeout"), "file ./arc.toml");
        assert_eq!(shown("server.host"), "default");
        assert_eq!(o.get("compaction.compression").unwrap().place(), "file ./arc.toml line 6");
    }

    #[test]
    fn files_are_found_in_order() {
        let (dir, mut o) = options("[server]\nport = 1\n", &[], &[]);
        std::fs::write(dir.path().join("etc.toml"), "[server]\nport = 2\n").unwrap();
        std::fs::write(dir.path().join("own.toml"), "server.port = 3\n").unwrap();
        assert_eq!(Config::load(&o).unwrap().0.server.port, 1);
        o.config_path = Some("own.toml".into());
        assert_eq!(Config::load(&o).unwrap().0.server.port, 3);
        o.config_path = Some("none.toml".into());
        has(&Config::load(&o).unwrap_err().to_string(), &["none.toml", "cannot be read"]);
        o.config_path = None;
        std::fs::remove_file(dir.path().join("arc.toml")).unwrap();
        assert_eq!(Config::load(&o).unwrap().0.server.port, 2);
        std::fs::remove_file(dir.path().join("etc.toml")).unwrap();
        assert_eq!(Config::load(&o).unwrap().1.file, None);
    }

    #[test]
    fn unknown_keys_are_refused_by_name() {
        has(&error("[server]\n\nprot = 1\n", &[], &[]), &["server.prot", "./arc.toml line 3", "did you mean server.port?"]);
        has(&error("[servers]\nport = 1\n", &[], &[]), &["\"servers\"", "line 1"]);
        has(&error("port = 1\n", &[], &[]), &["\"port\"", "line 1"]);
        has(&error("", &[], &["wal.size=1"]), &["wal.size", "--set"]);
        has(&error("", &[], &["wal.max_size"]), &["--set wal.max_size", "section.key=value"]);
    }

    #[test]
    fn unknown_variables_are_warnings() {
        let env = [("ARC_SERVER_PROT", "1"), ("ARC_LOG", "debug,hyper=info"), ("ARC_AUTH_BOOTSTRAP_TOKEN", "x"), ("ARCH", "x")];
        let (c, _, w) = load("", &env, &[]).unwrap();
        assert_eq!(c.log_filter.as_deref(), Some("debug,hyper=info"));
        assert_eq!(w.len(), 1);
        has(&w[0].0, &["ARC_SERVER_PROT", "did you mean ARC_SERVER_PORT?"]);
    }

    #[test]
    fn values_are_typed_and_errors_say_where() {
        has(
            &error("[server]\nport = \"8000\"", &[], &[]),
            &["server.port (file ./arc.toml line 2)", "expected an integer from 0 to 65535", "found \"8000\""],
        );
        has(&error("[server]\nport = 70000", &[], &[]), &["found the integer 70000"]);
        has(&error("[server]\nport = -1", &[], &[]), &["found the integer -1"]);
        has(&error("[server]\ninsecure = 1", &[], &[]), &["expected true or false"]);
        has(&error("[server]\nhost = 1", &[], &[]), &["expected a non-empty string"]);
        has(&error("[wal]\nio = \"direct\"", &[], &[]), &["one of \"auto\", \"pwrite\", \"mmap\"", "found \"direct\""]);
        has(&error("[wal]\nsegment_size = 1.5", &[], &[]), &["a size from 4KB to 1GB", "found the float 1.5"]);
        has(&error("[wal]\nsegment_size = [1]", &[], &[]), &["found an array"]);
        has(&error("wal = 1", &[], &[]), &["wal (file", "a table [wal]"]);
        has(&error("", &[("ARC_SERVER_READ_TIMEOUT", "0")], &[]), &["server.read_timeout (env ARC_SERVER_READ_TIMEOUT)", "found \"0\""]);
        has(&error("", &[("ARC_SERVER_HOST", " ")], &[]), &["server.host", "non-empty"]);
        has(&error("", &[], &["compaction.level=23"]), &["compaction.level (--set)", "1 to 22", "found \"23\""]);
        has(&error("[wal\n", &[], &[]), &["./arc.toml line 1", "not valid TOML"]);
        has(&error("[server]\nport = 1\nport = 2\n", &[], &[]), &["line 3"]);
        let (c, ..) =
            load("[wal]\nsegment_size = 0x1000\nmark_delay = \"5ms\"\nio = \"mmap\"\n[compaction]\nmax_delay = 5", &[], &[]).unwrap();
        assert_eq!((c.wal.segment_size, c.wal.mark_delay, c.wal.io), (4096, Duration::from_millis(5), WalIo::Mmap));
        assert_eq!(c.compaction.max_delay, Duration::from_secs(5));
    }

    #[test]
    fn segments_are_whole_blocks() {
        assert_eq!(load("", &[], &["wal.segment_size=4097"]).unwrap().0.wal.segment_size, 8192);
        has(&error("", &[], &["wal.segment_size=4095"]), &["wal.segment_size"]);
        has(&error("", &[], &["wal.segment_size=1025MB"]), &["wal.segment_size", "1GB"]);
        has(&error("", &[], &["ingest.max_record_size=2GB"]), &["ingest.max_record_size", "to 1GB"]);
        has(&error("", &[], &["server.max_payload_size=0"]), &["server.max_payload_size"]);
    }

    #[test]
    fn keys_that_do_not_go_together() {
        has(
            &error("[wal]\nmax_size = \"600MB\"\n", &[], &[]),
            &[
                "wal.max_size = 600MB (file ./arc.toml line 2)",
                "compaction.trigger_size = 512MB (default)",
                "4 x wal.segment_size",
                "768MB",
            ],
        );
        has(
            &error("", &[], &["wal.max_size=100MB", "compaction.trigger_size=1MB", "wal.segment_size=1MB"]),
            &["wal.max_size = 100MB (--set)", "ingest.max_record_size = 128MB (default)"],
        );
        has(&error("", &[], &["ingest.max_in_flight=100MB"]), &["ingest.max_in_flight", "ingest.max_inflated_size"]);
        has(&error("", &[], &["ingest.max_inflated_size=1MB"]), &["ingest.max_inflated_size", "server.max_payload_size"]);
        has(
            &error("", &[], &["compaction.compression=gzip", "compaction.level=10"]),
            &["compaction.level = 10 (--set)", "compaction.compression = gzip (--set)", "1 to 9"],
        );
        assert!(load("", &[], &["compaction.compression=gzip", "compaction.level=9"]).is_ok());
        let (_, _, w) = load("", &[], &["wal.sync_mode=unsafe-none", "wal.reserve=1MB"]).unwrap();
        assert_eq!(w.len(), 2, "{w:?}");
    }

    #[test]
    fn a_log_within_the_lake_is_refused() {
        for (log, lake) in [("/d/x", "/d/x"), ("/d/x/wal", "/d/x"), ("./a/../b/wal", "b"), ("b", "./b/")] {
            for (log, lake) in [(log, lake), (lake, log)] {
                let sets = [format!("wal.directory={log}"), format!("storage.local_path={lake}")];
                has(&error("", &[], &[&sets[0], &sets[1]]), &["wal.directory = ", "storage.local_path = ", "side by side"]);
                load("", &[], &[&sets[0], &sets[1], "storage.backend=s3", "storage.s3_bucket=b"]).unwrap();
            }
        }
        for (log, lake) in [("/d/wal", "/d/lake"), ("/d/lake2", "/d/lake")] {
            load("", &[], &[&format!("wal.directory={log}"), &format!("storage.local_path={lake}")]).unwrap();
        }
    }

    /// Real paths are compared, links that lead to nothing yet included.
    #[test]
    fn log_and_lake_that_overlap_through_links_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        std::fs::create_dir_all(dir.path().join("wal")).unwrap();
        for (link, target) in [("to_wal", "wal"), ("to_new", "new/deep"), ("to_side", "wal/side"), ("to_up", ".")] {
            std::os::unix::fs::symlink(target, dir.path().join(link)).unwrap();
        }
        for (log, lake) in [("wal", "to_wal"), ("new", "to_new"), ("wal", "to_side"), ("wal", "to_up"), ("to_up/wal/x", "wal")] {
            for (log, lake) in [(log, lake), (lake, log)] {
                let sets = [format!("wal.directory={}", at(log)), format!("storage.local_path={}", at(lake))];
                let e = error("", &[], &[&sets[0], &sets[1]]);
                has(&e, &["wal.directory = ", "storage.local_path = ", "in reality", "side by side"]);
            }
        }
        for (log, lake) in [("wal", "lake"), ("to_wal", "to_up/lake"), ("wal", "to_new")] {
            load("", &[], &[&format!("wal.directory={}", at(log)), &format!("storage.local_path={}", at(lake))]).unwrap();
        }
    }

    #[test]
    fn path_that_is_none_is_refused_by_every_key_that_takes_one() {
        let keys: Vec<String> = KEYS.iter().filter(|k| k.path_of_machine).map(Key::path).collect();
        for key in ["wal.directory", "storage.local_path", "auth.token_file", "server.tls_cert_file", "storage.gcs_service_account_file"] {
            assert!(keys.iter().any(|k| k == key), "{key}");
        }
        for key in &keys {
            for value in ["~/x", "s3://b/x", "gs://b/x", "file:///srv/x", "$HOME/x", "${X}/y"] {
                has(&error("", &[], &[&format!("{key}={value}")]), &[&format!("{key} = {value} (--set)"), ";"]);
            }
        }
    }

    #[test]
    fn an_open_bind_is_refused() {
        for host in ["0.0.0.0", "::", "[::]", "10.1.2.3", "example.org", "::ffff:10.0.0.1"] {
            let e = load("", &[], &[&format!("server.host={host}")]).unwrap_err();
            assert!(matches!(e, ConfigError::OpenBind { .. }), "{host}");
            assert_eq!(e.exit_code(), 78);
            assert!(load("", &[], &[&format!("server.host={host}"), "server.insecure=true"]).is_ok());
        }
        for host in ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "::ffff:127.0.0.1"] {
            assert!(load("", &[], &[&format!("server.host={host}")]).is_ok(), "{host}");
        }
    }

    #[test]
    fn the_reference_reads_back() {
        let text = keys::reference();
        assert_eq!(load(&text, &[], &[]).unwrap().0, Config::default());
        let bare: String =
            text.lines().map(|l| if l.contains(" = ") && l.starts_with("# ") { &l[2..] } else { l }).fold(String::new(), |mut s, l| {
                // Prose that mentions an assignment stays a comment.
                let prose = l.split(" = ").next().is_some_and(|k| k.contains(' ')) && !l.starts_with('#');
                s.push_str(if prose { "# " } else { "" });
                s.push_str(l);
                s.push('\n');
                s
            });
        let (c, o, _) = load(&bare, &[], &[]).unwrap();
        assert_eq!(c, Config::default());
        assert!(o.iter().all(|(k, o)| matches!(o, Origin::File { .. }) || panic!("{} is missing", k.path())));
    }

    #[test]
    fn the_committed_file_is_the_reference() {
        let committed = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/arc.toml")).unwrap();
        assert!(committed == keys::reference(), "arc.toml is out of date: arc config reference > arc.toml");
    }

    #[test]
    fn a_backend_says_what_it_needs() {
        has(&error("", &[], &["storage.backend=s3"]), &["storage.backend = s3 (--set)", "storage.s3_bucket"]);
        has(&error("", &[], &["storage.backend=azure", "storage.azure_account=a"]), &["storage.azure_container"]);
        has(&error("", &[], &["storage.backend=gcs"]), &["storage.gcs_bucket"]);
        has(&error("", &[], &["storage.s3_access_key=a"]), &["storage.s3_secret_key", "both"]);
        for prefix in ["a//b", "../a", "a/.b"] {
            has(&error("", &[], &[&format!("storage.s3_prefix={prefix}")]), &["storage.s3_prefix"]);
        }
        let sets = ["storage.backend=s3", "storage.s3_bucket=b", "storage.s3_prefix=/a/b/", "storage.local_path=./data"];
        let (config, _, _) = load("", &[("ARC_STORAGE_S3_SECRET_KEY", "hush"), ("ARC_STORAGE_S3_ACCESS_KEY", "id")], &sets).unwrap();
        assert_eq!(config.storage.s3_secret_key.reveal(), "hush");
    }

    #[test]
    fn secrets_are_shown_nowhere() {
        let sets = ["storage.azure_access_key=hush", "storage.azure_sas_token=hush"];
        let env = [("ARC_STORAGE_S3_SECRET_KEY", "hush"), ("ARC_STORAGE_S3_ACCESS_KEY", "id")];
        let (config, _, _) = load("", &env, &sets).unwrap();
        for key in KEYS {
            assert!(!(key.show)(&config).contains("hush") && !(key.json)(&config).to_string().contains("hush"), "{}", key.path());
        }
        assert!(!format!("{config:?}").contains("hush"));
        // What is shown is not taken for the secret.
        has(&error("", &[], &["storage.azure_access_key=******"]), &["storage.azure_access_key"]);
        let e = error("", &[("ARC_STORAGE_S3_SECRET_KEY", "hush\n")], &[]);
        assert!(!e.contains("hush"), "{e}");
    }
}
