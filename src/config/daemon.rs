use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use super::{
    ConfigError, Origin,
    locations::{self, Location, LocationTable},
    units,
};
use crate::{
    broker::{Address, Credentials, RabbitConfig, Times},
    model::BundleLimits,
    secret::Secret,
    telemetry::http,
};

/// What the control plane's commands read: the tables `[database]`, `[broker]`, `[manager]`, `[worker]`,
/// `[locations."SITE/NAME"]` and `[health]` of the settings file.
///
/// | key | default | meaning |
/// |---|---|---|
/// | `database.url` | `sqlite:` and `control.db` of the state folder | `sqlite:PATH` or `postgres://USER@HOST/DATABASE` |
/// | `database.password_file` | none | file with the password, readable by its owner only |
/// | `broker.url` | none | `amqps://HOST[:PORT][/VHOST]`; without one workers find work by looking, every `worker.poll` |
/// | `broker.credentials_file` | none | file with `USER:PASSWORD`, readable by its owner only |
/// | `broker.ca_file` | those of the machine | authorities that may vouch for the broker |
/// | `manager.name` | `manager@HOST` | the manager's name in the history |
/// | `manager.bundle_packages` | `256` | a bundle holds at most so many packages; 1 to 10000 |
/// | `manager.bundle_bytes` | `64G` | a bundle is not filled beyond this; one package alone may be more |
/// | `manager.bundle_age` | `5s` | no package waits longer than this for others to fill its bundle up |
/// | `worker.name` | `HOST` | unique among all workers |
/// | `worker.slots` | `4` | attempts at once |
/// | `worker.lease` | `10s` | for how long a claim is believed; 120s behind a WAN |
/// | `worker.poll` | `2s` | between looks for work that no hint told of |
/// | `worker.retry_percent` | `100` | waits after failed attempts, in percent of the table of error classes; 1 to 1000 |
/// | `worker.drain` | `60s` | how long attempts may go on after SIGTERM |
/// | `worker.reconnect_timeout` | `60s` | how long an attempt waits for a lost peer |
/// | `worker.spool` | `spool/NAME` of the state folder | outcomes that the database did not take yet |
/// | `health.listen` | none | address and port of `/health` and `/metrics`, as `127.0.0.1:9187` |
/// | `health.token_file` | none | file with the token that each request bears; needed unless `listen` is loopback |
/// | `locations."SITE/NAME".root` | | the folder of that location on this machine |
/// | `locations."SITE/NAME".slots` | `worker.slots` | attempts of its queue at once |
/// | `locations."SITE/NAME".archive` | none | `disk`, `s3` or `tape`: it is a long-term archive; one on disk has a `root` |
/// | `... .s3.endpoint`, `.bucket` | | `https://HOST[:PORT]`, and the bucket there, which is never created |
/// | `... .s3.prefix` | none | what all keys begin with: a folder with a slash behind it |
/// | `... .s3.credentials_file` | none | file with `ACCESS_KEY:SECRET_KEY[:SESSION_TOKEN]`, readable by its owner only |
/// | `... .s3.region` | `us-east-1` | what requests are signed for |
/// | `... .s3.path_style` | `true` | whether the bucket stands in the path and not in the host's name |
/// | `... .s3.part_size` | `16Mi` | bytes of a part, a multiple of 4 MiB from 8 MiB |
/// | `... .s3.parallel_parts`, `.parallel_objects` | `4`, `16` | parts, and small objects of a tree, under way at once |
/// | `... .s3.checksum` | `crc64nvme` | what the store checks each part by: `crc64nvme`, `sha256` or `content_md5` |
/// | `... .s3.storage_class` | the store's | as `STANDARD_IA` |
/// | `... .s3.lock_mode`, `.lock_days` | none | object lock: `governance` or `compliance`, for so many days |
/// | `... .s3.ca_file` | those of the machine | authorities that may vouch for the endpoint |
/// | `... .s3.allow_plain_http` | `false` | lets data and keys travel in the clear to another machine |
/// | `... .s3.connect_timeout`, `.request_timeout`, `.stall_timeout` | `10s`, `10m`, `30s` | for a connection, one try of a request, silence within an answer |
/// | `... .s3.tries` | `6` | tries of one request |
/// | `... .tape.staging` | | folder of this machine for what is packed and fetched, with room for the largest package |
/// | `... .tape.put`, `.get`, `.stat` | | commands as lists of words; `{source}`, `{key}` and `{target}` are words of their own, and no shell reads them |
/// | `... .tape.checksum`, `.list` | none | more of them |
/// | `... .tape.copy_timeout`, `.ask_timeout`, `.tape_timeout` | `6h`, `60s`, `24h` | for put and get, for the others, until it is on tape |
/// | `... .tape.tape_poll` | `5s` | first wait between two looks whether it is |
/// | `... .tape.on_tape_readback` | `full` | `full`, `checksum` or `none`; the topology has to allow what is less than full |
/// | `... .tape.checksum_algorithm` | `sha256` | what the system's own checksum is: `sha256` or `blake3` |
/// | `... .tape.unread_reason` | none | why nothing need be read, for `none` |
///
/// An environment variable is `CCAT_XFER_`, the table, `_` and the key in capitals, as `CCAT_XFER_DATABASE_URL`; those of
/// `locations` stand in the file alone. `CCAT_XFER_DATABASE_PASSWORD`, `CCAT_XFER_BROKER_CREDENTIALS` and
/// `CCAT_XFER_S3_CREDENTIALS` (for every `s3` without a file) hold the secrets themselves. No secret is read from an argument
/// or an address.
#[derive(Clone, Debug)]
pub struct Daemon {
    /// The database's address, with the password in it where there is one. Never to be shown.
    database: Secret,
    /// The same without.
    database_shown: String,
    /// Where hints go, if anywhere.
    pub broker: Option<RabbitConfig>,
    /// The manager's name.
    pub manager: Option<String>,
    /// How the manager cuts bundles.
    pub bundles: BundleLimits,
    /// The worker.
    pub worker: Worker,
    /// Folders and archives, by `SITE/NAME`.
    pub locations: BTreeMap<String, Location>,
    /// The health endpoint, if there is one.
    pub health: Option<http::Config>,
}

/// The table `[worker]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// Its name.
    pub name: Option<String>,
    /// Attempts at once.
    pub slots: u32,
    /// For how long a claim is believed.
    pub lease: Duration,
    /// Between looks for work.
    pub poll: Duration,
    /// Waits after failed attempts, in percent of the usual ones.
    pub retry_percent: u32,
    /// How long attempts may go on after SIGTERM.
    pub drain: Duration,
    /// How long an attempt waits for a lost peer.
    pub reconnect_timeout: Duration,
    /// Folder of outcomes that could not be written.
    pub spool: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
struct File {
    #[serde(default)]
    database: DatabaseTable,
    #[serde(default)]
    broker: BrokerTable,
    #[serde(default)]
    manager: ManagerTable,
    #[serde(default)]
    worker: WorkerTable,
    #[serde(default)]
    health: HealthTable,
    #[serde(default)]
    locations: BTreeMap<String, LocationTable>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct DatabaseTable {
    url: Option<String>,
    password_file: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct BrokerTable {
    url: Option<String>,
    credentials_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ManagerTable {
    name: Option<String>,
    bundle_packages: Option<toml::Value>,
    bundle_bytes: Option<String>,
    bundle_age: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WorkerTable {
    name: Option<String>,
    slots: Option<toml::Value>,
    lease: Option<String>,
    poll: Option<String>,
    retry_percent: Option<toml::Value>,
    drain: Option<String>,
    reconnect_timeout: Option<String>,
    spool: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct HealthTable {
    listen: Option<SocketAddr>,
    token_file: Option<PathBuf>,
}

/// The tables that are read here and not by [`super::Layers`].
pub(super) const TABLES: &[&str] = &["database", "broker", "manager", "worker", "health", "locations"];

const KEYS: &[(&str, &str)] = &[
    ("database", "url"),
    ("database", "password_file"),
    ("broker", "url"),
    ("broker", "credentials_file"),
    ("broker", "ca_file"),
    ("manager", "name"),
    ("manager", "bundle_packages"),
    ("manager", "bundle_bytes"),
    ("manager", "bundle_age"),
    ("worker", "name"),
    ("worker", "slots"),
    ("worker", "lease"),
    ("worker", "poll"),
    ("worker", "retry_percent"),
    ("worker", "drain"),
    ("worker", "reconnect_timeout"),
    ("worker", "spool"),
    ("health", "listen"),
    ("health", "token_file"),
];

const PASSWORD: &str = "CCAT_XFER_DATABASE_PASSWORD";
const CREDENTIALS: &str = "CCAT_XFER_BROKER_CREDENTIALS";
pub(super) const S3_CREDENTIALS: &str = "CCAT_XFER_S3_CREDENTIALS";

/// Whether an environment variable is read here.
pub(super) fn is_ours(name: &str) -> bool {
    [PASSWORD, CREDENTIALS, S3_CREDENTIALS].contains(&name)
        || KEYS.iter().any(|(table, key)| variable(table, key) == name)
}

fn variable(table: &str, key: &str) -> String {
    format!("CCAT_XFER_{}_{}", table.to_ascii_uppercase(), key.to_ascii_uppercase())
}

impl Daemon {
    /// Reads a settings file (one that does not exist is empty) and the environment. `state` is the folder for what is
    /// not configured.
    ///
    /// # Errors
    /// What is wrong, and where it stands.
    pub fn load(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
        state: Option<&Path>,
    ) -> Result<Self, ConfigError> {
        let mut table = toml::Table::new();
        if let Some(path) = file {
            match fs::read_to_string(path) {
                Ok(text) => {
                    table = text.parse().map_err(|e: toml::de::Error| ConfigError::Syntax {
                        path: path.to_owned(),
                        reason: e.to_string(),
                    })?;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(ConfigError::Unreadable { path: path.to_owned(), reason: error.to_string() });
                }
            }
        }
        table.retain(|name, _| TABLES.contains(&name));
        let (mut password, mut credentials, mut s3) = (None, None, None);
        for (name, value) in variables {
            let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else { continue };
            if name == PASSWORD {
                password = Some(Secret::new(value));
            } else if name == CREDENTIALS {
                credentials = Some(Secret::new(value));
            } else if name == S3_CREDENTIALS {
                s3 = Some(Secret::new(value));
            } else if let Some((section, key)) = KEYS.iter().find(|(t, k)| variable(t, k) == name) {
                let section = table.entry(*section).or_insert_with(|| toml::Table::new().into());
                if let Some(section) = section.as_table_mut() {
                    section.insert((*key).to_owned(), toml::Value::String(value.to_owned()));
                }
            }
        }
        let origin = file.map_or(Origin::Default, |path| Origin::File(path.to_owned()));
        let wrong = |key: &'static str, reason: String| ConfigError::Value { key, reason, origin: origin.clone() };
        let read: File =
            table.try_into().map_err(|e: toml::de::Error| wrong("control plane", e.message().to_owned()))?;
        let (database, database_shown) = database(&read.database, password, state, &wrong)?;
        Ok(Self {
            database,
            database_shown,
            broker: broker(read.broker, credentials, &wrong)?,
            bundles: bundles(&read.manager, &wrong)?,
            manager: read.manager.name,
            worker: worker(read.worker, state, &wrong)?,
            locations: locations::locations(read.locations, s3.as_ref(), &wrong)?,
            health: read.health.listen.map(|listen| http::Config { listen, token_file: read.health.token_file }),
        })
    }

    /// The database's address, for whoever connects; it may hold a password.
    pub fn database(&self) -> &str {
        self.database.expose()
    }

    /// The database's address, for people.
    pub fn database_shown(&self) -> &str {
        &self.database_shown
    }
}

pub(super) type Wrong<'a> = dyn Fn(&'static str, String) -> ConfigError + 'a;

fn database(
    table: &DatabaseTable,
    password: Option<Secret>,
    state: Option<&Path>,
    wrong: &Wrong<'_>,
) -> Result<(Secret, String), ConfigError> {
    let url = match (&table.url, state) {
        (Some(url), _) => url.clone(),
        (None, Some(state)) => format!("sqlite:{}", state.join("control.db").display()),
        (None, None) => {
            return Err(wrong("database.url", "no database is named and HOME is not set; write sqlite:PATH".into()));
        }
    };
    let authority = url.split_once("://").map_or("", |(_, rest)| rest.split(['/', '?']).next().unwrap_or(""));
    if authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':')) {
        return Err(wrong(
            "database.url",
            format!("the address holds a password; put it into a file (database.password_file) or into {PASSWORD}"),
        ));
    }
    let password = match (&table.password_file, password) {
        (_, Some(password)) => Some(password),
        (Some(file), None) => {
            Some(Secret::from_file(file).map_err(|e| wrong("database.password_file", e.to_string()))?)
        }
        (None, None) => None,
    };
    let whole = match password {
        None => url.clone(),
        Some(password) => {
            let (scheme, rest) = url.split_once("://").ok_or_else(|| {
                wrong("database.password_file", "only postgres://USER@HOST/DATABASE takes a password".into())
            })?;
            let (user, rest) = rest.split_once('@').ok_or_else(|| {
                wrong("database.url", "a password needs a user: postgres://USER@HOST/DATABASE".into())
            })?;
            format!("{scheme}://{user}:{}@{rest}", percent(password.expose()))
        }
    };
    Ok((Secret::new(whole), url))
}

/// As it stands in an address: everything but letters and digits is written by its bytes.
fn percent(text: &str) -> String {
    text.bytes()
        .map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

fn broker(
    table: BrokerTable,
    credentials: Option<Secret>,
    wrong: &Wrong<'_>,
) -> Result<Option<RabbitConfig>, ConfigError> {
    let Some(url) = table.url else { return Ok(None) };
    let address: Address = url.parse().map_err(|e: crate::broker::AddressError| wrong("broker.url", e.to_string()))?;
    let credentials = match (table.credentials_file, credentials) {
        (_, Some(secret)) => Credentials::parse(&secret),
        (Some(file), None) => Credentials::from_file(&file),
        (None, None) => {
            return Err(wrong(
                "broker.credentials_file",
                format!("a broker needs USER:PASSWORD in a file (broker.credentials_file) or in {CREDENTIALS}"),
            ));
        }
    }
    .map_err(|e| wrong("broker.credentials_file", e.to_string()))?;
    Ok(Some(RabbitConfig { address, credentials, ca_file: table.ca_file, times: Times::default() }))
}

fn worker(table: WorkerTable, state: Option<&Path>, wrong: &Wrong<'_>) -> Result<Worker, ConfigError> {
    let time = |key, text: Option<String>, default, bounds| time(key, text.as_deref(), default, bounds, wrong);
    Ok(Worker {
        slots: number("worker.slots", table.slots.as_ref(), 4, MOST_SLOTS, wrong)?,
        retry_percent: number("worker.retry_percent", table.retry_percent.as_ref(), 100, 1000, wrong)?,
        lease: time("worker.lease", table.lease, 10, 1..=3600)?,
        poll: time("worker.poll", table.poll, 2, 0..=3600)?.max(Duration::from_millis(20)),
        drain: time("worker.drain", table.drain, 60, 0..=86_400)?,
        reconnect_timeout: time("worker.reconnect_timeout", table.reconnect_timeout, 60, 1..=86_400)?,
        spool: table.spool.or_else(|| {
            let name = table.name.as_deref().unwrap_or("default");
            Some(state?.join("spool").join(name.replace(['/', '\0'], "_")))
        }),
        name: table.name,
    })
}

fn bundles(table: &ManagerTable, wrong: &Wrong<'_>) -> Result<BundleLimits, ConfigError> {
    let usual = BundleLimits::default();
    let most = number("manager.bundle_packages", table.bundle_packages.as_ref(), 256, 10_000, wrong)?;
    Ok(BundleLimits {
        packages: usize::try_from(most).unwrap_or(usual.packages),
        bytes: match &table.bundle_bytes {
            None => usual.bytes,
            Some(text) => units::size(text).map_err(|e| wrong("manager.bundle_bytes", e.to_string()))?,
        },
        age: time("manager.bundle_age", table.bundle_age.as_deref(), usual.age.as_secs(), 0..=86_400, wrong)?,
    })
}

fn time(
    key: &'static str,
    text: Option<&str>,
    default_s: u64,
    bounds_s: std::ops::RangeInclusive<u64>,
    wrong: &Wrong<'_>,
) -> Result<Duration, ConfigError> {
    let Some(text) = text else { return Ok(Duration::from_secs(default_s)) };
    let time = units::duration(text).map_err(|e| wrong(key, e.to_string()))?;
    let range = Duration::from_secs(*bounds_s.start())..=Duration::from_secs(*bounds_s.end());
    if range.contains(&time) {
        return Ok(time);
    }
    Err(wrong(key, format!("'{text}' is not between {} s and {} s", bounds_s.start(), bounds_s.end())))
}

/// A number from 1, written as one or, in the environment, as text.
fn number(
    key: &'static str,
    value: Option<&toml::Value>,
    default: u32,
    most: u32,
    wrong: &Wrong<'_>,
) -> Result<u32, ConfigError> {
    let Some(value) = value else { return Ok(default) };
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let number = text.parse().ok().filter(|n| (1..=most).contains(n));
    number.ok_or_else(|| wrong(key, format!("'{text}' is not a number from 1 to {most}")))
}

/// More attempts at once than any machine has use for.
const MOST_SLOTS: u32 = 1000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive;

    fn load(text: &str, variables: &[(&str, &str)]) -> Result<Daemon, String> {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("x.toml");
        fs::write(&file, text).unwrap();
        let variables = variables.iter().map(|(k, v)| (OsString::from(k), OsString::from(v)));
        Daemon::load(Some(&file), variables, Some(Path::new("/state"))).map_err(|e| e.to_string())
    }

    #[test]
    fn without_a_word_it_is_sqlite_and_no_broker() {
        let daemon = load("", &[]).unwrap();
        assert_eq!(daemon.database(), "sqlite:/state/control.db");
        assert!(daemon.broker.is_none() && daemon.health.is_none() && daemon.locations.is_empty());
        assert_eq!((daemon.worker.slots, daemon.worker.lease), (4, Duration::from_secs(10)));
        assert_eq!((daemon.worker.retry_percent, daemon.bundles), (100, BundleLimits::default()));
        assert_eq!(daemon.worker.spool.as_deref(), Some(Path::new("/state/spool/default")));
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let text = "[database]\nurl = \"sqlite:/a\"\n[worker]\nslots = 2\nlease = \"30s\"\n\
                    [locations.\"ccat/raw\"]\nroot = \"/data\"\n[serve]\nport = 1\n";
        let daemon = load(text, &[("CCAT_XFER_DATABASE_URL", "sqlite:/b"), ("CCAT_XFER_WORKER_SLOTS", "7")]).unwrap();
        assert_eq!((daemon.database(), daemon.worker.slots), ("sqlite:/b", 7));
        assert_eq!(daemon.worker.lease, Duration::from_secs(30));
        assert_eq!(daemon.locations["ccat/raw"].folder(), Some(Path::new("/data")));
    }

    #[test]
    fn secrets_come_from_the_environment_or_a_file_and_are_not_shown() {
        let text = "[database]\nurl = \"postgres://u@h/d\"\n[broker]\nurl = \"amqps://h\"\n";
        let variables = [(PASSWORD, "p:w/%"), (CREDENTIALS, "user:secret")];
        let daemon = load(text, &variables).unwrap();
        assert_eq!(daemon.database(), "postgres://u:p%3Aw%2F%25@h/d");
        assert_eq!(daemon.database_shown(), "postgres://u@h/d");
        let shown = format!("{daemon:?}");
        assert!(!shown.contains("p%3A") && !shown.contains("secret"), "{shown}");
        assert!(load("[database]\nurl = \"postgres://u:p@h/d\"", &[]).unwrap_err().contains("holds a password"));
        assert!(load("[broker]\nurl = \"amqps://h\"", &[]).unwrap_err().contains("USER:PASSWORD"));
    }

    const S3: &str =
        "[locations.\"a/b\"]\narchive = \"s3\"\n[locations.\"a/b\".s3]\nendpoint = \"https://h\"\nbucket = \"b\"\n";

    #[test]
    fn archives_have_their_tables() {
        let daemon = load("[locations.\"a/b\"]\narchive = \"disk\"\nroot = \"/x\"", &[]).unwrap();
        assert!(daemon.locations["a/b"].folder().is_none(), "packages are not sent from it");
        assert!(
            matches!(daemon.locations["a/b"].archive(), Some(archive::Settings::Disk(root)) if root == Path::new("/x"))
        );
        let text = format!("{S3}part_size = \"32Mi\"\nlock_mode = \"governance\"\nlock_days = 3\n");
        let secret = [(S3_CREDENTIALS, "key:se/cr+et:token")];
        let daemon = load(&text, &secret).unwrap();
        let Some(archive::Settings::S3(s3)) = daemon.locations["a/b"].archive() else { panic!("no s3") };
        assert_eq!((s3.part_bytes, s3.bucket.as_str()), (32 << 20, "b"));
        assert_eq!(s3.credentials.secret_key.expose(), "se/cr+et");
        assert!(s3.credentials.session_token.is_some() && s3.lock.is_some_and(|lock| lock.days == 3));
        assert!(!format!("{daemon:?}").contains("se/cr+et"));
        for (more, says) in [
            ("checksum = \"crc\"", "s3.checksum"),
            ("lock_days = 3", "stand together"),
            ("stall_timeout = \"0s\"", "above 0"),
            ("secret = \"x\"", "secret"),
        ] {
            let error = load(&format!("{S3}{more}"), &secret).unwrap_err();
            assert!(error.contains(says), "{more}: {error}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_key() {
        for (text, says) in [
            ("[worker]\nslots = 0", "worker.slots"),
            ("[worker]\nlease = \"soon\"", "worker.lease"),
            ("[worker]\nlease = \"2h\"", "worker.lease"),
            ("[worker]\nslot = 1", "slot"),
            ("[worker]\nretry_percent = 0", "worker.retry_percent"),
            ("[manager]\nbundle_packages = 0", "manager.bundle_packages"),
            ("[manager]\nbundle_bytes = \"much\"", "manager.bundle_bytes"),
            ("[locations.ccat]\nroot = \"/x\"", "SITE/LOCATION"),
            ("[locations.\"a/b\"]\nroot = \"x\"", "absolute"),
            ("[locations.\"a/b\"]\nroot = \"/x\"\nslots = 0", "at least 1"),
            ("[locations.\"a/b\"]\nslots = 1", "needs a root"),
            ("[locations.\"a/b\"]\narchive = \"floppy\"\nroot = \"/x\"", "disk, s3, tape"),
            ("[locations.\"a/b\"]\narchive = \"disk\"", "has a root"),
            ("[locations.\"a/b\"]\narchive = \"s3\"\nroot = \"/x\"", "table 's3'"),
            (
                "[locations.\"a/b\"]\nroot = \"/x\"\n[locations.\"a/b\".s3]\nendpoint = \"x\"\nbucket = \"y\"",
                "for archives",
            ),
            (S3, "ACCESS_KEY:SECRET_KEY"),
            (
                "[locations.\"a/b\"]\narchive = \"tape\"\n[locations.\"a/b\".tape]\nstaging = \"/s\"\n\
                 put = [\"cp\", \"{source}\", \"{key}\"]\nget = [\"cp\", \"{key}\", \"{target}\"]\nstat = [\"st\", \"{key}\"]\n\
                 on_tape_readback = \"none\"",
                "unread_reason",
            ),
            ("[health]\nlisten = \"here\"", "socket address"),
        ] {
            let error = load(text, &[]).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
        assert!(is_ours("CCAT_XFER_DATABASE_URL") && !is_ours("CCAT_XFER_DATABASE"));
    }
}
