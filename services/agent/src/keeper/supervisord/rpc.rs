//! Calls of supervisord on its unix socket, and what it means when nothing comes of one.

use std::{io, path::Path, time::Duration};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, time::timeout};

use super::xmlrpc::{self, Failure, Value};

/// Longest time for an answer.
pub(super) const ANSWERS: Duration = Duration::from_secs(10);

/// More than any answer has.
const ANSWER_BYTES: usize = 1 << 20;

/// It is ending.
pub(super) const SHUTDOWN_STATE: i64 = 6;

/// Why nothing came of a call.
#[derive(Debug)]
pub(super) enum Error {
    /// Nobody listens there.
    Away(io::Error),
    Fault(i64, String),
    Other(String),
}

impl Error {
    /// Whether that says nothing of the program.
    pub(super) fn is_silence(&self) -> bool {
        match self {
            Self::Away(_) | Self::Other(_) | Self::Fault(SHUTDOWN_STATE, _) => true,
            Self::Fault(..) => false,
        }
    }

    /// Whether nobody is there who would start the program again.
    pub(super) fn is_end(&self) -> bool {
        match self {
            Self::Away(error) => matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
            ),
            Self::Fault(code, _) => *code == SHUTDOWN_STATE,
            Self::Other(_) => false,
        }
    }
}

/// One that takes too long.
pub(super) fn slow() -> Error {
    Error::Other("it does not answer".to_owned())
}

/// One call.
pub(super) async fn ask(socket: &Path, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let stream = UnixStream::connect(socket).await.map_err(Error::Away)?;
    let said = timeout(ANSWERS, post(stream, xmlrpc::call(method, arguments))).await;
    let said = said.map_err(|_| slow())?;
    match xmlrpc::answer(&said.map_err(Error::Other)?) {
        Ok(value) => Ok(value),
        Err(Failure::Fault(code, said)) => Err(Error::Fault(code, said)),
        Err(Failure::Garbled) => Err(Error::Other("it does not speak XML-RPC".to_owned())),
    }
}

/// One call on one connection.
async fn post(stream: UnixStream, body: String) -> Result<String, String> {
    let request = Request::post("/RPC2")
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "text/xml")
        .header(header::CONNECTION, "close")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| error.to_string())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let asked = async {
        let answer = sender
            .send_request(request)
            .await
            .map_err(|error| error.to_string())?;
        if !answer.status().is_success() {
            return Err(format!("it answers with status {}", answer.status()));
        }
        let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect();
        let body = body.await.map_err(|error| error.to_string())?;
        String::from_utf8(body.to_bytes().into()).map_err(|error| error.to_string())
    };
    // A connection that ends may have brought the answer as its last act, so its end decides nothing.
    let driven = async {
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        answer = asked => answer,
        () = driven => Err("the connection ended".to_owned()),
    }
}
