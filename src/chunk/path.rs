use std::fmt::{self, Write as _};

/// Longest path accepted, in bytes. Linux refuses longer ones in one call (PATH_MAX less its NUL).
pub const MAX_PATH_BYTES: usize = 4095;
/// Longest single name accepted, in bytes (NAME_MAX).
pub const MAX_NAME_BYTES: usize = 255;

/// A path relative to some root, as bytes, that cannot leave that root by its spelling: no empty, `.` or `..`
/// component, no leading slash, no NUL. The empty path names the root itself.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct RelPath(Vec<u8>);

/// Why bytes are not a [`RelPath`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Longer than [`MAX_PATH_BYTES`].
    #[error("path is longer than {MAX_PATH_BYTES} bytes")]
    TooLong,
    /// A component is longer than [`MAX_NAME_BYTES`].
    #[error("a name in the path is longer than {MAX_NAME_BYTES} bytes")]
    NameTooLong,
    /// Starts with a slash.
    #[error("path is absolute")]
    Absolute,
    /// Contains a NUL byte.
    #[error("path contains a NUL byte")]
    Nul,
    /// Has an empty, `.` or `..` component.
    #[error("path has an empty, '.' or '..' component")]
    Component,
}

impl RelPath {
    /// The root itself.
    pub fn root() -> Self {
        Self(Vec::new())
    }

    /// Checks and takes the bytes of a path.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, PathError> {
        let bytes = bytes.into();
        if bytes.len() > MAX_PATH_BYTES {
            return Err(PathError::TooLong);
        }
        if bytes.first() == Some(&b'/') {
            return Err(PathError::Absolute);
        }
        if bytes.contains(&0) {
            return Err(PathError::Nul);
        }
        if !bytes.is_empty() {
            for name in bytes.split(|&b| b == b'/') {
                match name {
                    b"" | b"." | b".." => return Err(PathError::Component),
                    _ if name.len() > MAX_NAME_BYTES => return Err(PathError::NameTooLong),
                    _ => {}
                }
            }
        }
        Ok(Self(bytes))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this names the root itself.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The components, outermost first.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|&b| b == b'/').filter(|name| !name.is_empty())
    }

    /// The directory part and the last name; `None` for the root.
    pub fn split_last(&self) -> Option<(Self, &[u8])> {
        if self.0.is_empty() {
            return None;
        }
        Some(match self.0.iter().rposition(|&b| b == b'/') {
            Some(slash) => (Self(self.0[..slash].to_vec()), &self.0[slash + 1..]),
            None => (Self::root(), &self.0),
        })
    }

    /// The first name of the path; `None` for the root.
    pub fn first(&self) -> Option<&[u8]> {
        self.components().next()
    }

    /// This path with one more name.
    pub fn join(&self, name: &[u8]) -> Result<Self, PathError> {
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + name.len());
        bytes.extend_from_slice(&self.0);
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        if name.contains(&b'/') || name.is_empty() { Err(PathError::Component) } else { Self::new(bytes) }
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape_bytes(&self.0))
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Renders bytes that somebody else chose so that a terminal or a log line cannot be steered by them: UTF-8 text stays,
/// control characters, invalid bytes and the backslash become `\xNN` or a short escape.
pub fn escape_bytes(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for part in bytes.utf8_chunks() {
        for c in part.valid().chars() {
            match c {
                '\n' => out.push_str("\\n"),
                '\t' => out.push_str("\\t"),
                '\\' => out.push_str("\\\\"),
                c if c.is_control() || is_steering(c) => {
                    let mut utf8 = [0; 4];
                    for b in c.encode_utf8(&mut utf8).bytes() {
                        let _ = write!(out, "\\x{b:02x}");
                    }
                }
                c => out.push(c),
            }
        }
        for b in part.invalid() {
            let _ = write!(out, "\\x{b:02x}");
        }
    }
    out
}

/// Text that somebody else wrote, without what could steer a terminal or forge a line of a log. Bytes that are not UTF-8
/// get longer: each becomes a replacement character.
pub fn plain_text(bytes: &[u8]) -> String {
    let plain = |c: char| match c {
        '\n' | '\t' => ' ',
        c if c.is_control() || is_steering(c) => '?',
        c => c,
    };
    String::from_utf8_lossy(bytes).chars().map(plain).collect()
}

/// Characters that reorder or hide text around them (Unicode bidirectional controls and line separators).
fn is_steering(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_could_leave_the_root_are_refused() {
        for (bytes, error) in [
            (&b"/a"[..], PathError::Absolute),
            (b"..", PathError::Component),
            (b"a/../b", PathError::Component),
            (b"a//b", PathError::Component),
            (b"a/", PathError::Component),
            (b"./a", PathError::Component),
            (b"a\0b", PathError::Nul),
            (&[b'x'; 256], PathError::NameTooLong),
            (&[b'x'; 4096], PathError::TooLong),
        ] {
            assert_eq!(RelPath::new(bytes).unwrap_err(), error, "{}", escape_bytes(bytes));
        }
    }

    #[test]
    fn any_other_bytes_are_names() {
        for bytes in [&b""[..], b"a", b"a/b", b"-rf", b"new\nline", b"\xff\xfe", b"...", &[b'x'; 255]] {
            assert_eq!(RelPath::new(bytes).unwrap().as_bytes(), bytes);
        }
        let p = RelPath::new(b"a/b/c".to_vec()).unwrap();
        assert_eq!(p.split_last().unwrap(), (RelPath::new(b"a/b".to_vec()).unwrap(), &b"c"[..]));
        assert!(p.join(b"x/y").is_err());
        assert!(p.join(b"..").is_err());
    }

    #[test]
    fn escapes_leave_nothing_that_steers_a_terminal() {
        assert_eq!(escape_bytes(b"a\x1b[31m\n\xff\\"), "a\\x1b[31m\\n\\xff\\\\");
        assert_eq!(escape_bytes("M\u{fc}nchen".as_bytes()), "M\u{fc}nchen");
        assert_eq!(escape_bytes("a\u{202e}b".as_bytes()), "a\\xe2\\x80\\xaeb");
        assert_eq!(plain_text("a\x1b[2J\r\nM\u{fc}\\n\u{9b}\u{202e}".as_bytes()), "a?[2J? M\u{fc}\\n??");
    }
}
