//! Sets `ARC_REVISION`: what the variable of this name says, else, for a release build in a clone, git's commit, else `unknown`.
//!
//! Only a release build asks git: every commit makes it stale, and whoever builds for tests would build again after each.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=ARC_REVISION");
    let given = std::env::var("ARC_REVISION").ok().filter(|r| !r.trim().is_empty());
    let release = std::env::var("PROFILE").is_ok_and(|p| p == "release");
    let revision = given.or_else(|| if release { of_git() } else { None }).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo:rustc-env=ARC_REVISION={}", revision.trim());
}

fn of_git() -> Option<String> {
    // A copy of the source inside some other repository is none of that repository's commits.
    let top = git(&["rev-parse", "--show-toplevel"])?;
    if Path::new(&top).canonicalize().ok()? != Path::new(".").canonicalize().ok()? {
        return None;
    }
    for path in ["HEAD", "logs/HEAD"] {
        let path = git(&["rev-parse", "--git-path", path])?;
        if Path::new(&path).exists() {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let out = Command::new("git").args(arguments).output().ok().filter(|o| o.status.success())?;
    Some(String::from_utf8(out.stdout).ok()?.trim().to_owned()).filter(|s| !s.is_empty())
}
