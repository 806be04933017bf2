//! The rules of the house, checked on the source itself: who may import whom, which modules stay pure, how long a file
//! may grow, where `unsafe` lives, which licences are linked.
//!
//! The checker works on tokens, not on a full parse: comments and literals are removed, `use` trees are expanded,
//! `self` and `super` are resolved against the file's place. `#[cfg(test)]` modules are exempt: a test may reach
//! anywhere.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A module and what of the crate it may name. A longer name is a row of its own: `journal::record` obeys its own row,
/// not `journal`'s. A target such as `chunk::RelPath` allows that item only.
const EDGES: &[(&str, &[&str])] = &[
    ("chunk", &[]),
    ("secret", &[]),
    ("task", &[]),
    ("telemetry", &["secret"]),
    ("broker", &["secret", "task", "telemetry"]),
    ("protocol", &["chunk"]),
    ("journal::record", &["chunk"]),
    ("buf", &[]),
    (
        "disk",
        &["buf", "chunk::RelPath", "chunk::Digest", "chunk::PathError", "chunk::escape_bytes", "chunk::MAX_NAME_BYTES"],
    ),
    ("net", &["buf"]),
    ("journal", &["chunk", "buf", "disk", "journal::record"]),
    ("engine", &["chunk", "protocol", "buf", "disk", "net", "journal"]),
    ("endpoint", &["chunk", "protocol", "buf", "disk", "net", "journal", "engine"]),
    ("reach", &["chunk", "protocol", "buf", "disk", "net", "journal", "engine", "endpoint"]),
    ("model", &["chunk", "config::units"]),
    ("store", &["chunk", "model"]),
    ("archive", &["chunk", "buf", "disk", "journal", "protocol", "engine", "secret", "task", "model"]),
    ("config::units", &[]),
    ("manager", &["broker", "chunk", "model", "store", "task", "telemetry"]),
    (
        "worker",
        &[
            "archive",
            "chunk",
            "protocol::Evidence",
            "disk",
            "net",
            "engine",
            "reach",
            "model",
            "store",
            "broker",
            "task",
            "telemetry",
        ],
    ),
    (
        "config",
        &[
            "archive",
            "chunk",
            "protocol",
            "buf",
            "disk",
            "net",
            "journal",
            "engine",
            "endpoint",
            "reach",
            "config::units",
            "broker",
            "model",
            "secret",
            "telemetry",
        ],
    ),
    (
        "cli",
        &[
            "archive",
            "chunk",
            "protocol",
            "buf",
            "disk",
            "net",
            "journal",
            "engine",
            "endpoint",
            "reach",
            "config",
            "config::units",
            "model",
            "store",
            "broker",
            "manager",
            "worker",
            "task",
            "telemetry",
        ],
    ),
];

/// Modules without clock, file, network or thread.
const PURE: &[&str] = &["chunk", "protocol", "journal::record", "model", "config::units"];

/// Paths and words that a pure module must not name.
const IMPURE_PATHS: &[&str] = &[
    "std::fs",
    "std::net",
    "std::thread",
    "std::process",
    "std::env",
    "std::io",
    "std::time::Instant",
    "std::time::SystemTime",
    "tokio",
    "rustix",
    "quinn",
    "socket2",
];
const IMPURE_WORDS: &[&str] = &["async", "await", "Instant", "SystemTime"];

/// Where `unsafe` may stand. Each block there carries its argument (clippy's `undocumented_unsafe_blocks`).
const UNSAFE_ALLOWED: &[&str] = &["disk/uring"];

const MAX_PRODUCTION_LINES: usize = 800;

/// Licences that may be linked. `.deny.toml` holds the same list.
const LICENCES: &[&str] = &[
    "MIT",
    "MIT-0",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "Unicode-3.0",
    "CC0-1.0",
    "Unlicense",
    "CDLA-Permissive-2.0",
    "BSL-1.0",
    "0BSD",
    "OpenSSL",
];

#[test]
fn modules_import_only_what_the_table_allows() {
    let files = sources(&package().join("src"));
    assert!(files.len() > 5, "the walk of src found only {} files", files.len());
    refuse(check_edges(&files));
}

#[test]
fn pure_modules_have_no_clock_file_network_or_task() {
    refuse(check_pure(&sources(&package().join("src"))));
}

#[test]
fn files_stay_short() {
    let long: Vec<String> = sources(&package().join("src"))
        .iter()
        .filter_map(|file| {
            let lines = production_lines(&file.text);
            (lines > MAX_PRODUCTION_LINES)
                .then(|| format!("src/{}: {lines} lines without tests, at most {MAX_PRODUCTION_LINES}", file.name))
        })
        .collect();
    refuse(long);
}

#[test]
fn unsafe_stays_where_it_is_allowed() {
    let found: Vec<String> = sources(&package().join("src"))
        .iter()
        .filter(|file| !UNSAFE_ALLOWED.iter().any(|place| file.name.starts_with(place)))
        .filter(|file| tokens(&file.text).iter().any(|t| t.text == "unsafe"))
        .map(|file| format!("src/{}: unsafe outside {UNSAFE_ALLOWED:?}", file.name))
        .collect();
    refuse(found);
}

/// Marks of unfinished work and names of one machine's folders do not belong in what is published.
#[test]
fn no_marks_of_unfinished_work_and_no_local_paths() {
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:"), concat!("/wo", "rk/")];
    let mut found = Vec::new();
    for folder in ["src", "tests", "benches", "fuzz", "scripts", "certs"] {
        for path in walk(&package().join(folder)) {
            if path.components().any(|c| c.as_os_str() == "target" || c.as_os_str() == "corpus") {
                continue;
            }
            let Ok(text) = fs::read_to_string(&path) else { continue };
            for (number, line) in text.lines().enumerate() {
                if let Some(word) = words.iter().find(|w| line.contains(**w)) {
                    found.push(format!("{}:{}: {word}", path.display(), number + 1));
                }
            }
        }
    }
    refuse(found);
}

/// The same promise as `.deny.toml`, kept without installing cargo-deny.
#[test]
fn every_linked_licence_is_on_the_list() {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--all-features"])
        .current_dir(package())
        .output()
        .expect("cargo metadata starts");
    if !out.status.success() {
        println!("SKIP: cargo metadata failed: {}", String::from_utf8_lossy(&out.stderr));
        return;
    }
    let meta: serde_json::Value = serde_json::from_slice(&out.stdout).expect("cargo metadata prints JSON");
    let packages = meta["packages"].as_array().expect("a list of packages");
    let mut bad = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or("?");
        match package["license"].as_str() {
            None => bad.push(format!("{name}: no licence expression")),
            Some(expression) if !licence_allowed(expression) => bad.push(format!("{name}: {expression}")),
            Some(_) => {}
        }
    }
    println!("{} packages looked at", packages.len());
    refuse(bad);
}

/// The checker itself: each rule is shown a small tree that breaks it. Seen to fail with the expansion of `use` trees
/// left out (the grouped and the nested import then pass), and with `super` not resolved.
#[test]
fn the_checker_finds_planted_faults() {
    let plant = |name: &str, text: &str| vec![Source { name: name.to_owned(), text: text.to_owned() }];
    let edge = |name: &str, text: &str| check_edges(&plant(name, text)).len();
    assert_eq!(edge("net/tcp.rs", "use crate::buf::Pool;"), 0);
    assert_eq!(edge("net/tcp.rs", "use crate::protocol::Frame;"), 1);
    assert_eq!(edge("net/tcp.rs", "use crate::{buf::Pool, engine::{Job, Summary}};"), 2);
    assert_eq!(edge("net/tcp.rs", "fn f() -> crate::engine::Job { todo!() }"), 1);
    assert_eq!(edge("net/tcp.rs", "use super::super::engine::Job;"), 1);
    assert_eq!(edge("net/mod.rs", "use super::engine;"), 1);
    assert_eq!(edge("net/mod.rs", "mod inner { use super::super::engine; use super::tcp; }"), 1);
    assert_eq!(edge("net/tcp.rs", "use ccat_xfer::engine::Job;"), 1);
    assert_eq!(edge("net/tcp.rs", "use crate::*;"), 1);
    assert_eq!(edge("disk/mod.rs", "use crate::chunk::{RelPath, PathError};"), 0);
    assert_eq!(edge("disk/mod.rs", "use crate::chunk::{RelPath, ChunkSize};"), 1);
    assert_eq!(edge("disk/mod.rs", "use crate::chunk;"), 1);
    assert_eq!(edge("journal/record.rs", "use crate::chunk::Digest;"), 0);
    assert_eq!(edge("journal/record.rs", "use crate::disk::Root; use super::Part;"), 2);
    assert_eq!(edge("journal/mod.rs", "mod record; pub use record::Record; use crate::disk::Root;"), 0);
    assert_eq!(edge("engine/mod.rs", "use crate::cli::Args;"), 1);
    assert_eq!(edge("brand_new/mod.rs", "use std::fmt;"), 1, "a module without a row");
    assert_eq!(
        edge("net/tcp.rs", "// use crate::engine::Job;\n/* crate::engine */ const A: &str = \"crate::engine\";"),
        0
    );
    assert_eq!(edge("net/tcp.rs", "#[cfg(test)] mod tests { use crate::engine::Job; }"), 0);
    assert_eq!(edge("net/tcp.rs", "#[cfg(test)] mod tests { mod a {} } use crate::engine::Job;"), 1);
    assert_eq!(edge("net/tcp.rs", "const A: char = '\"'; use crate::engine::Job; const B: char = '\"';"), 1);

    let pure = |name: &str, text: &str| check_pure(&plant(name, text)).len();
    assert_eq!(pure("protocol/sender.rs", "use std::time::Duration;"), 0);
    assert_eq!(pure("protocol/sender.rs", "use std::time::{Duration, Instant};"), 2, "as a path and as a word");
    assert_eq!(pure("protocol/sender.rs", "use std::{fmt, fs::File};"), 1);
    assert_eq!(pure("protocol/sender.rs", "async fn f() {}"), 1);
    assert_eq!(pure("protocol/sender.rs", "fn f() { tokio::spawn(x); }"), 1);
    assert_eq!(pure("journal/record.rs", "use std::fs;"), 1);
    assert_eq!(pure("journal/mod.rs", "use std::fs;"), 0);
    assert_eq!(pure("chunk/set.rs", "#[cfg(test)] mod tests { use std::fs; }"), 0);

    assert_eq!(production_lines("a\nb\n#[cfg(test)]\nmod tests {\n x\n}\nc\n"), 3);
    assert!(licence_allowed("(MIT OR Apache-2.0) AND Unicode-3.0"));
    assert!(licence_allowed("MIT/Apache-2.0"));
    assert!(licence_allowed("GPL-3.0 OR MIT"));
    assert!(!licence_allowed("GPL-3.0"));
    assert!(!licence_allowed("MIT AND AGPL-3.0"));
    assert!(!licence_allowed("MIT AND (GPL-2.0 OR LGPL-3.0)"));
    assert!(licence_allowed("Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT"));
}

// ---- the checks

fn check_edges(files: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for file in files {
        if file.name == "lib.rs" || file.name == "main.rs" {
            continue;
        }
        let home = file.module();
        let Some((row, allowed)) = row_of(&home) else {
            found.push(format!(
                "src/{}: module {} has no row in EDGES of tests/layering.rs",
                file.name,
                home.join("::")
            ));
            continue;
        };
        let mut seen = BTreeSet::new();
        for path in paths(file) {
            let inside = match path.first().map(String::as_str) {
                Some("crate") => &path[1..],
                _ => continue,
            };
            let Some(top) = inside.first() else { continue };
            if top == "*" {
                seen.insert(format!("src/{}: {row} imports the whole crate", file.name));
                continue;
            }
            // A macro or item at the crate's root starts with neither a known row nor a folder of src.
            let Some((target, _)) = row_of(inside) else {
                if files.iter().any(|f| f.module().first() == Some(top)) {
                    seen.insert(format!("src/{}: {row} -> {top}, which has no row", file.name));
                }
                continue;
            };
            let text = inside.join("::");
            let fits = |allow: &&str| {
                **allow == *target
                    || allow.contains("::") && (text == **allow || text.starts_with(&format!("{allow}::")))
            };
            if target != row && !allowed.iter().any(fits) {
                seen.insert(format!("src/{}: {row} -> {text} is not in the table", file.name));
            }
        }
        found.extend(seen);
    }
    found
}

fn check_pure(files: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for file in files {
        let home = file.module();
        if !PURE.contains(&row_of(&home).map_or("", |row| row.0)) {
            continue;
        }
        for path in paths(file) {
            let text = path.join("::");
            if let Some(bad) = IMPURE_PATHS.iter().find(|p| text == **p || text.starts_with(&format!("{p}::"))) {
                found.push(format!("src/{}: a pure module names {bad}", file.name));
            }
        }
        let words: BTreeSet<String> = production_tokens(&file.text).into_iter().map(|t| t.text).collect();
        found.extend(
            IMPURE_WORDS
                .iter()
                .filter(|w| words.contains(**w))
                .map(|w| format!("src/{}: a pure module says {w}", file.name)),
        );
    }
    found
}

fn row_of(path: &[String]) -> Option<(&'static str, &'static [&'static str])> {
    let text = path.join("::");
    EDGES
        .iter()
        .filter(|(name, _)| text == *name || text.starts_with(&format!("{name}::")))
        .max_by_key(|(name, _)| name.len())
        .copied()
}

fn licence_allowed(expression: &str) -> bool {
    // AND binds tighter than OR; the old "A/B" means OR.
    fn any(parts: &mut std::iter::Peekable<std::vec::IntoIter<String>>) -> bool {
        let mut ok = all(parts);
        while parts.next_if(|p| p == "OR").is_some() {
            let other = all(parts);
            ok = ok || other;
        }
        ok
    }
    fn all(parts: &mut std::iter::Peekable<std::vec::IntoIter<String>>) -> bool {
        let mut ok = one(parts);
        while parts.next_if(|p| p == "AND").is_some() {
            let other = one(parts);
            ok = ok && other;
        }
        ok
    }
    fn one(parts: &mut std::iter::Peekable<std::vec::IntoIter<String>>) -> bool {
        let Some(part) = parts.next() else { return false };
        if part == "(" {
            let ok = any(parts);
            parts.next();
            return ok;
        }
        let mut name = part;
        if parts.next_if(|p| p == "WITH").is_some() {
            name = format!("{name} WITH {}", parts.next().unwrap_or_default());
        }
        LICENCES.contains(&name.as_str())
    }
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let parts: Vec<String> = spaced.split_whitespace().map(str::to_owned).collect();
    let mut parts = parts.into_iter().peekable();
    any(&mut parts) && parts.next().is_none()
}

fn production_lines(text: &str) -> usize {
    let kept: BTreeSet<usize> = production_tokens(text).iter().map(|t| t.line).collect();
    let all: BTreeSet<usize> = tokens(text).iter().map(|t| t.line).collect();
    // Comments and blank lines count where they stand; only the lines spanned by test modules are taken off.
    let dropped: Vec<usize> = all.difference(&kept).copied().collect();
    let span = match (dropped.first(), dropped.last()) {
        (Some(_), Some(_)) => {
            let mut lines = BTreeSet::new();
            let mut start = dropped[0];
            let mut last = start;
            for &line in &dropped[1..] {
                if kept.range(last..line).next().is_some() {
                    lines.extend(start..=last);
                    start = line;
                }
                last = line;
            }
            lines.extend(start..=last);
            lines.len()
        }
        _ => 0,
    };
    text.lines().count() - span
}

fn refuse(faults: Vec<String>) {
    assert!(faults.is_empty(), "{} fault(s):\n{}", faults.len(), faults.join("\n"));
}

// ---- the source, read

struct Source {
    /// Path below `src`.
    name: String,
    text: String,
}

impl Source {
    fn module(&self) -> Vec<String> {
        let mut parts: Vec<String> = self.name.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
        if matches!(parts.last().map(String::as_str), Some("mod" | "lib" | "main")) {
            parts.pop();
        }
        parts
    }
}

fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Production files of a tree: files that a `#[cfg(test)] mod name;` declares are left out.
fn sources(root: &Path) -> Vec<Source> {
    let mut files = Vec::new();
    let mut test_only = Vec::new();
    for path in walk(root) {
        if path.extension().is_none_or(|e| e != "rs") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("sources are UTF-8");
        let name = path.strip_prefix(root).expect("below the root").to_str().expect("an ASCII name").to_owned();
        let source = Source { name, text };
        for module in test_modules_elsewhere(&source.text) {
            test_only.push([source.module(), vec![module]].concat().join("/"));
        }
        files.push(source);
    }
    files.retain(|f| {
        let stem = f.module().join("/");
        !test_only.iter().any(|t| stem == *t || stem.starts_with(&format!("{t}/")))
    });
    files
}

fn walk(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() { open.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

#[derive(Clone, Debug, PartialEq)]
struct Token {
    text: String,
    line: usize,
}

/// Identifiers and punctuation (`::` is one token); comments, literals and lifetimes are gone.
fn tokens(text: &str) -> Vec<Token> {
    let b = text.as_bytes();
    let mut out = Vec::new();
    let (mut i, mut line) = (0, 1);
    let word = |c: u8| c.is_ascii_alphanumeric() || c == b'_' || c >= 0x80;
    while i < b.len() {
        let start = i;
        match b[i] {
            b'\n' => {
                line += 1;
                i += 1;
            }
            b'/' if b.get(i + 1) == Some(&b'/') => {
                while i < b.len() && b[i] != b'\n' {
                    i += 1;
                }
            }
            b'/' if b.get(i + 1) == Some(&b'*') => {
                let mut depth = 0;
                while i < b.len() {
                    if b[i..].starts_with(b"/*") {
                        depth += 1;
                        i += 2;
                    } else if b[i..].starts_with(b"*/") {
                        depth -= 1;
                        i += 2;
                        if depth == 0 {
                            break;
                        }
                    } else {
                        line += usize::from(b[i] == b'\n');
                        i += 1;
                    }
                }
            }
            b'"' => {
                i = end_of_string(b, i);
                line += b[start..i].iter().filter(|&&c| c == b'\n').count();
            }
            b'r' | b'b' | b'c' if raw_or_byte_string(b, i).is_some() => {
                i = raw_or_byte_string(b, i).expect("just matched");
                line += b[start..i].iter().filter(|&&c| c == b'\n').count();
            }
            b'\'' => {
                // A character literal ends in a quote; a lifetime does not.
                let rest = &text[i + 1..];
                let mut chars = rest.char_indices();
                match chars.next() {
                    Some((_, '\\')) => {
                        let mut j = i + 3;
                        while j < b.len() && b[j] != b'\'' {
                            j += 1;
                        }
                        i = j + 1;
                    }
                    Some(_) if chars.next().is_some_and(|(_, c)| c == '\'') => {
                        i += 2 + rest.chars().next().map_or(1, char::len_utf8);
                    }
                    _ => {
                        i += 1;
                        while i < b.len() && word(b[i]) {
                            i += 1;
                        }
                    }
                }
            }
            c if word(c) => {
                while i < b.len() && word(b[i]) {
                    i += 1;
                }
                out.push(Token { text: text[start..i].to_owned(), line });
            }
            b':' if b.get(i + 1) == Some(&b':') => {
                i += 2;
                out.push(Token { text: "::".to_owned(), line });
            }
            c if c.is_ascii_whitespace() => i += 1,
            _ => {
                i += 1;
                out.push(Token { text: text[start..i].to_owned(), line });
            }
        }
    }
    out
}

fn end_of_string(b: &[u8], quote: usize) -> usize {
    let mut i = quote + 1;
    while i < b.len() {
        match b[i] {
            b'\\' => i += 2,
            b'"' => return i + 1,
            _ => i += 1,
        }
    }
    b.len()
}

fn raw_or_byte_string(b: &[u8], at: usize) -> Option<usize> {
    let mut i = at;
    if matches!(b.get(i), Some(b'b' | b'c')) {
        i += 1;
    }
    if b.get(i) == Some(&b'\'') && i > at {
        // b'x' or b'\n'
        let end = if b.get(i + 1) == Some(&b'\\') { i + 3 } else { i + 2 };
        return b[end.min(b.len())..].iter().position(|&c| c == b'\'').map(|n| end + n + 1);
    }
    let raw = b.get(i) == Some(&b'r');
    if raw {
        i += 1;
    }
    let hashes = b[i..].iter().take_while(|&&c| c == b'#').count();
    if b.get(i + hashes) != Some(&b'"') || (hashes > 0 && !raw) {
        return None;
    }
    if !raw {
        return Some(end_of_string(b, i));
    }
    let end = [b"\"".as_slice(), &vec![b'#'; hashes]].concat();
    let body = i + hashes + 1;
    Some(b[body..].windows(end.len()).position(|w| w == end).map_or(b.len(), |n| body + n + end.len()))
}

/// The tokens without `#[cfg(test)] mod ... { ... }`.
fn production_tokens(text: &str) -> Vec<Token> {
    let all = tokens(text);
    let mut out = Vec::new();
    let mut i = 0;
    while i < all.len() {
        if let Some(body) = test_module_at(&all, i)
            && all.get(body).is_some_and(|t| t.text == "{")
        {
            i = matching(&all, body) + 1;
        } else {
            out.push(all[i].clone());
            i += 1;
        }
    }
    out
}

fn test_modules_elsewhere(text: &str) -> Vec<String> {
    let all = tokens(text);
    (0..all.len())
        .filter_map(|i| test_module_at(&all, i))
        .filter(|&end| all.get(end).is_some_and(|t| t.text == ";"))
        .map(|end| all[end - 1].text.clone())
        .collect()
}

/// Where the `{` or `;` of a module under `#[cfg(test)]` or `#[cfg(all(test, ...))]` stands, if its attribute starts at `i`.
fn test_module_at(all: &[Token], i: usize) -> Option<usize> {
    let is = |n: usize, text: &str| all.get(n).is_some_and(|t| t.text == text);
    if !(is(i, "#") && is(i + 1, "[") && is(i + 2, "cfg") && is(i + 3, "(")) {
        return None;
    }
    let inside_all = is(i + 4, "all") && is(i + 5, "(");
    if !is(i + if inside_all { 6 } else { 4 }, "test") {
        return None;
    }
    let mut n = matching(all, i + 1) + 1;
    while is(n, "#") {
        n = matching(all, n + 1) + 1;
    }
    if is(n, "pub") {
        n += 1;
        if is(n, "(") {
            n = matching(all, n) + 1;
        }
    }
    is(n, "mod").then_some(n + 2)
}

fn matching(all: &[Token], open: usize) -> usize {
    let mut depth = 0i32;
    for (n, token) in all.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => {
                depth -= 1;
                if depth == 0 {
                    return n;
                }
            }
            _ => {}
        }
    }
    all.len()
}

/// Every path of two parts or more, with `use` trees expanded and `self`/`super` resolved: each starts with `crate`,
/// or with the name of another crate. `crate::*` stands for a glob over the root.
fn paths(file: &Source) -> Vec<Vec<String>> {
    let all = production_tokens(&file.text);
    let mut found = Vec::new();
    // Inline modules open at this token, innermost last, each with the depth at which it closes.
    let mut inline: Vec<(String, i32)> = Vec::new();
    let mut depth = 0i32;
    let mut i = 0;
    while i < all.len() {
        let text = all[i].text.as_str();
        match text {
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                inline.retain(|(_, at)| *at < depth + 1);
            }
            "mod" if all.get(i + 2).is_some_and(|t| t.text == "{") => {
                inline.push((all[i + 1].text.clone(), depth + 1));
                depth += 1;
                i += 3;
                continue;
            }
            _ => {}
        }
        let starts = text == "use" || all.get(i + 1).is_some_and(|t| t.text == "::") && is_word(text);
        let continues = i > 0 && all[i - 1].text == "::";
        if starts && !continues {
            let first = if text == "use" { i + 1 } else { i };
            let mut raw = Vec::new();
            let end = expand(&all, first, &[], &mut raw);
            let mut home: Vec<String> = file.module();
            home.extend(inline.iter().map(|(name, _)| name.clone()));
            found.extend(raw.into_iter().map(|path| resolve(&home, path)));
            i = end.max(i + 1);
        } else {
            i += 1;
        }
    }
    found
}

fn is_word(text: &str) -> bool {
    text.bytes().next().is_some_and(|c| c.is_ascii_alphabetic() || c == b'_')
}

/// Reads one path or `use` tree from token `i` and returns where it ends.
fn expand(all: &[Token], mut i: usize, prefix: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let is = |n: usize, text: &str| all.get(n).is_some_and(|t| t.text == text);
    let mut path = prefix.to_vec();
    if is(i, "::") {
        i += 1;
    }
    loop {
        if is(i, "{") {
            let close = matching(all, i);
            i += 1;
            while i < close {
                i = expand(all, i, &path, found).max(i + 1);
                // Past a rename and the comma.
                while i < close && !is(i, ",") {
                    i += 1;
                }
                i += 1;
            }
            return close + 1;
        }
        let Some(token) = all.get(i).filter(|t| is_word(&t.text) || t.text == "*") else { break };
        path.push(token.text.clone());
        i += 1;
        if !is(i, "::") {
            break;
        }
        i += 1;
    }
    if path.len() > prefix.len() {
        found.push(path);
    }
    i
}

fn resolve(home: &[String], path: Vec<String>) -> Vec<String> {
    let mut base = home.to_vec();
    let mut rest = path.as_slice();
    match rest.first().map(String::as_str) {
        Some("ccat_xfer") => return [vec!["crate".to_owned()], rest[1..].to_vec()].concat(),
        Some("self") => rest = &rest[1..],
        Some("super") => {
            while rest.first().is_some_and(|p| p == "super") {
                base.pop();
                rest = &rest[1..];
            }
        }
        _ => return path,
    }
    // `use a::{self}` leaves a trailing `self`.
    let rest: Vec<String> = rest.iter().filter(|p| *p != "self").cloned().collect();
    [vec!["crate".to_owned()], base, rest].concat()
}
