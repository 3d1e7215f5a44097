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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// The source files below a folder.
    fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|end| end == "rs") {
                found.push(path);
            }
        }
    }

    /// What a file includes from outside of its crate's own folder, by its path in the workspace.
    fn included(root: &Path, source: &Path) -> Vec<PathBuf> {
        let text = fs::read_to_string(source).expect("a source");
        let folder = source.parent().and_then(|it| it.strip_prefix(root).ok());
        let folder = folder.expect("a folder of the workspace");
        let strings = text.split("include_str!(\"../").skip(1);
        let bytes = text.split("include_bytes!(\"../").skip(1);
        strings
            .chain(bytes)
            .filter_map(|after| after.split('"').next())
            .map(|path| {
                let mut whole = folder.to_owned();
                for part in Path::new("..").join(path).iter() {
                    match part.to_str() {
                        Some("..") => drop(whole.pop()),
                        _ => whole.push(part),
                    }
                }
                whole
            })
            .collect()
    }

    #[test]
    fn what_programs_include_is_copied_to_where_images_build_them() {
        let workspace = Workspace::find().expect("a workspace");
        let root = workspace.root();
        let recipe = fs::read_to_string(root.join("deploy/docker/Dockerfile"));
        let recipe = recipe.expect("a recipe");
        let stage = recipe.split("\nFROM ").nth(1).expect("a stage that builds");
        let copied: Vec<_> = stage
            .lines()
            .filter_map(|line| line.strip_prefix("COPY "))
            .flat_map(str::split_whitespace)
            .collect();
        let mut all = Vec::new();
        for folder in ["libs", "services"] {
            sources(&root.join(folder), &mut all);
        }

        let included: Vec<_> = all.iter().flat_map(|it| included(root, it)).collect();

        assert!(!included.is_empty());
        for file in included {
            let there = copied.iter().any(|folder| file.starts_with(folder));
            assert!(there, "`{}` is not copied", file.display());
        }
    }
}
