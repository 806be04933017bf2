use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    path::{Path, PathBuf},
    str::FromStr,
};

use lapin::uri::{AMQPScheme, AMQPUri, AMQPUserInfo};

use crate::secret::{Secret, SecretError};

/// Where a RabbitMQ is: `amqps://HOST[:PORT][/VHOST]`, or `amqp://` on this machine.
///
/// It holds no name and no password, because addresses are typed and logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    tls: bool,
    host: String,
    port: u16,
    vhost: String,
}

impl Address {
    /// Host, without the brackets of an IPv6 address.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn tls(&self) -> bool {
        self.tls
    }

    /// What the client library wants, with the user's name and password.
    pub(super) fn uri(&self, credentials: &Credentials, heartbeat_s: u16) -> AMQPUri {
        let mut uri =
            AMQPUri { scheme: if self.tls { AMQPScheme::AMQPS } else { AMQPScheme::AMQP }, ..AMQPUri::default() };
        uri.authority.host.clone_from(&self.host);
        uri.authority.port = self.port;
        uri.authority.userinfo =
            AMQPUserInfo { username: credentials.user.clone(), password: credentials.password.expose().to_owned() };
        uri.vhost.clone_from(&self.vhost);
        uri.query.heartbeat = Some(heartbeat_s);
        uri
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        // Before anything that might repeat the text in an error.
        let authority = text.split_once("://").map_or("", |(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or(""));
        if authority.contains('@') {
            return Err(AddressError::HoldsCredentials);
        }
        if text.contains(['?', '#']) {
            return Err(AddressError::Malformed { why: "options behind '?' are not supported".to_owned() });
        }
        let uri: AMQPUri = text.parse().map_err(|why: String| AddressError::Malformed { why })?;
        let host = host_of(authority)?;
        let tls = uri.scheme == AMQPScheme::AMQPS;
        if !tls && !is_local(&host) {
            return Err(AddressError::PlainToOthers { host });
        }
        let vhost = if uri.vhost.is_empty() { "/".to_owned() } else { uri.vhost };
        Ok(Self { tls, host, port: uri.authority.port, vhost })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "amqps" } else { "amqp" };
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{scheme}://{open}{}{close}:{}", self.host, self.port)?;
        if self.vhost != "/" {
            write!(f, "/{}", self.vhost)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The host as it was written. The client library's own parser takes a literal IPv6 address for no host at all, and then means
/// this machine.
fn host_of(authority: &str) -> Result<String, AddressError> {
    let malformed = |why: &str| AddressError::Malformed { why: why.to_owned() };
    let host = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, _) = rest.split_once(']').ok_or_else(|| malformed("a bracket is not closed"))?;
            host.parse::<Ipv6Addr>().map_err(|_| malformed("what is in brackets is no IPv6 address"))?;
            host
        }
        None => authority.split_once(':').map_or(authority, |(host, _)| host),
    };
    if host.is_empty() { Err(malformed("it names no host")) } else { Ok(host.to_owned()) }
}

fn is_local(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// Why an address is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// It does not parse.
    #[error("not an address of a broker: {why}; write amqps://HOST[:PORT][/VHOST]")]
    Malformed {
        /// What is wrong with it.
        why: String,
    },
    /// Whoever reads the command line or the log would read them.
    #[error("the broker's address holds a name or password: put them into a credentials file instead")]
    HoldsCredentials,
    /// Password and hints would cross the network in clear.
    #[error("{host} is another machine: use amqps:// (plain amqp:// is for this machine only)")]
    PlainToOthers {
        /// The host.
        host: String,
    },
}

/// A user of the broker.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub(super) user: String,
    pub(super) password: Secret,
}

impl Credentials {
    /// A user and the password.
    pub fn new(user: impl Into<String>, password: Secret) -> Self {
        Self { user: user.into(), password }
    }

    /// From `USER:PASSWORD`, as an environment variable or a file holds it. The password may contain colons.
    ///
    /// # Errors
    /// There is no colon, or nothing before it.
    pub fn parse(secret: &Secret) -> Result<Self, CredentialsError> {
        match secret.expose().split_once(':') {
            Some((user, password)) if !user.is_empty() => Ok(Self::new(user, Secret::new(password))),
            _ => Err(CredentialsError::Form),
        }
    }

    /// From a file that only its owner can read.
    ///
    /// # Errors
    /// The file cannot be used, or does not hold `USER:PASSWORD`.
    pub fn from_file(path: &Path) -> Result<Self, CredentialsError> {
        let secret = Secret::from_file(path)?;
        Self::parse(&secret).map_err(|_| CredentialsError::FileForm { path: path.to_owned() })
    }
}

/// Why there are no credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file cannot be used.
    #[error("the broker's credentials: {0}")]
    File(#[from] SecretError),
    /// Not of the form.
    #[error("the broker's credentials are not of the form USER:PASSWORD")]
    Form,
    /// Not of the form, in a file.
    #[error("{} does not hold USER:PASSWORD", .path.display())]
    FileForm {
        /// The file.
        path: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<String, AddressError> {
        text.parse::<Address>().map(|address| address.to_string())
    }

    #[test]
    fn addresses() {
        for (text, shown) in [
            ("amqps://broker.example", "amqps://broker.example:5671"),
            ("amqps://broker.example:5000/ccat", "amqps://broker.example:5000/ccat"),
            ("amqps://[2001:db8::1]:5000/", "amqps://[2001:db8::1]:5000"),
            ("amqp://localhost", "amqp://localhost:5672"),
            ("amqp://127.0.0.1:15673/%2f", "amqp://127.0.0.1:15673"),
            ("amqp://[::1]", "amqp://[::1]:5672"),
        ] {
            assert_eq!(parse(text).as_deref(), Ok(shown), "{text}");
        }
    }

    #[test]
    fn what_would_cross_a_network_in_clear_is_refused() {
        for host in ["broker.example", "192.0.2.1", "[2001:db8::1]", "localhost.example", "0.0.0.0"] {
            let error = parse(&format!("amqp://{host}:5672")).unwrap_err();
            assert!(matches!(error, AddressError::PlainToOthers { .. }), "{host}: {error}");
        }
    }

    #[test]
    fn passwords_in_an_address_are_refused_and_not_repeated() {
        for text in ["amqps://u:hunter2@h", "amqps://hunter2@h/v", "amqp://u:hunter2@localhost", "x://hunter2@h"] {
            let error = parse(text).unwrap_err();
            assert_eq!(error, AddressError::HoldsCredentials, "{text}");
            assert!(!error.to_string().contains("hunter2"));
        }
        for text in [
            "",
            "host",
            "http://h",
            "amqps://",
            "amqps:///v",
            "amqps://h?heartbeat=1",
            "amqps://h:99999",
            "amqps://:5671",
            "amqps://[h]",
        ] {
            assert!(matches!(parse(text), Err(AddressError::Malformed { .. })), "{text}: {:?}", parse(text));
        }
    }

    #[test]
    fn credentials_hide_their_password() {
        let credentials = Credentials::parse(&Secret::new("worker:a:b")).unwrap();
        assert_eq!((credentials.user.as_str(), credentials.password.expose()), ("worker", "a:b"));
        assert!(!format!("{credentials:?}").contains("a:b"));
        for bad in ["worker", ":b", ""] {
            assert!(Credentials::parse(&Secret::new(bad)).is_err(), "{bad}");
        }
    }
}
