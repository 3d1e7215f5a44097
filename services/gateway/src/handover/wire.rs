//! Messages between two processes, each after its length, and the descriptors that go with them.

use std::{
    io::{self, IoSlice, IoSliceMut, Read as _, Write as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
};

use prost::Message;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// The longest message, in bytes; whoever says more is none of us.
pub(super) const LONGEST: usize = 4 << 20;

/// The most descriptors that go with one.
const DESCRIPTORS: usize = 64;

/// Sends a message, and descriptors with its first byte.
pub(super) fn send(
    link: &UnixStream,
    message: &impl Message,
    descriptors: &[&OwnedFd],
) -> io::Result<()> {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).map_err(|_| invalid("the message is too long"))?;
    let whole = [&length.to_be_bytes()[..], &message].concat();
    let descriptors: Vec<_> = descriptors.iter().map(|fd| fd.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(invalid("there are more sockets than can be handed over"));
    }
    let sent = sendmsg(
        link,
        &[IoSlice::new(&whole)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    let mut link = link;
    link.write_all(&whole[sent..])
}

/// Receives a message with what came with it.
pub(super) fn receive<M: Message + Default>(link: &UnixStream) -> io::Result<(M, Vec<OwnedFd>)> {
    let mut length = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        link,
        &mut [IoSliceMut::new(&mut length)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(invalid("more sockets came than there is room for"));
    }
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut link = link;
    link.read_exact(&mut length[received.bytes..])?;
    let length = u32::from_be_bytes(length) as usize;
    if length > LONGEST {
        return Err(invalid("the other side speaks something else"));
    }
    let mut message = vec![0; length];
    link.read_exact(&mut message)?;
    let message = M::decode(message.as_slice())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok((message, descriptors))
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use tether_proto::gateway::{HandoverAsk, HandoverOffer};

    use super::*;

    #[test]
    fn a_message_comes_with_its_descriptors_and_only_once() {
        let (here, there) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"the same").unwrap();
        let socket: OwnedFd = file.into();
        let offer = HandoverOffer {
            version: 1,
            addresses: vec!["a".to_owned()],
            ..HandoverOffer::default()
        };

        send(&here, &offer, &[&socket]).unwrap();
        send(&here, &offer, &[]).unwrap();

        let (told, mut descriptors): (HandoverOffer, _) = receive(&there).unwrap();
        assert_eq!((told, descriptors.len()), (offer, 1));
        let mut file = File::from(descriptors.remove(0));
        std::io::Seek::rewind(&mut file).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "the same");
        let (_, descriptors): (HandoverOffer, _) = receive(&there).unwrap();
        assert!(descriptors.is_empty());
    }

    #[test]
    fn one_of_another_version_is_understood_and_nonsense_is_not() {
        let (here, there) = UnixStream::pair().unwrap();
        let later = [&[8, 2][..], &[0x7a, 3, b'n', b'e', b'w']].concat();
        let length = u32::try_from(later.len()).unwrap().to_be_bytes();
        (&here).write_all(&length).unwrap();
        (&here).write_all(&later).unwrap();

        let (asked, _): (HandoverAsk, _) = receive(&there).unwrap();

        assert_eq!(asked.version, 2);
        (&here).write_all(b"GET / HTTP/1.1\r\n").unwrap();
        assert!(receive::<HandoverAsk>(&there).is_err());
        drop(here);
        assert!(receive::<HandoverAsk>(&there).is_err());
    }
}
