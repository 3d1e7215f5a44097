//! One question over HTTP, on a connection of its own: what is asked may be answered minutes later, and when nobody
//! waits for it any more the connection is gone with it.

use std::{pin::pin, time::Duration};

use http::{Request, Response, header::HOST};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustix::net::sockopt;
use tokio::{net::TcpStream, time::timeout};

/// An answer that names as many as it may have is smaller.
const BODY_MAX: usize = 32 << 20;
const CONNECT: Duration = Duration::from_secs(3);

/// A server that is cut off is found out about 20 s later, however long an answer may take.
const QUIET: Duration = Duration::from_secs(10);
const PROBE: Duration = Duration::from_secs(3);
const PROBES: u32 = 3;

/// Asks `server`, as `host:port`, and waits for all of the answer.
///
/// # Errors
/// Where there is none within `patience`, or too much of it.
pub(super) async fn get(
    server: &str,
    path: &str,
    headers: &[(&str, &str)],
    patience: Duration,
) -> Result<Response<Bytes>, String> {
    let mut request = Request::get(path).header(HOST, server);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let connected = timeout(CONNECT, TcpStream::connect(server)).await;
    let stream = match connected {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(format!("cannot connect: {error}")),
        Err(_) => return Err(format!("cannot connect: no answer within {CONNECT:?}")),
    };
    stay_alive(&stream).map_err(|error| error.to_string())?;
    let exchange = async {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(words)?;
        let mut exchange = pin!(async move {
            let (parts, body) = sender
                .send_request(request)
                .await
                .map_err(words)?
                .into_parts();
            let body = Limited::new(body, BODY_MAX).collect().await;
            let body = body.map_err(|error| format!("the answer breaks off: {error}"))?;
            Ok(Response::from_parts(parts, body.to_bytes()))
        });
        tokio::select! {
            answer = &mut exchange => answer,
            // Closed, and what it has brought may still be read.
            _ = connection => exchange.await,
        }
    };
    timeout(patience, exchange)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {patience:?}")))
}

fn stay_alive(stream: &TcpStream) -> rustix::io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, QUIET)?;
    sockopt::set_tcp_keepintvl(stream, PROBE)?;
    sockopt::set_tcp_keepcnt(stream, PROBES)
}

fn words(error: hyper::Error) -> String {
    match std::error::Error::source(&error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
