//! What is asked of the arbiter at the end: who is there, by its ledger.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

/// What it said, once it has.
pub(crate) type Census = Arc<Mutex<Option<Said>>>;

/// The ledger's word.
#[derive(Debug, Clone, Default)]
pub(crate) struct Said {
    /// Workers that are ready, by name.
    pub(crate) ready: BTreeSet<String>,
    /// All others that are anything but dead.
    pub(crate) other: BTreeSet<String>,
}
