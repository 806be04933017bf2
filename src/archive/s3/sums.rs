use base64::{Engine as _, engine::general_purpose::STANDARD};
use crc_fast::{CrcAlgorithm, checksum_combine};
use md5::{Digest as _, Md5};
use sha2::Sha256;

use super::Checksum;

/// What a store is told of bytes, so that it can check them; in the words of its headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sum {
    /// CRC-64/NVME.
    Crc64Nvme(u64),
    /// SHA-256, in base64.
    Sha256(String),
    /// MD5, in base64.
    Md5(String),
}

impl Sum {
    pub(super) fn of(checksum: Checksum, bytes: &[u8]) -> Self {
        match checksum {
            Checksum::Crc64Nvme => Self::Crc64Nvme(crc64(bytes)),
            Checksum::Sha256 => Self::Sha256(STANDARD.encode(Sha256::digest(bytes))),
            Checksum::ContentMd5 => Self::Md5(STANDARD.encode(Md5::digest(bytes))),
        }
    }

    pub(super) fn crc64(&self) -> Option<String> {
        if let Self::Crc64Nvme(value) = self { Some(crc64_text(*value)) } else { None }
    }

    pub(super) fn sha256(&self) -> Option<String> {
        if let Self::Sha256(text) = self { Some(text.clone()) } else { None }
    }

    pub(super) fn md5(&self) -> Option<String> {
        if let Self::Md5(text) = self { Some(text.clone()) } else { None }
    }
}

/// What a store says of bytes that it has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) etag: String,
    pub(super) size: u64,
    pub(super) crc64: Option<String>,
    pub(super) sha256: Option<String>,
    /// Of a part: when it came, in seconds since 1970.
    pub(super) sent_at_s: Option<i64>,
}

impl Said {
    /// Whether these are the bytes that the store has. `None` where it says nothing that can be compared.
    pub(super) fn fits(&self, bytes: &[u8]) -> Option<bool> {
        if self.size != bytes.len() as u64 {
            return Some(false);
        }
        if let Some(said) = &self.sha256 {
            return Some(*said == STANDARD.encode(Sha256::digest(bytes)));
        }
        if let Some(said) = &self.crc64 {
            return Some(*said == crc64_text(crc64(bytes)));
        }
        // The MD5 of an object that came whole and is not encrypted with a key of its own; else something else, which
        // never has this form by chance alone.
        let etag = self.etag.trim_matches('"');
        (etag.len() == 32).then(|| etag.eq_ignore_ascii_case(&hex(&Md5::digest(bytes))))
    }
}

/// One of the parts that a file is sent in, as stores sum them up.
#[derive(Clone, Copy, Debug)]
pub(super) struct PartSums {
    bytes: u64,
    md5: [u8; 16],
    crc64: u64,
}

impl PartSums {
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, md5: Md5::digest(bytes).into(), crc64: crc64(bytes) }
    }
}

impl Said {
    /// Whether the store has an object of these parts in a row, sent as they are here. `None` where it says nothing that can
    /// be compared.
    pub(super) fn fits_parts(&self, parts: &[PartSums]) -> Option<bool> {
        if self.size != parts.iter().map(|part| part.bytes).sum::<u64>() {
            return Some(false);
        }
        // One of the whole object; a sum of the parts' sums has their number behind it.
        if let Some(said) = self.crc64.as_ref().filter(|said| !said.contains('-')) {
            return Some(*said == crc64_of_all(parts.iter().map(|part| (part.crc64, part.bytes))));
        }
        let (digest, count) = self.etag.trim_matches('"').split_once('-')?;
        if digest.len() != 32 || count.parse() != Ok(parts.len()) {
            return None;
        }
        let of_all = parts.iter().fold(Md5::new(), |all, part| all.chain_update(part.md5)).finalize();
        Some(digest.eq_ignore_ascii_case(&hex(&of_all)))
    }
}

/// The CRC-64/NVME of parts in a row, as (value, bytes), as headers have it.
pub(super) fn crc64_of_all(parts: impl IntoIterator<Item = (u64, u64)>) -> String {
    let whole = parts
        .into_iter()
        .reduce(|(whole, before), (value, bytes)| {
            (checksum_combine(CrcAlgorithm::Crc64Nvme, whole, value, bytes), before + bytes)
        })
        .map_or(0, |(whole, _)| whole);
    crc64_text(whole)
}

fn crc64(bytes: &[u8]) -> u64 {
    crc_fast::checksum(CrcAlgorithm::Crc64Nvme, bytes)
}

fn crc64_text(value: u64) -> String {
    STANDARD.encode(value.to_be_bytes())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_other_programs() {
        let bytes = b"123456789";
        // The check value of CRC-64/NVME in the catalogue of CRCs.
        assert_eq!(Sum::of(Checksum::Crc64Nvme, bytes), Sum::Crc64Nvme(0xae8b_1486_0a79_9888));
        assert_eq!(Sum::of(Checksum::Crc64Nvme, bytes).crc64().unwrap(), "rosUhgp5mIg=");
        assert_eq!(Sum::of(Checksum::Sha256, bytes).sha256().unwrap(), "FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU=");
        assert_eq!(Sum::of(Checksum::ContentMd5, bytes).md5().unwrap(), "JfnnlDI7RTiF9RgfG2JNCw==");
    }

    #[test]
    fn the_parts_make_the_whole() {
        let bytes: Vec<u8> = (0..30_000u32).flat_map(u32::to_le_bytes).collect();
        let parts = bytes.chunks(30_001).map(|part| (crc64(part), part.len() as u64));
        assert_eq!(crc64_of_all(parts), crc64_text(crc64(&bytes)));
        assert_eq!(crc64_of_all([]), crc64_text(crc64(&[])));
    }

    #[test]
    fn an_object_of_parts_is_known_by_the_sum_of_their_sums() {
        let parts: Vec<_> = [&b"12345"[..], b"6789"].map(PartSums::of).into();
        let of_two: Vec<u8> = [&b"12345"[..], b"6789"].iter().flat_map(Md5::digest).collect();
        let etag = |count| format!("\"{}-{count}\"", hex(&Md5::digest(&of_two)));
        let said = Said { etag: etag(2), size: 9, ..Said::default() };
        assert_eq!(said.fits_parts(&parts), Some(true));
        assert_eq!(Said { size: 8, ..said.clone() }.fits_parts(&parts), Some(false));
        assert_eq!(said.fits_parts(&[PartSums::of(b"12345"), PartSums::of(b"6788")]), Some(false));
        assert_eq!(Said { etag: etag(3), ..said.clone() }.fits_parts(&parts), None, "cut in another way");
        assert_eq!(
            Said { etag: "\"25f9e794323b453885f5181f1b624d0b\"".into(), ..said.clone() }.fits_parts(&parts),
            None
        );
        let crc = |text: &str| Said { crc64: Some(text.to_owned()), etag: etag(3), ..said.clone() };
        assert_eq!(crc("rosUhgp5mIg=").fits_parts(&parts), Some(true));
        assert_eq!(crc("rosUhgp5mIk=").fits_parts(&parts), Some(false));
        assert_eq!(crc("rosUhgp5mIk=-2").fits_parts(&parts), None, "no sum of the whole");
    }

    #[test]
    fn what_a_store_has_is_compared_by_the_best_that_it_says() {
        let said = |etag: &str| Said { etag: etag.to_owned(), size: 9, ..Said::default() };
        let right = said("\"25f9e794323b453885f5181f1b624d0b\"");
        assert_eq!(right.fits(b"123456789"), Some(true));
        assert_eq!(right.fits(b"123456780"), Some(false));
        assert_eq!(right.fits(b"12345678"), Some(false));
        assert_eq!(said("\"25f9e794323b453885f5181f1b624d0b-2\"").fits(b"123456789"), None);
        assert_eq!(said("").fits(b"123456789"), None);
        let crc = Said { crc64: Some("rosUhgp5mIg=".to_owned()), ..said("x") };
        assert_eq!((crc.fits(b"123456789"), crc.fits(b"123456788")), (Some(true), Some(false)));
        let wrong = Said { sha256: Some("AAAA".to_owned()), ..crc };
        assert_eq!(wrong.fits(b"123456789"), Some(false));
    }
}
