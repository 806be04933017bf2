//! The archive in an S3 store, on a real server: the suite's bed. What only it can be asked is in `tests/archive_s3.rs`.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use aws_sdk_s3::{Client, config as sdk};
use ccat_xfer::{
    archive::{
        Archive, Package, S3,
        s3::{Credentials, Settings},
    },
    secret::Secret,
};
use tempfile::TempDir;

use super::{
    bed::Bed,
    harness::{S3Server, skip},
};

/// A prefix of its own in the one bucket of a server that all cases share.
pub(crate) struct S3Bed {
    server: Arc<S3Server>,
    prefix: String,
    origin: TempDir,
}

impl S3Bed {
    pub(crate) fn new() -> Option<Self> {
        if let Some(why) = S3Server::missing() {
            skip("archive_conformance on S3", why);
            return None;
        }
        // Ended with the last case that uses it.
        static SERVER: Mutex<Weak<S3Server>> = Mutex::new(Weak::new());
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mut shared = SERVER.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let server = shared.upgrade().unwrap_or_else(|| Arc::new(S3Server::start("archive-conformance")));
        *shared = Arc::downgrade(&server);
        let prefix = format!("bed-{}/", NEXT.fetch_add(1, Ordering::Relaxed));
        let origin = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("make a folder");
        Some(Self { server, prefix, origin })
    }

    /// A client past the archive.
    fn raw(&self) -> Client {
        let config = sdk::Builder::new()
            .behavior_version(sdk::BehaviorVersion::latest())
            .endpoint_url(self.server.endpoint())
            .region(sdk::Region::new("us-east-1"))
            .force_path_style(true)
            .credentials_provider(sdk::Credentials::new(
                S3Server::ACCESS_KEY,
                S3Server::SECRET_KEY,
                None,
                None,
                "test",
            ));
        Client::from_conf(config.build())
    }

    /// Keys of a package by generation, 0 first.
    async fn keys(&self, package: &Package) -> BTreeMap<u32, Vec<String>> {
        let path = String::from_utf8(package.relative_path.as_bytes().to_vec()).expect("a plain name");
        let base = format!("{}packages/{path}.{}", self.prefix, package.expected.hex());
        let (raw, mut found, mut after) = (self.raw(), BTreeMap::<u32, Vec<String>>::new(), None);
        loop {
            let page = raw.list_objects_v2().bucket(S3Server::BUCKET).prefix(&base).set_continuation_token(after);
            let page = page.send().await.expect("a list");
            for key in page.contents().iter().filter_map(|object| object.key.clone()) {
                let generation = key[base.len()..].split('/').next().unwrap_or_default();
                let generation = generation.strip_prefix(".r").map_or(0, |n| n.parse().expect("a generation"));
                found.entry(generation).or_default().push(key);
            }
            after = page.next_continuation_token;
            if after.is_none() {
                return found;
            }
        }
    }
}

/// Runs on a thread and runtime of its own, so that it can be waited for from within another.
fn wait<T: Send>(future: impl Future<Output = T> + Send) -> T {
    let run = || tokio::runtime::Runtime::new().expect("a runtime").block_on(future);
    std::thread::scope(|scope| scope.spawn(run).join().expect("no panic"))
}

impl Bed for S3Bed {
    fn archive(&self) -> Arc<dyn Archive> {
        let credentials = Credentials {
            access_key: S3Server::ACCESS_KEY.to_owned(),
            secret_key: Secret::new(S3Server::SECRET_KEY),
            session_token: None,
        };
        let settings = Settings {
            prefix: self.prefix.clone(),
            ..Settings::new(self.server.endpoint(), S3Server::BUCKET, credentials)
        };
        Arc::new(S3::new(settings).expect("good settings"))
    }

    fn origin(&self) -> &Path {
        self.origin.path()
    }

    fn corrupt(&self, package: &Package) {
        wait(async {
            let (_, newest) = self.keys(package).await.pop_last().expect("a generation");
            let key = newest.iter().find(|key| key.contains("/files/")).or_else(|| newest.first()).expect("an object");
            let raw = self.raw();
            let got = raw.get_object().bucket(S3Server::BUCKET).key(key).send().await.expect("it is read");
            let mut bytes = got.body.collect().await.expect("its bytes").to_vec();
            bytes[0] ^= 1;
            raw.put_object().bucket(S3Server::BUCKET).key(key).body(bytes.into()).send().await.expect("it is written");
        });
    }

    fn resumes(&self) -> bool {
        true
    }

    fn left_over(&self, package: &Package) -> Vec<String> {
        wait(async {
            let mut generations = self.keys(package).await;
            generations.pop_last();
            let uploads =
                self.raw().list_multipart_uploads().bucket(S3Server::BUCKET).prefix(&self.prefix).send().await;
            let uploads = uploads.expect("a list").uploads.unwrap_or_default();
            let uploads = uploads.into_iter().filter_map(|upload| upload.key).map(|key| format!("upload of {key}"));
            generations.keys().map(|n| format!("generation {n}")).chain(uploads).collect()
        })
    }
}
