//! Settings: built-in defaults, then a file, then the environment, then flags; later ones win.
//!
//! The file is TOML, `$XDG_CONFIG_HOME/ccat-xfer/config.toml` (else `~/.config/ccat-xfer/config.toml`) unless `--config`
//! or `CCAT_XFER_CONFIG` names another. An environment variable is `CCAT_XFER_` and the key in capitals; a flag is the
//! key with `-` for `_`. [`TABLE`] is the one list of keys; `--show-config` prints every value with its origin. No key
//! holds a secret: keys lie in files of the identity folder. The file's table `[serve]` belongs to the endpoint, which reads
//! it itself; the tables of the control plane are [`Daemon`]'s.
//!
//! | key | default | meaning |
//! |---|---|---|
//! | `transport` | `auto` | `auto`, `quic`, `tcp` or `ssh`: which kinds of link to try |
//! | `streams` | `auto` | TCP connections, or QUIC streams in flight |
//! | `rate_limit` | `none` | bytes per second (k, M, G = 10^3), or bits with `bit` |
//! | `congestion` | `auto` | `auto`, `model` or `cubic`: QUIC's congestion controller |
//! | `chunk_size` | `4Mi` | unit of hashing and repair, a power of two from 64Ki to 64Mi |
//! | `memory` | `96Mi` | bytes of chunk buffers per process |
//! | `reconnect_timeout` | `10m` | how long a job waits for a new link when its last one is gone |
//! | `rsh` | `ssh` | the remote shell and its arguments |
//! | `remote_path` | `ccat-xfer` | this program at the far end |
//! | `port_range` | `any` | ports to listen on for data, as `50000-50100` |
//! | `data_address` | `same` | the far end's address for data, where it is not the one that ssh reached |
//! | `quick` | `false` | trust equal size and time of files that are already there |
//! | `owner` | `false` | keep owner and group |
//! | `read_back` | `false` | read every file back from the medium before it is published |
//! | `identity` | the folder of the file | folder of our key, certificate and trusted peers |
//! | `log` | `warn` | log filter, as `info` or `ccat_xfer=debug` |

#[cfg(feature = "control")]
mod daemon;
mod layers;
#[cfg(feature = "control")]
mod locations;
mod settings;
pub mod units;

#[cfg(feature = "control")]
pub use daemon::{Daemon, Worker};
pub use layers::{ConfigError, Layers, Origin};
#[cfg(feature = "control")]
pub use locations::{Location, Means};
pub use settings::{Key, Settings, TABLE};
