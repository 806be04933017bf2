use std::thread;

use super::*;
use crate::{
    disk::{LockOutcome, lock_file},
    journal::jobs::{file_name, open_jobs, remove_old_fences},
};

#[test]
fn fences_only_rise_and_stay() {
    let place = Place::new();
    let jobs = Jobs::new(place.root());
    let (a, b) = ([1; 16], [2; 16]);
    assert_eq!(jobs.state(a).unwrap(), JobState::default());
    assert!(!place.at(".ccat-xfer").exists(), "asking makes nothing");
    jobs.raise_fence(a, 5).unwrap();
    jobs.raise_fence(a, 5).unwrap();
    assert!(matches!(jobs.raise_fence(a, 4), Err(JournalError::Overtaken { highest: 5, ours: 4 })));
    jobs.raise_fence(a, 9).unwrap();
    jobs.raise_fence(b, 1).unwrap();
    let state = Jobs::new(place.root()).state(a).unwrap();
    assert_eq!(state, JobState { fence: 9 });
    // A session that ends leaves it alone.
    place.store().finish().unwrap();
    assert_eq!(jobs.state(a).unwrap(), JobState { fence: 9 });
    assert_eq!(jobs.state(b).unwrap(), JobState { fence: 1 });
}

#[test]
fn only_old_fences_beyond_the_most_are_forgotten() {
    let place = Place::new();
    let jobs = Jobs::new(place.root());
    for job in 1..=5 {
        jobs.raise_fence([job; 16], 3).unwrap();
    }
    jobs.keep_receipts([5; 16], 3, "chile").unwrap().finish().unwrap();
    let dir = open_jobs(&place.root()).unwrap().unwrap();
    let known = || (1..=5).filter(|&job| jobs.state([job; 16]).unwrap().fence == 3).count();
    remove_old_fences(&dir, 5, Duration::ZERO).unwrap();
    remove_old_fences(&dir, 0, Duration::from_secs(3600)).unwrap();
    assert_eq!(known(), 5, "few enough, or too young");
    // One that somebody raises just now is locked.
    let name = file_name([2; 16]);
    let file = dir.open_write(&name).unwrap();
    assert_eq!(lock_file(&dir, &name, &file).unwrap(), LockOutcome::Held);
    remove_old_fences(&dir, 0, Duration::ZERO).unwrap();
    assert_eq!(known(), 1);
    assert_eq!(jobs.state([2; 16]).unwrap().fence, 3);
    assert!(jobs.receipts([5; 16]).unwrap().is_some(), "receipts have a limit of their own");
}

fn kept(place: &Place, job: [u8; 16]) -> Option<(String, u64, Vec<Vec<u8>>)> {
    let found = Jobs::new(place.root()).receipts(job).unwrap()?;
    let (owner, fence, mut all) = (found.owner.clone(), found.fence, Vec::new());
    found.read(|bytes| all.push(bytes)).unwrap();
    Some((owner, fence, all))
}

#[test]
fn receipts_are_those_of_the_last_attempt_that_ended() {
    let place = Place::new();
    let jobs = Jobs::new(place.root());
    let job = [7; 16];
    assert!(jobs.receipts(job).unwrap().is_none());
    assert!(!place.at(".ccat-xfer").exists(), "asking makes nothing");
    jobs.raise_fence(job, 1).unwrap();
    let mut first = jobs.keep_receipts(job, 1, "chile").unwrap();
    first.add(b"one".to_vec()).unwrap();
    assert!(kept(&place, job).is_none(), "not before the end");
    first.add(b"two".to_vec()).unwrap();
    assert!(first.add(vec![0; 600 << 10]).is_err());
    assert!(first.finish().unwrap());
    let said = Some(("chile".to_owned(), 1, vec![b"one".to_vec(), b"two".to_vec()]));
    assert_eq!(kept(&place, job), said);
    // An attempt that did not end, and one that a newer one overtook.
    let mut given_up = jobs.keep_receipts(job, 1, "chile").unwrap();
    given_up.add(b"half".to_vec()).unwrap();
    drop(given_up);
    let late = jobs.keep_receipts(job, 1, "chile").unwrap();
    jobs.raise_fence(job, 2).unwrap();
    assert!(matches!(late.finish(), Err(JournalError::Overtaken { highest: 2, ours: 1 })));
    assert_eq!(kept(&place, job), said);
    jobs.keep_receipts(job, 2, "cologne").unwrap().finish().unwrap();
    assert_eq!(kept(&place, job), Some(("cologne".to_owned(), 2, Vec::new())));
    place.store().finish().unwrap();
    let mut left: Vec<_> = fs::read_dir(place.at(".ccat-xfer/jobs"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort_unstable();
    assert_eq!(left, ["07".repeat(16), format!("{}.receipts", "07".repeat(16))]);
}

/// What a process left that died is removed by the next one, and what one that lives is writing is not.
#[test]
fn receipts_of_dead_processes_are_removed() {
    let place = Place::new();
    let jobs = Jobs::new(place.root());
    let alive = jobs.keep_receipts([1; 16], 1, "").unwrap();
    let left = place.at(".ccat-xfer/jobs").join("00112233445566778899.new");
    fs::write(&left, b"half a record").unwrap();
    jobs.keep_receipts([2; 16], 1, "").unwrap().finish().unwrap();
    assert!(!left.exists());
    alive.finish().unwrap();
    assert_eq!(kept(&place, [1; 16]), Some((String::new(), 1, Vec::new())));
}

/// Every damaged byte is noticed, at the latest behind what was right.
#[test]
fn damaged_receipts_are_not_believed() {
    let place = Place::new();
    let jobs = Jobs::new(place.root());
    let job = [9; 16];
    let mut writer = jobs.keep_receipts(job, 3, "chile").unwrap();
    writer.add(b"a receipt".to_vec()).unwrap();
    writer.finish().unwrap();
    let file = place.at(".ccat-xfer/jobs").join(format!("{}.receipts", "09".repeat(16)));
    let whole = fs::read(&file).unwrap();
    let believed = || match jobs.receipts(job) {
        Ok(Some(found)) => found.read(|bytes| assert_eq!(bytes, b"a receipt")).is_ok(),
        Ok(None) => true,
        Err(_) => false,
    };
    assert!(believed());
    for byte in 0..whole.len() {
        let mut bad = whole.clone();
        bad[byte] ^= 1;
        fs::write(&file, &bad).unwrap();
        assert!(!believed(), "byte {byte}");
    }
    fs::write(&file, &whole[..whole.len() - 1]).unwrap();
    assert!(!believed());
    // That of another job, under this one's name.
    fs::write(place.at(".ccat-xfer/jobs").join(format!("{}.receipts", "0a".repeat(16))), &whole).unwrap();
    assert!(jobs.receipts([10; 16]).is_err());
}

#[test]
fn receipts_of_so_many_jobs_are_kept() {
    let place = Place::new();
    let jobs = Jobs::new(place.root());
    jobs.keep_receipts([0; 16], 1, "").unwrap().finish().unwrap();
    let first = fs::read(place.at(".ccat-xfer/jobs").join(format!("{}.receipts", "00".repeat(16)))).unwrap();
    thread::sleep(Duration::from_millis(20));
    for n in 1..MAX_KEPT_JOBS {
        fs::write(place.at(".ccat-xfer/jobs").join(format!("{n:032x}.receipts")), &first).unwrap();
    }
    assert!(jobs.receipts([0; 16]).unwrap().is_some());
    jobs.keep_receipts([255; 16], 1, "").unwrap().finish().unwrap();
    assert!(jobs.receipts([0; 16]).unwrap().is_none(), "the oldest made room");
    assert!(jobs.receipts([255; 16]).unwrap().is_some());
}

/// Seen to fail with the job's file not locked.
#[test]
fn of_many_attempts_the_highest_fence_stays() {
    let place = Place::new();
    let job = [3; 16];
    let accepted: Vec<u64> = thread::scope(|scope| {
        let attempt = |fence: u64| {
            let jobs = Jobs::new(place.root());
            move || jobs.raise_fence(job, fence).is_ok().then_some(fence)
        };
        let threads: Vec<_> = (1..=40).map(|fence| scope.spawn(attempt((fence * 17) % 41))).collect();
        threads.into_iter().filter_map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(Jobs::new(place.root()).state(job).unwrap().fence, 40);
    assert!(accepted.contains(&40));
}

/// A fence that cannot be read must not count as none. Seen to fail with damage taken for an empty file.
#[test]
fn a_damaged_fence_stops_the_job() {
    let place = Place::new();
    let jobs = Jobs::new(place.root());
    let job = [4; 16];
    jobs.raise_fence(job, 7).unwrap();
    let file = place.at(".ccat-xfer/jobs").join("04".repeat(16));
    let whole = fs::read(&file).unwrap();
    // A length that is too long looks like an append that was cut short; every other byte shows the damage.
    let second = whole.len() - 40;
    for byte in (4..whole.len()).filter(|byte| !(second..second + 4).contains(byte)) {
        let mut bad = whole.clone();
        bad[byte] ^= 1;
        fs::write(&file, &bad).unwrap();
        assert!(matches!(jobs.raise_fence(job, 8), Err(JournalError::NotOurs { .. })), "byte {byte}");
        assert!(jobs.state(job).is_err());
    }
    // A torn tail, though, was never promised to anybody.
    fs::write(&file, [&whole[..], &whole[second..second + 30]].concat()).unwrap();
    assert!(matches!(jobs.raise_fence(job, 6), Err(JournalError::Overtaken { .. })));
    fs::write(&file, [&whole[..], &[0; 100]].concat()).unwrap();
    assert_eq!(jobs.state(job).unwrap().fence, 7);
    jobs.raise_fence(job, 8).unwrap();
    assert_eq!(jobs.state(job).unwrap().fence, 8);
}

#[test]
fn left_parts_are_listed_and_only_unlocked_ones_removed() {
    let place = Place::new();
    let data = bytes(1, 3 * CHUNK);
    let dead = place.store();
    let part = begin(&dead, "dead", &data);
    let values = write(&part, &data, [0, 2]);
    commit(&dead, &part, values);
    let other = begin(&dead, "dead2", &data);
    let values = write(&other, &data, [1]);
    commit(&dead, &other, values);
    drop((part, other, dead));
    let live = place.store();
    let living = begin(&live, "live", &data);

    let mut parts = list_parts(&place.root()).unwrap();
    parts.sort_by_key(|p| p.path.clone());
    assert_eq!(parts.len(), 3);
    assert_eq!(parts[0].path, Some(path("dead")));
    assert_eq!((parts[0].size, parts[0].held_bytes, parts[0].locked), (len(&data), 2 * len(&data[..CHUNK]), false));
    assert_eq!((parts[2].path.clone(), parts[2].locked), (Some(path("live")), true));

    let old = Which::OlderThan(Duration::from_secs(3600));
    assert!(remove_unlocked(&place.root(), &old).unwrap().is_empty());
    let removed = remove_unlocked(&place.root(), &Which::These(vec![parts[0].id.clone()])).unwrap();
    assert_eq!(removed.len(), 1);
    assert_eq!(list_parts(&place.root()).unwrap().len(), 2);
    let removed = remove_unlocked(&place.root(), &Which::All).unwrap();
    assert_eq!(removed.iter().map(|p| p.path.clone()).collect::<Vec<_>>(), [Some(path("dead2"))]);
    write(&living, &data, [0, 1, 2]);
    assert!(matches!(publish_one(&live, Staged::Part(living), PublishMode::NoReplace), PublishOutcome::Published(_)));
    live.finish().unwrap();
    assert!(!place.at(".ccat-xfer").exists());
    assert!(list_parts(&place.root()).unwrap().is_empty());
}

#[test]
fn sessions_that_begin_and_end_at_once_do_not_disturb_each_other() {
    let place = Place::new();
    thread::scope(|scope| {
        for t in 0..8 {
            let place = &place;
            scope.spawn(move || {
                for round in 0..40 {
                    let store = place.store();
                    let name = format!("f{t}-{round}");
                    let staged = Staged::Small(small(&store, &name, name.as_bytes()));
                    let outcome = publish_one(&store, staged, PublishMode::NoReplace);
                    assert!(matches!(outcome, PublishOutcome::Published(_)), "{outcome:?}");
                    store.finish().unwrap();
                }
            });
        }
    });
    assert_eq!(fs::read_dir(place.dir.path()).unwrap().count(), 320);
}
