//! A cluster and what it is started with.

use std::{
    future::Future,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    time::Duration,
};

use etcd_client::{
    Certificate, Client, ConnectOptions, Error, Identity, Permission, PermissionType, TlsOptions,
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use crate::{Certificates, Member, Seat, certificates, member::PROGRAM};

/// Who may read and write every key of a cluster with passwords, beside `root`.
pub const USER: &str = "tether";

/// Longer than a cluster takes to form on a loaded machine.
const FORMED: Duration = Duration::from_secs(60);
/// A member that does not answer within this is asked again.
const ANSWER: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(20);

/// What a cluster is to be.
#[derive(Debug, Clone)]
pub struct Setup {
    program: String,
    seats: Vec<Seat>,
    tls: bool,
    password: Option<String>,
    signed_tokens: bool,
    arguments: Vec<String>,
}

impl Setup {
    /// A cluster of so many members on loopback addresses.
    pub fn members(count: usize) -> Self {
        Self::seats((0..count).map(|_| Seat::loopback()).collect())
    }

    /// A cluster whose members live there.
    pub fn seats(seats: Vec<Seat>) -> Self {
        Self {
            program: PROGRAM.to_owned(),
            seats,
            tls: false,
            password: None,
            signed_tokens: false,
            arguments: Vec::new(),
        }
    }

    /// Another etcd, such as [`crate::OLD`].
    #[must_use]
    pub fn program(mut self, program: &str) -> Self {
        program.clone_into(&mut self.program);
        self
    }

    /// Clients and members have to show certificates.
    #[must_use]
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Clients have to be `root` or [`USER`], both with this password.
    #[must_use]
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self
    }

    /// Who has shown a password gets a signed token, which is good until roles or users are changed.
    #[must_use]
    pub fn signed_tokens(mut self) -> Self {
        self.signed_tokens = true;
        self
    }

    /// More arguments for each member.
    #[must_use]
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments
            .extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    /// Starts all members and waits until they have a leader.
    ///
    /// # Panics
    /// When they do not form a cluster.
    pub async fn start(mut self) -> Cluster {
        let folder = tempfile::Builder::new()
            .prefix("tether-etcd-")
            .tempdir()
            .expect("a folder can be made");
        let tls = self.tls.then(|| {
            // Where members listen, and where a connection between two on one machine comes from.
            let mut addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
            let seats = self.seats.iter();
            addresses.extend(seats.flat_map(|seat| [seat.client.ip(), seat.peer.ip()]));
            addresses.sort_unstable();
            addresses.dedup();
            Certificates::make(folder.path(), &addresses)
        });
        if self.signed_tokens {
            let (public, private) = certificates::token_keys(folder.path());
            let tokens = format!(
                "jwt,pub-key={},priv-key={},sign-method=ES256",
                public.display(),
                private.display()
            );
            self = self.arguments(&["--auth-token", &tokens]);
        }
        let mut members = self.seat(folder.path(), tls.as_ref());
        members.iter_mut().for_each(Member::start);
        let mut cluster = Cluster {
            members,
            certificates: tls,
            password: None,
            _folder: folder,
        };
        cluster.formed().await;
        if let Some(password) = self.password {
            cluster.lock(&password).await;
        }
        cluster
    }

    fn seat(&self, folder: &Path, certificates: Option<&Certificates>) -> Vec<Member> {
        let scheme = if self.tls { "https" } else { "http" };
        let names: Vec<String> = (0..self.seats.len()).map(|n| format!("m{n}")).collect();
        let all = names.iter().zip(&self.seats);
        let all: Vec<_> = all
            .map(|(name, seat)| format!("{name}={scheme}://{}", seat.peer))
            .collect();
        let seats = names.iter().zip(&self.seats);
        seats
            .map(|(name, seat)| {
                let (client, peer) = (
                    format!("{scheme}://{}", seat.client),
                    format!("{scheme}://{}", seat.peer),
                );
                let mut arguments = Vec::new();
                for (flag, value) in [
                    ("--listen-client-urls", &client),
                    ("--advertise-client-urls", &client),
                    ("--listen-peer-urls", &peer),
                    ("--initial-advertise-peer-urls", &peer),
                    ("--initial-cluster", &all.join(",")),
                    ("--logger", &"zap".to_owned()),
                    ("--log-level", &"warn".to_owned()),
                ] {
                    arguments.extend([flag.to_owned(), value.clone()]);
                }
                for (flag, name) in [
                    ("--trusted-ca-file", "ca.pem"),
                    ("--cert-file", "server.pem"),
                    ("--key-file", "server.key"),
                    ("--peer-trusted-ca-file", "ca.pem"),
                    ("--peer-cert-file", "server.pem"),
                    ("--peer-key-file", "server.key"),
                ] {
                    if let Some(certificates) = certificates {
                        let file = certificates.file(name).display().to_string();
                        arguments.extend([flag.to_owned(), file]);
                    }
                }
                if self.tls {
                    arguments.extend(
                        ["--client-cert-auth", "--peer-client-cert-auth"].map(str::to_owned),
                    );
                }
                arguments.extend(self.arguments.iter().cloned());
                Member::new(seat.clone(), folder, name, &self.program, arguments)
            })
            .collect()
    }
}

/// A cluster that runs. All of it goes when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    members: Vec<Member>,
    certificates: Option<Certificates>,
    password: Option<String>,
    _folder: TempDir,
}

impl Cluster {
    /// How many members it has, running or not.
    pub fn size(&self) -> usize {
        self.members.len()
    }

    /// One of its members.
    pub fn member(&mut self, index: usize) -> &mut Member {
        &mut self.members[index]
    }

    /// The addresses of all members, as `host:port`.
    pub fn addresses(&self) -> Vec<String> {
        self.members.iter().map(Member::address).collect()
    }

    /// The certificates of a cluster with TLS.
    pub fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    /// The URL of a store under `prefix`, with what it takes to be let in but the password.
    pub fn url(&self, prefix: &str) -> String {
        self.url_through(&self.addresses(), prefix)
    }

    /// The same, with other addresses that lead to the members.
    pub fn url_through(&self, addresses: &[String], prefix: &str) -> String {
        let mut parameters = Vec::new();
        if let Some(certificates) = &self.certificates {
            for (name, file) in [
                ("ca", "ca.pem"),
                ("cert", "client.pem"),
                ("key", "client.key"),
            ] {
                parameters.push(format!("{name}={}", certificates.file(file).display()));
            }
        }
        if self.password.is_some() {
            parameters.push(format!("user={USER}"));
        }
        let mut url = format!("etcd://{}/{prefix}/", addresses.join(","));
        if !parameters.is_empty() {
            url = format!("{url}?{}", parameters.join("&"));
        }
        url
    }

    /// A client of one member with every right.
    ///
    /// # Errors
    /// When the member does not answer.
    pub async fn client(&self, index: usize) -> Result<Client, Error> {
        let mut options = ConnectOptions::new().with_connect_timeout(ANSWER);
        let mut scheme = "http";
        if let Some(certificates) = &self.certificates {
            let read = |name| std::fs::read(certificates.file(name));
            let identity = Identity::from_pem(read("client.pem")?, read("client.key")?);
            let tls = TlsOptions::new()
                .ca_certificate(Certificate::from_pem(read("ca.pem")?))
                .identity(identity);
            options = options.with_tls(tls);
            scheme = "https";
        }
        if let Some(password) = &self.password {
            options = options.with_user("root", password);
        }
        let address = format!("{scheme}://{}", self.members[index].address());
        Client::connect([address], Some(options)).await
    }

    /// The member that leads, as soon as one of those that run and answer knows of one that does too.
    ///
    /// # Panics
    /// When there is none for a minute.
    pub async fn leader(&self) -> usize {
        self.patiently("a leader", async || {
            let mut ids = Vec::new();
            let mut leaders = Vec::new();
            for (index, member) in self.members.iter().enumerate() {
                let Some(status) = (if member.runs() {
                    self.status(index).await
                } else {
                    None
                }) else {
                    continue;
                };
                ids.push((status.0, index));
                leaders.push((status.2, status.1));
            }
            // Of those that say who leads, the one in the latest term is right.
            let (_, leader) = leaders.into_iter().max()?;
            ids.into_iter()
                .find(|(id, _)| *id == leader)
                .map(|(_, index)| index)
        })
        .await
    }

    /// Its own id, that of the leader it follows, and the term.
    async fn status(&self, index: usize) -> Option<(u64, u64, u64)> {
        let ask = async {
            let status = self.client(index).await.ok()?.status().await.ok()?;
            let id = status.header()?.member_id();
            Some((id, status.leader(), status.raft_term()))
        };
        timeout(ANSWER, ask).await.ok().flatten()
    }

    /// Gives the lead to another member.
    ///
    /// # Panics
    /// When that does not happen within a minute.
    pub async fn move_leader(&self, to: usize) {
        self.patiently("the lead moves", async || {
            let leader = self.leader().await;
            if leader == to {
                return Some(());
            }
            let (id, ..) = self.status(to).await?;
            let mut client = self.client(leader).await.ok()?;
            let _ = timeout(ANSWER, client.move_leader(id)).await;
            None
        })
        .await;
    }

    /// Waits until every member that runs follows a leader that they all name.
    ///
    /// # Panics
    /// When they do not for a minute.
    pub async fn formed(&self) {
        self.patiently("the members form a cluster", async || {
            let mut leaders = Vec::new();
            for index in (0..self.members.len()).filter(|&index| self.members[index].runs()) {
                leaders.push(self.status(index).await?.1);
            }
            leaders.dedup();
            matches!(leaders[..], [leader] if leader != 0).then_some(())
        })
        .await;
    }

    /// Starts a member that was killed, and waits until it is one of them again.
    ///
    /// # Panics
    /// When it is not within a minute.
    pub async fn restart(&mut self, index: usize) {
        self.members[index].start();
        self.formed().await;
    }

    async fn patiently<T, F: Future<Output = Option<T>>>(
        &self,
        what: &str,
        look: impl Fn() -> F,
    ) -> T {
        let deadline = Instant::now() + FORMED;
        loop {
            if let Some(seen) = look().await {
                return seen;
            }
            if Instant::now() > deadline {
                let logs: Vec<_> = self.members.iter().map(Member::log).collect();
                panic!("not within {FORMED:?}: {what}\n{}", logs.join("\n"));
            }
            sleep(PAUSE).await;
        }
    }

    async fn lock(&mut self, password: &str) {
        let mut client = self.client(0).await.expect("the member answers");
        let all = Permission::new(PermissionType::Readwrite, "").with_all_keys();
        let locked = async {
            client.user_add("root", password, None).await?;
            client.user_grant_role("root", "root").await?;
            client.role_add(USER).await?;
            client.role_grant_permission(USER, all).await?;
            client.user_add(USER, password, None).await?;
            client.user_grant_role(USER, USER).await?;
            client.auth_enable().await?;
            Ok::<_, Error>(())
        };
        locked.await.expect("passwords can be asked for");
        self.password = Some(password.to_owned());
        self.formed().await;
    }
}
