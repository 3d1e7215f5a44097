//! One HTTP/2 connection to one address: opened when first needed, kept, opened again when it
//! breaks.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tether_kit::tls::Connector;
use tether_types::Address;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::AbortHandle,
};

use crate::{
    slots::{Open, Sender, Slots},
    wire::{self, Engine, SendRequest},
};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    #[error("{0}")]
    Http2(#[from] wire::Error),
    #[error("{0}")]
    Before(String),
    #[error("the connection was given up")]
    Severed,
}

/// How connections are made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dial {
    /// How long that may take.
    pub(crate) timeout: Duration,
    pub(crate) engine: Engine,
}

/// A place that calls are forwarded to.
#[derive(Debug)]
pub(crate) struct Upstream {
    address: Arc<Address>,
    dial: Dial,
    /// Where TLS is spoken.
    tls: Option<Arc<Connector>>,
    link: Mutex<Link>,
    /// Held while connecting, so that a burst of first calls opens one connection; when and why the last attempt failed.
    connecting: tokio::sync::Mutex<Option<(Instant, String)>>,
}

/// A connection, and what is under way over it.
type Connected = (SendRequest, Arc<Slots>);

#[derive(Debug, Default)]
struct Link {
    connected: Option<Connected>,
    /// Those of earlier connections too, over which calls may be under way.
    drivers: Vec<AbortHandle>,
    severed: bool,
}

impl Upstream {
    pub(crate) fn new(address: impl Into<Arc<Address>>, dial: Dial) -> Self {
        Self {
            address: address.into(),
            tls: None,
            dial,
            link: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
        }
    }

    /// One with TLS, or without.
    pub(crate) fn with_tls(self, tls: Option<Arc<Connector>>) -> Self {
        Self { tls, ..self }
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Whether it goes there, which is quick to say of one that was given this very address.
    pub(crate) fn is_to(&self, address: &Arc<Address>) -> bool {
        self.address == *address
    }

    /// A connection that takes a request. While this has not answered, nothing has been sent.
    pub(crate) async fn ready(&self) -> Result<Sender, Error> {
        if let Some((sender, slots)) = self.last()?
            && let Ok(sender) = slots.take(sender).await
        {
            return Ok(sender);
        }
        let (sender, slots) = Box::pin(self.open()).await?;
        Ok(slots.take(sender).await?)
    }

    /// The same, where a place is free: `None` where others would have to end first.
    pub(crate) async fn ready_at_once(&self) -> Result<Option<Sender>, Error> {
        let (sender, slots) = match self.current().await? {
            Some(connected) => connected,
            None => Box::pin(self.open()).await?,
        };
        Ok(slots.take_free(sender).await?)
    }

    async fn open(&self) -> Result<Connected, Error> {
        let asked = Instant::now();
        let mut last = self.connecting.lock().await;
        if let Some(sender) = self.current().await? {
            return Ok(sender);
        }
        // Whoever waited for an attempt that failed has had it, and makes none of its own.
        if let Some((_, why)) = last.as_ref().filter(|(failed, _)| *failed >= asked) {
            return Err(Error::Before(why.clone()));
        }
        let connected = tokio::time::timeout(self.dial.timeout, self.connect())
            .await
            .unwrap_or(Err(Error::Timeout(self.dial.timeout)));
        *last = connected
            .as_ref()
            .err()
            .map(|error| (Instant::now(), error.to_string()));
        connected
    }

    /// Ends the connection with every call on it, for good: whoever was there is dead or does not answer,
    /// and a network that is gone would not say so.
    pub(crate) fn sever(&self) {
        self.close();
        for driver in self.lock().drivers.drain(..) {
            driver.abort();
        }
    }

    /// Takes no more calls, for good; those on it go on.
    pub(crate) fn close(&self) {
        let mut link = self.lock();
        link.severed = true;
        link.connected = None;
    }

    /// The last connection, which may have ended.
    fn last(&self) -> Result<Option<Connected>, Error> {
        let link = self.lock();
        match link.severed {
            true => Err(Error::Severed),
            false => Ok(link.connected.clone()),
        }
    }

    /// The same, where it has not.
    async fn current(&self) -> Result<Option<Connected>, Error> {
        match self.last()? {
            // Fails when the connection broke or the other side said goodbye.
            Some((sender, slots)) => Ok(sender.ready().await.ok().map(|sender| (sender, slots))),
            None => Ok(None),
        }
    }

    async fn connect(&self) -> Result<Connected, Error> {
        let stream = tether_kit::channel::dial(&self.address).await?;
        let stream = match &self.tls {
            None => stream,
            Some(tls) => Box::pin(tls.connect(stream, &self.address)).await?,
        };
        self.start(stream).await
    }

    async fn start<S>(&self, stream: S) -> Result<Connected, Error>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let engine = self.dial.engine.into();
        let (sender, connection) = wire::connect(engine, stream, &wire::TO_SERVERS).await?;
        let slots = Arc::new(Slots::new(self.tls.is_some()));
        let open = Open(Arc::clone(&slots));
        {
            let mut link = self.lock();
            if link.severed {
                return Err(Error::Severed);
            }
            link.connected = Some((sender.clone(), Arc::clone(&slots)));
            link.drivers.retain(|driver| !driver.is_finished());
            let driver = tokio::spawn(async move {
                let _open = open;
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "Connection to an upstream ended");
                }
            });
            link.drivers.push(driver.abort_handle());
        }
        Ok((sender, slots))
    }

    fn lock(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
