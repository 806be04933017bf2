//! What was typed for the control plane.

use std::{path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Subcommand, ValueEnum, ValueHint};

use crate::{
    config::units,
    model::{ErrorClass, IdParseError, PackageId, PackageState, Policy, Status, Work, topology::Place},
};

/// Which managers to run.
#[derive(Args, Debug)]
pub(in crate::cli) struct Manager {
    /// `transfer` moves packages between sites; `archive` has them archived; `all` is every manager there is.
    #[arg(value_enum)]
    pub(super) which: Which,
    /// Archive at this site alone, by its short name.
    #[arg(long, value_name = "SITE")]
    pub(super) site: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Which {
    Transfer,
    Archive,
    All,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct Worker {
    /// The locations whose queues it serves; each has its folder in the settings file.
    #[arg(long = "location", value_name = "SITE/NAME", required = true, num_args = 1..)]
    pub(super) locations: Vec<Place>,
    /// Its name, unique among all workers (default: worker.name of the settings, else the host's name).
    #[arg(long)]
    pub(super) name: Option<String>,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct Up {
    /// Serve no endpoint in this process, even if the settings file has a table `serve`.
    #[arg(long)]
    pub(super) no_serve: bool,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct Archive {
    #[command(subcommand)]
    pub(super) command: ArchiveCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum ArchiveCommand {
    /// Mark a folder as an archive: without the mark a disk that is not mounted would pass for an empty archive.
    Found {
        /// The folder, which is there already and empty.
        #[arg(value_hint = ValueHint::DirPath)]
        root: PathBuf,
    },
}

/// `verify --location`.
#[derive(Args, Debug)]
pub(in crate::cli) struct Scrub {
    /// Read what is archived there, the oldest evidence first. This machine's settings name the archive.
    #[arg(long, value_name = "SITE/NAME")]
    pub(in crate::cli) location: Option<Place>,
    /// Bytes per second, as 100M; bits as 800Mbit.
    #[arg(long, value_name = "RATE", value_parser = units::rate, requires = "location")]
    pub(super) rate_limit: Option<u64>,
    /// At most so many packages.
    #[arg(long, value_name = "N", requires = "location")]
    pub(super) limit: Option<u32>,
    /// Go on although more than a tenth of what was looked at is missing.
    #[arg(long, requires = "location")]
    pub(super) yes: bool,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct Db {
    #[command(subcommand)]
    pub(super) command: DbCommand,
}

#[derive(Clone, Debug, Subcommand)]
pub(super) enum DbCommand {
    /// Make the schema, or bring it to this program's version. Needs the owner's login. Stop the daemons first.
    Migrate {
        /// Also while workers of an older program run: what they do may be called lost and begun again.
        #[arg(long)]
        force: bool,
    },
    /// Say whether the schema is this program's.
    Check,
    /// Restore packages, their copies and what was verified from the sidecars of an archive. What is there already and says
    /// the same is left alone.
    Rebuild {
        /// The archive. This machine's settings say where it is, and the topology has to be applied first.
        #[arg(long, value_name = "SITE/NAME")]
        from: Place,
        /// Print JSON on stdout.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args, Debug)]
pub(in crate::cli) struct Topology {
    #[command(subcommand)]
    pub(super) command: TopologyCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum TopologyCommand {
    /// Make the database's sites, locations, routes and peers those of a file. What is missing there becomes inactive.
    Apply {
        /// The topology file (TOML).
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// Show the difference and change nothing.
        #[arg(short = 'n', long)]
        dry_run: bool,
        /// Print JSON on stdout.
        #[arg(long)]
        json: bool,
    },
    /// Show what the database has.
    Show {
        /// Print JSON on stdout.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args, Debug)]
pub(in crate::cli) struct Submit {
    /// Where the packages lie. This machine's settings name its folder.
    #[arg(long, value_name = "SITE/NAME")]
    pub(super) from: Place,
    /// Where they should be: a location, or a site for its best buffer.
    #[arg(long, value_name = "SITE[/NAME]", required = true)]
    pub(super) to: Vec<String>,
    /// Which archives must get it: transfer_only, site_archives, one_archive or every_archive.
    #[arg(long, value_name = "POLICY", default_value_t = Policy::SiteArchives)]
    pub(super) policy: Policy,
    /// 0 to 9; higher goes first.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(0..=9))]
    pub(super) priority: u8,
    /// Print one JSON object per package on stdout.
    #[arg(long)]
    pub(super) json: bool,
    /// Files and folders: below the location's folder, or absolute within it. Each is one package.
    #[arg(required = true, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub(super) paths: Vec<PathBuf>,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct List {
    /// What to list.
    #[arg(value_enum, default_value = "transfers")]
    pub(super) what: Listed,
    #[command(flatten)]
    pub(super) filter: Filter,
    /// Packages in this state: waiting, transferring, archived or failed.
    #[arg(long, value_name = "STATE")]
    pub(super) state: Vec<PackageState>,
    /// Begin behind the row of this number, as the last page said.
    #[arg(long)]
    pub(super) after: Option<i64>,
    /// At most so many rows.
    #[arg(long, default_value_t = 100)]
    pub(super) most: u32,
    /// Print one JSON object per row on stdout.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Listed {
    Transfers,
    ArchiveTransfers,
    /// What rests in archives, or shall.
    Archive,
    Packages,
    Workers,
    DeadLetters,
}

/// Which work is meant; all that is given must hold.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct Filter {
    /// With this status: pending, scheduled, in_progress, completed or failed.
    #[arg(long, value_name = "STATUS")]
    pub(super) status: Vec<Status>,
    /// Whose last error is of this class, as network.
    #[arg(long, value_name = "CLASS")]
    pub(super) class: Option<ErrorClass>,
    /// That moves this package.
    #[arg(long, value_name = "ID")]
    pub(super) package: Option<PackageId>,
    /// That begins or ends at this location.
    #[arg(long, value_name = "SITE/NAME")]
    pub(super) location: Option<Place>,
    /// That begins or ends at this site, by its short name.
    #[arg(long, value_name = "SITE")]
    pub(super) site: Option<String>,
    /// That takes this route.
    #[arg(long, value_name = "NAME")]
    pub(super) route: Option<String>,
    /// That nothing was heard of for so long, as 30m.
    #[arg(long, value_name = "AGE", value_parser = units::duration)]
    pub(super) older: Option<Duration>,
}

impl Filter {
    /// Whether anything narrows it.
    pub(super) fn is_narrowed(&self) -> bool {
        let Self { status, class, package, location, site, route, older } = self;
        !status.is_empty()
            || class.is_some()
            || package.is_some()
            || location.is_some()
            || site.is_some()
            || route.is_some()
            || older.is_some()
    }
}

/// A piece of work, or a package.
#[derive(Args, Debug)]
pub(in crate::cli) struct Show {
    /// t12 is a transfer, a3 an archive transfer, p7 a package.
    #[arg(value_name = "ID")]
    pub(super) id: String,
    /// Print JSON on stdout.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct Explain {
    /// t12 is a transfer, a3 an archive transfer, p7 a package.
    #[arg(value_name = "ID")]
    pub(super) meant: Meant,
    /// Print JSON on stdout.
    #[arg(long)]
    pub(super) json: bool,
}

/// What is to be explained.
#[derive(Clone, Copy, Debug)]
pub(super) enum Meant {
    Work(Work),
    Package(PackageId),
}

impl FromStr for Meant {
    type Err = IdParseError;

    fn from_str(text: &str) -> Result<Self, IdParseError> {
        if text.starts_with('p') { text.parse().map(Self::Package) } else { text.parse().map(Self::Work) }
    }
}

/// `retry` and `cancel`.
#[derive(Args, Debug)]
pub(in crate::cli) struct Touch {
    /// t12, t13, ...
    #[arg(value_name = "ID")]
    pub(super) ids: Vec<Work>,
    #[command(flatten)]
    pub(super) filter: Filter,
    /// All transfers that there are, within the filter.
    #[arg(long)]
    pub(super) all: bool,
    /// Why, for the history.
    #[arg(long, default_value = "asked for on the command line")]
    pub(super) reason: String,
    /// Say what would be done and do nothing.
    #[arg(short = 'n', long)]
    pub(super) dry_run: bool,
    /// Print JSON on stdout.
    #[arg(long)]
    pub(super) json: bool,
}

/// `pause` and `resume`.
#[derive(Args, Debug)]
pub(in crate::cli) struct Switch {
    /// A location.
    #[arg(long, value_name = "SITE/NAME")]
    pub(super) location: Vec<String>,
    /// A route's name.
    #[arg(long, value_name = "NAME")]
    pub(super) route: Vec<String>,
    /// All locations of a site, by its short name.
    #[arg(long, value_name = "SITE")]
    pub(super) site: Vec<String>,
    /// Why, for the history.
    #[arg(long, default_value = "asked for on the command line")]
    pub(super) reason: String,
    /// Say what would be done and do nothing.
    #[arg(short = 'n', long)]
    pub(super) dry_run: bool,
    /// Print JSON on stdout.
    #[arg(long)]
    pub(super) json: bool,
}
