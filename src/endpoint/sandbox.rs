//! Confines a serving process to its locations and keys (Landlock, Linux 5.13 and later).

use std::path::Path;

use landlock::{
    ABI, Access as _, AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetError,
    RulesetStatus,
};

use super::settings::Settings;

/// Why the process is not confined.
#[derive(Debug, thiserror::Error)]
pub(super) enum SandboxError {
    /// The kernel refused.
    #[error(transparent)]
    Ruleset(#[from] RulesetError),
    /// A path cannot be opened.
    #[error("{0}")]
    Path(String),
    /// The kernel does not have it.
    #[error("the kernel does not enforce it")]
    Absent,
}

/// From now on this process, and what it starts, reaches the locations (to read and write), and the identity folder, the
/// settings and the system's name service (to read), and nothing else. Returns how far the kernel went.
pub(super) fn confine(settings: &Settings, identity: &Path, file: &Path) -> Result<&'static str, SandboxError> {
    let abi = ABI::V3;
    let mut rules = Ruleset::default().handle_access(AccessFs::from_all(abi))?.create()?;
    let read = AccessFs::from_read(abi);
    let full = AccessFs::from_all(abi);
    let open = |path: &Path| PathFd::new(path).map_err(|e| SandboxError::Path(e.to_string()));
    for location in &settings.locations {
        rules = rules.add_rule(PathBeneath::new(open(&location.path)?, full))?;
    }
    rules = rules.add_rule(PathBeneath::new(open(identity)?, read))?;
    let settings_folder = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    rules = rules.add_rule(PathBeneath::new(open(settings_folder)?, read))?;
    // /proc for the handles that sources are read through, /etc for names and time zones.
    for system in ["/proc", "/etc", "/dev/null", "/dev/urandom", "/usr", "/lib"] {
        if let Ok(fd) = PathFd::new(system) {
            rules = rules.add_rule(PathBeneath::new(fd, if system.starts_with("/dev/null") { full } else { read }))?;
        }
    }
    match rules.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => Ok("fully"),
        RulesetStatus::PartiallyEnforced => Ok("partly, as far as the kernel can"),
        RulesetStatus::NotEnforced => Err(SandboxError::Absent),
    }
}
