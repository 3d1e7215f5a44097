//! Where the services listen, and where they find each other.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize};
use tether_kit::{
    listen::{self, Listener},
    tls::{Acceptor, ServerFiles},
};
use tether_types::{Address, InvalidAddress};

use crate::{At as _, Wrong};

/// The gateway's TCP port, where nothing else is said.
const GATEWAY_TCP: &str = "127.0.0.1:7437";

/// What can be set under `[listen]`: each service's addresses, `unix:/path` or `host:port`, the gateway's also
/// `https://host:port` where TLS is spoken. A service that is not named listens on a unix socket in the runtime directory; the gateway also on
/// 127.0.0.1:7437.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Listen {
    /// The gateway's.
    pub gateway: Vec<String>,
    /// The arbiter's.
    pub arbiter: Vec<String>,
    /// Discovery's.
    pub discovery: Vec<String>,
    /// The agent's.
    pub agent: Vec<String>,
    /// Where others reach this machine's arbiter, told by arbiters that do not lead; the first of
    /// `listen.arbiter` when not set.
    pub advertise_arbiter: Option<String>,
    /// Whether plain text is allowed on addresses that other machines can reach.
    pub insecure: bool,
    /// The certificates of addresses that begin with `https://`.
    pub tls: Option<ServerFiles>,
    /// The runtime directory: sockets and workers' directories; `/run/tether` for root.
    pub runtime_dir: Option<PathBuf>,
}

/// What can be set under `[connect]`: where to find services that run elsewhere.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Connect {
    /// The arbiter, or a list of several of which one leads; where it listens on this machine when not
    /// set.
    #[serde(deserialize_with = "one_or_many")]
    pub arbiter: Vec<String>,
    /// Discovery; likewise.
    pub discovery: Option<String>,
    /// Gateways that relay the heartbeats of this machine's agent where no arbiter can be reached from here, and
    /// are set to (`gateway.relay_nodes`).
    #[serde(deserialize_with = "one_or_many")]
    pub relay: Vec<String>,
}

/// A single text stands for a list of one.
fn one_or_many<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected an address, or a list of addresses")]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(match OneOrMany::deserialize(from)? {
        OneOrMany::One(one) => vec![one],
        OneOrMany::Many(many) => many,
    })
}

impl Listen {
    fn of(&self, place: Place) -> &[String] {
        match place {
            Place::Gateway => &self.gateway,
            Place::Arbiter => &self.arbiter,
            Place::Discovery => &self.discovery,
            Place::Agent => &self.agent,
        }
    }
}

/// One of the four services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The gateway.
    Gateway,
    /// The arbiter.
    Arbiter,
    /// Discovery.
    Discovery,
    /// The agent.
    Agent,
}

impl Place {
    /// All four.
    pub const ALL: [Self; 4] = [Self::Gateway, Self::Arbiter, Self::Discovery, Self::Agent];

    const fn word(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Arbiter => "arbiter",
            Self::Discovery => "discovery",
            Self::Agent => "agent",
        }
    }

    /// The program that it is where it runs by itself.
    pub(crate) const fn program(self) -> &'static str {
        match self {
            Self::Gateway => "tether-gateway",
            Self::Arbiter => "tether-arbiter",
            Self::Discovery => "tether-discovery",
            Self::Agent => "tether-agent",
        }
    }

    /// What that says of itself.
    pub(crate) const fn about(self) -> &'static str {
        match self {
            Self::Gateway => "The one address a BEAM application needs",
            Self::Arbiter => "Grants leases, decides who is alive, places workers",
            Self::Discovery => "Says which endpoints serve a pool now",
            Self::Agent => "Starts, watches and reaps the workers of this node",
        }
    }
}

/// Whether services can listen and find each other as configured; `here` are those that will listen.
/// Touches nothing.
///
/// # Errors
/// Names the setting that cannot be used.
pub fn check_whereabouts(listen: &Listen, connect: &Connect, here: &[Place]) -> Result<(), Wrong> {
    if let Some(dir) = listen.runtime_dir.as_ref().filter(|dir| !dir.is_absolute()) {
        let why = format!(
            "`{}` is not an absolute path, which the addresses of sockets need",
            dir.display()
        );
        return Err(Wrong::new("listen.runtime_dir", why));
    }
    for place in Place::ALL {
        let key = format!("listen.{}", place.word());
        for text in listen.of(place) {
            let (address, tls) = read(text).at(&key)?;
            if tls {
                check_tls(listen, place, &address)?;
            } else if here.contains(&place) {
                listen::check(&address, listen.insecure).at(&key)?;
            }
        }
    }
    let arbiters = connect.arbiter.iter().map(|text| ("connect.arbiter", text));
    let relays = connect.relay.iter().map(|text| ("connect.relay", text));
    let others = [
        ("connect.discovery", &connect.discovery),
        ("listen.advertise_arbiter", &listen.advertise_arbiter),
    ];
    let others = others
        .into_iter()
        .filter_map(|(key, text)| Some((key, text.as_ref()?)));
    for (key, text) in arbiters.chain(relays).chain(others) {
        if let Address::Tcp { port: 0, .. } = text.parse().at(key)? {
            return Err(Wrong::new(key, "nobody serves at port 0"));
        }
    }
    Ok(())
}

/// What an address of `[listen]` that is for TLS begins with.
const TLS: &str = "https://";

/// An address of `[listen]`, and whether TLS is spoken there.
fn read(text: &str) -> Result<(Address, bool), InvalidAddress> {
    match text.strip_prefix(TLS) {
        Some(address) => Ok((address.parse()?, true)),
        None => Ok((text.parse()?, false)),
    }
}

fn check_tls(listen: &Listen, place: Place, address: &Address) -> Result<(), Wrong> {
    let key = format!("listen.{}", place.word());
    if place != Place::Gateway {
        let why = "TLS is spoken by the gateway alone: leave out `https://`";
        return Err(Wrong::new(key, why));
    }
    if matches!(address, Address::Unix(_)) {
        let why =
            "no TLS is spoken on a unix socket, which nobody can listen to: leave out `https://`";
        return Err(Wrong::new(key, why));
    }
    if listen.tls.is_none() {
        let why = "an address that begins with `https://` needs a certificate: set `certificate` and `key` under `[listen.tls]`";
        return Err(Wrong::new(key, why).and("listen.tls"));
    }
    Ok(())
}

/// Listens at the address of a setting, where there is one.
///
/// # Errors
/// Names the address, the cause and what to do.
pub async fn bind_set(address: Option<&str>, insecure: bool) -> anyhow::Result<Option<Listener>> {
    match address {
        Some(text) => Ok(Some(listen::bind(&text.parse()?, insecure).await?)),
        None => Ok(None),
    }
}

/// Where everything is, resolved.
#[derive(Debug, Clone)]
pub struct Whereabouts {
    listen: Listen,
    connect: Connect,
    runtime: PathBuf,
}

impl Whereabouts {
    /// Resolves the runtime directory.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn new(listen: &Listen, connect: &Connect) -> anyhow::Result<Self> {
        let runtime = match &listen.runtime_dir {
            Some(dir) => dir.clone(),
            None => tether_kit::runtime_dir()?,
        };
        Ok(Self {
            listen: listen.clone(),
            connect: connect.clone(),
            runtime,
        })
    }

    /// The runtime directory.
    pub fn runtime(&self) -> &Path {
        &self.runtime
    }

    /// Where a service listens on this machine.
    ///
    /// # Errors
    /// Says which address is none.
    pub fn listens(&self, place: Place) -> Result<Vec<Address>, InvalidAddress> {
        let listens = self.listens_how(place)?.into_iter();
        Ok(listens.map(|(address, _)| address).collect())
    }

    /// The first of these that speaks no TLS.
    pub(crate) fn listens_plainly(&self, place: Place) -> Result<Option<Address>, InvalidAddress> {
        let mut listens = self.listens_how(place)?.into_iter();
        Ok(listens.find_map(|(address, tls)| (!tls).then_some(address)))
    }

    /// Where it listens, and whether TLS is spoken there.
    fn listens_how(&self, place: Place) -> Result<Vec<(Address, bool)>, InvalidAddress> {
        let set = self.listen.of(place);
        if !set.is_empty() {
            return set.iter().map(|text| read(text)).collect();
        }
        let socket = Address::Unix(self.runtime.join(format!("{}.sock", place.word())));
        Ok(match place {
            Place::Gateway => vec![(socket, false), (GATEWAY_TCP.parse()?, false)],
            Place::Arbiter | Place::Discovery | Place::Agent => vec![(socket, false)],
        })
    }

    /// Where a service is to be found.
    ///
    /// # Errors
    /// Says which address is none.
    pub fn find(&self, place: Place) -> Result<Address, InvalidAddress> {
        let elsewhere = match place {
            Place::Arbiter => self.connect.arbiter.first().map(String::as_str),
            Place::Discovery => self.connect.discovery.as_deref(),
            Place::Gateway | Place::Agent => None,
        };
        match elsewhere {
            Some(text) => text.parse(),
            None => Ok(self.listens(place)?.swap_remove(0)),
        }
    }

    /// Where arbiters are to be found, at least one.
    ///
    /// # Errors
    /// Says which address is none.
    pub fn arbiters(&self) -> Result<Vec<Address>, InvalidAddress> {
        if self.connect.arbiter.is_empty() {
            return Ok(vec![self.find(Place::Arbiter)?]);
        }
        self.connect
            .arbiter
            .iter()
            .map(|text| text.parse())
            .collect()
    }

    /// Where an agent's heartbeats may go, at least one: to the arbiters, and where none is reached through
    /// gateways that relay them.
    ///
    /// # Errors
    /// Says which address is none.
    pub fn ways_to_arbiters(&self) -> Result<Vec<Address>, InvalidAddress> {
        let mut ways = self.arbiters()?;
        for text in &self.connect.relay {
            ways.push(text.parse()?);
        }
        Ok(ways)
    }

    /// Where others reach the arbiter of this machine, if that can be told.
    ///
    /// # Errors
    /// Says which address is none.
    pub fn advertised_arbiter(&self) -> Result<Option<Address>, InvalidAddress> {
        if let Some(set) = &self.listen.advertise_arbiter {
            return set.parse().map(Some);
        }
        let reachable = |address: &Address| match address {
            Address::Unix(_) => true,
            Address::Tcp { host, port } => {
                let any = host.parse().is_ok_and(|ip: IpAddr| ip.is_unspecified());
                *port != 0 && !any
            }
        };
        Ok(self.listens(Place::Arbiter)?.into_iter().find(reachable))
    }

    /// Listens at every address of a service, or at none.
    ///
    /// # Errors
    /// Names the address, the cause and what to do.
    pub async fn bind(&self, place: Place) -> anyhow::Result<Vec<Listener>> {
        let listen = async |address: &Address, insecure| Ok(listen::bind(address, insecure).await?);
        self.bind_by(place, listen).await
    }

    /// The same, where listeners of plain text come from elsewhere.
    ///
    /// # Errors
    /// Names the address, the cause and what to do.
    pub async fn bind_by(
        &self,
        place: Place,
        mut by: impl AsyncFnMut(&Address, bool) -> anyhow::Result<Listener>,
    ) -> anyhow::Result<Vec<Listener>> {
        let addresses = self.listens_how(place)?;
        for (address, tls) in &addresses {
            listen::check(address, self.listen.insecure || *tls)?;
        }
        let acceptor = match &self.listen.tls {
            Some(files) if addresses.iter().any(|(_, tls)| *tls) => {
                Some(Arc::new(Acceptor::new(files.clone(), "listen.tls")?))
            }
            _ => None,
        };
        let mut listeners = Vec::new();
        for (address, tls) in addresses {
            let listener = by(&address, self.listen.insecure || tls).await?;
            listeners.push(match (tls, &acceptor) {
                (false, _) => listener,
                (true, Some(acceptor)) => listener.with_tls(Arc::clone(acceptor)),
                (true, None) => anyhow::bail!("`{TLS}{address}` needs `listen.tls`"),
            });
        }
        Ok(listeners)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_set_is_on_sockets_of_this_machine() {
        let listen = Listen {
            runtime_dir: Some("/run/t".into()),
            ..Listen::default()
        };
        let at = Whereabouts::new(&listen, &Connect::default()).unwrap();

        assert_eq!(
            at.find(Place::Arbiter).unwrap().to_string(),
            "unix:/run/t/arbiter.sock"
        );
        assert!(
            at.listens(Place::Gateway)
                .unwrap()
                .iter()
                .all(Address::is_local)
        );
    }

    #[test]
    fn an_address_that_cannot_be_used_is_refused_by_its_key() {
        let refused = |listen: Listen, connect: Connect| {
            check_whereabouts(&listen, &connect, &[Place::Gateway])
                .unwrap_err()
                .to_string()
        };
        let none = Listen {
            arbiter: vec!["7437".into()],
            ..Listen::default()
        };
        let open = Listen {
            gateway: vec!["unix:/run/t.sock".into(), "0.0.0.0:1".into()],
            ..Listen::default()
        };
        let of_another = Listen {
            agent: vec!["0.0.0.0:1".into()],
            ..Listen::default()
        };
        let nowhere = Connect {
            discovery: Some("10.0.0.1:0".into()),
            ..Connect::default()
        };

        assert!(refused(none, Connect::default()).starts_with("`listen.arbiter`: `7437`"));
        let plain = refused(open, Connect::default());
        assert!(
            plain.starts_with("`listen.gateway`: refusing plain text"),
            "{plain}"
        );
        assert!(refused(Listen::default(), nowhere).starts_with("`connect.discovery`"));
        check_whereabouts(&of_another, &Connect::default(), &[Place::Gateway]).unwrap();
    }

    #[tokio::test]
    async fn a_start_that_is_refused_leaves_no_socket_behind() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let name = format!("tether-settings-{}-{port}", std::process::id());
        let runtime = std::env::temp_dir().join(name);
        let start = async |second: String| {
            let listen = Listen {
                gateway: vec![format!("unix:{}/gateway.sock", runtime.display()), second],
                runtime_dir: Some(runtime.clone()),
                ..Listen::default()
            };
            let at = Whereabouts::new(&listen, &Connect::default()).unwrap();
            at.bind(Place::Gateway).await.unwrap_err().to_string()
        };

        assert!(start("0.0.0.0:0".to_owned()).await.contains("plain text"));
        assert!(!runtime.exists(), "it was refused before anything was made");
        assert!(start(format!("127.0.0.1:{port}")).await.contains("in use"));
        assert!(!runtime.join("gateway.sock").exists());
        std::fs::remove_dir(&runtime).unwrap();
    }

    #[test]
    fn a_service_elsewhere_is_found_where_connect_says() {
        let listen = Listen {
            runtime_dir: Some("/run/t".into()),
            ..Listen::default()
        };
        let connect = Connect {
            arbiter: vec!["10.0.0.1:7438".into(), "10.0.0.2:7438".into()],
            ..Connect::default()
        };
        let at = Whereabouts::new(&listen, &connect).unwrap();

        assert_eq!(
            at.find(Place::Arbiter).unwrap().to_string(),
            "10.0.0.1:7438"
        );
        assert_eq!(at.arbiters().unwrap().len(), 2);
    }

    #[test]
    fn an_arbiter_is_one_address_or_a_list_of_them() {
        let read = |text: &str| toml::from_str::<Connect>(text).map(|connect| connect.arbiter);

        assert_eq!(read("arbiter = 'a:1'").unwrap(), ["a:1"]);
        assert_eq!(read("arbiter = ['a:1', 'b:1']").unwrap(), ["a:1", "b:1"]);
        assert_eq!(read("").unwrap(), [""; 0]);
        let refused = read("arbiter = 1").unwrap_err().to_string();
        assert!(refused.contains("a list of addresses"), "{refused}");
    }

    #[test]
    fn an_arbiter_is_told_of_where_others_can_reach_it() {
        let advertised = |arbiter: &[&str], set: Option<&str>| {
            let listen = Listen {
                runtime_dir: Some("/run/t".into()),
                arbiter: arbiter.iter().map(ToString::to_string).collect(),
                advertise_arbiter: set.map(str::to_owned),
                ..Listen::default()
            };
            let at = Whereabouts::new(&listen, &Connect::default()).unwrap();
            let address = at.advertised_arbiter().unwrap();
            address.map(|address| address.to_string())
        };

        let everywhere = ["0.0.0.0:7438"];
        assert_eq!(advertised(&everywhere, None), None);
        assert_eq!(advertised(&["10.0.0.1:1"], None).unwrap(), "10.0.0.1:1");
        assert_eq!(advertised(&everywhere, Some("a:1")).unwrap(), "a:1");
        assert_eq!(advertised(&[], None).unwrap(), "unix:/run/t/arbiter.sock");
    }

    #[tokio::test]
    async fn an_address_with_tls_needs_a_certificate_and_is_the_gateways() {
        let listen = |gateway: &str, arbiter: &str| Listen {
            gateway: vec![gateway.into()],
            arbiter: vec![arbiter.into()],
            ..Listen::default()
        };
        let plain = "127.0.0.1:0";
        let refused = |listen: &Listen| {
            check_whereabouts(listen, &Connect::default(), &[Place::Gateway])
                .err()
                .map(|wrong| wrong.to_string())
        };

        for (listen, why) in [
            (listen("https://0.0.0.0:0", plain), "`[listen.tls]`"),
            (listen(plain, "https://0.0.0.0:0"), "by the gateway alone"),
            (
                listen("https://unix:/a", plain),
                "no TLS is spoken on a unix socket",
            ),
        ] {
            let said = refused(&listen).unwrap();
            assert!(said.contains(why), "{said}");
        }
        let with = Listen {
            tls: Some(ServerFiles {
                certificate: "/none.pem".into(),
                ..ServerFiles::default()
            }),
            runtime_dir: Some("/run/t".into()),
            ..listen("https://0.0.0.0:0", plain)
        };
        assert_eq!(
            refused(&with),
            None,
            "others can reach it, and it is not plain text"
        );
        let text = toml::to_string(&with).unwrap();
        assert_eq!(toml::from_str::<Listen>(&text).unwrap().tls, with.tls);
        let at = Whereabouts::new(&with, &Connect::default()).unwrap();
        let wrong = at.bind(Place::Gateway).await.unwrap_err().to_string();
        assert!(
            wrong.starts_with("`listen.tls.certificate`: `/none.pem` cannot be read"),
            "{wrong}"
        );
    }
}
