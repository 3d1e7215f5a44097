//! What a ledger begins with: the configuration, and what an earlier arbiter left in the store.

use std::{collections::BTreeMap, sync::Arc};

use tether_clock::Clock;
use tether_lifecycle::Surroundings;
use tether_proto::pool::Template;
use tether_store::Store;
use tether_types::TemplateName;

use crate::{config::LeaseTerms, events::Events, ledger::Ledger, mandate::Mandate, shared::Shared};

/// All that does not change from one reign to the next.
#[derive(Debug)]
pub(crate) struct Origins {
    pub(crate) terms: LeaseTerms,
    pub(crate) templates: BTreeMap<TemplateName, Template>,
    pub(crate) surroundings: Surroundings,
    /// By which leases that are granted count.
    pub(crate) clock: Arc<dyn Clock>,
}

impl Origins {
    /// Takes up what is in the store. Every lease there counts anew from this moment, as nobody knows
    /// when it was renewed last.
    ///
    /// # Errors
    /// When the store cannot be read, or what must not be guessed in it.
    pub(crate) async fn shared(
        &self,
        store: &Arc<dyn Store>,
        mandate: &Arc<Mandate>,
    ) -> anyhow::Result<Shared> {
        let mut ledger = Ledger::new(
            self.terms,
            self.templates.clone(),
            self.surroundings.clone(),
        );
        let mut left = store.list("arbiter/").await?;
        left.entries
            .extend(store.list(tether_store::keys::SERVE).await?.entries);
        ledger.restore(&left, self.clock.now())?;
        Ok(Shared::new(
            ledger,
            Arc::clone(store),
            Events::restore(&left),
            Arc::clone(&self.clock),
            Arc::clone(mandate),
        ))
    }
}
