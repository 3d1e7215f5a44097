//! A port of which nobody else makes use.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    process,
    sync::atomic::{AtomicU16, Ordering},
};

/// Below those that the system gives to whoever asks for any, so that nobody takes one between here and its use.
const FIRST: u16 = 10_000;
const COUNT: u16 = 20_000;

/// A loopback address with a port that is free over UDP and TCP.
pub(crate) fn place() -> SocketAddr {
    static TRIED: AtomicU16 = AtomicU16::new(0);
    loop {
        let tried = TRIED.fetch_add(1, Ordering::Relaxed);
        // Apart from those of other tests, which are processes of their own.
        let start = u16::try_from(process::id() % 1_000).unwrap() * 20;
        let port = FIRST + (start + tried) % COUNT;
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if UdpSocket::bind(at).is_ok() && TcpListener::bind(at).is_ok() {
            return at;
        }
    }
}
