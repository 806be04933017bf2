//! Trees: an object for each file, and the manifest.

use std::{collections::HashMap, ffi::OsStr, os::unix::ffi::OsStrExt as _, sync::Arc};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::mpsc;

use super::{
    MIN_PART_BYTES, S3, blocking,
    failure::{bug, of_copy, of_source},
    folder_of, keys,
    manifest::{MAX_MANIFEST_BYTES, Manifest, Member, newer_version, parse},
    sums::Said,
    upload::{Only, Upload, is_final},
};
use crate::{
    archive::{ArchiveError, Package, Progress, Source, Stored, disk::remove_all},
    chunk::{Digest, RelPath},
    disk::{Dir, DiskError, DiskErrorKind, FileKind, FileMeta, Root, SourceFile, Timestamp},
    engine::{
        measure,
        walk::{self, Found, Kind, Walk},
    },
    model::{ErrorClass, PackageKind},
    protocol::{Entry, EntryKind, Meta, TreeHasher},
};

/// Puts all files of a tree that the store does not have, then the manifest. `begun` says whether there is anything of it.
pub(super) async fn put(
    store: &S3,
    package: &Package,
    source: &Source<'_>,
    root: &str,
    begun: bool,
    progress: &dyn Progress,
) -> Result<Stored, ArchiveError> {
    let stored = put_members(store, package, source, root, begun, progress).await;
    if stored.as_ref().err().is_none_or(is_final) {
        clear_up(store, package, root).await;
    }
    stored
}

/// Removes the uploads of a tree that nobody goes on with.
pub(super) async fn clear_up(store: &S3, package: &Package, root: &str) {
    // No smaller tree has a file that is sent in parts.
    if package.size_bytes > MIN_PART_BYTES {
        store.abort_below(&format!("{root}/")).await;
    }
}

async fn put_members(
    store: &S3,
    package: &Package,
    source: &Source<'_>,
    root: &str,
    begun: bool,
    progress: &dyn Progress,
) -> Result<Stored, ArchiveError> {
    let folder = keys::files(root);
    let left: HashMap<String, Said> = match begun {
        true => store.list(&folder, None, usize::MAX).await?.into_iter().collect(),
        false => HashMap::new(),
    };
    let (above, name) = folder_of(source)?;
    let entries = walk(&above, &name)?;
    let context = Putting { store, root, above, left, progress };
    let (mut tree, mut manifest) = (TreeHasher::default(), Manifest::default());
    let (mut count, mut size, mut files, mut resumed) = (0, 0u64, 0u64, 0u64);
    let mut under_way = stream::unfold(entries, async |mut entries| entries.recv().await.map(|entry| (entry, entries)))
        .zip(stream::iter(0u64..))
        .map(|(found, id)| context.member(found, id))
        .buffer_unordered(store.settings.parallel_objects)
        .boxed();
    while let Some((id, member, kept)) = under_way.try_next().await? {
        tree.insert(id, &member.entry, member.digest.as_ref());
        if !manifest.insert(id, &member) {
            return Err(ArchiveError::new(
                ErrorClass::Configuration,
                format!("{name} has more entries than an S3 archive keeps of one tree; pack it into a file"),
            ));
        }
        count += 1;
        size += member.entry.size();
        files += u64::from(member.digest.is_some());
        resumed += kept;
    }
    drop(under_way);
    let digest = tree.digest(count).ok_or_else(|| bug(format!("{name} gave no tree digest")))?;
    if (digest.0, size, files) != (package.expected.value, package.size_bytes, package.file_count) {
        return Err(ArchiveError::new(
            ErrorClass::SourceChanged,
            format!(
                "{name} holds other bytes, names or modes than were registered: {} of {} bytes in {} files was registered, \
                 {digest} of {size} bytes in {files} files was read; nothing was archived",
                package.expected.hex(),
                package.size_bytes,
                package.file_count
            ),
        ));
    }
    match store
        .put_bytes(&keys::manifest(root), manifest.into_bytes(digest).into(), Only::Free, Some(HashMap::new()))
        .await
    {
        Ok(()) => Ok(Stored::Written { resumed_bytes: resumed }),
        Err(refused) if refused.is_taken() => Ok(Stored::Found),
        Err(refused) => Err(refused.into()),
    }
}

struct Putting<'a> {
    store: &'a S3,
    root: &'a str,
    above: Arc<Root>,
    /// What an earlier attempt left, by key.
    left: HashMap<String, Said>,
    progress: &'a dyn Progress,
}

impl Putting<'_> {
    /// Puts the object of an entry, if it has one. Returns what the entry is, and how many of its bytes were there.
    async fn member(
        &self,
        found: Result<walk::Entry, ArchiveError>,
        id: u64,
    ) -> Result<(u64, Member, u64), ArchiveError> {
        let found = found?;
        let meta = Meta {
            mode: found.meta.mode,
            mtime_s: found.meta.mtime.seconds,
            mtime_ns: found.meta.mtime.nanoseconds,
            ..Meta::default()
        };
        let (mut digest, mut kept) = (None, 0);
        let kind = match found.kind {
            Kind::Dir => EntryKind::Dir,
            Kind::DirEnd => EntryKind::DirEnd,
            Kind::Symlink { target } => EntryKind::Symlink { target },
            Kind::File => {
                let (above, path) = (Arc::clone(&self.above), found.path.clone());
                let file = blocking(move || SourceFile::open(&above, &path).map_err(|e| of_source(&e))).await?;
                let key = keys::file(self.root, &found.path);
                let left = self.left.get(&key);
                let upload = Upload { store: self.store, key: &key, expected: None, left, progress: self.progress };
                let sent = upload.send(file).await?;
                (digest, kept) = (Some(sent.digest), sent.resumed);
                EntryKind::File { size: sent.size, sparse: false, expected: None }
            }
        };
        Ok((id, Member { entry: Entry { path: found.path, meta, kind }, digest }, kept))
    }
}

/// Walks a tree on a thread of its own, which waits where the uploads are slower.
fn walk(above: &Root, name: &RelPath) -> Result<mpsc::Receiver<Result<walk::Entry, ArchiveError>>, ArchiveError> {
    let (handle, at) = above.handle_path().map_err(|e| of_source(&e))?;
    let path = at.join(OsStr::from_bytes(name.as_bytes()));
    let (send, receive) = mpsc::channel(ENTRIES_AHEAD);
    tokio::task::spawn_blocking(move || {
        let _handle = handle;
        let missing = |text: String| ArchiveError::new(ErrorClass::MissingSource, text);
        let walk = match Walk::new(&[path]) {
            Ok(walk) => walk,
            Err(error) => return drop(send.blocking_send(Err(missing(error.to_string())))),
        };
        for found in walk {
            let entry = match found {
                Found::Entry(entry) => Ok(entry),
                // FIFOs, sockets and devices: in no package, and in no tree digest.
                Found::Skipped { .. } => continue,
                Found::Failed { text, .. } => Err(missing(text)),
            };
            // Nobody takes them any more once an upload failed.
            if send.blocking_send(entry).is_err() {
                return;
            }
        }
    });
    Ok(receive)
}

/// Reads a tree: the digest of what is there, the bytes and the number of its files.
///
/// Files that are gone or have other bytes, and a manifest that is no longer one, give another digest: they were found.
pub(super) async fn read_back(
    store: &S3,
    root: &str,
    progress: &dyn Progress,
) -> Result<(Digest, u64, u64), ArchiveError> {
    let members = match members(store, root).await? {
        Ok(members) => members,
        Err((bytes, why)) => {
            tracing::warn!("the manifest {} is damaged: {why}", store.shown(&keys::manifest(root)));
            return Ok((Digest::of(&bytes), 0, 0));
        }
    };
    let (mut tree, mut count, mut size, mut files) = (TreeHasher::default(), 0u64, 0u64, 0u64);
    let mut under_way = stream::iter((0u64..).zip(members))
        .map(async |(id, Member { mut entry, digest })| {
            let EntryKind::File { size, .. } = &mut entry.kind else { return Ok((id, entry, None, digest)) };
            let key = keys::file(root, &entry.path);
            let got = store.read(&key, None, progress).await?;
            *size = got.map_or(0, |got| got.size);
            // Of a file that is gone: a digest that no file has.
            Ok::<_, ArchiveError>((id, entry, got, Some(got.map_or(Digest([0; 32]), |got| got.digest))))
        })
        .buffer_unordered(store.settings.parallel_objects)
        .boxed();
    while let Some((id, entry, got, digest)) = under_way.try_next().await? {
        tree.insert(id, &entry, digest.as_ref());
        count += 1;
        size += got.map_or(0, |got| got.size);
        files += u64::from(got.is_some());
    }
    let digest = tree.digest(count).ok_or_else(|| bug("a manifest gave no tree digest"))?;
    Ok((digest, size, files))
}

/// The entries of a tree, or the bytes that say none and why.
type Members = Result<Vec<Member>, (Vec<u8>, String)>;

async fn members(store: &S3, root: &str) -> Result<Members, ArchiveError> {
    let key = keys::manifest(root);
    let bytes = store.read_bytes(&key, MAX_MANIFEST_BYTES as u64 + 4096).await?.ok_or_else(|| store.gone(&key))?;
    if let Some(version) = newer_version(&bytes) {
        let text = format!("{} is of version {version}; update this program to read it", store.shown(&key));
        return Err(ArchiveError::new(ErrorClass::Configuration, text));
    }
    blocking(move || Ok(parse(&bytes).map_err(|why| (bytes, why)))).await
}

/// Removes a tree of a lower generation, its manifest first: from then on it is no package.
pub(super) async fn remove(store: &S3, root: &str) -> Result<(), ArchiveError> {
    store.delete(&keys::manifest(root)).await?;
    let found = store.list(&format!("{root}/"), None, usize::MAX).await?;
    stream::iter(found)
        .map(async |(key, _)| store.delete(&key).await)
        .buffer_unordered(store.settings.parallel_objects)
        .boxed()
        .try_collect()
        .await
}

/// Copies a package out, under a name of its own first; it gets its place once its digest was right.
pub(super) async fn fetch(
    store: &S3,
    package: &Package,
    root: &str,
    folder: &Root,
    progress: &dyn Progress,
) -> Result<(), ArchiveError> {
    let refuse = || ArchiveError::new(ErrorClass::Configuration, "a package's path is the root of its location");
    let (dir, name) = package.relative_path.split_last().ok_or_else(refuse)?;
    folder.make_dirs(&dir, 0o755).map_err(|e| of_copy(&e))?;
    let parent = folder.beneath(&dir).map_err(|e| of_copy(&e))?;
    let temporary = format!(".fetch-{:016x}", rand::random::<u64>()).into_bytes();
    parent.handle().create_dir(&temporary, 0o700).map_err(|e| of_copy(&e))?;
    let staging = Arc::new(parent.handle().open_dir(&temporary).map_err(|e| of_copy(&e))?);
    let clean = Cleaner { parent: &parent, name: &temporary };
    let path = RelPath::new(temporary.clone()).map_err(|error| bug(error.to_string()))?;
    let below = Arc::new(parent.beneath(&path).map_err(|e| of_copy(&e))?);
    let found = match package.kind {
        PackageKind::File => {
            let got = fetch_file(store, root, &staging, name, progress).await?;
            set_meta(&staging, name, &store.bits(root).await?)?;
            got.digest
        }
        PackageKind::Tree => fetch_tree(store, root, &below, name, progress).await?,
    };
    if found.0 != package.expected.value {
        return Err(ArchiveError::new(
            ErrorClass::CorruptAtSource,
            format!(
                "{} holds other bytes than were registered: {} was registered, {found} was read; take another copy",
                store.shown(root),
                package.expected.hex()
            ),
        ));
    }
    let at = RelPath::new(name).map_err(|error| bug(error.to_string()))?;
    let kept = movable(&below, &at).map_err(|e| of_copy(&e))?;
    blocking(move || below.sync().map_err(|e| of_copy(&e))).await?;
    match staging.rename_no_replace(name, parent.handle(), name) {
        Ok(()) => {
            let kept = kept.map_or(Ok(()), |meta| parent.set_metadata(&at, &meta));
            kept.and_then(|()| parent.handle().sync()).map_err(|e| of_copy(&e))?;
        }
        Err(error) if error.kind() == DiskErrorKind::Exists => is_the_same(package, folder).await?,
        Err(error) => return Err(of_copy(&error)),
    }
    drop(clean);
    Ok(())
}

/// A folder is moved to another parent by who may write to it only. Returns what it is to have again there.
fn movable(folder: &Root, at: &RelPath) -> Result<Option<FileMeta>, DiskError> {
    let Some(found) = folder.stat(at)?.filter(|found| found.kind == FileKind::Dir && found.mode & 0o700 != 0o700)
    else {
        return Ok(None);
    };
    folder.set_metadata(at, &FileMeta { mode: Some(found.mode | 0o700), ..FileMeta::default() })?;
    Ok(Some(FileMeta { mode: Some(found.mode), mtime: Some(found.identity.mtime), owner: None }))
}

async fn is_the_same(package: &Package, folder: &Root) -> Result<(), ArchiveError> {
    let folder = folder.beneath(&RelPath::root()).map_err(|e| of_copy(&e))?;
    let path = package.relative_path.clone();
    let there = blocking(move || Ok(measure(&folder, &path).ok())).await?;
    if there.is_some_and(|there| there.digest.0 == package.expected.value) {
        return Ok(());
    }
    let text = format!("{} lies there already with other bytes; nothing was overwritten", package.relative_path);
    Err(ArchiveError::new(ErrorClass::DestinationDiffers, text))
}

async fn fetch_file(
    store: &S3,
    key: &str,
    dir: &Dir,
    name: &[u8],
    progress: &dyn Progress,
) -> Result<super::download::Got, ArchiveError> {
    let file = Arc::new(dir.create_file(name).map_err(|e| of_copy(&e))?);
    let got = store.read(key, Some(file), progress).await?.ok_or_else(|| store.gone(key))?;
    // As a file that somebody copied; that of a tree gets its own mode later.
    set_meta(dir, name, &FileMeta { mode: Some(0o644), ..FileMeta::default() })?;
    Ok(got)
}

fn set_meta(dir: &Dir, name: &[u8], meta: &FileMeta) -> Result<(), ArchiveError> {
    let file = dir.open_write(name).map_err(|e| of_copy(&e))?;
    meta.apply(&file).map_err(|e| of_copy(&DiskError::new("set metadata of", name, e)))
}

async fn fetch_tree(
    store: &S3,
    root: &str,
    below: &Arc<Root>,
    name: &[u8],
    progress: &dyn Progress,
) -> Result<Digest, ArchiveError> {
    let members = members(store, root).await?.map_err(|(_, why)| {
        let text = format!("the manifest {} is damaged: {why}; take another copy", store.shown(&keys::manifest(root)));
        ArchiveError::new(ErrorClass::CorruptAtSource, text)
    })?;
    // All of it is beneath the folder that was made for it; but what is moved out is the one name.
    if members.iter().any(|member| member.entry.path.first() != Some(name)) {
        let text = format!("the manifest {} names files of another tree; take another copy", store.shown(root));
        return Err(ArchiveError::new(ErrorClass::CorruptAtSource, text));
    }
    let (mut tree, count) = (TreeHasher::default(), members.len() as u64);
    for Member { entry, .. } in &members {
        match &entry.kind {
            EntryKind::Dir => below.make_dirs_unsynced(&entry.path, 0o700).map(drop),
            EntryKind::Symlink { target } => below.symlink(target, &entry.path),
            _ => Ok(()),
        }
        .map_err(|e| of_copy(&e))?;
    }
    let mut under_way = stream::iter((0u64..).zip(&members))
        .map(async |(id, member)| {
            let mut entry = member.entry.clone();
            let EntryKind::File { size, .. } = &mut entry.kind else { return Ok((id, entry, None)) };
            let (dir, name) = below.parent(&member.entry.path).map_err(|e| of_copy(&e))?;
            let got = fetch_file(store, &keys::file(root, &member.entry.path), &dir, name, progress).await?;
            *size = got.size;
            Ok::<_, ArchiveError>((id, entry, Some(got.digest)))
        })
        .buffer_unordered(store.settings.parallel_objects)
        .boxed();
    while let Some((id, entry, digest)) = under_way.try_next().await? {
        tree.insert(id, &entry, digest.as_ref());
    }
    drop(under_way);
    // Folders after what lies in them: their times, and the right to write into them, last until then.
    for Member { entry, .. } in members.iter().rev() {
        let mtime = Timestamp { seconds: entry.meta.mtime_s, nanoseconds: entry.meta.mtime_ns };
        let meta = FileMeta { mode: Some(entry.meta.mode), mtime: Some(mtime), owner: None };
        below.set_metadata(&entry.path, &meta).map_err(|e| of_copy(&e))?;
    }
    tree.digest(count).ok_or_else(|| bug("a manifest gave no tree digest"))
}

/// Removes what a fetch that failed has left.
struct Cleaner<'a> {
    parent: &'a Root,
    name: &'a [u8],
}

impl Drop for Cleaner<'_> {
    fn drop(&mut self) {
        let Ok(name) = RelPath::new(self.name) else { return };
        if let Err(error) = remove_all(self.parent, &name) {
            tracing::warn!(%error, "cannot remove what a copy from the archive has left");
        }
    }
}

/// Entries that the walk may be ahead of the uploads.
const ENTRIES_AHEAD: usize = 64;
