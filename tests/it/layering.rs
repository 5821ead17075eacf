//! Rules over the source text: modules import only from those above them, files stay small, `unsafe` stays in one file.

use std::path::{Path, PathBuf};

const MOST_LINES: usize = 800;
const UNSAFE_FILE: &str = "vfs/mmap.rs";

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every `.rs` file below src: its path relative to src, and its text.
fn files() -> Vec<(String, String)> {
    fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
        for e in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
            if e.file_type().unwrap().is_dir() {
                walk(&e.path(), out);
            } else if e.path().extension().is_some_and(|x| x == "rs") {
                out.push(e.path());
            }
        }
    }
    let root = source();
    let mut paths = Vec::new();
    walk(&root, &mut paths);
    paths.sort();
    let relative = |p: &Path| p.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
    paths.iter().map(|p| (relative(p), std::fs::read_to_string(p).unwrap())).collect()
}

/// The modules in the order of lib.rs.
fn order(lib: &str) -> Vec<String> {
    lib.lines().filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';')).map(str::to_owned).collect()
}

fn is_test_file(path: &str) -> bool {
    path.split('/')
        .any(|part| matches!(part, "tests" | "tests.rs" | "testing.rs") || part.ends_with("_tests.rs") || part.ends_with("_test.rs"))
}

/// The text without what follows the first test module: those stand at the end of a file.
fn without_tests(text: &str) -> &str {
    text.find("#[cfg(test)]\nmod tests {").map_or(text, |at| &text[..at])
}

/// The text with comments, strings and characters blanked out.
fn code_only(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let b = text.as_bytes();
    let mut i = 0;
    while i < b.len() {
        let rest = &text[i..];
        let raw = rest.strip_prefix('r').map(|r| r.bytes().take_while(|c| *c == b'#').count());
        let skip = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if let Some(n) = raw.filter(|n| rest[1 + n..].starts_with('"') && !out.ends_with(|c: char| c.is_alphanumeric() || c == '_'))
        {
            let end = format!("\"{}", "#".repeat(n));
            rest[n + 2..].find(&end).map_or(rest.len(), |at| n + 2 + at + end.len())
        } else if rest.starts_with('"') {
            let mut at = 1;
            while at < rest.len() && rest.as_bytes()[at] != b'"' {
                at += if rest.as_bytes()[at] == b'\\' { 2 } else { 1 };
            }
            at + 1
        } else if rest.starts_with("'\"'") || rest.starts_with("'\\") {
            rest[2..].find('\'').map_or(1, |at| at + 3)
        } else {
            0
        };
        if skip > 0 {
            i = (i + skip).min(b.len());
            while !text.is_char_boundary(i) {
                i += 1;
            }
            out.push(' ');
            continue;
        }
        let c = rest.chars().next().unwrap();
        out.push(c);
        i += c.len_utf8();
    }
    out
}

/// The top modules that `crate::` paths in `code` name, `crate::{a, b::c}` included.
fn imports(code: &str) -> Vec<String> {
    let word = |s: &str| s.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut out = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            out.push(word(rest));
            continue;
        };
        let mut depth = 0;
        let mut item = String::new();
        for c in group.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => out.push(word(std::mem::take(&mut item).trim())),
                _ if depth == 0 => item.push(c),
                _ => {}
            }
        }
        out.push(word(item.trim()));
    }
    out.retain(|m| !m.is_empty());
    out
}

/// Imports of `path` that are not from modules above its own.
fn violations(order: &[String], path: &str, text: &str) -> Vec<String> {
    let top = path.split('/').next().unwrap().trim_end_matches(".rs").to_owned();
    let Some(own) = order.iter().position(|m| *m == top) else { return vec![format!("{path}: module {top} is not in lib.rs")] };
    let code = code_only(without_tests(text));
    imports(&code)
        .into_iter()
        .filter(|m| order.iter().position(|o| o == m).is_none_or(|at| at > own))
        .map(|m| format!("{path}: {top} imports from {m}, which does not stand above it"))
        .collect()
}

fn has_unsafe(code: &str) -> bool {
    code.match_indices("unsafe").any(|(at, w)| {
        let part = |c: char| c.is_alphanumeric() || c == '_';
        !code[..at].ends_with(part) && !code[at + w.len()..].starts_with(part)
    })
}

#[test]
fn modules_import_only_from_those_above() {
    let files = files();
    let order = order(&files.iter().find(|(p, _)| p == "lib.rs").unwrap().1);
    assert!(order.len() > 10, "{order:?}");
    let found: Vec<String> = files
        .iter()
        .filter(|(p, _)| p != "lib.rs" && p != "main.rs" && !is_test_file(p))
        .flat_map(|(p, text)| violations(&order, p, text))
        .collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn files_are_at_most_800_lines() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it");
    let ours = std::fs::read_dir(tests).unwrap().map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|x| x == "rs"));
    let ours = ours.map(|p| (p.display().to_string(), std::fs::read_to_string(p).unwrap()));
    let long: Vec<String> = files()
        .into_iter()
        .chain(ours)
        .filter(|(_, t)| t.lines().count() > MOST_LINES)
        .map(|(p, t)| format!("{p}: {} lines", t.lines().count()))
        .collect();
    assert!(long.is_empty(), "over {MOST_LINES} lines: {}", long.join(", "));
}

#[test]
fn unsafe_code_stands_in_one_file() {
    let found: Vec<String> = files().into_iter().filter(|(_, t)| has_unsafe(&code_only(t))).map(|(p, _)| p).collect();
    assert_eq!(found, [UNSAFE_FILE]);
}

#[test]
fn the_rules_find_what_they_look_for() {
    let order: Vec<String> = ["a", "b", "c"].map(str::to_owned).to_vec();
    let text = "use crate::a::X;\nuse crate::{a::{Y, Z}, c::W};\nfn f() { crate::c::g() }\n// crate::c\nconst S: &str = \"crate::c\";\n#[cfg(test)]\nmod tests {\n    use crate::c;\n}\n";
    let found = violations(&order, "b/x.rs", text);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(violations(&order, "c.rs", text).is_empty());
    assert_eq!(violations(&order, "d.rs", text).len(), 1);
    assert!(has_unsafe("unsafe { }") && has_unsafe("pub unsafe fn") && !has_unsafe("unsafe_code UnsafeNone not_unsafe"));
    assert_eq!(code_only("a // unsafe\n\"unsafe \\\" unsafe\" r#\"unsafe\"# '\"' b").split_whitespace().collect::<Vec<_>>(), ["a", "b"]);
}
