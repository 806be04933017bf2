use std::fmt;

/// The longest name that AMQP can carry is 255 bytes; the rest is room for a broker's own.
const MAX_NAME_BYTES: usize = 200;

/// Names with this beginning are the broker module's own.
pub(super) const OWN_PREFIX: &str = "ccat_xfer.";

/// The name of a queue: 1 to 200 of `a-z A-Z 0-9 _ - .`, as `cologne_buffer_data_transfer`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueName(Box<str>);

impl QueueName {
    /// Checks a name.
    ///
    /// # Errors
    /// It is empty, too long, reserved, or has other characters.
    pub fn new(name: &str) -> Result<Self, QueueNameError> {
        let refuse = |why| Err(QueueNameError { name: name.escape_debug().take(MAX_NAME_BYTES).collect(), why });
        if name.is_empty() {
            return refuse("it is empty");
        }
        if name.len() > MAX_NAME_BYTES {
            return refuse("it is longer than 200 bytes");
        }
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.')) {
            return refuse("only letters, digits, '_', '-' and '.' are allowed");
        }
        if name.starts_with("amq.") || name.starts_with(OWN_PREFIX) {
            return refuse("names that begin with 'amq.' or 'ccat_xfer.' are reserved");
        }
        Ok(Self(name.into()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for QueueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name that no queue may have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{name}' is no name for a queue: {why}")]
pub struct QueueNameError {
    /// What was given, shortened.
    pub name: String,
    /// What is wrong with it.
    pub why: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "cologne_lta-1.data_transfer", &"x".repeat(200)] {
            assert_eq!(QueueName::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "a b", "a/b", "é", "amq.x", "ccat_xfer.dead", "a\n", &"x".repeat(201)] {
            assert!(QueueName::new(bad).is_err(), "{bad:?}");
        }
    }
}
