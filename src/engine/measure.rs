//! What a file or tree is: size and digest, read once, the same as a job's receiver finds.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};

use super::{
    FailureClass, JobError,
    walk::{Found, Kind, Walk},
};
use crate::{
    chunk::{Digest, RelPath},
    disk::{DiskError, FileKind, Root, SourceFile},
    protocol::{Entry, EntryKind, Meta, TreeHasher},
};

/// A file or tree as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// Whether it is a folder with all below it.
    pub is_tree: bool,
    /// Bytes of its regular files.
    pub size_bytes: u64,
    /// Regular files.
    pub file_count: u64,
    /// BLAKE3 of a file; the tree digest of a folder, its own name included.
    pub digest: Digest,
    /// FIFOs, sockets and devices, which no job copies.
    pub skipped: u64,
}

/// Reads `path` beneath `root` and computes its digest as a job that copies it does. Blocking, for as long as reading takes.
///
/// # Errors
/// Source: it is not there, is neither a file nor a folder, cannot be read, or changed meanwhile.
pub fn measure(root: &Root, path: &RelPath) -> Result<Measured, JobError> {
    let failed = |error: DiskError| JobError::new(FailureClass::Source, error.to_string());
    let refuse = |what: &str| Err(JobError::new(FailureClass::Source, format!("{path} {what}")));
    let Some((dir, name)) = path.split_last() else {
        return refuse("is the root of its location; name what lies in it");
    };
    let is_tree = match root.stat(path).map_err(failed)?.map(|stat| stat.kind) {
        Some(FileKind::File) => false,
        Some(FileKind::Dir) => true,
        Some(FileKind::Symlink) => return refuse("is a symbolic link; name what it points to"),
        Some(FileKind::Other) => return refuse("is neither a file nor a folder"),
        None => return refuse("does not exist"),
    };
    let folder = root.beneath(&dir).map_err(failed)?;
    // The walk and the reader look up below the same handle, so that no link leads either of them out of the root.
    let (_handle, at) = folder.handle_path().map_err(failed)?;
    let mut walk = Walk::new(&[at.join(OsStr::from_bytes(name))])
        .map_err(|error| JobError::new(error.class(), error.to_string()))?;
    let (mut tree, mut entries) = (TreeHasher::default(), 0u64);
    let mut measured = Measured { is_tree, size_bytes: 0, file_count: 0, digest: Digest([0; 32]), skipped: 0 };
    let mut buffer = vec![0; READ_BYTES];
    for found in walk.by_ref() {
        let found = match found {
            Found::Entry(found) => found,
            Found::Skipped { .. } => {
                measured.skipped += 1;
                continue;
            }
            Found::Failed { class, text, .. } => return Err(JobError::new(class, text)),
        };
        let mut digest = None;
        let kind = match found.kind {
            Kind::Dir => EntryKind::Dir,
            Kind::DirEnd => EntryKind::DirEnd,
            Kind::Symlink { target } => EntryKind::Symlink { target },
            Kind::File => {
                let (size, root) = read(&folder, &found.path, &mut buffer).map_err(failed)?;
                measured.file_count += 1;
                measured.size_bytes = measured.size_bytes.saturating_add(size);
                digest = Some(root);
                EntryKind::File { size, sparse: false, expected: None }
            }
        };
        let meta = Meta { mode: found.meta.mode, ..Meta::default() };
        tree.insert(entries, &Entry { path: found.path, meta, kind }, digest.as_ref());
        entries += 1;
        if let (false, Some(digest)) = (is_tree, digest) {
            measured.digest = digest;
        }
    }
    if is_tree {
        measured.digest = tree
            .digest(entries)
            .ok_or_else(|| JobError::new(FailureClass::Bug, format!("{path} gave no tree digest")))?;
    }
    Ok(measured)
}

fn read(folder: &Root, path: &RelPath, buffer: &mut [u8]) -> Result<(u64, Digest), DiskError> {
    let file = SourceFile::open(folder, path)?;
    file.advise_sequential();
    let size = file.identity().size;
    let mut hasher = blake3::Hasher::new();
    let mut offset = 0;
    while offset < size {
        let left = usize::try_from(size - offset).unwrap_or(usize::MAX).min(buffer.len());
        file.read_exact_at(&mut buffer[..left], offset)?;
        hasher.update(&buffer[..left]);
        offset += left as u64;
    }
    // A file that is being written has no digest.
    file.check_unchanged()?;
    Ok((size, Digest(*hasher.finalize().as_bytes())))
}

const READ_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn at(path: &str) -> RelPath {
        RelPath::new(path.as_bytes()).unwrap()
    }

    #[test]
    fn a_file_is_what_b3sum_says_and_a_tree_is_its_entries() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir_all(temp.path().join("night/sub")).unwrap();
        fs::write(temp.path().join("night/a"), b"abc").unwrap();
        fs::write(temp.path().join("night/sub/empty"), b"").unwrap();
        let root = Root::open(temp.path()).unwrap();
        let file = measure(&root, &at("night/a")).unwrap();
        assert_eq!((file.is_tree, file.size_bytes, file.file_count), (false, 3, 1));
        assert_eq!(file.digest, Digest::of(b"abc"));
        let tree = measure(&root, &at("night")).unwrap();
        assert_eq!((tree.is_tree, tree.size_bytes, tree.file_count), (true, 3, 2));
        assert_eq!(measure(&root, &at("night")).unwrap(), tree, "read again it is the same");
        fs::write(temp.path().join("night/a"), b"abd").unwrap();
        assert_ne!(measure(&root, &at("night")).unwrap().digest, tree.digest);
    }

    #[test]
    fn what_is_no_package_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc", temp.path().join("out")).unwrap();
        let root = Root::open(temp.path()).unwrap();
        for path in ["gone", "out", "out/passwd"] {
            assert_eq!(measure(&root, &at(path)).unwrap_err().class, FailureClass::Source, "{path}");
        }
        assert!(measure(&root, &RelPath::root()).is_err());
    }
}
