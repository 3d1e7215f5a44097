//! `tether port`: between one BEAM and the gateways. What is said is in `libs/port`; here it is done.
//!
//! ```text
//! BEAM ==pipe==> stdio -> Asked -> calls, control ---- link ----> gateway -> worker, arbiter
//!      <=pipe=== out <- terms <----------+                 (or the one in this process: embedded)
//!                                   owner: the session, renewed while the BEAM beats
//! ```
//!
//! The loop that reads never waits for anything but the BEAM: so it sees at once that the pipe has ended, and nothing
//! that is stuck keeps a beat or a `cancel` from being heard.

mod beam;
mod body;
mod calls;
mod control;
mod doctor;
mod embedded;
mod exchange;
mod failure;
mod gateways;
mod leftovers;
mod link;
mod ops;
mod out;
mod owner;
mod stdio;
mod traffic;
mod transcode;
mod tree;
mod way;

use std::{io, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use tether_clock::{BootClock, Clock as _, Tick};
use tether_port::{Asked, Frames, Hello, Id, Meaningless, Refused, Term, VERSION, decode, id_of};
use tokio::{io::AsyncReadExt as _, net::unix::pipe::Receiver, sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

use self::{
    body::Piece, calls::Calls, embedded::Embedded, failure::Failed, gateways::Gateways, link::Link,
    out::Out, owner::Keeping, way::Way,
};

/// How long the BEAM may take to read the last words.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What the BEAM says sooner than this after a beat is no news of its life.
const NEWS: Duration = Duration::from_millis(50);

/// Something the BEAM said, for which nothing more can be done.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct Garbage {
    reason: &'static str,
    text: String,
}

pub(crate) async fn port() -> anyhow::Result<()> {
    let (reads, writes) = stdio::take()?;
    let (out, frames) = Out::new();
    let writing = tokio::spawn(out::write(frames, writes));
    let served = serve(Heard::new(reads), &out).await;
    if let Err(error) = &served {
        let reason = match error.downcast_ref::<Garbage>() {
            Some(garbage) => garbage.reason,
            None => "FAILED",
        };
        out.refuse(reason, &format!("{error:#}")).await;
    }
    // A BEAM that reads nothing is not waited for.
    let last_words = async {
        out.end().await;
        writing.await
    };
    let _ = timeout(LAST_WORDS, last_words).await;
    served
}

/// What comes from the BEAM, one thing after the other.
struct Heard {
    pipe: Receiver,
    frames: Frames,
    /// When the BEAM beat last.
    beat: watch::Sender<Option<Tick>>,
}

impl Heard {
    fn new(pipe: Receiver) -> Self {
        Self {
            pipe,
            frames: Frames::default(),
            beat: watch::channel(None).0,
        }
    }

    /// What a BEAM that beats says beside that is a beat too: under bulk there may be no room for others. Whoever
    /// follows need not be told of each.
    fn on_traffic(&self) {
        let now = BootClock.now();
        self.beat.send_if_modified(|beat| match *beat {
            Some(last) if now.since(last) >= NEWS => {
                *beat = Some(now);
                true
            }
            _ => false,
        });
    }

    /// Reads on; false at the end.
    async fn read(&mut self) -> anyhow::Result<bool> {
        match self.pipe.read_buf(self.frames.space()).await {
            Ok(0) => return Ok(false),
            Ok(_) => self.on_traffic(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("cannot read what the BEAM says"),
        }
        Ok(true)
    }

    /// Comes back once the BEAM is dead or has closed the port. What it said before that is still to come.
    async fn end(&mut self) -> anyhow::Result<()> {
        while self.read().await? {}
        Ok(())
    }

    /// The next thing; none once the BEAM is dead or has closed the port.
    async fn next(&mut self) -> anyhow::Result<Option<Result<Asked, (Id, Failed)>>> {
        let frame = loop {
            let next = self.frames.next_frame();
            if let Some(frame) =
                next.map_err(|error| garbage("FRAME_TOO_LARGE", error.to_string()))?
            {
                break frame;
            }
            if !self.read().await? {
                return Ok(None);
            }
        };
        let term = match decode(frame.clone()) {
            Ok(term) => term,
            Err(error) => {
                let text = format!("a frame is no term that is taken: {error}");
                // One caller's odd term is not the end of everybody's calls: where frames end is known.
                return match id_of(&frame) {
                    Some(id) => Ok(Some(Err((id, Failed::meaningless(&Meaningless(text)))))),
                    None => Err(garbage("NOT_A_TERM", text).into()),
                };
            }
        };
        match Asked::read(term) {
            Ok(asked) => Ok(Some(Ok(asked))),
            Err(Refused { id: Some(id), why }) => Ok(Some(Err((id, Failed::meaningless(&why))))),
            Err(Refused { id: None, why }) => {
                Err(garbage("NOT_UNDERSTOOD", why.to_string()).into())
            }
        }
    }
}

fn garbage(reason: &'static str, text: String) -> Garbage {
    Garbage { reason, text }
}

async fn serve(mut heard: Heard, out: &Out) -> anyhow::Result<()> {
    let hello = match heard.next().await? {
        None => return Ok(()),
        Some(Ok(Asked::Hello(hello))) => hello,
        Some(_) => return Err(garbage("NOT_UNDERSTOOD", "hello is said first".to_owned()).into()),
    };
    let beam = beam::find(hello.beam)?;
    let stop = tether_kit::stop::on_signals()?;
    let mut embedded = match hello.gateways.is_empty() {
        true => {
            // Nothing runs yet that would have to be ended in good order.
            let started = tokio::select! {
                started = Embedded::start(hello.config.clone()) => started?,
                ended = heard.end() => return ended,
                () = stop.cancelled() => return Ok(()),
            };
            Some(started)
        }
        false => None,
    };
    let ended = attend(&mut heard, *hello, beam, &mut embedded, &stop, out).await;
    if let Some(embedded) = embedded {
        embedded.stop().await;
    }
    ended
}

/// Does what the BEAM asks for, until it says goodbye or is dead.
async fn attend(
    heard: &mut Heard,
    hello: Hello,
    beam: tether_types::ProcessIdentity,
    embedded: &mut Option<Embedded>,
    stop: &CancellationToken,
    out: &Out,
) -> anyhow::Result<()> {
    let texts = match embedded {
        Some(embedded) => vec![embedded.gateway()],
        None => hello.gateways.clone(),
    };
    let gateways = Arc::new(Gateways::new(&texts, hello.tls.clone())?);
    let beats = heard.beat.subscribe();
    if hello.beats {
        heard.beat.send_replace(Some(BootClock.now()));
    }
    // The session looks for itself which of them is well.
    let way = Way::new(Gateways::new(&texts, hello.tls.clone())?);
    let keeping = Keeping::new(&hello, way, Some(beam), beats, out.clone())?;
    out.soon(welcome(embedded.is_some(), &texts));
    let link = Link::open(gateways, out.clone());
    let calls = Calls::new(link, keeping.begin(), out.clone());

    let bye = loop {
        let next = tokio::select! {
            next = heard.next() => next?,
            error = failed(embedded) => return Err(error.context("the services in this process failed")),
            () = stop.cancelled() => return Ok(()),
        };
        match next {
            None => {
                tracing::info!("The BEAM has gone");
                return Ok(());
            }
            Some(Err((id, why))) => calls.refuse(id, why),
            Some(Ok(Asked::Beat)) => drop(heard.beat.send_replace(Some(BootClock.now()))),
            Some(Ok(Asked::Call(id, call, body))) => calls.call(id, *call, body),
            Some(Ok(Asked::Stream(id, call))) => calls.stream(id, *call),
            Some(Ok(Asked::Send(id, body))) => calls.send(id, Piece::Message(body)),
            Some(Ok(Asked::CloseSend(id))) => calls.send(id, Piece::End),
            Some(Ok(Asked::Credit(id, more))) => calls.credit(id, more),
            Some(Ok(Asked::Cancel(id))) => calls.cancel(id),
            Some(Ok(Asked::Control(id, op, args))) => calls.control(id, &op, args),
            Some(Ok(Asked::Bye(id))) => break id,
            Some(Ok(Asked::Hello(_))) => {
                bail!(garbage("NOT_UNDERSTOOD", "hello is said once".to_owned()))
            }
        }
    };
    // Whether or not anybody hears of it, this is the end; and the BEAM may be dead before it is.
    let closed = tokio::select! {
        closed = calls.owner.close() => closed,
        () = gone(heard) => return Ok(()),
    };
    out.reply(bye, closed.map(|()| Term::Map(Vec::new()))).await;
    Ok(())
}

/// Comes back once nothing more is heard.
async fn gone(heard: &mut Heard) {
    while let Ok(Some(_)) = heard.next().await {}
}

async fn failed(embedded: &mut Option<Embedded>) -> anyhow::Error {
    match embedded {
        Some(embedded) => embedded.failed().await,
        None => std::future::pending().await,
    }
}

fn welcome(embedded: bool, gateways: &[String]) -> Term {
    let gateways = gateways.iter().map(|gateway| gateway.as_str().into());
    let about = Term::map([
        ("version", VERSION.into()),
        ("program", env!("CARGO_PKG_VERSION").into()),
        ("embedded", embedded.into()),
        ("gateways", Term::List(gateways.collect())),
    ]);
    Term::tagged("welcome", [about])
}
