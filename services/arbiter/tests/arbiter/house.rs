//! An arbiter on a socket of its own.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use tether_arbiter::{Arbiter, Config, Surroundings};
use tether_kit::listen;
use tether_store::{MemoryStore, Store};
use tether_types::Address;
use tokio_util::sync::{CancellationToken, DropGuard};

/// An arbiter on a store of its own, until the guard is dropped.
pub(crate) async fn arbiter(dir: &Path) -> (Address, DropGuard) {
    arbiter_on(Arc::new(MemoryStore::new()), dir).await
}

/// An arbiter on this store, until the guard is dropped.
pub(crate) async fn arbiter_on(store: Arc<dyn Store>, dir: &Path) -> (Address, DropGuard) {
    let address: Address = format!("unix:{}", dir.join("arbiter.sock").display())
        .parse()
        .unwrap();
    let config = Config::default();
    let arbiter = Arbiter::build(
        &config,
        BTreeMap::new(),
        ("memory", store),
        None,
        Surroundings::default(),
    );
    let arbiter = arbiter.await.unwrap();
    let listener = listen::bind(&address, false).await.unwrap();
    let stop = CancellationToken::new();
    let serving = arbiter
        .server()
        .serve(listener, stop.clone(), Duration::from_secs(1));
    tokio::spawn(serving);
    let stopped = stop.clone();
    tokio::spawn(async move { arbiter.run(stopped).await });
    (address, stop.drop_guard())
}
