//! A cluster that runs, and what can be done to it as a whole.

use std::{future::Future, time::Duration};

use etcd_client::{
    Certificate, Client, ConnectOptions, Error, Identity, Permission, PermissionType, TlsOptions,
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use crate::{Certificates, Member};

/// Who may read and write every key of a cluster with passwords, beside `root`.
pub const USER: &str = "tether";

/// Longer than a cluster takes to form on a loaded machine.
const FORMED: Duration = Duration::from_secs(60);
/// A member that does not answer within this is asked again.
const ANSWER: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(20);

/// A cluster that runs. All of it goes when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    members: Vec<Member>,
    certificates: Option<Certificates>,
    password: Option<String>,
    _folder: TempDir,
}

impl Cluster {
    pub(crate) fn new(
        members: Vec<Member>,
        certificates: Option<Certificates>,
        folder: TempDir,
    ) -> Self {
        Self {
            members,
            certificates,
            password: None,
            _folder: folder,
        }
    }

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

    pub(crate) async fn lock(&mut self, password: &str) {
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
