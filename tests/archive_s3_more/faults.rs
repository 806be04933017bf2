//! A store that does not give what it has: its bytes are bad, or its data are away.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::SeqCst},
};

use ccat_xfer::{
    archive::{Archive as _, ArchiveError, Package, Source, Stored, Turn, s3::S3},
    model::ErrorClass,
};
use tokio_util::sync::CancellationToken;

use super::{Bed, MIB, PART, Root, Seen, assert_equal, gate::Gate, seed, settings, turn};

const BROKEN: (&str, &str) =
    ("500 Internal Server Error", "<Error><Code>InternalError</Code><Message>try again</Message></Error>");

/// A store that so often fails to give objects whose keys have one of these words in them.
fn fails_on(bed: &Bed, words: &'static [&'static str], times: u64) -> (Gate, Arc<AtomicU64>) {
    let left = Arc::new(AtomicU64::new(times));
    let told = Arc::clone(&left);
    let gate = Gate::before(bed.server.port(), move |head| {
        let first = head.lines().next().unwrap_or_default();
        let is_meant = first.starts_with("GET /archive/raw/packages/") && words.iter().any(|word| first.contains(word));
        (is_meant && told.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok()).then_some(BROKEN)
    });
    (gate, left)
}

async fn read(endpoint: &str, package: &Package) -> ArchiveError {
    let store = S3::new(settings(endpoint)).expect("settings");
    let read = store.read_back(package, &Seen::default(), &CancellationToken::new()).await;
    let error = read.expect_err("it is not given");
    println!("{:?}: {error}", error.class);
    error
}

/// Catches a store whose data are away, and that is taken for one whose bytes are bad.
#[tokio::test(flavor = "multi_thread")]
async fn data_that_are_away_are_not_corrupt() {
    let Some(bed) = Bed::new("s3-data-away") else { return };
    let (store, mut rng) = (bed.store(), seed("s3-data-away"));
    let packages: Vec<_> = (0..6).map(|n| bed.file(&format!("{n}.fits"), 2 * PART + n * MIB, &mut rng)).collect();
    bed.put(&store, &packages[0]).await.expect("it is put");
    // There is nothing else to be asked for.
    let (gate, _) = fails_on(&bed, &[".fits"], u64::MAX);
    assert_eq!(read(&gate.endpoint(), &packages[0]).await.class, ErrorClass::RemoteBusy);
    for package in &packages[1..] {
        bed.put(&store, package).await.expect("it is put");
    }
    for (words, class) in [
        (&[".fits"][..], ErrorClass::RemoteBusy),
        (&["/0.fits", "/3.fits"], ErrorClass::RemoteBusy),
        (&["/0.fits"], ErrorClass::CorruptInFlight),
    ] {
        let (gate, _) = fails_on(&bed, words, u64::MAX);
        assert_eq!(read(&gate.endpoint(), &packages[0]).await.class, class, "{words:?}");
    }
    // Back in time for the last try.
    let (gate, left) = fails_on(&bed, &["/0.fits"], u64::from(bed.settings().limits.tries));
    assert_eq!(read(&gate.endpoint(), &packages[0]).await.class, ErrorClass::Network);
    assert_eq!(left.load(SeqCst), 0);
    assert_equal(&store, &packages[0]).await;
}

/// Catches a corrupt object that is read once by the attempt that finds it out, and again before it is replaced.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_and_found_corrupt_is_replaced_unread() {
    let Some(bed) = Bed::new("s3-read-once") else { return };
    let (store, mut rng) = (bed.store(), seed("s3-read-once"));
    let package = bed.file("p.fits", 2 * PART, &mut rng);
    bed.put(&store, &package).await.expect("it is put");
    let key = bed.keys().await.into_iter().next().expect("its key");
    bed.overwrite(&key, vec![1; usize::try_from(2 * PART).expect("it fits")]).await;
    let root = Root::open(bed.scene.path()).expect("the folder");
    let source = Source { root: &root, path: &package.relative_path };
    for seen_corrupt in [true, false] {
        bed.proxy.forget();
        let turn = Turn { fence: 2, replace: true, seen_corrupt, ..turn(true) };
        let put = store.put(&package, &source, &turn, &Seen::default(), &CancellationToken::new()).await;
        // Put by one attempt and found by the next one, which reads it.
        let wanted = if seen_corrupt { Stored::Written { resumed_bytes: 0 } } else { Stored::Found };
        assert_eq!(put.expect("it is replaced"), wanted);
        let gets = bed.proxy.count().gets;
        assert!(!gets.keys().any(|path| path.ends_with(&key)), "what is known to be corrupt was read: {gets:?}");
        assert_eq!(gets.len(), 1, "the replacement is looked at: {gets:?}");
    }
    assert_equal(&store, &package).await;
}
