//! What neither rustfmt nor clippy looks for: rules on the text of the files of this checkout.

use std::{fs, path::Path};

use crate::{front_page, process_rules, workspace::Workspace};

/// One rule on the text of a file.
pub(crate) struct Lint {
    /// What it keeps, in a few words.
    pub(crate) name: &'static str,
    /// Finds the lines that break it; the first line is 1.
    pub(crate) find: fn(path: &str, text: &str) -> Vec<Finding>,
}

/// A line that breaks a rule.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Counted from 1.
    pub(crate) line: usize,
    /// What is wrong and what to do.
    pub(crate) problem: String,
}

/// Every rule, in the order they are reported.
pub(crate) const ALL: &[Lint] = &[
    Lint {
        name: "no machine's paths",
        find: machine_paths,
    },
    Lint {
        name: "no registry's host",
        find: registry_hosts,
    },
    Lint {
        name: "how processes are made and ended",
        find: process_rules::broken,
    },
    Lint {
        name: "front pages",
        find: front_page::missing,
    },
];

// Written in two halves, so that this file keeps its own rules.
const MACHINE_PATHS: &[&str] = &[
    concat!("/ro", "ot/"),
    concat!("/wo", "rk/"),
    concat!("/ho", "me/"),
    concat!("/tmp/tar", "get"),
];
const REGISTRY_HOSTS: &[&str] = &[
    concat!("crates", ".io"),
    concat!("pypi", ".org"),
    concat!("python", "hosted.org"),
    concat!("npm", "js.org"),
    concat!("npm", "js.com"),
    concat!("hex", ".pm"),
    concat!("proxy.go", "lang.org"),
];

/// Runs one rule over every file git knows or would add.
pub(crate) fn check(workspace: &Workspace, lint: &Lint) -> Result<(), Vec<String>> {
    let mut findings = Vec::new();
    for path in files(workspace).map_err(|problem| vec![problem])? {
        // A file that is deleted but not yet committed, a link to a folder, or not text.
        let Ok(text) = fs::read_to_string(workspace.root().join(&path)) else {
            continue;
        };
        for Finding { line, problem } in (lint.find)(&path, &text) {
            findings.push(format!("{path}:{line}: {problem}"));
        }
    }
    if findings.is_empty() {
        Ok(())
    } else {
        Err(findings)
    }
}

fn files(workspace: &Workspace) -> Result<Vec<String>, String> {
    let mut git = workspace.program("git");
    git.args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]);
    let output = git
        .output()
        .map_err(|error| format!("cannot run `git`: {error}"))?;
    if !output.status.success() {
        return Err("cannot list files: `git ls-files` failed; is this a git checkout?".to_owned());
    }
    let names = String::from_utf8_lossy(&output.stdout);
    Ok(names.split_terminator('\0').map(str::to_owned).collect())
}

fn machine_paths(_path: &str, text: &str) -> Vec<Finding> {
    let mut findings = containing(
        text,
        MACHINE_PATHS,
        "is a path of one machine; say it relative to the checkout",
    );
    // A folder within the checkout may have the same name.
    findings.retain(|(before, _)| {
        !before.is_some_and(|letter| letter.is_alphanumeric() || "._-}*".contains(letter))
    });
    findings.into_iter().map(|(_, finding)| finding).collect()
}

fn registry_hosts(path: &str, text: &str) -> Vec<Finding> {
    // Lock files are written by the package manager, which names its source in them.
    if Path::new(path)
        .extension()
        .is_some_and(|extension| extension == "lock")
    {
        return Vec::new();
    }
    let findings = containing(
        text,
        REGISTRY_HOSTS,
        "is a registry's host; name the package, and let the user's own configuration say where it comes from",
    );
    findings.into_iter().map(|(_, finding)| finding).collect()
}

/// Every line with one of `needles` in it, with the letter before.
fn containing(text: &str, needles: &[&str], verdict: &str) -> Vec<(Option<char>, Finding)> {
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for needle in needles {
            for (at, _) in line.match_indices(needle) {
                let finding = Finding {
                    line: index + 1,
                    problem: format!("`{needle}` {verdict}"),
                };
                found.push((line[..at].chars().next_back(), finding));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(findings: &[Finding]) -> Vec<usize> {
        findings.iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn a_path_of_one_machine_is_found_and_one_of_the_checkout_is_not() {
        let text = format!(
            "fine\ncd {0}main\n\"{0}x\"\nexamples{0}x\ntest{1}",
            MACHINE_PATHS[1], MACHINE_PATHS[0]
        );

        assert_eq!(lines(&machine_paths("README.md", &text)), [2, 3]);
    }

    #[test]
    fn a_registry_is_found_anywhere_but_in_a_lock_file() {
        let text = format!("\nsource = \"https://index.{}/x\"", REGISTRY_HOSTS[0]);

        assert_eq!(lines(&registry_hosts("a/Cargo.toml", &text)), [2]);
        assert_eq!(registry_hosts("Cargo.lock", &text), []);
    }
}
