//! What clerks have written down: which call came, began and ended, when, and at whom.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::Path,
};

use super::now;

/// How far a call has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// It is there, and waits for its turn.
    Came,
    /// It is being served.
    Began,
    /// It is served; the answer is on its way.
    Ended,
}

const STEPS: [Step; 3] = [Step::Came, Step::Began, Step::Ended];

/// One line of a book.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The call.
    pub id: u64,
    /// What became of it.
    pub step: Step,
    /// When, by the clock of the machine.
    pub at: u64,
    /// The file's name, which says whose it is.
    pub clerk: String,
}

/// Bytes of one line.
const LINE: usize = 17;

/// A book that is being written. Each line is with the kernel before anything follows from it, so a SIGKILL loses none.
#[derive(Debug)]
pub struct Book(File);

impl Book {
    /// Opens one, which need not be new.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        Ok(Self(file))
    }

    /// Writes a line.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, id: u64, step: Step) -> io::Result<()> {
        let mut line = [0; LINE];
        line[..8].copy_from_slice(&id.to_be_bytes());
        line[8..16].copy_from_slice(&now().to_be_bytes());
        line[16] = step as u8;
        (&self.0).write_all(&line)
    }
}

/// Whether a clerk serves a call at the moment, by the last line of its book.
pub fn is_busy(path: &Path) -> bool {
    let last = || {
        let mut book = File::open(path).ok()?;
        let lines = book.metadata().ok()?.len() / LINE as u64;
        let last = (lines * LINE as u64).checked_sub(1)?;
        book.seek(SeekFrom::Start(last)).ok()?;
        let mut step = [0];
        book.read_exact(&mut step).ok()?;
        Some(step[0] == Step::Began as u8)
    };
    last().unwrap_or(false)
}

/// All lines of all books in a directory, in the order of time.
///
/// # Errors
/// When they cannot be read.
pub fn read(dir: &Path) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for file in fs::read_dir(dir)?.flatten() {
        let clerk = file.file_name().to_string_lossy().into_owned();
        let bytes = fs::read(file.path())?;
        entries.extend(bytes.chunks_exact(LINE).filter_map(|line| {
            let number = |from: usize| Some(u64::from_be_bytes(*line[from..].first_chunk()?));
            Some(Entry {
                id: number(0)?,
                at: number(8)?,
                step: *STEPS.get(usize::from(line[16]))?,
                clerk: clerk.clone(),
            })
        }));
    }
    entries.sort_by_key(|entry| entry.at);
    Ok(entries)
}

/// When each call began, and at whom, as often as it did. Those without a number are left out.
pub fn begun(entries: &[Entry]) -> BTreeMap<u64, Vec<(u64, &str)>> {
    let mut begun: BTreeMap<u64, Vec<(u64, &str)>> = BTreeMap::new();
    for entry in entries {
        if entry.step == Step::Began && entry.id > 0 {
            let times = begun.entry(entry.id).or_default();
            times.push((entry.at, &entry.clerk));
        }
    }
    begun
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clerk_is_busy_from_when_it_begins_until_it_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.1");
        assert!(!is_busy(&path));
        let book = Book::open(&path).unwrap();
        for step in STEPS {
            book.write(7, step).unwrap();
            assert_eq!(is_busy(&path), step == Step::Began, "{step:?}");
        }
    }

    #[test]
    fn what_was_written_is_read_with_whose_it_is_and_half_a_line_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let books = ["0.1", "1.2"].map(|name| Book::open(&dir.path().join(name)).unwrap());
        books[0].write(7, Step::Began).unwrap();
        books[1].write(7, Step::Began).unwrap();
        books[1].write(0, Step::Began).unwrap();
        books[1].write(8, Step::Came).unwrap();
        (&books[1].0).write_all(&[1; LINE - 1]).unwrap();

        let entries = read(dir.path()).unwrap();

        assert_eq!(entries.len(), 4);
        let begun = begun(&entries);
        let clerks: Vec<_> = begun[&7].iter().map(|(_, clerk)| *clerk).collect();
        assert_eq!(clerks, ["0.1", "1.2"]);
        assert_eq!(begun.len(), 1);
    }
}
