use std::{collections::BTreeMap, os::unix::ffi::OsStrExt as _, path::PathBuf, sync::Arc};

use super::{
    rights::{Right, Rights},
    settings::Settings,
};
use crate::{
    chunk::{RelPath, escape_bytes},
    disk::{FileKind, Root},
    engine::{Attempts, FailureClass, JobError, Naming, Opened, Places, top_name, unfinished_name},
    protocol::{JobFlags, TypedPath},
};

/// The locations of an endpoint, as one peer may use them.
#[derive(Debug)]
pub struct Locations {
    roots: BTreeMap<String, Arc<Root>>,
    rights: BTreeMap<String, Rights>,
    // The same for every reload, like the sessions that it is about.
    attempts: Arc<Attempts>,
}

impl Locations {
    /// Opens every location of the settings.
    ///
    /// # Errors
    /// Destination: a location's directory cannot be opened.
    pub fn open(settings: &Settings) -> Result<Self, JobError> {
        let roots = settings
            .locations
            .iter()
            .map(|l| {
                let root = Root::open(&l.path)
                    .map_err(|e| JobError::new(FailureClass::Destination, format!("location {:?}: {e}", l.name)))?;
                Ok((l.name.clone(), Arc::new(root)))
            })
            .collect::<Result<_, JobError>>()?;
        Ok(Self { roots, rights: settings.rights(), attempts: Arc::default() })
    }

    /// The locations as `peer` sees them.
    pub fn seen_by(self: &Arc<Self>, peer: &str) -> PeerPlaces {
        PeerPlaces { locations: Arc::clone(self), peer: peer.to_owned() }
    }

    /// With the rights of other settings; the directories stay as they were opened.
    ///
    /// # Errors
    /// A location's directory cannot be opened.
    pub fn with_rights_of(&self, settings: &Settings) -> Result<Self, JobError> {
        let mut fresh = Self { attempts: Arc::clone(&self.attempts), ..Self::open(settings)? };
        for (name, root) in &self.roots {
            if fresh.roots.get(name).is_some_and(|r| r.path() == root.path()) {
                fresh.roots.insert(name.clone(), Arc::clone(root));
            }
        }
        Ok(fresh)
    }
}

/// What one peer may name.
#[derive(Debug)]
pub struct PeerPlaces {
    locations: Arc<Locations>,
    peer: String,
}

impl PeerPlaces {
    fn root(&self, typed: &TypedPath, right: Right) -> Result<&Arc<Root>, JobError> {
        let name = &typed.location;
        let rights = self.locations.rights.get(name);
        // A peer without any right in a location is not told whether it exists.
        if !rights.is_some_and(|r| r.known(&self.peer)) {
            return Err(JobError::new(
                FailureClass::Identity,
                format!("no location {:?} for {:?} here", escape_bytes(name.as_bytes()), self.peer),
            ));
        }
        if !rights.is_some_and(|r| r.allowed(&self.peer, right)) {
            return Err(JobError::new(
                FailureClass::Identity,
                format!(
                    "{:?} has no right to {} in location {name:?}; the endpoint's settings grant it",
                    self.peer,
                    right.word()
                ),
            ));
        }
        self.locations.roots.get(name).ok_or_else(|| JobError::new(FailureClass::Bug, "a location without a root"))
    }

    /// The path below the location, and whether it was typed with a slash behind it.
    fn below(typed: &TypedPath) -> Result<(RelPath, bool), JobError> {
        let usage = |e: crate::chunk::PathError| {
            JobError::new(FailureClass::Usage, format!("{}: {e}", escape_bytes(&typed.path)))
        };
        let slash = typed.path.ends_with(b"/") || typed.path.is_empty();
        let mut path = RelPath::root();
        for name in typed.path.split(|&b| b == b'/').filter(|n| !n.is_empty() && *n != b".") {
            path = path.join(name).map_err(usage)?;
        }
        Ok((path, slash))
    }
}

fn destination(text: impl ToString) -> JobError {
    JobError::new(FailureClass::Destination, text.to_string())
}

impl Places for PeerPlaces {
    fn destination(
        &self,
        typed: &TypedPath,
        sources: &[Vec<u8>],
        more: bool,
        flags: JobFlags,
    ) -> Result<(Arc<Root>, Naming), JobError> {
        let root = self.root(typed, Right::Create)?;
        if flags.overwrite {
            self.root(typed, Right::Overwrite)?;
        }
        let (path, slash) = Self::below(typed)?;
        let single = match sources {
            [one] if !more => top_name(one),
            _ => None,
        };
        let beneath = |path: &RelPath| root.beneath(path).map(Arc::new).map_err(|e| destination(&e));
        if path.is_root() {
            return Ok((beneath(&path)?, Naming::default()));
        }
        match root.stat(&path).map_err(|e| destination(&e)) {
            Ok(Some(found)) if found.kind == FileKind::Dir => {
                if let (Some(from), Some((parent, name)), false) = (&single, path.split_last(), slash)
                    && let Ok(parent) = beneath(&parent)
                    && let Some(naming) = unfinished_name(&parent, from, name)
                {
                    return Ok((parent, naming));
                }
                return Ok((beneath(&path)?, Naming::default()));
            }
            Ok(Some(_)) if slash || single.is_none() => {
                return Err(destination(format!("{path} is not a directory; give one for several sources")));
            }
            Ok(_) => {}
            // A directory on the way is missing: it is made below.
            Err(_) if !flags.dry_run => {}
            Err(error) => return Err(error),
        }
        let Some((parent, name)) = path.split_last() else { return Ok((beneath(&path)?, Naming::default())) };
        let into = if single.is_some() && !slash { &parent } else { &path };
        if !flags.dry_run {
            root.make_dirs(into, 0o755).map_err(|e| destination(&e))?;
        }
        let rename = match single {
            Some(from) if !slash => Some((from, name.to_vec())),
            _ => None,
        };
        Ok((beneath(into)?, Naming { rename }))
    }

    fn sources(&self, typed: &[TypedPath]) -> Result<Opened, JobError> {
        let mut opened = Opened { paths: Vec::new(), handles: Vec::new() };
        for one in typed {
            let root = self.root(one, Right::Read)?;
            let (path, slash) = Self::below(one)?;
            let source = |e: crate::disk::DiskError| JobError::new(FailureClass::Source, e.to_string());
            // The walk follows the symlinks of its argument, so it gets a handle that was looked up beneath the root.
            let (dir, name) = match path.split_last() {
                Some((parent, name)) if !slash => (parent, Some(name.to_vec())),
                _ => (path.clone(), None),
            };
            let (handle, at) = root.beneath(&dir).and_then(|r| r.handle_path()).map_err(source)?;
            opened.handles.push(handle);
            let at = match name {
                Some(name) => at.join(std::ffi::OsStr::from_bytes(&name)),
                None => PathBuf::from(format!("{}/", at.display())),
            };
            opened.paths.push(at);
        }
        Ok(opened)
    }

    fn kept_at(&self, typed: &TypedPath) -> Result<Vec<Arc<Root>>, JobError> {
        let root = self.root(typed, Right::Create).or_else(|_| self.root(typed, Right::Read))?;
        let (path, _) = Self::below(typed)?;
        let parent = path.split_last().map(|(parent, _)| parent);
        Ok([Some(path), parent].into_iter().flatten().filter_map(|at| root.beneath(&at).ok().map(Arc::new)).collect())
    }

    fn peer(&self) -> Option<&str> {
        Some(&self.peer)
    }

    fn attempts(&self) -> Option<&Attempts> {
        Some(&self.locations.attempts)
    }
}
