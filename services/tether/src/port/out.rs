//! What goes to the BEAM: frames from many tasks, over one pipe.

use bytes::Bytes;
use tether_port::{Id, NIL, Term, frame};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt as _},
    sync::mpsc,
};

use super::failure::Failed;

/// Frames that wait for the BEAM to read them. Where it does not, whoever has more to say waits, and the network
/// behind them.
const WAITING: usize = 256;

/// A way to say things to the BEAM; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Out {
    frames: mpsc::Sender<Bytes>,
    /// What is said by those who do not wait, in order. It is little: how sessions and connections stand.
    soon: mpsc::UnboundedSender<Term>,
}

impl Out {
    /// With the other end, for [`write()`].
    pub(crate) fn new() -> (Self, mpsc::Receiver<Bytes>) {
        let (frames, receiver) = mpsc::channel(WAITING);
        let (soon, mut terms) = mpsc::unbounded_channel();
        let out = Self {
            frames: frames.clone(),
            soon,
        };
        tokio::spawn(async move {
            while let Some(term) = terms.recv().await {
                say(&frames, &term).await;
            }
        });
        (out, receiver)
    }

    pub(crate) async fn say(&self, term: Term) {
        say(&self.frames, &term).await;
    }

    /// Says it without waiting, and after what was said so before: for who has more to do than to be heard.
    pub(crate) fn soon(&self, term: Term) {
        // Without a BEAM nobody listens.
        let _ = self.soon.send(term);
    }

    /// The one answer to what was asked for under this id.
    pub(crate) async fn reply(&self, id: Id, answer: Result<Term, Failed>) {
        let said = |answer: Result<Term, Failed>| match answer {
            Ok(value) => Term::tagged("ok", [value]),
            Err(failed) => Term::tagged("error", [failed.into()]),
        };
        let reply = |answer| Term::tagged("reply", [Term::from(id), said(answer)]);
        match frame(&reply(answer)) {
            Some(frame) => drop(self.frames.send(frame).await),
            None => {
                let text = "the answer is larger than a frame may be";
                self.say(reply(Err(Failed::too_large(text)))).await;
            }
        }
    }

    pub(crate) async fn tell(&self, what: &'static str, id: Id, value: Term) {
        self.say(Term::tagged(what, [id.into(), value])).await;
    }

    /// Nothing that is said after this is written.
    pub(crate) async fn end(&self) {
        let _ = self.frames.send(END).await;
    }

    /// Says why nothing more is said.
    pub(crate) async fn refuse(&self, reason: &str, message: &str) {
        let about = Term::map([("reason", reason.into()), ("message", message.into())]);
        self.say(Term::tagged("refused", [about])).await;
    }
}

async fn say(frames: &mpsc::Sender<Bytes>, term: &Term) {
    let Some(frame) = frame(term) else {
        tracing::error!("Something is larger than a frame may be, and is not told");
        return;
    };
    // Without a BEAM nobody listens, and this program is about to end.
    let _ = frames.send(frame).await;
}

/// Stands for the end; no frame is empty.
const END: Bytes = Bytes::new();

/// Writes frames until the end, or until nobody reads them.
pub(crate) async fn write(mut frames: mpsc::Receiver<Bytes>, mut pipe: impl AsyncWrite + Unpin) {
    let mut some = Vec::with_capacity(WAITING);
    let mut together = Vec::new();
    while frames.recv_many(&mut some, WAITING).await > 0 {
        together.clear();
        let mut is_over = false;
        for frame in some.drain(..) {
            if frame == END {
                is_over = true;
                break;
            }
            // What is small goes together, in one write.
            if together.len() + frame.len() <= TOGETHER {
                together.extend_from_slice(&frame);
                continue;
            }
            if pipe.write_all(&together).await.is_err() {
                return;
            }
            together.clear();
            match frame.len() <= TOGETHER {
                true => together.extend_from_slice(&frame),
                false => {
                    if pipe.write_all(&frame).await.is_err() {
                        return;
                    }
                }
            }
        }
        if pipe.write_all(&together).await.is_err() || pipe.flush().await.is_err() || is_over {
            return;
        }
    }
}

/// What a pipe holds.
const TOGETHER: usize = 64 << 10;

/// A worker as it is told, or nil.
pub(crate) fn worker(text: Option<&str>) -> Term {
    text.and_then(tether_port::Worker::from_text)
        .map_or(NIL, Term::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn what_is_said_soon_is_said_in_order() {
        let (out, mut frames) = Out::new();
        for count in 0..2_000_u32 {
            out.soon(count.into());
        }

        for count in 0..2_000_u32 {
            assert_eq!(frames.recv().await, frame(&count.into()), "{count}");
        }
    }
}
