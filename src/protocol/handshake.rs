use super::{Class, FrameKind, MAX_TEXT_BYTES, Malformed, ProtocolError, Reader, Writer};

/// First bytes of a link's first frame.
const MAGIC: [u8; 8] = *b"CCATXFER";
/// The protocol version that this program speaks.
pub const PROTOCOL_VERSION: u16 = 1;

/// Names a session.
pub type SessionId = [u8; 16];

/// What both ends of a session know and nobody else does.
#[derive(Clone, PartialEq, Eq)]
pub struct SessionSecret(pub [u8; 32]);

impl std::fmt::Debug for SessionSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionSecret(..)")
    }
}

/// Who proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkSide {
    /// The side that opened the connection.
    Dialer,
    /// The side that accepted it.
    Listener,
}

/// Proof of knowing a session's secret, bound to one link by the TLS exporter value of its connection (RFC 9266 uses
/// the same idea), so that a proof seen on one link is worth nothing on another.
pub fn link_proof(secret: &SessionSecret, session: &SessionId, side: LinkSide, binding: &[u8; 32]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_keyed(&secret.0);
    hasher.update(b"ccat-xfer link proof 1");
    hasher.update(session);
    hasher.update(&[match side {
        LinkSide::Dialer => 1,
        LinkSide::Listener => 2,
    }]);
    hasher.update(binding);
    *hasher.finalize().as_bytes()
}

/// The dialing side's first frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkHello {
    /// Protocol version of the dialing side.
    pub version: u16,
    /// Which session.
    pub session: SessionId,
    /// Opens the session if it is not there yet: its secret, told to a peer that TLS has authenticated. `None` joins
    /// only.
    pub open: Option<SessionSecret>,
    /// [`link_proof`] of [`LinkSide::Dialer`].
    pub proof: [u8; 32],
}

/// The listening side's first frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkAnswer {
    /// The link belongs to the session.
    Accept {
        /// Protocol version that will be spoken.
        version: u16,
        /// [`link_proof`] of [`LinkSide::Listener`].
        proof: [u8; 32],
    },
    /// It does not.
    Refuse {
        /// Who is at fault.
        class: Class,
        /// For a human.
        text: String,
    },
}

impl LinkHello {
    /// The body of its frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.raw(&MAGIC).u16(self.version).raw(&self.session);
        match &self.open {
            Some(secret) => w.bool(true).raw(&secret.0),
            None => w.bool(false),
        };
        w.raw(&self.proof);
        w.into_bytes()
    }

    /// Reads the body. Bytes behind the known fields are left to later versions.
    pub fn decode(bytes: &[u8]) -> Result<Self, ProtocolError> {
        let mut r = Reader::new(bytes, "link hello");
        if r.array()? != MAGIC {
            return Err(r.error(Malformed::Unknown(0)));
        }
        let version = r.u16()?;
        if version == 0 {
            return Err(r.error(Malformed::Unknown(0)));
        }
        Ok(Self {
            version,
            session: r.array()?,
            open: if r.bool()? { Some(SessionSecret(r.array()?)) } else { None },
            proof: r.array()?,
        })
    }
}

impl LinkAnswer {
    /// The kind of its frame.
    pub fn kind(&self) -> FrameKind {
        match self {
            Self::Accept { .. } => FrameKind::LinkAccept,
            Self::Refuse { .. } => FrameKind::LinkRefuse,
        }
    }

    /// The body of its frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        match self {
            Self::Accept { version, proof } => w.u16(*version).raw(proof),
            Self::Refuse { class, text } => w.u8(class.code()).bytes16(text.as_bytes(), MAX_TEXT_BYTES),
        };
        w.into_bytes()
    }

    /// Reads the body of a frame of `kind`.
    pub fn decode(kind: FrameKind, bytes: &[u8]) -> Result<Self, ProtocolError> {
        let mut r = Reader::new(bytes, "link answer");
        match kind {
            FrameKind::LinkAccept => Ok(Self::Accept { version: r.u16()?, proof: r.array()? }),
            FrameKind::LinkRefuse => {
                Ok(Self::Refuse { class: Class::from_code(r.u8()?), text: r.text16(MAX_TEXT_BYTES)? })
            }
            _ => Err(ProtocolError::PeerMisbehaved("its first frame is no answer to a link hello")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proofs_differ_by_side_link_session_and_secret() {
        let (s, id, b) = (SessionSecret([1; 32]), [2; 16], [3; 32]);
        let base = link_proof(&s, &id, LinkSide::Dialer, &b);
        assert_ne!(base, link_proof(&s, &id, LinkSide::Listener, &b));
        assert_ne!(base, link_proof(&s, &id, LinkSide::Dialer, &[4; 32]));
        assert_ne!(base, link_proof(&s, &[4; 16], LinkSide::Dialer, &b));
        assert_ne!(base, link_proof(&SessionSecret([4; 32]), &id, LinkSide::Dialer, &b));
        assert!(!format!("{s:?}").contains('1'));
    }

    #[test]
    fn hellos_roundtrip() {
        for open in [None, Some(SessionSecret([9; 32]))] {
            let hello = LinkHello { version: 1, session: [1; 16], open, proof: [2; 32] };
            let bytes = hello.encode();
            assert_eq!(LinkHello::decode(&bytes).unwrap(), hello);
            for n in 0..bytes.len() {
                assert!(LinkHello::decode(&bytes[..n]).is_err());
            }
        }
        assert!(LinkHello::decode(&[0; 200]).is_err());
    }
}
