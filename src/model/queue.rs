use std::{fmt, str::FromStr};

use super::vocabulary::words;

words! {
    /// What is done in a queue.
    Operation, "an operation" {
        /// Files become packages.
        RawDataPackageCreation = "raw_data_package_creation",
        /// Packages become bundles.
        DataTransferPackageCreation = "data_transfer_package_creation",
        /// Bundles move between sites.
        DataTransfer = "data_transfer",
        /// Bundles become packages again.
        DataTransferUnpacking = "data_transfer_unpacking",
        /// Packages move into an archive.
        LongTermArchiveTransfer = "long_term_archive_transfer",
        /// Packages come back for processing.
        Staging = "staging",
        /// Copies are removed.
        Deletion = "deletion",
    }
}

/// `{site_short_name}_{data_location_name}_{operation_type}`. Which queues there are follows from the topology; none is
/// configured by hand.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueName {
    stem: String,
    operation: Operation,
}

/// Text that names no queue.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not the name of a queue; one looks like cologne_buffer_data_transfer")]
pub struct QueueNameError(pub String);

impl QueueName {
    /// The queue of a location for an operation. `stem` is `{site_short_name}_{data_location_name}`, which the store
    /// keeps unique by itself, because the sites `a` and `a_b` could else share one.
    pub fn new(stem: impl Into<String>, operation: Operation) -> Self {
        Self { stem: stem.into(), operation }
    }

    /// The stem of a location's queues.
    pub fn stem_of(site_short_name: &str, location_name: &str) -> String {
        format!("{site_short_name}_{location_name}")
    }

    /// `{site_short_name}_{data_location_name}`.
    pub fn stem(&self) -> &str {
        &self.stem
    }

    /// What is done in it.
    pub const fn operation(&self) -> Operation {
        self.operation
    }
}

impl fmt::Display for QueueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.stem, self.operation)
    }
}

impl fmt::Debug for QueueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for QueueName {
    type Err = QueueNameError;

    fn from_str(text: &str) -> Result<Self, QueueNameError> {
        // No operation is the end of another one behind an underscore, so at most one fits.
        Operation::ALL
            .iter()
            .find_map(|&operation| {
                let stem = text.strip_suffix(operation.as_str())?.strip_suffix('_')?;
                let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
                let (site, location) = stem.split_once('_')?;
                (!site.is_empty() && !location.is_empty() && stem.bytes().all(plain))
                    .then(|| Self::new(stem, operation))
            })
            .ok_or_else(|| QueueNameError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_called_as_in_the_operations_database() {
        for (site, location, operation, name) in [
            (
                "ccat",
                "telescope_computer",
                Operation::RawDataPackageCreation,
                "ccat_telescope_computer_raw_data_package_creation",
            ),
            ("cologne", "buffer", Operation::DataTransfer, "cologne_buffer_data_transfer"),
            ("cologne", "buffer", Operation::DataTransferUnpacking, "cologne_buffer_data_transfer_unpacking"),
            ("us", "lta", Operation::LongTermArchiveTransfer, "us_lta_long_term_archive_transfer"),
        ] {
            let queue = QueueName::new(QueueName::stem_of(site, location), operation);
            assert_eq!(queue.to_string(), name);
            assert_eq!(name.parse(), Ok(queue));
        }
        for text in
            ["", "data_transfer", "_data_transfer", "cologne_data_transfer", "Cologne_buffer_data_transfer", "a_b_c"]
        {
            assert!(text.parse::<QueueName>().is_err(), "{text}");
        }
    }
}
