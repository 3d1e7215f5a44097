//! What docs/how-to/systemd-workers.md says of a worker's unit, for the worker at hand.

const GUIDE: &str = include_str!("../../../../docs/how-to/systemd-workers.md");

/// The worker that the page speaks of.
const EXAMPLE: &str = "digits.0.7";

/// The name of a worker's unit, but for its agent's part.
pub(crate) fn unit(worker: &str) -> String {
    let name = quoted("Each worker is");
    let of_worker = name.replace("digits.SLOT.INCARNATION", worker);
    assert!(of_worker != name, "`{name}` names no worker");
    of_worker
}

/// Whether a unit has this name.
pub(crate) fn is_called(unit: &str, name: &str) -> bool {
    let parts = name.split_once("AGENT");
    parts.is_some_and(|(before, after)| {
        let rest = unit.strip_prefix(before);
        let agent = rest.and_then(|rest| rest.strip_suffix(after));
        agent.is_some_and(|agent| !agent.is_empty() && !agent.contains('.'))
    })
}

/// The command that stops the unit of a worker.
pub(crate) fn stop(worker: &str) -> String {
    let command = command("stop");
    let of_worker = command.replace(EXAMPLE, worker);
    assert!(of_worker != command, "`{command}` stops another worker");
    of_worker
}

/// The command that restarts Tether.
pub(crate) fn restart() -> String {
    command("restart")
}

/// The command that begins with these words in the first column of a table.
fn command(verb: &str) -> String {
    let begin = format!("systemctl {verb}");
    format!("{begin}{}", quoted(&format!("| `{begin}")))
}

/// What stands up to the next backtick after this, or between the next two.
fn quoted(after: &str) -> &'static str {
    let rest = GUIDE.split_once(after).map(|(_, rest)| rest);
    let rest = rest.unwrap_or_else(|| panic!("the page has no `{after}`"));
    let rest = rest.strip_prefix(" `").unwrap_or(rest);
    rest.split('`').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_its_commands() {
        assert_eq!(stop("w.1.2"), "systemctl stop 'tether-w.1.2.*'");
        assert_eq!(restart(), "systemctl restart tether");
    }

    #[test]
    fn a_unit_is_called_with_its_agent() {
        let name = unit("w.1.2");

        assert!(is_called("tether-w.1.2.a7.service", &name), "{name}");
        for other in [
            "tether-w.1.2.service",
            "tether-w.1.2..service",
            "tether-w.1.3.a7.service",
        ] {
            assert!(!is_called(other, &name), "{other}");
        }
    }
}
