//! Evidence in one form: what was expected, what was seen, whether it holds.

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use serde::{Deserialize, Serialize};

/// One claim.
#[derive(Debug, Clone, Serialize, Deserialize)]
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

    /// What is claimed.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What had to be seen.
    pub fn expected(&self) -> &str {
        &self.expected
    }

    /// What was seen.
    pub fn seen(&self) -> &str {
        &self.seen
    }

    /// Whether what was expected was seen.
    pub fn holds(&self) -> bool {
        self.pass
    }
}

/// A claim that cannot be looked at on this machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Skipped {
    name: String,
    why: String,
}

/// What a run has of one claim.
#[derive(Debug, Clone, Copy)]
pub enum Found<'a> {
    /// It was looked at.
    Seen(&'a Evidence),
    /// It could not be looked at, and why.
    Skipped(&'a str),
    /// The run knows nothing of it.
    Missing,
}

/// All claims of one run.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    rows: Vec<Evidence>,
    #[serde(default)]
    skips: Vec<Skipped>,
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

    /// Says that these claims cannot be looked at here, and why.
    pub fn skip(&mut self, names: impl IntoIterator<Item = impl Into<String>>, why: &str) {
        self.scene(&format!("skipped: {why}"));
        let skips = names.into_iter().map(|name| Skipped {
            name: name.into(),
            why: why.to_owned(),
        });
        self.skips.extend(skips);
        self.skipped = self.skips.len();
    }

    /// What became of a claim. Where it was made more than once, all of them have to hold; where nothing at all could be
    /// looked at, that is so of each.
    pub fn find(&self, name: &str) -> Found<'_> {
        let rows = self.rows.iter().filter(|row| row.name == name);
        if let Some(row) = rows.min_by_key(|row| row.pass) {
            return Found::Seen(row);
        }
        let mut skips = self.skips.iter();
        let skipped = skips.find(|skip| skip.name == name || self.rows.is_empty());
        skipped.map_or(Found::Missing, |skip| Found::Skipped(&skip.why))
    }

    /// Reads what a run has written.
    ///
    /// # Errors
    /// When there is no such file, or something else is in it.
    pub fn read(path: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(path)?)?)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_found_by_its_name_and_one_that_failed_once_has_failed() {
        let mut report = Report::default();
        report.add(Evidence::new("twice", "1", "1", true));
        report.add(Evidence::new("twice", "1", "2", false));
        report.skip(["hidden"], "no ground");

        assert!(matches!(report.find("twice"), Found::Seen(row) if row.seen() == "2"));
        assert!(matches!(report.find("hidden"), Found::Skipped("no ground")));
        assert!(matches!(report.find("unheard of"), Found::Missing));
    }

    #[test]
    fn where_nothing_could_be_looked_at_no_claim_is_missing() {
        let mut report = Report::default();
        report.skip(["a scene"], "no ground");

        assert!(matches!(
            report.find("a claim"),
            Found::Skipped("no ground")
        ));
    }
}
