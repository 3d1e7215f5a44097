//! What was looked at, and what was seen: printed where it failed, and all of it as JSON.

use std::{io::Write as _, path::Path};

use serde_json::{Value, json};

/// The rows of one run.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    rows: Vec<Value>,
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Rows {
    /// A row: what was seen where it holds, else what is wrong.
    pub(crate) fn add(&mut self, name: &str, expected: &str, seen: Result<String, String>) {
        let pass = seen.is_ok();
        let seen = seen.unwrap_or_else(|wrong| wrong);
        if pass {
            self.passed += 1;
        } else {
            self.failed += 1;
            say(&format!("FAIL {name}: {seen} (expected {expected})"));
        }
        self.rows
            .push(json!({ "name": name, "expected": expected, "seen": seen, "pass": pass }));
    }

    /// A row that cannot be had here.
    pub(crate) fn skip(&mut self, name: &str, expected: &str, why: &str) {
        self.skipped += 1;
        say(&format!("skipped {name}: {why}"));
        self.rows
            .push(json!({ "name": name, "expected": expected, "skipped": why }));
    }

    /// Takes over all of another's.
    pub(crate) fn extend(&mut self, other: Self) {
        self.rows.extend(other.rows);
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// How many rows were seen to hold a text.
    pub(crate) fn seen(&self, text: &str) -> usize {
        let seen = |row: &&Value| {
            row["seen"]
                .as_str()
                .is_some_and(|seen| seen.starts_with(text))
        };
        self.rows.iter().filter(seen).count()
    }

    /// Says the sum, and writes everything; tells whether all rows hold.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn finish(self, json: Option<&Path>) -> std::io::Result<bool> {
        let Self {
            rows,
            passed,
            failed,
            skipped,
        } = self;
        let ok = failed == 0;
        if let Some(path) = json {
            let all =
                json!({ "rows": rows, "passed": passed, "failed": failed, "skipped": skipped });
            std::fs::write(path, serde_json::to_string_pretty(&all)? + "\n")?;
        }
        let word = if ok { "ok" } else { "FAILED" };
        say(&format!(
            "test result: {word}. {passed} passed; {failed} failed; {skipped} ignored"
        ));
        Ok(ok)
    }
}

/// Prints a line.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
