//! The crash matrix of the documentation is written from the code.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{fmt::Write, fs, path::Path};

use tether_lifecycle::{Loss, Mode};

#[test]
fn the_documented_crash_matrix_matches_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/crash-matrix.md");
    let written = document();

    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &written).unwrap();
    }

    let found = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        found, written,
        "run this test with UPDATE_DOCS=1 to write docs/reference/crash-matrix.md again"
    );
}

fn document() -> String {
    let mut text = String::from(
        "# Crash matrix\n\n\
         What becomes of workers when something is lost, in each lifecycle mode. Written from the code of\n\
         `tether-lifecycle`; its test writes this page again when run with `UPDATE_DOCS=1`.\n\n\
         `continue` means for as long as the agent, or the one that adopts the worker, has its lease. When that is\n\
         over a worker gets no calls, and it ends when `partition_grace` has passed as well; one that does a job ends\n\
         `job_ttl` after its node was last heard, if that is later. A place is filled again only after that, or on\n\
         proof of death. `run for` counts from the owner's last sign of life.\n\n",
    );
    row(&mut text, "what is lost", |mode| format!("`{mode}`"));
    row(&mut text, "---", |_| "---".to_owned());
    for &loss in Loss::ALL {
        row(&mut text, loss.summary(), |mode| {
            mode.preset().on(loss).to_string()
        });
    }

    text.push_str("\n## The modes\n\n");
    for mode in Mode::ALL {
        writeln!(text, "* `{mode}`: {}", mode.summary()).unwrap();
    }

    text.push_str(
        "\n## What each mode sets\n\nAny of these can be set in a pool's `[policy]`.\n\n",
    );
    row(&mut text, "setting", |mode| format!("`{mode}`"));
    row(&mut text, "---", |_| "---".to_owned());
    row(&mut text, "`launcher`", |mode| {
        mode.preset().launcher.to_string()
    });
    row(&mut text, "`on_owner_exit`", |mode| {
        mode.preset().on_owner_exit.to_string()
    });
    row(&mut text, "`on_owner_silent`", |mode| {
        mode.preset().on_owner_silent.to_string()
    });
    row(&mut text, "`on_owner_goodbye`", |mode| {
        mode.preset().on_owner_goodbye.to_string()
    });
    row(&mut text, "`on_agent_loss`", |mode| {
        mode.preset().on_agent_loss.to_string()
    });
    row(&mut text, "`heartbeat_interval`", |mode| {
        format!("{:?}", mode.preset().heartbeat_interval)
    });
    row(&mut text, "`heartbeat_timeout`", |mode| {
        format!("{:?}", mode.preset().heartbeat_timeout)
    });
    row(&mut text, "`partition_grace`", |mode| {
        format!("{:?}", mode.preset().partition_grace)
    });
    row(&mut text, "`job_ttl`", |mode| {
        format!("{:?}", mode.preset().job_ttl)
    });
    text
}

fn row(text: &mut String, head: &str, cell: impl Fn(Mode) -> String) {
    let cells: Vec<_> = Mode::ALL.iter().map(|&mode| cell(mode)).collect();
    writeln!(text, "| {head} | {} |", cells.join(" | ")).unwrap();
}
