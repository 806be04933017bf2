use std::{fs::File, io, os::unix::fs::FileExt as _};

use rustix::{
    fs::{FallocateFlags, SeekFrom},
    io::Errno,
};

/// A run of data in a file with holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Offset of its first byte.
    pub start: u64,
    /// Its length in bytes; never 0.
    pub len: u64,
}

/// The first run of data at or after `from` in a file of `size` bytes; `None` if only a hole follows.
///
/// A file system that cannot tell answers that all is data.
pub fn next_data(file: &File, from: u64, size: u64) -> io::Result<Option<Extent>> {
    if from >= size {
        return Ok(None);
    }
    let rest = Extent { start: from, len: size - from };
    let start = match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(rest)),
        Err(e) => return Err(e.into()),
    };
    if start >= size {
        return Ok(None);
    }
    let end = match rustix::fs::seek(file, SeekFrom::Hole(start)) {
        Ok(end) => end.clamp(start + 1, size),
        // The file shrank since; what is read will show it.
        Err(Errno::NXIO) => size,
        Err(e) => return Err(e.into()),
    };
    Ok(Some(Extent { start, len: end - start }))
}

/// Writes `data` at `offset`, leaving runs of zeros as holes.
///
/// `fresh` says that nothing was ever written in this range; otherwise holes are punched.
pub fn write_sparse(file: &File, data: &[u8], offset: u64, fresh: bool) -> io::Result<()> {
    // The first piece ends at a block boundary of the file, so that whole blocks stay unwritten.
    let lead = usize::try_from(offset.wrapping_neg() % BLOCK).unwrap_or(0).min(data.len());
    let (head, body) = data.split_at(lead);
    let block = usize::try_from(BLOCK).unwrap_or(4096);
    let pieces = Some(head).into_iter().chain(body.chunks(block)).filter(|piece| !piece.is_empty());

    let mut run: Option<(bool, usize, usize)> = None;
    let mut at = 0;
    for piece in pieces {
        let zero = is_zero(piece);
        run = match run {
            Some((was_zero, start, len)) if was_zero == zero => Some((zero, start, len + piece.len())),
            Some(done) => {
                write_run(file, data, offset, fresh, done)?;
                Some((zero, at, piece.len()))
            }
            None => Some((zero, at, piece.len())),
        };
        at += piece.len();
    }
    run.map_or(Ok(()), |done| write_run(file, data, offset, fresh, done))
}

fn write_run(
    file: &File,
    data: &[u8],
    offset: u64,
    fresh: bool,
    (zero, start, len): (bool, usize, usize),
) -> io::Result<()> {
    let at = offset + u64::try_from(start).map_err(io::Error::other)?;
    if !zero {
        return file.write_all_at(&data[start..start + len], at);
    }
    if fresh {
        return Ok(());
    }
    punch_hole(file, at, u64::try_from(len).map_err(io::Error::other)?)
}

/// Makes a range read as zeros, giving its storage back where the file system can.
pub fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len) {
        Ok(()) => return Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
        Err(e) => return Err(e.into()),
    }
    let mut done = 0;
    while done < len {
        let n = usize::try_from((len - done).min(BLOCK)).map_err(io::Error::other)?;
        file.write_all_at(&ZEROS[..n], offset + done)?;
        done += BLOCK;
    }
    Ok(())
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(ZEROS.len()).all(|piece| *piece == ZEROS[..piece.len()])
}

/// The usual block of a file system; a hole smaller than this saves nothing.
const BLOCK: u64 = 4096;
static ZEROS: [u8; 4096] = [0; 4096];

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::StdRng};

    use super::*;

    /// Seen to fail with holes not punched where something had been written.
    #[test]
    fn zeros_become_holes_and_nothing_else_changes() {
        let seed: u64 = rand::random();
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        for round in 0..50 {
            let file = tempfile::tempfile().unwrap();
            let size = 256 << 10;
            file.set_len(size).unwrap();
            let mut model = vec![0u8; usize::try_from(size).unwrap()];
            for write in 0..6 {
                let start = rng.random_range(0..model.len() - 1);
                let len = rng.random_range(1..=(model.len() - start).min(100_000));
                let data = &mut model[start..start + len];
                rng.fill_bytes(data);
                for _ in 0..3 {
                    let zero_from = rng.random_range(0..len);
                    let zeros = rng.random_range(0..=(len - zero_from));
                    data[zero_from..zero_from + zeros].fill(0);
                }
                write_sparse(&file, data, u64::try_from(start).unwrap(), write == 0).unwrap();
            }
            let mut read = vec![1; model.len()];
            file.read_exact_at(&mut read, 0).unwrap();
            assert_eq!(read, model, "round {round}");
        }
    }

    #[test]
    fn holes_take_no_storage_and_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create_new(dir.path().join("f")).unwrap();
        let file = File::options().read(true).write(true).open(dir.path().join("f")).map(|f| (file, f)).unwrap().1;
        let size = 8 << 30;
        file.set_len(size).unwrap();
        let mut data = vec![0; 4 << 20];
        data[1 << 20..(1 << 20) + 4096].fill(7);
        write_sparse(&file, &data, 4 << 30, true).unwrap();
        let first = next_data(&file, 0, size).unwrap().unwrap();
        if first == (Extent { start: 0, len: size }) {
            println!("SKIP: this file system does not tell where holes are");
            return;
        }
        assert_eq!(first, Extent { start: (4 << 30) + (1 << 20), len: 4096 });
        assert_eq!(next_data(&file, first.start + first.len, size).unwrap(), None);
        assert!(file.metadata().unwrap().blocks() * 512 < 1 << 20);
        punch_hole(&file, 0, size).unwrap();
        assert_eq!(next_data(&file, 0, size).unwrap(), None);
    }
}
