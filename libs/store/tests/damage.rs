//! Files that are damaged, cut short, empty or something else: refused with the reason, and never written to.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "test helpers outside of test functions"
)]

use std::{fs, path::Path, time::SystemTime};

use tether_store::{Error, FileStore, Listing, Store, Txn};

/// A file with something in it, and what that is.
async fn written(path: &Path) -> (Vec<u8>, Listing) {
    let store = FileStore::open(path).unwrap();
    for number in 0..200 {
        let txn = Txn::new().put(format!("key/{}", number % 90), vec![number; 150]);
        store.commit(txn).await.unwrap();
    }
    let listing = store.list("").await.unwrap();
    drop(store);
    (fs::read(path).unwrap(), listing)
}

/// What is said of the file, which is to be as it was afterwards.
fn refusal(path: &Path) -> String {
    let before = fs::read(path).ok();
    let error = FileStore::open(path).unwrap_err();
    assert_eq!(
        fs::read(path).ok(),
        before,
        "a file that was refused was written to"
    );
    let Error::Open { what, hint, source } = error else {
        panic!("{error:?}");
    };
    assert_eq!(what, path.display().to_string());
    format!("{hint}: {source}")
}

#[tokio::test]
async fn a_file_that_is_no_store_is_refused_with_the_reason_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let (whole, _) = written(&path).await;

    for (bytes, reason) in [
        (&b""[..], "the file is empty"),
        (b"not a store at all", "not a redb file"),
        (&whole[..1], "damaged"),
        (&whole[..100], "damaged"),
        (&whole[..whole.len() / 2], "damaged"),
        (&whole[..whole.len() - 1], "damaged"),
        (&vec![0; whole.len()], "not a redb file"),
    ] {
        fs::write(&path, bytes).unwrap();
        let said = refusal(&path);
        assert!(said.contains(reason), "{} bytes: {said}", bytes.len());
        assert!(said.contains("move it away"), "{said}");
    }
    assert!(refusal(folder.path()).contains("give the path of a file"));
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(folder.path().join("nowhere"), &path).unwrap();
    refusal(&path);
    assert!(!folder.path().join("nowhere").exists());
}

/// Every byte of the file is one of redb's that it checks, or one that nothing depends on.
#[tokio::test]
async fn a_flipped_byte_is_found_or_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let (whole, listing) = written(&path).await;
    let (mut refused, mut harmless) = (0, 0);
    // A prime, so that all places within a page come up.
    for place in (0..whole.len()).step_by(4099).chain(0..320) {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x5a;
        fs::write(&path, &bytes).unwrap();
        match FileStore::open(&path) {
            Ok(store) => {
                let read = store.list("").await.unwrap();
                assert_eq!(read, listing, "byte {place} was flipped and not noticed");
                harmless += 1;
            }
            Err(Error::Open { hint, .. }) => {
                assert!(
                    fs::read(&path).unwrap() == bytes,
                    "byte {place}: it was written to"
                );
                assert!(hint.contains("move it away"), "byte {place}: {hint}");
                refused += 1;
            }
            Err(error) => panic!("byte {place}: {error:?}"),
        }
    }
    println!("{refused} flipped bytes refused, {harmless} without effect");
    assert!(refused > 50, "{refused} of {harmless}");
}

#[tokio::test]
async fn what_an_unfinished_start_left_behind_is_in_nobodys_way() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    fs::write(folder.path().join("store.redb.new"), "half").unwrap();

    let store = FileStore::open(&path).unwrap();

    store.commit(Txn::new().put("a", "")).await.unwrap();
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().flatten().collect();
    assert_eq!(names.len(), 1, "{names:?}");
    let made = fs::metadata(&path).unwrap();
    assert!(made.modified().unwrap() <= SystemTime::now());
}
