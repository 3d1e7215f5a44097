//! Heads and trailers as they come together from fields (RFC 9113, 8.1 to 8.3).

use http::{
    HeaderMap, Method, Request, Response, StatusCode, Uri, Version,
    header::CONTENT_LENGTH,
    request, response,
    uri::{self, Authority, PathAndQuery, Scheme},
};

use crate::{hpack::Field, spare};

/// What is wrong with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// It is none.
    Malformed,
    /// It has more fields than we take.
    TooLarge,
}

/// The fields of one block.
#[derive(Debug)]
pub(crate) struct Assembly {
    method: Option<Method>,
    scheme: Option<Scheme>,
    authority: Option<Authority>,
    path: Option<PathAndQuery>,
    status: Option<StatusCode>,
    fields: HeaderMap,
    /// How much more there may be.
    room: usize,
    flaw: Option<Flaw>,
}

impl Assembly {
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            method: None,
            scheme: None,
            authority: None,
            path: None,
            status: None,
            fields: spare::take(),
            room: limit as usize,
            flaw: None,
        }
    }

    pub(crate) fn take(&mut self, field: Field, size: usize) {
        if self.flaw == Some(Flaw::TooLarge) {
            return;
        }
        let Some(room) = self.room.checked_sub(size) else {
            self.flaw = Some(Flaw::TooLarge);
            return;
        };
        self.room = room;
        if let Field::Plain(name, value) = field {
            self.fields.append(name, value);
            return;
        }
        // They come before all others, and once.
        let first = self.fields.is_empty();
        let fits = first
            && match field {
                Field::Method(method) => self.method.replace(method).is_none(),
                Field::Scheme(scheme) => self.scheme.replace(scheme).is_none(),
                Field::Authority(authority) => self.authority.replace(authority).is_none(),
                Field::Path(path) => self.path.replace(path).is_none(),
                Field::Status(status) => self.status.replace(status).is_none(),
                Field::Plain(..) | Field::Malformed(_) => false,
            };
        if !fits {
            self.flaw = Some(Flaw::Malformed);
        }
    }

    pub(crate) fn request(self) -> Result<request::Parts, Flaw> {
        let Self {
            method,
            scheme,
            authority,
            path,
            status,
            fields,
            flaw,
            ..
        } = self;
        if let Some(flaw) = flaw {
            return Err(flaw);
        }
        let method = method.ok_or(Flaw::Malformed)?;
        let connects = method == Method::CONNECT;
        let whole = match connects {
            true => scheme.is_none() && path.is_none() && authority.is_some(),
            false => scheme.is_some() && path.is_some(),
        };
        if !whole || status.is_some() {
            return Err(Flaw::Malformed);
        }
        let mut parts = uri::Parts::default();
        // What `http` calls a URI has both or neither.
        parts.scheme = scheme.filter(|_| authority.is_some());
        parts.authority = authority;
        parts.path_and_query = path;
        let (mut head, ()) = Request::new(()).into_parts();
        head.method = method;
        head.uri = Uri::from_parts(parts).map_err(|_| Flaw::Malformed)?;
        head.version = Version::HTTP_2;
        head.headers = fields;
        Ok(head)
    }

    pub(crate) fn response(self) -> Result<response::Parts, Flaw> {
        let of_requests = self.is_of_requests();
        if let Some(flaw) = self.flaw {
            return Err(flaw);
        }
        let status = self.status.filter(|_| !of_requests);
        let (mut head, ()) = Response::new(()).into_parts();
        head.status = status.ok_or(Flaw::Malformed)?;
        head.version = Version::HTTP_2;
        head.headers = self.fields;
        Ok(head)
    }

    pub(crate) fn trailers(self) -> Result<HeaderMap, Flaw> {
        if let Some(flaw) = self.flaw {
            return Err(flaw);
        }
        match self.is_of_requests() || self.status.is_some() {
            true => Err(Flaw::Malformed),
            false => Ok(self.fields),
        }
    }

    fn is_of_requests(&self) -> bool {
        self.method.is_some()
            || self.scheme.is_some()
            || self.authority.is_some()
            || self.path.is_some()
    }
}

/// The length that a head announces; all that do must say the same.
pub(crate) fn content_length(fields: &HeaderMap) -> Result<Option<u64>, Flaw> {
    if fields.is_empty() {
        return Ok(None);
    }
    let mut length = None;
    for value in fields.get_all(CONTENT_LENGTH) {
        let text = value.as_bytes();
        let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
        let number = value.to_str().ok().filter(|_| digits);
        let number = number.and_then(|number| number.parse().ok());
        let number: u64 = number.ok_or(Flaw::Malformed)?;
        if length.replace(number).is_some_and(|other| other != number) {
            return Err(Flaw::Malformed);
        }
    }
    Ok(length)
}
