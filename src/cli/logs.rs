//! Log lines on stderr, above the bar.

use std::io;

use tracing_subscriber::fmt::MakeWriter;

use super::human::Screen;
use crate::telemetry::logs::{self, Format, LevelSwitch, LogsError};

/// Starts logging. `filter` is the setting; verbose overrides it with DEBUG.
pub(super) fn start(filter: &str, verbose: bool, screen: &Screen) -> Result<LevelSwitch, LogsError> {
    logs::start(filter, verbose, Format::Text, AboveBar(screen.clone()))
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
