//! What is said to the other side.

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Uri, uri::PathAndQuery};

use super::{Connection, Farewell, Key};
use crate::{
    error::{Error, Reason},
    frame::{self, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEAD, HEADERS, WINDOW_UPDATE},
    hpack::{ENTRY_OVERHEAD, Encoder},
    stream::signed,
};

/// Numbers of fields that everybody knows.
const POST: u8 = 3;
const HTTP: u8 = 6;
const OK: u8 = 8;

impl Connection {
    /// Opens a stream with a request.
    ///
    /// # Errors
    /// Where the connection takes no more streams, or not now, or not so much metadata.
    pub fn open(
        &mut self,
        method: &Method,
        uri: &Uri,
        fields: &HeaderMap,
        ends: bool,
    ) -> Result<Key, Error> {
        if let Some(error) = self.is_closed() {
            return Err(error);
        }
        if self.farewell != Farewell::None {
            let reason = Reason::NO_ERROR;
            return Err(Error::GoAway {
                reason,
                remote: false,
            });
        }
        if !self.can_open() {
            return Err(Error::Misused("the other side takes no more streams now"));
        }
        self.check_size(method, uri, fields)?;
        let id = self.next;
        self.next += 2;
        let at = self.open_stream(id);
        self.streams[at].is_bodiless = method == Method::HEAD;
        self.write_block(id, ends, |encoder, to| {
            if method == Method::POST {
                Encoder::known(to, POST);
            } else {
                encoder.field(to, ":method", method.as_str().as_bytes(), false);
            }
            let connects = method == Method::CONNECT;
            match uri.scheme_str() {
                _ if connects => {}
                None | Some("http") => Encoder::known(to, HTTP),
                Some(scheme) => encoder.field(to, ":scheme", scheme.as_bytes(), false),
            }
            if !connects {
                let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
                let path = if path.is_empty() { "/" } else { path };
                encoder.field(to, ":path", path.as_bytes(), false);
            }
            if let Some(authority) = uri.authority() {
                encoder.field(to, ":authority", authority.as_str().as_bytes(), false);
            }
            plain(encoder, to, fields);
        });
        if ends {
            self.end_ours(at);
        }
        Ok(Key::at(at))
    }

    /// One that is sent more metadata than it takes may close the connection, with the calls of others.
    fn check_size(&self, method: &Method, uri: &Uri, fields: &HeaderMap) -> Result<(), Error> {
        let Some(limit) = self.theirs.header_list else {
            return Ok(());
        };
        let head = [
            (":method", method.as_str().len()),
            (":scheme", uri.scheme_str().map_or(0, str::len)),
            (
                ":path",
                uri.path_and_query().map_or(0, |path| path.as_str().len()),
            ),
            (
                ":authority",
                uri.authority().map_or(0, |all| all.as_str().len()),
            ),
        ];
        let head = head.map(|(name, value)| name.len() + value + ENTRY_OVERHEAD);
        let fields = fields
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len() + ENTRY_OVERHEAD);
        let size = head.iter().sum::<usize>() + fields.sum::<usize>();
        match size > limit {
            true => Err(Error::TooLarge { size, limit }),
            false => Ok(()),
        }
    }

    /// Answers a request.
    ///
    /// # Errors
    /// Where its stream is over.
    pub fn respond(
        &mut self,
        stream: Key,
        status: StatusCode,
        fields: &HeaderMap,
        ends: bool,
    ) -> Result<(), Error> {
        let (at, id) = self.sends(stream)?;
        self.write_block(id, ends, |encoder, to| {
            head_of_answer(encoder, to, status);
            plain(encoder, to, fields);
        });
        if ends {
            self.end_ours(at);
        }
        Ok(())
    }

    /// How many bytes can be sent over a stream now.
    pub fn capacity(&self, stream: Key) -> usize {
        let room = self.config.send_buffer.saturating_sub(self.output.len());
        let window = match self.streams.get(stream.index()) {
            Some(stream) if stream.is_ours_open => {
                stream.window(&self.theirs).min(self.send_window.into())
            }
            _ => 0,
        };
        usize::try_from(window).unwrap_or(0).min(room)
    }

    /// Sends a piece of a body, not longer than there is capacity for.
    ///
    /// # Errors
    /// Where the stream is over, or there is more.
    pub fn send_data(&mut self, stream: Key, data: &Bytes, ends: bool) -> Result<(), Error> {
        let (at, id) = self.sends(stream)?;
        if data.len() > self.capacity(stream) && !data.is_empty() {
            return Err(Error::Misused("more than the other side has room for"));
        }
        let length = signed(u32::try_from(data.len()).unwrap_or(u32::MAX));
        self.send_window -= length;
        self.streams[at].given -= i64::from(length);
        let mut sent = 0;
        loop {
            let end = data.len().min(sent + self.theirs.max_frame);
            let is_last = end == data.len();
            let flags = if is_last && ends { END_STREAM } else { 0 };
            frame::head(self.output.buffer(), end - sent, DATA, flags, id);
            self.output.payload(data, sent..end);
            if is_last {
                break;
            }
            sent = end;
        }
        if ends {
            self.end_ours(at);
        }
        Ok(())
    }

    /// Ends a body with fields.
    ///
    /// # Errors
    /// Where the stream is over.
    pub fn send_trailers(&mut self, stream: Key, fields: &HeaderMap) -> Result<(), Error> {
        let (at, id) = self.sends(stream)?;
        self.write_block(id, true, |encoder, to| plain(encoder, to, fields));
        self.end_ours(at);
        Ok(())
    }

    /// So much of what came on a stream was taken: the other side may send as much again.
    pub fn release(&mut self, stream: Key, bytes: usize) {
        let half = self.config.stream_window / 2;
        let Some(stream) = self.streams.get_mut(stream.index()) else {
            return;
        };
        if !stream.is_theirs_open || self.broken.is_some() {
            return;
        }
        stream.taken += u32::try_from(bytes).unwrap_or(0);
        if stream.taken > half {
            let word = std::mem::take(&mut stream.taken);
            stream.receive_window += signed(word);
            frame::numbers(self.output.buffer(), WINDOW_UPDATE, stream.id, [word]);
        }
    }

    /// Tells a client that its request has more metadata than we take.
    pub(super) fn answer_too_large(&mut self, id: u32) {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        self.write_block(id, true, |encoder, to| head_of_answer(encoder, to, status));
    }

    /// The stream, where we may still send over it.
    fn sends(&self, stream: Key) -> Result<(usize, u32), Error> {
        let at = stream.index();
        match self.streams.get(at) {
            Some(stream) if stream.is_ours_open && self.broken.is_none() => Ok((at, stream.id)),
            _ => Err(Error::Misused("the stream is over")),
        }
    }

    /// Writes a header block, in as many frames as it takes.
    fn write_block(
        &mut self,
        id: u32,
        ends: bool,
        write: impl FnOnce(&mut Encoder, &mut bytes::BytesMut),
    ) {
        let flags = if ends { END_STREAM } else { 0 };
        let most = self.theirs.max_frame;
        let to = self.output.buffer();
        let start = to.len();
        frame::head(to, 0, HEADERS, flags | END_HEADERS, id);
        self.encoder.begin(to);
        write(&mut self.encoder, to);
        let length = to.len() - start - HEAD;
        if length <= most {
            let [_, length @ ..] = u32::try_from(length).unwrap_or(0).to_be_bytes();
            to[start..start + 3].copy_from_slice(&length);
            return;
        }
        let block = to.split_off(start + HEAD);
        to.truncate(start);
        let mut pieces = block.chunks(most).peekable();
        let (mut kind, mut flags) = (HEADERS, flags);
        while let Some(piece) = pieces.next() {
            if pieces.peek().is_none() {
                flags |= END_HEADERS;
            }
            frame::head(to, piece.len(), kind, flags, id);
            to.extend_from_slice(piece);
            (kind, flags) = (CONTINUATION, 0);
        }
    }
}

fn head_of_answer(encoder: &mut Encoder, to: &mut bytes::BytesMut, status: StatusCode) {
    match status {
        StatusCode::OK => Encoder::known(to, OK),
        other => encoder.field(to, ":status", other.as_str().as_bytes(), false),
    }
}

fn plain(encoder: &mut Encoder, to: &mut bytes::BytesMut, fields: &HeaderMap) {
    for (name, value) in fields {
        encoder.field(to, name.as_str(), value.as_bytes(), value.is_sensitive());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, Role, connection::LAST_STREAM};

    #[test]
    fn a_connection_whose_numbers_are_used_up_is_closed_and_over_with_its_last_stream() {
        let mut connection = Connection::new(Role::Client, Config::default());
        connection.next = LAST_STREAM - 2;
        let uri = Uri::from_static("http://site/");
        let mut open = || {
            let opened = connection.open(&Method::POST, &uri, &HeaderMap::new(), false);
            let closed = connection.is_closed();
            (opened, closed, connection.is_over())
        };
        assert!(matches!(open(), (Ok(_), None, false)));
        let (last, closed, is_over) = open();
        assert_eq!(
            closed.clone().and_then(|error| error.reason()),
            Some(Reason::NO_ERROR)
        );
        assert!(!is_over);
        assert_eq!(open().0.err(), closed);

        connection.forget(Key::at(0));
        connection.forget(last.expect("it is open"));
        assert!(connection.is_over());
    }
}
