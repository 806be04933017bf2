//! A way into an archive stops when its lease is over: nobody but the database keeps two from writing there.

use std::{
    fs,
    time::{Duration, Instant},
};

use super::{Backend, HANG, Shelf, TERMS, Terms, World, manager, seed, submit, until_archived, worker_of, write_file};
use crate::harness::command_line;

/// A tape system in a folder. The first put says which process it is, and does not end by itself while the test runs.
const SYSTEM: &str = r#"
verb=$1; shift
name() { printf '%s' "$root/$(printf '%s' "$1" | tr / _)"; }
root=$(dirname "$0")/objects
mkdir -p "$root"
case $verb in
put)
    if mkdir "$root/first" 2>/dev/null; then
        echo $$ > "$root/part" && mv "$root/part" "$root/began"
        sleep 3600
    fi
    cp "$1" "$(name "$2").part" && mv "$(name "$2").part" "$(name "$2")" ;;
get) cp "$(name "$1")" "$2" ;;
stat) if [ -e "$(name "$1")" ]; then echo on_tape; else echo missing; fi ;;
esac
"#;

#[test]
fn an_attempt_that_cannot_renew_its_lease_stops_writing() {
    let settings = "[locations.\"cologne/vault\".tape]\nstaging = \"ROOT/staging\"\n\
         put = [\"/bin/sh\", \"ROOT/system\", \"put\", \"{source}\", \"{key}\"]\n\
         get = [\"/bin/sh\", \"ROOT/system\", \"get\", \"{key}\", \"{target}\"]\n\
         stat = [\"/bin/sh\", \"ROOT/system\", \"stat\", \"{key}\"]\ntape_poll = \"1s\"";
    let vault = Shelf { name: "vault", storage: "tape", topology: "", settings };
    let world = World::new("lease", Backend::Sqlite, &Terms { archives: &[vault], ..TERMS });
    let root = world.scene.folder("vault");
    fs::create_dir(root.join("staging")).expect("a folder");
    fs::write(root.join("system"), SYSTEM).expect("write the commands");
    write_file(&world.origin().join("one"), 100_000, &mut seed("lease"));
    let (_manager, mut worker) = (manager(&world), worker_of(&world, "w1", &["vault"], &[]));
    submit(&world, &["one".to_owned()]);
    let began = root.join("objects/began");
    assert!(worker.wait_until(HANG, |_| began.exists()), "no put:\n{}", worker.stderr_so_far());
    // The lease is 3 s.
    world.hold_the_file(Duration::from_secs(8));
    until_archived(&world, 1);
    let put = fs::read_to_string(&began).expect("read").trim().parse().expect("a process id");
    let end = Instant::now() + Duration::from_secs(10);
    while command_line(put).contains("/system") {
        assert!(Instant::now() < end, "the first put goes on without its lease\n{}", worker.stderr_so_far());
        std::thread::sleep(Duration::from_millis(20));
    }
    let attempts = world.rows(&["outcome"], "FROM attempt WHERE long_term_archive_transfer_id = 1 ORDER BY fence");
    let last = attempts.last().map(|row| row[0].as_str());
    assert!(attempts.len() > 1 && last == Some("completed"), "{attempts:?}");
}
