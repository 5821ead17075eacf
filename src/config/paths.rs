//! Paths as people write them in other programs, and paths that lead to one place.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

/// Schemes of stores, with the setting that is meant.
const STORES: &[(&[&str], &str)] = &[
    (&["s3", "s3a", "s3n"], "storage.backend = \"s3\" with storage.s3_bucket and storage.s3_prefix"),
    (&["gs", "gcs"], "storage.backend = \"gcs\" with storage.gcs_bucket and storage.gcs_prefix"),
    (
        &["az", "azure", "abfs", "abfss", "wasb", "wasbs", "adl"],
        "storage.backend = \"azure\" with storage.azure_account, storage.azure_container and storage.azure_prefix",
    ),
];
/// Links on the way of one path, as many as the kernel follows.
const MAX_LINKS: usize = 40;

/// What is wrong with `text` as a path, and what to write instead: nothing here is expanded, and no URL is a directory.
pub(super) fn mistaken(text: &str, home: Option<&str>) -> Option<String> {
    if text.trim() != text {
        return Some("white space at an end; remove it".into());
    }
    if let Some(rest) = text.strip_prefix('~').filter(|r| user(r)) {
        let whole = home.filter(|_| rest.is_empty() || rest.starts_with('/')).map(|h| format!(": {h}{rest}")).unwrap_or_default();
        return Some(format!("'~' is not expanded; write the whole path{whole}"));
    }
    if let Some((scheme, rest)) = scheme(text) {
        let scheme = scheme.to_ascii_lowercase();
        if scheme == "file" {
            let local = rest.trim_start_matches("//").trim_start_matches("localhost/");
            return Some(format!("this is a URL; write the path: /{}", local.trim_start_matches('/')));
        }
        let store = STORES.iter().find(|(names, _)| names.contains(&scheme.as_str()));
        return Some(match store {
            Some((_, setting)) => format!("this is the URL of a store; for a lake there set {setting}"),
            None => "this is a URL; expected a path of this machine; for a lake in a store set storage.backend and its keys".to_owned(),
        });
    }
    if let Some(name) = variable(text) {
        return Some(format!("{name:?} is not expanded; write the whole path"));
    }
    None
}

/// What follows `~`: nothing, a path, or the name of a user.
fn user(rest: &str) -> bool {
    rest.split('/').next().is_some_and(|n| n.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')))
}

/// The scheme of a URL, and what follows its colon: of any with `//`, of those of stores and files also without.
fn scheme(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once(':')?;
    let first = scheme.chars().next().is_some_and(|c| c.is_ascii_alphabetic());
    let word = first && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    let lower = scheme.to_ascii_lowercase();
    let known = lower == "file" || STORES.iter().any(|(names, _)| names.contains(&lower.as_str()));
    (word && (rest.starts_with("//") || known)).then_some((scheme, rest))
}

/// The first `$NAME`, `${NAME}`, `$(command)` or `%NAME%` in a path.
fn variable(text: &str) -> Option<&str> {
    let named = |c: char| c.is_ascii_alphabetic() || c == '_';
    for (at, _) in text.match_indices('$') {
        let rest = text.get(at + 1..)?;
        let end = match rest.chars().next() {
            Some('{') => rest.find('}').map_or(rest.len(), |n| n + 1),
            Some('(') => rest.find(')').map_or(rest.len(), |n| n + 1),
            Some(c) if named(c) => rest.find(|c: char| !named(c) && !c.is_ascii_digit()).unwrap_or(rest.len()),
            _ => continue,
        };
        return text.get(at..at + 1 + end);
    }
    let mut parts = text.split('%');
    let (_, name, _) = (parts.next()?, parts.next()?, parts.next()?);
    (name.len() > 1 && name.chars().all(|c| c.is_ascii_uppercase() || c == '_')).then_some(name)
}

/// The path from the root, without `.`, `..` and symbolic links, as far as it exists; what does not exist yet follows as it is written.
pub(super) fn real(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let mut todo: VecDeque<OsString> = parts(&absolute);
    let (mut out, mut links) = (PathBuf::from("/"), 0);
    while let Some(part) = todo.pop_front() {
        if part == ".." {
            out.pop();
            continue;
        }
        let next = out.join(&part);
        match std::fs::read_link(&next) {
            Ok(target) if links < MAX_LINKS => {
                links += 1;
                if target.is_absolute() {
                    out = PathBuf::from("/");
                }
                for p in parts(&target).into_iter().rev() {
                    todo.push_front(p);
                }
            }
            _ => out = next,
        }
    }
    out
}

fn parts(path: &Path) -> VecDeque<OsString> {
    let part = |c: Component<'_>| match c {
        Component::Normal(p) => Some(p.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    };
    path.components().filter_map(part).collect()
}

/// Whether `inner` is `outer` or below it: by their real paths, or by the directories themselves, which may have several (bind mounts).
pub(super) fn is_within(inner: &Path, outer: &Path) -> bool {
    let (inner, outer) = (real(inner), real(outer));
    if inner.starts_with(&outer) {
        return true;
    }
    let number = |p: &Path| std::fs::metadata(p).ok().map(|m| (m.dev(), m.ino()));
    let Some(root) = number(&outer) else { return false };
    inner.ancestors().any(|p| number(p) == Some(root))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_of_another_program_is_told_with_the_right_one() {
        let cases = [
            ("~", "/home/u"),
            ("~/lake", "/home/u/lake"),
            ("~other/lake", "whole path"),
            ("s3://b/lake", "storage.s3_bucket"),
            ("S3A://b", "storage.s3_bucket"),
            ("s3:b/lake", "storage.s3_bucket"),
            ("gs://b/lake", "storage.gcs_bucket"),
            ("abfss://c@a.dfs.core.windows.net/x", "storage.azure_container"),
            ("file:///srv/lake", "the path: /srv/lake"),
            ("file:/srv/lake", "the path: /srv/lake"),
            ("file://localhost/srv/lake", "the path: /srv/lake"),
            ("https://b.s3.amazonaws.com/", "URL"),
            ("hdfs://n/lake", "URL"),
            ("$HOME/lake", "\"$HOME\""),
            ("/data/${HOSTNAME}/wal", "\"${HOSTNAME}\""),
            ("/data/$(hostname)/wal", "\"$(hostname)\""),
            ("%APPDATA%/lake", "\"APPDATA\""),
            (" /data", "white space"),
            ("/data ", "white space"),
        ];
        for (text, hint) in cases {
            let e = mistaken(text, Some("/home/u")).unwrap_or_else(|| panic!("{text}"));
            assert!(e.contains(hint), "{text}: {e}");
        }
        for good in ["/data/lake", "./data/wal", "data", "/a/~b", "/a~/b", "/mnt/s3/x", "/a:b/c", "a$", "/a/$1", "/100%/x%20y", "/ä ö/x"]
        {
            assert_eq!(mistaken(good, Some("/home/u")), None, "{good}");
        }
    }

    #[test]
    fn real_path_follows_links_that_lead_nowhere_yet() {
        let dir = tempfile::tempdir().unwrap();
        let d = dir.path().canonicalize().unwrap();
        std::fs::create_dir(d.join("wal")).unwrap();
        std::os::unix::fs::symlink("wal/new", d.join("lake")).unwrap();
        std::os::unix::fs::symlink(&d, d.join("up")).unwrap();
        std::os::unix::fs::symlink("loop", d.join("loop")).unwrap();
        assert_eq!(real(&d.join("lake/x")), d.join("wal/new/x"));
        assert_eq!(real(&d.join("up/up/lake/../y")), d.join("wal/y"));
        assert_eq!(real(&d.join("none/../wal/./z")), d.join("wal/z"));
        assert!(real(&d.join("loop/x")).ends_with("loop/x"));
        assert!(is_within(&d.join("lake"), &d.join("up/wal")) && !is_within(&d.join("wal"), &d.join("lake")));
        assert!(!is_within(&d.join("wal2"), &d.join("wal")));
    }
}
