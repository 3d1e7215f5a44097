//! A Python process that calls again and again, and says who answers.

use std::{
    collections::{BTreeSet, VecDeque},
    process::Stdio,
};

use tether_tests::{DEADLINE, python};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::{Instant, timeout_at},
};

/// As many answers in a row as show who is called: each of three has its turn several times.
const IN_A_ROW: usize = 40;

pub(crate) struct Caller {
    lines: Lines<BufReader<ChildStdout>>,
    refusals: usize,
    _child: Child,
}

impl Caller {
    pub(crate) fn start(target: &str, env: &[(&str, &str)]) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/xds/caller.py");
        let mut child = Command::new(python())
            .args([script, target])
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self {
            lines: BufReader::new(child.stdout.take().unwrap()).lines(),
            refusals: 0,
            _child: child,
        }
    }

    /// How many calls have not been answered by a worker.
    pub(crate) fn refusals(&self) -> usize {
        self.refusals
    }

    /// Waits until these answer, all of them and nobody else.
    pub(crate) async fn hears(&mut self, wanted: &[&str]) {
        let wanted: BTreeSet<_> = wanted.iter().map(ToString::to_string).collect();
        let deadline = Instant::now() + DEADLINE;
        let mut last: VecDeque<String> = VecDeque::new();
        loop {
            let Ok(line) = timeout_at(deadline, self.lines.next_line()).await else {
                panic!(
                    "not within {DEADLINE:?}: {wanted:?} answer, and nobody else; it was {last:?}"
                );
            };
            let line = line.unwrap().expect("the caller goes on");
            let who = line.split(' ').next().unwrap_or_default().to_owned();
            self.refusals += usize::from(who.parse::<u32>().is_err());
            last.push_back(who);
            if last.len() > IN_A_ROW {
                last.pop_front();
            }
            if last.len() == IN_A_ROW && last.iter().cloned().collect::<BTreeSet<_>>() == wanted {
                return;
            }
        }
    }
}
