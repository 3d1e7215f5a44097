//! Asks endpoints whether they serve, each at a moment of its own.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::StreamExt as _;
use tether_probe::{Question, Watched};
use tether_types::Address;
use tokio::{
    sync::{Semaphore, mpsc},
    task::AbortHandle,
};

use crate::{
    config::{Check, Health},
    health::Word,
    numbering::Member,
};

/// So many are asked at the same time, of one pool.
const AT_ONCE: usize = 64;

/// Answers that nobody has read yet: who asks waits, and no answer is lost.
const UNREAD: usize = 256;

/// So long at most the first questions to a pool are spread over.
const SPREAD: Duration = Duration::from_secs(1);

/// The protocol of endpoints that only take TLS.
const TLS: &str = "grpcs";

/// What an endpoint answered.
pub(crate) type Answer = (Address, Word);

/// Asks all endpoints of one pool. What it started ends with it.
#[derive(Debug)]
pub(crate) struct Checker {
    terms: Arc<Health>,
    asked: BTreeMap<Address, Asked>,
    turns: Arc<Semaphore>,
    answers: mpsc::Sender<Answer>,
    heard: mpsc::Receiver<Answer>,
}

#[derive(Debug)]
struct Asked(AbortHandle);

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Checker {
    pub(crate) fn new(terms: Health) -> Self {
        let (answers, heard) = mpsc::channel(UNREAD);
        Self {
            terms: Arc::new(terms),
            asked: BTreeMap::new(),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
            answers,
            heard,
        }
    }

    /// Those of these that can be asked: without TLS, but for a connection.
    pub(crate) fn askable<'a>(
        &self,
        members: &'a BTreeMap<Address, Member>,
    ) -> impl Iterator<Item = &'a Address> + use<'a> {
        let any = self.terms.check == Check::Tcp;
        let asked = members.iter();
        let asked = asked.filter(move |(_, member)| any || member.traits.protocol != TLS);
        asked.map(|(address, _)| address)
    }

    /// Asks these from now on, and no others.
    pub(crate) fn ask<'a>(&mut self, addresses: impl Iterator<Item = &'a Address>) {
        let mut before = std::mem::take(&mut self.asked);
        for address in addresses {
            let asked = before.remove(address).unwrap_or_else(|| {
                let asking = ask(
                    address.clone(),
                    Arc::clone(&self.terms),
                    Arc::clone(&self.turns),
                    self.answers.clone(),
                );
                Asked(tokio::spawn(asking).abort_handle())
            });
            self.asked.insert(address.clone(), asked);
        }
    }

    /// Who serves there is another one: it is asked anew where it is to be asked.
    pub(crate) fn ask_no_more(&mut self, address: &Address) {
        self.asked.remove(address);
    }

    /// Whether this one is asked: an answer of one that is not comes too late.
    pub(crate) fn asks(&self, address: &Address) -> bool {
        self.asked.contains_key(address)
    }

    /// The next answers, all that are there. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Vec<Answer> {
        let mut answers = Vec::new();
        // Waits for one at least, as there is a sender here.
        self.heard.recv_many(&mut answers, UNREAD).await;
        answers
    }
}

/// Asks one endpoint until it is aborted.
async fn ask(
    address: Address,
    terms: Arc<Health>,
    turns: Arc<Semaphore>,
    answers: mpsc::Sender<Answer>,
) {
    // A pool that was just read is not asked all at once.
    tokio::time::sleep(terms.interval.min(SPREAD).mul_f64(fastrand::f64())).await;
    let question = match terms.check {
        Check::Grpc => Question::grpc(&address, &terms.service),
        Check::Tcp => Question::connect(&address),
        Check::Http => Question::http(&address, &terms.path),
        Check::Watch => return watch(address, terms, turns, answers).await,
    };
    loop {
        let answer = match turns.acquire().await {
            Ok(_turn) => question.ask_who(terms.timeout, header(&terms)).await,
            Err(_) => return,
        };
        let word = answer.map_or_else(Word::Nothing, Word::Serves);
        if answers.send((address.clone(), word)).await.is_err() {
            return;
        }
        tokio::time::sleep(jittered(terms.interval)).await;
    }
}

/// Follows what one endpoint says of itself; one that ends, hangs or cannot be reached is followed again after the interval.
async fn watch(
    address: Address,
    terms: Arc<Health>,
    turns: Arc<Semaphore>,
    answers: mpsc::Sender<Answer>,
) {
    loop {
        let (question, told) = tether_probe::watch(&address, &terms.service, header(&terms));
        let mut told = Box::pin(told);
        // The first word has to come in time, and every other one when there is something to say.
        let first = match turns.acquire().await {
            Ok(_turn) => tokio::time::timeout(terms.timeout, told.next()).await,
            Err(_) => return,
        };
        let mut word = match first {
            Ok(next) => understood(next),
            Err(_) => {
                let within = tether_probe::span(terms.timeout);
                Word::Nothing(format!("no answer to a watch within {within}"))
            }
        };
        loop {
            // After silence nothing follows.
            let goes_on = !matches!(word, Word::Nothing(_));
            if answers.send((address.clone(), word)).await.is_err() {
                return;
            }
            if !goes_on {
                break;
            }
            word = tokio::select! {
                next = told.next() => understood(next),
                why = silence(&question, &terms, &turns) => Word::Nothing(why),
            };
        }
        tokio::time::sleep(jittered(terms.interval)).await;
    }
}

fn understood(next: Option<Watched>) -> Word {
    match next {
        Some(Watched::Serving(who)) => Word::Serves(who),
        Some(Watched::NotServing(why)) => Word::Refuses(why),
        Some(Watched::Silent(why)) => Word::Nothing(why),
        None => Word::Nothing("the watch ended".to_owned()),
    }
}

/// Asks whoever is watched, each interval, until no answer comes; what it was. Somebody who hangs, or whose machine is
/// gone, tells nothing over a stream that stands, and neither does one who has nothing to tell.
async fn silence(question: &Question, terms: &Health, turns: &Semaphore) -> String {
    loop {
        tokio::time::sleep(jittered(terms.interval)).await;
        let Ok(_turn) = turns.acquire().await else {
            return std::future::pending().await;
        };
        if let Err(why) = question.ask(terms.timeout).await {
            return why;
        }
    }
}

/// What says who answers, where that is asked for.
fn header(terms: &Health) -> Option<&str> {
    Some(terms.identity_header.as_str()).filter(|header| !header.is_empty())
}

/// A tenth more or less, so that what began together does not go on together.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(0.9 + 0.2 * fastrand::f64())
}

#[cfg(test)]
mod tests {
    use tokio::{net::TcpListener, task::JoinSet};

    use super::*;

    #[tokio::test]
    async fn no_more_are_dialled_for_a_watch_than_may_be_asked_at_once() {
        // They take a connection, and say nothing.
        let mut accepting = JoinSet::new();
        let mut addresses = Vec::new();
        for _ in 0..AT_ONCE + 10 {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let at = listener.local_addr().unwrap();
            addresses.push(at.to_string().parse().unwrap());
            accepting.spawn(async move { listener.accept().await.unwrap() });
        }
        let mut checker = Checker::new(Health {
            check: Check::Watch,
            interval: Duration::from_millis(1),
            timeout: Duration::from_secs(600),
            ..Health::default()
        });

        checker.ask(addresses.iter());

        let dialled = async {
            let mut dialled = Vec::new();
            while dialled.len() < AT_ONCE {
                dialled.push(accepting.join_next().await.unwrap());
            }
            dialled
        };
        let dialled = tokio::time::timeout(Duration::from_secs(10), dialled).await;
        let _dialled = dialled.expect("all turns are taken");
        assert_eq!(checker.turns.available_permits(), 0);
    }
}
