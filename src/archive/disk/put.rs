//! A package comes to rest.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio_util::sync::CancellationToken;

use super::{
    super::{
        ArchiveError, Progress, Source, Stored, Turn, failure, origin,
        watch::{Watch, blocking, observer},
    },
    INCOMING, Work, below, modes,
    owner::{Held, Owner},
    rest,
};
use crate::{
    chunk::{Digest, RelPath},
    disk::{DiskError, DiskErrorKind, FileKind, FileMeta, Root},
    engine::{JobId, Options, Summary, copy_here},
    journal::{Jobs, JournalError},
    model::{ErrorClass, PackageKind},
};

/// Chunk buffers of each end of a copy within this machine.
const MEMORY_BYTES: usize = 48 << 20;

/// One attempt sets no more aside than this: replacing does not help.
const MAX_ASIDE: u32 = 8;

/// What is to be done about a package.
enum Ready {
    /// It rests there already.
    Found,
    /// It is to be received into this folder.
    Receive(Box<Receiving>),
}

/// Handles that a copy into the archive needs.
struct Receiving {
    root: Arc<Root>,
    home: Root,
    incoming: Arc<Root>,
    owner: Owner,
    // The folder of the source stays open while a path leads through it.
    _source: OwnedFd,
    source: PathBuf,
}

impl Work {
    pub(super) async fn put(
        self,
        source: &Source<'_>,
        turn: Turn,
        progress: &dyn Progress,
        cancel: &CancellationToken,
    ) -> Result<Stored, ArchiveError> {
        let what = self.doing("put");
        let (handle, at) = source.root.handle_path().map_err(|e| failure::of_source(&what, &e))?;
        let (this, path) = (self.clone(), source.path.clone());
        let stop = cancel.child_token();
        let _guard = stop.clone().drop_guard();
        let prepared = stop.clone();
        let ready = blocking(move || {
            let _handle = handle;
            this.prepare(&at, &path, &turn, &prepared)
        })
        .await?;
        let Ready::Receive(receiving) = ready else { return Ok(Stored::Found) };
        if cancel.is_cancelled() {
            return Err(failure::cancelled(what));
        }
        let watch = Arc::new(Watch::default());
        let options = self.options(&turn);
        let rename = (self.key.name != self.key.own_name).then(|| (self.key.own_name.clone(), self.key.name.clone()));
        let copy = copy_here(
            receiving.source.clone(),
            Arc::clone(&receiving.incoming),
            rename,
            &options,
            observer(&watch),
            cancel,
        );
        let failed = match watch.tell(progress, copy).await {
            Err(error) => failure::of_copy(what, &error, self.package.relative_path.as_bytes()),
            Ok(summary) => match watch.failed() {
                Some((error, file)) => failure::of_copy(what, &error, &file),
                None => {
                    let resumed_bytes = summary.bytes_resumed;
                    blocking(move || self.finish(*receiving, &summary, &turn, &stop)).await?;
                    return Ok(Stored::Written { resumed_bytes });
                }
            },
        };
        if failed.class == ErrorClass::SourceChanged {
            // What came in is of no use to whoever registers the package anew.
            let _ = blocking(move || {
                let held = self.hold(&receiving.owner)?;
                self.remove_incoming(&receiving.root)?;
                self.give_up(receiving.owner, held)
            })
            .await;
        }
        Err(failed)
    }

    fn options(&self, turn: &Turn) -> Options {
        let expected = (self.package.kind == PackageKind::File).then_some(Digest(self.package.expected.value));
        Options { job: JobId(turn.job), fence: turn.fence, memory_bytes: MEMORY_BYTES, expected, ..Options::default() }
    }

    fn prepare(
        &self,
        source: &Path,
        path: &RelPath,
        turn: &Turn,
        stop: &CancellationToken,
    ) -> Result<Ready, ArchiveError> {
        let what = self.doing("put");
        let root = self.mount()?;
        let disk = |e| failure::of_disk(&what, &e);
        if turn.fence > 0 {
            let raised = Jobs::new(Arc::clone(&root)).raise_fence(turn.job, turn.fence);
            raised.map_err(|e| failure::of_journal(&what, &e))?;
        }
        let owner = self.own(&root, turn)?;
        let home = self.home()?;
        if root.stat(&home).map_err(disk)?.is_some() && self.is_found(&root, &home, turn, stop)? {
            // An attempt may have died before it cleared up.
            let held = self.hold(&owner)?;
            self.remove_incoming(&root)?;
            self.give_up(owner, held)?;
            return Ok(Ready::Found);
        }
        let (held, source) = origin::look(source, path, &self.package)?;
        root.make_dirs(&home, 0o755).map_err(disk)?;
        let home = root.beneath(&home).map_err(disk)?;
        let incoming = self.incoming()?;
        root.make_dirs(&incoming, 0o700).map_err(disk)?;
        let incoming = Arc::new(root.beneath(&incoming).map_err(disk)?);
        Ok(Ready::Receive(Box::new(Receiving { root, home, incoming, owner, _source: held, source })))
    }

    /// From now on nobody who began before gives the package its name.
    fn own(&self, root: &Root, turn: &Turn) -> Result<Owner, ArchiveError> {
        let what = self.doing("put");
        let disk = |e| failure::of_disk(&what, &e);
        let folder = below(INCOMING)?;
        root.make_dirs(&folder, 0o700).map_err(disk)?;
        let folder = root.beneath(&folder).map_err(disk)?;
        let owner = Owner::take(folder.handle(), self.own_folder(), turn).map_err(disk)?;
        owner.ok_or_else(|| self.overtaken())
    }

    fn hold(&self, owner: &Owner) -> Result<Held, ArchiveError> {
        let held = owner.hold().map_err(|e| failure::of_disk(self.doing("put"), &e))?;
        held.ok_or_else(|| self.overtaken())
    }

    fn give_up(&self, owner: Owner, held: Held) -> Result<(), ArchiveError> {
        owner.end(held).map_err(|e| failure::of_disk(self.doing("clear up after"), &e))
    }

    fn overtaken(&self) -> ArchiveError {
        let text = format!("{}: another attempt puts it now; nothing was done here", self.doing("put"));
        ArchiveError::new(ErrorClass::RemoteBusy, text)
    }

    /// Whether the package rests in its folder, and is to stay.
    fn is_found(
        &self,
        root: &Root,
        home: &RelPath,
        turn: &Turn,
        stop: &CancellationToken,
    ) -> Result<bool, ArchiveError> {
        let what = self.doing("put");
        let disk = |e| failure::of_disk(&what, &e);
        let home = root.beneath(home).map_err(disk)?;
        let Some(found) = home.handle().stat_name(&self.key.name).map_err(disk)? else { return Ok(false) };
        let suits = match self.package.kind {
            PackageKind::File => FileKind::File,
            PackageKind::Tree => FileKind::Dir,
        };
        if found.kind != suits && !turn.replace {
            return Err(ArchiveError::new(
                ErrorClass::DestinationDiffers,
                format!("{what}: something else has its name there; see what it is and move it away"),
            ));
        }
        if turn.replace && (turn.seen_corrupt || !self.is_set_aside(&home, turn)? || !self.rests_well(stop)) {
            return Ok(false);
        }
        modes::make_read_only(&home, &self.name()?).map_err(|e| self.modes_failure("protect", &e))?;
        Ok(true)
    }

    /// `DIGEST-PATH`.
    fn own_folder(&self) -> &str {
        self.key.folder.rsplit('/').next().unwrap_or_default()
    }

    fn incoming(&self) -> Result<RelPath, ArchiveError> {
        below(&format!("{INCOMING}/{}", self.own_folder()))
    }

    /// Everything is in `incoming`, verified and synced: gives it its name.
    fn finish(
        &self,
        receiving: Receiving,
        summary: &Summary,
        turn: &Turn,
        stop: &CancellationToken,
    ) -> Result<(), ArchiveError> {
        let what = self.doing("put");
        let disk = |e| failure::of_disk(&what, &e);
        let Receiving { root, home, incoming, owner, source, _source: _open } = receiving;
        let (root, home) = (&root, &home);
        // What follows is a few renames: whoever takes over waits for them, or finds nothing of them.
        let held = self.hold(&owner)?;
        self.heed_fence(root, turn)?;
        if stop.is_cancelled() {
            return Err(failure::cancelled(what));
        }
        let expected = Digest(self.package.expected.value);
        if self.package.kind == PackageKind::Tree && summary.tree_digest != Some(expected) {
            self.remove_incoming(root)?;
            let found = summary.tree_digest.map_or_else(|| "none".to_owned(), |d| d.to_string());
            return Err(ArchiveError::new(
                ErrorClass::SourceChanged,
                format!(
                    "{what}: the source has tree digest {found}, but {expected} was expected; register what is there now"
                ),
            ));
        }
        // What is there now has lost bits that no copy keeps; the source has them all.
        modes::record(&source, home.handle(), &self.key.beside("modes")).map_err(|e| self.modes_failure("put", &e))?;
        let name = self.name()?;
        if self.package.kind == PackageKind::Tree {
            // A folder is moved to another parent by who may write to it only.
            let mode = root_mode(&incoming, &name).map_err(disk)?;
            let writable = FileMeta { mode: Some(mode | 0o700), ..FileMeta::default() };
            incoming.set_metadata(&name, &writable).map_err(disk)?;
        }
        if turn.replace {
            self.set_aside(home, turn).map_err(disk)?;
        }
        incoming.handle().rename_no_replace(&self.key.name, home.handle(), &self.key.name).map_err(disk)?;
        home.handle().sync().and_then(|()| incoming.handle().sync()).map_err(disk)?;
        if let Some(lies) = &self.lies {
            lies.spoil(home, &name);
        }
        modes::make_read_only(home, &name).map_err(|e| self.modes_failure("protect", &e))?;
        self.remove_incoming(root)?;
        self.give_up(owner, held)
    }

    /// Refuses an attempt that was overtaken while it copied.
    fn heed_fence(&self, root: &Arc<Root>, turn: &Turn) -> Result<(), ArchiveError> {
        let failed = |e: &JournalError| failure::of_journal(self.doing("put"), e);
        let highest = Jobs::new(Arc::clone(root)).state(turn.job).map_err(|e| failed(&e))?.fence;
        if highest > turn.fence {
            return Err(failed(&JournalError::Overtaken { highest, ours: turn.fence }));
        }
        Ok(())
    }

    fn remove_incoming(&self, root: &Root) -> Result<(), ArchiveError> {
        rest::remove_all(root, &self.incoming()?).map_err(|e| self.modes_failure("clear up after", &e))
    }

    /// Whether an attempt of this piece of work set something aside already.
    fn is_set_aside(&self, home: &Root, turn: &Turn) -> Result<bool, ArchiveError> {
        let of_job = self.key.beside(&format!("corrupt-{}-", JobId(turn.job)));
        let names = self.names(home)?;
        Ok(names.iter().any(|name| name.starts_with(&of_job)))
    }

    /// Keeps what rests there under another name.
    fn set_aside(&self, home: &Root, turn: &Turn) -> Result<(), DiskError> {
        let mut nth = 0;
        loop {
            let name = match nth {
                0 => format!("corrupt-{}-{}", JobId(turn.job), turn.fence),
                _ => format!("corrupt-{}-{}.{nth}", JobId(turn.job), turn.fence),
            };
            match home.handle().rename_no_replace(&self.key.name, home.handle(), &self.key.beside(&name)) {
                Err(e) if e.kind() == DiskErrorKind::NotFound => return Ok(()),
                // The same attempt asks once more: what it put the last time is corrupt too.
                Err(e) if e.kind() == DiskErrorKind::Exists && nth < MAX_ASIDE => nth += 1,
                Err(e) => return Err(e),
                Ok(()) => return home.handle().sync(),
            }
        }
    }

    /// Whether what rests there is what was expected: an attempt that replaced it may have died before it said so.
    fn rests_well(&self, stop: &CancellationToken) -> bool {
        let read = self.read_back(&Watch::default(), stop);
        read.is_ok_and(|read| read.digest.0 == self.package.expected.value)
    }

    pub(super) fn modes_failure(&self, verb: &str, error: &modes::ModesError) -> ArchiveError {
        match error {
            modes::ModesError::Disk(error) => failure::of_disk(self.doing(verb), error),
            modes::ModesError::Walk(text) => {
                ArchiveError { class: ErrorClass::Configuration, chain: vec![self.doing(verb), text.clone()] }
            }
        }
    }
}

fn root_mode(folder: &Root, name: &RelPath) -> Result<u32, DiskError> {
    Ok(folder.stat(name)?.map_or(0o700, |stat| stat.mode))
}
