//! The design's matrix of modes, crashes and recoveries: what is expected beside what was seen, read from the evidence of
//! the suites that play its rows on their grounds.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser;
use tether_tests::evidence::{Evidence, Found, Report};

#[path = "../modes/plan.rs"]
mod plan;
#[path = "../modes/rows.rs"]
mod rows;

use plan::{Row, Suite, Verdict};

/// Reads what the suites have seen, and judges each row by it.
#[derive(Debug, Parser)]
struct Args {
    /// The folder below which the suites have written their evidence.
    #[arg(long, default_value = "target")]
    evidence: PathBuf,
    /// Only rows whose mode and scenario contain one of these, separated by `|`.
    #[arg(long)]
    only: Option<String>,
    /// Tells what each suite has to play for that, and ends.
    #[arg(long)]
    needs: bool,
    /// Writes the page of the documentation here: all of it, so only where every row is looked at.
    #[arg(long, conflicts_with = "only")]
    docs: Option<PathBuf>,
    /// Writes the evidence to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// A row, and what the suites have to say of it.
struct Judged {
    row: &'static Row,
    demanded: String,
    verdict: Verdict,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let only = args.only.as_deref().unwrap_or_default();
    let wanted = |row: &&Row| only.split('|').any(|text| row.name().contains(text));
    let rows: Vec<_> = rows::ALL.iter().filter(wanted).collect();
    if args.needs {
        for (suite, scenes) in plan::needs(&rows) {
            let _ = writeln!(io::stdout(), "{}\t{}", suite.name(), scenes.join("|"));
        }
        return ExitCode::SUCCESS;
    }
    let suites = read(&args.evidence, &rows);
    let judged: Vec<_> = rows
        .into_iter()
        .map(|row| {
            let find = |claim: &plan::Claim| {
                let suite = suites.get(&claim.suite);
                suite.map_or(Found::Missing, |suite| suite.find(claim.name))
            };
            Judged {
                row,
                demanded: row.demanded(find),
                verdict: row.judge(find),
            }
        })
        .collect();
    let mut report = Report::default();
    for Judged { row, verdict, .. } in &judged {
        let evidence = |seen: &String, holds| Evidence::new(row.name(), row.expected, seen, holds);
        match verdict {
            Verdict::Holds(seen) => report.add(evidence(seen, true)),
            Verdict::Differs(seen) => report.add(evidence(seen, false)),
            Verdict::Skipped(why) => report.skip([row.name()], &format!("{}: {why}", row.name())),
        }
    }
    if let Some(file) = &args.docs
        && let Err(error) = fs::write(file, page(&judged))
    {
        report.complain(&format!("cannot write `{}`: {error}", file.display()));
        return ExitCode::FAILURE;
    }
    report.finish(args.json.as_deref())
}

/// What the suites have written. One that has written nothing has shown nothing.
fn read(folder: &Path, rows: &[&Row]) -> BTreeMap<Suite, Report> {
    let suites = plan::needs(rows).into_keys();
    suites
        .filter_map(|suite| Some((suite, Report::read(&folder.join(suite.evidence())).ok()?)))
        .collect()
}

fn page(judged: &[Judged]) -> String {
    let mut page = "# Matrix of modes\n\nWritten by `cargo xtask matrix modes --docs` from the evidence of the suites that play its rows. \
         Expected is what the first design's matrices say, [as corrected](../adr/0014-corrections-to-the-first-design.md); \
         beside it is what each suite demands for that, in its own words. A difference fails it.\n\n\
         | mode | what happens | expected | demanded | seen | on |\n| --- | --- | --- | --- | --- | --- |\n"
        .to_owned();
    for Judged {
        row,
        demanded,
        verdict,
    } in judged
    {
        let seen = match verdict {
            Verdict::Holds(seen) => seen.clone(),
            Verdict::Differs(seen) => format!("**differs**: {seen}"),
            Verdict::Skipped(why) => format!("not looked at: {why}"),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            page,
            "| {} | {} | {} | {} | {} | {} |",
            row.mode,
            row.scenario,
            row.expected,
            demanded.replace('|', "\\|"),
            seen.replace('|', "\\|"),
            row.ground()
        );
    }
    page + "\n## Not in the table\n\n\
        * **A breaker that opens.** None does here: whoever dies, drains or is cut off is known by its agent's word or its lease before \
          calls have failed often enough ([corrections](../adr/0014-corrections-to-the-first-design.md)). That breakers open, and when, is \
          in the tests of `libs/breaker` and `services/gateway`.\n\
        * **Partitions of coupled and supervised pools.** Owner and worker are on one machine.\n\
        * Examples, which `cargo xtask demo` runs.\n"
}
