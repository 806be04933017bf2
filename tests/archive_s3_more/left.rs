//! Uploads that attempts have left which never came back.

use std::time::Duration;

use ccat_xfer::archive::{Archive as _, Package, Source, s3::S3};
use tokio_util::sync::CancellationToken;

use super::{Bed, PART, Root, S3Server, Seen, assert_equal, gate::Gate, seed, settings, turn};

/// Puts a package and stops once its first part is safe.
async fn cut_off(bed: &Bed, store: &S3, package: &Package) {
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let seen = Seen { at: 1, then: Some(Box::new(move || stop.cancel())), ..Seen::default() };
    let root = Root::open(bed.scene.path()).expect("the folder");
    let source = Source { root: &root, path: &package.relative_path };
    store.put(package, &source, &turn(false), &seen, &cancel).await.expect_err("it was stopped");
}

/// Catches uploads that are left for good, and those of others that are removed with them.
#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_comes_back_for_is_swept_and_nothing_else() {
    let Some(bed) = Bed::new("s3-left") else { return };
    let (store, raw, mut rng) = (bed.store(), bed.raw(), seed("s3-left"));
    assert_eq!(store.sweep_older(Duration::ZERO).await.expect("it is swept"), 0, "there is nothing yet");
    bed.proxy.delay(Duration::from_millis(50));
    let (one, other) = (bed.file("p.fits", 9 * PART, &mut rng), bed.file("q.fits", 9 * PART, &mut rng));
    for package in [&one, &other] {
        cut_off(&bed, &store, package).await;
    }
    bed.proxy.delay(Duration::ZERO);
    let digest = other.expected.hex();
    for key in ["raw/packages/another".to_owned(), format!("else/packages/q.{digest}"), format!("raw/q.{digest}")] {
        raw.create_multipart_upload().bucket(S3Server::BUCKET).key(key).send().await.expect("begun");
    }
    assert_eq!(bed.uploads().await, 5);
    let young = [store.sweep().await, store.sweep_older(Duration::from_secs(3600)).await];
    assert_eq!(young.map(|swept| swept.expect("it is swept")), [0, 0]);
    assert_eq!(bed.uploads().await, 5, "somebody may come back for them");
    assert_eq!(store.sweep_older(Duration::ZERO).await.expect("it is swept"), 2);
    assert_eq!(bed.uploads().await, 3, "what is not ours stays");
    bed.put(&store, &one).await.expect("it begins anew");
    assert_equal(&store, &one).await;
    assert_eq!(store.sweep_older(Duration::ZERO).await.expect("it is swept"), 0);
    assert_equal(&store, &one).await;
}

/// Catches an upload that is removed while its parts still come.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_upload_that_goes_on_is_not_swept() {
    let Some(bed) = Bed::new("s3-old") else { return };
    let (raw, mut rng) = (bed.raw(), seed("s3-old"));
    bed.proxy.delay(Duration::from_millis(50));
    cut_off(&bed, &bed.store(), &bed.file("p.fits", 9 * PART, &mut rng)).await;
    let listed = raw.list_multipart_uploads().bucket(S3Server::BUCKET).send().await.expect("a list");
    let key = listed.uploads()[0].key().expect("its key").to_owned();
    let empty = raw.create_multipart_upload().bucket(S3Server::BUCKET).key(&key).send().await.expect("begun");
    let ids = [listed.uploads()[0].upload_id().expect("its id"), empty.upload_id().expect("its id")];
    // As the store would say a year later.
    let rows = ids.map(|id| {
        format!("<Upload><Key>{key}</Key><UploadId>{id}</UploadId><Initiated>2020-01-01T00:00:00Z</Initiated></Upload>")
    });
    let list = |rows: String| &*format!("<ListMultipartUploadsResult>{rows}</ListMultipartUploadsResult>").leak();
    let answer = list(rows.concat());
    let gate = Gate::before(bed.server.port(), move |head| {
        let first = head.lines().next().unwrap_or_default();
        (first.starts_with("GET ") && first.contains("uploads")).then_some(("200 OK", answer))
    });
    let store = S3::new(settings(&gate.endpoint())).expect("settings");
    assert_eq!(store.sweep().await.expect("it is swept"), 1);
    let left = raw.list_multipart_uploads().bucket(S3Server::BUCKET).send().await.expect("a list");
    assert_eq!(left.uploads().iter().filter_map(|upload| upload.upload_id()).collect::<Vec<_>>(), [ids[0]]);
}
