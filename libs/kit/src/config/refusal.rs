//! A configuration that is refused: the line, the reason, and what was probably meant.

use std::{fs, path::Path};

use miette::{Diagnostic, NamedSource, SourceSpan};

use super::{Origin, overrides::Override};

/// Two words this alike are taken for a slip of the finger.
const ALIKE: f64 = 0.8;

#[derive(Debug, thiserror::Error, Diagnostic)]
#[error("{message}")]
pub(super) struct Refusal {
    message: String,
    #[help]
    help: String,
    #[source_code]
    source_code: Option<NamedSource<String>>,
    #[label("here")]
    at: Option<SourceSpan>,
}

impl Refusal {
    pub(super) fn new(message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            help: meant(&message).unwrap_or_else(|| {
                "run `tether config show` to print every setting with the place it came from"
                    .to_owned()
            }),
            message,
            source_code: None,
            at: None,
        }
    }

    pub(super) fn help(mut self, help: &str) -> Self {
        self.help = help.to_owned();
        self
    }

    pub(super) fn in_file(path: &Path, text: &str, error: &toml::de::Error) -> Self {
        let mut refusal = Self::new(error.message());
        let name = path.display().to_string();
        refusal.source_code = Some(NamedSource::new(name, text.to_owned()));
        refusal.at = error.span().map(SourceSpan::from);
        refusal
    }

    /// Points at where `key` was set.
    pub(super) fn at_origin(message: impl Into<String>, key: &str, origin: &Origin) -> Self {
        let mut refusal = Self::new(message);
        let (name, text, start, len) = match origin {
            Origin::File(path, line) => {
                // Read once more, only to show the line; one that cannot be read now is named all the same.
                let text = fs::read_to_string(path).unwrap_or_default();
                let start = text
                    .split_inclusive('\n')
                    .take(line - 1)
                    .map(str::len)
                    .sum();
                let shown = text.get(start..).and_then(|rest| rest.lines().next());
                let len = shown.map_or(0, |shown| shown.trim_end().len());
                (path.display().to_string(), text, start, len)
            }
            Origin::Environment(variable) => {
                let line = format!("{variable} sets {key}");
                ("environment".to_owned(), line, 0, variable.len())
            }
            Origin::Flag => {
                let line = format!("--set {key}");
                let len = line.len();
                ("command line".to_owned(), line, 0, len)
            }
        };
        refusal.source_code = Some(NamedSource::new(name, text));
        refusal.at = Some((start, len).into());
        refusal
    }

    pub(super) fn in_override(over: &Override, message: &str) -> Self {
        let mut refusal = Self::new(message);
        let (layer, line) = match &over.origin {
            Origin::Environment(name) => ("environment", format!("{name}={}", over.text)),
            _ => (
                "command line",
                format!("--set {}={}", super::dotted(&over.path), over.text),
            ),
        };
        refusal.at = Some((0, line.len()).into());
        refusal.source_code = Some(NamedSource::new(layer, line));
        refusal
    }
}

/// Reads serde's "unknown field `x`, expected one of `a`, `b`" and finds what is most like `x`.
fn meant(message: &str) -> Option<String> {
    if !message.starts_with("unknown ") {
        return None;
    }
    let mut words = message.split('`').skip(1).step_by(2);
    let given = words.next()?;
    let (likeness, best) = words
        .map(|word| (strsim::jaro_winkler(given, word), word))
        .max_by(|a, b| a.0.total_cmp(&b.0))?;
    (likeness > ALIKE).then(|| format!("did you mean `{best}`?"))
}
