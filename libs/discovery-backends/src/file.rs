//! `file:///etc/tether/workers.json`: a list that somebody else keeps up to date, by absolute path.
//!
//! A file that ends in `.json` is an array of JSON (see `entry.rs`), any other one has an address a line; the option
//! `format=json` or `format=text` says otherwise.
//!
//! The folder of the file is watched, and not the file: who replaces a file renames another one over it, and a
//! Kubernetes ConfigMap swaps a link beside it. What the folder does not tell, as with a link to a file elsewhere or a
//! network's file system, is seen by a look every `poll=5s`. A file that cannot be read, is half written or is no list
//! is an error, and what it said before stays true; one that lists nobody says that nobody serves.

use std::{
    fs::{File, OpenOptions},
    io::Read as _,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use futures::{StreamExt as _, stream};
use rustix::{
    fs::{
        OFlags,
        inotify::{self, CreateFlags, ReadFlags, WatchFlags},
    },
    io::Errno,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::sleep,
};

use super::{Answer, Backend, Options, Watch, entry};

/// A list of as many as an answer may have is smaller.
const SIZE_MAX: u64 = 8 << 20;
const POLL: Duration = Duration::from_secs(5);
/// After a change: who writes in several steps has most likely written all of them, and a thousand changes a second
/// are read 50 times.
const SETTLE: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(super) struct FromFile;

impl Backend for FromFile {
    fn scheme(&self) -> &'static str {
        "file"
    }

    fn usage(&self) -> &'static str {
        "file:///etc/tether/workers.json"
    }

    fn watch(&self, path: &str, options: &mut Options) -> Result<Watch, String> {
        let path = PathBuf::from(path);
        if !path.is_absolute() {
            return Err(
                "the path has to start with `/`, as services run in folders of their own"
                    .to_owned(),
            );
        }
        let (Some(folder), Some(_)) = (path.parent(), path.file_name()) else {
            return Err("the path names no file".to_owned());
        };
        let format = match options.text("format").as_deref() {
            Some("json") => entry::json_list,
            Some("text") => entry::text_list,
            Some(other) => {
                return Err(format!(
                    "the option `format` is `{other}`, and neither `json` nor `text`"
                ));
            }
            None if path.extension().is_some_and(|end| end == "json") => entry::json_list,
            None => entry::text_list,
        };
        let watched = Watched {
            folder: folder.to_owned(),
            path,
            format,
            poll: options.duration("poll")?.unwrap_or(POLL),
            changes: None,
            last: None,
        };
        Ok(stream::unfold(watched, |mut watched| async {
            let word = watched.next().await;
            Some((word, watched))
        })
        .boxed())
    }
}

struct Watched {
    path: PathBuf,
    folder: PathBuf,
    format: fn(&[u8]) -> Result<Answer, String>,
    poll: Duration,
    /// None where the folder cannot be watched: it is not there, most likely.
    changes: Option<Changes>,
    /// What was said last, which is not said again.
    last: Option<Result<Answer, String>>,
}

impl Watched {
    async fn next(&mut self) -> Result<Answer, String> {
        loop {
            if self.last.is_some() {
                self.wait().await;
            }
            // The folder is watched before the file is read: no change can fall between the two.
            if self.changes.is_none() {
                self.changes = Changes::of(&self.folder).ok();
            }
            let path = self.path.clone();
            let bytes = tokio::task::spawn_blocking(move || read(&path)).await;
            let bytes = bytes.unwrap_or_else(|error| Err(error.to_string()));
            let word = bytes.and_then(|bytes| (self.format)(&bytes));
            let word = word.map_err(|why| format!("`{}`: {why}", self.path.display()));
            if self.last.as_ref() != Some(&word) {
                self.last = Some(word.clone());
                return word;
            }
        }
    }

    /// Waits until the file may have changed.
    async fn wait(&mut self) {
        let changed = async {
            match &self.changes {
                Some(changes) => changes.next().await,
                None => std::future::pending().await,
            }
        };
        let same_folder = tokio::select! {
            same_folder = changed => {
                sleep(SETTLE).await;
                same_folder
            }
            // Another folder may have taken the place of the one that is watched.
            () = sleep(self.poll.mul_f64(0.75 + 0.5 * fastrand::f64())) => false,
        };
        if !same_folder {
            self.changes = None;
        }
    }
}

/// Reads a file that may be anything, without waiting for it.
fn read(path: &Path) -> Result<Vec<u8>, String> {
    let open = || -> std::io::Result<File> {
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        OpenOptions::new().read(true).custom_flags(flags).open(path)
    };
    let read = || -> std::io::Result<(bool, Vec<u8>)> {
        let file = open()?;
        let mut bytes = Vec::new();
        let regular = file.metadata()?.is_file();
        if regular {
            file.take(SIZE_MAX + 1).read_to_end(&mut bytes)?;
        }
        Ok((regular, bytes))
    };
    match read() {
        Ok((false, _)) => Err("it is no file with a list, but of another kind".to_owned()),
        Ok((true, bytes)) if bytes.len() as u64 > SIZE_MAX => Err(format!(
            "it is larger than {} MiB, which is taken for a mistake",
            SIZE_MAX >> 20
        )),
        Ok((true, bytes)) => Ok(bytes),
        Err(error) => Err(format!(
            "it cannot be read: {error}; check the path, and that this user may read it"
        )),
    }
}

/// Tells when something changes in a folder.
struct Changes(AsyncFd<OwnedFd>);

impl Changes {
    fn of(folder: &Path) -> std::io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let what = WatchFlags::ONLYDIR
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::MOVE
            | WatchFlags::DELETE
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF;
        inotify::add_watch(&fd, folder, what)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe, for types whose descriptor changes; an `OwnedFd` has one for good"
        )]
        let fd = AsyncFd::with_interest(fd, Interest::READABLE)?;
        Ok(Self(fd))
    }

    /// Waits for one change or many. False where the folder is not in its place any more.
    async fn next(&self) -> bool {
        loop {
            let Ok(mut ready) = self.0.readable().await else {
                return false;
            };
            let mut same_folder = true;
            let mut any = false;
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut reader = inotify::Reader::new(self.0.get_ref(), &mut buffer);
            loop {
                match reader.next() {
                    Ok(event) => {
                        any = true;
                        let left = ReadFlags::DELETE_SELF
                            | ReadFlags::MOVE_SELF
                            | ReadFlags::IGNORED
                            | ReadFlags::UNMOUNT;
                        same_folder &= !event.events().intersects(left);
                    }
                    Err(Errno::AGAIN) => break,
                    Err(_) => return false,
                }
            }
            ready.clear_ready();
            if any {
                return same_folder;
            }
        }
    }
}
