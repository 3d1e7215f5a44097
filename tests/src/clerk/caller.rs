//! A caller that keeps one connection, and tells of each call exactly what it was told.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, client::SendRequest};
use http::{HeaderMap, HeaderValue, Request};
use tokio::{net::TcpStream, sync::Mutex, time::timeout};

use super::{
    now,
    order::{METHOD, Order},
};

/// How much longer than its deadline a call is waited for: whoever stands between has to end it.
const PATIENCE: Duration = Duration::from_secs(1);

/// What became of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It was answered, with what was sent.
    Answered,
    /// Nobody can have seen it: there was no connection, or the other side has said that it did not take it.
    Unseen(String),
    /// It was told why it failed.
    Failed {
        /// The status of gRPC.
        code: u32,
        /// How far it got, where that was said.
        outcome: Option<String>,
        /// Who had it, where that was said.
        worker: Option<String>,
        /// In words.
        why: String,
    },
    /// It broke, and nobody said how far it got.
    Broken(String),
    /// No answer came, well after its deadline.
    Silent,
    /// It was answered with something else.
    Wrong(String),
}

/// A call and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Which.
    pub id: u64,
    /// When it was made, by the clock of the machine.
    pub start: u64,
    /// When it was over.
    pub end: u64,
    /// How.
    pub how: End,
}

impl Told {
    /// How long it took, in nanoseconds.
    pub fn took(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether it was answered.
    pub fn is_answered(&self) -> bool {
        self.how == End::Answered
    }
}

/// One connection, opened when it is needed, and again when it is over.
#[derive(Debug, Clone)]
pub struct Caller {
    port: u16,
    pool: HeaderValue,
    link: Arc<Mutex<Option<SendRequest<Bytes>>>>,
}

impl Caller {
    /// A caller of a pool, through what listens at this port.
    pub fn new(port: u16, pool: &'static str) -> Self {
        Self {
            port,
            pool: HeaderValue::from_static(pool),
            link: Arc::default(),
        }
    }

    /// Makes a call and waits for its end.
    pub async fn call(&self, order: Order, deadline: Duration) -> Told {
        let start = now();
        let ended = timeout(deadline + PATIENCE, self.ask(order, deadline)).await;
        Told {
            id: order.id,
            start,
            how: ended.unwrap_or(End::Silent),
            end: now(),
        }
    }

    async fn ask(&self, order: Order, deadline: Duration) -> End {
        let mut sender = match self.ready().await {
            Ok(sender) => sender,
            Err(error) => return End::Unseen(format!("{error:#}")),
        };
        let message = order.framed();
        let sent = (|| {
            let (response, mut stream) = sender.send_request(self.head(deadline), false)?;
            stream.send_data(message.clone(), true)?;
            Ok::<_, h2::Error>(response)
        })();
        let answer = async { read(sent?.await?).await };
        match answer.await {
            Ok(answer) => answer.judge(&message),
            Err(error) if is_unseen(&error) => End::Unseen(error.to_string()),
            Err(error) => End::Broken(error.to_string()),
        }
    }

    fn head(&self, deadline: Duration) -> Request<()> {
        let mut head = Request::new(());
        *head.method_mut() = http::Method::POST;
        let uri = http::Uri::builder()
            .scheme("http")
            .authority("clerk.test")
            .path_and_query(METHOD);
        *head.uri_mut() = uri.build().unwrap_or_default();
        let millis = format!("{}m", deadline.as_millis());
        let headers = head.headers_mut();
        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
        headers.insert("te", HeaderValue::from_static("trailers"));
        headers.insert("tether-pool", self.pool.clone());
        if let Ok(millis) = millis.parse() {
            headers.insert("grpc-timeout", millis);
        }
        head
    }

    async fn ready(&self) -> anyhow::Result<SendRequest<Bytes>> {
        let mut link = self.link.lock().await;
        if let Some(sender) = link.take()
            && let Ok(ready) = sender.ready().await
        {
            return Ok(link.insert(ready).clone());
        }
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = h2::client::handshake(stream).await?;
        // How it ends is told to the calls on it.
        tokio::spawn(async move { connection.await.ok() });
        let ready = sender.ready().await?;
        Ok(link.insert(ready).clone())
    }
}

/// Whether the other side has said that it did not begin with a call and will not.
fn is_unseen(error: &h2::Error) -> bool {
    let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    error.is_remote() && (refused || error.is_go_away())
}

struct Answer {
    message: BytesMut,
    /// Those that carry the status.
    trailers: HeaderMap,
}

async fn read(response: http::Response<RecvStream>) -> Result<Answer, h2::Error> {
    let (head, mut body) = response.into_parts();
    let mut message = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        message.extend_from_slice(&chunk);
    }
    let trailers = body.trailers().await?;
    Ok(Answer {
        message,
        trailers: trailers.unwrap_or(head.headers),
    })
}

impl Answer {
    fn judge(self, sent: &Bytes) -> End {
        let word = |key: &str| {
            let value = self.trailers.get(key)?.to_str().ok()?;
            Some(value.to_owned())
        };
        let code = word("grpc-status").and_then(|code| code.parse().ok());
        match code {
            Some(0) if self.message == *sent => End::Answered,
            Some(0) => End::Wrong("the answer is not what was sent".to_owned()),
            Some(code) => End::Failed {
                code,
                outcome: word("tether-outcome"),
                worker: word("tether-worker"),
                why: word("grpc-message").unwrap_or_default(),
            },
            None => End::Wrong("there is no status".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        clerk::{
            book::{self, Step},
            server::{Manner, serve},
        },
        eventually,
    };

    const PATIENCE: Duration = Duration::from_secs(30);

    fn order(id: u64, millis: u64) -> Order {
        let work = Duration::from_millis(millis);
        Order { id, work }
    }

    fn steps(dir: &Path) -> Vec<(u64, Step)> {
        let entries = book::read(dir).unwrap();
        entries.iter().map(|entry| (entry.id, entry.step)).collect()
    }

    #[tokio::test]
    async fn a_clerk_serves_one_after_the_other_and_not_what_was_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let book = dir.path().join("book");
        let free = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let stop = CancellationToken::new();
        let manner = Manner {
            work: Duration::from_millis(1),
            slowness: 2,
        };
        let until = stop.clone();
        let serving = tokio::spawn(async move {
            let address = format!("127.0.0.1:{port}");
            serve(&address, &book, manner, until).await
        });
        let caller = Caller::new(port, "any");
        eventually("the clerk listens", async || {
            TcpStream::connect(("127.0.0.1", port)).await.ok()
        })
        .await;

        let (first, taken_back, last) = tokio::join!(
            caller.call(order(1, 100), PATIENCE),
            timeout(
                Duration::from_millis(100),
                caller.call(order(2, 1), PATIENCE)
            ),
            caller.call(order(3, 0), PATIENCE),
        );
        stop.cancel();
        serving.await.unwrap().unwrap();
        let late = caller.call(order(4, 0), PATIENCE).await;

        assert!(first.is_answered() && last.is_answered());
        assert!(first.took() >= 200_000_000, "{first:?}");
        assert!(taken_back.is_err());
        assert!(matches!(late.how, End::Unseen(_)), "{late:?}");
        let steps = steps(dir.path());
        let served: Vec<_> = steps
            .iter()
            .filter(|(_, step)| *step != Step::Came)
            .collect();
        let expected = [
            (1, Step::Began),
            (1, Step::Ended),
            (3, Step::Began),
            (3, Step::Ended),
        ];
        assert_eq!(served, expected.iter().collect::<Vec<_>>(), "{steps:?}");
    }
}
