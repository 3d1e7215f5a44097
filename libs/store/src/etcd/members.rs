//! The members of a cluster, one client each: a call goes to the one that answered last, and to the next
//! one where that does not answer.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use etcd_client::{Client, ConnectOptions, Error as EtcdError};
use futures::future::join_all;
use tokio::{
    sync::Mutex,
    time::{Instant, sleep, timeout_at},
};

use super::{
    greeting::greet,
    judge::{Verdict, judge, words},
    target::Target,
    version::{FLOOR, will_do},
};
use crate::{Error, etcd::target::Secret};

/// etcd cuts a connection that pings more often than every 5 s, so 6 s is the fastest safe rate.
const KEEP_ALIVE: Duration = Duration::from_secs(6);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// How long one member may keep a call waiting. One that works answers in milliseconds, and an election
/// is over in a second or two.
pub(super) const ATTEMPT: Duration = Duration::from_millis(1500);

/// How long all of them together may: a cluster that can elect a leader has one within this.
pub(super) const CALL: Duration = Duration::from_secs(5);

/// Between two laps around all members: none of them could, so the next one at once could not either.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// Delays that grow, with jitter, so that those who lost one member do not meet again at the next.
pub(super) fn pauses() -> impl Iterator<Item = Duration> + Send + use<> {
    ExponentialBuilder::default()
        .with_min_delay(PAUSE_MIN)
        .with_max_delay(PAUSE_MAX)
        .with_jitter()
        .without_max_times()
        .build()
}

#[derive(Debug)]
pub(super) struct Members {
    members: Vec<Member>,
    /// Who answered last.
    preferred: AtomicUsize,
    allow_old: bool,
    /// What we may lack where a member ends connections without a word, as one does that speaks TLS with those
    /// who do not, or wants to see a certificate.
    lacking: Option<&'static str>,
}

struct Member {
    address: String,
    url: String,
    options: ConnectOptions,
    /// Made when the member answers, and made anew when it was silent: its connection may lead nowhere, which
    /// keep-alives find out only seconds later.
    client: Mutex<Option<Client>>,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.address)
    }
}

/// Why a member is of no use.
enum Useless {
    Etcd(EtcdError),
    Old { found: String },
    Silent,
}

impl Members {
    /// Prepares a client for each member and looks at the version of each that answers.
    pub(super) async fn open(target: &Target) -> Result<Self, Error> {
        let options = options(target).map_err(|why| Error::Url {
            given: format!("etcd://{}{}", target.members.join(","), target.prefix),
            why,
        })?;
        let members = target.members.iter().map(|address| Member {
            address: address.clone(),
            url: format!("{}://{address}", target.scheme()),
            options: options.clone(),
            client: Mutex::new(None),
        });
        let members = Self {
            members: members.collect(),
            preferred: AtomicUsize::new(0),
            allow_old: target.allow_old,
            lacking: target.lacking(),
        };
        let deadline = Instant::now() + ATTEMPT;
        let asked = members
            .members
            .iter()
            .map(|member| members.ask(member, deadline));
        for (member, answer) in members.members.iter().zip(join_all(asked).await) {
            match answer {
                Err(Useless::Old { found }) => return Err(member.too_old(found)),
                Err(Useless::Etcd(error)) if judge(&error) == Verdict::Refused => {
                    return Err(members.unavailable(words(&error)));
                }
                // It may come later; it is looked at before its first call.
                Err(Useless::Etcd(_) | Useless::Silent) | Ok(_) => {}
            }
        }
        Ok(members)
    }

    /// All members, for messages.
    pub(super) fn names(&self) -> String {
        let names: Vec<_> = self.members.iter().map(|m| m.address.as_str()).collect();
        names.join(",")
    }

    /// Whether one of them may be older than we would have it.
    pub(super) fn allow_old(&self) -> bool {
        self.allow_old
    }

    pub(super) fn unavailable(&self, why: impl Into<String>) -> Error {
        Error::unavailable(format!("etcd://{}", self.names()), why.into())
    }

    /// Has one member after the other try until one has an answer. What is tried has to be something that
    /// may be done twice: a member that does not answer may have done it, and may even do it later.
    ///
    /// # Errors
    /// When etcd refuses it, or when no member has an answer until `deadline`.
    pub(super) async fn call<T, F>(
        &self,
        deadline: Instant,
        mut attempt: impl FnMut(Client) -> F + Send,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, EtcdError>> + Send,
    {
        let mut heard: BTreeMap<&str, String> = BTreeMap::new();
        let mut pauses = pauses();
        let first = self.preferred.load(Ordering::Relaxed);
        for turn in 0.. {
            let index = (first + turn) % self.members.len();
            let member = &self.members[index];
            let until = deadline.min(Instant::now() + ATTEMPT);
            let why = match self.attempt(member, until, &mut attempt).await {
                Ok(answer) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(Useless::Etcd(error)) if judge(&error) == Verdict::Refused => {
                    return Err(self.unavailable(words(&error)));
                }
                Err(Useless::Etcd(error)) => self.words(&error),
                Err(Useless::Old { found }) => member.too_old(found).to_string(),
                Err(Useless::Silent) => format!("no answer within {ATTEMPT:?}"),
            };
            heard.insert(&member.address, why);
            if (turn + 1) % self.members.len() == 0 {
                let pause = pauses.next().unwrap_or(PAUSE_MAX);
                sleep(pause.min(deadline - Instant::now())).await;
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        let heard: Vec<_> = heard
            .iter()
            .map(|(who, why)| format!("{who}: {why}"))
            .collect();
        Err(self.unavailable(heard.join("; ")))
    }

    fn words(&self, error: &EtcdError) -> String {
        let said = words(error);
        let ended = [
            "connection error",
            "connection closed",
            "CertificateRequired",
        ];
        match self.lacking {
            Some(lacking) if ended.iter().any(|mark| said.contains(mark)) => {
                format!("{said}; {lacking}")
            }
            _ => said,
        }
    }

    async fn attempt<T, F>(
        &self,
        member: &Member,
        deadline: Instant,
        attempt: &mut (impl FnMut(Client) -> F + Send),
    ) -> Result<T, Useless>
    where
        F: Future<Output = Result<T, EtcdError>> + Send,
    {
        let client = self.ask(member, deadline).await?;
        let tries = async {
            match attempt(client.clone()).await {
                Err(error) if judge(&error) == Verdict::NewToken => {
                    client.refresh_token().await?;
                    attempt(client).await
                }
                answer => answer,
            }
        };
        match timeout_at(deadline, tries).await {
            Ok(answer) => answer.map_err(Useless::Etcd),
            Err(_) => {
                member.client.lock().await.take();
                Err(Useless::Silent)
            }
        }
    }

    /// The member's client; before its first use, the member says which version it is.
    async fn ask(&self, member: &Member, deadline: Instant) -> Result<Client, Useless> {
        let made = async {
            let mut kept = member.client.lock().await;
            if let Some(client) = &*kept {
                return Ok(client.clone());
            }
            let client = self.connect(member).await?;
            *kept = Some(client.clone());
            Ok(client)
        };
        timeout_at(deadline, made)
            .await
            .unwrap_or(Err(Useless::Silent))
    }

    async fn connect(&self, member: &Member) -> Result<Client, Useless> {
        // TLS has a greeting of its own.
        if member.url.starts_with("http:") {
            Box::pin(greet(&member.address)).await;
        }
        let options = Some(member.options.clone());
        let connected = Client::connect([&member.url], options).await;
        let mut client = connected.map_err(Useless::Etcd)?;
        let status = client.status().await.map_err(Useless::Etcd)?;
        if !will_do(status.version()) {
            let found = status.version().to_owned();
            if !self.allow_old {
                return Err(Useless::Old { found });
            }
            tracing::warn!(
                member = member.address,
                version = found,
                "This etcd is older than {FLOOR} and used all the same, as `allow_old` says"
            );
        }
        Ok(client)
    }
}

impl Member {
    fn too_old(&self, found: String) -> Error {
        Error::TooOld {
            member: self.address.clone(),
            found,
            floor: FLOOR.to_string(),
        }
    }
}

fn options(target: &Target) -> Result<ConnectOptions, String> {
    let mut options = ConnectOptions::new()
        .with_keep_alive(KEEP_ALIVE, KEEP_ALIVE_TIMEOUT)
        .with_keep_alive_while_idle(true)
        .with_connect_timeout(ATTEMPT)
        // A member cut off from the others says so within seconds; without this it stays silent.
        .with_require_leader(true);
    if let Some(tls) = target.tls()? {
        options = options.with_tls(tls);
    }
    if let Some((user, Secret(password))) = target.user()? {
        options = options.with_user(user, password);
    }
    Ok(options)
}
