use std::{error::Error, fmt};

use crate::model::ErrorClass;

/// Why an archive could not do something: what kind of failure it is, where, and what to do about it.
#[derive(Debug)]
pub struct ArchiveError {
    /// Decides about the next attempt.
    pub class: ErrorClass,
    /// The error and its causes, outermost first. The first names the place and what to do.
    pub chain: Vec<String>,
}

impl ArchiveError {
    /// One of a class.
    pub fn new(class: ErrorClass, text: impl Into<String>) -> Self {
        Self { class, chain: vec![text.into()] }
    }

    /// One with the causes of another error behind it.
    pub fn caused(class: ErrorClass, text: impl Into<String>, cause: &dyn Error) -> Self {
        let mut chain = vec![text.into()];
        let mut next = Some(cause);
        while let Some(error) = next {
            chain.push(error.to_string());
            next = error.source();
        }
        Self { class, chain }
    }
}

impl fmt::Display for ArchiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.chain.join(": "))
    }
}

impl Error for ArchiveError {}
