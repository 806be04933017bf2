//! The generated tree of the demo: the same bytes on every machine.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, symlink},
    },
    path::Path,
};

use tokio_util::sync::CancellationToken;

/// What to generate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Large files and the size of each, in bytes.
    pub(super) large: (u64, u64),
    /// Folders of small files.
    pub(super) nights: u64,
    /// Small files in each; 1 to 16 KiB each.
    pub(super) frames: u64,
}

impl Shape {
    /// About 150 MB, in eight packages.
    pub(super) const DEMO: Self = Self { large: (4, 32 << 20), nights: 3, frames: 600 };
}

/// Makes packages in a new folder: large files, folders of small files, and a folder of odd things.
pub(super) fn make(folder: &Path, shape: Shape, cancel: &CancellationToken) -> io::Result<()> {
    fs::create_dir(folder)?;
    for number in 0..shape.large.0 {
        write(&folder.join(format!("scan-{number}.dat")), number, shape.large.1, cancel)?;
    }
    for night in 0..shape.nights {
        let at = folder.join(format!("night-{night:02}"));
        fs::create_dir(&at)?;
        for number in night * shape.frames..(night + 1) * shape.frames {
            // 1 to 16 KiB, in no order.
            let size = 1024 + number.wrapping_mul(7919) % (15 << 10);
            write(&at.join(format!("frame-{number:05}.fits")), (1 << 32) + number, size, cancel)?;
        }
    }
    let odd = folder.join("odd");
    fs::create_dir(&odd)?;
    fs::create_dir(odd.join("empty folder"))?;
    File::create_new(odd.join("empty file"))?;
    symlink("../scan-0.dat", odd.join("link"))?;
    for name in [&b"a name with spaces"[..], b"new\nline", b"not UTF-8 \xff", "M\u{fc}nchen".as_bytes()] {
        write(&odd.join(OsStr::from_bytes(name)), 1 << 33, 1000, cancel)?;
    }
    // 64 MiB with two islands of data.
    let sparse = File::create_new(odd.join("sparse"))?;
    sparse.write_all_at(b"first island", 1 << 20)?;
    sparse.write_all_at(b"second island", 50 << 20)?;
    sparse.set_len(64 << 20)
}

/// Bytes that do not compress, from the extendable output of BLAKE3 over the seed.
fn write(path: &Path, seed: u64, size: u64, cancel: &CancellationToken) -> io::Result<()> {
    let mut source = blake3::Hasher::new().update(b"ccat-xfer demo").update(&seed.to_le_bytes()).finalize_xof();
    let mut file = File::create_new(path)?;
    let mut block = vec![0; 64 << 10];
    let mut left = size;
    while left > 0 {
        if cancel.is_cancelled() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
        source.fill(&mut block[..len]);
        file.write_all(&block[..len])?;
        left -= u64::try_from(len).unwrap_or(left);
    }
    Ok(())
}
