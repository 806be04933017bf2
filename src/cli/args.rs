//! What was typed. No meaning is given to it here.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueHint};

#[cfg(feature = "control")]
use super::{control, demo::Link};

/// Moves files and trees between machines: fast, resumable, verified.
#[derive(Debug, Parser)]
#[command(name = "ccat-xfer", version, arg_required_else_help = true)]
#[command(after_help = EXIT_HELP)]
pub(super) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(super) command: Option<Command>,
    /// Serve one job over stdin and stdout; ssh starts the far end with this.
    #[arg(long, hide = true, exclusive = true)]
    pub(super) stdio: bool,
    /// Print every setting with its origin and end.
    #[arg(long)]
    pub(super) show_config: bool,
    #[command(flatten)]
    pub(super) common: Common,
}

/// Flags of every command.
#[derive(Args, Debug, Default)]
pub(super) struct Common {
    /// Log at DEBUG, on stderr.
    #[arg(short, long, global = true)]
    pub(super) verbose: bool,
    /// Settings file (default: config.toml in ~/.config/ccat-xfer).
    #[arg(long, value_name = "FILE", global = true, value_hint = ValueHint::FilePath)]
    pub(super) config: Option<PathBuf>,
    /// Folder of our key, certificate and trusted peers.
    #[arg(long, value_name = "DIR", global = true, value_hint = ValueHint::DirPath)]
    pub(super) identity: Option<String>,
    /// Log filter, as info or ccat_xfer=debug.
    #[arg(long, value_name = "FILTER", global = true)]
    pub(super) log: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Push files and trees to a remote end.
    #[command(override_usage = "ccat-xfer send [OPTIONS] SOURCE... DEST")]
    Send(Copy),
    /// Fetch files and trees from a remote end.
    #[command(override_usage = "ccat-xfer recv [OPTIONS] SOURCE... DEST")]
    Recv(Copy),
    /// Run this site's endpoint, as the settings file's table `serve` says: QUIC and TCP on one port, known peers only.
    #[command(after_help = SERVE_HELP)]
    Serve,
    /// Read files again and compare with a manifest, or what is archived and compare with what was registered.
    Verify(Verify),
    /// List the parts that interrupted jobs left, and remove them.
    Clean(Clean),
    /// Make, show and trust identities.
    Cert(Cert),
    /// Show it all on this machine: two sites, and packages that move between them.
    #[cfg(feature = "control")]
    Demo(Demo),
    /// Run a manager: it plans transfers and ways into archives, and offers them to workers.
    #[cfg(feature = "control")]
    Manager(control::Manager),
    /// Run a worker: it moves and archives what managers offer.
    #[cfg(feature = "control")]
    Worker(control::Worker),
    /// Run endpoint, manager and worker in one process.
    #[cfg(feature = "control")]
    Up(control::Up),
    /// Make or check the database's schema.
    #[cfg(feature = "control")]
    Db(control::Db),
    /// Apply or show sites, locations, routes and peers.
    #[cfg(feature = "control")]
    Topology(control::Topology),
    /// Make a folder an archive.
    #[cfg(feature = "control")]
    Archive(control::Archive),
    /// Register packages and say where they should be.
    #[cfg(feature = "control")]
    Submit(control::Submit),
    /// List transfers, packages, what is archived, workers or dead letters.
    #[cfg(feature = "control")]
    List(control::List),
    /// Show all about a transfer or a package.
    #[cfg(feature = "control")]
    Show(control::Show),
    /// Say why a transfer is not running.
    #[cfg(feature = "control")]
    Explain(control::Explain),
    /// Try failed transfers again.
    #[cfg(feature = "control")]
    Retry(control::Touch),
    /// Stop transfers.
    #[cfg(feature = "control")]
    Cancel(control::Touch),
    /// Begin nothing new at a location or on a route.
    #[cfg(feature = "control")]
    Pause(control::Switch),
    /// End a pause.
    #[cfg(feature = "control")]
    Resume(control::Switch),
    /// Write man pages and shell completions.
    #[command(hide = true)]
    Docs(Docs),
}

impl Command {
    /// Whether it runs until it is stopped, with nobody watching.
    pub(super) fn is_daemon(&self) -> bool {
        match self {
            Self::Serve => true,
            #[cfg(feature = "control")]
            Self::Manager(_) | Self::Worker(_) | Self::Up(_) => true,
            _ => false,
        }
    }
}

/// `send` and `recv`.
#[derive(Args, Debug)]
#[command(after_help = COPY_HELP)]
pub(super) struct Copy {
    /// SOURCE... DEST. A SOURCE folder is copied whole; with a '/' at its end, only its contents. DEST is a folder, or a
    /// new name for a single source. An interrupted copy of a folder goes on under its new name.
    #[arg(value_name = "PATH", num_args = 2.., required_unless_present = "show_config")]
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(super) paths: Vec<OsString>,
    /// Replace files that differ at the destination, each at once and after verification.
    #[arg(long)]
    pub(super) overwrite: bool,
    /// Say what would be done and do nothing.
    #[arg(short = 'n', long)]
    pub(super) dry_run: bool,
    /// Write a manifest that `verify` and `b3sum -c` read.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) manifest: Option<PathBuf>,
    /// Print one JSON object per event on stdout.
    #[arg(long)]
    pub(super) json: bool,
    /// The endpoint's fingerprint; without it, any peer that we trust will do.
    #[arg(long, value_name = "HEX")]
    pub(super) peer_fingerprint: Option<String>,
    /// Let only the far end open connections for data.
    #[arg(long)]
    pub(super) reverse: bool,
    /// Print every setting with its origin and end.
    #[arg(long)]
    pub(super) show_config: bool,
    #[command(flatten)]
    pub(super) settings: SettingFlags,
}

/// Flags that are settings: a file or the environment may give them too.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Settings (also in the settings file, and as CCAT_XFER_... variables)")]
pub(super) struct SettingFlags {
    /// The remote shell and its arguments.
    #[arg(short = 'e', long, value_name = "COMMAND")]
    pub(super) rsh: Option<String>,
    /// This program at the far end.
    #[arg(long, value_name = "PROGRAM")]
    pub(super) remote_path: Option<String>,
    /// auto, quic, tcp or ssh.
    #[arg(long, value_name = "KIND")]
    pub(super) transport: Option<String>,
    /// TCP connections, or QUIC streams in flight.
    #[arg(long, value_name = "N")]
    pub(super) streams: Option<String>,
    /// Bytes per second, as 100M; bits as 800Mbit.
    #[arg(long, value_name = "RATE")]
    pub(super) rate_limit: Option<String>,
    /// QUIC's congestion controller: auto, model or cubic.
    #[arg(long, value_name = "NAME")]
    pub(super) congestion: Option<String>,
    /// Unit of hashing and repair, as 4Mi.
    #[arg(long, value_name = "SIZE")]
    pub(super) chunk_size: Option<String>,
    /// Buffers in memory, as 96Mi.
    #[arg(long, value_name = "SIZE")]
    pub(super) memory: Option<String>,
    /// How long to wait for a new link when the last one is gone, as 10m.
    #[arg(long, value_name = "TIME")]
    pub(super) reconnect_timeout: Option<String>,
    /// Ports to listen on for data, as 50000-50100.
    #[arg(long, value_name = "A-B")]
    pub(super) port_range: Option<String>,
    /// The far end's address for data, where it is not the one that ssh reached.
    #[arg(long, value_name = "ADDRESS")]
    pub(super) data_address: Option<String>,
    /// Trust equal size and time of files that are already there.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) quick: Option<String>,
    /// Keep owner and group.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) owner: Option<String>,
    /// Read every file back from the medium before it is published.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) read_back: Option<String>,
}

impl SettingFlags {
    /// Keys and values as typed.
    pub(super) fn layer(&self) -> Vec<(&'static str, &str)> {
        let fields: [(&'static str, &Option<String>); 14] = [
            ("rsh", &self.rsh),
            ("remote_path", &self.remote_path),
            ("transport", &self.transport),
            ("streams", &self.streams),
            ("rate_limit", &self.rate_limit),
            ("congestion", &self.congestion),
            ("chunk_size", &self.chunk_size),
            ("memory", &self.memory),
            ("reconnect_timeout", &self.reconnect_timeout),
            ("port_range", &self.port_range),
            ("data_address", &self.data_address),
            ("quick", &self.quick),
            ("owner", &self.owner),
            ("read_back", &self.read_back),
        ];
        fields.into_iter().filter_map(|(key, value)| Some((key, value.as_deref()?))).collect()
    }
}

impl Common {
    /// Keys and values as typed.
    pub(super) fn layer(&self) -> Vec<(&'static str, &str)> {
        [("identity", &self.identity), ("log", &self.log)]
            .into_iter()
            .filter_map(|(key, value)| Some((key, value.as_deref()?)))
            .collect()
    }
}

#[derive(Args, Debug)]
pub(super) struct Verify {
    /// Folders that the manifest's paths are relative to; each is checked whole.
    #[arg(value_hint = ValueHint::DirPath)]
    #[cfg_attr(feature = "control", arg(required_unless_present = "location", conflicts_with = "location"))]
    #[cfg_attr(not(feature = "control"), arg(required = true))]
    pub(super) path: Vec<PathBuf>,
    /// Written by send, recv or b3sum.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[cfg_attr(feature = "control", arg(required_unless_present = "location", conflicts_with = "location"))]
    #[cfg_attr(not(feature = "control"), arg(required = true))]
    pub(super) manifest: Option<PathBuf>,
    #[cfg(feature = "control")]
    #[command(flatten)]
    pub(super) archived: control::Scrub,
    /// Print one JSON object per event on stdout.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Args, Debug)]
pub(super) struct Clean {
    /// A destination folder.
    #[arg(value_hint = ValueHint::DirPath)]
    pub(super) dest: PathBuf,
    /// Remove what no process is writing.
    #[arg(long)]
    pub(super) remove: bool,
}

#[derive(Args, Debug)]
pub(super) struct Cert {
    #[command(subcommand)]
    pub(super) command: CertCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum CertCommand {
    /// Make a key and a self-signed certificate.
    #[command(visible_alias = "make")]
    New {
        /// What peers will call this machine (default: its host name).
        #[arg(long)]
        name: Option<String>,
        /// Where to (default: the identity folder).
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        out: Option<PathBuf>,
    },
    /// Print our fingerprint and the peers that we trust.
    Show {
        /// Another folder than ours.
        #[arg(value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
    },
    /// Trust a peer.
    Trust {
        /// A fingerprint as `cert show` prints it, a certificate file, or `ca` for whom the authority calls NAME.
        peer: String,
        /// What to call the peer; rights are given to this name.
        name: String,
    },
    /// Make a private certificate authority in a folder.
    Ca {
        /// A new folder; keep it off machines that serve.
        #[arg(value_hint = ValueHint::DirPath)]
        dir: PathBuf,
        /// The authority's name.
        #[arg(long, default_value = "ccat-xfer private authority")]
        name: String,
        /// How long it is valid.
        #[arg(long, default_value_t = 3650)]
        days: u32,
    },
    /// Issue a key and certificate by a private authority.
    Issue {
        /// The name in the certificate; rights are given to this name.
        name: String,
        /// The authority's folder.
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        ca: PathBuf,
        /// A new folder for the key and the certificate.
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        out: PathBuf,
        /// How long it is valid.
        #[arg(long, default_value_t = 825)]
        days: u32,
    },
}

#[cfg(feature = "control")]
#[derive(Args, Debug)]
pub(super) struct Demo {
    /// Send what lies in this folder of yours (it is only read) instead of generated files. Each file and each folder in
    /// it is a package.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(super) data: Option<PathBuf>,
    /// Put a link between the sites that has this round trip, and drops so much: 200ms,1% or 200ms,1%,1Gbit.
    #[arg(long, value_name = "RTT[,LOSS%][,RATE]")]
    pub(super) link: Option<Link>,
    /// Remove the demo's files at the end.
    #[arg(long)]
    pub(super) rm: bool,
}

#[derive(Args, Debug)]
pub(super) struct Docs {
    /// Where to write.
    #[arg(value_hint = ValueHint::DirPath)]
    pub(super) dir: PathBuf,
}

// clap wraps each line to the terminal's width.
const COPY_HELP: &str = "\
A remote end is [USER@]HOST:PATH (reached by ssh) or xfer://HOST[:PORT]/LOCATION/PATH (a running endpoint). \
One end is remote, the other local. A local name with a ':' in it is written ./NAME.

Run the same command again to resume. Files that are there already with equal bytes are left alone; files that differ \
are left alone and reported, unless --overwrite. Nothing is ever deleted. Hard links become files; extended attributes \
and ACLs are not kept.

Sizes: k, M, G = 10^3; Ki, Mi, Gi = 2^10. Rates are bytes per second; with 'bit' at the end, bits.";

const SERVE_HELP: &str = "\
The settings file (--config, else config.toml in ~/.config/ccat-xfer) needs at least:

    [[serve.location]]
    name = \"buffer\"                       # peers say xfer://HOST/buffer/PATH
    path = \"/data/buffer\"
    [[serve.location.right]]
    peer = \"chile\"                        # the name given to `cert trust`
    may = [\"create\"]                      # of list, read, create, overwrite

and may have, in the table [serve], with these defaults: listen = \"::\", port = 8422, \
max_sessions = 64, max_sessions_per_peer = 16, max_links_per_session = 16, memory_per_session = 67108864, rate_limit = \
(bytes per second to one peer; none), sandbox = true. Before it starts, `cert new` makes its identity and `cert trust` \
names its peers. Changed files of keys, peers and rights are read again by themselves. Logs go to stderr.";

const EXIT_HELP: &str = "\
Exit codes: 0 success, 1 internal, 2 usage, 3 source, 4 destination, 5 integrity, 6 identity, 7 network, 8 partial, \
9 overtaken, 130 cancelled.";

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::{
        cli::exit::Exit,
        config::TABLE,
        engine::FailureClass::{Bug, Cancelled, Destination, Identity, Integrity, Network, Overtaken, Source, Usage},
    };

    #[test]
    fn clap_is_content() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_names_every_exit_code() {
        let failed = [Bug, Usage, Source, Destination, Integrity, Identity, Network, Overtaken, Cancelled];
        for exit in failed.map(Exit::Failed).into_iter().chain([Exit::Success, Exit::Partial]) {
            assert!(EXIT_HELP.contains(&format!("{} {}", exit.code(), exit.word())), "{exit:?}");
        }
    }

    #[test]
    fn every_setting_has_its_flag() {
        let command = Cli::command();
        let send = command.find_subcommand("send").unwrap();
        for key in TABLE {
            let flag = key.name.replace('_', "-");
            let found = send.get_arguments().chain(command.get_arguments()).any(|a| a.get_long() == Some(&flag));
            assert!(found, "--{flag}");
        }
    }

    #[test]
    fn typed_words_arrive() {
        let cli = Cli::try_parse_from([
            "ccat-xfer",
            "send",
            "-v",
            "--quick",
            "--owner=false",
            "-e",
            "ssh -p 2",
            "--streams",
            "3",
            "a",
            "b",
            "h:c",
            "-n",
        ])
        .unwrap();
        assert!(cli.common.verbose);
        let Some(Command::Send(copy)) = cli.command else { panic!() };
        assert_eq!(copy.paths, ["a", "b", "h:c"]);
        assert!(copy.dry_run && !copy.overwrite);
        assert_eq!(
            copy.settings.layer(),
            [("rsh", "ssh -p 2"), ("streams", "3"), ("quick", "true"), ("owner", "false")]
        );
        assert!(Cli::try_parse_from(["ccat-xfer", "--stdio"]).unwrap().stdio);
        assert!(Cli::try_parse_from(["ccat-xfer", "-v", "demo"]).unwrap().common.verbose);
        for bad in [
            &["ccat-xfer", "send", "h:b"][..],
            &["ccat-xfer", "send", "-oProxyCommand=x:p", "h:b"],
            &["ccat-xfer", "send"],
            &["ccat-xfer", "verify", "x"],
            &["ccat-xfer", "frobnicate"],
            &["ccat-xfer"],
        ] {
            assert!(Cli::try_parse_from(bad).is_err(), "{bad:?}");
        }
        assert!(Cli::try_parse_from(["ccat-xfer", "recv", "--show-config"]).is_ok());
    }
}
