//! Objects in a directory and in a bucket: what holds for the one holds for the other.

mod bucket;

use futures::TryStreamExt as _;
use ring::digest::digest;

use ring::digest::SHA256;
use tether_s3_server::{BUCKET, REGION, Server};

use super::{abandoned::ABANDONED, *};

fn sha(bytes: &[u8]) -> Sha256 {
    digest(&SHA256, bytes).as_ref().try_into().unwrap()
}

/// Where objects are.
enum Ground {
    Directory(tempfile::TempDir),
    Bucket(Box<Server>),
}

impl Ground {
    fn directory() -> Self {
        Self::Directory(tempfile::tempdir().unwrap())
    }

    /// Each kind that is to be had.
    async fn all() -> Vec<Self> {
        let bucket = Server::start()
            .await
            .map(|server| Self::Bucket(Box::new(server)));
        [Some(Self::directory()), bucket]
            .into_iter()
            .flatten()
            .collect()
    }

    fn open(&self) -> Objects {
        let config = Config {
            keep: 2,
            ..Config::default()
        };
        match self {
            Self::Directory(directory) => {
                let store = format!("file://{}", directory.path().join("made").display());
                Objects::open(&config, &store).unwrap()
            }
            // With what is written otherwise in an address.
            Self::Bucket(server) => {
                bucket::open(server, config, &format!("s3://{BUCKET}/tether/one+ü"))
            }
        }
    }
}

fn name(key: &str, fence: u64, seq: u64, bytes: &[u8]) -> Name {
    let dir = JobDir::new(&"train".parse().unwrap(), key);
    Name::new(dir, fence, seq, &sha(bytes))
}

async fn save(objects: &Objects, key: &str, fence: u64, seq: u64, bytes: &[u8]) -> Name {
    let name = name(key, fence, seq, bytes);
    try_save(objects, &name, bytes).await.unwrap();
    name
}

/// In pieces as a call brings them.
async fn try_save(objects: &Objects, name: &Name, bytes: &[u8]) -> Result<(), Error> {
    let mut upload = objects.save(name, sha(bytes), bytes.len() as u64).await;
    for piece in bytes.chunks(1 << 20) {
        upload.write(Bytes::copy_from_slice(piece)).await?;
    }
    upload.finish().await
}

async fn load(objects: &Objects, name: &Name) -> Result<Vec<u8>, Error> {
    let pieces = objects.load(&objects.uri(name)).await?;
    let pieces: Vec<Bytes> = pieces.try_collect().await?;
    Ok(pieces.concat())
}

#[tokio::test]
async fn what_was_saved_is_loaded_whatever_its_key_and_what_is_torn_is_never_seen() {
    for ground in Ground::all().await {
        let objects = ground.open();
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
}

#[tokio::test]
async fn no_more_uploads_are_held_in_memory_than_at_once() {
    let ground = Ground::directory();
    let objects = ground.open();
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
    for ground in Ground::all().await {
        let objects = ground.open();
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
}

#[tokio::test]
async fn uploads_that_nobody_finished_are_removed_after_a_day_and_nothing_of_anybody_elses() {
    let ground = Ground::directory();
    let objects = ground.open();
    let saved = save(&objects, "job", 5, 1, b"s").await;
    let Ground::Directory(directory) = &ground else {
        unreachable!()
    };
    let root = directory.path().join("made");
    let upload = root.join(name("job", 5, 2, b"t").path().to_string());
    let other = |path: &str| root.join(path);
    let upload = |nth: u32| format!("{}#{nth}", upload.display()).into();
    let files: [(PathBuf, std::time::Duration, bool); 7] = [
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
    let ground = Ground::directory();
    let objects = ground.open();

    for uri in ["s3://models/a", "file:///etc/passwd", ""] {
        let loaded = objects.load(uri).await.map(drop);
        assert!(matches!(loaded, Err(Error::Elsewhere { .. })), "{uri}");
    }
    let saved = save(&Ground::directory().open(), "job", 1, 1, b"s").await;
    let loaded = load(&objects, &saved).await;
    assert!(matches!(loaded, Err(Error::Missing(_))), "{loaded:?}");
    let outside = format!("{}/../../etc/passwd", objects.address.store);
    assert!(objects.load(&outside).await.is_err());
}
