//! `cargo xtask docs`: writes the pages that are made from code; the same tests check them otherwise.

use super::{Task, no_arguments};
use crate::report::Report;

pub(super) const TASK: Task = Task {
    name: "docs",
    arguments: "",
    summary: "write the reference pages that are made from code",
    run: |workspace, arguments| {
        no_arguments(arguments)?;
        let mut report = Report::default();
        for (folder, test) in PAGES {
            let mut cargo = workspace.cargo("test --locked --test");
            cargo
                .arg(test)
                .arg("--manifest-path")
                .arg(workspace.root().join(folder).join("Cargo.toml"))
                .arg(WRITERS)
                .env(SWITCH, "1");
            report.suite(&format!("{folder} {test}"), cargo);
        }
        Ok(report.finish())
    },
};

/// What makes such a test write its page.
const SWITCH: &str = "UPDATE_DOCS";

/// What the names of tests that write a page have in common.
const WRITERS: &str = "the_documented_";

/// Crates with a test that writes a page, and the test's name.
const PAGES: &[(&str, &str)] = &[
    ("libs/lifecycle", "crash_matrix"),
    ("services/gateway", "gateway"),
    ("services/tether", "metrics_reference"),
];

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn every_test_that_writes_a_page_is_listed() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut found = Vec::new();

        for group in ["libs", "services"] {
            for crate_folder in fs::read_dir(root.join(group)).unwrap().flatten() {
                for test in fs::read_dir(crate_folder.path().join("tests"))
                    .into_iter()
                    .flatten()
                    .flatten()
                {
                    if writes_a_page(&test.path()) {
                        let folder =
                            format!("{group}/{}", crate_folder.file_name().to_str().unwrap());
                        let test = test
                            .path()
                            .file_stem()
                            .unwrap()
                            .to_str()
                            .unwrap()
                            .to_owned();
                        found.push((folder, test));
                    }
                }
            }
        }

        found.sort();
        let listed: Vec<_> = PAGES
            .iter()
            .map(|(folder, test)| ((*folder).to_owned(), (*test).to_owned()))
            .collect();
        assert_eq!(found, listed);
    }

    /// Whether this file, or one in this folder, asks for the switch.
    fn writes_a_page(path: &Path) -> bool {
        match fs::read_dir(path) {
            Ok(folder) => folder.flatten().any(|file| writes_a_page(&file.path())),
            Err(_) => fs::read_to_string(path).is_ok_and(|text| text.contains(SWITCH)),
        }
    }
}
