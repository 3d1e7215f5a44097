//! The page that says what is compared lists every case as the code does.

use std::{fmt::Write as _, fs, path::Path};

use super::{
    Speaks, answers,
    attacks::{self, Ends},
    cases, shapes,
};

const ABOVE: &str = include_str!("reference.md");

#[test]
fn the_documented_cases_match_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/conformance.md");
    let written = document();

    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &written).unwrap();
    }

    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == written,
        "run `cargo xtask docs` to write docs/reference/conformance.md again"
    );
}

fn document() -> String {
    let cases = cases::all();
    let mut page = ABOVE.to_owned();
    let mut groups: Vec<&str> = cases.iter().map(|case| case.group).collect();
    groups.dedup();
    for group in groups {
        let of_group = cases.iter().filter(|case| case.group == group);
        let names: Vec<&str> = of_group.map(|case| case.name.as_str()).collect();
        match group {
            "bodies" => section(&mut page, group, names.len(), &lengths()),
            _ => section(&mut page, group, names.len(), &names.join("; ")),
        }
    }
    let shapes: Vec<&str> = shapes::all().iter().map(|shape| shape.name).collect();
    section(
        &mut page,
        "frames made by hand",
        shapes.len(),
        &shapes.join("; "),
    );
    let answers = answers::cases(Speaks::Grpcio);
    let answers: Vec<&str> = answers.iter().map(|case| case.name.as_str()).collect();
    section(&mut page, "odd answers", answers.len(), &answers.join("; "));
    let attacks = [attacks::prefaces(), attacks::all()].concat();
    let _ = writeln!(page, "\n### malformed frames ({})\n", attacks.len());
    page.push_str("| what a client sends | how it must end |\n| --- | --- |\n");
    for (name, _, ends) in attacks {
        let _ = writeln!(page, "| {name} | {} |", end(ends));
    }
    page
}

fn section(page: &mut String, name: &str, count: usize, text: &str) {
    let _ = writeln!(page, "\n### {name} ({count})\n\n{text}.");
}

fn lengths() -> String {
    let lengths = cases::lengths();
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for length in lengths {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == length => *last = length,
            _ => runs.push((length, length)),
        }
    }
    let runs: Vec<String> = runs
        .into_iter()
        .map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first} to {last}"),
        })
        .collect();
    format!(
        "Every length of {} bytes: in a unary call both ways, in an upload, and in a stream down; the streams with a message of one byte between two of that length",
        runs.join(", ")
    )
}

fn end(ends: Ends) -> String {
    let codes = |codes: &[u32]| -> String {
        let names = codes.iter().map(|code| name(*code));
        names.collect::<Vec<_>>().join(" or ")
    };
    match ends {
        Ends::Connection(which) => format!("the connection is closed: {}", codes(which)),
        Ends::Closed => "the connection is closed".to_owned(),
        Ends::Stream(which) => format!("the stream alone is reset: {}", codes(which)),
        Ends::Either(which) => format!(
            "the stream is reset, or the connection closed: {}",
            codes(which)
        ),
        Ends::Answered(status) => format!("HTTP {status}"),
        Ends::Ignored => "nothing happens".to_owned(),
        Ends::Tolerated(which) => {
            format!(
                "nothing with h2; our own resets the stream alone: {}",
                codes(which)
            )
        }
    }
}

fn name(code: u32) -> &'static str {
    match code {
        1 => "PROTOCOL_ERROR",
        3 => "FLOW_CONTROL_ERROR",
        5 => "STREAM_CLOSED",
        6 => "FRAME_SIZE_ERROR",
        9 => "COMPRESSION_ERROR",
        _ => "another",
    }
}
