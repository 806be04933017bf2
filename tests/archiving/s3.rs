//! The same chain into a disk and a real S3 server, which is killed and started meanwhile.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use super::{
    Backend, DISK, HANG, Shelf, TERMS, Terms, World, assert_archived, found, make_packages, manager, seed, submit,
    until_archived, worker_of,
};
use crate::harness::{S3Server, say, skip, spawn};

/// A worker's, for the bucket of a test's server at this endpoint. The credentials go into the folder.
pub(crate) fn settings(location: &str, endpoint: &str, folder: &Path) -> String {
    let credentials = folder.join("s3-credentials");
    fs::write(&credentials, format!("{}:{}", S3Server::ACCESS_KEY, S3Server::SECRET_KEY))
        .expect("write the credentials");
    fs::set_permissions(&credentials, fs::Permissions::from_mode(0o600)).expect("keep the credentials");
    format!(
        "[locations.\"cologne/{location}\".s3]\nendpoint = \"{endpoint}\"\nbucket = \"{}\"\ncredentials_file = \"{}\"\n\
         part_size = \"8Mi\"\n",
        S3Server::BUCKET,
        credentials.display()
    )
}

#[test]
fn packages_reach_a_disk_and_s3_while_the_server_is_killed_and_started() {
    let test = "archiving into disk and S3";
    if let Some(why) = S3Server::missing() {
        return skip(test, why);
    }
    if Backend::Servers.is_missing(test) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut server = S3Server::start("archiving-s3");
    let settings = settings("s3", &server.endpoint(), folder.path());
    let s3 = Shelf { name: "s3", storage: "s3", topology: "", settings: &settings };
    let world = World::new("disk-and-s3", Backend::Servers, &Terms { archives: &[DISK, s3], ..TERMS });
    let root = found(&world);
    let names = make_packages(&world, 16, &mut seed(test));
    let (_manager, _worker) = (manager(&world), worker_of(&world, "w1", &["archive", "s3"], &[]));
    let (before, while_it_is_down) = names.split_at(12);
    submit(&world, before);
    let at_s3 = "FROM physical_copy c JOIN data_location l ON l.id = c.location_id WHERE l.name = 's3'";
    world.until("some in S3", &["count(*)"], at_s3, |row| row[0].parse::<u64>().is_ok_and(|n| n > 2));
    server.kill();
    // Those that were submitted before may all be there by now.
    submit(&world, while_it_is_down);
    world.until(
        "an attempt that failed",
        &["count(*)"],
        "FROM attempt WHERE outcome IN ('network', 'remote_busy')",
        |row| row[0] != "0",
    );
    server.up();
    until_archived(&world, names.len());
    assert_archived(&world, &root, &names);
    let words = ["verify", "--location", "cologne/s3"];
    let said = spawn(&world.scene, world.command(&words)).wait(HANG).expect_code(0).said();
    assert!(said.contains(&format!("{} equal, 0 different, 0 missing", names.len())), "{said}");
    say(&format!("{test}: {}", said.lines().last().unwrap_or_default()));
}
