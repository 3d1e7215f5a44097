//! `tether lease-check`: whether histories keep the promises.

use serde::Serialize;
use tether_history::{Checker, Lines, Report, Rule, files_in};

use crate::{
    cli::LeaseCheck,
    output::{Output, Row},
};

/// One rule.
#[derive(Debug, Serialize)]
struct RuleRow {
    rule: Rule,
    promise: &'static str,
    held: u64,
    broken: usize,
    unjudged: u64,
}

impl RuleRow {
    fn of(rule: Rule, report: &Report) -> Self {
        let count = |of: &std::collections::BTreeMap<Rule, u64>| of.get(&rule).copied();
        let broken = report.violations.iter();
        Self {
            rule,
            promise: rule.promise(),
            held: count(&report.held).unwrap_or(0),
            broken: broken.filter(|broken| broken.rule == rule).count(),
            unjudged: count(&report.unjudged).unwrap_or(0),
        }
    }
}

impl Row for RuleRow {
    const HEAD: &'static [&'static str] = &["RULE", "PROMISE", "HELD", "BROKEN", "UNJUDGED"];

    fn cells(&self) -> Vec<String> {
        vec![
            format!("{:?}", self.rule),
            self.promise.to_owned(),
            self.held.to_string(),
            self.broken.to_string(),
            self.unjudged.to_string(),
        ]
    }
}

/// Reads, judges, and fails where a promise was broken.
pub(crate) fn lease_check(args: &LeaseCheck, out: &Output) -> anyhow::Result<()> {
    let mut checker = Checker::new();
    for path in &args.paths {
        for file in files_in(path)? {
            checker.next_file();
            for record in Lines::open(&file)? {
                checker.read(&record?);
            }
        }
    }
    let report = checker.finish();
    if out.is_json() {
        out.line(&serde_json::to_string_pretty(&report)?)?;
    } else {
        let rows: Vec<_> = Rule::ALL
            .iter()
            .map(|&rule| RuleRow::of(rule, &report))
            .collect();
        out.list(&rows)?;
        for broken in &report.violations {
            out.line(&broken.to_string())?;
        }
    }
    let broken = report.violations.len();
    anyhow::ensure!(
        broken == 0,
        "the history breaks a promise {broken} times, of {} lines",
        report.lines
    );
    Ok(())
}
