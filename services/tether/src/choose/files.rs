//! What is written for a choice. No IO.

use tether_lifecycle::Mode;

use super::tree::Choice;
use crate::cli::choose::Place;

/// A file, and its text.
pub(crate) type File = (&'static str, String);

/// The port where probes are answered.
const ADMIN: u16 = 9465;

/// All files of a choice. A scheduler's services are configured by its manifests, which are in the repository.
pub(crate) fn files(choice: &Choice) -> Vec<File> {
    let mut files = vec![("tether.exs", elixir(choice)), ("pool.toml", pool(choice))];
    if choice.place == Place::Host {
        files.insert(0, ("tether.toml", services(choice)));
    }
    files
}

fn services(choice: &Choice) -> String {
    let head = format!("# Made by `tether choose` for mode `{}`.\n", choice.mode);
    if choice.mode == Mode::Coupled {
        return format!(
            "{head}# The BEAM's port needs no file. This one is for `tether up --config tether.toml`, to try things out by hand.\n"
        );
    }
    let store = match &choice.store {
        Some(url) => format!("\n# All machines share it.\nstore = {url:?}\n"),
        None => "\n# State is kept in a file: this is one machine. Set `store` to have it elsewhere than in the state directory.\n"
            .to_owned(),
    };
    let network = match choice.mode {
        Mode::Distributed => {
            "\n# What only you know: where each machine listens, and where all arbiters are. See docs/how-to/several-arbiters.md for\n# the lines, and docs/how-to/tls.md for what goes over a network.\n#[listen]\n#gateway = [\"unix:/run/tether/gateway.sock\", \"10.0.0.1:7437\"]\n#arbiter = [\"10.0.0.1:7438\"]\n#[connect]\n#arbiter = [\"10.0.0.1:7438\", \"10.0.0.2:7438\", \"10.0.0.3:7438\"]\n"
        }
        Mode::Coupled | Mode::Supervised | Mode::Independent => "",
    };
    let admin = format!(
        "\n[admin]\n# Probes: gRPC health `liveness` and `readiness`, or GET /health/readiness.\nlisten = \"127.0.0.1:{ADMIN}\"\n"
    );
    let agent = "\n[agent]\n# What no worker may have of the container's memory, so that none takes the agent along.\nmemory_reserve = \"256MiB\"\n";
    format!("{head}{store}{network}{admin}{agent}")
}

fn elixir(choice: &Choice) -> String {
    let gateway = match (choice.mode, choice.place) {
        (Mode::Coupled, _) => None,
        (_, Place::Host) => Some("\"unix:/run/tether/gateway.sock\""),
        (_, Place::Kubernetes) => Some("\"tether-gateway:7437\""),
        // Of `nomadService` in a template of the application's task.
        (_, Place::Nomad) => Some("System.fetch_env!(\"TETHER_GATEWAY\")"),
    };
    let mut keys = vec![format!("worker_lifecycle_mode: :{}", choice.mode)];
    keys.extend(gateway.map(|gateway| format!("gateway: {gateway}")));
    keys.extend(
        choice
            .owner
            .as_ref()
            .map(|owner| format!("owner: {owner:?}")),
    );
    let beside = match (choice.mode, choice.place) {
        (Mode::Coupled, _) | (_, Place::Host) => "",
        (_, Place::Kubernetes) => {
            "# The services, and their tether.toml: deploy/kubernetes (docs/how-to/kubernetes.md).\n"
        }
        (_, Place::Nomad) => {
            "# The services, and their tether.toml: deploy/nomad (docs/how-to/nomad.md).\n"
        }
    };
    format!(
        "# Made by `tether choose`: for config/runtime.exs.\n{beside}import Config\n\nconfig :tether,\n  {}\n",
        keys.join(",\n  ")
    )
}

fn pool(choice: &Choice) -> String {
    // As the Elixir client has it too: with an agent that starts the workers itself.
    let policy = match choice.mode {
        Mode::Supervised => {
            "\n[pool.digits.policy]\n# The agent starts them. `systemd`, `supervisord` or `runit` where it offers that: `tether nodes`.\nlauncher = \"exec\"\n"
        }
        Mode::Coupled | Mode::Independent | Mode::Distributed => "",
    };
    format!(
        "# Made by `tether choose`: a pool to begin with, for `tether run --file pool.toml` or `tether pool apply`.\n\n[template.digits]\ncommand = \"python3\"\nargs = [\"worker.py\"]\n\n[pool.digits]\ntemplate = \"digits\"\nmode = \"{}\"\nsize = 2\n{policy}",
        choice.mode
    )
}
