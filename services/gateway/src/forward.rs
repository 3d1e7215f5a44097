//! The way of a call through the gateway: read its head, choose a server, pass everything on.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{
    HeaderName, HeaderValue, Request, Response, StatusCode, Uri, Version,
    header::{self, CONTENT_TYPE},
    request::Parts,
};
use http_body::Body;
use http_body_util::Full;
use hyper::body::Incoming;
use tether_endpoints::Target;
use tether_proto::{Failure, NotLeader};
use tether_types::PoolName;
use tokio::time::Instant;
use tonic::Status;

use crate::{
    arbiters::Arbiters,
    body::{self, CANCELLED, DEADLINE_EXCEEDED, Forwarded, ResponseBody},
    call::{self, Call, Control},
    config::Config,
    directory::Directory,
    explain, fields,
    own::OwnServices,
    owners::{Acting, Owners},
    route::{self, Route},
    timeout, upload,
    upstream::Upstream,
};

/// How long a call waits for discovery's first word: a gateway that has just started has it in no
/// time, and one whose discovery is away should say so soon.
const FIRST_WORD: Duration = Duration::from_secs(1);

/// How much earlier than the gateway a server may see a deadline pass: timers tick in milliseconds.
const CLOCK_SLACK: Duration = Duration::from_millis(10);

/// Headers that speak of one connection and mean nothing on the next.
const HOP: [HeaderName; 6] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::HOST,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

const NOT_GRPC: &str = "this is the Tether gateway, a gRPC endpoint over HTTP/2: \
    use a gRPC client, or `curl --http2-prior-knowledge` to look around\n";

/// Everything that calls need.
pub(crate) struct Forwarder {
    pub(crate) config: Config,
    pub(crate) directory: Arc<Directory>,
    pub(crate) arbiters: Arc<Arbiters>,
    pub(crate) discovery: Upstream,
    pub(crate) own: OwnServices,
    pub(crate) owners: Arc<Owners>,
}

/// When a call must have been answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(Option<(Instant, Duration)>);

impl Deadline {
    fn after(timeout: Option<Duration>) -> Self {
        // A deadline the clock cannot express is none.
        Self(timeout.and_then(|asked| Some((Instant::now().checked_add(asked)?, asked))))
    }

    pub(crate) fn at(&self) -> Option<Instant> {
        self.0.map(|(at, _)| at)
    }

    /// What to say when it has passed.
    pub(crate) fn passed(&self) -> Failure {
        explain::deadline(self.0.map_or(Duration::ZERO, |(_, asked)| asked))
    }

    /// Whether a server that cancelled the call did so because of the deadline, which it knows as
    /// well: it often says no more than "cancelled".
    pub(crate) fn explains_cancel(&self) -> bool {
        let near = |at: Instant| at.saturating_duration_since(Instant::now()) <= CLOCK_SLACK;
        self.at().is_some_and(near)
    }

    async fn bound<F: Future>(&self, work: F) -> Result<F::Output, Failure> {
        match self.0 {
            None => Ok(work.await),
            Some((at, _)) => tokio::time::timeout_at(at, work)
                .await
                .map_err(|_| self.passed()),
        }
    }
}

impl Forwarder {
    /// Answers a call, one way or the other.
    pub(crate) async fn serve(&self, request: Request<Incoming>) -> Response<ResponseBody> {
        if request.version() != Version::HTTP_2 {
            return not_grpc();
        }
        let (head, body) = request.into_parts();
        let plan = match route::plan(&head, self.config.relay_nodes) {
            Ok(plan) => plan,
            Err(failure) => return refuse(failure.into()),
        };
        let deadline = Deadline::after(plan.timeout);
        let answer = match plan.route {
            Route::Own => Ok(self.own.serve(Request::from_parts(head, body)).await),
            Route::Arbiter => self.to_arbiter(&head, body, deadline).await,
            Route::Discovery => self.to_discovery(&head, body, deadline).await,
            Route::Worker(pool, target) => {
                let to = (&pool, &target);
                match self.may_act(plan.acting.as_ref(), deadline).await {
                    Ok(()) => self.to_worker(to, &head, body, deadline).await,
                    Err(refused) => Err(refused.into()),
                }
            }
        };
        answer.unwrap_or_else(refuse)
    }

    /// Whether whoever calls may do so in the name it gives, where it gives one.
    async fn may_act(&self, acting: Option<&Acting>, deadline: Deadline) -> Result<(), Failure> {
        match acting {
            None => Ok(()),
            Some(acting) => deadline.bound(self.owners.admit(acting)).await?,
        }
    }

    async fn to_discovery(
        &self,
        head: &Parts,
        body: Incoming,
        deadline: Deadline,
    ) -> Result<Response<ResponseBody>, Status> {
        let address = self.discovery.address().clone();
        let limit = self.config.max_message_bytes;
        let mut call = Call::to_control(Control::Discovery, address, limit);
        match deadline.bound(self.discovery.ready()).await? {
            Ok(sender) => send(sender, call, head, body, deadline).await,
            Err(error) => Err(call.unreachable(error, 1).await.into()),
        }
    }

    /// A call goes to the arbiter that leads. One that was refused by another, which has done nothing, is
    /// made again; a stream cannot be, and is opened again by its client.
    async fn to_arbiter(
        &self,
        head: &Parts,
        body: Incoming,
        deadline: Deadline,
    ) -> Result<Response<ResponseBody>, Status> {
        let limit = self.config.max_message_bytes;
        if !route::is_repeatable(head.uri.path()) {
            let (sender, call, asked) = self.arbiter(deadline).await?;
            let answer = send(sender, call, head, body, deadline).await;
            if let Some(said) = not_leader(&answer) {
                self.arbiters.on_not_leader(&asked, said);
            }
            return answer;
        }
        let request = deadline.bound(upload::collect(body, limit)).await?;
        let request = request.map_err(|why| why.explain(limit))?;
        let mut attempts = self.arbiters.attempts();
        loop {
            let (sender, call, asked) = self.arbiter(deadline).await?;
            let body = Full::new(request.clone());
            let answer = send(sender, call, head, body, deadline).await;
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
                Err(error) => return Err(call.unreachable(error, 1).await.into()),
            }
        }
    }

    async fn to_worker(
        &self,
        (pool, target): (&PoolName, &Target),
        head: &Parts,
        body: Incoming,
        deadline: Deadline,
    ) -> Result<Response<ResponseBody>, Status> {
        if self.directory.age().is_none() {
            let informed = deadline.bound(self.directory.informed(FIRST_WORD)).await?;
            if !informed {
                let why = "it has told nothing yet";
                return Err(explain::discovery_unreachable(self.discovery.address(), &why).into());
            }
        }
        let mut tried = Vec::new();
        let mut last_failure = None;
        for attempt in 1..=self.config.max_attempts.get() {
            let (ticket, upstream) = match self.directory.pick(pool, target, &tried) {
                Ok(pick) => pick,
                Err(refused) => {
                    let Some(explanation) = last_failure.take() else {
                        return Err(explain::refused(pool, target, &refused).into());
                    };
                    // A worker that is ending is taken away before its death is told, and another one
                    // may step in meanwhile: that one takes the call, which nobody has seen.
                    let another = self.directory.another(pool, target, &tried);
                    let told = async {
                        tokio::select! {
                            biased;
                            pick = another => Ok(pick),
                            failure = explanation => Err(failure),
                        }
                    };
                    deadline.bound(told).await??
                }
            };
            let worker = ticket.worker().clone();
            let mut call = Call::to_worker(
                Arc::clone(&self.directory),
                ticket,
                self.config.death_wait,
                self.config.max_message_bytes,
            );
            match deadline.bound(upstream.ready()).await {
                Err(late) => {
                    call.on_code(DEADLINE_EXCEEDED);
                    return Err(late.into());
                }
                Ok(Ok(sender)) => return send(sender, call, head, body, deadline).await,
                // Nothing has been sent, so that another worker may have the call.
                Ok(Err(error)) => {
                    last_failure = Some(call.unreachable(error, attempt));
                    tried.push(worker);
                }
            }
        }
        Err(match last_failure {
            Some(explanation) => deadline.bound(explanation).await?.into(),
            None => Status::internal("no worker was tried"),
        })
    }
}

/// Whether an arbiter refused a call because it does not lead.
fn not_leader(answer: &Result<Response<ResponseBody>, Status>) -> Option<NotLeader> {
    let status = Status::from_header_map(answer.as_ref().ok()?.headers())?;
    NotLeader::of(&status)
}

async fn send<B>(
    mut sender: SendRequest<Bytes>,
    mut call: Call,
    head: &Parts,
    body: B,
    deadline: Deadline,
) -> Result<Response<ResponseBody>, Status>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Send,
{
    let bodiless = body.is_end_stream();
    let request = outgoing(head, deadline)?;
    let (response, stream) = match sender.send_request(request, bodiless) {
        Ok(sent) => sent,
        Err(error) => return Err(call.broken(error).await),
    };
    call.on_sent();
    if !bodiless {
        call.upload(body, stream).await;
    }
    let response = match deadline.bound(response).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) if call::is_cancel(&error) && deadline.explains_cancel() => {
            call.on_code(DEADLINE_EXCEEDED);
            return Err(deadline.passed().into());
        }
        Ok(Err(error)) => return Err(call.broken(error).await),
        Err(late) => {
            call.on_code(DEADLINE_EXCEEDED);
            return Err(late.into());
        }
    };
    let (mut head, stream) = response.into_parts();
    for name in HOP {
        head.headers.remove(name);
    }
    fields::keep_apart(&mut head.headers);
    if stream.is_end_stream() {
        // Headers alone, with the status in them.
        let without = || body::code_without(head.status) as u32;
        let code = body::code_of(&head.headers).unwrap_or_else(without);
        if code == CANCELLED && deadline.explains_cancel() {
            call.on_code(DEADLINE_EXCEEDED);
            return Err(deadline.passed().into());
        }
        call.on_code(code);
        return Ok(Response::from_parts(head, ResponseBody::Empty));
    }
    // The answer may end earlier than the server planned.
    head.headers.remove(header::CONTENT_LENGTH);
    let forwarded = Forwarded::new(&head, stream, call, deadline);
    let body = ResponseBody::Forwarded(Box::new(forwarded));
    Ok(Response::from_parts(head, body))
}

/// The head of a call as the server gets it.
fn outgoing(head: &Parts, deadline: Deadline) -> Result<Request<()>, Status> {
    let path = head.uri.path_and_query().cloned();
    let uri = Uri::builder()
        .scheme("http")
        .authority("localhost")
        .path_and_query(path.ok_or_else(|| Status::invalid_argument("the call has no path"))?)
        .build()
        .map_err(|error| {
            Status::invalid_argument(format!("the path cannot be sent on: {error}"))
        })?;
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = head.headers.clone();
    let headers = request.headers_mut();
    for name in HOP {
        headers.remove(name);
    }
    if let Some(at) = deadline.at() {
        let left = at.saturating_duration_since(Instant::now());
        headers.insert(route::TIMEOUT, timeout::format(left));
    }
    fields::keep_apart(headers);
    Ok(request)
}

fn refuse(status: Status) -> Response<ResponseBody> {
    status.into_http::<()>().map(|()| ResponseBody::Empty)
}

fn not_grpc() -> Response<ResponseBody> {
    let text = ResponseBody::Text(Bytes::from_static(NOT_GRPC.as_bytes()));
    let mut response = Response::new(text);
    *response.status_mut() = StatusCode::UPGRADE_REQUIRED;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("h2c"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}
