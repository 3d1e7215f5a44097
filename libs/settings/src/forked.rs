//! Workers that are forked from a Python process which has imported what they need.

use serde::{Deserialize, Serialize};
use tether_proto::pool as wire;

/// What can be set under `[template.NAME.forked_from]`. `command` is then the Python interpreter, and `args`
/// a script, or `-m` and a module, with its arguments: without this table the same template starts cold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ForkedFrom {
    /// Modules to import once, before the first fork.
    pub imports: Vec<String>,
}

impl ForkedFrom {
    /// As the services speak of it.
    pub(crate) fn to_wire(&self) -> wire::ForkedFrom {
        wire::ForkedFrom {
            imports: self.imports.clone(),
        }
    }
}

/// The pool that the processes are in from which workers are forked. No other may have its name.
pub const FORKSERVER_POOL: &str = "forkserver";

/// Which setting of a template no forked worker can have, and why; nothing where all is well.
pub fn wrong_with_fork(template: &wire::Template) -> Option<(&'static str, String)> {
    let fork = template.forked_from.as_ref()?;
    let inherited = "a forked worker has that of the process it is forked from, which has one for all: leave it out, or leave out \
                     `forked_from`";
    let whose = [
        ("process.user", !template.user.is_empty()),
        ("process.group", !template.group.is_empty()),
        ("process.groups", !template.groups.is_empty()),
        (
            "process.resource_limits",
            !template.resource_limits.is_empty(),
        ),
        ("process.pty", template.pty),
    ];
    if let Some((key, _)) = whose.into_iter().find(|(_, is_set)| *is_set) {
        return Some((key, inherited.to_owned()));
    }
    let placeholder = |text: &str| text.contains('{');
    if placeholder(&template.command) {
        let why = "one interpreter is started for all workers of a template that has `forked_from`: write its path without placeholders";
        return Some(("command", why.to_owned()));
    }
    let mut args = template.args.iter().map(String::as_str);
    let runs = match args.next() {
        None | Some("") => false,
        Some("-m") => args.next().is_some_and(|module| !module.is_empty()),
        Some(script) => !script.starts_with('-'),
    };
    if !runs {
        let why = "a forked worker runs a script, or `-m` and a module: write for example args = [\"worker.py\"]; options of the \
                   interpreter have no effect on what is forked";
        return Some(("args", why.to_owned()));
    }
    let is_module = |name: &String| {
        let word = |part: &str| {
            !part.is_empty()
                && !part.starts_with(|first: char| first.is_ascii_digit())
                && part.chars().all(|c| c == '_' || c.is_alphanumeric())
        };
        name.split('.').all(word)
    };
    let wrong = fork.imports.iter().find(|name| !is_module(name))?;
    let why = format!("`{}` is not the name of a module", wrong.escape_debug());
    Some(("forked_from.imports", why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Templates, check_templates};

    #[test]
    fn what_a_fork_cannot_have_is_refused_by_its_key() {
        let refused = |text: &str| {
            let text =
                format!("[a]\ncommand = 'python3'\nforked_from = {{ imports = ['grpc'] }}\n{text}");
            let templates: Templates = toml::from_str(&text).unwrap();
            check_templates(&templates)
                .err()
                .map(|wrong| wrong.to_string())
        };
        let script = "args = ['worker.py']\n";

        assert_eq!(refused(script), None);
        assert_eq!(
            refused("args = ['-m', 'worker.main', '-x']\nprocess = { nice = 5, umask = '027' }"),
            None
        );
        for (key, text) in [
            ("process.user", "process = { user = 'nobody' }"),
            ("process.group", "process = { group = 'nogroup' }"),
            ("process.groups", "process = { groups = ['nogroup'] }"),
            ("process.pty", "process = { pty = true }"),
            (
                "process.resource_limits",
                "process = { resource_limits = { nofile = 64 } }",
            ),
        ] {
            let why = refused(&format!("{script}{text}")).unwrap();
            assert!(why.starts_with(&format!("`template.a.{key}`")), "{why}");
        }
        for args in [
            "",
            "args = ['-u', 'worker.py']",
            "args = ['-m']",
            "args = ['-c', 'pass']",
        ] {
            let why = refused(args).unwrap();
            assert!(why.starts_with("`template.a.args`"), "{why}");
        }
    }

    #[test]
    fn an_interpreter_is_one_for_all_and_a_module_has_a_name() {
        let with = |command: &str, import: &str| wire::Template {
            command: command.into(),
            args: vec!["worker.py".into()],
            forked_from: Some(wire::ForkedFrom {
                imports: vec![import.into()],
            }),
            ..wire::Template::default()
        };
        let key = |template: &wire::Template| wrong_with_fork(template).map(|(key, _)| key);

        assert_eq!(key(&with("python3", "grpc._cython.cygrpc")), None);
        assert_eq!(key(&with("{dir}/python", "grpc")), Some("command"));
        for import in ["", "a b", "a.", "7a", "--import"] {
            assert_eq!(key(&with("python3", import)), Some("forked_from.imports"));
        }
    }
}
