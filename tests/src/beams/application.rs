//! The application that BEAMs run (`app/`), compiled.

use std::{path::Path, process::Stdio};

use anyhow::{Context as _, ensure};
use tokio::process::Command;

/// Where it is.
pub(crate) const HERE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/beams");

/// Compiles it, with the client, into a folder.
pub(crate) async fn compile(to: &Path) -> anyhow::Result<()> {
    let mut mix = Command::new("mix");
    mix.args(["compile", "--warnings-as-errors"])
        .current_dir(Path::new(HERE).join("app"))
        .env("MIX_ENV", "prod")
        .env("MIX_BUILD_PATH", to)
        .stdin(Stdio::null());
    let ran = mix.output().await.context("there is no `mix`")?;
    // Warnings are on one stream, and errors, by the version, on either.
    let said = [ran.stdout, ran.stderr].concat();
    ensure!(
        ran.status.success(),
        "the application does not compile: {}",
        String::from_utf8_lossy(&said)
    );
    Ok(())
}

/// What `elixir` is told to run it, from the folder it was compiled into.
pub(crate) fn arguments(built: &Path) -> Vec<String> {
    let start = "{:ok, _} = Application.ensure_all_started(:lab, :permanent)";
    let of = |name: &str| {
        let folder = built.join("lib").join(name).join("ebin");
        folder.display().to_string()
    };
    let (tether, lab) = (of("tether"), of("lab"));
    let words = ["-pa", &tether, "-pa", &lab, "--no-halt", "-e", start];
    words.map(str::to_owned).to_vec()
}
