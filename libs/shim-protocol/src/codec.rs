//! Messages to frames and back.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use crate::wire::{Error, Reader, Writer};
use crate::{
    BY_MESSAGE_ONLY, Cause, Credentials, Dead, Hello, Identity, Input, Launch, Limit, Logs,
    MAX_FRAME_BYTES, Message, OnLinkLoss, OnOwnerExit, Phase, Proof, Seat, SpawnFailure, Stage,
    Terms, Walls,
};

const HEADER_BYTES: usize = 4;

/// The frame of `message`, length included.
///
/// A `Launch` with more than [`MAX_FRAME_BYTES`] of arguments and environment makes a frame that
/// the other side refuses; compare the length with that limit plus 4 before sending one.
pub fn encode(message: &Message) -> Vec<u8> {
    let mut to = Writer(vec![0; HEADER_BYTES]);
    write(message, &mut to);
    let length = u32::try_from(to.0.len() - HEADER_BYTES).unwrap_or(u32::MAX);
    to.0[..HEADER_BYTES].copy_from_slice(&length.to_le_bytes());
    to.0
}

/// The message of exactly one frame, as [`encode`] made it.
pub fn decode(frame: &[u8]) -> Result<Message, Error> {
    let mut decoder = Decoder::default();
    decoder.push(frame);
    let message = decoder.next_message()?.ok_or(Error::Truncated)?;
    if decoder.held_bytes() == 0 {
        Ok(message)
    } else {
        Err(Error::TrailingBytes)
    }
}

/// Takes bytes as they arrive and gives messages as they are complete.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// Everything before this has been given out.
    start: usize,
}

impl Decoder {
    /// Adds bytes. Call [`Self::next_message`] until it has nothing more before the next push,
    /// so that no more than one frame and one push are ever held (W2).
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.start);
        self.start = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next message, `None` where more bytes are needed.
    ///
    /// After [`Error::TooLong`] the stream is lost; any other error has skipped one frame.
    pub fn next_message(&mut self) -> Result<Option<Message>, Error> {
        if self.held_bytes() == 0 {
            // Each end has one of these for every worker, and hears little for days.
            *self = Self::default();
        }
        let rest = &self.bytes[self.start..];
        let Some((header, rest)) = rest.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let announced = u32::from_le_bytes(*header);
        let length = announced as usize;
        if length > MAX_FRAME_BYTES {
            return Err(Error::TooLong { announced });
        }
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        self.start += HEADER_BYTES + length;
        let mut from = Reader(body);
        let message = read(&mut from)?;
        from.end()?;
        Ok(Some(message))
    }

    /// Bytes that have not been given out.
    pub fn held_bytes(&self) -> usize {
        self.bytes.len() - self.start
    }
}

/// A byte for each member of an enum without fields, by its place in `ALL`, counted from 1.
macro_rules! coded {
    ($kind:ty, $field:literal, [$($member:ident),*]) => {
        impl $kind {
            const ALL: &'static [Self] = &[$(Self::$member),*];

            fn write(self, to: &mut Writer) {
                let place = Self::ALL.iter().position(|member| *member == self);
                to.u8(place.map_or(0, |place| place as u8 + 1));
            }

            fn read(from: &mut Reader<'_>) -> Result<Self, Error> {
                let place = usize::from(from.u8()?).wrapping_sub(1);
                Self::ALL.get(place).copied().ok_or(Error::Value { field: $field })
            }
        }
    };
}

coded!(OnOwnerExit, "on_owner_exit", [Kill, Ignore]);
coded!(OnLinkLoss, "on_link_loss", [Kill, Hold]);
coded!(Phase, "phase", [Waiting, Starting, Running, Ending, Dead]);
coded!(
    Stage,
    "stage",
    [
        Directory, Pipe, Fork, Cgroup, Chdir, Exec, Namespace, Limits, User
    ]
);
coded!(Proof, "proof", [Namespace, Cgroup, Tree]);

fn write(message: &Message, to: &mut Writer) {
    match message {
        Message::Launch(launch) => {
            to.u8(1);
            launch.write(to);
        }
        Message::Renew {
            node_deadline_ns,
            owner_deadline_ns,
        } => {
            to.u8(2);
            to.u64(*node_deadline_ns);
            to.u64(*owner_deadline_ns);
        }
        Message::Ties {
            owner,
            on_owner_exit,
            on_link_loss,
        } => {
            to.u8(3);
            to.option(*owner, |to, owner| owner.write(to));
            on_owner_exit.write(to);
            on_link_loss.write(to);
        }
        Message::Stop { cause, grace_ms } => {
            to.u8(4);
            cause.write(to);
            to.u64(*grace_ms);
        }
        Message::Signal { signo } => {
            to.u8(5);
            to.i32(*signo);
        }
        Message::Acknowledge => to.u8(6),
        Message::Look => to.u8(7),
        Message::Hello(hello) => {
            to.u8(65);
            hello.write(to);
        }
        Message::Started { pid } => {
            to.u8(66);
            to.u32(*pid);
        }
        Message::SpawnFailed(failure) => {
            to.u8(67);
            failure.write(to);
        }
        Message::Ending { cause } => {
            to.u8(68);
            cause.write(to);
        }
        Message::Dead(dead) => {
            to.u8(69);
            dead.write(to);
        }
        Message::Halted { halted } => {
            to.u8(70);
            to.u8((*halted).into());
        }
    }
}

fn read(from: &mut Reader<'_>) -> Result<Message, Error> {
    Ok(match from.u8()? {
        1 => Message::Launch(Box::new(Launch::read(from)?)),
        2 => Message::Renew {
            node_deadline_ns: from.u64()?,
            owner_deadline_ns: from.u64()?,
        },
        3 => Message::Ties {
            owner: from.option("owner", Identity::read)?,
            on_owner_exit: OnOwnerExit::read(from)?,
            on_link_loss: OnLinkLoss::read(from)?,
        },
        4 => Message::Stop {
            cause: Cause::read(from)?,
            grace_ms: from.u64()?,
        },
        5 => Message::Signal { signo: from.i32()? },
        6 => Message::Acknowledge,
        7 => Message::Look,
        65 => Message::Hello(Hello::read(from)?),
        66 => Message::Started { pid: from.u32()? },
        67 => Message::SpawnFailed(SpawnFailure::read(from)?),
        68 => Message::Ending {
            cause: Cause::read(from)?,
        },
        69 => Message::Dead(Box::new(Dead::read(from)?)),
        70 => Message::Halted {
            halted: from.flag("halted")?,
        },
        kind => return Err(Error::UnknownKind(kind)),
    })
}

impl Launch {
    fn write(&self, to: &mut Writer) {
        to.u16(self.protocol);
        to.bytes(self.worker.as_bytes());
        to.count(self.argv.len());
        for argument in &self.argv {
            to.bytes(argument);
        }
        to.count(self.env.len());
        for (name, value) in &self.env {
            to.bytes(name);
            to.bytes(value);
        }
        to.bytes(&self.cwd);
        to.bytes(&self.dir);
        self.walls.write(to);
        self.terms.write(to);
        self.input.write(to);
        self.logs.write(to);
        to.i32(self.stop_signal);
        to.option(self.owner, |to, owner| owner.write(to));
        self.on_owner_exit.write(to);
        self.on_link_loss.write(to);
        to.u64(self.kill_grace_ms);
        to.u64(self.node_deadline_ns);
        to.u64(self.owner_deadline_ns);
        to.option(self.seat, |to, seat| seat.write(to));
        to.u32(self.sockets);
        to.count(self.wait_for.len());
        for socket in &self.wait_for {
            to.u32(*socket);
        }
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            protocol: from.u16()?,
            worker: from.text("worker")?,
            argv: from.list(Reader::bytes)?,
            env: from.list(|from| Ok((from.bytes()?, from.bytes()?)))?,
            cwd: from.bytes()?,
            dir: from.bytes()?,
            walls: Walls::read(from)?,
            terms: Terms::read(from)?,
            input: Input::read(from)?,
            logs: Logs::read(from)?,
            stop_signal: from.i32()?,
            owner: from.option("owner", Identity::read)?,
            on_owner_exit: OnOwnerExit::read(from)?,
            on_link_loss: OnLinkLoss::read(from)?,
            kill_grace_ms: from.u64()?,
            node_deadline_ns: from.u64()?,
            owner_deadline_ns: from.u64()?,
            seat: from.option("seat", Seat::read)?,
            sockets: from.u32()?,
            wait_for: from.list(Reader::u32)?,
        })
    }
}

impl Walls {
    fn write(&self, to: &mut Writer) {
        to.u8(u8::from(self.namespace));
        to.u8(u8::from(self.user_namespace));
        to.u8(u8::from(self.private_proc));
        to.option(self.cgroup.as_deref(), Writer::bytes);
        to.u8(u8::from(self.cgroup_is_made));
        to.u8(u8::from(self.born_in_cgroup));
        to.count(self.limiting.len());
        for cgroup in &self.limiting {
            to.bytes(cgroup);
        }
        to.option(self.forked_from.as_deref(), Writer::bytes);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            namespace: from.flag("namespace")?,
            user_namespace: from.flag("user_namespace")?,
            private_proc: from.flag("private_proc")?,
            cgroup: from.option("cgroup", Reader::bytes)?,
            cgroup_is_made: from.flag("cgroup_is_made")?,
            born_in_cgroup: from.flag("born_in_cgroup")?,
            limiting: from.list(Reader::bytes)?,
            forked_from: from.option("forked_from", Reader::bytes)?,
        })
    }
}

impl Terms {
    fn write(&self, to: &mut Writer) {
        to.option(self.credentials.as_ref(), |to, who| who.write(to));
        to.option(self.umask, Writer::u32);
        to.option(self.nice, Writer::i32);
        to.count(self.limits.len());
        for limit in &self.limits {
            to.u8(limit.resource);
            to.u64(limit.soft);
            to.u64(limit.hard);
        }
        to.numbers(&self.cpus);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            credentials: from.option("credentials", Credentials::read)?,
            umask: from.option("umask", Reader::u32)?,
            nice: from.option("nice", Reader::i32)?,
            limits: from.list(|from| {
                Ok(Limit {
                    resource: from.u8()?,
                    soft: from.u64()?,
                    hard: from.u64()?,
                })
            })?,
            cpus: from.list(Reader::u32)?,
        })
    }
}

impl Credentials {
    fn write(&self, to: &mut Writer) {
        to.u32(self.uid);
        to.u32(self.gid);
        to.numbers(&self.groups);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            uid: from.u32()?,
            gid: from.u32()?,
            groups: from.list(Reader::u32)?,
        })
    }
}

impl Input {
    fn write(&self, to: &mut Writer) {
        to.bytes(&self.data);
        to.u8(u8::from(self.hold_open));
        to.u8(u8::from(self.pty));
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            data: from.bytes()?,
            hold_open: from.flag("hold_open")?,
            pty: from.flag("pty")?,
        })
    }
}

impl Logs {
    fn write(self, to: &mut Writer) {
        to.u64(self.limit_bytes);
        to.u64(self.max_age_ms);
        to.u32(self.files);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            limit_bytes: from.u64()?,
            max_age_ms: from.u64()?,
            files: from.u32()?,
        })
    }
}

impl Identity {
    fn write(self, to: &mut Writer) {
        to.u32(self.pid);
        to.u64(self.start_ticks);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            pid: from.u32()?,
            start_ticks: from.u64()?,
        })
    }
}

impl Hello {
    fn write(&self, to: &mut Writer) {
        to.u16(self.protocol);
        to.bytes(self.version.as_bytes());
        to.bytes(self.worker.as_bytes());
        to.u32(self.shim_pid);
        to.u32(self.worker_pid);
        to.u64(self.started_ns);
        self.phase.write(to);
        if self.protocol > BY_MESSAGE_ONLY {
            to.u64(self.page);
            to.option(self.seat, |to, seat| seat.write(to));
        }
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Error> {
        let mut hello = Self::read_plain(from)?;
        if hello.protocol > BY_MESSAGE_ONLY {
            hello.page = from.u64()?;
            hello.seat = from.option("seat", Seat::read)?;
        }
        Ok(hello)
    }

    /// What shims of every version say.
    fn read_plain(from: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            protocol: from.u16()?,
            version: from.text("version")?,
            worker: from.text("worker")?,
            shim_pid: from.u32()?,
            worker_pid: from.u32()?,
            started_ns: from.u64()?,
            phase: Phase::read(from)?,
            page: 0,
            seat: None,
        })
    }
}

impl Seat {
    fn write(self, to: &mut Writer) {
        to.u32(self.slot);
        to.u64(self.generation);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            slot: from.u32()?,
            generation: from.u64()?,
        })
    }
}

impl SpawnFailure {
    fn write(self, to: &mut Writer) {
        self.stage.write(to);
        to.i32(self.errno);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            stage: Stage::read(from)?,
            errno: from.i32()?,
        })
    }
}

impl Dead {
    fn write(&self, to: &mut Writer) {
        self.cause.write(to);
        to.option(self.exit_code, Writer::i32);
        to.option(self.signal, Writer::i32);
        to.u8(u8::from(self.core));
        to.option(self.spawn_failure, |to, failure| failure.write(to));
        to.u32(self.reaped);
        to.u32(self.survivors);
        to.u64(self.unix_ms);
        to.u64(self.max_rss_kib);
        to.u64(self.cpu_ms);
        to.u64(self.peak_memory_bytes);
        self.proof.write(to);
        to.u64(self.log_lost_bytes);
        to.bytes(&self.stderr_tail);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            cause: Cause::read(from)?,
            exit_code: from.option("exit_code", Reader::i32)?,
            signal: from.option("signal", Reader::i32)?,
            core: from.flag("core")?,
            spawn_failure: from.option("spawn_failure", SpawnFailure::read)?,
            reaped: from.u32()?,
            survivors: from.u32()?,
            unix_ms: from.u64()?,
            max_rss_kib: from.u64()?,
            cpu_ms: from.u64()?,
            peak_memory_bytes: from.u64()?,
            proof: Proof::read(from)?,
            log_lost_bytes: from.u64()?,
            stderr_tail: from.bytes()?,
        })
    }
}
