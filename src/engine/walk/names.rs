use std::{mem::MaybeUninit, os::fd::AsFd};

use rustix::{
    fs::{AtFlags, FileType, RawDir, statat},
    io::Errno,
};

/// The names of one directory, sorted, in one allocation for all their bytes.
#[derive(Debug, Default)]
pub(super) struct Names {
    bytes: Vec<u8>,
    index: Vec<NameAt>,
}

#[derive(Clone, Copy, Debug)]
struct NameAt {
    start: usize,
    len: u16,
    is_dir: bool,
}

impl Names {
    /// Reads an open directory to its end and sorts.
    pub(super) fn read(dir: impl AsFd) -> Result<Self, Errno> {
        let mut names = Self::default();
        let mut buffer = [MaybeUninit::uninit(); READ_BYTES];
        let mut entries = RawDir::new(dir.as_fd(), &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let is_dir = match entry.file_type() {
                // Some file systems do not say.
                FileType::Unknown => statat(dir.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT)
                    .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
                kind => kind == FileType::Directory,
            };
            names.push(name.to_bytes(), is_dir);
        }
        names.sort();
        Ok(names)
    }

    /// The name at `position` of the order, and whether it is a directory.
    pub(super) fn get(&self, position: usize) -> Option<(&[u8], bool)> {
        let at = self.index.get(position)?;
        Some((self.name(*at), at.is_dir))
    }

    fn push(&mut self, name: &[u8], is_dir: bool) {
        // The kernel's names have at most 255 bytes; a longer one is refused when it is joined to its path.
        let len = u16::try_from(name.len()).unwrap_or(u16::MAX);
        self.index.push(NameAt { start: self.bytes.len(), len, is_dir });
        self.bytes.extend_from_slice(&name[..usize::from(len)]);
    }

    fn sort(&mut self) {
        let mut index = std::mem::take(&mut self.index);
        index.sort_unstable_by(|a, b| sort_key(self.name(*a), a.is_dir).cmp(sort_key(self.name(*b), b.is_dir)));
        self.index = index;
    }

    fn name(&self, at: NameAt) -> &[u8] {
        &self.bytes[at.start..at.start + usize::from(at.len)]
    }

    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.bytes.capacity() + self.index.capacity() * size_of::<NameAt>()
    }
}

/// The bytes that put a name into canonical order: a directory compares as `name/`.
pub(super) fn sort_key(name: &[u8], is_dir: bool) -> impl Iterator<Item = u8> + '_ {
    name.iter().copied().chain(is_dir.then_some(b'/'))
}

const READ_BYTES: usize = 32 << 10;
