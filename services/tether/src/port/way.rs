//! The way of what keeps the session: a connection of its own, on which no call is in the way of a beat.

use std::sync::{Arc, Mutex, PoisonError};

use tonic::transport::{Channel, Endpoint};

use super::{
    gateways::Gateways,
    link::SIGN_OF_LIFE,
    traffic::{Traffic, Watched},
};

/// Over which gateway the session goes; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Way {
    gateways: Arc<Gateways>,
    /// Of the connection there is.
    current: Arc<Mutex<Option<Traffic>>>,
}

impl Way {
    pub(crate) fn new(gateways: Gateways) -> Self {
        Self {
            gateways: Arc::new(gateways),
            current: Arc::default(),
        }
    }

    /// Connects when it is first used, and again when the last connection broke.
    pub(crate) fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_static("http://localhost")
            .http2_keep_alive_interval(SIGN_OF_LIFE)
            .keep_alive_timeout(SIGN_OF_LIFE)
            .keep_alive_while_idle(true);
        let way = self.clone();
        tether_kit::channel::connect_by(endpoint, move || {
            let way = way.clone();
            async move {
                // Another connection is wanted only where the last one broke.
                if way.put(None).is_some() {
                    way.gateways.turn_away();
                }
                let (stream, _) = way.gateways.dial().await?;
                let (watched, traffic) = Watched::new(stream);
                way.put(Some(traffic));
                Ok(watched)
            }
        })
    }

    /// The gateway is there and of no use: what is said next goes to another one.
    pub(crate) fn leave(&self) {
        let current = self.current.lock();
        if let Some(traffic) = &*current.unwrap_or_else(PoisonError::into_inner) {
            traffic.sever();
        }
    }

    fn put(&self, traffic: Option<Traffic>) -> Option<Traffic> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut current, traffic)
    }
}
