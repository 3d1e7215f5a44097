//! Waits until a worker is ready: asked over and over, or seen in what it makes, writes or says.

mod log_line;
mod pause;

use std::{
    future::Future,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

pub(crate) use tether_probe::{Answer, Question, span};
use tether_proto::pool::{ReadinessKind, Template};
use tether_types::Address;

use pause::Pauses;

/// A worker that takes longer to answer is asked again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// What is waited for, and what was seen of it last.
pub(crate) struct Waiting {
    wanted: String,
    last: Last,
    pub(crate) kind: ReadinessKind,
    /// Comes back when the worker is ready; how long to wait for that is for others to decide.
    pub(crate) ready: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// What was seen last, for whoever asks why a worker never became ready.
#[derive(Debug, Clone, Default)]
struct Last(Arc<Mutex<String>>);

impl Last {
    fn set(&self, text: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }

    fn get(&self) -> String {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Waiting {
    /// Begins to wait for the worker of this runtime directory, of which `own_dir` is its own part; `what`
    /// is that of its readiness, with placeholders filled in. `born` is older than what it made itself.
    pub(crate) fn new(
        template: &Template,
        what: &str,
        address: &Address,
        dir: &Path,
        own_dir: &Path,
        born: &Path,
    ) -> Self {
        let kind = kind(template);
        let last = Last::default();
        let (wanted, ready): (String, Pin<Box<dyn Future<Output = ()> + Send>>) = match kind {
            ReadinessKind::Notify => (
                "READY=1 on the socket in NOTIFY_SOCKET".to_owned(),
                Box::pin(std::future::pending()),
            ),
            ReadinessKind::File => {
                let path = own_dir.join(what);
                (
                    format!("the file `{}`", path.display()),
                    Box::pin(made(path, born.to_owned(), last.clone())),
                )
            }
            ReadinessKind::LogLine => (
                format!("a line with `{what}` in its output"),
                Box::pin(log_line::written(
                    dir.to_owned(),
                    what.to_owned(),
                    last.clone(),
                )),
            ),
            ReadinessKind::Started => ("its start".to_owned(), Box::pin(std::future::ready(()))),
            ReadinessKind::Unspecified
            | ReadinessKind::Grpc
            | ReadinessKind::Connect
            | ReadinessKind::Http => {
                let question = question(kind, what, address);
                (
                    question.wanted(),
                    Box::pin(answered(question, last.clone())),
                )
            }
        };
        Self {
            wanted,
            last,
            kind,
            ready,
        }
    }

    /// What was waited for and what was seen last, in one sentence; `status` is what it said of itself.
    pub(crate) fn explain(&self, status: &str) -> String {
        let mut last = self.last.get();
        if last.is_empty() && !status.is_empty() {
            last = format!("it said `{status}`");
        }
        let last = if last.is_empty() {
            "nothing came"
        } else {
            last.as_str()
        };
        format!("waited for {}; {last}", self.wanted)
    }
}

/// How a worker of this template shows that it is ready.
pub(crate) fn kind(template: &Template) -> ReadinessKind {
    match template
        .readiness
        .as_ref()
        .map(tether_proto::pool::Readiness::kind)
    {
        None | Some(ReadinessKind::Unspecified) => ReadinessKind::Grpc,
        Some(kind) => kind,
    }
}

/// Whether it shows it whenever it is asked, not only once.
pub(crate) fn is_asked(kind: ReadinessKind) -> bool {
    match kind {
        ReadinessKind::Unspecified
        | ReadinessKind::Grpc
        | ReadinessKind::Connect
        | ReadinessKind::Http => true,
        ReadinessKind::Notify
        | ReadinessKind::File
        | ReadinessKind::LogLine
        | ReadinessKind::Started => false,
    }
}

/// The question of this kind, or a connection where the kind cannot be asked; `path` is for HTTP.
pub(crate) fn question(kind: ReadinessKind, path: &str, address: &Address) -> Question {
    match kind {
        ReadinessKind::Grpc | ReadinessKind::Unspecified => Question::grpc(address, ""),
        ReadinessKind::Http => Question::http(address, path),
        ReadinessKind::Connect
        | ReadinessKind::Notify
        | ReadinessKind::File
        | ReadinessKind::LogLine
        | ReadinessKind::Started => Question::connect(address),
    }
}

async fn answered(question: Question, last: Last) {
    // A socket that accepts comes first: asking gRPC of a worker that does not listen yet would
    // begin its reconnection delays.
    let opened = (!question.is_connection()).then(|| Question::connect(question.address()));
    for question in opened.into_iter().chain([question]) {
        let mut pauses = Pauses::new();
        while let Err(why) = question.ask(ANSWER_TIMEOUT).await {
            last.set(why);
            pauses.rest().await;
        }
    }
}

async fn made(path: PathBuf, born: PathBuf, last: Last) {
    let mut pauses = Pauses::new();
    loop {
        match is_younger(&path, &born) {
            Ok(true) => return,
            Ok(false) => last.set("it is there, but was made before this worker started: remove it at the start, or place it below `{dir}`".to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                last.set("it is not there".to_owned());
            }
            Err(error) => last.set(format!("it cannot be seen: {error}")),
        }
        pauses.rest().await;
    }
}

/// Whether a file was changed after another one was: one that an earlier incarnation left behind says
/// nothing of this one.
fn is_younger(path: &Path, born: &Path) -> io::Result<bool> {
    let changed = |path| std::fs::metadata(path).map(|of| (of.ctime(), of.ctime_nsec()));
    let made = changed(path)?;
    Ok(changed(born).map_or(true, |born| made >= born))
}
