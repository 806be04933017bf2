//! Log lines on stderr, above the bar.

use std::io;

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use super::human::Screen;

/// Starts logging. `filter` is the setting; verbose overrides it with DEBUG of ours, while the libraries below keep to
/// INFO: quinn and rustls log every packet at DEBUG.
pub(super) fn start(filter: &str, verbose: bool, screen: &Screen) -> Result<(), String> {
    let filter = if verbose { "info,ccat_xfer=debug" } else { filter };
    let filter = EnvFilter::try_new(filter).map_err(|error| format!("'{filter}' is not a log filter: {error}"))?;
    // A second start (tests in one process) keeps the first subscriber.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(AboveBar(screen.clone()))
        .try_init();
    Ok(())
}

#[derive(Debug)]
struct AboveBar(Screen);

impl<'a> MakeWriter<'a> for AboveBar {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> LineWriter<'a> {
        LineWriter { screen: &self.0 }
    }
}

/// The subscriber writes each event by one call.
#[derive(Debug)]
struct LineWriter<'a> {
    screen: &'a Screen,
}

impl io::Write for LineWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.screen.raw(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
