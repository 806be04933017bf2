//! How the program ends.
//!
//! | code | name | meaning |
//! |---|---|---|
//! | 0 | success | all that was asked is done and verified |
//! | 1 | internal | a defect of this program |
//! | 2 | usage | the command or its settings make no sense |
//! | 3 | source | missing, unreadable, or changed while it was read |
//! | 4 | destination | not writable, full, or holds something different |
//! | 5 | integrity | bytes were not what their digest says |
//! | 6 | identity | the peer is not who it should be, or refused us |
//! | 7 | network | the peer could not be reached, or not for long enough; run again to resume |
//! | 8 | partial | some files are done, others failed; each was named |
//! | 9 | overtaken | a newer attempt owns the destination |
//! | 130 | cancelled | ended by Ctrl-C; run again to resume |
//!
//! A job that ran to its end with failures is 'partial' if anything but folders succeeded or the failures have several
//! classes; if nothing did, the code is that of the one class.

use std::process::ExitCode;

use crate::engine::FailureClass;

/// The ways to end. The numbers are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exit {
    /// All done and verified.
    Success,
    /// Some files are done, others failed.
    Partial,
    /// Nothing is done, for one reason.
    Failed(FailureClass),
}

impl Exit {
    /// The number that the shell sees.
    pub fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Partial => 8,
            Self::Failed(class) => match class {
                FailureClass::Bug => 1,
                FailureClass::Usage => 2,
                FailureClass::Source => 3,
                FailureClass::Destination => 4,
                FailureClass::Integrity => 5,
                FailureClass::Identity => 6,
                FailureClass::Network => 7,
                FailureClass::Overtaken => 9,
                // 128 + SIGINT, what shells expect of an interrupted command.
                FailureClass::Cancelled => 130,
            },
        }
    }

    /// Not success, if a summary counts failures that no event told of.
    pub(super) fn at_least(self, failed: u64) -> Self {
        if failed > 0 && self == Self::Success { Self::Partial } else { self }
    }

    /// The word in `--json`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Partial => "partial",
            Self::Failed(FailureClass::Bug) => "internal",
            Self::Failed(class) => class.word(),
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Counts how the entries of a job ended, to tell its exit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    done: u64,
    class: Option<FailureClass>,
    mixed: bool,
}

impl Tally {
    /// One file or link ended well. Folders do not count: they are made for the files in them.
    pub(super) fn done(&mut self) {
        self.done += 1;
    }

    /// One entry failed.
    pub(super) fn failed(&mut self, class: FailureClass) {
        self.mixed |= self.class.is_some_and(|first| first != class);
        self.class = Some(class);
    }

    /// How a job ends that ran to its end.
    pub(super) fn exit(&self) -> Exit {
        match self.class {
            None => Exit::Success,
            Some(_) if self.mixed || self.done > 0 => Exit::Partial,
            Some(class) => Exit::Failed(class),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLASSES: [FailureClass; 9] = [
        FailureClass::Usage,
        FailureClass::Source,
        FailureClass::Destination,
        FailureClass::Integrity,
        FailureClass::Identity,
        FailureClass::Network,
        FailureClass::Overtaken,
        FailureClass::Cancelled,
        FailureClass::Bug,
    ];

    #[test]
    fn the_documented_table_is_the_table() {
        let doc = include_str!("exit.rs");
        let exits = CLASSES.map(Exit::Failed).into_iter().chain([Exit::Success, Exit::Partial]);
        let mut codes = Vec::new();
        for exit in exits {
            assert!(doc.contains(&format!("//! | {} | {} |", exit.code(), exit.word())), "{exit:?}");
            codes.push(exit.code());
        }
        codes.sort_unstable();
        assert_eq!(codes, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 130]);
    }

    #[test]
    fn a_finished_job_is_partial_only_if_something_is_done() {
        let tally = |done, classes: &[FailureClass]| {
            let mut tally = Tally::default();
            (0..done).for_each(|_| tally.done());
            classes.iter().for_each(|&class| tally.failed(class));
            tally.exit()
        };
        use FailureClass::{Destination, Source};
        assert_eq!(tally(0, &[]), Exit::Success);
        assert_eq!(tally(3, &[]), Exit::Success);
        assert_eq!(tally(3, &[Source]), Exit::Partial);
        assert_eq!(tally(0, &[Source, Source]), Exit::Failed(Source));
        assert_eq!(tally(0, &[Source, Destination]), Exit::Partial);
    }
}
