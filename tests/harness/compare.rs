use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use super::{Events, events::path_of};

/// What rsync, reading every byte of both sides, would do to make `copy` equal to `source`: one line per difference.
pub(crate) fn differences(source: &Path, copy: &Path) -> Vec<String> {
    let out = Command::new("rsync")
        .args(["-aHnc", "--delete", "--itemize-changes"])
        .arg(source.join("."))
        .arg(copy.join("."))
        .output()
        .expect("rsync starts");
    assert!(out.status.success(), "rsync: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).lines().filter(|l| !l.is_empty()).map(str::to_owned).collect()
}

/// Fails unless the trees are equal, FIFOs aside, and sparse files are as sparse. The roots' own times do not count
/// here: where only the contents of a folder were asked for, they are a question of their own.
pub(crate) fn assert_same_tree(source: &Path, copy: &Path) {
    let real: Vec<String> = differences(source, copy)
        .into_iter()
        .filter(|line| !line.ends_with("/fifo") && line != ".d..t...... ./")
        .collect();
    assert!(real.is_empty(), "the copy differs:\n{}", real.join("\n"));
    for (name, there) in tree_blocks(source) {
        let here = tree_blocks_of(&copy.join(OsStr::from_bytes(&name)));
        let apart = there.abs_diff(here);
        assert!(apart <= 1 << 20, "{}: {there} bytes on disk here, {here} there", String::from_utf8_lossy(&name));
    }
}

/// Bytes on disk of every regular file larger than 1 MiB, by path below `root`.
pub(crate) fn tree_blocks(root: &Path) -> BTreeMap<Vec<u8>, u64> {
    let mut found = BTreeMap::new();
    let mut open = vec![PathBuf::new()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(root.join(&folder)).expect("read a folder").flatten() {
            let name = folder.join(entry.file_name());
            let kind = entry.file_type().expect("a kind");
            if kind.is_dir() {
                open.push(name);
            } else if kind.is_file() && entry.metadata().is_ok_and(|m| m.len() > 1 << 20) {
                found.insert(name.as_os_str().as_bytes().to_vec(), tree_blocks_of(&root.join(&name)));
            }
        }
    }
    found
}

fn tree_blocks_of(path: &Path) -> u64 {
    // Delayed allocation counts a block only when it is on its way to the disk.
    let file = fs::File::open(path).unwrap_or_else(|e| panic!("open {}: {e}", path.display()));
    file.sync_all().expect("sync");
    file.metadata().expect("metadata").blocks() * 512
}

/// Compares every digest that `--json` printed with what `b3sum` says about the file now below `root`. Returns how
/// many were compared.
pub(crate) fn check_digests(events: &Events, root: &Path) -> usize {
    let mut wanted: Vec<(PathBuf, String)> = Vec::new();
    for file in &events.files {
        if let Some(digest) = file["digest"].as_str() {
            wanted.push((root.join(OsStr::from_bytes(&path_of(file))), digest.to_owned()));
        }
    }
    for group in wanted.chunks(400) {
        let found = b3sum_of(group.iter().map(|(path, _)| path.as_path()));
        for ((path, digest), found) in group.iter().zip(&found) {
            assert_eq!(digest, found, "digest of {}", path.display());
        }
    }
    wanted.len()
}

/// The digests of files, in order.
pub(crate) fn b3sum_of<'a>(paths: impl Iterator<Item = &'a Path>) -> Vec<String> {
    let out = Command::new("b3sum").arg("--no-names").arg("--").args(paths).output().expect("b3sum starts");
    assert!(out.status.success(), "b3sum: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect()
}
