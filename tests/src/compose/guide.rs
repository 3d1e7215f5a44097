//! The commands of guides, which are those that are run here.

use std::time::Duration;

use anyhow::{Context as _, ensure};

use tokio::time::timeout;

use crate::{docker::repository, stack::Stack};

/// Longest time for a section: an upgrade of everything on a busy machine takes most.
const PATIENCE: Duration = Duration::from_secs(900);

/// That of the whole cluster.
pub(crate) const CLUSTER: &str = "docs/how-to/docker-compose.md";

/// Runs what stands behind a `$` in a section, as one script that ends with the first command that fails.
pub(crate) async fn follow(stack: &Stack, guide: &str, section: &str) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(repository().join(guide))?;
    let script = commands(&text, section);
    ensure!(!script.is_empty(), "no command in `{section}` of {guide}");
    let mut shell = stack.command("sh");
    // What clients need is what load.py says.
    shell.args(["-exc", &script]).env("CLIENTS_LEARN", "3");
    let output = timeout(PATIENCE, shell.output()).await;
    let output = output.with_context(|| format!("`{section}` of {guide} does not end"))?;
    let output = output.context("`sh` cannot be run")?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(
        output.status.success(),
        "`{section}` of {guide}: {}",
        String::from_utf8_lossy(&said)
    );
    Ok(())
}

fn commands(text: &str, section: &str) -> String {
    let heading = format!("## {section}");
    let within = text.lines().skip_while(|line| *line != heading).skip(1);
    let within = within.take_while(|line| !line.starts_with("## "));
    within
        .filter_map(|line| line.strip_prefix("$ "))
        .map(|command| format!("{command}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_those_of_their_section_in_order() {
        let text = "## One\n$ a\nsays\n$ b\n## Two\n$ c\n";

        assert_eq!(commands(text, "One"), "a\nb\n");
        assert_eq!(commands(text, "Two"), "c\n");
        assert_eq!(commands(text, "Three"), "");
    }
}
