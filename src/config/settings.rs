use std::{num::NonZeroU32, ops::RangeInclusive, path::PathBuf, time::Duration};

use super::units;
use crate::{
    chunk::ChunkSize,
    engine::{Options, TransportChoice},
    net::Congestion,
};

/// Every setting, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Which kinds of link to try.
    pub transport: TransportChoice,
    /// Connections or streams; `None` lets the engine choose.
    pub streams: Option<NonZeroU32>,
    /// Bytes per second.
    pub rate_limit: Option<u64>,
    /// QUIC's congestion controller.
    pub congestion: Congestion,
    /// Unit of hashing and repair.
    pub chunk_size: ChunkSize,
    /// Bytes of chunk buffers.
    pub memory_bytes: usize,
    /// Wait for a new link.
    pub reconnect_timeout: Duration,
    /// The remote shell and its arguments.
    pub rsh: Vec<String>,
    /// This program at the far end.
    pub remote_path: String,
    /// Ports to listen on; 0 lets the system choose.
    pub port_range: RangeInclusive<u16>,
    /// The far end's address for data.
    pub data_address: Option<String>,
    /// Trust equal size and time.
    pub quick: bool,
    /// Keep owner and group.
    pub owner: bool,
    /// Read back before publishing.
    pub read_back: bool,
    /// Folder of key, certificate and trusted peers; empty when no home folder is known.
    pub identity: PathBuf,
    /// Log filter.
    pub log: String,
}

impl Settings {
    /// What the engine is asked, apart from what only a command line may say (overwrite, dry run, job, fence).
    pub fn options(&self) -> Options {
        Options {
            chunk_size: self.chunk_size,
            quick: self.quick,
            read_back: self.read_back,
            owner: self.owner,
            rate_limit: self.rate_limit,
            streams: self.streams,
            transport: self.transport,
            reconnect_timeout: self.reconnect_timeout,
            memory_bytes: self.memory_bytes,
            ..Options::default()
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        let options = Options::default();
        Self {
            transport: options.transport,
            streams: options.streams,
            rate_limit: options.rate_limit,
            congestion: Congestion::default(),
            chunk_size: options.chunk_size,
            memory_bytes: options.memory_bytes,
            reconnect_timeout: options.reconnect_timeout,
            rsh: vec!["ssh".into()],
            remote_path: "ccat-xfer".into(),
            port_range: 0..=0,
            data_address: None,
            quick: options.quick,
            owner: options.owner,
            read_back: options.read_back,
            identity: PathBuf::new(),
            log: "warn".into(),
        }
    }
}

/// One line of the table of settings.
#[derive(Debug)]
pub struct Key {
    /// As in the file.
    pub name: &'static str,
    /// As in the file. The identity folder's default depends on the machine and is left empty here.
    pub default: &'static str,
    /// Parses a value into its place; the error says what is allowed.
    pub(super) set: fn(&mut Settings, &str) -> Result<(), String>,
}

/// All settings there are.
pub static TABLE: &[Key] = &[
    Key {
        name: "transport",
        default: "auto",
        set: |s, text| {
            s.transport = match text {
                "auto" => TransportChoice::Auto,
                "quic" => TransportChoice::Quic,
                "tcp" => TransportChoice::Tcp,
                "ssh" => TransportChoice::Ssh,
                _ => return Err(format!("'{text}' is not a transport; choose auto, quic, tcp or ssh")),
            };
            Ok(())
        },
    },
    Key {
        name: "streams",
        default: "auto",
        set: |s, text| {
            s.streams = match text {
                "auto" => None,
                _ => match text.parse::<NonZeroU32>().ok().filter(|n| n.get() <= MAX_STREAMS) {
                    Some(number) => Some(number),
                    None => return Err(format!("'{text}' is neither auto nor a number from 1 to {MAX_STREAMS}")),
                },
            };
            Ok(())
        },
    },
    Key {
        name: "rate_limit",
        default: "none",
        set: |s, text| {
            s.rate_limit = match text {
                "none" => None,
                _ => Some(units::rate(text).map_err(|e| e.to_string())?),
            };
            Ok(())
        },
    },
    Key {
        name: "congestion",
        default: "auto",
        set: |s, text| {
            s.congestion = match text {
                "auto" => Congestion::default(),
                "model" => Congestion::Model,
                "cubic" => Congestion::Cubic,
                _ => return Err(format!("'{text}' is not a controller; choose auto, model or cubic")),
            };
            Ok(())
        },
    },
    Key {
        name: "chunk_size",
        default: "4Mi",
        set: |s, text| {
            let bytes = units::size(text).map_err(|e| e.to_string())?;
            s.chunk_size = ChunkSize::from_bytes(bytes).map_err(|e| e.to_string())?;
            Ok(())
        },
    },
    Key {
        name: "memory",
        default: "96Mi",
        set: |s, text| {
            let bytes = units::size(text).map_err(|e| e.to_string())?;
            s.memory_bytes = usize::try_from(bytes)
                .ok()
                .filter(|&b| b >= MIN_MEMORY_BYTES)
                .ok_or_else(|| format!("'{text}' is too little memory; at least 16Mi are needed"))?;
            Ok(())
        },
    },
    Key {
        name: "reconnect_timeout",
        default: "10m",
        set: |s, text| {
            s.reconnect_timeout = units::duration(text).map_err(|e| e.to_string())?;
            Ok(())
        },
    },
    Key {
        name: "rsh",
        default: "ssh",
        set: |s, text| {
            s.rsh = split_words(text)?;
            Ok(())
        },
    },
    Key {
        name: "remote_path",
        default: "ccat-xfer",
        set: |s, text| {
            if text.is_empty() || text.contains(['\0', '\n']) {
                return Err("the remote program needs a name".into());
            }
            s.remote_path = text.to_owned();
            Ok(())
        },
    },
    Key {
        name: "port_range",
        default: "any",
        set: |s, text| {
            s.port_range =
                ports(text).ok_or_else(|| format!("'{text}' is neither any nor ports such as 50000-50100"))?;
            Ok(())
        },
    },
    Key {
        name: "data_address",
        default: "same",
        set: |s, text| {
            s.data_address = match text {
                "same" => None,
                "" => return Err("an address is empty; write a host name, an address or same".into()),
                _ if text.starts_with('-') => return Err(format!("'{text}' is not an address")),
                _ => Some(text.to_owned()),
            };
            Ok(())
        },
    },
    Key {
        name: "quick",
        default: "false",
        set: |s, text| {
            s.quick = flag(text)?;
            Ok(())
        },
    },
    Key {
        name: "owner",
        default: "false",
        set: |s, text| {
            s.owner = flag(text)?;
            Ok(())
        },
    },
    Key {
        name: "read_back",
        default: "false",
        set: |s, text| {
            s.read_back = flag(text)?;
            Ok(())
        },
    },
    Key {
        name: "identity",
        default: "",
        set: |s, text| {
            s.identity = PathBuf::from(text);
            Ok(())
        },
    },
    Key {
        name: "log",
        default: "warn",
        set: |s, text| {
            s.log = text.to_owned();
            Ok(())
        },
    },
];

fn flag(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("'{text}' is neither true nor false"))
}

fn ports(text: &str) -> Option<RangeInclusive<u16>> {
    if text == "any" {
        return Some(0..=0);
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = first.trim().parse().ok()?..=last.trim().parse().ok()?;
    (*range.start() > 0 && !range.is_empty()).then_some(range)
}

/// Splits a remote shell into words as rsync does: at spaces, with single or double quotes around words that have any.
fn split_words(text: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in text.chars() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_with(String::new);
            }
            (None, ' ' | '\t') => words.extend(word.take()),
            _ => word.get_or_insert_with(String::new).push(c),
        }
    }
    if quote.is_some() {
        return Err(format!("'{text}' has a quote that is not closed"));
    }
    words.extend(word);
    match words.first() {
        Some(first) if !first.is_empty() => Ok(words),
        _ => Err("the remote shell is empty; write ssh or leave it out".into()),
    }
}

// A pool with fewer buffers than a few chunks per stage would stand still between them.
const MIN_MEMORY_BYTES: usize = 16 << 20;
// More than any path needs; each costs a socket or a stream's window.
const MAX_STREAMS: u32 = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn set(key: &str, text: &str) -> Result<Settings, String> {
        let mut settings = Settings::default();
        let key = TABLE.iter().find(|k| k.name == key).unwrap();
        (key.set)(&mut settings, text).map(|()| settings)
    }

    #[test]
    fn the_table_says_the_engines_defaults() {
        let mut settings =
            Settings { rsh: vec![], remote_path: String::new(), log: String::new(), ..Settings::default() };
        for key in TABLE {
            (key.set)(&mut settings, key.default).unwrap();
        }
        assert_eq!(settings, Settings::default());
    }

    #[test]
    fn the_documented_table_is_the_table() {
        let doc = include_str!("mod.rs");
        for key in TABLE.iter().filter(|k| k.name != "identity") {
            assert!(doc.contains(&format!("//! | `{}` | `{}` |", key.name, key.default)), "{}", key.name);
        }
        assert_eq!(doc.matches("//! | `").count(), TABLE.len());
    }

    #[test]
    fn remote_shells_split_as_in_rsync() {
        assert_eq!(set("rsh", "ssh -p 2222").unwrap().rsh, ["ssh", "-p", "2222"]);
        assert_eq!(set("rsh", "'/my tools/ssh' -o \"A B\"").unwrap().rsh, ["/my tools/ssh", "-o", "A B"]);
        assert!(set("rsh", "").is_err());
        assert!(set("rsh", "ssh 'x").is_err());
        assert!(set("rsh", "''").is_err());
    }

    #[test]
    fn values_out_of_bounds_are_refused() {
        for (key, text) in [
            ("transport", "carrier-pigeon"),
            ("streams", "0"),
            ("streams", "1025"),
            ("chunk_size", "5Mi"),
            ("chunk_size", "128Mi"),
            ("memory", "1Mi"),
            ("port_range", "9-8"),
            ("port_range", "0-9"),
            ("port_range", "70000"),
            ("data_address", "-oX"),
            ("quick", "yes"),
            ("rate_limit", "0"),
        ] {
            assert!(set(key, text).is_err(), "{key}={text}");
        }
        assert_eq!(set("port_range", "5-9").unwrap().port_range, 5..=9);
        assert_eq!(set("port_range", "5").unwrap().port_range, 5..=5);
    }
}
