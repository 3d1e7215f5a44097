//! `dns://name:port`: every A and AAAA record of a name, or who its SRV records name, asked again when its time to
//! live is over. See `docs/how-to/discovery/dns.md`.
//!
//! ```text
//! terms --> question --> servers --(silent, SERVFAIL: the next)--> chain of aliases --> answer
//!              ^                                                                          |
//!              +------------------------------- pace <------------------------------------+
//! ```
//!
//! A name that has no addresses serves from none. A name that does not exist, or a server that does not answer, says
//! nothing: servers answer NXDOMAIN while they restart, and what served a moment ago most likely still does.

mod chain;
mod pace;
mod question;
mod servers;
mod services;
mod terms;
mod trouble;

use std::{net::SocketAddr, time::Duration};

use futures::{StreamExt as _, stream};
use hickory_resolver::{proto::rr::Name, system_conf::read_system_conf};

use self::{
    pace::Pace,
    question::Question,
    servers::Servers,
    terms::{Search, Terms, candidates},
    trouble::Trouble,
};
use super::{Answer, Backend, Options, Watch};

/// As resolvers do where nothing else is said.
const NDOTS: usize = 1;
const DNS_PORT: u16 = 53;

#[derive(Debug)]
pub(super) struct Dns;

impl Backend for Dns {
    fn scheme(&self) -> &'static str {
        "dns"
    }

    fn usage(&self) -> &'static str {
        "dns://workers.internal:50051"
    }

    fn watch(&self, target: &str, options: &mut Options) -> Result<Watch, String> {
        let terms = Terms::parse(target, options)?;
        let watching = Watching {
            pace: Pace::new(terms.bounds),
            terms,
            prepared: None,
            wait: Duration::ZERO,
        };
        Ok(stream::unfold(watching, |mut watching| async {
            let answer = watching.next().await;
            Some((answer, watching))
        })
        .boxed())
    }

    fn tells_each_answer(&self) -> bool {
        true
    }
}

struct Watching {
    terms: Terms,
    pace: Pace,
    /// Made of the terms and of what the system says; made again after a question that nobody answered.
    prepared: Option<(Servers, Question)>,
    /// Until the next question.
    wait: Duration,
}

impl Watching {
    async fn next(&mut self) -> Result<Answer, String> {
        tokio::time::sleep(self.wait).await;
        let said = self.ask().await;
        let chance = fastrand::f64();
        let seconds = |ttl: Option<u32>| ttl.map(|ttl| Duration::from_secs(ttl.into()));
        let (wait, answer) = match said {
            Ok((answer, ttl)) => (self.pace.after_answer(seconds(ttl), chance), Ok(answer)),
            Err(Trouble::Missing(ttl)) => {
                let answer = match self.terms.missing_is_empty {
                    true => Ok(Answer::default()),
                    false => Err("there is no such name (NXDOMAIN)".to_owned()),
                };
                (self.pace.after_answer(seconds(ttl), chance), answer)
            }
            Err(Trouble::Server(why) | Trouble::Nonsense(why)) => {
                if self.terms.servers.is_empty() || self.terms.search == Search::System {
                    // The system's servers may be others by now.
                    self.prepared = None;
                }
                (self.pace.after_failure(chance), Err(why))
            }
        };
        self.wait = wait;
        answer.map_err(|why| format!("`{}`: {why}", self.terms.name))
    }

    async fn ask(&mut self) -> Result<question::Said, Trouble> {
        let (servers, question) = match &mut self.prepared {
            Some(prepared) => prepared,
            none => none.insert(prepare(&self.terms).map_err(Trouble::Server)?),
        };
        servers.ask(question).await
    }
}

/// Reads what the terms leave to the system.
fn prepare(terms: &Terms) -> Result<(Servers, Question), String> {
    let mut servers = terms.servers.clone();
    let (mut domains, mut ndots): (Vec<Name>, usize) = (Vec::new(), NDOTS);
    if let Search::Domains(named) = &terms.search {
        domains.clone_from(named);
    }
    if servers.is_empty() || terms.search == Search::System {
        let (config, options) = read_system_conf()
            .map_err(|error| format!("cannot use `/etc/resolv.conf`: {error}"))?;
        if servers.is_empty() {
            let listed = config.name_servers().iter();
            servers = listed
                .map(|server| SocketAddr::new(server.ip, DNS_PORT))
                .collect();
        }
        if terms.search == Search::System {
            domains.extend_from_slice(config.search());
            ndots = options.ndots;
        }
    }
    let question = Question {
        names: candidates(&terms.name, &domains, ndots),
        wanted: terms.wanted,
    };
    Ok((Servers::new(&servers, terms.over)?, question))
}
