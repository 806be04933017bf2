//! `submit`: packages become known, with the wish where they should be.

use std::{
    os::unix::ffi::OsStrExt as _,
    path::{Component, Path, PathBuf},
};

use super::{Daemon, FailureClass, JobError, Screen, actor, args, open, print_json, store_error};
use crate::{
    chunk::{Digest, RelPath},
    cli::exit::Exit,
    config::{Location, units::show_size},
    disk::Root,
    engine::measure,
    model::{PackageKind, Policy, topology::Place},
    store::{Destination, NewPackage},
};

pub(super) async fn submit(args: &args::Submit, daemon: &Daemon, screen: &Screen) -> Result<Exit, JobError> {
    let usage = |text: String| JobError::new(FailureClass::Usage, text);
    let from = args.from.to_string();
    let Some(folder) = daemon.locations.get(&from).and_then(Location::folder) else {
        return Err(usage(format!(
            "this machine has no folder for {from}; name it in the settings: [locations.\"{from}\"] root = \"/...\""
        )));
    };
    let destinations = args.to.iter().map(|text| destination(text)).collect::<Result<Vec<_>, _>>()?;
    let root_path = folder.to_owned();
    let paths = args.paths.clone();
    let (origin, priority, policy) = (args.from.clone(), args.priority, args.policy);
    // The database first: a digest of a terabyte for a database that is not there would be a pity.
    let store = open(daemon).await?;
    let packages = tokio::task::spawn_blocking(move || {
        let root = Root::open(&root_path).map_err(|e| JobError::new(FailureClass::Source, e.to_string()))?;
        let one = |path: &PathBuf| Ok(NewPackage { policy, ..measured(&root, &root_path, path, &origin, priority)? });
        paths.iter().map(one).collect::<Result<Vec<_>, _>>()
    })
    .await
    .map_err(|_| JobError::new(FailureClass::Bug, "reading the packages ended badly"))??;
    let registered = store.register(&packages, &destinations, &actor()).await.map_err(|e| store_error(&e))?;
    let pairs = packages.iter().flat_map(|package| args.to.iter().map(move |to| (package, to)));
    for (one, (package, to)) in registered.iter().zip(pairs) {
        let path = String::from_utf8_lossy(package.path.as_bytes()).into_owned();
        if args.json {
            print_json(
                screen,
                &serde_json::json!({
                    "schema": 1,
                    "package": one.package.to_string(),
                    "is_new_package": one.is_new_package,
                    "request": one.request.to_string(),
                    "is_new_request": one.is_new_request,
                    "path": path,
                    "kind": package.kind.as_str(),
                    "size": package.size_bytes,
                    "files": package.file_count,
                    "digest": Digest(package.identity).to_string(),
                    "to": to,
                }),
            )?;
        } else {
            let news = match (one.is_new_package, one.is_new_request) {
                (true, _) => "registered",
                (false, true) => "known, and now wanted there too",
                (false, false) => "known, and wanted there already",
            };
            screen.print(&format!(
                "{} {path} ({}, {} files) -> {to}: {news}\n",
                one.package,
                show_size(package.size_bytes),
                package.file_count
            ));
        }
    }
    store.close().await;
    Ok(Exit::Success)
}

fn destination(text: &str) -> Result<Destination, JobError> {
    if text.contains('/') {
        let place = text.parse::<Place>().map_err(|e| JobError::new(FailureClass::Usage, e.to_string()))?;
        return Ok(Destination::Place(place));
    }
    Ok(Destination::Site(text.to_owned()))
}

/// Reads a file or tree beneath `folder`, and says what it is as a package.
///
/// # Errors
/// It is no such thing, lies elsewhere, or cannot be read.
pub(in crate::cli) fn measured(
    root: &Root,
    folder: &Path,
    path: &Path,
    origin: &Place,
    priority: u8,
) -> Result<NewPackage, JobError> {
    let path = beneath(folder, path)?;
    let measured = measure(root, &path)?;
    if measured.skipped > 0 {
        tracing::warn!(%path, skipped = measured.skipped, "holds FIFOs, sockets or devices, which are not moved");
    }
    let name = path.split_last().map(|(_, name)| String::from_utf8_lossy(name).into_owned()).unwrap_or_default();
    Ok(NewPackage {
        name,
        kind: if measured.is_tree { PackageKind::Tree } else { PackageKind::File },
        origin: origin.clone(),
        path,
        size_bytes: measured.size_bytes,
        file_count: measured.file_count,
        identity: measured.digest.0,
        sha256: None,
        priority,
        policy: Policy::SiteArchives,
        metadata: None,
    })
}

/// The path below the location's folder. No link is resolved: what leads out by one is refused when it is read.
fn beneath(folder: &Path, path: &Path) -> Result<RelPath, JobError> {
    let usage = |why: String| JobError::new(FailureClass::Usage, format!("{}: {why}", path.display()));
    let below = if path.is_absolute() {
        path.strip_prefix(folder)
            .map_err(|_| usage(format!("it does not lie in the location's folder {}", folder.display())))?
    } else {
        path
    };
    let mut found = RelPath::root();
    for part in below.components() {
        match part {
            Component::CurDir => {}
            Component::Normal(name) => found = found.join(name.as_bytes()).map_err(|e| usage(e.to_string()))?,
            _ => return Err(usage("a package's path has no '..' in it".into())),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_below_the_location() {
        let at = |path: &str| beneath(Path::new("/data"), Path::new(path)).map(|p| p.to_string());
        assert_eq!(at("a/b").unwrap(), "a/b");
        assert_eq!(at("./a/").unwrap(), "a");
        assert_eq!(at("/data/a/b").unwrap(), "a/b");
        for bad in ["../x", "a/../b", "/etc/passwd", "/database/x"] {
            assert_eq!(at(bad).unwrap_err().class, FailureClass::Usage, "{bad}");
        }
    }
}
