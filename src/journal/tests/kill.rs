use std::{
    cell::Cell,
    panic::{self, AssertUnwindSafe},
    rc::Rc,
};

use super::*;
use crate::disk::fault;

/// What the far side was told before the crash.
#[derive(Default)]
struct Told {
    durable: Vec<u64>,
    published: Vec<String>,
}

fn receive(place: &Place, data: &[u8], told: &mut Told) -> Result<(), JournalError> {
    let store = PartStore::open(place.root(), StoreOptions { lock_wait: Duration::ZERO, job: None })?;
    let big = path("big");
    if place.root().stat(&big)?.is_none() {
        let part = Arc::new(store.begin(&big, len(data), chunk_size(), false)?);
        let held = check_held(&part);
        assert!(told.durable.iter().all(|index| held.contains(index)), "told {:?}, holds {held:?}", told.durable);
        for group in [0..2, 2..4, 4..6] {
            let missing: Vec<u64> = group.filter(|index| !held.contains(index)).collect();
            let chunks = write(&part, data, missing.iter().copied());
            store.commit(&[GroupItem { part: Arc::clone(&part), chunks }], &[])?;
            told.durable.extend(missing);
        }
        publish_all(&store, vec![("big".into(), Staged::Part(part))], told)?;
    }
    let mut files = Vec::new();
    for n in 0..6 {
        let name = format!("small{n}");
        if place.root().stat(&path(&name))?.is_none() {
            let staged = match store.adopt_small(&path(&name))? {
                Some(adopted) => adopted,
                None => store.write_small(
                    &path(&name),
                    name.as_bytes(),
                    Digest::of(name.as_bytes()),
                    &FileMeta::default(),
                )?,
            };
            files.push((name, Staged::Small(staged)));
        }
    }
    let small: Vec<SmallPart> =
        files.iter().filter_map(|(_, s)| if let Staged::Small(s) = s { Some(s.clone()) } else { None }).collect();
    store.commit(&[], &small)?;
    drop(small);
    publish_all(&store, files, told)?;
    store.finish()
}

fn publish_all(store: &PartStore, files: Vec<(String, Staged)>, told: &mut Told) -> Result<(), JournalError> {
    let (names, staged): (Vec<_>, Vec<_>) = files.into_iter().unzip();
    let publish = |staged| Publish { staged, meta: FileMeta::default(), mode: PublishMode::NoReplace };
    for (name, outcome) in names.into_iter().zip(store.publish(&staged.into_iter().map(publish).collect::<Vec<_>>())?) {
        assert!(matches!(outcome, PublishOutcome::Published(_)), "{name}: {outcome:?}");
        told.published.push(name);
    }
    Ok(())
}

/// Ends a run at each of its points in turn, and twice in a row, as SIGKILL would: the next one finds at least what the
/// far side was told, and finishes.
///
/// Seen to fail with the records of a commit appended to no journal.
#[test]
fn a_run_killed_at_every_point_is_finished_by_the_next() {
    panic::set_hook(Box::new(|info| {
        if info.payload().downcast_ref::<&str>() != Some(&"killed") {
            eprintln!("{info}");
        }
    }));
    let data = bytes(11, 6 * CHUNK - 5);
    let mut killed = 0;
    for at in 0.. {
        let place = Place::new();
        let mut told = Told::default();
        let mut finished = false;
        for _ in 0..2 {
            let left = Rc::new(Cell::new(at));
            fault::at_points(Some(Box::new(move |_| match left.get() {
                0 => panic!("killed"),
                n => left.set(n - 1),
            })));
            let run = panic::catch_unwind(AssertUnwindSafe(|| receive(&place, &data, &mut told).unwrap()));
            fault::at_points(None);
            match run {
                Ok(()) => finished = true,
                Err(cause) if cause.downcast_ref::<&str>() == Some(&"killed") => killed += 1,
                Err(cause) => panic::resume_unwind(cause),
            }
            for name in &told.published {
                assert!(place.at(name).exists(), "{name} was said to be published");
            }
        }
        receive(&place, &data, &mut told).unwrap();
        assert_eq!(fs::read(place.at("big")).unwrap(), data);
        for n in 0..6 {
            assert_eq!(fs::read(place.at(&format!("small{n}"))).unwrap(), format!("small{n}").as_bytes());
        }
        assert!(!place.at(".ccat-xfer").exists(), "killed at {at}");
        if finished {
            break;
        }
    }
    assert!(killed > 30, "only {killed} kills");
}
