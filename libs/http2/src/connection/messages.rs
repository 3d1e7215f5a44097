//! Header blocks as they come, and the messages that they begin or end.

use http::{Method, StatusCode};

use super::{
    Connection, Event, Farewell, Key, MOST_UNREAD, Role,
    receive::{Came, MAX_UNREAD_ANSWERS},
};
use crate::{
    error::Reason,
    frame::{self, END_HEADERS, END_STREAM, Head, PRIORITISED},
    message::{Assembly, Flaw, content_length},
};

/// Pieces of a header block.
const MAX_CONTINUATIONS: usize = 256;
/// How many times the metadata that we take a header block may be long, on the wire: it is read to its end, so that the
/// next can be, and the message refused.
const BLOCK_FACTOR: usize = 4;

/// A header block of which more is to come.
#[derive(Debug)]
pub(super) struct Unended {
    stream: u32,
    ends: bool,
    depends_on_itself: bool,
    block: Vec<u8>,
    frames: usize,
}

impl Unended {
    pub(super) fn held(&self) -> usize {
        self.block.capacity()
    }
}

impl Connection {
    pub(super) fn headers(&mut self, head: Head, payload: &[u8]) -> Came {
        let id = head.stream;
        if id == 0 || id.is_multiple_of(2) || (self.role == Role::Client && self.is_idle(id)) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        let (before, behind) = frame::padding(&head, payload)?;
        let mut block = &payload[before..payload.len() - behind];
        let mut depends_on_itself = false;
        if head.has(PRIORITISED) {
            let (on, rest) = block.split_first_chunk().ok_or(Reason::FRAME_SIZE_ERROR)?;
            let (_weight, rest) = rest.split_first().ok_or(Reason::FRAME_SIZE_ERROR)?;
            depends_on_itself = frame::number(on) & (u32::MAX >> 1) == id;
            block = rest;
        }
        let ends = head.has(END_STREAM);
        if head.has(END_HEADERS) {
            return self.block(id, block, ends, depends_on_itself);
        }
        self.unended = Some(Unended {
            stream: id,
            ends,
            depends_on_itself,
            block: block.to_vec(),
            frames: 0,
        });
        Ok(None)
    }

    pub(super) fn continuation(&mut self, head: Head, payload: &[u8]) -> Came {
        let largest = self.config.header_list as usize * BLOCK_FACTOR;
        let unended = self.unended.as_mut().ok_or(Reason::PROTOCOL_ERROR)?;
        if unended.stream != head.stream {
            return Err(Reason::PROTOCOL_ERROR);
        }
        Self::count(&mut unended.frames, MAX_CONTINUATIONS)?;
        if unended.block.len() + payload.len() > largest {
            return Err(Reason::ENHANCE_YOUR_CALM);
        }
        unended.block.extend_from_slice(payload);
        if !head.has(END_HEADERS) {
            return Ok(None);
        }
        match self.unended.take() {
            None => Ok(None),
            Some(all) => self.block(all.stream, &all.block, all.ends, all.depends_on_itself),
        }
    }

    /// A header block is whole. It is read whatever becomes of its stream: the next depends on it.
    fn block(&mut self, id: u32, block: &[u8], ends: bool, depends_on_itself: bool) -> Came {
        let mut fields = Assembly::new(self.config.header_list);
        let read = self
            .decoder
            .read(block, |field, size| fields.take(field, size));
        read.map_err(|_| Reason::COMPRESSION_ERROR)?;
        self.guard.empty_frames = 0;
        if let Some(at) = self.find(id) {
            if !self.streams[at].is_theirs_open {
                return self.on_closed(at);
            }
            if depends_on_itself {
                return self.stream_error(at, Reason::PROTOCOL_ERROR);
            }
            return match self.streams[at].has_head {
                true => self.trailers(at, fields, ends),
                false => self.response(at, fields, ends),
            };
        }
        if !self.is_idle(id) {
            // A client's stream was given up, and this was under way. A server's cannot begin anew.
            return match self.role {
                Role::Client => Ok(None),
                Role::Server => self.refuse(id, Reason::STREAM_CLOSED),
            };
        }
        // A server's, for a client has refused it before.
        self.last = id;
        if matches!(self.farewell, Farewell::Final(_)) {
            return Ok(None);
        }
        if depends_on_itself {
            return self.refuse(id, Reason::PROTOCOL_ERROR);
        }
        let is_unread = self.output.len() > MOST_UNREAD * self.config.send_buffer;
        if is_unread || self.theirs_open >= self.config.max_streams {
            return self.refuse(id, Reason::REFUSED_STREAM);
        }
        self.request(id, fields, ends)
    }

    fn request(&mut self, id: u32, fields: Assembly, ends: bool) -> Came {
        let head = match fields.request() {
            Ok(head) => head,
            Err(Flaw::Malformed) => return self.refuse(id, Reason::PROTOCOL_ERROR),
            Err(Flaw::TooLarge) => {
                Self::count(&mut self.guard.unread_answers, MAX_UNREAD_ANSWERS)?;
                self.answer_too_large(id);
                return match ends {
                    true => Ok(None),
                    false => self.refuse(id, Reason::NO_ERROR),
                };
            }
        };
        let length = match content_length(&head.headers) {
            Ok(length) if !(ends && length.is_some_and(|length| length > 0)) => length,
            _ => return self.refuse(id, Reason::PROTOCOL_ERROR),
        };
        let at = self.open_stream(id);
        let stream = &mut self.streams[at];
        stream.to_come = length;
        stream.has_head = true;
        stream.is_bodiless = head.method == Method::HEAD;
        if ends {
            self.end_theirs(at);
        }
        let stream = Key::at(at);
        Ok(Some(Event::Request { stream, head, ends }))
    }

    fn response(&mut self, at: usize, fields: Assembly, ends: bool) -> Came {
        let Ok(head) = fields.response() else {
            return self.stream_error(at, Reason::PROTOCOL_ERROR);
        };
        if head.status.is_informational() {
            return match ends {
                true => self.stream_error(at, Reason::PROTOCOL_ERROR),
                false => Ok(None),
            };
        }
        let stream = &mut self.streams[at];
        let bodiless = stream.is_bodiless
            || matches!(
                head.status,
                StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
            );
        let length = match content_length(&head.headers) {
            Ok(_) if bodiless => None,
            Ok(length) if !(ends && length.is_some_and(|length| length > 0)) => length,
            _ => return self.stream_error(at, Reason::PROTOCOL_ERROR),
        };
        stream.to_come = length;
        stream.has_head = true;
        if ends {
            self.end_theirs(at);
        }
        let stream = Key::at(at);
        Ok(Some(Event::Response { stream, head, ends }))
    }

    fn trailers(&mut self, at: usize, fields: Assembly, ends: bool) -> Came {
        let whole = self.streams[at].count(0, true).is_ok();
        match fields.trailers() {
            Ok(fields) if ends && whole => {
                self.end_theirs(at);
                let stream = Key::at(at);
                Ok(Some(Event::Trailers { stream, fields }))
            }
            _ => self.stream_error(at, Reason::PROTOCOL_ERROR),
        }
    }
}
