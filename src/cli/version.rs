//! `arc version`

use crate::metrics::Build;
use clap::Args;
use std::process::ExitCode;

#[derive(Args, Debug)]
pub struct VersionArgs {
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Runs `arc version`.
pub fn run(args: &VersionArgs) -> ExitCode {
    let (name, version, revision) = ("arc", Build::VERSION, Build::REVISION);
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
    super::print(&if args.json {
        format!(
            "{}\n",
            serde_json::json!({"name": name, "version": version, "revision": revision, "os": os, "arch": arch, "profile": profile})
        )
    } else {
        format!("{name} {version} ({os} {arch}, {profile}, revision {revision})\n")
    })
}
