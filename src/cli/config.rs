//! `arc config check|show|reference`

use super::Global;
use super::start::try_start;
use crate::config::{Config, EXIT_CONFIG, KEYS, Origins, SECTIONS, reference};
use clap::Subcommand;
use serde_json::{Map, Value, json};
use std::process::ExitCode;

#[derive(Subcommand, Debug)]
pub enum ConfigCommand {
    /// Check keys and values, with --start also what a start needs. Exit code 78 if something is wrong
    Check {
        /// Try directories, port, store, certificate and tokens as well; nothing is left behind
        #[arg(long)]
        start: bool,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show the effective configuration
    Show {
        /// Also where each value comes from
        #[arg(long)]
        origin: bool,
        /// One JSON object: sizes in bytes, durations as text
        #[arg(long)]
        json: bool,
    },
    /// Print every key with its default and meaning, in the form of a configuration file
    Reference,
}

/// Runs `arc config`.
pub fn run(global: &Global, command: &ConfigCommand) -> ExitCode {
    if matches!(command, ConfigCommand::Reference) {
        return super::print(&reference());
    }
    let loaded = global.load();
    if let (Err(e), ConfigCommand::Check { json: true, .. }) = (&loaded, command) {
        super::print(&format!("{}\n", json!({"valid": false, "error": e.to_string(), "warnings": []})));
    }
    let (config, origins, warnings) = match loaded {
        Ok(loaded) => loaded,
        Err(e) => return global.refuse(&e),
    };
    for w in &warnings {
        global.warn(w);
    }
    let file = origins.file.as_ref().map(|p| p.display().to_string());
    let tried = match command {
        ConfigCommand::Check { start: true, .. } => match try_start(&config) {
            Ok(tried) => tried,
            Err(e) => {
                global.error(e);
                return ExitCode::from(super::EXIT_FAILURE);
            }
        },
        _ => Vec::new(),
    };
    let works = tried.iter().all(|(_, r)| r.is_ok());
    let printed = super::print(&match command {
        ConfigCommand::Check { json: true, start } => {
            let warnings: Vec<&str> = warnings.iter().map(|w| w.0.as_str()).collect();
            let mut v = json!({"valid": true, "file": file, "warnings": warnings});
            if *start {
                let one = |(what, r): &(&str, Result<String, String>)| json!({"what": what, "ok": r.is_ok(), "text": r.as_ref().unwrap_or_else(|e| e)});
                v["start"] = tried.iter().map(one).collect();
            }
            format!("{v}\n")
        }
        ConfigCommand::Check { json: false, .. } => {
            let mut text = format!("the configuration is valid ({})\n", file.map_or("no file".to_owned(), |f| format!("file {f}")));
            for (what, r) in &tried {
                text += &match r {
                    Ok(t) => format!("ok    {what}: {t}\n"),
                    Err(e) => format!("FAIL  {what}: {e}\n"),
                };
            }
            text
        }
        ConfigCommand::Show { origin, json: true } => format!("{}\n", as_json(&config, &origins, *origin)),
        ConfigCommand::Show { origin, json: false } => as_toml(&config, &origins, *origin),
        ConfigCommand::Reference => return ExitCode::SUCCESS,
    });
    if works { printed } else { ExitCode::from(EXIT_CONFIG) }
}

fn as_json(config: &Config, origins: &Origins, with_origin: bool) -> Value {
    let mut root = Map::new();
    for (key, origin) in origins.iter() {
        let value = (key.json)(config);
        let value = if with_origin { json!({"value": value, "origin": origin.to_string()}) } else { value };
        if let Value::Object(section) = root.entry(key.section).or_insert_with(|| Value::Object(Map::new())) {
            section.insert(key.name.to_owned(), value);
        }
    }
    Value::Object(root)
}

/// A configuration file that means the same.
fn as_toml(config: &Config, origins: &Origins, with_origin: bool) -> String {
    use std::fmt::Write as _;
    let width = KEYS.iter().map(|k| k.name.len() + 3 + k.toml(config).len()).max().unwrap_or(0);
    let mut out = String::new();
    for (i, (section, _)) in SECTIONS.iter().enumerate() {
        let _ = writeln!(out, "{}[{section}]", if i == 0 { "" } else { "\n" });
        for (key, origin) in origins.iter().filter(|(k, _)| k.section == *section) {
            let line = format!("{} = {}", key.name, key.toml(config));
            let _ = if with_origin { writeln!(out, "{line:width$}  # {origin}") } else { writeln!(out, "{line}") };
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LoadOptions;

    #[test]
    fn what_is_shown_can_be_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut options = LoadOptions::new(dir.path());
        options.sets = vec!["wal.directory=/tmp/a \"b\"".into(), "server.port=9".into()];
        let (config, origins, _) = Config::load(&options).unwrap();
        let text = as_toml(&config, &origins, true);
        assert!(text.contains("# --set") && text.contains("# default"));
        std::fs::write(dir.path().join("arc.toml"), text).unwrap();
        assert_eq!(Config::load(&LoadOptions::new(dir.path())).unwrap().0, config);
        let json = as_json(&config, &origins, true);
        assert_eq!(json["server"]["port"], json!({"value": 9, "origin": "--set"}));
        assert_eq!(as_json(&config, &origins, false)["wal"]["segment_size"], json!(64 << 20));
    }
}
