//! The way of a call through the gateway: read its head, choose a server, pass everything on.

use std::{
    future::ready,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use futures::future::Either;
use http::{
    HeaderName, HeaderValue, Request, Uri,
    header::{self, HeaderMap},
    request::Parts,
    uri::{Authority, Scheme},
};
use tether_endpoints::Session;
use tether_proto::{Failure, NotLeader};
use tether_types::PoolName;
use tokio::time::Instant;
use tonic::Status;

use crate::{
    affinity::Found,
    answer::{Answer, DEADLINE_EXCEEDED, Passing},
    arbiters::Arbiters,
    attempt::{Attempt, Ended, Failed},
    budget::Budget,
    call::{self, Call, Control},
    client::{Client, Messages},
    config::Config,
    deadline::Deadline,
    directory::{Chosen, Directory},
    ending::Ending,
    explain::{self, Progress},
    fields,
    hedge::Hedge,
    links::Links,
    own::OwnServices,
    owners::{Acting, Owners},
    pump::{Source, TooMuch},
    record::{self, By, Tail},
    repeat::{self, Last, Tries},
    room::Rooms,
    route::{self, Destination, Route},
    slots::Sender,
    timeout, upload,
    upstream::Upstream,
    wake::Wake,
    wire::{RecvStream, SendResponse, recycle},
};

/// How long a call waits for discovery's first word: a gateway that has just started has it in no
/// time, and one whose discovery is away should say so soon.
const FIRST_WORD: Duration = Duration::from_secs(1);

/// The largest request to the arbiter, in bytes, which is taken in whole: as gRPC servers have it.
const CONTROL_LIMIT: u32 = 4 << 20;

/// Stands in a request that names no authority: what a gRPC server is called does not matter to it.
const AUTHORITY: &str = "localhost";

const VIA: HeaderName = HeaderName::from_static(route::VIA);

/// Everything that calls need. Each lane has one, with connections of its own to workers.
#[derive(Clone)]
pub(crate) struct Forwarder {
    pub(crate) config: Config,
    pub(crate) directory: Arc<Directory>,
    pub(crate) links: Arc<Links>,
    pub(crate) arbiters: Arc<Arbiters>,
    pub(crate) discovery: Arc<Upstream>,
    pub(crate) own: OwnServices,
    pub(crate) owners: Arc<Owners>,
    pub(crate) wake: Arc<Wake>,
    pub(crate) budget: Budget,
    /// Of this lane.
    pub(crate) rooms: Rooms<Came, Passing>,
    pub(crate) tail: Tail,
    pub(crate) ending: Ending,
    /// What stands for this gateway in calls that it has sent on.
    pub(crate) own_word: HeaderValue,
}

/// A call as it came, over a connection of this number.
pub(crate) struct Came {
    forwarder: Arc<Forwarder>,
    request: Request<RecvStream>,
    respond: SendResponse,
    connection: u64,
}

impl Forwarder {
    /// Answers a call that came over a connection of this number, one way or the other.
    pub(crate) fn serve(
        self: Arc<Self>,
        request: Request<RecvStream>,
        respond: SendResponse,
        connection: u64,
    ) -> impl Future<Output = ()> + Send + use<> {
        let rooms = self.rooms.clone();
        record::keep(rooms.serve(Came {
            forwarder: self,
            request,
            respond,
            connection,
        }))
    }

    /// Room for calls of one lane.
    pub(crate) fn rooms() -> Rooms<Came, Passing> {
        Rooms::new(Self::reach)
    }

    /// Takes a call as far as the head of its answer; the rest is to be awaited, where there is any.
    async fn reach(came: Came) -> Option<Passing> {
        let Came {
            forwarder: this,
            request,
            respond,
            connection,
        } = came;
        let mut client = Client::new(respond);
        let (mut head, body) = request.into_parts();
        let plan = match route::plan(&head, this.config.relay_nodes) {
            Ok(plan) => plan,
            Err(failure) => {
                client.refuse(explain::untried(failure).into());
                return None;
            }
        };
        let deadline = Deadline::after(plan.timeout);
        if plan.route == Route::Own {
            let request = Request::from_parts(head, Messages(body));
            Box::pin(this.answer_itself(request, client)).await;
            return None;
        }
        if let Route::Worker(to) = &plan.route {
            this.tail.begin(&head.uri, to);
        }
        let session = match &plan.route {
            Route::Worker(to) => to.session.as_deref(),
            _ => None,
        };
        let stay = this.ending.stay(session.map(Acting::from), &this.config);
        let mut dismissal = this.ending.dismissal(stay, &this.owners);
        let answer = async {
            let head = &mut head;
            match plan.route {
                // Each call is a task, which has room for the longest of its ways: those that few go are apart.
                Route::Arbiter => Box::pin(this.to_arbiter(head, body, deadline)).await,
                Route::Discovery | Route::Own => {
                    Box::pin(this.to_discovery(head, body, deadline)).await
                }
                Route::Worker(to) => {
                    this.sign(head, &to.pool).map_err(explain::untried)?;
                    let may = this.may_act(to.session.as_deref(), deadline).await;
                    may.map_err(explain::untried)?;
                    let source = Source::live(body);
                    this.to_worker(to, connection, head, source, deadline).await
                }
            }
        };
        let answer = {
            let answer = pin!(answer);
            let answer = pin!(dismissal.unless_dismissed(answer));
            client.unless_gone(answer).await
        };
        recycle(head.headers);
        match answer.map(|answer| answer.map_err(Status::from).flatten()) {
            None => None,
            Some(Ok(answer)) => answer.pass(client, deadline, this.budget.clone(), dismissal),
            Some(Err(status)) => {
                record::on_end(status.code() as u32, By::Gateway);
                client.refuse(status);
                None
            }
        }
    }

    /// Answers a call to a service of its own.
    async fn answer_itself(&self, request: Request<Messages>, mut client: Client) {
        if let Some(answer) = client.unless_gone(pin!(self.own.serve(request))).await {
            client.tell(answer, self.ending.drain.cancelled()).await;
        }
    }

    /// Writes into a call that it went through this gateway.
    ///
    /// # Errors
    /// Where it has done so before.
    pub(crate) fn sign(&self, head: &mut Parts, pool: &PoolName) -> Result<(), Failure> {
        let mut through = head
            .headers
            .iter()
            .filter(|(name, _)| name.as_str() == route::VIA);
        if through.any(|(_, word)| *word == self.own_word) {
            return Err(explain::came_back(pool));
        }
        head.headers.append(VIA, self.own_word.clone());
        Ok(())
    }

    /// Whether whoever calls may do so in the name it gives, where it gives one.
    async fn may_act(&self, session: Option<&Session>, deadline: Deadline) -> Result<(), Failure> {
        let Some(session) = session else {
            return Ok(());
        };
        let admitted = async {
            let acting = Acting::from(session);
            self.owners.admit(&acting).await
        };
        deadline.bound(Box::pin(admitted)).await?
    }

    async fn to_discovery(
        &self,
        head: &mut Parts,
        body: RecvStream,
        deadline: Deadline,
    ) -> Result<Answer, Status> {
        let address = self.discovery.address().clone();
        let limit = self.config.max_message_bytes;
        let mut call = Call::to_control(Control::Discovery, address, limit);
        match deadline.bound(self.discovery.ready()).await? {
            Ok(sender) => {
                let source = Source::live(body);
                self.once(sender, call, head, source, deadline).await
            }
            Err(error) => Err(call.unreachable(error).await.into()),
        }
    }

    /// A call goes to the arbiter that leads. One that was refused by another, which has done nothing, is
    /// made again; a stream cannot be, and is opened again by its client.
    async fn to_arbiter(
        &self,
        head: &mut Parts,
        body: RecvStream,
        deadline: Deadline,
    ) -> Result<Answer, Status> {
        let limit = self.config.max_message_bytes;
        if !route::is_repeatable(head.uri.path()) {
            let (sender, call, asked) = self.arbiter(deadline).await?;
            let source = Source::live(body);
            let answer = self.once(sender, call, head, source, deadline).await;
            if let Some(said) = not_leader(&answer) {
                self.arbiters.on_not_leader(&asked, said);
            }
            return answer;
        }
        let limit = limit.min(CONTROL_LIMIT);
        let request = deadline
            .bound(upload::collect(body, limit, &self.budget))
            .await?;
        let request = request.map_err(|why| why.explain(limit))?;
        let mut attempts = self.arbiters.attempts();
        loop {
            let (sender, call, asked) = self.arbiter(deadline).await?;
            let source = Source::whole(request.clone());
            let answer = self.once(sender, call, head, source, deadline).await;
            attempts -= 1;
            let refused = not_leader(&answer);
            let another = refused.is_some_and(|said| self.arbiters.on_not_leader(&asked, said));
            if !another || attempts == 0 {
                return answer;
            }
        }
    }

    /// A connection to the first arbiter that can be reached, beginning with the one that led last.
    async fn arbiter(&self, deadline: Deadline) -> Result<(Sender, Call, Arc<Upstream>), Status> {
        let limit = self.config.max_message_bytes;
        let mut attempts = self.arbiters.attempts();
        loop {
            let asked = self.arbiters.current();
            let address = asked.address().clone();
            let mut call = Call::to_control(Control::Arbiter, address, limit);
            attempts -= 1;
            match deadline.bound(asked.ready()).await? {
                Ok(sender) => return Ok((sender, call, asked)),
                Err(_) if self.arbiters.on_gone(&asked) && attempts > 0 => {}
                Err(error) => return Err(call.unreachable(error).await.into()),
            }
        }
    }

    async fn to_worker(
        &self,
        to: Destination,
        connection: u64,
        head: &mut Parts,
        mut source: Source,
        deadline: Deadline,
    ) -> Result<Answer, Status> {
        let pool = to.pool.clone();
        let (session, affinity) = (to.session.clone(), to.affinity);
        let mut ask = to.ask(connection, deadline.on_boot());
        let rule = self.config.methods.rule(&pool, head.uri.path()).cloned();
        if let Some(tie) = rule.as_ref().and_then(|rule| rule.tie(&ask.target)) {
            let found = tie.find(&head.headers, Some((&mut source, &self.budget)));
            let found = deadline.bound(Box::pin(found)).await;
            let found = found.and_then(|found| found.map_err(|TooMuch| explain::unsent(&pool)));
            if let Found::Key(key) = found.map_err(explain::untried)? {
                ask.target = tie.target(key, session, affinity);
            }
        }
        let pool = &pool;
        if !self.directory.is_informed() {
            let mut informed = Box::pin(self.directory.informed(FIRST_WORD));
            let informed = self.held(pool, &mut source, deadline, informed.as_mut());
            let informed = Box::pin(informed).await.map_err(explain::untried)?;
            if !informed {
                let why = "it has told nothing yet";
                let failure = explain::discovery_unreachable(self.discovery.address(), &why);
                return Err(explain::untried(failure).into());
            }
        }
        let limit = rule.as_ref().and_then(|rule| rule.max_message_bytes);
        let limit = limit.unwrap_or(self.config.max_message_bytes);
        let rule = rule.filter(|rule| rule.idempotent);
        if rule.is_some() {
            self.directory.on_repeatable(pool);
        }
        let mut tries = Tries::default();
        let mut may_wake = Wake::is_for(&ask.target);
        while tries.made() < self.config.max_attempts.get() {
            let wait = self.config.queue.max_wait;
            let chosen = {
                let chosen = pin!(self.directory.choose(pool, &ask, wait));
                let chosen = self.held(pool, &mut source, deadline, chosen).await;
                chosen.map_err(|failure| tries.tell(failure))?
            };
            let chosen = match chosen {
                Ok(chosen) => chosen,
                Err(refused) => {
                    // Where somebody is there, the pool does not sleep, whatever keeps them from the call.
                    if std::mem::take(&mut may_wake)
                        && tries.made() == 0
                        && refused.is_for_want_of_workers()
                        && !self.directory.has_staying(pool)
                    {
                        let mut woken = Box::pin(self.wake.wakes(pool));
                        let woken = self.held(pool, &mut source, deadline, woken.as_mut());
                        let woken = Box::pin(woken).await;
                        if woken.map_err(|failure| tries.tell(failure))? {
                            self.directory.expect(pool, wait);
                            continue;
                        }
                    }
                    let explanation = match tries.take() {
                        None => return Err(explain::refused(pool, &ask.target, &refused).into()),
                        Some(Last::Answer(answer)) => return Ok(tries.mark(*answer)),
                        Some(Last::Failure(explanation)) => explanation,
                    };
                    // A worker that is ending is taken away before its death is told, and another one
                    // may step in meanwhile: that one takes the call.
                    let another = self.directory.another(pool, &ask, wait);
                    let told = async {
                        tokio::select! {
                            biased;
                            pick = another => Ok(pick),
                            failure = explanation => Err(failure),
                        }
                    };
                    let mut told = Box::pin(told);
                    let told = self.held(pool, &mut source, deadline, told.as_mut());
                    let told = Box::pin(told).await.flatten();
                    told.map_err(|failure| tries.tell(failure))?
                }
            };
            let worker = chosen.ticket.worker().clone();
            tries.begin(&worker);
            let (mut call, upstream) = self.call(chosen, tries.made(), limit);
            let ready = {
                let ready = pin!(upstream.ready());
                let ready = source.hold_while(ready, &self.budget);
                deadline.bound(ready).await
            };
            let sender = match ready {
                Ok(Ok(Ok(sender))) => sender,
                Ok(Err(TooMuch)) => return Err(tries.tell(explain::unsent(pool)).into()),
                // Nothing has been sent, so that another worker may have the call.
                Ok(Ok(Err(error))) => {
                    let explanation = Last::Failure(Box::pin(call.unreachable(error)));
                    tries.failed(Progress::NeverSent, &worker, explanation);
                    ask.tried.push(worker);
                    continue;
                }
                Err(late) => {
                    call.on_code(DEADLINE_EXCEEDED);
                    return Err(tries.tell(late).into());
                }
            };
            let sent = match rule.as_ref().filter(|rule| !rule.hedge_after.is_zero()) {
                Some(rule) => {
                    let hedge = Hedge {
                        after: rule.hedge_after,
                        pool,
                        ask: &mut ask,
                        tries: &mut tries,
                        head: &mut *head,
                        deadline,
                    };
                    Box::pin(self.hedged(sender, call, source, hedge)).await
                }
                None => {
                    let repeatable = rule.is_some();
                    self.send(sender, call, head, source, deadline, repeatable)
                        .await
                }
            };
            let again = match sent {
                Ok(answer) => return Ok(tries.mark(answer)),
                Err(Failed::Said(status)) => return Err(status),
                Err(Failed::Late(late)) => return Err(tries.late(*late)),
                Err(Failed::Ended(ended)) if ended.is_untouched() => {
                    // One that closed its connection may well take the call over another.
                    if !ended.error.is_go_away() {
                        ask.tried.push(worker);
                    }
                    // What was sent of a long request was not kept.
                    tries.ended(*ended)
                }
                Err(failed) => {
                    let again =
                        self.once_more(pool, failed, rule.is_some(), &worker, &mut tries, deadline);
                    match again {
                        None => None,
                        Some((again, pause)) => {
                            repeat::count(&mut head.headers);
                            // It says itself when it can serve again.
                            if let Some(pause) = pause {
                                source = again;
                                let mut pause = Box::pin(tokio::time::sleep(pause));
                                let paused = self.held(pool, &mut source, deadline, pause.as_mut());
                                let paused = Box::pin(paused).await;
                                paused.map_err(|failure| tries.tell(failure))?;
                                continue;
                            }
                            ask.tried.push(worker);
                            Some(again)
                        }
                    }
                }
            };
            let Some(again) = again else { break };
            source = again;
        }
        Box::pin(tries.end(deadline)).await
    }

    /// Waits for some work on the way to a worker while nothing was sent: not beyond the deadline of the call, nor where
    /// too much waits in all.
    async fn held<T>(
        &self,
        pool: &PoolName,
        source: &mut Source,
        deadline: Deadline,
        work: Pin<&mut impl Future<Output = T>>,
    ) -> Result<T, Failure> {
        let held = deadline.bound(source.hold_while(work, &self.budget)).await;
        held?.map_err(|TooMuch| explain::unsent(pool))
    }

    /// A call to the worker that was chosen for it, and the connection to that one.
    pub(crate) fn call(&self, chosen: Chosen, attempt: u32, limit: u32) -> (Call, Arc<Upstream>) {
        let Chosen {
            ticket,
            address,
            tls,
        } = chosen;
        let (upstream, is_new) = self.links.to(ticket.worker(), address, tls);
        // Whoever let go of it in this moment could not know this link.
        if is_new && !self.directory.is_alive(ticket.worker()) {
            self.links.remove(ticket.worker(), true);
        }
        let directory = Arc::clone(&self.directory);
        let call = Call::to_worker(directory, ticket, attempt, self.config.death_wait, limit);
        (call, upstream)
    }

    /// Sends a call that is not sent again.
    async fn once(
        &self,
        sender: Sender,
        call: Call,
        head: &mut Parts,
        source: Source,
        deadline: Deadline,
    ) -> Result<Answer, Status> {
        match self.send(sender, call, head, source, deadline, false).await {
            Ok(answer) => Ok(answer),
            Err(Failed::Said(status)) => Err(status),
            Err(Failed::Late(late)) => Err(late.told()),
            Err(Failed::Unavailable(said)) => Ok(said.0),
            Err(Failed::Ended(ended)) => {
                let Ended {
                    mut call, error, ..
                } = *ended;
                let failure = match call::is_turned_away(&error) {
                    true => Box::pin(call.turned_away(error)).await,
                    false => Box::pin(call.broken(error)).await,
                };
                Err(failure.into())
            }
        }
    }

    /// Sends a call, and waits for the head of its answer.
    pub(crate) fn send(
        &self,
        sender: Sender,
        call: Call,
        head: &mut Parts,
        source: Source,
        deadline: Deadline,
        repeatable: bool,
    ) -> impl Future<Output = Result<Answer, Failed>> + use<> {
        // What is not needed any more is no part of what is waited for.
        match self.begin(sender, call, head, source, deadline) {
            Ok(attempt) => Either::Left(attempt.answer(deadline, repeatable)),
            Err(failed) => Either::Right(ready(Err(failed))),
        }
    }

    /// Sends a call.
    pub(crate) fn begin(
        &self,
        sender: Sender,
        call: Call,
        head: &mut Parts,
        source: Source,
        deadline: Deadline,
    ) -> Result<Attempt, Failed> {
        prepare(head, deadline, &sender.scheme)
            .map_err(|failure| Failed::Said(call.got(failure).into()))?;
        Attempt::begin(sender, call, head, source, self.budget.clone())
    }
}

/// Whether an arbiter refused a call because it does not lead.
fn not_leader(answer: &Result<Answer, Status>) -> Option<NotLeader> {
    let headers: &HeaderMap = &answer.as_ref().ok()?.head.headers;
    NotLeader::of(&Status::from_header_map(headers)?)
}

/// Makes of a call's head what the server gets. What speaks of one connection alone HTTP/2 has refused already.
fn prepare(head: &mut Parts, deadline: Deadline, scheme: &Scheme) -> Result<(), Failure> {
    head.headers.remove(header::HOST);
    if let Some(at) = deadline.at() {
        let left = at.saturating_duration_since(Instant::now());
        head.headers.insert(route::TIMEOUT, timeout::format(left));
    }
    fields::keep_apart(&mut head.headers);
    if head.uri.scheme() == Some(scheme) && head.uri.authority().is_some() {
        return Ok(());
    }
    let mut uri = std::mem::take(&mut head.uri).into_parts();
    uri.scheme = Some(scheme.clone());
    uri.authority
        .get_or_insert(Authority::from_static(AUTHORITY));
    head.uri = Uri::from_parts(uri).map_err(|error| explain::bad_path(&error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each call is a task of its own, which is moved when it is made and kept for as long as the call lasts.
    #[test]
    fn a_call_is_small() {
        let whole = size_of::<crate::room::Serving<Came, Passing>>();

        assert!(whole <= 600, "{whole} bytes");
    }
}
