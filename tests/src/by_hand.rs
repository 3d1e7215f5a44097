//! Workers that nobody of ours starts, and `tether register` beside them.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use rustix::process::Signal;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStderr, ChildStdout, Command},
    time::timeout,
};

use crate::{DEADLINE, Tether, example, kill, python};

/// A digits worker that a person starts. Killed when dropped.
#[derive(Debug)]
pub struct ByHand {
    child: Child,
    socket: PathBuf,
}

impl ByHand {
    /// Starts it, on a socket of this name in a directory.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(dir: &Path, name: &str) -> Self {
        let socket = dir.join(format!("{name}.sock"));
        let child = Command::new(python())
            .arg("worker.py")
            .arg("--listen")
            .arg(format!("unix:{}", socket.display()))
            .current_dir(example("digits"))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("Python can be started");
        Self { child, socket }
    }

    /// Where it is called.
    pub fn address(&self) -> String {
        format!("unix:{}", self.socket.display())
    }

    /// Its process id.
    ///
    /// # Panics
    /// When it was waited for.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("it was not waited for")
    }
}

/// A `tether register` that runs. Killed when dropped.
#[derive(Debug)]
pub struct Registrar {
    child: Child,
    said: Lines<BufReader<ChildStdout>>,
    noted: Lines<BufReader<ChildStderr>>,
}

impl Registrar {
    /// Starts it with these arguments.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(tether: &Tether, args: &[&str]) -> Self {
        let mut child = tether
            .command(&[&["--output", "json", "register"], args].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("tether can be started");
        Self {
            said: BufReader::new(child.stdout.take().expect("it is piped")).lines(),
            noted: BufReader::new(child.stderr.take().expect("it is piped")).lines(),
            child,
        }
    }

    /// What it says next.
    ///
    /// # Panics
    /// When it says something else, or nothing in time.
    pub async fn says(&mut self, event: &str) -> Value {
        let line = timeout(DEADLINE, self.said.next_line()).await;
        let line = line.expect("it says something in time");
        let line = line.expect("it can be read").expect("it goes on");
        let said: Value = serde_json::from_str(&line).expect("it speaks JSON");
        assert_eq!(said["event"], event);
        said
    }

    /// The next note that has this in it.
    ///
    /// # Panics
    /// When there is none in time.
    pub async fn notes(&mut self, part: &str) -> String {
        let found = async {
            while let Some(line) = self.noted.next_line().await.expect("it can be read") {
                if line.contains(part) {
                    return line;
                }
            }
            panic!("it ended without a word of `{part}`");
        };
        timeout(DEADLINE, found).await.expect("it notes it in time")
    }

    /// Waits until it has ended; tells its exit status.
    ///
    /// # Panics
    /// When it does not end.
    pub async fn ended(&mut self) -> Option<i32> {
        let ended = timeout(DEADLINE, self.child.wait()).await;
        ended
            .expect("it ends")
            .expect("it can be waited for")
            .code()
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it was waited for.
    pub fn signal(&self, signal: Signal) {
        kill(self.child.id().expect("it was not waited for"), signal);
    }
}
