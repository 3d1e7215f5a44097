//! A source file that takes scrolling to read says in its first sentence what it is for.

use crate::lints::Finding;

/// A file of one screen is its own summary.
const ONE_SCREEN: usize = 40;

/// The finding for a Rust source file over one screen that does not open with a `//!` sentence.
pub(crate) fn missing(path: &str, text: &str) -> Vec<Finding> {
    let source = path.ends_with(".rs") && path.split('/').any(|folder| folder == "src");
    if !source || text.lines().count() <= ONE_SCREEN || text.starts_with("//!") {
        return Vec::new();
    }
    vec![Finding {
        line: 1,
        problem: format!(
            "more than {ONE_SCREEN} lines and no front page; open it with a `//!` sentence"
        ),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_long_source_files_need_a_front_page() {
        let long = "fn f() {}\n".repeat(41);
        let cases = [
            ("libs/x/src/lib.rs", long.clone(), 1),
            ("libs/x/src/lib.rs", format!("//! Does it.\n{long}"), 0),
            ("libs/x/src/lib.rs", "fn f() {}\n".repeat(40), 0),
            ("libs/x/tests/a.rs", long.clone(), 0),
            ("libs/x/src/notes.md", long, 0),
        ];

        for (path, text, expected) in cases {
            assert_eq!(
                missing(path, &text).len(),
                expected,
                "{path}, {} lines",
                text.lines().count()
            );
        }
    }
}
