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
};

/// So many are asked at the same time, of one pool.
const AT_ONCE: usize = 64;

/// Answers that nobody has read yet: who asks waits, and no answer is lost.
const UNREAD: usize = 256;

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
    let question = match terms.check {
        Check::Grpc => Question::grpc(&address, &terms.service),
        Check::Tcp => Question::connect(&address),
        Check::Http => Question::http(&address, &terms.path),
        Check::Watch => return watch(address, terms, answers).await,
    };
    let header = Some(terms.identity_header.as_str()).filter(|header| !header.is_empty());
    loop {
        let answer = match turns.acquire().await {
            Ok(_turn) => question.ask_who(terms.timeout, header).await,
            Err(_) => return,
        };
        let word = answer.map_or_else(Word::Nothing, Word::Serves);
        if answers.send((address.clone(), word)).await.is_err() {
            return;
        }
        tokio::time::sleep(jittered(terms.interval)).await;
    }
}

/// Follows what one endpoint says of itself; one that ends or cannot be reached is followed again after the interval.
async fn watch(address: Address, terms: Arc<Health>, answers: mpsc::Sender<Answer>) {
    loop {
        let mut told = Box::pin(tether_probe::watch(&address, &terms.service));
        let mut first = true;
        loop {
            // The first word has to come in time, and every other one when there is something to say.
            let next = match std::mem::take(&mut first) {
                true => tokio::time::timeout(terms.timeout, told.next()).await,
                false => Ok(told.next().await),
            };
            let word = match next {
                Ok(Some(Watched::Serving)) => Word::Serves(None),
                Ok(Some(Watched::NotServing(why))) => Word::Refuses(why),
                Ok(Some(Watched::Silent(why))) => Word::Nothing(why),
                Ok(None) => Word::Nothing("the watch ended".to_owned()),
                Err(_) => {
                    let within = tether_probe::span(terms.timeout);
                    Word::Nothing(format!("no answer to a watch within {within}"))
                }
            };
            // After silence nothing follows.
            let goes_on = !matches!(word, Word::Nothing(_));
            if answers.send((address.clone(), word)).await.is_err() {
                return;
            }
            if !goes_on {
                break;
            }
        }
        tokio::time::sleep(jittered(terms.interval)).await;
    }
}

/// A tenth more or less, so that what began together does not go on together.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(0.9 + 0.2 * fastrand::f64())
}
