//! The connection to an agent: frames in, frames out, and never a wait for either.

use alloc::vec;
use alloc::vec::Vec;
use core::mem::MaybeUninit;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{Errno, IoSlice};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, send, sendmsg};
use tether_shim_protocol::zygote::FDS_MAX;
use tether_shim_protocol::{Decoder, Error, Message, encode};

/// One agent's connection.
#[derive(Debug)]
pub(crate) struct Link {
    stream: OwnedFd,
    decoder: Decoder,
    /// What the socket would not take yet. A shim says a handful of small things in its life,
    /// so this stays small even when the agent never reads.
    unsent: Vec<u8>,
}

impl Link {
    /// One that blocks so far.
    pub(crate) fn new(stream: OwnedFd) -> Result<Self, Errno> {
        rustix::io::ioctl_fionbio(&stream, true)?;
        Ok(Self::unblocked(stream))
    }

    /// One that never blocks, as it was accepted.
    pub(crate) fn unblocked(stream: OwnedFd) -> Self {
        Self {
            stream,
            decoder: Decoder::default(),
            unsent: Vec::new(),
        }
    }

    /// Says `message`, as far as the socket takes it now. A broken connection is noticed by the
    /// next read, which also gets what the agent said before it broke.
    pub(crate) fn send(&mut self, message: &Message) {
        self.unsent.extend(encode(message));
        self.flush();
    }

    /// Says `message` first of all on a new connection, and sends descriptors beside it.
    pub(crate) fn send_with(&mut self, message: &Message, descriptors: &[BorrowedFd<'_>]) {
        let frame = encode(message);
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fits = control.push(SendAncillaryMessage::ScmRights(descriptors));
        let frames = [IoSlice::new(&frame)];
        let sent = sendmsg(&self.stream, &frames, &mut control, SendFlags::NOSIGNAL);
        // Nothing was said on it yet, so it takes the whole of it or is broken.
        if !fits || sent.is_err() {
            self.send(message);
        }
    }

    /// Sends what is still unsent.
    pub(crate) fn flush(&mut self) {
        while !self.unsent.is_empty() {
            match send(&self.stream, &self.unsent, SendFlags::NOSIGNAL) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
        self.unsent = Vec::new();
    }

    /// Whether the other end is still open.
    pub(crate) fn is_whole(&self) -> bool {
        let mut fds = [PollFd::new(&self.stream, PollFlags::empty())];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // Where it cannot be asked, its first read will tell.
        poll(&mut fds, Some(&now)).is_err() || fds[0].revents().is_empty()
    }

    /// Whether there is something to send once the socket takes it.
    pub(crate) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Reads once, so that an agent which floods its link cannot keep the shim from its
    /// deadlines, and at most so many bytes. Returns the messages, and whether the connection is
    /// still good.
    pub(crate) fn receive<const BYTES: usize>(&mut self) -> (Vec<Message>, bool) {
        let mut space = [MaybeUninit::<u8>::uninit(); BYTES];
        let mut messages = Vec::new();
        match rustix::io::read(&self.stream, &mut space[..]) {
            Ok(([], _)) => return (messages, false),
            Ok((bytes, _)) => self.decoder.push(bytes),
            Err(errno) => {
                let later = matches!(errno, Errno::AGAIN | Errno::INTR | Errno::NOMEM);
                return (messages, later);
            }
        }
        loop {
            match self.decoder.next_message() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => return (messages, true),
                // A later agent may say things this version has no word for, and they are none
                // that this version could be relied upon to do.
                Err(Error::UnknownKind(_)) => {}
                Err(_) => return (messages, false),
            }
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
