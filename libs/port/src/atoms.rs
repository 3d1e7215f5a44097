//! The atoms that are said to the BEAM, which decodes with `[:safe]`: it must have all of them.

/// Every one, in the order of the reference.
pub const ATOMS: &[&str] = &[
    // Of values.
    "nil",
    "true",
    "false",
    // First of tuples.
    "welcome",
    "refused",
    "session",
    "connection",
    "reply",
    "item",
    "headers",
    "message",
    "sent",
    // Second ones.
    "ok",
    "error",
    "opened",
    "warning",
    "renewed",
    "lost",
    "up",
    "down",
    // Values.
    "lease_expired",
    "fenced",
    "closed",
    "not_sent",
    "unknown",
    "failed",
    // Keys.
    "version",
    "program",
    "embedded",
    "gateways",
    "gateway",
    "reason",
    "epoch",
    "ttl",
    "pools",
    "remaining",
    "body",
    "metadata",
    "trailers",
    "worker",
    "code",
    "retry_after",
    "outcome",
    "attempts",
    "details",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_atoms_are_those_that_are_said() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/port.md");
        let page = std::fs::read_to_string(page).unwrap();
        let (_, page) = page.split_once("## Atoms").unwrap();
        let documented: Vec<_> = page.split('`').skip(1).step_by(2).collect();

        assert_eq!(documented, ATOMS);
    }
}
