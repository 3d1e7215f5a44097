//! Counts results as test runners announce them: nextest, libtest (doc tests too), pytest, unittest and ExUnit.

use std::{fmt, ops::AddAssign};

/// How many passed, failed and were skipped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Tally {
    /// Whether nothing at all was counted.
    pub(crate) fn is_empty(self) -> bool {
        self == Self::default()
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            passed,
            failed,
            skipped,
        } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

/// Reads a test runner's output line by line.
#[derive(Debug, Default)]
pub(crate) struct Announcements {
    tally: Tally,
    /// unittest says how many ran on one line and how they ended on a later one.
    ran: Option<u64>,
}

impl Announcements {
    /// What was announced so far.
    pub(crate) fn tally(&self) -> Tally {
        self.tally
    }

    /// Takes the next line of output, without colours.
    pub(crate) fn on_line(&mut self, line: &str) {
        if let Some(tally) = nextest(line)
            .or_else(|| libtest(line))
            .or_else(|| ex_unit(line))
            .or_else(|| pytest(line))
        {
            self.tally += tally;
        } else if let Some(rest) = line.strip_prefix("Ran ") {
            self.ran = rest.split(' ').next().and_then(|count| count.parse().ok());
        } else if let Some(tally) = self.ran.and_then(|ran| unittest(line, ran)) {
            self.tally += tally;
            self.ran = None;
        }
    }
}

/// `     Summary [   4.1s] 12 tests run: 10 passed (1 slow), 1 failed, 1 timed out, 2 skipped`
fn nextest(line: &str) -> Option<Tally> {
    let (_, counts) = line
        .trim_start()
        .strip_prefix("Summary [")?
        .split_once(" run: ")?;
    let mut tally = Tally::default();
    for part in without_parentheses(counts).split(',') {
        let (count, what) = part.trim().split_once(' ')?;
        let count: u64 = count.parse().ok()?;
        match what.trim() {
            "passed" => tally.passed += count,
            "skipped" => tally.skipped += count,
            // Failed, timed out, exec failed: anything else is not a success.
            _ => tally.failed += count,
        }
    }
    Some(tally)
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.10s`
fn libtest(line: &str) -> Option<Tally> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut tally = Tally::default();
    for part in counts.split(';') {
        if let Some((count, what)) = part.trim().split_once(' ')
            && let Ok(count) = count.parse::<u64>()
        {
            match what {
                "passed" => tally.passed += count,
                "failed" => tally.failed += count,
                "ignored" => tally.skipped += count,
                _ => {}
            }
        }
    }
    Some(tally)
}

/// `14 doctests, 21 tests, 1 failure, 2 excluded, 3 skipped`
fn ex_unit(line: &str) -> Option<Tally> {
    let (mut ran, mut failed, mut left_out) = (None, None, 0);
    for part in line.trim_end().split(", ") {
        let (count, what) = part.split_once(' ')?;
        let count: u64 = count.parse().ok()?;
        match what {
            "doctest" | "doctests" | "test" | "tests" | "property" | "properties" => {
                ran = Some(ran.unwrap_or(0) + count);
            }
            // Of a module whose preparation failed, all tests are invalid.
            "failure" | "failures" | "invalid" => failed = Some(failed.unwrap_or(0) + count),
            "skipped" | "excluded" => left_out += count,
            _ => return None,
        }
    }
    let (ran, failed) = (ran?, failed?);
    Some(Tally {
        passed: ran.saturating_sub(failed + left_out),
        failed,
        skipped: left_out,
    })
}

/// `=== 1 failed, 12 passed, 2 skipped, 3 warnings in 65.22s (0:01:05) ===`
fn pytest(line: &str) -> Option<Tally> {
    let (counts, took) = line.trim_matches([' ', '=']).rsplit_once(" in ")?;
    let seconds = took.split(' ').next()?.strip_suffix('s')?;
    seconds.parse::<f64>().ok()?;
    let mut tally = Tally::default();
    for part in counts.split(", ") {
        let (count, what) = part.split_once(' ')?;
        let count: u64 = count.parse().ok()?;
        match what {
            "passed" | "xfailed" => tally.passed += count,
            "skipped" | "deselected" => tally.skipped += count,
            // What is part of a test is counted with that.
            "warning" | "warnings" | "subtests passed" => {}
            _ => tally.failed += count,
        }
    }
    Some(tally)
}

/// `OK (skipped=1)` or `FAILED (failures=1, errors=2, skipped=3)`
fn unittest(line: &str, ran: u64) -> Option<Tally> {
    if !line.starts_with("OK") && !line.starts_with("FAILED (") {
        return None;
    }
    let details = line
        .split_once('(')
        .map_or("", |(_, details)| details.trim_end_matches(')'));
    let mut tally = Tally::default();
    for detail in details.split(", ") {
        if let Some((what, count)) = detail.split_once('=')
            && let Ok(count) = count.parse::<u64>()
        {
            match what {
                "failures" | "errors" | "unexpected successes" => tally.failed += count,
                "skipped" => tally.skipped += count,
                _ => {}
            }
        }
    }
    // An error in the setup of a class is counted as an error but not as a test that ran.
    tally.passed = ran.saturating_sub(tally.failed + tally.skipped);
    Some(tally)
}

fn without_parentheses(text: &str) -> String {
    let mut depth = 0_u32;
    text.chars()
        .filter(|&letter| {
            let inside = depth > 0 || letter == '(';
            match letter {
                '(' => depth += 1,
                ')' => depth = depth.saturating_sub(1),
                _ => {}
            }
            !inside
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> String {
        let mut announcements = Announcements::default();
        for line in lines {
            announcements.on_line(line);
        }
        announcements.tally().to_string()
    }

    #[test]
    fn nextest_is_counted_and_every_way_not_to_pass_is_a_failure() {
        let cases = [
            (
                "     Summary [   0.005s] 3 tests run: 3 passed, 0 skipped",
                "3 passed, 0 failed, 0 skipped",
            ),
            (
                "     Summary [ 182.004s] 9 tests run: 5 passed (2 slow, 1 leaky), 1 failed, 1 exec failed, 2 timed out, 7 skipped",
                "5 passed, 4 failed, 7 skipped",
            ),
            (
                "     Summary [   1.2s] 1 test run: 0 passed, 1 failed (1 due to being leaky), 0 skipped",
                "0 passed, 1 failed, 0 skipped",
            ),
        ];

        for (line, expected) in cases {
            assert_eq!(read(&[line]), expected, "{line}");
        }
    }

    #[test]
    fn libtest_results_of_several_binaries_add_up() {
        let seen = read(&[
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.10s",
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s",
        ]);

        assert_eq!(seen, "5 passed, 1 failed, 1 skipped");
    }

    #[test]
    fn unittest_is_counted_from_its_two_lines() {
        let failed = "FAILED (failures=1, errors=2, skipped=3, expected failures=1)";

        assert_eq!(
            read(&["Ran 22 tests in 3.2s", "", "OK"]),
            "22 passed, 0 failed, 0 skipped"
        );
        assert_eq!(
            read(&["Ran 22 tests in 3.2s", "", "OK (skipped=4)"]),
            "18 passed, 0 failed, 4 skipped"
        );
        assert_eq!(
            read(&["Ran 22 tests in 3.2s", "", failed]),
            "16 passed, 3 failed, 3 skipped"
        );
    }

    #[test]
    fn pytest_is_counted_and_an_error_is_a_failure() {
        let cases = [
            (
                "============================== 29 passed in 41.17s ==============================",
                "29 passed, 0 failed, 0 skipped",
            ),
            (
                "= 1 failed, 12 passed, 2 skipped, 1 warning, 4 subtests passed, 3 errors in 65.22s (0:01:05) =",
                "12 passed, 4 failed, 2 skipped",
            ),
            (
                "1 xfailed, 1 xpassed, 3 deselected in 0.01s",
                "1 passed, 1 failed, 3 skipped",
            ),
        ];

        for (line, expected) in cases {
            assert_eq!(read(&[line]), expected, "{line}");
        }
    }

    #[test]
    fn ex_unit_is_counted_with_its_doctests() {
        let cases = [
            (
                "14 doctests, 21 tests, 0 failures",
                "35 passed, 0 failed, 0 skipped",
            ),
            (
                "1 test, 1 failure, 2 invalid",
                "0 passed, 3 failed, 0 skipped",
            ),
            (
                "9 tests, 1 failure, 2 excluded, 3 skipped",
                "3 passed, 1 failed, 5 skipped",
            ),
        ];

        for (line, expected) in cases {
            assert_eq!(read(&[line]), expected, "{line}");
        }
    }

    #[test]
    fn what_merely_looks_like_a_result_is_not_counted() {
        let seen = read(&[
            "OK",
            "    test result: ok. 3 passed; 0 failed",
            "Summary of 3 tests",
            "3 passed in all",
            "no tests ran in 0.01s",
            "3 tests, of which 0 failures",
        ]);

        assert_eq!(seen, "0 passed, 0 failed, 0 skipped");
    }
}
