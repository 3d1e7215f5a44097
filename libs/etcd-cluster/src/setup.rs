//! What a cluster is started with.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use crate::{Certificates, Cluster, Member, Seat, certificates, member::PROGRAM};

/// What a cluster is to be.
#[derive(Debug, Clone)]
pub struct Setup {
    program: String,
    seats: Vec<Seat>,
    tls: bool,
    password: Option<String>,
    signed_tokens: bool,
    arguments: Vec<String>,
    within: Option<PathBuf>,
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
            within: None,
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

    /// Clients have to be `root` or [`crate::USER`], both with this password.
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

    /// Keeps what the members say, and what is not on disks of their own, in a folder of the caller's, which
    /// goes with the caller's even if nobody lived to drop the cluster.
    #[must_use]
    pub fn within(mut self, folder: &Path) -> Self {
        self.within = Some(folder.to_owned());
        self
    }

    /// Starts all members and waits until they have a leader.
    ///
    /// # Panics
    /// When they do not form a cluster.
    pub async fn start(mut self) -> Cluster {
        let mut folder = tempfile::Builder::new();
        let folder = folder.prefix("tether-etcd-");
        let folder = match &self.within {
            Some(within) => folder.tempdir_in(within),
            None => folder.tempdir(),
        };
        let folder = folder.expect("a folder can be made");
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
        let mut cluster = Cluster::new(members, tls, folder);
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
