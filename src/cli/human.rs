//! What a person sees: bars on a terminal's stderr, failures as they happen, a summary at the end.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{
    chunk::escape_bytes,
    config::units::{show_rate, show_size},
    engine::{Action, FileReport, Limit, Progress, Summary},
};

/// stdout and stderr with a bar at the bottom. Without a terminal there is no bar.
#[derive(Clone, Debug)]
pub(super) struct Screen {
    bar: ProgressBar,
}

impl Screen {
    pub(super) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(BAR_HZ));
        Self { bar }
    }

    /// A screen that shows no bar (`--json`).
    pub(super) fn without_bar() -> Self {
        Self { bar: ProgressBar::hidden() }
    }

    /// A line on stderr, above the bar. An stderr that is gone is no reason to end a job.
    pub(super) fn note(&self, text: &str) {
        self.bar.suspend(|| {
            let _ = writeln!(io::stderr().lock(), "{text}");
        });
    }

    /// Bytes as they are on stderr, above the bar (log lines).
    pub(super) fn raw(&self, bytes: &[u8]) {
        self.bar.suspend(|| {
            let _ = io::stderr().lock().write_all(bytes);
        });
    }

    /// Text on stdout.
    pub(super) fn print(&self, text: &str) {
        self.bar.suspend(|| {
            let mut out = io::stdout().lock();
            let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        });
    }

    /// Redraws the bar.
    pub(super) fn progress(&self, progress: &Progress) {
        if self.bar.is_hidden() {
            return;
        }
        let entries = if progress.scan_complete {
            format!("{}/{} entries", progress.entries_done, progress.entries_found)
        } else {
            format!("{}/{}+ entries", progress.entries_done, progress.entries_found)
        };
        let links = match progress.links {
            0 => ", waiting for a link",
            _ => "",
        };
        if self.bar.length() != Some(progress.bytes_found) {
            if self.bar.length().is_none() {
                self.bar.set_style(bar_style());
                self.bar.enable_steady_tick(Duration::from_millis(500));
            }
            self.bar.set_length(progress.bytes_found);
        }
        self.bar.set_position(progress.bytes_done);
        self.bar.set_message(format!("{entries}{links}"));
    }

    /// Whether there is a terminal on which something can be drawn again.
    #[cfg(feature = "control")]
    pub(super) fn is_live(&self) -> bool {
        !self.bar.is_hidden()
    }

    /// Shows lines in place of the bar, and of those that were there before.
    #[cfg(feature = "control")]
    pub(super) fn board(&self, text: String) {
        if self.bar.length() != Some(0) {
            self.bar.set_style(ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar()));
            self.bar.set_length(0);
        }
        self.bar.set_message(text);
    }

    /// Takes the bar away.
    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }

    /// What became of one entry, where a person wants to read it at once.
    pub(super) fn file(&self, report: &FileReport) {
        match &report.action {
            Action::Failed { class, text } => {
                self.note(&format!("failed ({class}): {}: {text}", escape_bytes(&report.path)));
            }
            Action::WouldCopy => {
                let size = if report.size > 0 { format!(" ({})", show_size(report.size)) } else { String::new() };
                self.print(&format!("would copy {}{size}\n", escape_bytes(&report.path)));
            }
            _ => {}
        }
    }
}

/// A job's summary in words.
pub(super) fn summary(summary: &Summary, dry_run: bool) -> String {
    let s = summary;
    let mut out = String::new();
    // Writing to a String cannot fail.
    let moved = s.bytes.saturating_sub(s.bytes_resumed);
    let verb = if dry_run { "would be there" } else { "are there and verified" };
    let _ = write!(out, "{}, {} {verb}", counted(s.files, "file"), show_size(s.bytes));
    if dry_run {
        out.push('\n');
        return out;
    }
    let _ = writeln!(out, "; {} moved in {}", show_size(moved), show_seconds(s.seconds));
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "  {name:<12} {value}");
    };
    if moved > 0 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a figure for people; saturates")]
        let rate = (s.goodput_mbit_s() * 1e6 / 8.0) as u64;
        line(
            "rate",
            format!("{} ({:.1} Mbit/s), limited by {}", show_rate(rate), s.goodput_mbit_s(), limit(s.limited_by)),
        );
    }
    if s.bytes_resumed > 0 {
        line("resumed", format!("{} were there before", show_size(s.bytes_resumed)));
    }
    if !s.transports.is_empty() {
        let words: Vec<_> = s.transports.iter().map(|t| t.word()).collect();
        let streams = counted(u64::from(s.streams), "stream");
        line("transport", format!("{}, {streams}, {} ({})", words.join("+"), s.controller, s.transport_reason));
        line("wire", format!("{}, {} sent again", show_size(s.wire_bytes), counted(s.retransmits, "packet")));
    }
    if s.bytes_repeated > 0 {
        line("repeated", format!("{} of chunks were sent more than once", show_size(s.bytes_repeated)));
    }
    if s.others > 0 {
        line(
            "also",
            if s.others == 1 { "1 folder or link".to_owned() } else { format!("{} folders and links", s.others) },
        );
    }
    if s.skipped > 0 {
        line("skipped", format!("{} (FIFO, socket, device, left-over parts)", s.skipped));
    }
    if s.hard_links > 0 {
        line("hard links", format!("{} became separate files", s.hard_links));
    }
    if s.failed > 0 {
        line("failed", format!("{}; each is named above", s.failed));
    }
    if let Some(digest) = s.tree_digest {
        line("tree digest", digest.to_string());
    }
    out
}

fn counted(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

fn limit(limit: Limit) -> &'static str {
    match limit {
        Limit::SourceDisk => "the source disk",
        Limit::DestinationDisk => "the destination disk",
        Limit::Network => "the network",
        Limit::RateLimit => "the rate limit",
        Limit::Unknown => "nothing in particular",
    }
}

fn show_seconds(seconds: f64) -> String {
    if seconds < 90.0 {
        return format!("{seconds:.1} s");
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a figure for people; saturates")]
    let whole = seconds as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

fn bar_style() -> ProgressStyle {
    ProgressStyle::with_template(
        "{bar:25} {percent:>3}%  {decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}  eta {eta}  {msg}",
    )
    .unwrap_or_else(|_| ProgressStyle::default_bar())
    .progress_chars("=> ")
}

// Enough to look alive over a slow terminal line.
const BAR_HZ: u8 = 5;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::json;

    #[test]
    fn a_summary_reads_well() {
        assert_eq!(
            summary(&json::tests::summary(), false),
            format!(
                "2 files, 3.00 MB are there and verified; 2.00 MB moved in 0.5 s
  rate         4.00 MB/s (32.0 Mbit/s), limited by the network
  resumed      1.00 MB were there before
  transport    quic+tcp, 8 streams, bbr (quic answered first)
  wire         2.10 MB, 3 packets sent again
  repeated     4.09 kB of chunks were sent more than once
  also         1 folder or link
  skipped      1 (FIFO, socket, device, left-over parts)
  failed       1; each is named above
  tree digest  {}
",
                "ab".repeat(32)
            )
        );
        assert_eq!(summary(&json::tests::summary(), true), "2 files, 3.00 MB would be there\n");
    }

    #[test]
    fn the_bar_has_a_valid_template() {
        assert!(ProgressStyle::with_template("{decimal_bytes_per_sec} {eta} {bar:25}").is_ok());
    }

    #[test]
    fn times_read_well() {
        assert_eq!(show_seconds(0.04), "0.0 s");
        assert_eq!(show_seconds(100.2), "1 min 40 s");
        assert_eq!(show_seconds(7322.0), "2 h 2 min");
    }
}
