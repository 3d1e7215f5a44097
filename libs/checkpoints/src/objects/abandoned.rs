//! Uploads into a directory that nobody has finished.

use std::{fs, io, path::Path as FilePath, time::Duration};

use object_store::path::Path;
use tether_types::PoolName;

use crate::name::Name;

/// An upload that was left in a directory for so long is nobody's.
pub(super) const ABANDONED: Duration = Duration::from_hours(24);

/// Removes uploads of checkpoints that nobody has finished since long. What else is there is somebody else's.
pub(super) fn drop_abandoned(directory: &FilePath) -> io::Result<()> {
    for pool in children(directory)? {
        if PoolName::new(&pool).is_err() {
            continue;
        }
        for job in children(&directory.join(&pool))? {
            let files = directory.join(&pool).join(&job);
            for file in children(&files)? {
                let is_upload = file.split_once('#').is_some_and(|(of, _)| {
                    Name::of(&Path::from_iter([&*pool, &*job, of])).is_some()
                });
                if is_upload {
                    drop_if_abandoned(&files.join(file)).or_else(unless_gone)?;
                }
            }
        }
    }
    Ok(())
}

fn drop_if_abandoned(file: &FilePath) -> io::Result<()> {
    let age = fs::metadata(file)?.modified()?.elapsed();
    match age.is_ok_and(|age| age > ABANDONED) {
        true => fs::remove_file(file),
        false => Ok(()),
    }
}

/// The names in a directory; none in what is no directory, or none any more.
fn children(directory: &FilePath) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(Vec::new()),
        Err(error) => return unless_gone(error).map(|()| Vec::new()),
    };
    let names = entries.map(|entry| Ok(entry?.file_name().into_string()));
    let names: io::Result<Vec<_>> = names.collect();
    Ok(names?.into_iter().flatten().collect())
}

/// Another node that shares the directory may have removed it.
fn unless_gone(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    }
}
