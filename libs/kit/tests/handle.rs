//! Listening sockets that go on elsewhere.

use std::{fs, os::fd::OwnedFd};

use tether_kit::listen::{Handle, Listener, bind};
use tokio::{io::AsyncWriteExt as _, net::UnixStream};

fn sent(handle: &Handle) -> OwnedFd {
    let socket = handle.socket().try_clone_to_owned();
    socket.expect("there are descriptors left")
}

#[tokio::test]
async fn a_socket_goes_on_with_who_waited_and_keeps_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.sock");
    let address = format!("unix:{}", path.display()).parse().unwrap();
    let before = bind(&address, false).await.unwrap();
    let handle = before.handle().unwrap();

    let after = Listener::from_socket(sent(&handle)).unwrap();
    let mut client = UnixStream::connect(&path).await.unwrap();
    handle.hand_over();
    drop(before);
    assert!(path.exists());
    let _served = after.next().await;
    client.write_all(b"a").await.unwrap();
    UnixStream::connect(&path).await.unwrap();

    assert_eq!(after.local_address().unwrap(), address);
    drop(after);
    assert!(!path.exists(), "the last one removes it");
}

#[tokio::test]
async fn one_that_was_not_handed_over_removes_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.sock");
    let address = format!("unix:{}", path.display()).parse().unwrap();
    let before = bind(&address, false).await.unwrap();
    drop(before.handle().unwrap());
    drop(before);
    assert!(!path.exists());
}

#[tokio::test]
async fn what_does_not_listen_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = fs::File::create(directory.path().join("a")).unwrap();
    assert!(Listener::from_socket(file.into()).is_err());
    let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let refused = Listener::from_socket(one.into()).unwrap_err();
    assert!(refused.to_string().contains("no socket that listens"));
}
