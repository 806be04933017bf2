use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::PathBuf,
};

use crc_fast::{CrcAlgorithm, checksum};

use crate::harness::volumes_in;

/// The files in which an S3 server (SeaweedFS) keeps the bytes of objects; they can be changed while it runs.
///
/// A file is a superblock and then one record after the other (its version 3): cookie (4 bytes), id (8), size (4); in as
/// many bytes as the size says the length of the data (4), the data, flags and what they announce; the CRC-32C of the data
/// (4), a time (8), and padding to 8.
#[derive(Clone, Debug)]
pub(super) struct Volumes {
    folder: PathBuf,
}

/// The data of one record.
struct Data {
    at: u64,
    bytes: Vec<u8>,
    sum_at: u64,
}

const SUPERBLOCK: u64 = 8;
const HEAD: u64 = 16;
const SUM_AND_TIME: u64 = 12;
/// More than the server cuts objects into.
const MAX_DATA: u32 = 64 << 20;

impl Volumes {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Flips a bit in all data that begins so. The server finds that out by its own sum when it reads them; if `forged`,
    /// that fits again, and it gives the other bytes. Returns how many were changed.
    pub(super) fn spoil(&self, begins: &[u8], random: u64, forged: bool) -> usize {
        let mut spoilt = 0;
        for path in volumes_in(&self.folder) {
            let file = OpenOptions::new().read(true).write(true).open(&path).expect("open a volume");
            for mut data in find(&file, begins).unwrap_or_else(|e| panic!("{}: {e}", path.display())) {
                let mut sum = [0; 4];
                file.read_exact_at(&mut sum, data.sum_at).expect("read a sum");
                // Data that rotted before need no more harm, and might be made good by it.
                if u32::from_be_bytes(sum) != crc32(&data.bytes) {
                    continue;
                }
                let offset = usize::try_from(random % data.bytes.len() as u64).expect("within the data");
                data.bytes[offset] ^= 1 << (random >> 32 & 7);
                file.write_all_at(&data.bytes[offset..=offset], data.at + offset as u64).expect("change a byte");
                if forged {
                    file.write_all_at(&crc32(&data.bytes).to_be_bytes(), data.sum_at).expect("change a sum");
                }
                spoilt += 1;
            }
        }
        spoilt
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    u32::try_from(checksum(CrcAlgorithm::Crc32Iscsi, bytes)).expect("32 bits")
}

/// All data in a volume that begins so.
fn find(file: &File, begins: &[u8]) -> io::Result<Vec<Data>> {
    let (mut found, mut at, end) = (Vec::new(), SUPERBLOCK, file.metadata()?.len());
    while at + HEAD + 4 <= end {
        let number = |at| -> io::Result<u32> {
            let mut bytes = [0; 4];
            file.read_exact_at(&mut bytes, at)?;
            Ok(u32::from_be_bytes(bytes))
        };
        let size = number(at + 12)?;
        let after = at + HEAD + u64::from(size) + SUM_AND_TIME;
        // The record that the server is writing now is of nobody who waits for us.
        if after > end {
            break;
        }
        let len = if size == 0 { 0 } else { number(at + HEAD)? };
        assert!(len <= size.min(MAX_DATA), "no record of {len} bytes in {size} at {at}");
        let mut first = vec![0; begins.len()];
        if len as usize >= begins.len() {
            file.read_exact_at(&mut first, at + HEAD + 4)?;
        }
        if len > 0 && first == begins {
            let mut bytes = vec![0; len as usize];
            file.read_exact_at(&mut bytes, at + HEAD + 4)?;
            found.push(Data { at: at + HEAD + 4, bytes, sum_at: at + HEAD + u64::from(size) });
        }
        // It pads what is even, too.
        at = after + 8 - after % 8;
    }
    Ok(found)
}
