//! Reading a history.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader},
    path::{Path, PathBuf},
};

use crate::{Record, recorder::SUFFIX};

/// Why a history cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file or directory is not there, or not to be read.
    #[error("cannot read the history `{}`", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line in the middle is not one of a history. The last line of a file may be cut off: whoever wrote
    /// it was killed.
    #[error(
        "line {line} of `{}` is not a line of a history; name the files and directories that services were told to write with `TETHER_HISTORY`", path.display()
    )]
    Line {
        /// In which file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A directory without a history.
    #[error("there is no history in `{}`: no file there ends in `.{SUFFIX}`; services write one where `TETHER_HISTORY` names a directory", .0.display())]
    Empty(PathBuf),
}

/// The files of a history: the path itself, or those in the directory that it names.
///
/// # Errors
/// When it cannot be read or holds none.
pub fn files_in(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::Io {
        path: path.to_owned(),
        source,
    };
    if !fs::metadata(path).map_err(failed)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        if file.extension().is_some_and(|suffix| suffix == SUFFIX) {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(Error::Empty(path.to_owned()));
    }
    Ok(files)
}

/// The lines of one file, in order.
#[derive(Debug)]
pub struct Lines {
    path: PathBuf,
    file: BufReader<File>,
    line: usize,
}

impl Lines {
    /// Opens a file.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|source| Error::Io {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            file: BufReader::new(file),
            line: 0,
        })
    }

    fn read(&mut self) -> Result<Option<Record>, Error> {
        let mut text = Vec::new();
        loop {
            text.clear();
            self.line += 1;
            let read = self.file.read_until(b'\n', &mut text);
            read.map_err(|source| Error::Io {
                path: self.path.clone(),
                source,
            })?;
            // Whoever wrote it was killed in the middle.
            if text.last() != Some(&b'\n') {
                return Ok(None);
            }
            if text.trim_ascii().is_empty() {
                continue;
            }
            return serde_json::from_slice(&text)
                .map(Some)
                .map_err(|source| Error::Line {
                    path: self.path.clone(),
                    line: self.line,
                    source,
                });
        }
    }
}

impl Iterator for Lines {
    type Item = Result<Record, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}
