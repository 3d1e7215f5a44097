//! The gateways there are, and connections to one of them.

use std::{
    io,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::Context as _;
use tether_kit::{
    channel::dial,
    listen::Stream,
    tls::{ClientFiles, Connector},
};
use tether_port::Tls;
use tether_types::Address;
use tokio::time::timeout;

/// How long one gateway may take to be connected to.
const PATIENCE: Duration = Duration::from_secs(2);

/// Gateways that can stand in for each other.
#[derive(Debug)]
pub(crate) struct Gateways {
    places: Vec<Place>,
    tls: Option<(Connector, Option<String>)>,
    /// Which place is tried first, and which of its addresses.
    first: AtomicUsize,
    turn: AtomicUsize,
}

/// Where one gateway is, or several are.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    At(Address),
    /// At each address of a name.
    Named(String, u16),
}

impl Gateways {
    /// Reads addresses: `host:port`, `unix:/path` or `dns:NAME:PORT`.
    pub(crate) fn new(texts: &[String], tls: Option<Tls>) -> anyhow::Result<Self> {
        let places = texts.iter().map(|text| Place::read(text));
        let connector = |tls: Tls| {
            let files = ClientFiles {
                ca: tls.ca.into(),
                certificate: tls.certificate.map(Into::into),
                key: tls.key.map(Into::into),
            };
            anyhow::Ok((Connector::new(files, "tls")?, tls.name))
        };
        Ok(Self {
            places: places.collect::<Result<_, _>>()?,
            tls: tls.map(connector).transpose()?,
            first: AtomicUsize::new(0),
            turn: AtomicUsize::new(0),
        })
    }

    /// A connection to the first that takes one; the next call begins with the same.
    pub(crate) async fn dial(&self) -> io::Result<(Stream, Address)> {
        let first = self.first.load(Ordering::Relaxed);
        let turn = self.turn.load(Ordering::Relaxed);
        let count = self.places.len();
        let mut last = io::Error::other("there are no gateways");
        // Those addresses of the first place that were turned away come last of all.
        for step in 0..=count {
            let at = (first + step) % count.max(1);
            let Some(place) = self.places.get(at) else {
                break;
            };
            let addresses = match timeout(PATIENCE, place.addresses()).await {
                Ok(Ok(addresses)) => addresses,
                Ok(Err(error)) => {
                    last = error;
                    continue;
                }
                Err(_) => {
                    last = io::Error::other("a name of gateways was not looked up in time");
                    continue;
                }
            };
            let wanted = |index: usize| match step {
                0 => index >= turn,
                _ => step < count || index < turn,
            };
            for (index, address) in addresses.into_iter().enumerate() {
                if !wanted(index) {
                    continue;
                }
                match timeout(PATIENCE, self.connect(place, &address)).await {
                    Ok(Ok(stream)) => {
                        self.first.store(at, Ordering::Relaxed);
                        self.turn.store(index, Ordering::Relaxed);
                        return Ok((stream, address));
                    }
                    Ok(Err(error)) => last = about(&address, &error),
                    Err(_) => last = about(&address, &"no connection in time"),
                }
            }
        }
        Err(last)
    }

    /// The one that was taken last is tried last from here on.
    pub(crate) fn turn_away(&self) {
        self.turn.fetch_add(1, Ordering::Relaxed);
    }

    async fn connect(&self, place: &Place, address: &Address) -> io::Result<Stream> {
        let stream = dial(address).await?;
        let Some((connector, name)) = &self.tls else {
            return Ok(stream);
        };
        let known_as = match (name, place) {
            (Some(name), _) | (None, Place::Named(name, _)) => Some(name.clone()),
            (None, Place::At(_)) => None,
        };
        let known_as = known_as.map(|host| Address::Tcp { host, port: 0 });
        connector
            .connect(stream, known_as.as_ref().unwrap_or(address))
            .await
    }
}

fn about(address: &Address, error: &dyn std::fmt::Display) -> io::Error {
    io::Error::other(format!("cannot connect to `{address}`: {error}"))
}

impl Place {
    fn read(text: &str) -> anyhow::Result<Self> {
        let Some(named) = text.strip_prefix("dns:") else {
            return Ok(Self::At(text.parse()?));
        };
        let split = named.rsplit_once(':').and_then(|(name, port)| {
            (!name.is_empty()).then_some((name.to_owned(), port.parse().ok()?))
        });
        let (name, port) = split.with_context(|| {
            format!("`{text}` is no address: expected `dns:gateways.example:7437`")
        })?;
        Ok(Self::Named(name, port))
    }

    async fn addresses(&self) -> io::Result<Vec<Address>> {
        match self {
            Self::At(address) => Ok(vec![address.clone()]),
            Self::Named(name, port) => {
                let found = tokio::net::lookup_host((name.as_str(), *port)).await?;
                Ok(found
                    .map(|found| Address::Tcp {
                        host: found.ip().to_string(),
                        port: found.port(),
                    })
                    .collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_that_takes_a_connection_is_taken_again_until_it_is_turned_away() {
        let (one, other) = (listen().await, listen().await);
        let port = |listener: &tokio::net::TcpListener| listener.local_addr().unwrap().port();
        let (one_port, other_port) = (port(&one), port(&other));
        let texts = [
            "unix:/nowhere/gateway.sock".to_owned(),
            format!("dns:localhost:{one_port}"),
            format!("127.0.0.1:{other_port}"),
        ];
        let gateways = Gateways::new(&texts, None).unwrap();
        let dialled = async || match gateways.dial().await.unwrap().1 {
            Address::Tcp { port, .. } => port,
            Address::Unix(_) => 0,
        };

        assert_eq!([dialled().await, dialled().await], [one_port; 2]);
        gateways.turn_away();
        assert_eq!([dialled().await, dialled().await], [other_port; 2]);
        drop(other);
        assert_eq!(dialled().await, one_port);
        // Where there is no other it is taken again.
        gateways.turn_away();
        assert_eq!(dialled().await, one_port);
        drop(one);
        assert!(gateways.dial().await.is_err());
    }

    async fn listen() -> tokio::net::TcpListener {
        tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap()
    }

    #[test]
    fn an_address_is_a_place_or_a_name_of_places() {
        let read = |text: &str| Place::read(text).map_err(|error| error.to_string());

        assert_eq!(
            read("dns:gw.svc:7437"),
            Ok(Place::Named("gw.svc".to_owned(), 7437))
        );
        assert_eq!(
            read("unix:/run/g.sock"),
            Ok(Place::At("unix:/run/g.sock".parse().unwrap()))
        );
        assert!(read("dns:gw.svc").unwrap_err().contains("dns:gateways"));
        assert!(read("gw").is_err());
    }
}
