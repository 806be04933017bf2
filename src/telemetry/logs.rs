//! The process's log: lines for people or JSON for programs, and a level that can be switched while it runs.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tracing_subscriber::{
    EnvFilter, Registry,
    fmt::{self, MakeWriter},
    layer::SubscriberExt as _,
    reload,
    util::SubscriberInitExt as _,
};

/// The filter that `verbose` means: DEBUG of ours, while the libraries below keep to INFO, because some log every packet.
const VERBOSE: &str = "info,ccat_xfer=debug";

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, with the fields of the event and of its spans.
    Json,
}

/// Starts logging to `writer`. `filter` is the setting, as `info` or `ccat_xfer=debug`; `verbose` overrides it.
///
/// A second start in one process (tests do it) keeps the first subscriber; its switch then changes nothing.
///
/// # Errors
/// `filter` is no filter.
pub fn start<W>(filter: &str, verbose: bool, format: Format, writer: W) -> Result<LevelSwitch, LogsError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    parse(filter)?;
    let (layer, handle) = reload::Layer::new(parse(if verbose { VERBOSE } else { filter })?);
    let registry = tracing_subscriber::registry().with(layer);
    let lines = fmt::layer().with_ansi(false).with_writer(writer);
    let _ = match format {
        Format::Text => registry.with(lines).try_init(),
        Format::Json => registry.with(lines.json()).try_init(),
    };
    Ok(LevelSwitch { handle, filter: filter.to_owned(), verbose: Arc::new(AtomicBool::new(verbose)) })
}

fn parse(filter: &str) -> Result<EnvFilter, LogsError> {
    EnvFilter::try_new(filter)
        .map_err(|error| LogsError::Filter { filter: filter.to_owned(), reason: error.to_string() })
}

/// Switches between the filter of the settings and DEBUG.
#[derive(Clone, Debug)]
pub struct LevelSwitch {
    handle: reload::Handle<EnvFilter, Registry>,
    filter: String,
    verbose: Arc<AtomicBool>,
}

impl LevelSwitch {
    /// Whether DEBUG is on.
    pub fn is_verbose(&self) -> bool {
        self.verbose.load(Ordering::Relaxed)
    }

    /// Turns DEBUG on or off.
    pub fn set_verbose(&self, verbose: bool) {
        self.verbose.store(verbose, Ordering::Relaxed);
        // Both filters were parsed at the start; and where the subscriber is gone nobody reads its lines.
        if let Ok(filter) = parse(if verbose { VERBOSE } else { &self.filter }) {
            let _ = self.handle.reload(filter);
        }
        tracing::info!(verbose, "the log level was switched");
    }

    /// Turns DEBUG on if it is off, and off if it is on: what a daemon does on SIGHUP.
    pub fn toggle(&self) {
        self.set_verbose(!self.is_verbose());
    }
}

/// Settings that make no log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogsError {
    /// The filter does not parse.
    #[error("'{filter}' is not a log filter: {reason}")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Mutex, PoisonError},
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Memory {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()).unwrap()
        }
    }

    impl io::Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'w> MakeWriter<'w> for Memory {
        type Writer = Self;

        fn make_writer(&'w self) -> Self {
            self.clone()
        }
    }

    /// The one test that may start the process's log: there is one per process.
    #[test]
    fn the_level_is_switched_while_it_runs_and_fields_are_json() {
        let memory = Memory::default();
        let switch = start("warn", false, Format::Json, memory.clone()).unwrap();
        let span = tracing::error_span!(target: "ccat_xfer::test", "transfer", id = 7_u64, fence = 3_u64);
        let _inside = span.enter();
        tracing::debug!(target: "ccat_xfer::test", "hidden");
        tracing::warn!(target: "ccat_xfer::test", bytes = 12_u64, "seen first");
        switch.toggle();
        assert!(switch.is_verbose());
        tracing::debug!(target: "ccat_xfer::test", "seen second");
        tracing::debug!(target: "somebody_else", "hidden");
        switch.toggle();
        tracing::debug!(target: "ccat_xfer::test", "hidden");

        let text = memory.text();
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("each line is JSON"))
            .filter(|line| line["target"] == "ccat_xfer::test" || line["target"] == "somebody_else")
            .collect();
        let said: Vec<_> = lines.iter().map(|line| line["fields"]["message"].as_str().unwrap_or_default()).collect();
        assert_eq!(said, ["seen first", "seen second"], "{text}");
        assert_eq!(lines[0]["fields"]["bytes"], 12);
        assert_eq!((&lines[0]["span"]["id"], &lines[0]["span"]["fence"]), (&7.into(), &3.into()), "{text}");
    }

    #[test]
    fn what_is_no_filter_is_refused_even_when_it_would_not_be_used() {
        for verbose in [false, true] {
            let error = start("a=b=c", verbose, Format::Text, io::sink).unwrap_err();
            assert!(error.to_string().starts_with("'a=b=c' is not a log filter: "), "{error}");
        }
    }
}
