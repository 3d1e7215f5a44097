//! The registry of held sockets, on real ones.

use std::{
    net::{TcpListener, TcpStream},
    os::unix::net::UnixStream,
};

use tether_proto::pool::ListeningSocket;

use super::*;

fn id(slot: u32, incarnation: u64) -> WorkerId {
    format!("digits/{slot}.{incarnation}").parse().unwrap()
}

fn template(address: &str) -> Template {
    Template {
        sockets: vec![ListeningSocket {
            name: "http".into(),
            address: address.into(),
            on_demand: false,
        }],
        ..Template::default()
    }
}

fn wanted_at(id: &WorkerId, address: &str) -> io::Result<Vec<Wanted>> {
    wanted(id, &template(address), Path::new("/run/own"), "n1")
}

async fn hold(sockets: &Sockets, id: &WorkerId, address: &str) -> Open {
    let wanted = wanted_at(id, address).unwrap();
    sockets.hold(id, &wanted).await.unwrap().remove(0)
}

#[tokio::test]
async fn workers_whose_address_is_the_same_share_a_socket_and_the_others_have_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let (sockets, dir) = (Sockets::default(), dir.path().display());
    let inode = |open: &Open| rustix::fs::fstat(&open.socket).unwrap().st_ino;

    let shared = format!("unix:{dir}/all.sock");
    let (one, two) = (
        hold(&sockets, &id(0, 1), &shared).await,
        hold(&sockets, &id(1, 2), &shared).await,
    );
    assert_eq!(inode(&one), inode(&two));
    let own = format!("unix:{dir}/{{slot}}.sock");
    let (one, two) = (
        hold(&sockets, &id(0, 3), &own).await,
        hold(&sockets, &id(1, 4), &own).await,
    );
    assert_ne!(inode(&one), inode(&two));
    assert_eq!(two.address.to_string(), format!("unix:{dir}/1.sock"));
    // Again in the next incarnation.
    assert_eq!(inode(&hold(&sockets, &id(0, 5), &own).await), inode(&one));
}

#[tokio::test]
async fn a_socket_outlives_a_death_and_is_closed_once_nobody_comes_back_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.sock");
    let address = format!("unix:{}", path.display());
    let (sockets, pool) = (Sockets::default(), id(0, 1).pool);
    let linger = Some(Duration::from_secs(600));
    let calls = || UnixStream::connect(&path).is_ok();

    drop(hold(&sockets, &id(0, 1), &address).await);
    drop(hold(&sockets, &id(1, 2), &address).await);
    sockets.on_death(&pool, 0, linger);
    sockets.check(BootClock.now() + Duration::from_secs(900));
    assert!(calls(), "the other slot has it");
    sockets.on_death(&pool, 1, linger);
    sockets.check(BootClock.now() + Duration::from_secs(300));
    assert!(calls(), "its next worker may come");
    sockets.check(BootClock.now() + Duration::from_secs(900));
    assert!(!calls() && !path.exists());

    drop(hold(&sockets, &id(1, 3), &address).await);
    sockets.on_death(&pool, 1, None);
    assert!(!calls() && !path.exists());
}

#[tokio::test]
async fn a_slot_that_wants_another_address_lets_the_one_before_go() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| format!("unix:{}/{name}", dir.path().display());
    let sockets = Sockets::default();

    drop(hold(&sockets, &id(0, 1), &at("{incarnation}")).await);
    drop(hold(&sockets, &id(0, 2), &at("{incarnation}")).await);

    assert!(!dir.path().join("1").exists() && dir.path().join("2").exists());
}

#[tokio::test]
async fn an_address_in_use_is_waited_for_until_the_worker_that_has_it_is_taken_over() {
    let before = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = before.local_addr().unwrap().to_string();
    let sockets = Sockets::default();
    let (found, new) = (id(0, 1), id(1, 2));
    let kept = OwnedFd::from(before.try_clone().unwrap());
    let adopting = async {
        // What is waited for has begun, as it is polled first.
        sockets.adopt(&found, &wanted_at(&found, &address).unwrap(), vec![kept]);
    };

    let (open, ()) = tokio::join!(hold(&sockets, &new, &address), adopting);

    assert_eq!(open.address.to_string(), address);
    drop(before);
    sockets.on_death(&new.pool, new.slot, None);
    drop(open);
    assert!(
        TcpStream::connect(&address).is_ok(),
        "the one that was found has it"
    );
}

#[tokio::test]
async fn an_inherited_socket_is_asked_for_by_its_name_alone() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let sockets = Sockets {
        inherited: BTreeMap::from([("http".to_owned(), listener.into())]),
        ..Sockets::default()
    };

    assert_eq!(
        hold(&sockets, &id(0, 1), "").await.address.to_string(),
        address
    );
    let mut other = wanted_at(&id(1, 2), "").unwrap();
    other[0].name = "grpc".into();
    let refused = sockets.hold(&id(1, 2), &other).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    assert!(
        refused
            .to_string()
            .contains("no socket of that name (http)"),
        "{refused}"
    );
}

#[test]
fn an_address_that_is_none_or_comes_of_itself_is_refused_for_good() {
    for wrong in ["8080", "unix:/run/{port}.sock", "unix:w.sock", "{address}"] {
        let refused = wanted_at(&id(0, 1), wrong).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied, "{refused}");
    }
    let wanted = wanted_at(&id(3, 7), "127.0.0.1:900{slot}").unwrap();
    assert_eq!(wanted[0].listen, "127.0.0.1:9003");
}
