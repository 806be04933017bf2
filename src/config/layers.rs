use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt::{self, Write as _},
    path::{Path, PathBuf},
};

use super::{
    Settings,
    settings::{Key, TABLE},
};

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// A settings file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// The command line.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// Settings that cannot be used. Each says where and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the settings file {path}: {reason}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// The file is not TOML.
    #[error("the settings file {path} is not TOML: {reason}")]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// What is wrong and where.
        reason: String,
    },
    /// A key that does not exist.
    #[error("{origin}: there is no setting '{key}'{}", nearest.map(|n| format!("; did you mean '{n}'?")).unwrap_or_default())]
    UnknownKey {
        /// As written.
        key: String,
        /// The most similar key, if one is similar.
        nearest: Option<&'static str>,
        /// Where it stands.
        origin: Origin,
    },
    /// A value that does not fit its key.
    #[error("{origin}: {key}: {reason}")]
    Value {
        /// Which setting.
        key: &'static str,
        /// What is allowed.
        reason: String,
        /// Where it stands.
        origin: Origin,
    },
}

/// Values by key, each with the origin that won.
#[derive(Clone, Debug)]
pub struct Layers {
    values: BTreeMap<&'static str, (String, Origin)>,
}

impl Layers {
    /// The built-in defaults. `identity` is the folder of keys and settings, where one is known.
    pub fn new(identity: Option<&Path>) -> Self {
        let mut values: BTreeMap<_, _> =
            TABLE.iter().map(|key| (key.name, (key.default.to_owned(), Origin::Default))).collect();
        if let Some(folder) = identity.and_then(Path::to_str) {
            values.insert("identity", (folder.to_owned(), Origin::Default));
        }
        Self { values }
    }

    /// Adds a settings file's text.
    pub fn add_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let table: toml::Table = text
            .parse()
            .map_err(|e: toml::de::Error| ConfigError::Syntax { path: path.to_owned(), reason: e.to_string() })?;
        for (name, value) in table {
            if value.is_table() && is_elsewhere(&name) {
                continue;
            }
            let origin = Origin::File(path.to_owned());
            let Some(key) = find(&name) else {
                return Err(ConfigError::UnknownKey { nearest: nearest(&name), key: name, origin });
            };
            let text = match value {
                toml::Value::String(text) => text,
                toml::Value::Integer(number) => number.to_string(),
                toml::Value::Boolean(flag) => flag.to_string(),
                other => {
                    let reason = format!("{} does not fit; write it as text in quotes", other.type_str());
                    return Err(ConfigError::Value { key: key.name, reason, origin });
                }
            };
            self.values.insert(key.name, (text, origin));
        }
        Ok(())
    }

    /// Adds what the environment says. Variables with our prefix that name no setting are returned, for a warning: they
    /// may belong to another program version, so they are no error.
    pub fn add_environment(
        &mut self,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Vec<String>, ConfigError> {
        let mut strange = Vec::new();
        for (name, value) in variables {
            let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
            let origin = Origin::Environment(name.to_owned());
            match find(&name[PREFIX.len()..].to_ascii_lowercase()) {
                Some(key) => {
                    let Some(text) = value.to_str() else {
                        return Err(ConfigError::Value {
                            key: key.name,
                            reason: "the value is not UTF-8".into(),
                            origin,
                        });
                    };
                    self.values.insert(key.name, (text.to_owned(), origin));
                }
                None if name == CONFIG_VARIABLE || is_variable_elsewhere(name) => {}
                None => strange.push(name.to_owned()),
            }
        }
        strange.sort_unstable();
        Ok(strange)
    }

    /// Adds a flag of the command line. The key must be one of the table's.
    pub fn add_flag(&mut self, key: &str, value: &str) -> Result<(), ConfigError> {
        let origin = Origin::Flag(format!("--{}", key.replace('_', "-")));
        match find(key) {
            Some(key) => {
                self.values.insert(key.name, (value.to_owned(), origin));
                Ok(())
            }
            None => Err(ConfigError::UnknownKey { key: key.to_owned(), nearest: nearest(key), origin }),
        }
    }

    /// Whether nobody has said anything about this key.
    pub fn is_default(&self, key: &str) -> bool {
        self.values.get(key).is_some_and(|(_, origin)| matches!(origin, Origin::Default))
    }

    /// Parses every value.
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        let mut settings = Settings::default();
        for key in TABLE {
            if let Some((text, origin)) = self.values.get(key.name) {
                (key.set)(&mut settings, text).map_err(|reason| ConfigError::Value {
                    key: key.name,
                    reason,
                    origin: origin.clone(),
                })?;
            }
        }
        Ok(settings)
    }

    /// Every value with its origin, in the table's order; TOML that could be used as a settings file.
    pub fn show(&self) -> String {
        let mut out = String::new();
        for key in TABLE {
            if let Some((text, origin)) = self.values.get(key.name) {
                let assignment = format!("{} = {}", key.name, toml::Value::String(text.clone()));
                // Writing to a String cannot fail. An origin's path may hold anything, a line end too.
                let origin = origin.to_string().replace(char::is_control, "?");
                let _ = writeln!(out, "{assignment:<40} # {origin}");
            }
        }
        out
    }
}

/// The environment variable that names the settings file.
pub(super) const CONFIG_VARIABLE: &str = "CCAT_XFER_CONFIG";
/// What the endpoint reads itself.
const SERVE_TABLE: &str = "serve";

/// A table that others read.
#[cfg(feature = "control")]
fn is_elsewhere(table: &str) -> bool {
    table == SERVE_TABLE || super::daemon::TABLES.contains(&table)
}

#[cfg(not(feature = "control"))]
fn is_elsewhere(table: &str) -> bool {
    table == SERVE_TABLE
}

/// A variable that others read.
#[cfg(feature = "control")]
fn is_variable_elsewhere(name: &str) -> bool {
    super::daemon::is_ours(name)
}

#[cfg(not(feature = "control"))]
fn is_variable_elsewhere(_: &str) -> bool {
    false
}
const PREFIX: &str = "CCAT_XFER_";

fn find(name: &str) -> Option<&'static Key> {
    TABLE.iter().find(|key| key.name == name)
}

/// The most similar key, if it is similar enough to be meant.
fn nearest(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase().replace('-', "_");
    TABLE
        .iter()
        .map(|key| (distance(&name, key.name), key.name))
        .filter(|(distance, key)| *distance <= key.len().div_ceil(3))
        .min()
        .map(|(_, key)| key)
}

/// Levenshtein distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(b.bytes()) {
            let value = (diagonal + usize::from(x != y)).min(left + 1).min(*cell + 1);
            diagonal = *cell;
            *cell = value;
            left = value;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::TransportChoice;

    fn environment(variables: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        variables.iter().map(|(n, v)| (n.into(), v.into())).collect()
    }

    #[test]
    fn later_layers_win_and_say_so() {
        let mut layers = Layers::new(Some(Path::new("/home/o/.config/ccat-xfer")));
        layers
            .add_file(
                Path::new("/etc/x.toml"),
                "transport = \"tcp\"\nstreams = 4\nrate_limit = \"1G\"\nowner = true\nmemory = \"64Mi\"",
            )
            .unwrap();
        let strange = layers
            .add_environment(environment(&[
                ("CCAT_XFER_STREAMS", "8"),
                ("CCAT_XFER_RATE_LIMIT", "2G"),
                ("CCAT_XFER_STREAM", "9"),
                ("CCAT_XFER_CONFIG", "/etc/x.toml"),
                ("HOME", "/home/o"),
            ]))
            .unwrap();
        assert_eq!(strange, ["CCAT_XFER_STREAM"]);
        layers.add_flag("rate_limit", "3G").unwrap();
        let settings = layers.settings().unwrap();
        assert_eq!(settings.transport, TransportChoice::Tcp);
        assert_eq!(settings.streams.unwrap().get(), 8);
        assert_eq!(settings.rate_limit, Some(3_000_000_000));
        assert!(settings.owner && !settings.quick);
        assert_eq!(
            layers.show(),
            r#"transport = "tcp"                        # file /etc/x.toml
streams = "8"                            # environment CCAT_XFER_STREAMS
rate_limit = "3G"                        # flag --rate-limit
congestion = "auto"                      # default
chunk_size = "4Mi"                       # default
memory = "64Mi"                          # file /etc/x.toml
reconnect_timeout = "10m"                # default
rsh = "ssh"                              # default
remote_path = "ccat-xfer"                # default
port_range = "any"                       # default
data_address = "same"                    # default
quick = "false"                          # default
owner = "true"                           # file /etc/x.toml
read_back = "false"                      # default
identity = "/home/o/.config/ccat-xfer"   # default
log = "warn"                             # default
"#
        );
    }

    #[test]
    fn what_is_shown_can_be_read_again() {
        let mut layers = Layers::new(Some(Path::new("/x y/\"q\"")));
        layers.add_flag("rsh", "ssh -o 'A \"b\"'").unwrap();
        let mut again = Layers::new(None);
        again.add_file(Path::new("f"), &layers.show()).unwrap();
        assert_eq!(again.settings(), layers.settings());
    }

    #[test]
    fn unknown_keys_name_the_nearest() {
        let error = |text: &str| Layers::new(None).add_file(Path::new("f"), text).unwrap_err().to_string();
        assert_eq!(error("stream = 3"), "file f: there is no setting 'stream'; did you mean 'streams'?");
        assert_eq!(error("rate-limit = 3"), "file f: there is no setting 'rate-limit'; did you mean 'rate_limit'?");
        assert_eq!(error("password = \"x\""), "file f: there is no setting 'password'");
        assert_eq!(error("[server]\nport = 1"), "file f: there is no setting 'server'");
        assert_eq!(error("serve = 1"), "file f: there is no setting 'serve'");
        Layers::new(None).add_file(Path::new("f"), "streams = 1\n[serve]\nport = 1").unwrap();
        assert!(error("streams = ").starts_with("the settings file f is not TOML: "));
        assert_eq!(error("streams = [1]"), "file f: streams: array does not fit; write it as text in quotes");
    }

    #[test]
    fn a_bad_value_names_its_origin() {
        let mut layers = Layers::new(None);
        layers.add_environment(environment(&[("CCAT_XFER_TRANSPORT", "udp")])).unwrap();
        assert_eq!(
            layers.settings().unwrap_err().to_string(),
            "environment CCAT_XFER_TRANSPORT: transport: 'udp' is not a transport; choose auto, quic, tcp or ssh"
        );
    }

    #[test]
    fn distances() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("same", "same"), 0);
    }
}
