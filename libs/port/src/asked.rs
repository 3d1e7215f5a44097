//! What the BEAM says.

use std::time::Duration;

use bytes::Bytes;

use crate::{Fields, FromTerm, Meaningless, Term, Worker};

/// The version of what is said here.
pub const VERSION: u64 = 1;

/// Names one thing that was asked for; never used twice.
pub type Id = u64;

/// One thing that the BEAM says.
#[derive(Debug, Clone, PartialEq)]
pub enum Asked {
    /// Who is there; first, and once.
    Hello(Box<Hello>),
    /// The BEAM runs.
    Beat,
    /// A call with one message and one answer.
    Call(Id, Box<Call>, Bytes),
    /// A call whose messages follow, with as many answers as there are.
    Stream(Id, Box<Call>),
    /// A message of a stream.
    Send(Id, Bytes),
    /// There are no more messages.
    CloseSend(Id),
    /// So many more answers can be taken.
    Credit(Id, u64),
    /// It is not wanted any more.
    Cancel(Id),
    /// Something of a control service.
    Control(Id, String, Term),
    /// The orderly end.
    Bye(Id),
}

/// Who is there.
#[derive(Debug, Clone, PartialEq)]
pub struct Hello {
    /// Of what it says.
    pub version: u64,
    /// Where gateways are; none for those of this program itself.
    pub gateways: Vec<String>,
    /// The owner's name.
    pub owner: String,
    /// The session's lease, the arbiter's default where it is none.
    pub ttl: Option<Duration>,
    /// The BEAM is taken for hung where it says nothing for so long.
    pub heartbeat_timeout: Duration,
    /// Settings of the services of this program itself.
    pub config: Option<Term>,
    /// Certificates.
    pub tls: Option<Tls>,
    /// The BEAM's process, where it is not the nearest.
    pub beam: Option<u32>,
    /// Whether it will beat: then it hangs where it does not begin to.
    pub beats: bool,
}

/// Whom to trust, and what to show: paths of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Authorities.
    pub ca: String,
    /// An own certificate.
    pub certificate: Option<String>,
    /// Its key.
    pub key: Option<String>,
    /// The name that gateways have in their certificates, where it is not that of their address.
    pub name: Option<String>,
}

/// Where a call goes, and on what terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The pool.
    pub pool: String,
    /// `/package.Service/Method`.
    pub method: String,
    /// For how long.
    pub timeout: Option<Duration>,
    /// More metadata.
    pub metadata: Vec<(String, Bytes)>,
    /// Calls with the same one go to the same worker.
    pub session: Option<String>,
    /// How strictly.
    pub affinity: Option<String>,
    /// This one.
    pub worker: Option<Worker>,
    /// What makes the same call again known.
    pub idempotency_key: Option<String>,
    /// For traces.
    pub traceparent: Option<String>,
}

/// Something that was asked for in a way that means nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// To answer with, where one was named.
    pub id: Option<Id>,
    /// What is wrong.
    pub why: Meaningless,
}

impl Asked {
    /// What a term says.
    ///
    /// # Errors
    /// When it says nothing that is known here.
    pub fn read(term: Term) -> Result<Self, Refused> {
        let refuse = |text: String| Refused {
            id: None,
            why: Meaningless(text),
        };
        let Term::Tuple(items) = term else {
            let text = format!("{} was said, where a tuple is expected", term.kind());
            return Err(refuse(text));
        };
        let mut items = items.into_iter();
        let tag = items
            .next()
            .as_ref()
            .and_then(Term::as_text)
            .unwrap_or_default()
            .to_owned();
        let rest: Vec<Term> = items.collect();
        let id = match rest.first() {
            Some(&Term::Int(id)) if tag != "beat" => Id::try_from(id).ok().filter(|&id| id > 0),
            _ => None,
        };
        Self::of(&tag, rest).map_err(|why| Refused { id, why })
    }

    fn of(tag: &str, rest: Vec<Term>) -> Result<Self, Meaningless> {
        Ok(match tag {
            "hello" => {
                let [about] = exactly(tag, rest)?;
                Self::Hello(Box::new(Hello::read(about)?))
            }
            "beat" => {
                let [_] = exactly(tag, rest)?;
                Self::Beat
            }
            "call" => {
                let [id, call] = exactly(tag, rest)?;
                let mut fields = Fields::new("a call", call)?;
                let body = fields.need("body")?;
                Self::Call(read_id(id)?, Box::new(Call::read(fields)?), body)
            }
            "stream" => {
                let [id, call] = exactly(tag, rest)?;
                let fields = Fields::new("a stream", call)?;
                Self::Stream(read_id(id)?, Box::new(Call::read(fields)?))
            }
            "send" => {
                let [id, body] = exactly(tag, rest)?;
                Self::Send(read_id(id)?, read("a message", body)?)
            }
            "close_send" => {
                let [id] = exactly(tag, rest)?;
                Self::CloseSend(read_id(id)?)
            }
            "credit" => {
                let [id, more] = exactly(tag, rest)?;
                Self::Credit(read_id(id)?, read("a credit", more)?)
            }
            "cancel" => {
                let [id] = exactly(tag, rest)?;
                Self::Cancel(read_id(id)?)
            }
            "control" => {
                let [id, op, args] = exactly(tag, rest)?;
                Self::Control(read_id(id)?, read("an operation", op)?, args)
            }
            "bye" => {
                let [id] = exactly(tag, rest)?;
                Self::Bye(read_id(id)?)
            }
            other => return Err(Meaningless(format!("nothing is called `{other}`"))),
        })
    }
}

fn exactly<const N: usize>(tag: &str, rest: Vec<Term>) -> Result<[Term; N], Meaningless> {
    let given = rest.len();
    <[Term; N]>::try_from(rest).map_err(|_| {
        let text = format!("`{tag}` is followed by {N} terms in its tuple, and not by {given}");
        Meaningless(text)
    })
}

fn read<T: FromTerm>(what: &str, term: Term) -> Result<T, Meaningless> {
    let kind = term.kind();
    T::from_term(term)
        .ok_or_else(|| Meaningless(format!("{what} is {kind}, where {} is expected", T::KIND)))
}

fn read_id(term: Term) -> Result<Id, Meaningless> {
    match read("an id", term)? {
        0 => Err(Meaningless("an id is 0; they begin with 1".to_owned())),
        id => Ok(id),
    }
}

impl Hello {
    fn read(term: Term) -> Result<Self, Meaningless> {
        let mut fields = Fields::new("hello", term)?;
        let version = fields.need("version")?;
        if version != VERSION {
            let text = format!(
                "version {version} is spoken, and this program speaks {VERSION}: the library and the program belong together"
            );
            return Err(Meaningless(text));
        }
        let hello = Self {
            version,
            gateways: fields.get("gateways")?.unwrap_or_default(),
            owner: fields.need("owner")?,
            ttl: fields.get("ttl")?.filter(|ttl: &Duration| !ttl.is_zero()),
            heartbeat_timeout: fields.need("heartbeat_timeout")?,
            config: fields.take("config"),
            tls: fields.take("tls").map(Tls::read).transpose()?,
            beam: fields.get("beam")?,
            beats: fields.get("beats")?.unwrap_or_default(),
        };
        if hello.heartbeat_timeout.is_zero() {
            return Err(Meaningless("`heartbeat_timeout` of hello is 0".to_owned()));
        }
        fields.end()?;
        Ok(hello)
    }
}

impl Tls {
    fn read(term: Term) -> Result<Self, Meaningless> {
        let mut fields = Fields::new("tls", term)?;
        let tls = Self {
            ca: fields.need("ca")?,
            certificate: fields.get("cert")?,
            key: fields.get("key")?,
            name: fields.get("name")?,
        };
        fields.end()?;
        Ok(tls)
    }
}

impl Call {
    fn read(mut fields: Fields) -> Result<Self, Meaningless> {
        let call = Self {
            pool: fields.need("pool")?,
            method: fields.need("method")?,
            timeout: fields.get("timeout")?,
            metadata: fields.get("metadata")?.unwrap_or_default(),
            session: fields.get("session")?,
            affinity: fields.get("affinity")?,
            worker: fields.get("worker")?,
            idempotency_key: fields.get("idempotency_key")?,
            traceparent: fields.get("traceparent")?,
        };
        fields.end()?;
        Ok(call)
    }
}
