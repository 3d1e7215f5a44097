//! What the other side says.

use bytes::{Buf as _, Bytes, BytesMut};

use super::{Connection, Event, FAREWELL, Farewell, Key, Role};
use crate::{
    error::{Error, Reason},
    frame::{
        self, ACK, CONTINUATION, DATA, END_STREAM, GOAWAY, HEAD, HEADERS, Head, MAX_FRAME, PING,
        PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW_UPDATE,
    },
    settings::LARGEST_WINDOW,
    stream::widened,
};

/// Answers to the other side's questions that it may leave unread.
pub(super) const MAX_UNREAD_ANSWERS: usize = 10_000;
/// Frames in a row that may carry nothing.
const MAX_EMPTY_FRAMES: usize = 1_000;
/// A piece of a body that is smaller is copied: it would keep all of what was read with it, which may be eight times as
/// much.
const SMALL: usize = 8 << 10;
/// What becomes of a frame: it may be an event, or the end of the connection.
pub(super) type Came = Result<Option<Event>, Reason>;

impl Connection {
    /// Reads as far as the next event; what was read is taken from `input`. `None` where more has to come first.
    ///
    /// # Errors
    /// Where the other side has broken the protocol: the output has a last word, and nothing else can be read.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Event>, Error> {
        loop {
            if let Some(error) = &self.broken {
                return Err(error.clone());
            }
            let came = match self.preface.is_empty() {
                true => self.frame(input),
                false => self.preface(input),
            };
            match came {
                Ok(Some(None)) => {}
                Ok(Some(Some(event))) => return Ok(Some(event)),
                Ok(None) => return Ok(None),
                Err(reason) => return Err(self.give_up(reason)),
            }
        }
    }

    fn give_up(&mut self, reason: Reason) -> Error {
        let word = [self.last, reason.0];
        frame::numbers(self.output.buffer(), GOAWAY, 0, word);
        let error = Error::GoAway {
            reason,
            remote: false,
        };
        self.broken = Some(error.clone());
        error
    }

    fn preface(&mut self, input: &mut BytesMut) -> Result<Option<Option<Event>>, Reason> {
        let length = self.preface.len().min(input.len());
        if length == 0 {
            return Ok(None);
        }
        let (expected, rest) = self.preface.split_at(length);
        if input[..length] != *expected {
            return Err(Reason::PROTOCOL_ERROR);
        }
        input.advance(length);
        self.preface = rest;
        Ok(Some(None))
    }

    /// Reads a frame, if all of it is there.
    fn frame(&mut self, input: &mut BytesMut) -> Result<Option<Option<Event>>, Reason> {
        let Some(head) = Head::read(input) else {
            return Ok(None);
        };
        if head.length > MAX_FRAME {
            return Err(Reason::FRAME_SIZE_ERROR);
        }
        let whole = HEAD + head.length;
        if input.len() < whole {
            return Ok(None);
        }
        let continues = head.kind == CONTINUATION;
        if self.unended.is_some() != continues {
            return Err(Reason::PROTOCOL_ERROR);
        }
        if head.kind == DATA {
            let payload = match head.length {
                0..SMALL => {
                    let payload = Bytes::copy_from_slice(&input[HEAD..whole]);
                    input.advance(whole);
                    payload
                }
                _ => {
                    input.advance(HEAD);
                    input.split_to(head.length).freeze()
                }
            };
            return self.data(head, payload).map(Some);
        }
        let payload = &input[HEAD..whole];
        let came = match head.kind {
            HEADERS => self.headers(head, payload),
            CONTINUATION => self.continuation(head, payload),
            PRIORITY => self.priority(head, payload),
            RST_STREAM => self.rst_stream(head, payload),
            SETTINGS => self.settings(head, payload),
            PUSH_PROMISE => Err(Reason::PROTOCOL_ERROR),
            PING => self.ping(head, payload),
            GOAWAY => self.goaway(head, payload),
            WINDOW_UPDATE => self.window_update(head, payload),
            // Others are to be ignored.
            _ => Ok(None),
        };
        input.advance(whole);
        came.map(Some)
    }

    fn data(&mut self, head: Head, mut data: Bytes) -> Came {
        if head.stream == 0 || self.is_idle(head.stream) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        let (before, behind) = frame::padding(&head, &data)?;
        self.credit_connection(head.length)?;
        let ends = head.has(END_STREAM);
        data.truncate(data.len() - behind);
        data.advance(before);
        if data.is_empty() && !ends {
            Self::count(&mut self.guard.empty_frames, MAX_EMPTY_FRAMES)?;
        } else {
            self.guard.empty_frames = 0;
        }
        let Some(at) = self.find(head.stream) else {
            return Ok(None);
        };
        let stream = &mut self.streams[at];
        if !stream.is_theirs_open {
            return self.on_closed(at);
        }
        if self.role == Role::Client && !stream.has_head {
            return self.stream_error(at, Reason::PROTOCOL_ERROR);
        }
        let length = i32::try_from(head.length).unwrap_or(i32::MAX);
        if length > stream.receive_window {
            return self.stream_error(at, Reason::FLOW_CONTROL_ERROR);
        }
        stream.receive_window -= length;
        if stream.count(data.len(), ends).is_err() {
            return self.stream_error(at, Reason::PROTOCOL_ERROR);
        }
        let padding = head.length - data.len();
        if ends {
            self.end_theirs(at);
        } else if padding > 0 {
            self.release(Key::at(at), padding);
        }
        if data.is_empty() && !ends {
            return Ok(None);
        }
        let stream = Key::at(at);
        Ok(Some(Event::Data { stream, data, ends }))
    }

    /// Gives the connection's window back as it is used: what a stream does not read is held up by its own.
    fn credit_connection(&mut self, length: usize) -> Result<(), Reason> {
        let came = u32::try_from(length).unwrap_or(u32::MAX);
        let window = self.receive_window.checked_sub_unsigned(came);
        let window = window.filter(|window| *window >= 0);
        self.receive_window = window.ok_or(Reason::FLOW_CONTROL_ERROR)?;
        self.taken += came;
        if self.taken > self.config.connection_window / 2 {
            self.receive_window += super::signed(self.taken);
            let word = [std::mem::take(&mut self.taken)];
            frame::numbers(self.output.buffer(), WINDOW_UPDATE, 0, word);
        }
        Ok(())
    }

    fn priority(&mut self, head: Head, payload: &[u8]) -> Came {
        if head.stream == 0 {
            return Err(Reason::PROTOCOL_ERROR);
        }
        let Ok(payload) = <&[u8; 5]>::try_from(payload) else {
            return Err(Reason::FRAME_SIZE_ERROR);
        };
        let [on @ .., _weight] = payload;
        if frame::number(on) & (u32::MAX >> 1) != head.stream {
            return Ok(None);
        }
        match self.find(head.stream) {
            Some(at) => self.stream_error(at, Reason::PROTOCOL_ERROR),
            None => Ok(None),
        }
    }

    fn rst_stream(&mut self, head: Head, payload: &[u8]) -> Came {
        let reason = Reason(frame::number(sized(payload)?));
        if head.stream == 0 || self.is_idle(head.stream) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        let Some(at) = self.find(head.stream) else {
            return Ok(None);
        };
        let stream = &mut self.streams[at];
        if !stream.is_open() {
            return Ok(None);
        }
        if self.role == Role::Server && !stream.is_accepted && !stream.is_abandoned {
            stream.is_abandoned = true;
            Self::count(&mut self.guard.abandoned, self.config.max_abandoned)?;
        }
        self.end_both(at);
        let stream = Key::at(at);
        let error = Error::Reset {
            reason,
            remote: true,
        };
        Ok(Some(Event::Reset { stream, error }))
    }

    fn settings(&mut self, head: Head, payload: &[u8]) -> Came {
        if head.stream != 0 {
            return Err(Reason::PROTOCOL_ERROR);
        }
        if head.has(ACK) {
            if !payload.is_empty() {
                return Err(Reason::FRAME_SIZE_ERROR);
            }
            self.on_acknowledged();
            return Ok(None);
        }
        let before = self.theirs;
        self.theirs.read(payload, self.role == Role::Client)?;
        self.encoder.resize(self.theirs.table);
        if i64::from(self.theirs.window) + self.most_given > i64::from(LARGEST_WINDOW) {
            // The one that was given most may be over. Then it takes another to come here again.
            let open = self.streams.iter().filter(|(_, one)| one.is_ours_open);
            self.most_given = open.map(|(_, one)| one.given).max().unwrap_or(0).max(0);
            if i64::from(self.theirs.window) + self.most_given > i64::from(LARGEST_WINDOW) {
                return Err(Reason::FLOW_CONTROL_ERROR);
            }
        }
        self.answer(SETTINGS, &[])?;
        let is_first = !std::mem::replace(&mut self.has_heard, true);
        let is_wider = self.theirs.window > before.window;
        let more = is_wider || self.theirs.max_streams > before.max_streams || is_first;
        Ok(more.then_some(Event::AllWritable))
    }

    /// What we said holds from here on; until now a stream had the window that everything begins with.
    fn on_acknowledged(&mut self) {
        let before = std::mem::replace(&mut self.first_window, self.config.stream_window);
        let less = super::signed(before - self.config.stream_window);
        if less == 0 {
            return;
        }
        for (_, stream) in &mut self.streams {
            stream.receive_window -= less;
        }
    }

    fn ping(&mut self, head: Head, payload: &[u8]) -> Came {
        if head.stream != 0 {
            return Err(Reason::PROTOCOL_ERROR);
        }
        let payload: &[u8; 8] = payload.try_into().map_err(|_| Reason::FRAME_SIZE_ERROR)?;
        if !head.has(ACK) {
            self.answer(PING, payload)?;
        } else if *payload == FAREWELL && self.farewell == Farewell::Announced {
            self.close();
        }
        Ok(None)
    }

    fn goaway(&mut self, head: Head, payload: &[u8]) -> Came {
        if head.stream != 0 {
            return Err(Reason::PROTOCOL_ERROR);
        }
        let (last, rest) = payload
            .split_first_chunk()
            .ok_or(Reason::FRAME_SIZE_ERROR)?;
        let (reason, _) = rest.split_first_chunk().ok_or(Reason::FRAME_SIZE_ERROR)?;
        let last = frame::number(last) & (u32::MAX >> 1);
        // A later word may only take back more.
        let last = self.gone.map_or(last, |(before, _)| before.min(last));
        self.gone = Some((last, Reason(frame::number(reason))));
        Ok(Some(Event::GoAway))
    }

    fn window_update(&mut self, head: Head, payload: &[u8]) -> Came {
        let more = frame::number(sized(payload)?) & (u32::MAX >> 1);
        if head.stream == 0 {
            if more == 0 {
                return Err(Reason::PROTOCOL_ERROR);
            }
            let window = widened(self.send_window, more);
            let was_closed = self.send_window <= 0;
            self.send_window = window.ok_or(Reason::FLOW_CONTROL_ERROR)?;
            return Ok(was_closed.then_some(Event::ConnectionWritable));
        }
        if self.is_idle(head.stream) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        let Some(at) = self.find(head.stream) else {
            return Ok(None);
        };
        let stream = &mut self.streams[at];
        if !stream.is_open() {
            return Ok(None);
        }
        if more == 0 {
            return self.stream_error(at, Reason::PROTOCOL_ERROR);
        }
        if stream.window(&self.theirs) + i64::from(more) > i64::from(LARGEST_WINDOW) {
            return self.stream_error(at, Reason::FLOW_CONTROL_ERROR);
        }
        stream.given += i64::from(more);
        self.most_given = self.most_given.max(stream.given);
        Ok(stream.is_ours_open.then(|| Event::Writable(Key::at(at))))
    }

    /// Answers a frame with one of its kind.
    fn answer(&mut self, kind: u8, payload: &[u8]) -> Result<(), Reason> {
        Self::count(&mut self.guard.unread_answers, MAX_UNREAD_ANSWERS)?;
        let to = self.output.buffer();
        frame::head(to, payload.len(), kind, ACK, 0);
        to.extend_from_slice(payload);
        Ok(())
    }

    /// Says that a stream is over, of which nothing is known or has to be.
    pub(super) fn refuse(&mut self, id: u32, reason: Reason) -> Came {
        Self::count(&mut self.guard.unread_answers, MAX_UNREAD_ANSWERS)?;
        frame::numbers(self.output.buffer(), RST_STREAM, id, [reason.0]);
        Ok(None)
    }

    /// Ends a stream over what came on it.
    pub(super) fn stream_error(&mut self, at: usize, reason: Reason) -> Came {
        Self::count(&mut self.guard.unread_answers, MAX_UNREAD_ANSWERS)?;
        let was_open = self.streams[at].is_open();
        self.send_reset(at, reason);
        let stream = Key::at(at);
        let error = Error::Reset {
            reason,
            remote: false,
        };
        Ok(was_open.then_some(Event::Reset { stream, error }))
    }

    /// Something came behind the end of what they send. Where the stream is over it may have been under way when we reset
    /// it, which is no offence.
    pub(super) fn on_closed(&mut self, at: usize) -> Came {
        match self.streams[at].is_ours_open {
            true => self.stream_error(at, Reason::STREAM_CLOSED),
            false => Ok(None),
        }
    }

    /// Whether a stream has not been opened by anybody.
    pub(super) fn is_idle(&self, id: u32) -> bool {
        match self.role {
            Role::Client => id.is_multiple_of(2) || id >= self.next,
            Role::Server => id.is_multiple_of(2) || id > self.last,
        }
    }

    /// Counts one more of what may not become many.
    pub(super) fn count(counter: &mut usize, most: usize) -> Result<(), Reason> {
        *counter += 1;
        match *counter > most {
            true => Err(Reason::ENHANCE_YOUR_CALM),
            false => Ok(()),
        }
    }
}

fn sized(payload: &[u8]) -> Result<&[u8; 4], Reason> {
    payload.try_into().map_err(|_| Reason::FRAME_SIZE_ERROR)
}
