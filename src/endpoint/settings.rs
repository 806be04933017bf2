//! The table `[serve]` of the settings file.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use serde::Deserialize;

use super::rights::{Right, Rights};

/// UDP and TCP port of an endpoint unless the settings say otherwise.
pub const DEFAULT_PORT: u16 = 8422;

/// What an endpoint serves.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Local address. Default `::`, every address of the machine.
    #[serde(default = "everywhere")]
    pub listen: IpAddr,
    /// UDP and TCP port. Default 8422.
    #[serde(default = "default_port")]
    pub port: u16,
    /// Sessions at once. Default 64.
    #[serde(default = "default_sessions")]
    pub max_sessions: usize,
    /// Sessions of one peer at once, whichever of its keys opened them. Default 16.
    #[serde(default = "default_peer_sessions")]
    pub max_sessions_per_peer: usize,
    /// Links of one session at once. Default 16.
    #[serde(default = "default_links")]
    pub max_links_per_session: usize,
    /// Bytes of buffers of one session. Default 64 MiB.
    #[serde(default = "default_memory")]
    pub memory_per_session: usize,
    /// Bytes per second that this endpoint sends to one peer, over all its sessions. Default: no limit.
    #[serde(default)]
    pub rate_limit: Option<u64>,
    /// Confine the process to its locations and identity folder where the kernel can (Landlock). Default true.
    #[serde(default = "yes")]
    pub sandbox: bool,
    /// What is served.
    #[serde(default, rename = "location")]
    pub locations: Vec<Location>,
}

/// A directory with a name, and who may do what in it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Location {
    /// Its name in `xfer://HOST/NAME/PATH`.
    pub name: String,
    /// The directory.
    pub path: PathBuf,
    /// Rights, peer by peer. A peer that is not named has none.
    #[serde(default, rename = "right")]
    pub rights: Vec<Grant>,
}

/// What one peer may do in a location.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// The peer's name in the file `trusted`.
    pub peer: String,
    /// `list`, `read`, `create`, `overwrite`. Default: `create` alone.
    #[serde(default = "create_only")]
    pub may: Vec<Right>,
}

/// Settings that make no endpoint.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("cannot read the settings {}: {source}; 'ccat-xfer serve --help' shows what they look like", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is no TOML, or has a key that is not known.
    #[error("{}: {why}", .path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        why: String,
    },
    /// It has no table `[serve]`.
    #[error("{} has no table [serve]; 'ccat-xfer serve --help' shows what it looks like", .path.display())]
    NoTable {
        /// The file.
        path: PathBuf,
    },
    /// Values that do not fit together.
    #[error("{}: {why}", .path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        why: String,
    },
}

#[derive(Deserialize)]
struct File {
    serve: Option<Settings>,
}

impl Settings {
    /// Reads the table `[serve]` of a settings file.
    ///
    /// # Errors
    /// What is wrong with the file, and where.
    pub fn load(path: &std::path::Path) -> Result<Self, SettingsError> {
        let path = path.to_owned();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(source) => return Err(SettingsError::Io { path, source }),
        };
        let file: File = match toml::from_str(&text) {
            Ok(file) => file,
            Err(e) => return Err(SettingsError::Toml { path, why: e.to_string() }),
        };
        let Some(settings) = file.serve else { return Err(SettingsError::NoTable { path }) };
        match settings.check() {
            Ok(()) => Ok(settings),
            Err(why) => Err(SettingsError::Value { path, why }),
        }
    }

    /// One location on 127.0.0.1 and a free port, in which one peer may do this.
    pub fn loopback(name: &str, path: PathBuf, peer: &str, may: Vec<Right>) -> Self {
        let rights = vec![Grant { peer: peer.to_owned(), may }];
        Self {
            listen: IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
            port: 0,
            max_sessions: default_sessions(),
            max_sessions_per_peer: default_peer_sessions(),
            max_links_per_session: default_links(),
            memory_per_session: default_memory(),
            rate_limit: None,
            sandbox: false,
            locations: vec![Location { name: name.to_owned(), path, rights }],
        }
    }

    fn check(&self) -> Result<(), String> {
        if self.locations.is_empty() {
            return Err("no [[serve.location]] is named, so there is nothing to serve".to_owned());
        }
        let mut names = std::collections::BTreeSet::new();
        for location in &self.locations {
            let name = &location.name;
            if name.is_empty() || name.len() > 255 || name.contains('/') || name.starts_with('.') {
                return Err(format!("{name:?} cannot be a location's name: no slash, no leading dot, 1 to 255 bytes"));
            }
            if !names.insert(name) {
                return Err(format!("the location {name:?} is named twice"));
            }
            if !location.path.is_absolute() {
                return Err(format!("the path of location {name:?} must be absolute"));
            }
        }
        Ok(())
    }

    /// The rights of every peer by location.
    pub fn rights(&self) -> BTreeMap<String, Rights> {
        self.locations
            .iter()
            .map(|l| (l.name.clone(), Rights::new(l.rights.iter().map(|g| (g.peer.clone(), g.may.clone())))))
            .collect()
    }
}

fn everywhere() -> IpAddr {
    IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED)
}

fn default_port() -> u16 {
    DEFAULT_PORT
}

fn default_sessions() -> usize {
    64
}

fn default_peer_sessions() -> usize {
    16
}

fn default_links() -> usize {
    16
}

fn default_memory() -> usize {
    64 << 20
}

fn yes() -> bool {
    true
}

fn create_only() -> Vec<Right> {
    vec![Right::Create]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, SettingsError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.toml");
        std::fs::write(&path, text).unwrap();
        Settings::load(&path)
    }

    #[test]
    fn what_cannot_be_served_is_refused_with_a_reason() {
        for (text, says) in [
            ("", "no table [serve]"),
            ("[serve]", "nothing to serve"),
            ("[serve]\nprot = 1", "prot"),
            ("[[serve.location]]\nname = \"a/b\"\npath = \"/x\"", "cannot be a location's name"),
            ("[[serve.location]]\nname = \"a\"\npath = \"x\"", "absolute"),
            (
                "[[serve.location]]\nname = \"a\"\npath = \"/x\"\n[[serve.location]]\nname = \"a\"\npath = \"/y\"",
                "named twice",
            ),
            (
                "[[serve.location]]\nname = \"a\"\npath = \"/x\"\n[[serve.location.right]]\npeer = \"p\"\nmay = [\"delete\"]",
                "delete",
            ),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_grant_without_words_is_to_create() {
        let settings =
            parse("[[serve.location]]\nname = \"a\"\npath = \"/x\"\n[[serve.location.right]]\npeer = \"p\"").unwrap();
        let rights = settings.rights();
        assert!(rights["a"].allowed("p", Right::Create));
        assert!(!rights["a"].allowed("p", Right::Read));
        assert!(!rights["a"].allowed("q", Right::Create));
    }
}
