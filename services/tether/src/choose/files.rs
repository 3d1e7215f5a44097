//! What is written for a choice. No IO.

use tether_lifecycle::Mode;

use super::tree::Choice;
use crate::cli::choose::Place;

/// A file, and its text.
pub(crate) type File = (&'static str, String);

/// The port where probes are answered.
const ADMIN: u16 = 9465;

/// All files of a choice.
pub(crate) fn files(choice: &Choice) -> Vec<File> {
    vec![
        ("tether.toml", services(choice)),
        ("tether.exs", elixir(choice)),
        ("pool.toml", pool(choice)),
    ]
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
    let network = match choice.place {
        Place::Host => format!(
            "\n[admin]\n# Probes: gRPC health `liveness` and `readiness`, or GET /health/readiness.\nlisten = \"127.0.0.1:{ADMIN}\"\n"
        ),
        Place::Kubernetes | Place::Nomad => format!(
            "\n[listen]\n# Plain text within the network of the {}: see docs/how-to/tls.md for what clients speak.\ninsecure = true\n\n[admin]\n# Probes: gRPC health `liveness` and `readiness`, or GET /health/readiness.\nlisten = \"0.0.0.0:{ADMIN}\"\ninsecure = true\n",
            match choice.place {
                Place::Nomad => "allocations",
                Place::Host | Place::Kubernetes => "pods",
            }
        ),
    };
    let agent = "\n[agent]\n# What no worker may have of the container's memory, so that none takes the agent along.\nmemory_reserve = \"256MiB\"\n";
    format!("{head}{store}{network}{agent}")
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
    format!(
        "# Made by `tether choose`: for config/runtime.exs.\nimport Config\n\nconfig :tether,\n  {}\n",
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
