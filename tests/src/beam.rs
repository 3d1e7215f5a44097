//! A real BEAM that opens `tether port`: what is said to that is Erlang, and what it says is read as text.

use std::{
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::{DEADLINE, kill, mentioning, program, python};

const BEAM: &str = include_str!("beam/beam.escript");
const TALKER: &str = include_str!("beam/talker.py");

/// One BEAM, and all that its port has said. Killed when dropped.
#[derive(Debug)]
pub struct Beam {
    dir: TempDir,
    child: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    /// With whether somebody waited for it already.
    said: Vec<(String, bool)>,
}

impl Beam {
    /// Starts one, whose port has said nothing yet.
    ///
    /// # Panics
    /// When there is no Erlang.
    pub fn start() -> Self {
        Self::start_with(None)
    }

    /// Starts another, whose port's own services have their directory beside those of this one's.
    ///
    /// # Panics
    /// When there is no Erlang.
    pub fn beside(&self) -> Self {
        Self::start_with(Some(self.dir()))
    }

    fn start_with(temporary: Option<&Path>) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("tether-beam-")
            .tempdir()
            .expect("a directory can be made");
        let script = dir.path().join("beam.escript");
        std::fs::write(&script, BEAM).expect("the directory can be written");
        std::fs::write(dir.path().join("talker.py"), TALKER).expect("the directory can be written");
        let mut child = Command::new("escript")
            .arg(&script)
            .arg(program("tether"))
            .env("TMPDIR", temporary.unwrap_or_else(|| dir.path()))
            .env("ERL_CRASH_DUMP_BYTES", "0")
            .env_remove("TETHER_CONFIG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("there is an Erlang: install `erlang-base`");
        let input = child.stdin.take().expect("it is piped");
        let output = child.stdout.take().expect("it is piped");
        Self {
            dir,
            child,
            input,
            lines: BufReader::new(output).lines(),
            said: Vec::new(),
        }
    }

    /// Starts one that has said hello, with these gateways, none for those of the port itself, and beats.
    ///
    /// # Panics
    /// When it is not welcome.
    pub async fn with(gateways: &[&str], more: &str) -> Self {
        let mut beam = Self::said_hello(gateways, more).await;
        beam.say("{beats, 50}").await;
        beam.until("{welcome,").await;
        beam
    }

    /// Starts one that has said hello, and says nothing more by itself.
    ///
    /// # Panics
    /// When it does not listen.
    pub async fn said_hello(gateways: &[&str], more: &str) -> Self {
        let mut beam = Self::start();
        beam.hello(gateways, more).await;
        beam
    }

    /// Says hello.
    ///
    /// # Panics
    /// When it does not listen.
    pub async fn hello(&mut self, gateways: &[&str], more: &str) {
        let gateways: Vec<_> = gateways.iter().map(|at| format!("<<{at:?}>>")).collect();
        self.say(&format!(
            "{{hello, #{{version => 1, gateways => [{}], owner => <<\"beam@test\">>{more}}}}}",
            gateways.join(", ")
        ))
        .await;
    }

    /// With a lease of 4 s, which ends as soon after the last beat.
    ///
    /// # Panics
    /// When its session is not opened.
    pub async fn usual(gateways: &[&str]) -> Self {
        let mut beam = Self::with(gateways, ", ttl => 4000, heartbeat_timeout => 4000").await;
        beam.until("{session,opened,").await;
        beam
    }

    /// Has it run a worker in a pool `talk`, and waits until that is ready. Its events are item 2.
    ///
    /// # Panics
    /// When it is not.
    pub async fn with_talker(&mut self, args: &[&str]) {
        let script = self.dir.path().join("talker.py");
        let args = std::iter::once(script.display().to_string())
            .chain(args.iter().map(|arg| (*arg).to_owned()));
        let args: Vec<_> = args.map(|arg| format!("<<{arg:?}>>")).collect();
        self.say("{control, 2, events, #{follow => true, pool => <<\"talk\">>}}")
            .await;
        self.say(&format!(
            "{{control, 1, pool_apply, #{{pool => <<\"talk\">>, spec => #{{mode => coupled, size => 1, \
             template => #{{command => <<{:?}>>, args => [{}], readiness => #{{kind => connect}}, stop => #{{grace => <<\"200ms\">>}}}}}}}}}}",
            python().display().to_string(),
            args.join(", ")
        ))
        .await;
        self.until("{reply,1,{ok,").await;
        self.until("<<\"WORKER_READY\">>").await;
    }

    /// Says a term, written as Erlang.
    ///
    /// # Panics
    /// When it does not listen.
    pub async fn say(&mut self, term: &str) {
        let line = format!("{term}.\n");
        let said = self.input.write_all(line.as_bytes()).await;
        said.expect("the BEAM listens");
    }

    /// Says a call of the talker.
    pub async fn call(&mut self, id: u64, method: &str, more: &str) {
        self.say(&format!(
            "{{call, {id}, #{{pool => <<\"talk\">>, method => <<\"/talk.Talk/{method}\">>, {more}}}}}"
        ))
        .await;
    }

    /// Says a stream of the talker.
    pub async fn stream(&mut self, id: u64, method: &str) {
        self.say(&format!(
            "{{stream, {id}, #{{pool => <<\"talk\">>, method => <<\"/talk.Talk/{method}\">>}}}}"
        ))
        .await;
    }

    /// Waits until the port has said something like this that nobody has waited for yet, and tells the whole.
    ///
    /// # Panics
    /// When it does not, or the BEAM ends.
    pub async fn until(&mut self, what: &str) -> String {
        let new = |(line, taken): &&mut (String, bool)| !*taken && line.contains(what);
        if let Some((line, taken)) = self.said.iter_mut().find(new) {
            *taken = true;
            return line.clone();
        }
        let found = timeout(DEADLINE, async {
            while let Some(line) = self.lines.next_line().await.expect("it can be read") {
                let found = line.contains(what);
                self.said.push((line.clone(), found));
                if found {
                    return line;
                }
            }
            panic!("the BEAM ended before it said `{what}`: {:#?}", self.said)
        });
        let found = found.await;
        found.unwrap_or_else(|_| panic!("nobody said `{what}`: {:#?}", self.said))
    }

    /// How often something like this was said by now.
    pub fn count(&self, what: &str) -> usize {
        self.said(what).len()
    }

    /// All that was said by now, like this.
    pub fn said(&self, what: &str) -> Vec<String> {
        let said = self.said.iter().map(|(line, _)| line);
        said.filter(|line| line.contains(what)).cloned().collect()
    }

    /// Its process id.
    ///
    /// # Panics
    /// When it was waited for.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("it was not waited for")
    }

    /// Has it measure something, and tells the median and the tail: of a hundred the last but one.
    ///
    /// # Panics
    /// When it does not.
    pub async fn measure(&mut self, what: &str) -> [Duration; 2] {
        self.say(what).await;
        let measured = self.until("{measured,").await;
        let numbers = measured.split(|letter: char| !letter.is_ascii_digit());
        let nanos: Vec<u64> = numbers.filter_map(|number| number.parse().ok()).collect();
        [nanos[0], nanos[1]].map(Duration::from_nanos)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal);
    }

    /// Where it is: its port's own services, if there are any, have their directory below.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Beam {
    fn drop(&mut self) {
        let _ = self.child.start_kill();
        // Its port ends in good order, and what it has started.
        let start = Instant::now();
        while !mentioning(self.dir()).is_empty() && start.elapsed() < DEADLINE {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
