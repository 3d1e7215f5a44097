//! TLS on both sides: who is let in, who is called, and what is said where it cannot be.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use tether_etcd_cluster::Certificates;
use tether_gateway::Config;
use tether_kit::tls::{Acceptor, ClientFiles, Connector, ServerFiles};
use tokio::{io::AsyncReadExt as _, net::TcpStream};
use tonic::{Code, transport::Endpoint};

use crate::{
    client::{Client, soon},
    conformance::secure,
    house::{DIGITS, House, UNARY, fact, reason},
    worker::Worker,
};

/// Certificates of an authority for servers and clients, in a folder that goes with this.
pub(crate) struct Papers {
    certificates: Certificates,
    folder: tempfile::TempDir,
}

impl Papers {
    pub(crate) fn make() -> Self {
        let folder = tempfile::tempdir().expect("there is a place for files");
        let certificates = issue(folder.path());
        Self {
            certificates,
            folder,
        }
    }

    pub(crate) fn folder(&self) -> &str {
        self.folder.path().to_str().expect("it is a text")
    }

    fn server_files(&self) -> ServerFiles {
        ServerFiles {
            certificate: self.certificates.file("server.pem"),
            key: self.certificates.file("server.key"),
            client_ca: Some(self.certificates.file("ca.pem")),
        }
    }

    fn client_files(&self) -> ClientFiles {
        ClientFiles {
            ca: self.certificates.file("ca.pem"),
            certificate: Some(self.certificates.file("client.pem")),
            key: Some(self.certificates.file("client.key")),
        }
    }

    /// What a server shows that lets in who has a certificate.
    pub(crate) fn acceptor(&self) -> Acceptor {
        Acceptor::new(self.server_files(), "listen.tls").expect("the files are whole")
    }

    pub(crate) fn connector(&self) -> Connector {
        Connector::new(self.client_files(), "gateway.worker_tls").expect("the files are whole")
    }
}

fn issue(folder: &Path) -> Certificates {
    Certificates::make(folder, &[IpAddr::V4(Ipv4Addr::LOCALHOST)])
}

/// A gateway that speaks TLS to clients and workers who have papers.
pub(crate) async fn secure_house(papers: &Papers, config: Config) -> House {
    let config = Config {
        worker_tls: Some(papers.client_files()),
        ..config
    };
    House::with_tls(config, papers.acceptor()).await
}

/// A client with TLS, or why there is none. Whether it is let in shows with its first call: in TLS 1.3 a server hears of
/// a client's certificate last.
async fn client(house: &House, connector: Connector) -> Result<Client, tonic::transport::Error> {
    let endpoint = Endpoint::from_static("http://localhost");
    let connecting = secure(endpoint, &house.secure, connector);
    soon("connecting", connecting).await.map(Client::over)
}

async fn serves(house: &House, connector: Connector) -> bool {
    match client(house, connector).await {
        Ok(client) => client.try_unary(UNARY, DIGITS, "").await.is_ok(),
        Err(_) => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_clients_with_a_certificate_are_let_in_where_that_is_asked_for() {
    let papers = Papers::make();
    let house = secure_house(&papers, Config::default()).await;
    let _worker = house.worker(0).await;
    let without = ClientFiles {
        certificate: None,
        key: None,
        ..papers.client_files()
    };
    let others = Papers::make();
    let strange = ClientFiles {
        ca: papers.client_files().ca,
        ..others.client_files()
    };

    assert!(serves(&house, papers.connector()).await);
    for files in [without, strange] {
        let connector = Connector::new(files, "t").unwrap();
        assert!(!serves(&house, connector).await);
    }
    // Nor does a client take a server for the gateway that it does not trust.
    let lost = client(&house, others.connector()).await.unwrap_err();
    let why = std::error::Error::source(&lost).unwrap().to_string();
    assert!(why.contains("invalid peer certificate"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_speaks_plain_text_where_tls_is_spoken_is_not_answered_and_others_are() {
    let papers = Papers::make();
    let house = secure_house(&papers, Config::default()).await;
    let _worker = house.worker(0).await;

    let mut plain = TcpStream::connect(&house.secure).await.unwrap();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut plain, preface)
        .await
        .unwrap();
    let mut answer = Vec::new();
    // With what it said unread, the connection may as well be reset.
    let end = soon("the end", plain.read_to_end(&mut answer)).await;
    let reset = |error: io::Error| error.kind() == io::ErrorKind::ConnectionReset;

    assert!(end.is_ok() || end.is_err_and(reset));
    assert!(answer.is_empty());
    assert!(serves(&house, papers.connector()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_change_are_taken_and_calls_of_before_go_on() {
    let papers = Papers::make();
    let house = secure_house(&papers, Config::default()).await;
    let _worker = house.worker(0).await;
    let before = client(&house, papers.connector()).await.unwrap();
    before.unary(UNARY, DIGITS, "").await.unwrap();

    issue(papers.folder.path());

    let new = async || serves(&house, papers.connector()).await;
    house.until("the new ones are shown", new).await;
    before.unary(UNARY, DIGITS, "").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_not_who_it_says_gets_no_call() {
    let papers = Papers::make();
    let house = secure_house(&papers, Config::default()).await;
    let others = Papers::make();
    let impostor = crate::conformance::secure_worker(others.acceptor()).await;
    let plain = Worker::start().await;
    let client = house.client().await;
    for (slot, address) in (0..).zip([&impostor.address, &plain.address]) {
        house.discovery.tell(tether_proto::common::Endpoint {
            worker: Some(crate::discovery::worker("digits", slot, 1)),
            address: address.clone(),
            protocol: "grpcs".to_owned(),
            ..Default::default()
        });
    }

    for (slot, said) in [
        ("digits/0", "invalid peer certificate"),
        ("digits/1", "InvalidContentType"),
    ] {
        let pin = [("tether-worker", slot)];
        let tried = async || {
            let status = client.unary(UNARY, &pin, "").await.unwrap_err();
            fact(&status, "attempts").unwrap() == "1"
        };
        house.until("it was tried", tried).await;
        let status = client.unary(UNARY, &pin, "").await.unwrap_err();
        assert_eq!(
            (status.code(), reason(&status)),
            (Code::Unavailable, "NO_WORKER_READY")
        );
        assert_eq!(fact(&status, "outcome").unwrap(), "never_sent");
        assert!(status.message().contains(said), "{status}");
    }
    assert_eq!(plain.calls(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_cannot_be_used_are_named_with_their_setting() {
    let papers = Papers::make();
    let mut files = papers.client_files();
    files.ca = papers.folder.path().join("none.pem");
    let config = Config {
        worker_tls: Some(files),
        ..Config::default()
    };
    let mut house = House::with(config).await;

    let ended = soon("its end", &mut house.serving).await.unwrap();
    let why = ended.unwrap_err().to_string();
    assert!(why.starts_with("`gateway.worker_tls.ca`: `/"), "{why}");
    assert!(
        why.contains("none.pem` cannot be read: No such file"),
        "{why}"
    );
}
