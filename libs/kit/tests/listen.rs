//! Listening on what is free, stale, taken, open to the world, or not ours.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use tether_kit::listen::{Error, bind};
use tether_types::Address;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

fn unix(path: &Path) -> Address {
    Address::Unix(path.to_owned())
}

#[tokio::test]
async fn a_socket_is_private_from_the_start_and_gone_at_the_end() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("run/t.sock");

    let listener = bind(&unix(&path), false).await.unwrap();

    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(path.parent().unwrap()), mode(&path)), (0o700, 0o600));
    assert_eq!(listener.local_address().unwrap(), unix(&path));
    UnixStream::connect(&path).await.unwrap();
    drop(listener.incoming(CancellationToken::new()));
    assert!(!path.exists());
}

#[tokio::test]
async fn a_listener_that_never_served_takes_its_socket_along() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("t.sock");

    let listener = bind(&unix(&path), false).await.unwrap();
    assert!(path.exists());
    drop(listener);

    assert!(!path.exists());
}

#[tokio::test]
async fn a_dead_process_gives_its_socket_up_and_a_live_one_does_not() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("t.sock");
    // A std listener leaves its file behind, as a killed process does.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());

    let listener = bind(&unix(&path), false).await.unwrap();
    let taken = bind(&unix(&path), false).await.unwrap_err();

    assert!(matches!(taken, Error::InUse(_)), "{taken:?}");
    assert!(
        taken
            .to_string()
            .contains("already in use by a running process")
    );
    UnixStream::connect(&path).await.unwrap();
    drop(listener);
}

#[tokio::test]
async fn a_file_in_the_way_is_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("precious.txt");
    fs::write(&path, "data").unwrap();

    let error = bind(&unix(&path), false).await.unwrap_err();

    assert!(matches!(error, Error::NotASocket(_)), "{error:?}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "data");
}

#[tokio::test]
async fn plain_text_for_the_world_wants_a_word() {
    let world: Address = "0.0.0.0:0".parse().unwrap();

    let error = bind(&world, false).await.unwrap_err();

    assert!(
        error.to_string().contains("set `insecure = true`"),
        "{error}"
    );
    bind(&world, true).await.unwrap();
}

#[tokio::test]
async fn a_taken_port_or_a_strange_address_is_named() {
    let first = bind(&"127.0.0.1:0".parse().unwrap(), false).await.unwrap();
    let address = first.local_address().unwrap();

    let error = bind(&address, false).await.unwrap_err();
    assert!(matches!(error, Error::InUse(_)), "{error:?}");
    assert!(error.to_string().contains(&address.to_string()), "{error}");

    let elsewhere = "192.0.2.1:1".parse().unwrap();
    let error = bind(&elsewhere, true).await.unwrap_err();
    assert!(error.to_string().contains("192.0.2.1:1"), "{error}");

    let forbidden = bind(&unix(Path::new("/sys/t.sock")), false)
        .await
        .unwrap_err();
    assert!(
        matches!(forbidden, Error::Permission { .. }),
        "{forbidden:?}"
    );
}
