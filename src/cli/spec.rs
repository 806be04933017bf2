//! What SOURCE and DEST mean.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::PathBuf,
};

use crate::{
    chunk::escape_bytes,
    config::Settings,
    engine::{Direction, Remote, RemotePath},
};

/// The port of an endpoint that is named without one.
pub(super) const DEFAULT_PORT: u16 = 8422;

/// One SOURCE or DEST as typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Spec {
    /// A path of this machine.
    Local(PathBuf),
    /// `[USER@]HOST:PATH`, reached by ssh.
    Ssh {
        /// `[USER@]HOST` as ssh takes it: an IPv6 address without its brackets.
        target: String,
        /// As typed; empty means the home folder.
        path: Vec<u8>,
    },
    /// `xfer://HOST[:PORT]/LOCATION/PATH`, a running endpoint.
    Endpoint {
        /// Name or address, without brackets.
        host: String,
        /// UDP and TCP port.
        port: u16,
        /// The location's name.
        location: String,
        /// As typed, relative to the location.
        path: Vec<u8>,
    },
}

/// Words that make no job. Each says what to type instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SpecError {
    #[error("an empty path; name a file or folder, or . for the current folder")]
    Empty,
    #[error("{0}: no host before the ':'; write HOST:PATH, or ./{0} for a local file")]
    NoHost(String),
    #[error("{0}: a host or user must not begin with '-'; for a local file write ./{0}")]
    Dash(String),
    #[error("{0}: this is not a host or user name; for a local file write ./{0}")]
    BadHost(String),
    #[error("{0}: rsync's daemons are not spoken to; write HOST:PATH (ssh) or xfer://HOST/LOCATION/PATH")]
    Daemon(String),
    #[error("{0}: {1}; an endpoint is written xfer://HOST[:PORT]/LOCATION/PATH")]
    BadEndpoint(String, &'static str),
    #[error("{0}: a remote path must not have '..' in it")]
    DotDot(String),
    #[error("two remote ends ({0} and {1}); run the command on one of the two, so that one end is local")]
    TwoRemote(String, String),
    #[error(
        "no remote end; {verb} needs {place} to be HOST:PATH or xfer://HOST/LOCATION/PATH (for a local copy use cp)"
    )]
    NoRemote { verb: &'static str, place: &'static str },
    #[error("{0} is remote and the destination is local; to fetch, use recv")]
    UseRecv(String),
    #[error("{0} is remote and the sources are local; to push, use send")]
    UseSend(String),
    #[error("the sources {0} and {1} are not all at one remote end; fetch them by one command each")]
    ManyRemotes(String, String),
}

impl Spec {
    /// Parses one word. A path with a ':' after its first '/' is local, as with rsync.
    pub(super) fn parse(word: &OsStr) -> Result<Self, SpecError> {
        let bytes = word.as_bytes();
        let shown = || escape_bytes(bytes);
        if bytes.is_empty() {
            return Err(SpecError::Empty);
        }
        if let Some(rest) = bytes.strip_prefix(b"xfer://") {
            return Self::endpoint(rest).map_err(|error| match error {
                EndpointFault::Other(why) => SpecError::BadEndpoint(shown(), why),
                EndpointFault::Dash => SpecError::Dash(shown()),
                EndpointFault::DotDot => SpecError::DotDot(shown()),
            });
        }
        let Some((head, path)) = split_host(bytes) else { return Ok(Self::Local(PathBuf::from(word))) };
        if bytes.starts_with(b"rsync://") || (path.starts_with(b":") && !path.starts_with(b":/")) {
            return Err(SpecError::Daemon(shown()));
        }
        let (user, host) = match head.iter().rposition(|&b| b == b'@') {
            Some(at) => (Some(&head[..at]), &head[at + 1..]),
            None => (None, head),
        };
        if host.is_empty() {
            return Err(SpecError::NoHost(shown()));
        }
        if host.starts_with(b"-") || user.is_some_and(|user| user.starts_with(b"-")) {
            return Err(SpecError::Dash(shown()));
        }
        let (Some(host), Some(user)) = (host_name(host), user.map(user_name).map_or(Some(None), |u| u.map(Some)))
        else {
            return Err(SpecError::BadHost(shown()));
        };
        let target = match user {
            Some(user) => format!("{user}@{host}"),
            None => host.to_owned(),
        };
        Ok(Self::Ssh { target, path: path.to_vec() })
    }

    fn endpoint(rest: &[u8]) -> Result<Self, EndpointFault> {
        let (authority, tail) = match rest.iter().position(|&b| b == b'/') {
            Some(slash) => (&rest[..slash], &rest[slash + 1..]),
            None => (rest, &b""[..]),
        };
        if authority.contains(&b'@') {
            return Err(EndpointFault::Other("no user name belongs here, certificates say who asks"));
        }
        let (host, port) = if authority.starts_with(b"[") {
            let end = authority.iter().position(|&b| b == b']').ok_or(EndpointFault::Other("a ']' is missing"))?;
            let (host, after) = authority.split_at(end + 1);
            match after {
                b"" => (host, None),
                [b':', port @ ..] => (host, Some(port)),
                _ => return Err(EndpointFault::Other("only :PORT may follow the ']'")),
            }
        } else {
            match authority.iter().position(|&b| b == b':') {
                Some(colon) => (&authority[..colon], Some(&authority[colon + 1..])),
                None => (authority, None),
            }
        };
        if host.starts_with(b"-") {
            return Err(EndpointFault::Dash);
        }
        let host = host_name(host).ok_or(EndpointFault::Other("the host is missing or has strange characters"))?;
        let port = match port {
            None => DEFAULT_PORT,
            Some(digits) => std::str::from_utf8(digits)
                .ok()
                .filter(|text| text.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|text| text.parse().ok())
                .filter(|&port| port > 0)
                .ok_or(EndpointFault::Other("the port is not a number from 1 to 65535"))?,
        };
        let (location, path) = match tail.iter().position(|&b| b == b'/') {
            Some(slash) => (&tail[..slash], &tail[slash + 1..]),
            None => (tail, &b""[..]),
        };
        let location = std::str::from_utf8(location)
            .ok()
            .filter(|text| !text.is_empty() && !text.starts_with('.') && !text.contains(char::is_control))
            .ok_or(EndpointFault::Other("the location is missing or has strange characters"))?;
        if path.split(|&b| b == b'/').any(|name| name == b"..") {
            return Err(EndpointFault::DotDot);
        }
        Ok(Self::Endpoint { host: host.to_owned(), port, location: location.to_owned(), path: path.to_vec() })
    }

    /// The remote end and the path there; `None` for a local path.
    fn remote(&self, settings: &Settings, reverse: bool) -> Option<(Remote, RemotePath)> {
        match self {
            Self::Local(_) => None,
            Self::Ssh { target, path } => Some((
                Remote::Ssh {
                    target: target.clone(),
                    rsh: settings.rsh.clone(),
                    remote_path: settings.remote_path.clone(),
                    ports: settings.port_range.clone(),
                    data_address: settings.data_address.clone(),
                    reverse,
                },
                RemotePath { location: None, path: path.clone() },
            )),
            Self::Endpoint { host, port, location, path } => Some((
                Remote::Endpoint { host: host.clone(), port: *port },
                RemotePath { location: Some(location.clone()), path: path.clone() },
            )),
        }
    }
}

enum EndpointFault {
    Other(&'static str),
    Dash,
    DotDot,
}

/// Which of the two commands was typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Send,
    Recv,
}

/// Makes a job of the words of `send` or `recv`.
pub(super) fn job(
    verb: Verb,
    sources: &[OsString],
    destination: &OsStr,
    settings: &Settings,
    reverse: bool,
) -> Result<(Direction, Remote), SpecError> {
    let far = Spec::parse(destination)?;
    let near = sources.iter().map(|word| Spec::parse(word)).collect::<Result<Vec<_>, _>>()?;
    let shown = |word: &OsStr| escape_bytes(word.as_bytes());
    let first_remote = near.iter().zip(sources).find(|(spec, _)| !matches!(spec, Spec::Local(_))).map(|(_, word)| word);
    let to = far.remote(settings, reverse);
    if let (Some(_), Some(word)) = (&to, first_remote) {
        return Err(SpecError::TwoRemote(shown(word), shown(destination)));
    }
    match (verb, to, far) {
        (Verb::Send, Some((remote, destination)), _) => {
            let sources = near.into_iter().filter_map(|s| if let Spec::Local(path) = s { Some(path) } else { None });
            Ok((Direction::Push { sources: sources.collect(), destination }, remote))
        }
        (Verb::Send, None, _) => Err(match first_remote {
            Some(word) => SpecError::UseRecv(shown(word)),
            None => SpecError::NoRemote { verb: "send", place: "DEST" },
        }),
        (Verb::Recv, None, Spec::Local(destination)) => {
            let mut remote = None;
            let mut paths = Vec::new();
            for (spec, word) in near.iter().zip(sources) {
                let Some((at, path)) = spec.remote(settings, reverse) else {
                    return Err(match first_remote {
                        Some(other) => SpecError::ManyRemotes(shown(other), shown(word)),
                        None => SpecError::NoRemote { verb: "recv", place: "SOURCE" },
                    });
                };
                match &remote {
                    Some(first) if *first != at => {
                        return Err(SpecError::ManyRemotes(
                            sources.first().map_or_else(String::new, |w| shown(w)),
                            shown(word),
                        ));
                    }
                    _ => remote = Some(at),
                }
                paths.push(path);
            }
            let remote = remote.ok_or(SpecError::NoRemote { verb: "recv", place: "SOURCE" })?;
            Ok((Direction::Pull { sources: paths, destination }, remote))
        }
        (Verb::Recv, _, _) => Err(SpecError::UseSend(shown(destination))),
    }
}

/// Splits `HOST:PATH` at the colon that ends the host; `None` when the word is a local path.
fn split_host(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    // An IPv6 address in brackets holds colons of its own: [::1]:p or user@[::1]:p.
    let bracket = bytes.iter().position(|&b| b == b'[' || b == b':' || b == b'/');
    if let Some(open) = bracket.filter(|&at| bytes[at] == b'[' && (at == 0 || bytes[at - 1] == b'@')) {
        let close = open + bytes[open..].iter().position(|&b| b == b']')?;
        return match bytes.get(close + 1) {
            Some(b':') => Some((&bytes[..=close], &bytes[close + 2..])),
            _ => None,
        };
    }
    let colon = bytes.iter().position(|&b| b == b':')?;
    if bytes[..colon].contains(&b'/') {
        return None;
    }
    Some((&bytes[..colon], &bytes[colon + 1..]))
}

/// A host as ssh and resolvers take it, brackets removed; `None` when it has characters that no host has. What a shell
/// or ssh's own configuration could read as something else stays out (CVE-2023-51385).
fn host_name(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?;
    let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    let (name, colons) = inner.map_or((text, false), |name| (name, true));
    let allowed =
        |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | '+') || (colons && matches!(c, ':' | '%'));
    (!name.is_empty() && !name.starts_with('-') && name.chars().all(allowed)).then_some(name)
}

fn user_name(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?;
    let allowed = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | '+' | '@' | '=' | ',' | '\\');
    (!text.is_empty() && !text.starts_with('-') && text.chars().all(allowed)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(word: &str) -> Result<Spec, SpecError> {
        Spec::parse(OsStr::new(word))
    }

    fn ssh(target: &str, path: &str) -> Spec {
        Spec::Ssh { target: target.into(), path: path.into() }
    }

    fn endpoint(host: &str, port: u16, location: &str, path: &str) -> Spec {
        Spec::Endpoint { host: host.into(), port, location: location.into(), path: path.into() }
    }

    #[test]
    fn words_and_what_they_mean() {
        for (word, spec) in [
            ("a", Spec::Local("a".into())),
            ("/a:b", Spec::Local("/a:b".into())),
            ("./a:b", Spec::Local("./a:b".into())),
            ("d/a:b", Spec::Local("d/a:b".into())),
            ("-a", Spec::Local("-a".into())),
            ("[x]", Spec::Local("[x]".into())),
            ("[x]y:z", Spec::Local("[x]y:z".into())),
            ("file://x", ssh("file", "//x")),
            ("h:", ssh("h", "")),
            ("h:p", ssh("h", "p")),
            ("h:/p/", ssh("h", "/p/")),
            ("h:p:q", ssh("h", "p:q")),
            ("u@h:p", ssh("u@h", "p")),
            ("u@dom@h:p", ssh("u@dom@h", "p")),
            ("h:../p", ssh("h", "../p")),
            ("h:-p", ssh("h", "-p")),
            ("h:@p", ssh("h", "@p")),
            ("[::1]:p", ssh("::1", "p")),
            ("u@[fe80::1%eth0]:/p", ssh("u@fe80::1%eth0", "/p")),
            ("xfer://h/loc/p/q", endpoint("h", DEFAULT_PORT, "loc", "p/q")),
            ("xfer://h:99/loc/", endpoint("h", 99, "loc", "")),
            ("xfer://h/loc", endpoint("h", DEFAULT_PORT, "loc", "")),
            ("xfer://[::1]:99/loc/p/", endpoint("::1", 99, "loc", "p/")),
            ("xfer://[::1]/loc", endpoint("::1", DEFAULT_PORT, "loc", "")),
        ] {
            assert_eq!(parse(word), Ok(spec), "{word}");
        }
    }

    #[test]
    fn words_that_are_refused() {
        for word in [
            "",
            ":p",
            "@h:p",
            "u@:p",
            "-oProxyCommand=x:p",
            "-h:p",
            "-u@h:p",
            "u@-h:p",
            "h h:p",
            "h;id:p",
            "$(id):p",
            "`id`@h:p",
            "h\n:p",
            "[-oX]:p",
            "[]:p",
            "h::module",
            "rsync://h/m",
            "xfer://",
            "xfer:///loc/p",
            "xfer://h",
            "xfer://h/",
            "xfer://h//p",
            "xfer://h:0/loc",
            "xfer://h:99999/loc",
            "xfer://h:+9/loc",
            "xfer://h:/loc",
            "xfer://u@h/loc",
            "xfer://-h/loc",
            "xfer://[::1/loc",
            "xfer://[::1]9/loc",
            "xfer://h/../p",
            "xfer://h/loc/../p",
            "xfer://h/loc/p/..",
        ] {
            assert!(parse(word).is_err(), "{word}: {:?}", parse(word));
        }
        assert_eq!(parse("-oProxyCommand=x:p"), Err(SpecError::Dash("-oProxyCommand=x:p".into())));
    }

    fn jobs(verb: Verb, words: &[&str]) -> Result<(Direction, Remote), SpecError> {
        let words: Vec<OsString> = words.iter().map(Into::into).collect();
        let (destination, sources) = words.split_last().unwrap();
        job(verb, sources, destination, &Settings::default(), false)
    }

    #[test]
    fn one_end_is_remote() {
        use Verb::{Recv, Send};
        let (direction, remote) = jobs(Send, &["a", "b/", "u@h:d"]).unwrap();
        assert!(
            matches!(&remote, Remote::Ssh { target, remote_path, .. } if target == "u@h" && remote_path == "ccat-xfer")
        );
        let Direction::Push { sources, destination } = direction else { panic!() };
        assert_eq!(sources, [PathBuf::from("a"), PathBuf::from("b/")]);
        assert_eq!(sources[1].as_os_str(), "b/");
        assert_eq!(destination, RemotePath { location: None, path: b"d".to_vec() });

        let (direction, remote) = jobs(Recv, &["xfer://h/l/a", "xfer://h/m/b", "d"]).unwrap();
        assert_eq!(remote, Remote::Endpoint { host: "h".into(), port: DEFAULT_PORT });
        let Direction::Pull { sources, .. } = direction else { panic!() };
        assert_eq!(sources[1], RemotePath { location: Some("m".into()), path: b"b".to_vec() });

        assert!(matches!(jobs(Send, &["g:a", "h:b"]), Err(SpecError::TwoRemote(..))));
        assert!(matches!(jobs(Recv, &["g:a", "h:b"]), Err(SpecError::TwoRemote(..))));
        assert!(matches!(jobs(Send, &["g:a", "b"]), Err(SpecError::UseRecv(_))));
        assert!(matches!(jobs(Send, &["a", "b"]), Err(SpecError::NoRemote { .. })));
        assert!(matches!(jobs(Recv, &["a", "b"]), Err(SpecError::NoRemote { .. })));
        assert!(matches!(jobs(Recv, &["a", "h:b"]), Err(SpecError::UseSend(_))));
        assert!(matches!(jobs(Recv, &["g:a", "h:b", "d"]), Err(SpecError::ManyRemotes(..))));
        assert!(matches!(jobs(Recv, &["g:a", "b", "d"]), Err(SpecError::ManyRemotes(..))));
    }

    proptest! {
        /// Whatever is typed, ssh never gets a word that it could read as an option.
        #[test]
        fn no_target_begins_with_a_dash(bytes in prop::collection::vec(
            prop_oneof![Just(b'-'), Just(b'@'), Just(b':'), Just(b'['), Just(b']'), Just(b'/'), any::<u8>()], 0..12)) {
            if let Ok(Spec::Ssh { target, .. }) = Spec::parse(OsStr::from_bytes(&bytes)) {
                prop_assert!(!target.starts_with('-') && !target.is_empty());
                let host = target.rsplit('@').next().unwrap();
                prop_assert!(!host.starts_with('-') && !host.is_empty());
                prop_assert!(!target.contains(|c: char| c.is_whitespace() || c.is_control() || "'\"`$;&|<>".contains(c)));
            }
        }

        /// A path after a slash is never read as a host.
        #[test]
        fn what_has_a_slash_first_is_local(tail in "[a-z:@\\[\\]./-]{0,12}") {
            let word = format!("./{tail}");
            prop_assert_eq!(parse(&word), Ok(Spec::Local(word.clone().into())));
        }
    }
}
