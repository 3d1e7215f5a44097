//! What a worker can be asked again and again, at its own address.

use std::{io, time::Duration};

use tether_proto::pool::ReadinessKind;
use tether_types::Address;
use tokio::net::{TcpStream, UnixStream};
use tonic::transport::Channel;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{http, span};

/// Whether the answer was as it should be; else what was wrong with it.
pub(crate) type Answer = Result<(), String>;

/// One question, to be asked as often as one likes.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    address: Address,
    how: How,
}

#[derive(Debug, Clone)]
enum How {
    Grpc(HealthClient<Channel>),
    Connect,
    Http(String),
}

impl Question {
    /// The question of this kind, or a connection where the kind cannot be asked; `path` is for HTTP.
    pub(crate) fn new(kind: ReadinessKind, path: &str, address: &Address) -> Self {
        let how = match kind {
            ReadinessKind::Grpc | ReadinessKind::Unspecified => {
                How::Grpc(HealthClient::new(tether_kit::channel::connect(address)))
            }
            ReadinessKind::Http if path.starts_with('/') => How::Http(path.to_owned()),
            ReadinessKind::Http => How::Http(format!("/{path}")),
            ReadinessKind::Connect
            | ReadinessKind::Notify
            | ReadinessKind::File
            | ReadinessKind::LogLine
            | ReadinessKind::Started => How::Connect,
        };
        Self {
            address: address.clone(),
            how,
        }
    }

    /// Whether the address takes a connection.
    pub(crate) fn connect(address: &Address) -> Self {
        Self {
            address: address.clone(),
            how: How::Connect,
        }
    }

    /// Whether a connection is all it asks for.
    pub(crate) fn is_connection(&self) -> bool {
        matches!(self.how, How::Connect)
    }

    /// Whom it asks.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// The good answer, for people.
    pub(crate) fn wanted(&self) -> String {
        let address = &self.address;
        match &self.how {
            How::Grpc(_) => format!("SERVING from grpc.health.v1 at `{address}`"),
            How::Connect => format!("a connection to `{address}`"),
            How::Http(path) => format!("an answer of 200 to 399 to GET {path} at `{address}`"),
        }
    }

    /// Asks once, and waits this long for the answer.
    pub(crate) async fn ask(&self, timeout: Duration) -> Answer {
        let name = match &self.how {
            How::Grpc(_) => "grpc.health.v1".to_owned(),
            How::Connect => "a connection".to_owned(),
            How::Http(path) => format!("GET {path}"),
        };
        match tokio::time::timeout(timeout, self.once()).await {
            Ok(answer) => answer.map_err(|why| format!("{name}: {why}")),
            Err(_) => Err(format!("no answer to {name} within {}", span(timeout))),
        }
    }

    async fn once(&self) -> Answer {
        match &self.how {
            How::Grpc(client) => {
                let asked = client.clone().check(HealthCheckRequest::default()).await;
                match asked.map(|answer| answer.into_inner().status()) {
                    Ok(ServingStatus::Serving) => Ok(()),
                    Ok(status) => Err(format!("the answer was {}", status.as_str_name())),
                    Err(status) => Err(format!(
                        "the answer was {:?}, {}",
                        status.code(),
                        status.message()
                    )),
                }
            }
            How::Connect => self
                .dial()
                .await
                .map(drop)
                .map_err(|error| error.to_string()),
            How::Http(path) => {
                let stream = self.dial().await.map_err(|error| error.to_string())?;
                let asked = match stream {
                    Stream::Unix(stream) => http::get(stream, "localhost", path).await,
                    Stream::Tcp(stream) => http::get(stream, &self.address.to_string(), path).await,
                };
                match asked? {
                    200..400 => Ok(()),
                    status => Err(format!("the answer was {status}")),
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

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}
