//! What there is with a bucket alone, asked of a real server.

use std::time::{Duration, Instant};

use object_store::aws::AmazonS3Builder;

use super::*;
use crate::objects::upload::piece;

/// A call of a worker waits for so long.
const CALL: Duration = Duration::from_secs(10);

/// As somebody whose environment has these keys.
fn open_with(key: &str, secret: &str, config: &Config, store: &str) -> Objects {
    let environment = AmazonS3Builder::new()
        .with_access_key_id(key)
        .with_secret_access_key(secret);
    Objects::open_as(environment, config, store).unwrap()
}

fn at(endpoint: &str) -> Config {
    Config {
        s3_endpoint: Some(endpoint.to_owned()),
        s3_region: Some(REGION.to_owned()),
        ..Config::default()
    }
}

pub(super) fn open(server: &Server, config: Config, store: &str) -> Objects {
    let config = Config {
        keep: config.keep,
        ..at(&server.endpoint())
    };
    open_with(&server.key, &server.secret, &config, store)
}

/// More than two pieces of an upload.
fn large() -> Vec<u8> {
    let bytes = (0..20_u32 << 18).flat_map(|word| word.wrapping_mul(0x9E37_79B9).to_le_bytes());
    bytes.collect()
}

/// What every kind of call says, before a worker stops waiting.
async fn troubles(objects: &Objects) -> [String; 4] {
    let name = name("job", 1, 1, b"s");
    let uri = objects.uri(&name);
    let all = futures::future::join4(
        async { objects.has(&name, 1).await.map(drop) },
        async { objects.load(&uri).await.map(drop) },
        async { objects.jobs().await.map(drop) },
        objects.remove(&name),
    );
    let (has, load, jobs, remove) = tokio::time::timeout(CALL, all).await.unwrap();
    [has, load, jobs, remove].map(|told| told.unwrap_err().to_string())
}

#[tokio::test]
async fn what_is_large_goes_in_pieces_and_is_the_same_when_it_comes_back() {
    let Some(mut server) = Server::start().await else {
        return;
    };
    let objects = open(&server, Config::default(), &format!("s3://{BUCKET}"));
    let bytes = large();

    let saved = save(&objects, "job", 1, 1, &bytes).await;

    assert!(load(&objects, &saved).await.unwrap() == bytes, "C2");
    assert!(objects.has(&saved, bytes.len() as u64).await.unwrap());
    let seen = server.seen().await;
    let path = format!("/{BUCKET}/{}", saved.path());
    for part in 1..=3 {
        let part = format!("PUT {path}?partNumber={part}&");
        assert!(
            seen.asked.iter().any(|asked| asked.starts_with(&part)),
            "{part}: {seen:?}"
        );
    }
    assert_eq!(seen.unfinished, 0);
}

#[tokio::test]
async fn of_an_upload_that_is_broken_off_nothing_is_left() {
    let Some(mut server) = Server::start().await else {
        return;
    };
    let objects = open(&server, Config::default(), &format!("s3://{BUCKET}/tether"));
    let bytes = large();
    let begin = async |seq: u64, sha256: Sha256| {
        let name = name("job", 1, seq, &bytes);
        let mut upload = objects.save(&name, sha256, bytes.len() as u64).await;
        upload
            .write(Bytes::copy_from_slice(&bytes[..17 << 20]))
            .await
            .unwrap();
        upload
    };

    let mut ended = begin(1, sha(&bytes)).await;
    assert_eq!(server.seen().await.unfinished, 1);
    ended.abort().await;
    assert_eq!(server.seen().await.unfinished, 0);
    let short = begin(2, sha(&bytes)).await.finish().await;
    assert!(matches!(short, Err(Error::Torn(_))), "{short:?}");
    assert_eq!(server.seen().await.unfinished, 0);
    let mut other = begin(4, sha(b"other")).await;
    other
        .write(Bytes::copy_from_slice(&bytes[17 << 20..]))
        .await
        .unwrap();
    let other = other.finish().await;
    assert!(matches!(other, Err(Error::Torn(_))), "{other:?}");
    assert_eq!(server.seen().await.unfinished, 0);

    assert_eq!(objects.jobs().await.unwrap(), BTreeMap::new(), "C2");
}

#[tokio::test]
async fn a_bucket_that_cannot_be_used_says_why_and_what_to_do() {
    let Some(server) = Server::start().await else {
        return;
    };
    let there = at(&server.endpoint());
    let ours = format!("s3://{BUCKET}/tether");
    let (key, secret) = (&*server.key, &*server.secret);
    let away = at("http://127.0.0.1:9");
    let cases = [
        (
            open_with(key, "another", &there, &ours),
            "SignatureDoesNotMatch",
            "AWS_SECRET_ACCESS_KEY",
        ),
        (
            open_with("AKIANOBODY", secret, &there, &ours),
            "InvalidAccessKeyId",
            "AWS_ACCESS_KEY_ID",
        ),
        (
            open_with(key, secret, &there, "s3://gone/tether"),
            "NoSuchBucket",
            "make that bucket",
        ),
        (
            open_with(key, secret, &away, &ours),
            "refused",
            "s3_endpoint",
        ),
    ];
    for (objects, cause, fix) in cases {
        let told = troubles(&objects).await;
        for text in told {
            for part in [&*objects.address.store, cause, fix] {
                assert!(text.contains(part), "{part}: {text}");
            }
        }
    }
}

#[tokio::test]
async fn bytes_that_cannot_be_written_say_why_too() {
    let Some(server) = Server::start().await else {
        return;
    };
    let wrong = open_with(
        &server.key,
        "another",
        &at(&server.endpoint()),
        &format!("s3://{BUCKET}/tether"),
    );
    for bytes in [b"small".to_vec(), large()] {
        let name = name("job", 1, 1, &bytes);
        let refused = try_save(&wrong, &name, &bytes).await.unwrap_err();
        assert!(
            refused.to_string().contains("SignatureDoesNotMatch"),
            "{refused}"
        );
    }
}

#[tokio::test]
async fn a_server_that_has_no_time_is_asked_again() {
    let Some(mut server) = Server::start().await else {
        return;
    };
    let objects = open(&server, Config::default(), &format!("s3://{BUCKET}/tether"));
    let bytes = large();
    let whole = name("job", 1, 1, &bytes);

    server.be_busy(3).await;
    assert!(!objects.has(&whole, 1).await.unwrap());
    let mut upload = objects.save(&whole, sha(&bytes), bytes.len() as u64).await;
    for piece in bytes.chunks(4 << 20) {
        // Some of these begin a part, which is asked for once more.
        server.be_busy(1).await;
        upload.write(Bytes::copy_from_slice(piece)).await.unwrap();
    }
    server.be_busy(1).await;
    upload.finish().await.unwrap();
    assert!(load(&objects, &whole).await.unwrap() == bytes, "C2");

    server.be_busy(usize::MAX).await;
    let start = Instant::now();
    let told = objects.has(&whole, 1).await.unwrap_err().to_string();
    assert!(start.elapsed() < CALL, "{:?}", start.elapsed());
    assert!(told.contains("SlowDown"), "{told}");
}

#[test]
fn a_bucket_takes_what_is_large_in_as_many_pieces_as_it_allows() {
    assert_eq!(piece(0), 8 << 20);
    for bytes in [1_u64 << 30, 80 << 30, 1 << 40, 5 << 40] {
        assert!(bytes.div_ceil(piece(bytes) as u64) <= 10_000, "{bytes}");
    }
}

#[test]
fn a_bucket_is_opened_without_asking_it_and_nonsense_is_refused() {
    let config = |store: &str| Config {
        store: Some(store.to_owned()),
        s3_endpoint: Some("http://127.0.0.1:9".to_owned()),
        s3_region: Some("there".to_owned()),
        ..Config::default()
    };
    let bucket = "s3://models/tether/one/";
    let objects = Objects::open(&config(bucket), bucket).unwrap();

    let uri = objects.uri(&name("job", 1, 2, b"s"));
    assert!(uri.starts_with("s3://models/tether/one/train/"), "{uri}");
    for nonsense in ["", "models", "file://models", "s3://", "gs://models"] {
        assert!(config(nonsense).check().is_err(), "{nonsense}");
    }
}
