//! Files by their paths, as bytes: what little of them a shim needs.

use alloc::string::String;
use alloc::vec::Vec;

use rustix::buffer::spare_capacity;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, unlinkat};
use rustix::io::{Errno, retry_on_intr};

/// One `read` gets all of most files here.
const READ_BYTES: usize = 1024;

/// Room for some dozens of names at a time.
const ENTRIES_BYTES: usize = 2048;

/// Opens a file.
pub(crate) fn open(path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    retry_on_intr(|| rustix::fs::open(path, flags | OFlags::CLOEXEC, mode))
}

/// All that a file holds.
pub(crate) fn read(path: &[u8]) -> Result<Vec<u8>, Errno> {
    let file = open(path, OFlags::RDONLY, Mode::empty())?;
    let mut held = Vec::with_capacity(READ_BYTES);
    loop {
        if retry_on_intr(|| rustix::io::read(&file, spare_capacity(&mut held)))? == 0 {
            return Ok(held);
        }
        held.reserve(READ_BYTES);
    }
}

/// All that a file holds, as text; nothing where there is no such file, or none of text.
pub(crate) fn text(path: &[u8]) -> Option<String> {
    String::from_utf8(read(path).ok()?).ok()
}

/// Writes all of it to an open file.
pub(crate) fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match retry_on_intr(|| rustix::io::write(file, bytes))? {
            0 => return Err(Errno::IO),
            written => bytes = bytes.get(written..).unwrap_or_default(),
        }
    }
    Ok(())
}

/// Tells something to a file of the kernel's.
pub(crate) fn tell(path: &[u8], word: &[u8]) -> Result<(), Errno> {
    write_all(&open(path, OFlags::WRONLY, Mode::empty())?, word)
}

/// Removes a file.
pub(crate) fn remove(path: &[u8]) -> Result<(), Errno> {
    unlinkat(CWD, path, AtFlags::empty())
}

/// Removes an empty directory.
pub(crate) fn remove_directory(path: &[u8]) -> Result<(), Errno> {
    unlinkat(CWD, path, AtFlags::REMOVEDIR)
}

/// The names in a directory, but its own and its parent's, and whether each is a directory.
pub(crate) fn entries(path: &[u8]) -> Result<Vec<(Vec<u8>, bool)>, Errno> {
    let directory = open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    let mut space: Vec<u8> = Vec::with_capacity(ENTRIES_BYTES);
    let mut listing = RawDir::new(&directory, space.spare_capacity_mut());
    let mut found = Vec::new();
    while let Some(entry) = listing.next() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        };
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            found.push((name.to_vec(), entry.file_type() == FileType::Directory));
        }
    }
    Ok(found)
}

/// The path of `name` in a directory.
pub(crate) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if directory.is_empty() || directory.ends_with(b"/") {
        b""
    } else {
        b"/"
    };
    [directory, slash, name].concat()
}

/// Says something to whoever reads this program's standard error.
pub fn complain(what: &str) {
    let text = [what.as_bytes(), b"\n"].concat();
    // Where nobody reads it there is nobody to tell.
    let _ = rustix::io::write(rustix::stdio::stderr(), &text);
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn a_file_longer_than_one_read_is_read_whole_and_names_are_listed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("long");
        let written: Vec<u8> = (0..5000_u32).map(|number| number as u8).collect();
        std::fs::write(&path, &written).unwrap();
        std::fs::create_dir(dir.path().join("inner")).unwrap();

        let mut found = entries(dir.path().as_os_str().as_bytes()).unwrap();
        found.sort();

        assert_eq!(read(path.as_os_str().as_bytes()).unwrap(), written);
        assert_eq!(
            found,
            [(b"inner".to_vec(), true), (b"long".to_vec(), false)]
        );
        assert_eq!(read(b"/nowhere"), Err(Errno::NOENT));
    }

    #[test]
    fn a_path_is_joined_as_the_shell_would() {
        assert_eq!(join(b"/a", b"b"), b"/a/b");
        assert_eq!(join(b"/", b"b"), b"/b");
        assert_eq!(join(b"", b"b"), b"b");
    }
}
