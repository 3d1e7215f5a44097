//! What is on its way to whom: calls are seen by their numbers in packets of the loopback interface.
//!
//! The dead write nothing down, and a proxy does not say where it sends what. That a call was sent to a worker after
//! that one's death is seen here, for all proxies alike.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::Context as _;
use rustix::{
    io::Errno,
    net::{
        AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with,
        sockopt::{self, Timeout},
    },
    process::setpriority_process,
    thread::gettid,
};
use tether_tests::clerk::{now, order::Order};

/// A call on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) id: u64,
    /// To where.
    pub(super) port: u16,
    pub(super) at: u64,
}

/// IPv4, as the kernel has it: in the network's order.
const IPV4: u32 = 0x0800_u16.to_be() as u32;

/// As much of a packet as is looked at. Those with calls are shorter, but where many are sent at once.
const PACKET: usize = 16 << 10;

/// A packet without a call in its beginning has none: it is somebody else's, and may be one of many that are large.
const BEGINNING: usize = 2 << 10;

/// Packets that wait to be looked at, in bytes.
const BUFFER: usize = 8 << 20;

/// So often it is seen that nobody wants to know any more.
const LOOK: Duration = Duration::from_millis(50);

/// A look at all that passes; ends with this.
#[derive(Debug)]
pub(super) struct Tap {
    seen: Arc<Mutex<Vec<Sent>>>,
    over: Arc<AtomicBool>,
    looking: Option<JoinHandle<()>>,
}

impl Tap {
    /// Begins to look.
    ///
    /// # Errors
    /// Without the right to see packets.
    pub(super) fn open() -> anyhow::Result<Self> {
        let socket = packets().context("seeing packets takes CAP_NET_RAW")?;
        let (seen, over) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let (write, stop) = (Arc::clone(&seen), Arc::clone(&over));
        let looking = std::thread::spawn(move || look(&socket, &write, &stop));
        Ok(Self {
            seen,
            over,
            looking: Some(looking),
        })
    }

    /// All that was seen so far.
    pub(super) fn seen(&self) -> Vec<Sent> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.clone()
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(looking) = self.looking.take() {
            let _ = looking.join();
        }
    }
}

fn packets() -> io::Result<OwnedFd> {
    let protocol = IPV4.try_into().ok().map(Protocol::from_raw);
    let (family, kind) = (AddressFamily::PACKET, SocketType::DGRAM);
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, protocol)?;
    sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(LOOK))?;
    sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER)?;
    Ok(socket)
}

fn look(socket: &OwnedFd, seen: &Mutex<Vec<Sent>>, over: &AtomicBool) {
    // A packet is of the time at which this thread comes to see it: before most others that want to run.
    let _ = setpriority_process(Some(gettid()), -10);
    let mut packet = vec![0; PACKET];
    while !over.load(Ordering::Relaxed) {
        match recv(socket, &mut packet[..], RecvFlags::empty()) {
            Ok((length, _)) => {
                let at = now();
                let found = calls(&packet[..length.min(PACKET)], at);
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.extend(found);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

/// The calls in a packet of TCP over IPv4.
fn calls(packet: &[u8], at: u64) -> Vec<Sent> {
    let mut found = Vec::new();
    let Some((port, mut rest)) = payload(packet) else {
        return found;
    };
    if Order::next(&rest[..rest.len().min(BEGINNING)]).is_none() {
        return found;
    }
    while let Some((order, end)) = Order::next(rest) {
        found.push(Sent {
            id: order.id,
            port,
            at,
        });
        rest = &rest[end..];
    }
    found
}

/// To which port it goes, and what is in it.
fn payload(packet: &[u8]) -> Option<(u16, &[u8])> {
    const TCP: u8 = 6;
    let first = *packet.first()?;
    (first >> 4 == 4 && *packet.get(9)? == TCP).then_some(())?;
    let segment = packet.get(usize::from(first & 0x0f) * 4..)?;
    let port = u16::from_be_bytes(*segment.get(2..)?.first_chunk()?);
    let offset = usize::from(*segment.get(12)? >> 4) * 4;
    Some((port, segment.get(offset..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(port: u16, data: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 44];
        packet[0] = 0x46;
        packet[9] = 6;
        packet[26..28].copy_from_slice(&port.to_be_bytes());
        packet[36] = 5 << 4;
        packet.extend_from_slice(data);
        packet
    }

    #[test]
    fn every_call_of_a_packet_is_seen_with_where_it_goes() {
        let call = |id| {
            let work = Duration::ZERO;
            Order { id, work }.framed()
        };
        let two = packet(4711, &[call(1), call(2)].concat());

        let seen: Vec<_> = calls(&two, 9)
            .iter()
            .map(|sent| (sent.id, sent.port))
            .collect();

        assert_eq!(seen, [(1, 4711), (2, 4711)]);
        assert_eq!(calls(&packet(4711, b"else"), 9), []);
        let late = [&[0; BEGINNING], &call(1)[..]].concat();
        assert_eq!(calls(&packet(4711, &late), 9), [], "it is not ours");
        assert_eq!(calls(&two[..30], 9), []);
    }
}
