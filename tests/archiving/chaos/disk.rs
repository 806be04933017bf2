//! A disk that says it wrote and keeps other bytes (`archive::fault`).

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::{
    super::{DISK, Sidecar, assert_archived, found as found_archive, has_same_bytes, resting, sidecars},
    Bed, Fault, Shelf, World, harness,
};

const LOG: &str = "planted";

#[derive(Default)]
pub(super) struct DiskBed {
    root: PathBuf,
    log: PathBuf,
}

impl Bed for DiskBed {
    fn shelf(&self) -> Shelf<'_> {
        DISK
    }

    fn begin(&mut self, world: &World) {
        self.root = found_archive(world);
        self.log = world.scene.join(LOG);
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        // Of a tenth of the packages 5 % would often be none.
        let fault = if harness::full() { "changed=3,dropped=2" } else { "changed=10,dropped=5" };
        vec![
            ("CCAT_XFER_ARCHIVE_FAULT", fault.to_owned()),
            ("CCAT_XFER_ARCHIVE_FAULT_LOG", self.log.display().to_string()),
        ]
    }

    fn play(&mut self, _: u64, _: u64) {}

    fn faults(&self) -> Vec<Fault> {
        let fault = |line: &str| {
            // `KIND ROOT/packages/ab/cd/DIGEST-PATH/...`
            let (kind, path) = line.split_once(' ').unwrap_or_else(|| panic!("no kind: {line}"));
            let digest = path.split('/').find(|word| word.len() == 64 + 1 + 16 && word.as_bytes()[64] == b'-');
            let digest = digest.unwrap_or_else(|| panic!("no package: {line}"));
            Fault { kind: kind.to_owned(), digest: digest[..64].to_owned() }
        };
        fs::read_to_string(&self.log).unwrap_or_default().lines().map(fault).collect()
    }

    fn lacks(&self) -> Option<String> {
        self.faults().is_empty().then(|| "corruption below the archive".to_owned())
    }

    fn corrupt(&self, world: &World, _: &[String]) -> Vec<String> {
        let sidecars: BTreeMap<String, Sidecar> = sidecars(&self.root);
        let differs = |(name, sidecar): &(String, Sidecar)| {
            !has_same_bytes(&world.origin().join(name), &resting(self.root.as_path(), sidecar))
        };
        sidecars.into_iter().filter(differs).map(|(name, _)| name).collect()
    }

    fn assert_whole(&self, world: &World, names: &[String]) {
        assert_archived(world, Path::new(&self.root), names);
    }

    fn said(&self) -> String {
        "the archive is a disk".to_owned()
    }
}
