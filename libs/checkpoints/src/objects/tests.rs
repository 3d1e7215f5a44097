//! Objects in a directory.

use futures::TryStreamExt as _;
use ring::digest::digest;

use super::*;

fn sha(bytes: &[u8]) -> Sha256 {
    digest(&SHA256, bytes).as_ref().try_into().unwrap()
}

fn open(directory: &tempfile::TempDir) -> Objects {
    let store = format!("file://{}", directory.path().join("made").display());
    let config = Config {
        keep: 2,
        ..Config::default()
    };
    Objects::open(&config, &store).unwrap()
}

fn name(key: &str, fence: u64, seq: u64, bytes: &[u8]) -> Name {
    let dir = JobDir::new(&"train".parse().unwrap(), key);
    Name::new(dir, fence, seq, &sha(bytes))
}

async fn save(objects: &Objects, key: &str, fence: u64, seq: u64, bytes: &'static [u8]) -> Name {
    let name = name(key, fence, seq, bytes);
    let mut upload = objects.save(&name, sha(bytes), bytes.len() as u64).await;
    upload.write(Bytes::from_static(bytes)).await.unwrap();
    upload.finish().await.unwrap();
    name
}

async fn load(objects: &Objects, name: &Name) -> Result<Vec<u8>, Error> {
    let pieces = objects.load(&objects.uri(name)).await?;
    let pieces: Vec<Bytes> = pieces.try_collect().await?;
    Ok(pieces.concat())
}

#[tokio::test]
async fn what_was_saved_is_loaded_whatever_its_key_and_what_is_torn_is_never_seen() {
    let directory = tempfile::tempdir().unwrap();
    let objects = open(&directory);
    let key = "ü ? #".repeat(30);

    let saved = save(&objects, &key, 7, 0, b"state").await;
    assert_eq!(load(&objects, &saved).await.unwrap(), b"state");
    assert!(objects.has(&saved, 5).await.unwrap());
    assert!(!objects.has(&saved, 6).await.unwrap());
    let other = name(&key, 8, 0, b"state");
    assert!(!objects.has(&other, 5).await.unwrap());

    let torn = name(&key, 7, 1, b"whole");
    for bytes in [&b"whol"[..], b"wholf", b"wholes"] {
        let mut upload = objects.save(&torn, sha(b"whole"), 5).await;
        let written = upload.write(Bytes::from_static(bytes)).await;
        let ended = match written {
            Ok(()) => upload.finish().await,
            Err(error) => Err(error),
        };
        assert!(matches!(ended, Err(Error::Torn(_))), "C2: {bytes:?}");
        assert!(load(&objects, &torn).await.is_err(), "C2: {bytes:?}");
    }
}

#[test]
fn a_bucket_takes_what_is_large_in_as_many_pieces_as_it_allows() {
    assert_eq!(piece(0), 8 << 20);
    for bytes in [1_u64 << 30, 80 << 30, 1 << 40, 5 << 40] {
        assert!(bytes.div_ceil(piece(bytes) as u64) <= 10_000, "{bytes}");
    }
}

#[tokio::test]
async fn no_more_uploads_are_held_in_memory_than_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let objects = open(&directory);
    let begin = |seq: u64| {
        let (objects, name) = (objects.clone(), name("job", 5, seq, b"s"));
        async move { objects.save(&name, sha(b"s"), 1).await }
    };
    let mut uploads = Vec::new();
    for seq in 0..UPLOADS_AT_ONCE as u64 {
        uploads.push(begin(seq).await);
    }
    let mut next = std::pin::pin!(begin(99));

    assert!(futures::poll!(&mut next).is_pending());
    drop(uploads.pop());
    assert!(futures::poll!(&mut next).is_ready());
}

#[tokio::test]
async fn of_each_job_the_last_ones_are_kept_and_an_attempt_leaves_those_of_later_ones() {
    let directory = tempfile::tempdir().unwrap();
    let objects = open(&directory);
    let other = save(&objects, "other", 1, 1, b"o").await;
    let mut saved = Vec::new();
    for (fence, seq) in [(5, 1), (5, 2), (5, 9), (7, 3), (7, 4)] {
        saved.push(save(&objects, "job", fence, seq, b"s").await);
    }

    // The one of the fenced attempt, which goes on.
    assert_eq!(objects.prune(&saved[2]).await.unwrap(), 1, "C3");
    for later in &saved[1..] {
        assert!(load(&objects, later).await.is_ok(), "C3: {later:?}");
    }
    assert_eq!(objects.prune(&saved[4]).await.unwrap(), 2, "C3");
    for kept in [&saved[3], &saved[4], &other] {
        assert!(load(&objects, kept).await.is_ok(), "C3: {kept:?}");
    }

    let jobs = objects.jobs().await.unwrap();
    let begun = save(&objects, "job", 9, 1, b"n").await;
    let found = &jobs[&begun.dir];
    assert_eq!(found.len(), 2);
    for _ in ["once", "by another node too"] {
        objects.forget(found).await.unwrap();
    }
    let left = [
        (other.dir.clone(), vec![other]),
        (begun.dir.clone(), vec![begun]),
    ];
    assert_eq!(
        objects.jobs().await.unwrap(),
        BTreeMap::from(left),
        "what has begun since is left alone"
    );
}

#[tokio::test]
async fn uploads_that_nobody_finished_are_removed_after_a_day_and_nothing_of_anybody_elses() {
    let directory = tempfile::tempdir().unwrap();
    let objects = open(&directory);
    let saved = save(&objects, "job", 5, 1, b"s").await;
    let root = directory.path().join("made");
    let upload = root.join(name("job", 5, 2, b"t").path().to_string());
    let other = |path: &str| root.join(path);
    let upload = |nth: u32| format!("{}#{nth}", upload.display()).into();
    let files: [(PathBuf, Duration, bool); 7] = [
        (upload(1), 2 * ABANDONED, false),
        (upload(2), ABANDONED / 2, true),
        (other("notes#1"), 2 * ABANDONED, true),
        (other("train/notes#1"), 2 * ABANDONED, true),
        (other("train/notes/1-2-3#1"), 2 * ABANDONED, true),
        (other("Their own/deep/1-2-3#1"), 2 * ABANDONED, true),
        (other("train/notes/1-2-3"), 2 * ABANDONED, true),
    ];
    for (file, age, _) in &files {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        let file = fs::File::create(file).unwrap();
        file.set_modified(std::time::SystemTime::now() - *age)
            .unwrap();
    }

    let jobs = objects.jobs().await.unwrap();

    assert_eq!(jobs, BTreeMap::from([(saved.dir.clone(), vec![saved])]));
    for (file, _, stays) in &files {
        assert_eq!(file.exists(), *stays, "{}", file.display());
    }
}

#[tokio::test]
async fn what_is_kept_elsewhere_is_not_looked_for_here() {
    let directory = tempfile::tempdir().unwrap();
    let objects = open(&directory);

    for uri in ["s3://models/a", "file:///etc/passwd", ""] {
        let loaded = objects.load(uri).await.map(drop);
        assert!(matches!(loaded, Err(Error::Elsewhere { .. })), "{uri}");
    }
    let other = tempfile::tempdir().unwrap();
    let saved = save(&open(&other), "job", 1, 1, b"s").await;
    let loaded = load(&objects, &saved).await;
    assert!(matches!(loaded, Err(Error::Missing(_))), "{loaded:?}");
    let outside = format!("{}/../../etc/passwd", objects.store);
    assert!(objects.load(&outside).await.is_err());
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
