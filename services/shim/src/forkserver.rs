//! What a shim says to a fork server, and what it hears: one packet there, a few short ones back.
//!
//! The end of the connection is the worker's end, by the kernel's own hand, and so would be a second word on
//! it: nothing more is ever said.

use alloc::vec::Vec;
use core::mem::MaybeUninit;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg,
    sendmsg, socket_with, sockopt,
};
use tether_shim_protocol::Launch;
use tether_shim_protocol::zygote::FDS_MAX;

/// The longest packet that a fork server takes.
const PACKET_BYTES_MAX: usize = 1 << 20;

/// The longest answer: one that tells why not.
const ANSWER_BYTES_MAX: usize = 4096;

/// What a fork server answers.
#[derive(Debug)]
pub(crate) enum Answer {
    /// This is the worker, about to run its first line.
    Worker(OwnedFd),
    /// There is none, for this reason.
    Refused(Errno, Vec<u8>),
    /// It ended.
    Ended(Told),
    /// Nothing more will be said.
    Gone,
}

/// How a worker ended, as its parent tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) status: i32,
    pub(crate) max_rss_kib: u64,
    pub(crate) cpu_ms: u64,
}

/// Asks the fork server at `server` for a worker in these cgroups with these descriptors, standard streams
/// first.
pub(crate) fn ask(
    server: &[u8],
    launch: &Launch,
    cgroups: &[&[u8]],
    descriptors: &[BorrowedFd<'_>],
) -> Result<OwnedFd, Errno> {
    let packet = packet(launch, cgroups).ok_or(Errno::INVAL)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    // As much of it as the system allows; a longer packet is refused as such.
    let _ = sockopt::set_socket_send_buffer_size(&socket, PACKET_BYTES_MAX);
    // Whatever is wrong with it, the next one may be there a moment later.
    connect(&socket, &SocketAddrUnix::new(server)?).map_err(|_| Errno::CONNREFUSED)?;

    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::TOOBIG);
    }
    let all = [IoSlice::new(&packet)];
    sendmsg(&socket, &all, &mut control, SendFlags::NOSIGNAL)?;
    Ok(socket)
}

/// The one packet; nothing where a text has a NUL byte, which no program could be given either.
fn packet(launch: &Launch, cgroups: &[&[u8]]) -> Option<Vec<u8>> {
    let mut packet = Vec::new();
    let mut field = |kind: u8, parts: &[&[u8]]| {
        packet.push(kind);
        for part in parts {
            packet.extend(*part);
        }
        packet.push(0);
        !parts.iter().any(|part| part.contains(&0))
    };
    let mut good = field(b'd', &[&launch.cwd]);
    for argument in &launch.argv {
        good &= field(b'a', &[argument]);
    }
    for (name, value) in &launch.env {
        good &= field(b'e', &[name, b"=", value]);
    }
    for cgroup in cgroups {
        good &= field(b'g', &[cgroup]);
    }
    good.then_some(packet)
}

/// The next answer; none where it has not come yet.
pub(crate) fn hear(connection: impl AsFd) -> Option<Answer> {
    let mut bytes = [0; ANSWER_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        connection,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    );
    let count = match received {
        Ok(message) => message.bytes,
        Err(Errno::AGAIN | Errno::INTR | Errno::NOMEM | Errno::NOBUFS) => return None,
        Err(_) => 0,
    };
    let mut descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let worker = descriptors.next().and_then(|mut some| some.next());
    Some(read(&bytes[..count], worker))
}

/// What an answer means. One that means nothing is of a fork server of another version, and as good as its
/// end.
fn read(answer: &[u8], worker: Option<OwnedFd>) -> Answer {
    let text = str::from_utf8(answer.get(1..).unwrap_or_default()).unwrap_or_default();
    match (answer.first(), worker) {
        (Some(b'+'), Some(worker)) => Answer::Worker(worker),
        (Some(b'-'), _) => {
            let (number, why) = text.split_once(' ').unwrap_or((text, ""));
            let errno = Errno::from_raw_os_error(number.parse().unwrap_or(libc::EINVAL));
            Answer::Refused(errno, why.as_bytes().to_vec())
        }
        (Some(b'x'), _) => told(text).map_or(Answer::Gone, Answer::Ended),
        _ => Answer::Gone,
    }
}

fn told(text: &str) -> Option<Told> {
    let mut numbers = text.split(' ');
    Some(Told {
        status: numbers.next()?.parse().ok()?,
        max_rss_kib: numbers.next()?.parse().ok()?,
        cpu_ms: numbers.next()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_means_what_the_fork_server_says_and_anything_else_its_end() {
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());

        assert!(matches!(read(b"+", Some(null())), Answer::Worker(_)));
        assert!(matches!(read(b"+", None), Answer::Gone));
        assert!(
            matches!(read(b"-2 no such file", None), Answer::Refused(Errno::NOENT, why) if why == b"no such file")
        );
        let expected = Told {
            status: 256,
            max_rss_kib: 70_000,
            cpu_ms: 12,
        };
        assert!(matches!(read(b"x256 70000 12", None), Answer::Ended(told) if told == expected));
        for other in [&b"x256"[..], b"", b"hello"] {
            assert!(matches!(read(other, None), Answer::Gone));
        }
    }
}
