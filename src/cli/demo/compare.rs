//! Compares two trees by reading both.

use std::{
    collections::BTreeMap,
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use tokio_util::sync::CancellationToken;

use crate::{
    chunk::{Digest, escape_bytes},
    cli::verify::{READ_BYTES, digest},
    engine::walk::{Found, Kind, Walk},
};

/// What a tree holds, by path.
pub(super) type Contents = BTreeMap<Vec<u8>, What>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    Dir,
    File { digest: Digest, size: u64 },
    Link(Vec<u8>),
}

/// Reads some of what lies in a folder, with all below. FIFOs, sockets and devices are left out, as a copy leaves them
/// out. Ends early, and badly, when `cancel` is.
pub(super) fn contents(folder: &Path, names: &[PathBuf], cancel: &CancellationToken) -> Result<Contents, String> {
    let paths: Vec<_> = names.iter().map(|name| folder.join(name)).collect();
    let walk = Walk::new(&paths).map_err(|e| e.to_string())?;
    let mut buffer = vec![0; READ_BYTES];
    let mut contents = Contents::new();
    for found in walk {
        if cancel.is_cancelled() {
            return Err("ended before all was compared".to_owned());
        }
        match found {
            Found::Entry(entry) => {
                let path = entry.path.as_bytes().to_vec();
                let what = match entry.kind {
                    Kind::Dir => What::Dir,
                    Kind::DirEnd => continue,
                    Kind::Symlink { target } => What::Link(target),
                    Kind::File => {
                        let (digest, size) = read(&folder.join(std::ffi::OsStr::from_bytes(&path)), &mut buffer)?;
                        What::File { digest, size }
                    }
                };
                contents.insert(path, what);
            }
            Found::Skipped { .. } => {}
            Found::Failed { text, .. } => return Err(text),
        }
    }
    Ok(contents)
}

fn read(path: &Path, buffer: &mut [u8]) -> Result<(Digest, u64), String> {
    digest(path, buffer)
        .map_err(|error: io::Error| format!("cannot read {}: {error}", escape_bytes(path.as_os_str().as_bytes())))
}

/// The first few differences, in words; empty if there are none.
pub(super) fn differences(source: &Contents, destination: &Contents) -> Vec<String> {
    let mut all: Vec<String> = source
        .iter()
        .filter_map(|(path, what)| match destination.get(path) {
            Some(other) if other == what => None,
            Some(_) => Some(format!("{} differs", escape_bytes(path))),
            None => Some(format!("{} is missing", escape_bytes(path))),
        })
        .collect();
    all.extend(
        destination.keys().filter(|path| !source.contains_key(*path)).map(|p| format!("{} is extra", escape_bytes(p))),
    );
    let more = all.len().saturating_sub(SHOWN);
    all.truncate(SHOWN);
    if more > 0 {
        all.push(format!("and {more} more"));
    }
    all
}

const SHOWN: usize = 10;
