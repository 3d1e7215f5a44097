//! The lock that a worker written in Rust holds for as long as it lives.

use std::{
    env,
    io::IoSliceMut,
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixDatagram,
    },
    process::Command,
    sync::mpsc,
    thread,
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tether_sys::{Bell, Hold, wait_any};
use tether_tests::DEADLINE;

fn descriptor_from(notify: &UnixDatagram) -> Option<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut word = [0; 64];
    let parts = &mut [IoSliceMut::new(&mut word)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(notify.as_fd(), parts, &mut control, flags).ok()?;
    assert_eq!(&word[..got.bytes], b"TETHER_HOLD=1");
    control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    })
}

#[test]
fn a_clerk_lets_go_of_its_lock_by_its_death_alone() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("notify");
    let notify = UnixDatagram::bind(&at).unwrap();
    notify.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut clerk = Command::new(env!("CARGO_BIN_EXE_clerk"))
        .args(["--listen", "127.0.0.1:0", "--slot", "0", "--hold", "--book"])
        .arg(dir.path().join("book"))
        .env("NOTIFY_SOCKET", &at)
        .spawn()
        .unwrap();
    let hold = Hold::of(descriptor_from(&notify).unwrap()).unwrap();
    assert!(!hold.is_let_go());

    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        while !hold.is_let_go() {
            wait_any([&hold], &Bell::default(), 0).unwrap();
        }
        tell.send(())
    });
    assert_eq!(told.try_recv(), Err(mpsc::TryRecvError::Empty));
    clerk.kill().unwrap();

    // Before anybody has reaped it.
    assert_eq!(told.recv_timeout(DEADLINE), Ok(()));
    clerk.wait().unwrap();
}
