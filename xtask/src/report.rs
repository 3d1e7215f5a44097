//! Keeps the account of one command: which step ran how long, and what it all adds up to.

use std::{
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use crate::{
    run::{Ended, run},
    tally::Tally,
};

/// The steps so far and their sum.
#[derive(Debug, Default)]
pub(crate) struct Report {
    total: Tally,
    lines: Vec<String>,
}

impl Report {
    /// Runs a step that others need; only its failure counts.
    pub(crate) fn prepare(&mut self, name: &str, command: Command) -> bool {
        let (ended, took) = announced(name, command);
        if !ended.ok {
            self.total.failed += 1;
        }
        self.line(if ended.ok { "ready" } else { "FAILED" }, took, name, "");
        ended.ok
    }

    /// Runs a step that counts as one.
    pub(crate) fn step(&mut self, name: &str, command: Command) {
        let (ended, took) = announced(name, command);
        self.verdict(name, took, if ended.ok { Ok(()) } else { Err(Vec::new()) });
    }

    /// Runs a step within xtask; the findings say what is wrong.
    pub(crate) fn lint(&mut self, name: &str, lint: impl FnOnce() -> Result<(), Vec<String>>) {
        println!("\n== {name}");
        let start = Instant::now();
        let result = lint();
        self.verdict(name, start.elapsed(), result);
    }

    /// Runs a test runner; each result it announces counts.
    pub(crate) fn suite(&mut self, name: &str, command: Command) {
        let (ended, took) = announced(name, command);
        let mut counted = ended.announced;
        // A run that broke, and one that announced nothing at all, must not pass for a clean one.
        let broke = !ended.ok && counted.failed == 0;
        let silent = ended.ok && counted.is_empty();
        if broke || silent {
            counted.failed += 1;
        }
        self.total += counted;
        let word = if counted.failed == 0 { "ok" } else { "FAILED" };
        let note = if silent {
            "it ran no test"
        } else {
            &counted.to_string()
        };
        self.line(word, took, name, note);
    }

    /// Records a step that could not be taken, and why.
    pub(crate) fn skip(&mut self, name: &str, why: &str) {
        self.total.skipped += 1;
        self.line("skipped", Duration::ZERO, name, why);
    }

    /// Records a step that could not be taken but had to be.
    pub(crate) fn fail(&mut self, name: &str, why: &str) {
        self.total.failed += 1;
        self.line("FAILED", Duration::ZERO, name, why);
    }

    /// Says it all again, with the sum alone on the last line.
    pub(crate) fn finish(self) -> ExitCode {
        println!();
        for line in &self.lines {
            println!("{line}");
        }
        println!("{}", self.total);
        ExitCode::from(u8::from(self.total.failed > 0))
    }

    fn verdict(&mut self, name: &str, took: Duration, result: Result<(), Vec<String>>) {
        match result {
            Ok(()) => {
                self.total.passed += 1;
                self.line("ok", took, name, "");
            }
            Err(findings) => {
                for finding in &findings {
                    println!("{finding}");
                }
                self.total.failed += 1;
                self.line("FAILED", took, name, "");
            }
        }
    }

    fn line(&mut self, word: &str, took: Duration, name: &str, note: &str) {
        let line = format!("{word:>8} {:>7.1}s  {name}  {note}", took.as_secs_f64());
        println!("{}", line.trim_end());
        self.lines.push(line.trim_end().to_owned());
    }
}

/// Runs `command` under a heading, so that a reader of the log knows whose lines follow.
fn announced(name: &str, command: Command) -> (Ended, Duration) {
    println!("\n== {name}");
    let start = Instant::now();
    (run(command), start.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn what_counts_is_what_was_announced_and_what_broke() {
        let mut report = Report::default();

        report.prepare("prepared", shell("true"));
        report.step("step", shell("true"));
        report.suite(
            "suite",
            shell("echo 'Ran 2 tests in 1s'; echo 'OK (skipped=1)'"),
        );
        report.suite("broken before it counted", shell("exit 1"));
        report.suite("silent", shell("true"));
        report.skip("skipped", "no tool");

        assert_eq!(report.total.to_string(), "2 passed, 2 failed, 2 skipped");
    }

    #[test]
    fn a_failure_that_was_announced_is_not_counted_twice() {
        let mut report = Report::default();

        report.suite(
            "suite",
            shell("echo 'Ran 2 tests in 1s'; echo 'FAILED (failures=1)'; exit 1"),
        );

        assert_eq!(report.total.to_string(), "1 passed, 1 failed, 0 skipped");
    }
}
