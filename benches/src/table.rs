//! Figures as a table of Markdown, so that no number of a document is copied by hand.

use std::collections::BTreeSet;

use crate::figure::Figure;

/// All figures, a column for ours and for each peer.
pub(crate) fn markdown(figures: &[Figure]) -> String {
    let peers: BTreeSet<_> = figures.iter().flat_map(Figure::peers).collect();
    let mut table = String::from("| figure | ours |");
    for peer in &peers {
        table += &format!(" {peer} |");
    }
    table += " target |\n| --- |";
    table += &" --- |".repeat(peers.len() + 2);
    for figure in figures {
        table += &format!(
            "\n| {} | {} |",
            figure.title(),
            number(figure.value("ours"))
        );
        for peer in &peers {
            table += &format!(" {} |", number(figure.value(peer)));
        }
        table += &format!(" {} |", figure.verdict());
    }
    table + "\n"
}

/// As many digits as say something.
fn number(value: Option<f64>) -> String {
    match value {
        None => String::new(),
        Some(0.0) => "0".to_owned(),
        Some(value) if value.abs() < 1.0 => format!("{value:.3}"),
        Some(value) if value.abs() < 100.0 => format!("{value:.2}"),
        Some(value) => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::Target;

    #[test]
    fn a_table_has_a_place_for_each_peer_and_says_what_was_missed() {
        let figures = [
            Figure::new("a call", "us")
                .ours(12.3)
                .peer("haproxy", Ok(10.0))
                .target(Target::Share(0.9, "haproxy")),
            Figure::new("failed", "").ours(0.0).peer("envoy", Ok(0.25)),
        ];

        let table = markdown(&figures);

        assert_eq!(
            table,
            "| figure | ours | envoy | haproxy | target |\n\
             | --- | --- | --- | --- | --- |\n\
             | a call, us | 12.30 |  | 10.00 | 0.9 (ours over haproxy at most the target): 1.23, MISSED |\n\
             | failed | 0 | 0.250 |  |  |\n"
        );
    }
}
