//! One GET on one connection, of which the status and a header are of interest.

use http_body_util::Empty;
use hyper::{HeaderMap, Request, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// The status and the headers of the answer, or what went wrong.
pub(super) async fn get<S>(stream: S, host: &str, path: &str) -> Result<(u16, HeaderMap), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, "tether-probe")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| format!("`{path}` is no path to ask for: {error}"))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    // A connection that ends may have brought the answer as its last act, so its end decides nothing.
    let driven = async {
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        answer = sender.send_request(request) => answer
            .map(|answer| (answer.status().as_u16(), answer.headers().clone()))
            .map_err(|error| error.to_string()),
        () = driven => Err("the connection ended".to_owned()),
    }
}
