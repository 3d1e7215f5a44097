//! How many calls are under way over one connection: as many as the other side takes at once, and the others wait here,
//! where it is certain that nothing of them was sent.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::uri::Scheme;
use tokio::sync::Notify;

use crate::wire::{Error, SendRequest};

/// How often those who wait look again: the other side may take more at once than before, and nothing tells.
const SELDOM: Duration = Duration::from_secs(1);

/// What is under way over a connection.
#[derive(Debug)]
pub(crate) struct Slots {
    taken: AtomicUsize,
    freed: Notify,
    scheme: Scheme,
}

/// A place for one call, until this is dropped.
#[derive(Debug)]
pub(crate) struct Slot(Arc<Slots>);

/// A connection that takes a request.
#[derive(Debug)]
pub(crate) struct Sender {
    pub(crate) wire: SendRequest,
    pub(crate) slot: Slot,
    /// How requests say whether it is secure.
    pub(crate) scheme: Scheme,
}

/// Held by the connection: those who wait hear of its end.
#[derive(Debug)]
pub(crate) struct Open(pub(crate) Arc<Slots>);

impl Slots {
    /// Of a connection with TLS or without.
    pub(crate) fn new(tls: bool) -> Self {
        Self {
            taken: AtomicUsize::new(0),
            freed: Notify::new(),
            scheme: match tls {
                true => Scheme::HTTPS,
                false => Scheme::HTTP,
            },
        }
    }

    /// Waits for a place. Fails when the connection broke or the other side said goodbye.
    pub(crate) async fn take(self: Arc<Self>, sender: SendRequest) -> Result<Sender, Error> {
        let mut sender = sender.ready().await?;
        loop {
            let freed = self.freed.notified();
            sender = match self.try_take(sender) {
                Ok(taken) => return Ok(taken),
                Err(sender) => sender,
            };
            // Each time it is woken it looks whether the connection stands.
            let _ = Box::pin(tokio::time::timeout(SELDOM, freed)).await;
            sender = sender.ready().await?;
        }
    }

    /// A place that is free. Fails when the connection broke or the other side said goodbye.
    pub(crate) async fn take_free(
        self: Arc<Self>,
        sender: SendRequest,
    ) -> Result<Option<Sender>, Error> {
        let sender = sender.ready().await?;
        Ok(self.try_take(sender).ok())
    }

    fn try_take(self: &Arc<Self>, sender: SendRequest) -> Result<Sender, SendRequest> {
        let most = sender.current_max_send_streams();
        let more = |taken: usize| (taken < most).then_some(taken + 1);
        let taken = self
            .taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        match taken {
            Ok(_) => Ok(Sender {
                wire: sender,
                slot: Slot(Arc::clone(self)),
                scheme: self.scheme.clone(),
            }),
            Err(_) => Err(sender),
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
        self.0.freed.notify_one();
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.freed.notify_waiters();
    }
}
