//! Whether the BEAM still answers: one that hangs gives no end of input, and what is renewed for it would live for ever.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use prost::Message;
use tokio::time::{interval, timeout};

use crate::{
    local::{PING, framed},
    upstream::Upstream,
};

/// However long, or short, its workers may wait for it.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// By this a BEAM could tell such a question from its workers' own.
const US: &str = "tether-python";

/// `snakepit.bridge.PingRequest`.
#[derive(Clone, PartialEq, Message)]
struct Ping {
    #[prost(string, tag = "1")]
    message: String,
}

/// Asks the BEAM again and again, and tells whether it answered; for as long as it is polled. Takes the BEAM to be
/// there until it did not answer.
pub(crate) async fn follow(beam: &str, pause: Duration, mut tell: impl FnMut(bool)) {
    let pause = pause.clamp(PAUSE_MIN, PAUSE_MAX);
    let mut turns = interval(pause);
    // The first is now, as the BEAM has just asked for this program.
    turns.tick().await;
    let mut connected = Upstream::new(beam.to_owned());
    loop {
        turns.tick().await;
        let answers = timeout(pause, answers(&connected)).await.unwrap_or(false);
        if !answers {
            // It may be the connection alone that is dead.
            connected = Upstream::new(beam.to_owned());
        }
        tell(answers);
    }
}

/// Any answer is one, also that it does not know what is asked.
async fn answers(beam: &Upstream<Full<Bytes>>) -> bool {
    let ping = Ping {
        message: US.to_owned(),
    };
    let mut request = Request::new(Full::from(framed(&ping)));
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = http::Uri::from_static(PING);
    for (name, value) in [
        (header::CONTENT_TYPE, "application/grpc"),
        (header::TE, "trailers"),
    ] {
        let value = header::HeaderValue::from_static(value);
        request.headers_mut().insert(name, value);
    }
    match beam.send(request).await {
        Ok(answer) => answer.into_body().collect().await.is_ok(),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        net::TcpListener,
        sync::{mpsc, watch},
    };

    use super::*;
    use crate::{passing::Passing, relay::serve};

    const DEADLINE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_beam_that_hangs_is_seen_to_and_so_is_that_it_answers_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let beam = listener.local_addr().unwrap().to_string();
        let (hangs, hung) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let hung = hung.clone();
                let answer = move |_| {
                    let mut hung = hung.clone();
                    async move {
                        let _ = hung.wait_for(|hung| !hung).await;
                        http::Response::new(Passing::nothing())
                    }
                };
                tokio::spawn(serve(stream, answer));
            }
        });
        let (told, mut heard) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let tell = |answers| told.send(answers).unwrap();
            follow(&beam, Duration::from_millis(200), tell).await;
        });
        let mut until = async |wanted| {
            let until = async { while heard.recv().await != Some(wanted) {} };
            timeout(DEADLINE, until).await.expect("it is told");
        };

        until(true).await;
        hangs.send(true).unwrap();
        until(false).await;
        hangs.send(false).unwrap();
        until(true).await;
    }
}
