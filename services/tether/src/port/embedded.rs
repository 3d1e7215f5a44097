//! The services in this very process, for a BEAM that has none to go to: in a directory of their own, with a store in
//! memory.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tempfile::TempDir;
use tether_arbiter::Surroundings;
use tether_port::Term;
use tether_settings::surroundings;
use tokio::{runtime::Builder, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{leftovers, tree};
use crate::{cli, config, up};

/// What serves.
#[derive(Debug)]
pub(crate) struct Embedded {
    dir: TempDir,
    stop: CancellationToken,
    /// What ends with the agent has.
    over: CancellationToken,
    /// Whether the gateway listens for this program and nobody else.
    is_private: bool,
    serving: JoinHandle<anyhow::Result<()>>,
}

impl Embedded {
    /// Starts them with these settings, and waits until they listen.
    pub(crate) async fn start(settings: Option<Term>) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix(leftovers::PREFIX)
            .tempdir()
            .context("cannot make a directory for sockets")?;
        // Nobody waits for it, and what is not removed in time is by the next one.
        std::thread::spawn(|| leftovers::remove(&std::env::temp_dir()));
        let table = match settings {
            Some(tree) => tree::table(tree)?,
            None => toml::Table::new(),
        };
        let get = |section: &str, key: &str| table.get(section)?.as_table()?.get(key);
        let mut sets = vec![
            format!("listen.runtime_dir={}", dir.path().display()),
            format!("listen.gateway={}", listen(get("listen", "gateway"), &dir)),
        ];
        if !table.contains_key("store") {
            sets.push("store=memory:".to_owned());
        }
        if get("agent", "node").is_none() {
            sets.push(format!("agent.node=port-{}", std::process::id()));
        }
        let file = dir.path().join("config.toml");
        std::fs::write(&file, table.to_string()).context("cannot write down the settings")?;
        let args = cli::Settings {
            config: Some(file),
            sets,
        };
        let (mut loaded, _) = config::load(&args)?;
        let store = loaded.value.store.as_deref();
        let usual = checkpoints(store, dir.path())?;
        loaded.value.agent.checkpoints.store.get_or_insert(usual);
        config::check(&loaded)?;

        let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        let (stop, is_up) = (CancellationToken::new(), CancellationToken::new());
        let over = CancellationToken::new();
        let is_private = get("listen", "gateway").is_none();
        let tokens = (stop.clone(), is_up.clone(), over.clone());
        let found = Surroundings {
            embedded: true,
            ..surroundings()
        };
        let serving = up::serve(loaded.value, here, found, tokens);
        // Threads of their own, which end with this process: nothing that they do is in the way of what the BEAM says.
        let threads = Builder::new_multi_thread().enable_all().build();
        let threads = Box::leak(Box::new(
            threads.context("cannot start threads for services")?,
        ));
        let mut serving = threads.spawn(serving);
        tokio::select! {
            () = is_up.cancelled() => Ok(Self { dir, stop, over, is_private, serving }),
            ended = &mut serving => Err(match ended? {
                Ok(()) => anyhow::anyhow!("the services ended as soon as they were started"),
                Err(error) => error,
            }),
        }
    }

    /// Where its gateway is.
    pub(crate) fn gateway(&self) -> String {
        socket(&self.dir)
    }

    /// Comes back when they end, which they are not to.
    pub(crate) async fn failed(&mut self) -> anyhow::Error {
        match (&mut self.serving).await {
            Ok(Ok(())) => anyhow::anyhow!("the services ended without being asked to"),
            Ok(Err(error)) => error,
            Err(panic) => panic.into(),
        }
    }

    /// Ends them in good order, and what ends with them.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        let is_over = async {
            match self.is_private {
                // Whoever called is gone, and a gateway that says why its calls end says it to nobody.
                true => self.over.cancelled().await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = self.serving => if let Ok(Err(error)) = ended {
                tracing::error!("The services did not end well: {error:#}");
            },
            () = is_over => {}
        }
    }
}

/// Where the gateway listens: where it is told to, and where this program finds it.
fn listen(told: Option<&toml::Value>, dir: &TempDir) -> toml::Value {
    let mut all = match told {
        Some(toml::Value::Array(told)) => told.clone(),
        Some(one) => vec![one.clone()],
        None => Vec::new(),
    };
    all.push(socket(dir).into());
    all.into()
}

/// Where checkpoints are kept where nobody says: beside a store that is a file, as who goes on from that is in another
/// directory; all others are of no use after this, and go with it.
fn checkpoints(store: Option<&str>, dir: &Path) -> anyhow::Result<String> {
    let place = match store.and_then(|store| store.strip_prefix("redb:")) {
        Some(file) => std::path::absolute(format!("{file}.checkpoints"))
            .context("the current directory is gone")?,
        None => dir.join(leftovers::CHECKPOINTS),
    };
    Ok(format!("file://{}", place.display()))
}

fn socket(dir: &TempDir) -> String {
    format!("unix:{}", dir.path().join("gateway.sock").display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_last_as_long_as_the_store_that_knows_them() {
        let place = |store| checkpoints(store, Path::new("/tmp/tether-port-1")).unwrap();

        assert_eq!(
            place(Some("memory:")),
            "file:///tmp/tether-port-1/checkpoints"
        );
        assert_eq!(
            place(Some("redb:/srv/a.redb")),
            "file:///srv/a.redb.checkpoints"
        );
    }
}
