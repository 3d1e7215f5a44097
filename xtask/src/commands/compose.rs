//! `cargo xtask ground compose`: docker-compose.yml on a real engine, into target/ground/compose.json.

use std::{fs, path::Path};

use super::matrix;
use crate::{debian, report::Report, workspace::Workspace};

/// Programs on an empty base, which are linked statically for it.
const STATIC: &[&str] = &["tether-arbiter", "tether-discovery", "tether-gateway"];

/// Programs on a base that has a libc; they stay as they were built.
const OTHERS: &[&str] = &["tether", "tether-agent"];

/// Fetches the engine and what images are made of. Where that cannot be, the suite says so and is skipped.
pub(super) fn prepare(workspace: &Workspace, report: &mut Report) {
    let others = debian::ALL.iter().chain(debian::GROUNDS);
    let others = others.filter(|program| ["etcd", "debootstrap"].contains(&program.name));
    for wanted in debian::DOCKER.iter().chain(others) {
        if let Err(why) = debian::provide(workspace, wanted) {
            println!("{why}");
        }
    }
    report.prepare("root of images", {
        let mut made = workspace.program("sh");
        made.args(["-c", "tools/image-root.sh || true"]);
        made
    });
}

/// Brings the stack up, and sees what becomes of it.
pub(super) fn compose(
    workspace: &Workspace,
    report: &mut Report,
    flags: &[String],
) -> Result<(), String> {
    let folder = workspace.target().join("ground");
    let programs = folder.join("programs");
    fs::create_dir_all(&programs)
        .map_err(|error| format!("cannot make `{}`: {error}", programs.display()))?;
    let linked = STATIC.iter().all(|name| link(workspace, report, name));
    let mut all = STATIC.iter().chain(OTHERS);
    if !(linked && all.all(|name| strip(workspace, report, &programs, name))) {
        return Err("programs for images cannot be built".to_owned());
    }
    let mut suite = workspace.program(workspace.target().join("debug/compose"));
    suite.arg("--programs").arg(&programs);
    matrix::with_evidence(&mut suite, &folder.join("compose.json"), flags)?;
    report.suite("docker-compose", suite);
    Ok(())
}

/// Links one program anew; what it is made of is compiled as for the others.
fn link(workspace: &Workspace, report: &mut Report, name: &str) -> bool {
    let link = format!("rustc --locked -p {name} --bin {name} -- -C target-feature=+crt-static");
    report.prepare(&format!("static {name}"), workspace.cargo(&link))
}

fn strip(workspace: &Workspace, report: &mut Report, programs: &Path, name: &str) -> bool {
    let mut strip = workspace.program("strip");
    strip
        .arg("-o")
        .arg(programs.join(name))
        .arg(workspace.target().join("debug").join(name));
    report.prepare(&format!("stripped {name}"), strip)
}
