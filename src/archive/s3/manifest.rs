use serde::{Deserialize, Serialize};

use crate::{
    chunk::{Digest, RelPath},
    protocol::{Entry, EntryKind, Meta},
};

/// What a tree is besides the bytes of its files, as lines of JSON: a head, then a line for each folder, file and link in
/// the order of the tree digest.
///
/// The head's `check` is the BLAKE3 of the tree digest's text and of all lines behind the head: the tree digest covers no
/// times, and nothing else would tell that one was changed.
///
/// Names that are not UTF-8 stand in hexadecimal as `path_hex` and `target_hex`.
#[derive(Debug, Default)]
pub(super) struct Manifest {
    lines: Vec<(u64, String)>,
    bytes: usize,
}

/// One entry of a tree, and the BLAKE3 of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) entry: Entry,
    pub(super) digest: Option<Digest>,
}

#[derive(Serialize, Deserialize)]
struct Head {
    ccat_xfer_tree: u32,
    digest: String,
    entries: u64,
    check: String,
}

impl Head {
    fn check_of(digest: &str, lines: &[u8]) -> String {
        blake3::Hasher::new().update(digest.as_bytes()).update(lines).finalize().to_string()
    }
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    mode: u32,
    mtime_s: i64,
    mtime_ns: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    blake3: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target_hex: Option<String>,
}

impl Manifest {
    /// Adds an entry that is a folder, a file with its digest, or a link; false when that is more than can be kept.
    pub(super) fn insert(&mut self, id: u64, member: &Member) -> bool {
        let (path, path_hex) = text(member.entry.path.as_bytes());
        let meta = member.entry.meta;
        let mut line =
            Line { path, path_hex, mode: meta.mode, mtime_s: meta.mtime_s, mtime_ns: meta.mtime_ns, ..Line::default() };
        match &member.entry.kind {
            EntryKind::File { size, .. } => {
                line.kind = "file".to_owned();
                line.size = Some(*size);
                line.blake3 = member.digest.map(|digest| digest.to_string());
            }
            EntryKind::Dir => line.kind = "dir".to_owned(),
            EntryKind::Symlink { target } => {
                line.kind = "link".to_owned();
                (line.target, line.target_hex) = text(target);
            }
            EntryKind::DirEnd | EntryKind::Skipped | EntryKind::Failed { .. } => return true,
        }
        let Ok(line) = serde_json::to_string(&line) else { return false };
        self.bytes += line.len() + 1;
        self.lines.push((id, line));
        self.bytes <= MAX_MANIFEST_BYTES
    }

    /// The object's bytes.
    pub(super) fn into_bytes(mut self, digest: Digest) -> Vec<u8> {
        self.lines.sort_unstable_by_key(|(id, _)| *id);
        let (entries, digest) = (self.lines.len() as u64, digest.to_string());
        let mut lines = Vec::with_capacity(self.bytes);
        for (_, line) in self.lines {
            lines.extend_from_slice(line.as_bytes());
            lines.push(b'\n');
        }
        let check = Head::check_of(&digest, &lines);
        let mut bytes =
            serde_json::to_vec(&Head { ccat_xfer_tree: VERSION, digest, entries, check }).unwrap_or_default();
        bytes.push(b'\n');
        bytes.append(&mut lines);
        bytes
    }
}

/// The version of a manifest that a newer program wrote, which is whole and cannot be judged here.
pub(super) fn newer_version(bytes: &[u8]) -> Option<u32> {
    #[derive(Deserialize)]
    struct Version {
        ccat_xfer_tree: u32,
    }
    let head = bytes.split(|&b| b == b'\n').next()?;
    let head: Version = serde_json::from_slice(head).ok()?;
    (head.ccat_xfer_tree > VERSION).then_some(head.ccat_xfer_tree)
}

/// Reads a manifest. What it says is not believed: names stay below the tree, and sizes are compared.
pub(super) fn parse(bytes: &[u8]) -> Result<Vec<Member>, String> {
    let end = bytes.iter().position(|&b| b == b'\n').ok_or("it has no end of a line")?;
    let (head, lines) = (&bytes[..end], &bytes[end + 1..]);
    let head: Head = serde_json::from_slice(head).map_err(|_| "its first line is none of a manifest")?;
    if head.ccat_xfer_tree != VERSION {
        return Err(format!("it says to be of version {}", head.ccat_xfer_tree));
    }
    if head.check != Head::check_of(&head.digest, lines) {
        return Err("its lines are not those that were written".to_owned());
    }
    let mut members = Vec::new();
    for (number, line) in lines.split(|&b| b == b'\n').filter(|line| !line.is_empty()).enumerate() {
        let wrong = |what: String| format!("entry {}: {what}", number + 1);
        let line: Line = serde_json::from_slice(line).map_err(|error| wrong(error.to_string()))?;
        members.push(line.member().map_err(wrong)?);
    }
    if members.len() as u64 == head.entries {
        Ok(members)
    } else {
        Err(format!("it has {} entries of {}", members.len(), head.entries))
    }
}

impl Line {
    fn member(self) -> Result<Member, String> {
        let path = bytes(self.path, self.path_hex).ok_or("it has no path")?;
        let path = RelPath::new(path).map_err(|error| error.to_string())?;
        let meta = Meta { mode: self.mode & 0o7777, mtime_s: self.mtime_s, mtime_ns: self.mtime_ns, ..Meta::default() };
        let mut digest = None;
        let kind = match self.kind.as_str() {
            "dir" => EntryKind::Dir,
            "link" => EntryKind::Symlink { target: bytes(self.target, self.target_hex).ok_or("it has no target")? },
            "file" => {
                let text = self.blake3.ok_or("it has no digest")?;
                digest = Some(text.parse().map_err(|error: crate::chunk::DigestParseError| error.to_string())?);
                EntryKind::File { size: self.size.ok_or("it has no size")?, sparse: false, expected: None }
            }
            other => return Err(format!("'{}' is no kind of entry", crate::chunk::escape_bytes(other.as_bytes()))),
        };
        Ok(Member { entry: Entry { path, meta, kind }, digest })
    }
}

fn text(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(bytes.iter().map(|b| format!("{b:02x}")).collect())),
    }
}

fn bytes(text: Option<String>, hex: Option<String>) -> Option<Vec<u8>> {
    match (text, hex) {
        (Some(text), None) => Some(text.into_bytes()),
        (None, Some(hex)) if hex.len().is_multiple_of(2) && hex.is_ascii() => {
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok()).collect()
        }
        _ => None,
    }
}

/// The first version of the format.
const VERSION: u32 = 1;
/// Some million entries. It is held in memory and put at once.
pub(super) const MAX_MANIFEST_BYTES: usize = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn member(path: &[u8], kind: EntryKind) -> Member {
        let digest = matches!(kind, EntryKind::File { .. }).then(|| Digest::of(path));
        let meta = Meta { mode: 0o640, mtime_s: -1, mtime_ns: 999_999_999, ..Meta::default() };
        Member { entry: Entry { path: RelPath::new(path).unwrap(), meta, kind }, digest }
    }

    fn members() -> Vec<Member> {
        let file = || EntryKind::File { size: 7, sparse: false, expected: None };
        vec![
            member(b"t", EntryKind::Dir),
            member(b"t/\xff\n", file()),
            member(b"t/a\n\"b", file()),
            member(b"t/l", EntryKind::Symlink { target: b"\xfe/x".to_vec() }),
        ]
    }

    fn bytes_of(members: &[Member]) -> Vec<u8> {
        let mut manifest = Manifest::default();
        // In any order, as uploads end.
        for (id, member) in (0..).zip(members).collect::<Vec<_>>().into_iter().rev() {
            assert!(manifest.insert(id, member));
        }
        manifest.into_bytes(Digest::of(b"tree"))
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        assert_eq!(parse(&bytes_of(&members())).unwrap(), members());
    }

    /// Catches a check that is not compared: times are in no digest.
    #[test]
    fn no_bit_of_a_manifest_can_change_unnoticed() {
        let good = bytes_of(&members());
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            assert!(parse(&bad).is_err(), "byte {at}: {}", String::from_utf8_lossy(&bad));
        }
    }

    /// Catches a manifest of a newer program that is called corrupt, and then replaced.
    #[test]
    fn a_newer_version_is_told_from_damage() {
        let good = String::from_utf8(bytes_of(&members())).unwrap();
        let newer = "{\"ccat_xfer_tree\":2,\"whatever\":[]}\nand its lines";
        assert_eq!((newer_version(good.as_bytes()), newer_version(newer.as_bytes())), (None, Some(2)));
        assert_eq!(newer_version(&good.as_bytes()[1..]), None);
    }

    /// Catches a count of entries that is not compared, and lines believed because the check fits them.
    #[test]
    fn a_manifest_that_is_torn_or_strange_is_refused() {
        let good = String::from_utf8(bytes_of(&members())).unwrap();
        let mut torn = good.trim_end().rsplit_once('\n').unwrap().0.to_owned();
        torn.push('\n');
        assert_eq!(sealed(&good), good);
        for bad in [String::new(), good[..good.len() - 3].to_owned()] {
            parse(bad.as_bytes()).unwrap_err();
        }
        for bad in [
            torn,
            good.replace("\"ccat_xfer_tree\":1", "\"ccat_xfer_tree\":2"),
            good.replace("\"path\":\"t/l\"", "\"path\":\"../l\""),
            good.replace("\"kind\":\"link\"", "\"kind\":\"pipe\""),
            good.replace("\"path_hex\":\"74", "\"path_hex\":\"7g"),
            good.replace("\"size\":7,", ""),
        ] {
            assert_ne!(bad, good);
            parse(sealed(&bad).as_bytes()).unwrap_err();
        }
    }

    /// A manifest with a check that fits its lines.
    fn sealed(manifest: &str) -> String {
        let (head, lines) = manifest.split_once('\n').unwrap();
        let mut head: Head = serde_json::from_str(head).unwrap();
        head.check = Head::check_of(&head.digest, lines.as_bytes());
        format!("{}\n{lines}", serde_json::to_string(&head).unwrap())
    }
}
