//! The way of a call through the gateway: read its head, choose a server, pass everything on.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::FutureExt as _;
use h2::{RecvStream, client::SendRequest, server::SendResponse};
use http::{
    HeaderValue, Request, Uri,
    header::{self, HeaderMap},
    request::Parts,
    uri::{Authority, Scheme},
};
use tether_endpoints::{Ask, Party, Session, Target};
use tether_proto::{Failure, NotLeader};
use tether_types::PoolName;
use tokio::time::Instant;
use tonic::Status;

use crate::{
    answer::{self, Answer, CANCELLED, DEADLINE_EXCEEDED, Rest},
    arbiters::Arbiters,
    budget::Budget,
    call::{self, Call, Control},
    client::{Client, Messages},
    config::Config,
    deadline::Deadline,
    directory::{Chosen, Directory},
    explain, fields,
    links::Links,
    own::OwnServices,
    owners::{Acting, Owners},
    pump::{Pump, Source},
    route::{self, Destination, Route},
    timeout,
    upload::{self, Upload},
    upstream::Upstream,
};

/// How long a call waits for discovery's first word: a gateway that has just started has it in no
/// time, and one whose discovery is away should say so soon.
const FIRST_WORD: Duration = Duration::from_secs(1);

/// The largest request to the arbiter, in bytes, which is taken in whole: as gRPC servers have it.
const CONTROL_LIMIT: u32 = 4 << 20;

/// Stands in a request that names no authority: what a gRPC server is called does not matter to it.
const AUTHORITY: &str = "localhost";

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
    pub(crate) budget: Budget,
    /// What stands for this gateway in calls that it has sent on.
    pub(crate) own_word: HeaderValue,
}

impl Forwarder {
    /// Answers a call that came over a connection of this number, one way or the other.
    pub(crate) async fn serve(
        &self,
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
        connection: u64,
    ) {
        let mut client = Client::new(respond);
        let (mut head, body) = request.into_parts();
        let plan = match route::plan(&head, self.config.relay_nodes) {
            Ok(plan) => plan,
            Err(failure) => return client.refuse(failure.into()),
        };
        let deadline = Deadline::after(plan.timeout);
        if plan.route == Route::Own {
            let request = Request::from_parts(head, Messages(body));
            return Box::pin(self.answer_itself(request, client)).await;
        }
        let answer = pin!(async {
            match plan.route {
                // Each call is a task, which has room for the longest of its ways: those that few go are apart.
                Route::Arbiter => Box::pin(self.to_arbiter(head, body, deadline)).await,
                Route::Discovery | Route::Own => {
                    Box::pin(self.to_discovery(head, body, deadline)).await
                }
                Route::Worker(to) => {
                    self.sign(&mut head, &to.pool)?;
                    self.may_act(to.session.as_deref(), deadline).await?;
                    let source = Source::live(body);
                    self.to_worker(to, connection, head, source, deadline).await
                }
            }
        });
        match client.unless_gone(answer).await {
            None => {}
            Some(Ok(answer)) => answer.pass(client, deadline, self.budget.clone()).await,
            Some(Err(status)) => client.refuse(status),
        }
    }

    /// Answers a call to a service of its own.
    async fn answer_itself(&self, request: Request<Messages>, mut client: Client) {
        if let Some(answer) = client.unless_gone(pin!(self.own.serve(request))).await {
            client.tell(answer).await;
        }
    }

    /// Writes into a call that it went through this gateway.
    ///
    /// # Errors
    /// Where it has done so before.
    fn sign(&self, head: &mut Parts, pool: &PoolName) -> Result<(), Failure> {
        let mut through = head.headers.get_all(route::VIA).iter();
        if through.any(|word| *word == self.own_word) {
            return Err(explain::came_back(pool));
        }
        head.headers.append(route::VIA, self.own_word.clone());
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
        head: Parts,
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
        head: Parts,
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
            let answer = self
                .once(sender, call, head.clone(), source, deadline)
                .await;
            attempts -= 1;
            let refused = not_leader(&answer);
            let another = refused.is_some_and(|said| self.arbiters.on_not_leader(&asked, said));
            if !another || attempts == 0 {
                return answer;
            }
        }
    }

    /// A connection to the first arbiter that can be reached, beginning with the one that led last.
    async fn arbiter(
        &self,
        deadline: Deadline,
    ) -> Result<(SendRequest<Bytes>, Call, Arc<Upstream>), Status> {
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
        head: Parts,
        mut source: Source,
        deadline: Deadline,
    ) -> Result<Answer, Status> {
        let Destination {
            pool,
            target,
            priority,
            affinity,
            session,
        } = to;
        // Whoever names an owner and no session of it may be anybody.
        let party = match &session {
            Some(session) => Party::Owner(session.owner.clone()),
            None => Party::Connection(connection),
        };
        let mut ask = Ask {
            target,
            tried: Vec::new(),
            party,
            priority,
            deadline: deadline.on_boot(),
        };
        let rule = self.config.methods.rule(&pool, head.uri.path());
        if ask.target == Target::Any
            && let Some(rule) = rule.and_then(|rule| rule.affinity.as_ref())
        {
            let key = rule.key(&head.headers, &mut source, &self.budget);
            if let Some(key) = deadline.bound(Box::pin(key)).await? {
                ask.target = rule.target(key, session, affinity);
            }
        }
        let pool = &pool;
        if !self.directory.is_informed() {
            let informed = deadline
                .bound(Box::pin(self.directory.informed(FIRST_WORD)))
                .await?;
            if !informed {
                let why = "it has told nothing yet";
                return Err(explain::discovery_unreachable(self.discovery.address(), &why).into());
            }
        }
        let mut last_failure: Option<Explanation> = None;
        for attempt in 1..=self.config.max_attempts.get() {
            let wait = self.config.queue.max_wait;
            let chosen = {
                let chosen = pin!(self.directory.choose(pool, &ask, wait));
                let chosen = source.hold_while(chosen, &self.budget);
                let chosen = deadline.bound(chosen).await?;
                chosen.ok_or_else(|| explain::unsent(pool))?
            };
            let Chosen { ticket, address } = match chosen {
                Ok(chosen) => chosen,
                Err(refused) => {
                    let Some(explanation) = last_failure.take() else {
                        return Err(explain::refused(pool, &ask.target, &refused).into());
                    };
                    // A worker that is ending is taken away before its death is told, and another one
                    // may step in meanwhile: that one takes the call, which nobody has seen.
                    let another = self.directory.another(pool, &ask, wait);
                    let told = async {
                        tokio::select! {
                            biased;
                            pick = another => Ok(pick),
                            failure = explanation => Err(failure),
                        }
                    };
                    deadline.bound(Box::pin(told)).await??
                }
            };
            let worker = ticket.worker().clone();
            let upstream = self.links.to(&worker, address);
            // Whoever let go of it in this moment could not know this link.
            if !self.directory.is_alive(&worker) {
                self.links.remove(&worker, true);
            }
            let mut went_away = false;
            let mut call = Call::to_worker(
                Arc::clone(&self.directory),
                ticket,
                attempt,
                self.config.death_wait,
                self.config.max_message_bytes,
            );
            match deadline.bound(upstream.ready()).await {
                Err(late) => {
                    call.on_code(DEADLINE_EXCEEDED);
                    return Err(late.into());
                }
                Ok(Ok(sender)) => {
                    let sent = self.send(sender, call, head.clone(), source, deadline);
                    match sent.await {
                        Ok(answer) => return Ok(answer),
                        Err(Failed::Said(status)) => return Err(status),
                        Err(Failed::TurnedAway(mut at)) => {
                            went_away = at.error.is_go_away();
                            last_failure = Some(Box::pin(at.call.turned_away(at.error)));
                            // What was sent of a long request was not kept.
                            let Some(again) = at.again else { break };
                            source = again;
                        }
                    }
                }
                // Nothing has been sent, so that another worker may have the call.
                Ok(Err(error)) => last_failure = Some(Box::pin(call.unreachable(error))),
            }
            // One that closed its connection may well take the call over another.
            if !went_away {
                ask.tried.push(worker);
            }
        }
        Err(match last_failure {
            Some(explanation) => deadline.bound(explanation).await?.into(),
            None => Status::internal("no worker was tried"),
        })
    }

    /// Sends a call that is not sent again.
    async fn once(
        &self,
        sender: SendRequest<Bytes>,
        call: Call,
        head: Parts,
        source: Source,
        deadline: Deadline,
    ) -> Result<Answer, Status> {
        match self.send(sender, call, head, source, deadline).await {
            Ok(answer) => Ok(answer),
            Err(Failed::Said(status)) => Err(status),
            Err(Failed::TurnedAway(mut at)) => Err(at.call.turned_away(at.error).await.into()),
        }
    }

    /// Sends a call, and waits for the head of its answer.
    async fn send(
        &self,
        mut sender: SendRequest<Bytes>,
        mut call: Call,
        head: Parts,
        source: Source,
        deadline: Deadline,
    ) -> Result<Answer, Failed> {
        let bodiless = source.is_over();
        let request = outgoing(head, deadline)?;
        let (mut response, stream) = match sender.send_request(request, bodiless) {
            Ok(sent) => sent,
            Err(error) => return Err(Box::pin(call.broken(error)).await.into()),
        };
        call.on_sent();
        let limit = self.config.max_message_bytes;
        let mut upload = (!bodiless)
            .then(|| Upload::new(Pump::request(source, stream, limit, self.budget.clone())));
        let answered = poll_fn(|cx| {
            call.poll_upload(cx, &mut upload)?;
            response.poll_unpin(cx).map(Ok)
        });
        let response = match deadline.bound(answered).await {
            Ok(Ok(Ok(response))) => response,
            Ok(Ok(Err(error))) if call::is_turned_away(&error) => {
                let again = match upload {
                    Some(upload) => upload.again(),
                    None => Some(Source::whole(Bytes::new())),
                };
                return Err(Failed::TurnedAway(Box::new(TurnedAway {
                    call,
                    error,
                    again,
                })));
            }
            Ok(Ok(Err(error))) => return Err(Box::pin(call.broke(error, deadline)).await.into()),
            Ok(Err(given_up)) => return Err(Failed::Said(given_up)),
            Err(late) => {
                call.on_code(DEADLINE_EXCEEDED);
                return Err(Failed::Said(late.into()));
            }
        };
        call.on_head(response.headers());
        if let Some(upload) = &mut upload {
            upload.on_head();
        }
        let (mut head, stream) = response.into_parts();
        fields::keep_apart(&mut head.headers);
        call.sign(&mut head.headers);
        if stream.is_end_stream() {
            // Headers alone, with the status in them.
            let without = || answer::code_without(head.status) as u32;
            let code = answer::code_of(&head.headers).unwrap_or_else(without);
            if code == CANCELLED && deadline.explains_cancel() {
                call.on_code(DEADLINE_EXCEEDED);
                return Err(Failed::Said(deadline.passed().into()));
            }
            call.on_code(code);
            return Ok(Answer { head, rest: None });
        }
        // The answer may end earlier than the server planned.
        head.headers.remove(header::CONTENT_LENGTH);
        let rest = Some(Box::new(Rest {
            call,
            stream,
            upload,
        }));
        Ok(Answer { head, rest })
    }
}

/// Why a call has no answer.
enum Failed {
    /// As its client is told.
    Said(Status),
    /// Its server has not begun with it and will not: it may be sent again, where its request was kept.
    TurnedAway(Box<TurnedAway>),
}

struct TurnedAway {
    call: Call,
    error: h2::Error,
    /// The request from its beginning, where it was kept.
    again: Option<Source>,
}

impl From<Status> for Failed {
    fn from(status: Status) -> Self {
        Self::Said(status)
    }
}

/// Why an attempt failed, once that is known.
type Explanation = Pin<Box<dyn Future<Output = Failure> + Send>>;

/// Whether an arbiter refused a call because it does not lead.
fn not_leader(answer: &Result<Answer, Status>) -> Option<NotLeader> {
    let headers: &HeaderMap = &answer.as_ref().ok()?.head.headers;
    NotLeader::of(&Status::from_header_map(headers)?)
}

/// The head of a call as the server gets it. What speaks of one connection alone HTTP/2 has refused already.
fn outgoing(head: Parts, deadline: Deadline) -> Result<Request<()>, Status> {
    let mut headers = head.headers;
    headers.remove(header::HOST);
    if let Some(at) = deadline.at() {
        let left = at.saturating_duration_since(Instant::now());
        headers.insert(route::TIMEOUT, timeout::format(left));
    }
    fields::keep_apart(&mut headers);
    let mut uri = head.uri.into_parts();
    uri.scheme = Some(Scheme::HTTP);
    uri.authority
        .get_or_insert(Authority::from_static(AUTHORITY));
    let uri = Uri::from_parts(uri).map_err(|error| {
        Status::invalid_argument(format!("the path cannot be sent on: {error}"))
    })?;
    let mut request = Request::new(());
    *request.method_mut() = head.method;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<A, B, C, F>(_: impl Fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    /// Each call is a task of its own, which is moved when it is made and kept for as long as the call lasts.
    #[test]
    fn a_call_is_small() {
        let whole = size(|forwarder: Arc<Forwarder>, request, respond| async move {
            forwarder.serve(request, respond, 0).await
        });

        assert!(whole <= 5_400, "{whole} bytes");
    }
}
