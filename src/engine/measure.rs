//! What a file or tree is: size and digest, read once, the same as a job's receiver finds.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};

use super::{
    FailureClass, JobError,
    walk::{self, Found, Kind, Walk},
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

/// Why a package has no digest.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// A file or folder of it cannot be read.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// It is not there, is neither a file nor a folder, or changed meanwhile.
    #[error(transparent)]
    Job(#[from] JobError),
}

/// How the entries of a package are read, for [`measure_by`].
pub trait Look {
    /// Size and BLAKE3 of the regular file `path` below `folder`.
    ///
    /// # Errors
    /// It cannot be read, or changed meanwhile.
    fn file(&mut self, folder: &Root, path: &RelPath) -> Result<(u64, Digest), DiskError>;

    /// The path and mode under which a file, folder or link enters the digest. Called once for each, in the order of the
    /// walk; for a file after [`Look::file`].
    ///
    /// # Errors
    /// The reading is to end.
    fn entry(&mut self, path: RelPath, meta: &walk::Meta, _kind: &EntryKind) -> Result<(RelPath, u32), DiskError> {
        Ok((path, meta.mode))
    }
}

/// Reads `path` beneath `root` and computes its digest as a job that copies it does. Blocking, for as long as reading takes.
///
/// # Errors
/// Source: it is not there, is neither a file nor a folder, cannot be read, or changed meanwhile.
pub fn measure(root: &Root, path: &RelPath) -> Result<Measured, JobError> {
    measure_by(root, path, &mut Plainly(vec![0; READ_BYTES])).map_err(|error| match error {
        MeasureError::Disk(error) => JobError::new(FailureClass::Source, error.to_string()),
        MeasureError::Job(error) => error,
    })
}

/// As [`measure`], with another way to read the entries.
///
/// # Errors
/// As [`measure`]; what [`Look::file`] says comes back as it is.
pub fn measure_by(root: &Root, path: &RelPath, look: &mut dyn Look) -> Result<Measured, MeasureError> {
    let refuse = |what: &str| Err(JobError::new(FailureClass::Source, format!("{path} {what}")).into());
    let Some((dir, name)) = path.split_last() else {
        return refuse("is the root of its location; name what lies in it");
    };
    let is_tree = match root.stat(path)?.map(|stat| stat.kind) {
        Some(FileKind::File) => false,
        Some(FileKind::Dir) => true,
        Some(FileKind::Symlink) => return refuse("is a symbolic link; name what it points to"),
        Some(FileKind::Other) => return refuse("is neither a file nor a folder"),
        None => return refuse("does not exist"),
    };
    let folder = root.beneath(&dir)?;
    // The walk and the reader look up below the same handle, so that no link leads either of them out of the root.
    let (_handle, at) = folder.handle_path()?;
    let mut walk = Walk::new(&[at.join(OsStr::from_bytes(name))])
        .map_err(|error| JobError::new(error.class(), error.to_string()))?;
    let (mut tree, mut entries) = (TreeHasher::default(), 0u64);
    let mut measured = Measured { is_tree, size_bytes: 0, file_count: 0, digest: Digest([0; 32]), skipped: 0 };
    for found in walk.by_ref() {
        let found = match found {
            Found::Entry(found) => found,
            Found::Skipped { .. } => {
                measured.skipped += 1;
                continue;
            }
            Found::Failed { class, text, .. } => return Err(JobError::new(class, text).into()),
        };
        let mut digest = None;
        let kind = match found.kind {
            Kind::Dir => EntryKind::Dir,
            Kind::DirEnd => EntryKind::DirEnd,
            Kind::Symlink { target } => EntryKind::Symlink { target },
            Kind::File => {
                let (size, root) = look.file(&folder, &found.path)?;
                measured.file_count += 1;
                measured.size_bytes = measured.size_bytes.saturating_add(size);
                digest = Some(root);
                EntryKind::File { size, sparse: false, expected: None }
            }
        };
        let (path, mode) = match kind {
            EntryKind::DirEnd => (found.path, found.meta.mode),
            _ => look.entry(found.path, &found.meta, &kind)?,
        };
        let meta = Meta { mode, ..Meta::default() };
        tree.insert(entries, &Entry { path, meta, kind }, digest.as_ref());
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

/// Reads from wherever the system has the bytes.
struct Plainly(Vec<u8>);

impl Look for Plainly {
    fn file(&mut self, folder: &Root, path: &RelPath) -> Result<(u64, Digest), DiskError> {
        let file = SourceFile::open(folder, path)?;
        file.advise_sequential();
        let size = file.identity().size;
        let mut hasher = blake3::Hasher::new();
        let mut offset = 0;
        while offset < size {
            let left = usize::try_from(size - offset).unwrap_or(usize::MAX).min(self.0.len());
            file.read_exact_at(&mut self.0[..left], offset)?;
            hasher.update(&self.0[..left]);
            offset += left as u64;
        }
        // A file that is being written has no digest.
        file.check_unchanged()?;
        Ok((size, Digest(*hasher.finalize().as_bytes())))
    }
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
