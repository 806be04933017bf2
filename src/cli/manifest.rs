//! Manifest files: what `--manifest` writes and `verify` reads.
//!
//! The file is what `b3sum` prints: `DIGEST  PATH` per line; a path with a newline or backslash has these written as
//! `\n` and `\\`, and its line begins with `\`. `b3sum -c FILE` checks it in the folder that the paths are relative to.
//!
//! b3sum cannot express every name: bytes that are not UTF-8, U+FFFD, and (some versions) a carriage return. Files with
//! such names go into a second file beside it, `FILE.names.jsonl`, one JSON object per line: `path_b64` and `digest`.
//! `verify` reads both; the second one exists only if it is needed.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::base64;
use crate::chunk::{Digest, RelPath};

/// One file of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) path: RelPath,
    pub(super) digest: Digest,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ManifestError {
    #[error("cannot write the manifest {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read the manifest {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("the manifest {path} is damaged or of another kind at line {line}: {reason}")]
    Malformed { path: PathBuf, line: u64, reason: &'static str },
}

/// Writes a manifest as files come in. Both files appear under their names when all is in them, or not at all.
#[derive(Debug)]
pub(super) struct Writer {
    path: PathBuf,
    plain: Half,
    names: Option<Half>,
}

#[derive(Debug)]
struct Half {
    target: PathBuf,
    temporary: PathBuf,
    out: Option<BufWriter<File>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NameLine {
    path_b64: String,
    digest: String,
}

impl Writer {
    pub(super) fn create(path: &Path) -> Result<Self, ManifestError> {
        let plain = Half::create(path).map_err(|source| ManifestError::Write { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), plain, names: None })
    }

    pub(super) fn add(&mut self, path: &[u8], digest: Digest) -> Result<(), ManifestError> {
        self.try_add(path, digest).map_err(|source| ManifestError::Write { path: self.path.clone(), source })
    }

    fn try_add(&mut self, path: &[u8], digest: Digest) -> io::Result<()> {
        if let Some(line) = b3sum_line(path, digest) {
            return self.plain.write(line.as_bytes());
        }
        let names = match &mut self.names {
            Some(names) => names,
            none => none.insert(Half::create(&names_file(&self.path))?),
        };
        let mut line = serde_json::to_vec(&NameLine { path_b64: base64::encode(path), digest: digest.to_string() })?;
        line.push(b'\n');
        names.write(&line)
    }

    pub(super) fn finish(self) -> Result<(), ManifestError> {
        let path = self.path.clone();
        self.try_finish().map_err(|source| ManifestError::Write { path, source })
    }

    fn try_finish(mut self) -> io::Result<()> {
        // The second file first: whoever sees the first one sees all of it.
        match &mut self.names {
            Some(names) => names.publish()?,
            None => match fs::remove_file(names_file(&self.path)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            },
        }
        self.plain.publish()
    }
}

impl Half {
    fn create(target: &Path) -> io::Result<Self> {
        let mut name = target.as_os_str().to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        let temporary = PathBuf::from(name);
        let out = Some(BufWriter::new(File::create_new(&temporary)?));
        Ok(Self { target: target.to_owned(), temporary, out })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.out {
            Some(out) => out.write_all(bytes),
            None => Ok(()),
        }
    }

    fn publish(&mut self) -> io::Result<()> {
        if let Some(out) = self.out.take() {
            out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
            fs::rename(&self.temporary, &self.target)?;
        }
        Ok(())
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        // Still open means never published.
        if self.out.take().is_some() {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// The file for names that b3sum cannot express.
fn names_file(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".names.jsonl");
    PathBuf::from(name)
}

/// A line as b3sum prints it, or `None` for a name that it cannot express.
pub(super) fn b3sum_line(path: &[u8], digest: Digest) -> Option<String> {
    let text = std::str::from_utf8(path).ok().filter(|text| !text.contains(['\u{fffd}', '\r']))?;
    Some(if text.contains(['\\', '\n']) {
        format!("\\{digest}  {}\n", text.replace('\\', "\\\\").replace('\n', "\\n"))
    } else {
        format!("{digest}  {text}\n")
    })
}

/// Reads a manifest, line by line.
pub(super) fn read(path: &Path) -> Result<Vec<Line>, ManifestError> {
    let mut lines = Vec::new();
    read_lines(path, parse_b3sum, &mut lines)?;
    let names = names_file(path);
    if names.exists() {
        read_lines(&names, parse_name, &mut lines)?;
    }
    Ok(lines)
}

fn read_lines(
    path: &Path,
    parse: impl Fn(&[u8]) -> Result<Line, &'static str>,
    lines: &mut Vec<Line>,
) -> Result<(), ManifestError> {
    let failed = |source| ManifestError::Read { path: path.to_owned(), source };
    let mut input = BufReader::new(File::open(path).map_err(failed)?);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let limited = input.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line).map_err(failed)?;
        if limited == 0 {
            break;
        }
        let malformed = |reason| ManifestError::Malformed { path: path.to_owned(), line: number, reason };
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        if text.len() >= usize::try_from(MAX_LINE_BYTES - 1).unwrap_or(usize::MAX) {
            return Err(malformed("the line is longer than any path"));
        }
        lines.push(parse(text).map_err(malformed)?);
    }
    Ok(())
}

fn parse_b3sum(line: &[u8]) -> Result<Line, &'static str> {
    let line = std::str::from_utf8(line).map_err(|_| "it is not UTF-8")?;
    let (escaped, line) = match line.strip_prefix('\\') {
        Some(rest) => (true, rest),
        None => (false, line),
    };
    let (digest, path) = line.split_once("  ").ok_or("two spaces must stand between digest and path")?;
    let digest = digest.parse().map_err(|_| "it does not begin with a BLAKE3 digest")?;
    let path = if escaped {
        unescape(path).ok_or("a '\\' in the path is followed by neither 'n' nor '\\'")?
    } else {
        path.to_owned()
    };
    Ok(Line { path: relative(path.as_bytes())?, digest })
}

fn parse_name(line: &[u8]) -> Result<Line, &'static str> {
    let line: NameLine = serde_json::from_slice(line).map_err(|_| "it is not an object of path_b64 and digest")?;
    let path = base64::decode(&line.path_b64).ok_or("path_b64 is not base64")?;
    let digest = line.digest.parse().map_err(|_| "digest is not a BLAKE3 digest")?;
    Ok(Line { path: relative(&path)?, digest })
}

fn relative(path: &[u8]) -> Result<RelPath, &'static str> {
    let path = path.strip_prefix(b"./").unwrap_or(path);
    RelPath::new(path).ok().filter(|p| !p.is_root()).ok_or("the path is not relative, or has '..' in it")
}

fn unescape(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.push(match c {
            '\\' => match chars.next()? {
                'n' => '\n',
                'r' => '\r',
                '\\' => '\\',
                _ => return None,
            },
            c => c,
        });
    }
    Some(out)
}

// A path of 4,095 bytes, each escaped or in base64, with its digest and keys.
const MAX_LINE_BYTES: u64 = 16 << 10;

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt, process::Command};

    use super::*;
    use proptest::prelude::*;

    fn line(path: &[u8]) -> Line {
        Line { path: RelPath::new(path).unwrap(), digest: Digest::of(path) }
    }

    fn written(path: &Path, names: &[&[u8]]) {
        let mut writer = Writer::create(path).unwrap();
        for name in names {
            writer.add(name, Digest::of(name)).unwrap();
        }
        writer.finish().unwrap();
    }

    const NAMES: [&[u8]; 12] = [
        b"a",
        b"d/b",
        b" x ",
        b"a  b",
        b"n\nl",
        b"b\\s",
        b"\\",
        b"\xff",
        b"r\r",
        b"\xef\xbf\xbd",
        b"-c",
        "\u{e9}".as_bytes(),
    ];

    #[test]
    fn what_is_written_is_read() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("m");
        written(&path, &NAMES);
        let mut got = read(&path).unwrap();
        let mut want: Vec<Line> = NAMES.iter().map(|n| line(n)).collect();
        got.sort_by(|a, b| a.path.cmp(&b.path));
        want.sort_by(|a, b| a.path.cmp(&b.path));
        assert_eq!(got, want);
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 2);
        // Without odd names there is no second file, and an old one does not stay.
        written(&path, &NAMES[..2]);
        assert_eq!(read(&path).unwrap().len(), 2);
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
    }

    #[test]
    fn b3sum_agrees() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("m");
        for name in NAMES {
            let file = temp.path().join(OsStr::from_bytes(name));
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, name).unwrap();
        }
        written(&path, &NAMES);
        match Command::new("b3sum").arg("-c").arg("m").current_dir(temp.path()).output() {
            Ok(output) => {
                assert!(output.status.success(), "{output:?}");
                assert_eq!(
                    output.stdout.split(|&b| b == b'\n').filter(|l| l.ends_with(b": OK")).count(),
                    NAMES.len() - 3
                );
            }
            Err(error) => eprintln!("SKIPPED: b3sum cannot be run: {error}"),
        }
    }

    #[test]
    fn damaged_lines_are_named() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("m");
        let digest = Digest::of(b"");
        let good = format!("{digest}  ./a\n");
        for bad in [
            format!("{digest} a"),
            format!("{digest}  /etc/passwd"),
            format!("{digest}  a/../../b"),
            format!("{digest}  "),
            format!("\\{digest}  a\\t"),
            format!("\\{digest}  a\\"),
            format!("{}  a", &digest.to_string()[1..]),
            "x".repeat(40_000),
            String::new(),
        ] {
            fs::write(&path, format!("{good}{bad}\n")).unwrap();
            match read(&path) {
                Err(ManifestError::Malformed { line: 2, .. }) => {}
                other => panic!("{bad}: {other:?}"),
            }
        }
        fs::write(&path, &good).unwrap();
        assert_eq!(read(&path).unwrap(), [Line { path: RelPath::new(b"a".as_slice()).unwrap(), digest }]);
        assert!(matches!(read(&temp.path().join("none")), Err(ManifestError::Read { .. })));
    }

    proptest! {
        #[test]
        fn any_line_is_answered(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = (parse_b3sum(&bytes), parse_name(&bytes));
        }

        #[test]
        fn any_name_survives(name in "[^/\\x00\\r\\x{fffd}]{1,40}".prop_filter("no dots", |n| n != "." && n != "..")) {
            let digest = Digest::of(name.as_bytes());
            let written = b3sum_line(name.as_bytes(), digest).unwrap();
            let got = parse_b3sum(written.strip_suffix('\n').unwrap().as_bytes()).unwrap();
            prop_assert_eq!(got.path.as_bytes(), name.as_bytes());
        }
    }
}
