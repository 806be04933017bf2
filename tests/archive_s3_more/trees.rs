//! What an attempt has left of a tree, and what the next one makes of it.

use std::fs;

use ccat_xfer::{
    archive::{
        Archive as _, Package, Stored,
        s3::{Checksum, S3, Settings},
    },
    model::ErrorClass,
};
use tokio_util::sync::CancellationToken;

use super::{
    Bed, PART, S3Server, Seen, assert_equal, finds_corruption,
    gate::Gate,
    harness::{seed, write_file},
    package, settings,
};

/// A tree of two large files and some small ones.
fn tree(bed: &Bed, name: &str) -> Package {
    let mut rng = seed(name);
    let at = bed.scene.join(name);
    fs::create_dir_all(at.join("sub")).expect("make folders");
    write_file(&at.join("large"), 3 * PART + 5, &mut rng);
    write_file(&at.join("sub/large"), 2 * PART, &mut rng);
    for n in 0..5 {
        write_file(&at.join(format!("{n}.dat")), 1000 + n, &mut rng);
    }
    package(bed.scene.path(), name)
}

/// Takes from a tree what makes it whole.
async fn unmake(bed: &Bed, name: &str) {
    for key in bed.keys().await.iter().filter(|key| key.contains(name) && key.ends_with("/manifest")) {
        bed.delete(key).await;
    }
}

/// Seen to fail with large files sent again, and with what has other bytes left there.
#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_tree_that_lie_there_are_not_sent_again() {
    let Some(bed) = Bed::new("s3-tree-again") else { return };
    for checksum in [Checksum::Crc64Nvme, Checksum::Sha256, Checksum::ContentMd5] {
        let name = format!("{checksum:?}").to_lowercase();
        let store = S3::new(Settings { checksum, ..bed.settings() }).expect("settings");
        let package = tree(&bed, &name);
        bed.put(&store, &package).await.expect("it is put");
        unmake(&bed, &name).await;
        bed.proxy.forget();
        let stored = bed.put(&store, &package).await.expect("it goes on");
        assert_eq!(stored, Stored::Written { resumed_bytes: package.size_bytes });
        let count = bed.proxy.count();
        assert_eq!((count.begun, count.parts.len(), count.requests["PUT"]), (0, 0, 1), "the manifest alone: {count:?}");
        assert_equal(&store, &package).await;

        unmake(&bed, &name).await;
        let keys: Vec<_> = bed.keys().await.into_iter().filter(|key| key.contains(&name)).collect();
        for (end, bytes) in [("/sub/large", 2 * PART), ("/3.dat", 1003)] {
            let key = keys.iter().find(|key| key.ends_with(end)).expect("its key");
            bed.overwrite(key, vec![1; usize::try_from(bytes).expect("it fits")]).await;
        }
        let stored = bed.put(&store, &package).await.expect("it goes on");
        assert_eq!(stored, Stored::Written { resumed_bytes: package.size_bytes - 2 * PART - 1003 });
        assert_equal(&store, &package).await;
    }
    assert_eq!(bed.uploads().await, 0);
}

/// Seen to fail with a put that has no condition.
#[tokio::test(flavor = "multi_thread")]
async fn no_file_of_a_tree_is_put_without_a_condition() {
    let Some(bed) = Bed::new("s3-tree-condition") else { return };
    let package = tree(&bed, "t");
    bed.put(&bed.store(), &package).await.expect("it is put");
    unmake(&bed, "t").await;
    for key in bed.keys().await.iter().filter(|key| key.ends_with(".dat") || key.ends_with("large")) {
        bed.overwrite(key, b"other bytes".to_vec()).await;
    }
    let gate = Gate::before(bed.server.port(), |_| None);
    let store = S3::new(settings(&gate.endpoint())).expect("settings");
    bed.put(&store, &package).await.expect("it goes on");
    let heads = gate.heads();
    let writes = heads.iter().filter(|head| {
        let first = head.lines().next().unwrap_or_default();
        (first.starts_with("PUT ") && !first.contains("partNumber="))
            || (first.starts_with("POST ") && first.contains("uploadId="))
    });
    let (conditional, free): (Vec<_>, Vec<_>) =
        writes.partition(|head| head.contains("\nif-match:") || head.contains("\nif-none-match:"));
    assert_eq!((conditional.len(), free), (8, Vec::new()));
    assert_equal(&store, &package).await;
    // It is another one's by now.
    unmake(&bed, "t").await;
    let key = bed.keys().await.into_iter().find(|key| key.ends_with("/3.dat")).expect("its key");
    bed.overwrite(&key, b"once".to_vec()).await;
    let runtime = tokio::runtime::Handle::current();
    let (raw, at) = (bed.raw(), key.clone());
    let meddled = std::sync::Once::new();
    let gate = Gate::before(bed.server.port(), move |head| {
        if head.starts_with("PUT ") && head.contains("/3.dat") {
            let put = raw.put_object().bucket(S3Server::BUCKET).key(&at).body(b"twice".to_vec().into()).send();
            meddled.call_once(|| drop(runtime.block_on(put).expect("it is put")));
        }
        None
    });
    let store = S3::new(settings(&gate.endpoint())).expect("settings");
    bed.put(&store, &package).await.expect("what lies there is left");
    let held = bed.raw().get_object().bucket(S3Server::BUCKET).key(&key).send().await.expect("it is there");
    assert_eq!(held.body.collect().await.expect("its bytes").to_vec(), b"twice");
    assert!(finds_corruption(&store, &package).await, "the read-back judges it");
}

/// Seen to fail with uploads that are looked for by the tree's own name.
#[tokio::test(flavor = "multi_thread")]
async fn no_upload_of_a_tree_stays() {
    let Some(bed) = Bed::new("s3-tree-uploads") else { return };
    let (store, raw) = (bed.store(), bed.raw());
    let package = tree(&bed, "t");
    bed.put(&store, &package).await.expect("it is put");
    let keys: Vec<_> = bed.keys().await.into_iter().filter(|key| key.ends_with("/large")).collect();
    let abandon = async || {
        for key in &keys {
            raw.create_multipart_upload().bucket(S3Server::BUCKET).key(key).send().await.expect("begun");
        }
        raw.create_multipart_upload().bucket(S3Server::BUCKET).key("raw/packages/another").send().await.expect("begun");
    };
    abandon().await;
    assert_eq!(bed.put(&store, &package).await.expect("it is there"), Stored::Found);
    assert_eq!(bed.uploads().await, 1, "that of another package is none of ours");
    abandon().await;
    unmake(&bed, "t").await;
    bed.put(&store, &package).await.expect("it goes on");
    assert_eq!(bed.uploads().await, 2);
}

/// Seen to fail with uploads that are left for an attempt that never comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_failure_that_nobody_retries_leaves_no_upload() {
    let Some(bed) = Bed::new("s3-final") else { return };
    let mut rng = seed("s3-final");
    let refuses = |part: &'static str, answer: (&'static str, &'static str)| {
        Gate::before(bed.server.port(), move |head| {
            let first = head.lines().next().unwrap_or_default();
            (first.starts_with("PUT ") && first.contains(part)).then_some(answer)
        })
    };
    let never = ("400 Bad Request", "<Error><Code>InvalidArgument</Code><Message>never</Message></Error>");
    let later = ("503 Slow Down", "<Error><Code>SlowDown</Code><Message>later</Message></Error>");
    for (package, n) in [(bed.file("p.fits", 4 * PART, &mut rng), 0), (tree(&bed, "t"), 1)] {
        let gate = refuses("partNumber=3", later);
        let store = S3::new(settings(&gate.endpoint())).expect("settings");
        let error = bed.put(&store, &package).await.expect_err("not now");
        assert_eq!(error.class, ErrorClass::RemoteBusy, "{n}: {error}");
        assert!(bed.uploads().await > 0, "what is retried goes on there");
        let gate = refuses("partNumber=3", never);
        let store = S3::new(settings(&gate.endpoint())).expect("settings");
        let error = bed.put(&store, &package).await.expect_err("never");
        assert_eq!(error.class, ErrorClass::Configuration, "{n}: {error}");
        assert_eq!(bed.uploads().await, 0, "{n}");
    }
}

/// Seen to fail with any 404 taken for a file that is not there.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_proxy_does_not_find_is_not_missing() {
    let Some(bed) = Bed::new("s3-bare") else { return };
    let (package, file) = (tree(&bed, "t"), bed.file("p.fits", 1000, &mut seed("s3-bare")));
    for package in [&package, &file] {
        bed.put(&bed.store(), package).await.expect("it is put");
    }
    let bare = [("404 Not Found", ""), ("404 Not Found", "<html>no backend</html>")];
    for (method, answer) in [("GET ", bare[0]), ("GET ", bare[1]), ("HEAD ", bare[0])] {
        for (of, package) in [("/3.dat", &package), ("/manifest", &package), ("/p.fits", &file)] {
            if method == "HEAD " && of == "/3.dat" {
                continue;
            }
            let gate = Gate::before(bed.server.port(), move |head| {
                let first = head.lines().next().unwrap_or_default();
                (first.starts_with(method) && first.contains(of)).then_some(answer)
            });
            let store = S3::new(settings(&gate.endpoint())).expect("settings");
            let read = store.read_back(package, &Seen::default(), &CancellationToken::new()).await;
            let error = read.expect_err("nobody can tell");
            assert_eq!(error.class, ErrorClass::Network, "{method}{of}: {error}");
        }
    }
    // In the store's own words it is.
    let key = bed.keys().await.into_iter().find(|key| key.ends_with("/3.dat")).expect("its key");
    bed.delete(&key).await;
    assert!(finds_corruption(&bed.store(), &package).await);
}
