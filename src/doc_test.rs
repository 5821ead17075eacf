//! Holds the pages for people against the code: links, names of metrics and keys, invariants, messages.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::config::KEYS;
use crate::metrics::{Kind, TABLE};

const PAGES: [&str; 5] = ["README.md", "CHANGELOG.md", "wal-format.md", "docs/architecture.md", "docs/operations.md"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(root().join(&path)).unwrap_or_else(|e| panic!("{}: {e}", path.as_ref().display()))
}

/// What stands between backticks, outside of code blocks.
fn code(page: &str) -> Vec<String> {
    let text: Vec<&str> = page.split("\n```").step_by(2).collect();
    text.iter().flat_map(|t| t.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

/// The anchors of a page's headings.
fn anchors(page: &str) -> BTreeSet<String> {
    let of = |h: &str| -> String {
        let kept = h.trim().to_lowercase().replace(' ', "-");
        kept.chars().filter(|c| c.is_alphanumeric() || *c == '-' || *c == '_').collect()
    };
    page.lines().filter(|l| l.starts_with('#')).map(|l| of(l.trim_start_matches('#'))).collect()
}

/// All source of the crate.
fn sources() -> String {
    let mut out = String::new();
    let mut todo = vec![root().join("src")];
    while let Some(d) = todo.pop() {
        for e in std::fs::read_dir(d).unwrap() {
            let p = e.unwrap().path();
            if p.is_dir() {
                todo.push(p);
            } else if p.extension().is_some_and(|x| x == "rs") && !p.ends_with("src/doc_test.rs") {
                out.push_str(&std::fs::read_to_string(p).unwrap());
            }
        }
    }
    out
}

#[test]
fn links_between_pages_lead_somewhere() {
    for page in PAGES {
        let text = read(page);
        for link in text.split("](").skip(1).filter_map(|t| t.split(')').next()).filter(|l| !l.contains("://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { PathBuf::from(page) } else { Path::new(page).parent().unwrap().join(file) };
            assert!(root().join(&target).exists(), "{page}: {link}");
            assert!(anchor.is_empty() || anchors(&read(&target)).contains(anchor), "{page}: {link}: no such heading");
        }
    }
}

#[test]
fn metrics_and_keys_of_the_pages_exist() {
    let names: BTreeSet<&str> = TABLE.iter().map(|d| d.name).collect();
    let keys: BTreeSet<String> = KEYS.iter().map(|k| k.path()).collect();
    let sections: BTreeSet<&str> = KEYS.iter().map(|k| k.section).collect();
    let mut seen = 0;
    for page in PAGES {
        for c in code(&read(page)) {
            if c.starts_with("arc_") {
                assert!(names.contains(c.as_str()), "{page}: no metric {c}");
                seen += 1;
            }
            let key = c.split([' ', '=']).next().unwrap_or_default();
            if let Some((section, _)) = key.split_once('.')
                && sections.contains(section)
                && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b == b'.')
            {
                assert!(keys.contains(key), "{page}: no key {key}");
                seen += 1;
            }
        }
    }
    assert!(seen > 40, "{seen}");
    assert!(TABLE.iter().any(|d| d.kind == Kind::Histogram));
}

#[test]
fn every_invariant_is_explained() {
    let page = read("docs/architecture.md");
    let source = sources();
    let marked: BTreeSet<&str> = source.split("INVARIANT(").skip(1).filter_map(|t| t.split(')').next()).filter(|n| n.len() < 60).collect();
    assert!(marked.len() > 15);
    for name in marked {
        assert!(page.contains(name), "docs/architecture.md does not explain INVARIANT({name})");
    }
}

#[test]
fn messages_of_the_operations_page_are_messages_of_the_code() {
    // Fixed parts only: numbers and names stand for what a format string fills in.
    let source = sources().replace("\\\"", "\"");
    let page = read("docs/operations.md");
    let mut seen = 0;
    for row in page.lines().filter(|l| l.starts_with("| `")) {
        let first = row.split(" | ").next().unwrap_or_default();
        for message in first.split('`').skip(1).step_by(2).filter(|m| m.contains(' ')) {
            let words: Vec<&str> = message.split([' ', ':', ',', ';']).filter(|w| !w.is_empty()).collect();
            let filled = |w: &&str| {
                w.trim_start_matches('(').bytes().all(|b| b.is_ascii_uppercase())
                    || w.contains("...")
                    || w.contains("N.M")
                    || w.contains("1.x")
            };
            for part in words.split(filled).filter(|p| p.len() > 1) {
                let at_least_two = part.windows(2).all(|w| {
                    let joined = [" ", ": ", ", ", "; "].map(|s| w.join(s));
                    joined.iter().any(|j| source.contains(j.as_str()))
                });
                assert!(at_least_two, "docs/operations.md: no message has {part:?}");
                seen += 1;
            }
        }
    }
    assert!(seen > 20, "{seen}");
}
