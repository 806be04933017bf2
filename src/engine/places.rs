//! Where a job's paths are: what was typed, turned into directories and names.

use std::{
    ffi::OsStr,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Attempts, FailureClass, JobError, receive::Naming};
use crate::{
    chunk::escape_bytes,
    disk::Root,
    journal::NewName,
    protocol::{JobFlags, TypedPath},
};

/// What a peer may name, and what it means here.
pub trait Places: Send + Sync {
    /// The directory that a peer's entries go to, and how its names change.
    ///
    /// # Errors
    /// Usage, identity (no right) or destination.
    fn destination(
        &self,
        typed: &TypedPath,
        sources: &[Vec<u8>],
        more: bool,
        flags: JobFlags,
    ) -> Result<(Arc<Root>, Naming), JobError>;

    /// The files that a peer asks for.
    ///
    /// # Errors
    /// Usage, identity (no right) or source.
    fn sources(&self, typed: &[TypedPath]) -> Result<Opened, JobError>;

    /// The directories that may keep the receipts of a job that was sent to `typed`, the likelier first: a destination
    /// that did not exist then does now. Makes nothing.
    ///
    /// # Errors
    /// Usage or identity (no right).
    fn kept_at(&self, typed: &TypedPath) -> Result<Vec<Arc<Root>>, JobError>;

    /// The peer's name, if what is kept for one peer is not to be told to another. `None` where the operating system
    /// decides who may read what.
    fn peer(&self) -> Option<&str> {
        None
    }

    /// The attempts that run beside this one in the same process.
    fn attempts(&self) -> Option<&Attempts> {
        None
    }
}

/// Sources as the walk takes them, and what keeps their paths meaningful.
#[derive(Debug)]
pub struct Opened {
    /// Paths for the walk.
    pub paths: Vec<PathBuf>,
    /// Directories that some of the paths go through.
    pub handles: Vec<OwnedFd>,
}

/// The name under which a source appears at its destination; `None` if its contents do.
pub fn top_name(typed: &[u8]) -> Option<Vec<u8>> {
    match typed.rsplit(|&b| b == b'/').next()? {
        b"" | b"." | b".." => None,
        name => Some(name.to_vec()),
    }
}

/// The destination as typed at the end that has it: into a directory that exists or ends in a slash, or to a new name.
///
/// # Errors
/// Usage or destination.
pub fn resolve_destination(
    typed: &Path,
    sources: &[Vec<u8>],
    more: bool,
    dry_run: bool,
) -> Result<(Arc<Root>, Naming), JobError> {
    let shown = escape_bytes(typed.as_os_str().as_bytes());
    let failure = |text: String| JobError::new(FailureClass::Destination, text);
    let open = |path: &Path| Root::open(path).map(Arc::new).map_err(|e| failure(e.to_string()));
    let bytes = typed.as_os_str().as_bytes();
    let slash = bytes.ends_with(b"/") || top_name(bytes).is_none();
    let single = if sources.len() == 1 && !more { sources.first().and_then(|s| top_name(s)) } else { None };
    match std::fs::metadata(typed) {
        Ok(found) if found.is_dir() => {
            if let (Some(name), Some(parent), false) = (single, typed.parent(), slash)
                && let Ok(parent) = open(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
                && let Some(naming) = unfinished_name(&parent, &name, &top_name(bytes).unwrap_or_default())
            {
                return Ok((parent, naming));
            }
            return Ok((open(typed)?, Naming::default()));
        }
        Ok(_) if slash || single.is_none() => {
            return Err(failure(format!("{shown} is not a directory; give a directory for several sources")));
        }
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(failure(format!("cannot look at {shown}: {e}")));
        }
        Ok(_) | Err(_) => {}
    }
    let parent = match typed.parent() {
        Some(p) if p.as_os_str().is_empty() => Path::new("."),
        Some(p) => p,
        None => typed,
    };
    if let (Some(name), false) = (&single, slash) {
        let to = top_name(bytes).unwrap_or_default();
        if !parent.is_dir() {
            return Err(failure(format!(
                "{} does not exist; make it first",
                escape_bytes(parent.as_os_str().as_bytes())
            )));
        }
        return Ok((open(parent)?, Naming { rename: Some((name.clone(), to)) }));
    }
    if dry_run {
        return Err(failure(format!("{shown} does not exist; a dry run does not make it")));
    }
    std::fs::create_dir(typed).map_err(|e| failure(format!("cannot make {shown}: {e}")))?;
    // The new name must survive a power cut before anything in it can.
    if let Ok(dir) = std::fs::File::open(parent) {
        dir.sync_all().map_err(|e| failure(format!("cannot sync the directory of {shown}: {e}")))?;
    }
    Ok((open(typed)?, Naming::default()))
}

/// The naming of a folder that an earlier run of the same command began to copy as `to`: this run goes on with it,
/// instead of putting a second copy into the first.
pub fn unfinished_name(parent: &Arc<Root>, from: &[u8], to: &[u8]) -> Option<Naming> {
    // What cannot be read is not ours to go on with.
    let begun = NewName::new(Arc::clone(parent), from, to).is_begun().unwrap_or(false);
    begun.then(|| Naming { rename: Some((from.to_vec(), to.to_vec())) })
}

/// The file system as the user that the program runs as sees it: what a job started over ssh may name.
#[derive(Debug, Default)]
pub struct Home;

impl Home {
    fn path(typed: &TypedPath) -> Result<PathBuf, JobError> {
        if !typed.location.is_empty() {
            return Err(JobError::new(FailureClass::Usage, "locations exist at endpoints only, not over ssh"));
        }
        if typed.path.contains(&0) {
            return Err(JobError::new(FailureClass::Usage, "a path contains a NUL byte"));
        }
        let home = || std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        Ok(match typed.path.as_slice() {
            b"" | b"~" => home().join(""),
            [b'~', b'/', rest @ ..] => home().join(OsStr::from_bytes(rest)),
            path => PathBuf::from(OsStr::from_bytes(path)),
        })
    }
}

impl Places for Home {
    fn destination(
        &self,
        typed: &TypedPath,
        sources: &[Vec<u8>],
        more: bool,
        flags: JobFlags,
    ) -> Result<(Arc<Root>, Naming), JobError> {
        resolve_destination(&Self::path(typed)?, sources, more, flags.dry_run)
    }

    fn sources(&self, typed: &[TypedPath]) -> Result<Opened, JobError> {
        let paths = typed.iter().map(Self::path).collect::<Result<_, _>>()?;
        Ok(Opened { paths, handles: Vec::new() })
    }

    fn kept_at(&self, typed: &TypedPath) -> Result<Vec<Arc<Root>>, JobError> {
        let path = Self::path(typed)?;
        let parent = match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Some(Path::new(".")),
            parent => parent,
        };
        let roots = [Some(path.as_path()), parent].into_iter().flatten();
        Ok(roots.filter_map(|at| Root::open(at).ok().map(Arc::new)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_trailing_slash() {
        for (typed, name) in [
            (&b"a"[..], Some(&b"a"[..])),
            (b"/x/a", Some(b"a")),
            (b"a/", None),
            (b".", None),
            (b"x/..", None),
            (b"/", None),
        ] {
            assert_eq!(top_name(typed).as_deref(), name, "{}", escape_bytes(typed));
        }
    }

    #[test]
    fn destinations_resolve_as_with_cp() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let one = vec![b"src/a".to_vec()];
        let (root, naming) = resolve_destination(&at("new"), &one, false, false).unwrap();
        assert_eq!(root.path(), dir.path());
        assert_eq!(naming.rename, Some((b"a".to_vec(), b"new".to_vec())));
        std::fs::create_dir(at("new")).unwrap();
        let (root, naming) = resolve_destination(&at("new"), &one, false, false).unwrap();
        assert_eq!((root.path(), naming.rename), (at("new").as_path(), None));
        // A run that gave this name and was interrupted is gone on with, by the same command only.
        NewName::new(Arc::new(Root::open(dir.path()).unwrap()), b"a", b"new").begin().unwrap();
        let (root, naming) = resolve_destination(&at("new"), &one, false, false).unwrap();
        assert_eq!(root.path(), dir.path());
        assert_eq!(naming.rename, Some((b"a".to_vec(), b"new".to_vec())));
        for (typed, sources) in [(at("new").join(""), b"src/a".to_vec()), (at("new"), b"b".to_vec())] {
            assert_eq!(resolve_destination(&typed, &[sources], false, false).unwrap().1.rename, None);
        }
        let two = vec![b"a".to_vec(), b"b".to_vec()];
        let (root, _) = resolve_destination(&at("both"), &two, false, false).unwrap();
        assert_eq!(root.path(), at("both"));
        std::fs::write(at("file"), b"").unwrap();
        assert!(resolve_destination(&at("file"), &two, false, false).is_err());
        assert!(resolve_destination(&at("no/such"), &one, false, false).is_err());
        assert!(resolve_destination(&at("file"), &one, false, false).unwrap().1.rename.is_some());
    }
}
