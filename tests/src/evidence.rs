//! Evidence in one form: what was expected, what was seen, whether it holds.

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use serde::Serialize;

/// One claim.
#[derive(Debug, Clone, Serialize)]
pub struct Evidence {
    name: String,
    expected: String,
    seen: String,
    pass: bool,
}

impl Evidence {
    /// A claim that was looked at.
    pub fn new(
        name: impl Into<String>,
        expected: impl Into<String>,
        seen: impl Into<String>,
        pass: bool,
    ) -> Self {
        Self {
            name: name.into(),
            expected: expected.into(),
            seen: seen.into(),
            pass,
        }
    }

    /// A claim that could not even be looked at.
    pub fn failed(name: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(name, "yes", why, false)
    }

    /// Whether what was expected was seen.
    pub fn holds(&self) -> bool {
        self.pass
    }
}

/// All claims of one run.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    rows: Vec<Evidence>,
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Report {
    /// Records a claim, and prints it.
    pub fn add(&mut self, evidence: Evidence) {
        let mark = if evidence.pass { "ok  " } else { "FAIL" };
        self.say(&format!(
            "  {mark} {}: {} (expected {})",
            evidence.name, evidence.seen, evidence.expected
        ));
        match evidence.pass {
            true => self.passed += 1,
            false => self.failed += 1,
        }
        self.rows.push(evidence);
    }

    /// So many claims cannot be looked at here; why was said.
    pub fn skip(&mut self, claims: usize) {
        self.skipped += claims;
    }

    /// Prints what comes next.
    pub fn scene(&self, text: &str) {
        self.say(&format!("\n{text}"));
    }

    /// How many claims do not hold.
    pub fn failed(&self) -> usize {
        self.failed
    }

    /// Writes everything where that is wanted, prints the last line, and tells the status to end with: a run
    /// that looked at nothing has shown nothing.
    pub fn finish(&self, json: Option<&Path>) -> ExitCode {
        if let Some(file) = json
            && let Err(error) = self.write(file)
        {
            self.complain(&format!("cannot write `{}`: {error}", file.display()));
            return ExitCode::FAILURE;
        }
        self.print_result();
        if self.rows.is_empty() && self.skipped == 0 {
            self.complain("nothing was looked at: no row is called so");
            return ExitCode::FAILURE;
        }
        match self.failed {
            0 => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        }
    }

    /// Prints the last line as a test runner does, for whoever adds up runs.
    fn print_result(&self) {
        let word = if self.failed == 0 { "ok" } else { "FAILED" };
        let (passed, failed, skipped) = (self.passed, self.failed, self.skipped);
        self.say(&format!(
            "\ntest result: {word}. {passed} passed; {failed} failed; {skipped} ignored"
        ));
    }

    /// Prints the last line.
    pub fn print_summary(&self) {
        self.say(&format!(
            "\n{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        ));
    }

    /// Writes everything as JSON.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        fs::write(path, serde_json::to_string_pretty(self)? + "\n")
    }

    /// Says on standard error what went wrong with the report itself.
    pub fn complain(&self, text: &str) {
        let _ = writeln!(io::stderr(), "{text}");
    }

    fn say(&self, text: &str) {
        let _ = writeln!(io::stdout(), "{text}");
    }
}
