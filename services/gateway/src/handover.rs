//! A new process in the place of an old one, with the same listening sockets: nobody who connects meanwhile is refused,
//! and what is under way in the old one finishes there.
//!
//! ```text
//!   successor                              predecessor, which takes calls
//!      |------------- ask ----------------->|
//!      |<-- offer, with the sockets --------|  and the orders that hold
//!   hears discovery,                        |  goes on as if nothing had been where the
//!   takes calls                             |  successor ends here
//!      |------------- ready --------------->|
//!      |<------------ gone -----------------|  takes no new calls, drains, ends
//!   waits for its own successor
//! ```

mod wire;

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use prost::Message as _;
use tether_kit::listen::{self, Detached, Handle, Listener};
use tether_proto::gateway::{
    HandoverAsk, HandoverGone, HandoverOffer, HandoverReady, StandingOrder,
};
use tether_types::Address;
use tokio::task::spawn_blocking;

use crate::directory::Directory;

use wire::{LONGEST, receive, send};

/// The version of the exchange.
const VERSION: u32 = 1;

/// How long one side waits for a word of the other that it can say at once.
const PROMPT: Duration = Duration::from_secs(5);

/// How long a successor may take to be ready.
const READY: Duration = Duration::from_secs(30);

/// How long it waits for discovery: one that knows no workers is no successor.
const INFORMED: Duration = Duration::from_secs(10);

/// What one process takes over from another, and hands over to the next.
#[derive(Debug)]
pub struct Handover {
    path: PathBuf,
    before: Option<Predecessor>,
    /// Where a successor asks; with a predecessor once that has gone.
    asked: Option<Listener>,
    sockets: Vec<(String, Handle)>,
}

#[derive(Debug)]
struct Predecessor {
    link: UnixStream,
    program: String,
    sockets: Vec<(String, OwnedFd)>,
    orders: Vec<StandingOrder>,
}

/// One that has taken over.
struct Successor {
    link: UnixStream,
    program: String,
}

impl Handover {
    /// Asks the process that hands over at `path`, where there is one.
    ///
    /// # Errors
    /// Where it does not answer as it should, or the socket cannot be made.
    pub async fn begin(path: &Path) -> anyhow::Result<Self> {
        let at = path.to_owned();
        let before = spawn_blocking(move || ask(&at)).await?;
        let before = before.with_context(|| {
            format!(
                "the gateway that hands over at `{}` does not: end it, or start this one with another `gateway.handover`",
                path.display()
            )
        })?;
        let asked = match before {
            None => Some(listen_at(path).await?),
            Some(_) => None,
        };
        Ok(Self {
            path: path.to_owned(),
            before,
            asked,
            sockets: Vec::new(),
        })
    }

    /// Listens at an address: with the predecessor's socket, where that has one for it.
    ///
    /// # Errors
    /// Names the address, the cause and what to do.
    pub async fn listener(
        &mut self,
        address: &Address,
        insecure: bool,
    ) -> anyhow::Result<Listener> {
        let name = address.to_string();
        let listener = match self.inherited(&name) {
            Some(socket) => Listener::from_socket(socket)
                .with_context(|| format!("the socket for `{name}` cannot be taken over"))?,
            None => listen::bind(address, insecure).await?,
        };
        self.sockets.push((name, listener.handle()?));
        Ok(listener)
    }

    fn inherited(&mut self, name: &str) -> Option<OwnedFd> {
        let sockets = &mut self.before.as_mut()?.sockets;
        let place = sockets.iter().position(|(of, _)| of == name)?;
        Some(sockets.swap_remove(place).1)
    }

    /// Waits until this process can do what its predecessor does.
    ///
    /// # Errors
    /// Where that takes too long; the predecessor goes on then.
    pub(crate) async fn fit(&self, directory: &Directory) -> anyhow::Result<()> {
        if self.before.is_some() && !directory.informed(INFORMED).await {
            anyhow::bail!(
                "discovery has told nothing within {INFORMED:?}, and the old process goes on: start this one again when discovery answers"
            );
        }
        Ok(())
    }

    /// Orders that hold in the predecessor.
    pub(crate) fn inherited_orders(&mut self) -> Vec<StandingOrder> {
        let before = self.before.as_mut();
        before.map_or_else(Vec::new, |before| std::mem::take(&mut before.orders))
    }

    /// Calls are taken here, and `orders` hold. Ends when a successor takes them; where none can come, never.
    pub(crate) async fn succeed(mut self, orders: impl Fn() -> Vec<StandingOrder>) -> Done {
        let asked = match self.take_over().await {
            Ok(asked) => asked,
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(
                    error,
                    "This process can hand over to no other: stop it instead"
                );
                return std::future::pending().await;
            }
        };
        loop {
            let told = async {
                let link = link(asked.next().await.detach()?)?;
                let sockets: Vec<_> = self
                    .sockets
                    .iter()
                    .map(|(name, handle)| Ok((name.clone(), handle.socket().try_clone_to_owned()?)))
                    .collect::<io::Result<_>>()?;
                let orders = orders();
                anyhow::Ok(spawn_blocking(move || offer(link, &sockets, orders)).await??)
            };
            match told.await {
                Ok(successor) => {
                    let by = &successor.program;
                    tracing::info!(
                        by,
                        "Another process has taken over, calls under way finish here"
                    );
                    for (_, handle) in self.sockets.drain(..) {
                        handle.hand_over();
                    }
                    drop(asked);
                    return Done(successor.link);
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(error, "A successor did not take over, this process goes on");
                }
            }
        }
    }

    async fn take_over(&mut self) -> anyhow::Result<Listener> {
        if let Some(before) = self.before.take() {
            let program = before.program.clone();
            spawn_blocking(move || before.replace()).await??;
            tracing::info!(
                from = program,
                "Took over, the old process finishes its calls"
            );
        }
        match self.asked.take() {
            Some(asked) => Ok(asked),
            None => listen_at(&self.path).await,
        }
    }
}

/// Everything is another process's.
pub(crate) struct Done(UnixStream);

impl Done {
    /// Says so, once that is so.
    pub(crate) fn say(self) {
        // One that does not hear it has all that it needs.
        let _ = send(&self.0, &HandoverGone {}, &[]);
    }
}

async fn listen_at(path: &Path) -> anyhow::Result<Listener> {
    let listener = listen::bind(&Address::Unix(path.to_owned()), false).await;
    listener.context("no successor could ask where `gateway.handover` says")
}

fn link(stream: Detached) -> io::Result<UnixStream> {
    match stream {
        Detached::Unix(link) => {
            link.set_nonblocking(false)?;
            link.set_read_timeout(Some(PROMPT))?;
            link.set_write_timeout(Some(PROMPT))?;
            Ok(link)
        }
        Detached::Tcp(_) | Detached::Other(_) => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// Asks whoever hands over at `path`; nobody may be there.
fn ask(path: &Path) -> io::Result<Option<Predecessor>> {
    let link = match UnixStream::connect(path) {
        Err(error)
            if [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused]
                .contains(&error.kind()) =>
        {
            return Ok(None);
        }
        connected => connected?,
    };
    let link = self::link(Detached::Unix(link))?;
    let asked = HandoverAsk {
        version: VERSION,
        program: env!("CARGO_PKG_VERSION").to_owned(),
    };
    send(&link, &asked, &[])?;
    let (offer, sockets): (HandoverOffer, _) = receive(&link)?;
    if offer.version == 0 || offer.addresses.len() != sockets.len() {
        let text = format!(
            "version {} hands over in another way: stop it, and start this one then",
            offer.program
        );
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(Some(Predecessor {
        link,
        program: offer.program,
        sockets: offer.addresses.into_iter().zip(sockets).collect(),
        orders: offer.orders,
    }))
}

impl Predecessor {
    /// Calls are taken here, and not there any more.
    fn replace(self) -> io::Result<()> {
        send(&self.link, &HandoverReady {}, &[])?;
        let (HandoverGone {}, _) = receive(&self.link)?;
        Ok(())
    }
}

/// Offers the sockets to one who asks, with the orders that hold, and waits until it takes calls.
fn offer(
    link: UnixStream,
    sockets: &[(String, OwnedFd)],
    orders: Vec<StandingOrder>,
) -> io::Result<Successor> {
    let (asked, _): (HandoverAsk, _) = receive(&link)?;
    let mut offer = HandoverOffer {
        version: asked.version.min(VERSION),
        addresses: sockets.iter().map(|(name, _)| name.clone()).collect(),
        program: env!("CARGO_PKG_VERSION").to_owned(),
        orders,
    };
    if offer.encoded_len() > LONGEST {
        let orders = std::mem::take(&mut offer.orders).len();
        tracing::warn!(
            orders,
            "Orders are too many to be handed over: give them again"
        );
    }
    let sockets: Vec<_> = sockets.iter().map(|(_, socket)| socket).collect();
    send(&link, &offer, &sockets)?;
    link.set_read_timeout(Some(READY))?;
    let (HandoverReady {}, _) = receive(&link)?;
    Ok(Successor {
        link,
        program: asked.program,
    })
}
