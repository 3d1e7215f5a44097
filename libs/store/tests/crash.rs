//! S3: a process that writes to a file store is killed with SIGKILL, and nothing acknowledged is lost.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "test helpers outside of test functions"
)]

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use tether_store::{Error, FileStore, Store, Txn};

/// Set for the child: the file it writes to.
const CHILD: &str = "TETHER_STORE_CRASH_FILE";

fn spawn_writer(test: &str, path: &Path) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Commits for ever, and says so after each acknowledgement.
async fn write_for_ever(path: &str) {
    let store = FileStore::open(Path::new(path)).unwrap();
    let first = store.list("entry/").await.unwrap().entries.len();
    for number in first.. {
        let txn = Txn::new()
            .put(format!("entry/{number:06}"), vec![7; 300])
            .put("last", number.to_string());
        store.commit(txn).await.unwrap();
        println!("acknowledged {number}");
    }
}

fn acknowledged(line: &str) -> Option<usize> {
    line.strip_prefix("acknowledged ")?.parse().ok()
}

#[tokio::test]
async fn a_file_keeps_every_acknowledged_commit_when_its_writer_is_killed() {
    if let Ok(path) = env::var(CHILD) {
        return write_for_ever(&path).await;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");

    for round in 1..=4 {
        let mut child = spawn_writer(
            "a_file_keeps_every_acknowledged_commit_when_its_writer_is_killed",
            &path,
        );
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut heard = (&mut lines)
            .map_while(Result::ok)
            .filter_map(|line| acknowledged(&line));
        let mut last = heard.nth(25 * round).expect("the writer writes");
        child.kill().unwrap();
        child.wait().unwrap();
        // What was acknowledged between our last look and the kill counts as well.
        last = heard.last().unwrap_or(last);

        let store = FileStore::open(&path).unwrap();
        let entries = store.list("entry/").await.unwrap().entries;
        assert!(
            entries.len() > last,
            "{} kept, {last} acknowledged",
            entries.len()
        );
        assert!(
            entries.len() <= last + 2,
            "one commit at most was under way"
        );
        for (number, entry) in entries.iter().enumerate() {
            assert_eq!(entry.key, format!("entry/{number:06}"));
        }
        let whole = store.get("last").await.unwrap().unwrap().value;
        assert_eq!(
            whole,
            (entries.len() - 1).to_string(),
            "half a commit was kept"
        );
    }
}

#[tokio::test]
async fn a_file_in_use_or_damaged_is_refused_with_the_reason() {
    if let Ok(path) = env::var(CHILD) {
        return write_for_ever(&path).await;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let refusal = |path: &Path| match FileStore::open(path) {
        Err(Error::Open { hint, .. }) => hint,
        other => panic!("{other:?}"),
    };

    let mut child = spawn_writer("a_file_in_use_or_damaged_is_refused_with_the_reason", &path);
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines
        .map_while(Result::ok)
        .find_map(|line| acknowledged(&line))
        .unwrap();
    assert!(refusal(&path).contains("another process uses it"));
    child.kill().unwrap();
    child.wait().unwrap();
    drop(FileStore::open(&path).unwrap());

    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(refusal(&path).contains("damaged"));
    fs::write(&path, "not a store at all").unwrap();
    assert!(refusal(&path).contains("not a redb file"));
    assert!(refusal(directory.path()).contains("directory"));
    assert!(refusal(Path::new("/sys/tether.redb")).contains("may not write"));
}
