//! What a server can be asked again and again, at its own address: whether it serves, and who it is.

mod http;
mod watch;

use std::{io, time::Duration};

use hyper::HeaderMap;
use tether_types::Address;
use tokio::net::{TcpStream, UnixStream};
use tonic::{Code, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

pub use watch::{Watched, watch};

/// Whether the answer was as it should be; else what was wrong with it.
pub type Answer = Result<(), String>;

/// One question, to be asked as often as one likes.
#[derive(Debug, Clone)]
pub struct Question {
    address: Address,
    how: How,
}

#[derive(Debug, Clone)]
enum How {
    Grpc {
        client: HealthClient<Channel>,
        service: String,
    },
    Connect,
    Http(String),
}

impl Question {
    /// Whether grpc.health.v1 says SERVING of a service; of the server where the name is empty.
    pub fn grpc(address: &Address, service: &str) -> Self {
        let client = HealthClient::new(tether_kit::channel::connect(address));
        let service = service.to_owned();
        Self {
            address: address.clone(),
            how: How::Grpc { client, service },
        }
    }

    /// Whether GET of this path is answered with 200 to 399.
    pub fn http(address: &Address, path: &str) -> Self {
        let path = match path.starts_with('/') {
            true => path.to_owned(),
            false => format!("/{path}"),
        };
        Self {
            address: address.clone(),
            how: How::Http(path),
        }
    }

    /// Whether the address takes a connection.
    pub fn connect(address: &Address) -> Self {
        Self {
            address: address.clone(),
            how: How::Connect,
        }
    }

    /// Whether a connection is all it asks for.
    pub fn is_connection(&self) -> bool {
        matches!(self.how, How::Connect)
    }

    /// Whom it asks.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The good answer, for people.
    pub fn wanted(&self) -> String {
        let address = &self.address;
        match &self.how {
            How::Grpc { .. } => format!("SERVING from grpc.health.v1 at `{address}`"),
            How::Connect => format!("a connection to `{address}`"),
            How::Http(path) => format!("an answer of 200 to 399 to GET {path} at `{address}`"),
        }
    }

    /// Asks once, and waits this long for the answer.
    ///
    /// # Errors
    /// What was wrong with it.
    pub async fn ask(&self, timeout: Duration) -> Answer {
        self.ask_who(timeout, None).await.map(drop)
    }

    /// Asks once, and who answers: what a header of the answer says, where one is named and there.
    ///
    /// # Errors
    /// What was wrong with the answer.
    pub async fn ask_who(
        &self,
        timeout: Duration,
        header: Option<&str>,
    ) -> Result<Option<String>, String> {
        let name = match &self.how {
            How::Grpc { .. } => "grpc.health.v1".to_owned(),
            How::Connect => "a connection".to_owned(),
            How::Http(path) => format!("GET {path}"),
        };
        match tokio::time::timeout(timeout, self.once()).await {
            Ok(Ok(headers)) => Ok(value_of(&headers, header)),
            Ok(Err(why)) => Err(format!("{name}: {why}")),
            Err(_) => Err(format!("no answer to {name} within {}", span(timeout))),
        }
    }

    async fn once(&self) -> Result<HeaderMap, String> {
        match &self.how {
            How::Grpc { client, service } => {
                let service = service.clone();
                let asked = client.clone().check(HealthCheckRequest { service }).await;
                let asked = asked.map_err(|status| match status.code() {
                    Code::Unimplemented => {
                        "the server has no such service: ask it for a connection instead".to_owned()
                    }
                    code => format!("the answer was {code:?}, {}", status.message()),
                })?;
                match asked.get_ref().status() {
                    ServingStatus::Serving => Ok(asked.into_parts().0.into_headers()),
                    status => Err(format!("the answer was {}", status.as_str_name())),
                }
            }
            How::Connect => {
                let connected = self.dial().await;
                connected
                    .map(|_| HeaderMap::new())
                    .map_err(|error| error.to_string())
            }
            How::Http(path) => {
                let stream = self.dial().await.map_err(|error| error.to_string())?;
                let asked = match stream {
                    Stream::Unix(stream) => http::get(stream, "localhost", path).await,
                    Stream::Tcp(stream) => http::get(stream, &self.address.to_string(), path).await,
                };
                match asked? {
                    (200..400, headers) => Ok(headers),
                    (status, _) => Err(format!("the answer was {status}")),
                }
            }
        }
    }

    async fn dial(&self) -> io::Result<Stream> {
        Ok(match &self.address {
            Address::Unix(path) => Stream::Unix(UnixStream::connect(path).await?),
            Address::Tcp { host, port } => {
                Stream::Tcp(TcpStream::connect((host.as_str(), *port)).await?)
            }
        })
    }
}

/// What a header says, where one is named and there.
fn value_of(headers: &HeaderMap, header: Option<&str>) -> Option<String> {
    let value = headers.get(header?)?;
    Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
}

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// A time as people say it.
pub fn span(time: Duration) -> String {
    match time.subsec_nanos() {
        0 => format!("{} s", time.as_secs()),
        _ => format!("{} ms", time.as_millis()),
    }
}
