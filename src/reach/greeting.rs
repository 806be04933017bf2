//! What the two ends tell each other over ssh before any link is up: JSON behind a magic line and a length.
//!
//! A login shell may print a banner first; everything before the magic line is skipped, up to a limit.

use std::net::IpAddr;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Announces a greeting.
const MAGIC: &[u8] = b"\nccat-xfer greeting 1\n";
/// Longest banner in front of it.
const MAX_BANNER_BYTES: usize = 64 << 10;
/// Longest greeting.
const MAX_GREETING_BYTES: u32 = 64 << 10;

/// From the starter to the program that it started.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Call {
    /// Program and version.
    pub(super) program: String,
    /// The session, as hexadecimal digits.
    pub(super) session: String,
    /// Its secret, as hexadecimal digits.
    pub(super) secret: String,
    /// Fingerprint of the starter's throw-away key.
    pub(super) fingerprint: String,
    /// Addresses and port at which the starter listens; port 0: it does not.
    pub(super) addresses: Vec<IpAddr>,
    /// See `addresses`.
    pub(super) port: u16,
    /// `auto`, `quic`, `tcp` or `ssh`.
    pub(super) transport: String,
    /// QUIC's congestion controller.
    pub(super) congestion: String,
    /// The far side must not listen: only it dials.
    pub(super) reverse: bool,
    /// Ports that the far side may listen on.
    pub(super) ports: (u16, u16),
    /// TCP connections wanted.
    pub(super) connections: usize,
    /// Chunk size in bytes.
    pub(super) chunk_bytes: u64,
    /// Bytes of buffers that the far side may use.
    pub(super) memory_bytes: usize,
    /// How long the far side waits for lost links, in seconds.
    pub(super) reconnect_s: u64,
}

/// The answer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Answer {
    /// Program and version.
    pub(super) program: String,
    /// Fingerprint of the far side's throw-away key.
    pub(super) fingerprint: String,
    /// Addresses at which the far side may be reached, as far as it knows.
    pub(super) addresses: Vec<IpAddr>,
    /// Port at which it listens; 0: it does not.
    pub(super) port: u16,
    /// What kept it from listening.
    pub(super) trouble: Option<String>,
}

/// Why a greeting did not come.
#[derive(Debug, thiserror::Error)]
pub(super) enum GreetingError {
    #[error("the connection ended before the far program answered{}", shown(.0))]
    Ended(Vec<u8>),
    #[error("{} bytes came that are no greeting; is there a program that prints on login?{}", .0.len(), shown(.0))]
    Noise(Vec<u8>),
    #[error("the greeting cannot be read: {0}; see that both ends run the same version")]
    Unreadable(String),
    #[error("the connection failed: {0}")]
    Io(#[from] std::io::Error),
}

fn shown(noise: &[u8]) -> String {
    let text = crate::chunk::escape_bytes(&noise[..noise.len().min(400)]);
    if text.trim().is_empty() { String::new() } else { format!(" (it printed: {text})") }
}

pub(super) async fn write<T: Serialize>(to: &mut (impl AsyncWrite + Unpin), value: &T) -> std::io::Result<()> {
    let json = serde_json::to_vec(value).map_err(std::io::Error::other)?;
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&u32::try_from(json.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(&json);
    to.write_all(&out).await?;
    to.flush().await
}

pub(super) async fn read<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin)) -> Result<T, GreetingError> {
    let mut seen = Vec::new();
    while !seen.ends_with(MAGIC) {
        if seen.len() >= MAX_BANNER_BYTES {
            return Err(GreetingError::Noise(seen));
        }
        match from.read_u8().await {
            Ok(byte) => seen.push(byte),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Err(GreetingError::Ended(seen)),
            Err(e) => return Err(e.into()),
        }
    }
    let len = from.read_u32_le().await?;
    if len > MAX_GREETING_BYTES {
        return Err(GreetingError::Unreadable(format!("it claims {len} bytes")));
    }
    let mut json = vec![0; usize::try_from(len).unwrap_or(0)];
    from.read_exact(&mut json).await?;
    serde_json::from_slice(&json).map_err(|e| GreetingError::Unreadable(e.to_string()))
}

/// Bytes as hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}

/// Exactly `N` bytes from hexadecimal digits.
pub(super) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut out = [0; N];
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn greetings_come_through_banners() {
        let answer = Answer {
            program: "p".into(),
            fingerprint: "f".into(),
            addresses: vec!["::1".parse().unwrap()],
            port: 1,
            trouble: None,
        };
        let mut wire = b"Welcome to host\nYou have mail.".to_vec();
        write(&mut wire, &answer).await.unwrap();
        let read: Answer = read(&mut wire.as_slice()).await.unwrap();
        assert_eq!((read.port, read.addresses), (1, answer.addresses));
    }

    #[tokio::test]
    async fn noise_and_silence_are_told_apart() {
        let noise = vec![b'x'; MAX_BANNER_BYTES + 10];
        assert!(matches!(read::<Answer>(&mut noise.as_slice()).await, Err(GreetingError::Noise(_))));
        let error = read::<Answer>(&mut &b"command not found"[..]).await.unwrap_err();
        assert!(error.to_string().contains("command not found"), "{error}");
    }

    #[test]
    fn hex_roundtrips() {
        assert_eq!(unhex::<3>(&hex(&[0, 127, 255])), Some([0, 127, 255]));
        assert_eq!(unhex::<3>("00"), None);
        assert_eq!(unhex::<1>("zz"), None);
    }
}
