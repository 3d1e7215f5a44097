//! What is special about files: how they are replaced, and what they may be instead.

use std::{fs, os::unix::fs::symlink, path::Path, time::Duration};

use tether_discovery_backends::open;
use tokio::time::Instant;

use crate::rules::{fails, says, set};

fn url(path: &Path) -> String {
    // Such a slow look that everything is seen by watching.
    format!("file://{}?poll=1h", path.display())
}

#[tokio::test]
async fn a_config_map_is_swapped_by_a_link_beside_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    // As the kubelet does it: ..data leads to a folder with a date, and the file leads through ..data.
    let publish = |name: &str, list: &str| {
        fs::create_dir(path(name)).unwrap();
        fs::write(path(name).join("list.json"), list).unwrap();
        symlink(name, path("..data_tmp")).unwrap();
        fs::rename(path("..data_tmp"), path("..data")).unwrap();
    };
    publish("..2026_01", r#"["10.0.0.1:50051"]"#);
    symlink("..data/list.json", path("list.json")).unwrap();
    let mut watch = open(&url(&path("list.json"))).unwrap();
    says(&mut watch, &["10.0.0.1"]).await;

    let swapped = Instant::now();
    publish("..2026_02", r#"["10.0.0.2:50051"]"#);
    fs::remove_dir_all(path("..2026_01")).unwrap();
    says(&mut watch, &["10.0.0.2"]).await;
    assert!(
        swapped.elapsed() < Duration::from_secs(3),
        "{:?}",
        swapped.elapsed()
    );
}

#[tokio::test]
async fn a_file_that_is_moved_over_it_or_away_is_seen_by_that_alone() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("list");
    let stage = folder.path().join("stage");
    fs::create_dir(&stage).unwrap();
    fs::write(&list, "10.0.0.1:50051\n").unwrap();
    fs::write(stage.join("next"), "10.0.0.2:50051\n").unwrap();
    let mut watch = open(&url(&list)).unwrap();
    says(&mut watch, &["10.0.0.1"]).await;
    fs::rename(stage.join("next"), &list).unwrap();
    says(&mut watch, &["10.0.0.2"]).await;
    fs::rename(&list, stage.join("away")).unwrap();
    fails(&mut watch, &set(&["10.0.0.2"])).await;
}

#[tokio::test]
async fn a_file_half_written_is_an_error_and_no_answer() {
    let folder = tempfile::tempdir().unwrap();
    for (name, half, whole) in [
        (
            "list.json",
            r#"["10.0.0.2:50051", "10.0"#,
            r#"["10.0.0.2:50051"]"#,
        ),
        ("list.json", "", "[\"10.0.0.2:50051\"]\n"),
        (
            "list",
            "10.0.0.2:50051\n10.0.0.3:5",
            "10.0.0.2:50051 # the second\n",
        ),
        ("list", "", "10.0.0.2:50051\n\n"),
        ("list", "<html>\nsorry\n", "10.0.0.2:50051\n"),
    ] {
        let path = folder.path().join(name);
        let first = if name == "list" {
            "10.0.0.1:50051\n"
        } else {
            "[\"10.0.0.1:50051\"]"
        };
        fs::write(&path, first).unwrap();
        let mut watch = open(&url(&path)).unwrap();
        says(&mut watch, &["10.0.0.1"]).await;

        fs::write(&path, half).unwrap();
        let error = fails(&mut watch, &set(&["10.0.0.1"])).await;
        assert!(error.contains(name), "{error}");
        fs::write(&path, whole).unwrap();
        says(&mut watch, &["10.0.0.2"]).await;
    }
}

#[tokio::test]
async fn what_the_folder_does_not_tell_is_seen_by_a_slow_look() {
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let real = elsewhere.path().join("real");
    fs::write(&real, "10.0.0.1:50051\n").unwrap();
    let link = folder.path().join("list");
    symlink(&real, &link).unwrap();
    let mut watch = open(&format!("file://{}?poll=100ms", link.display())).unwrap();
    says(&mut watch, &["10.0.0.1"]).await;
    fs::write(&real, "10.0.0.2:50051\n").unwrap();
    says(&mut watch, &["10.0.0.2"]).await;

    // And a folder that goes, and comes back as another one.
    let old = folder.path().join("sub");
    fs::create_dir(&old).unwrap();
    fs::write(old.join("list"), "10.0.0.1:50051\n").unwrap();
    let mut watch = open(&format!("file://{}?poll=100ms", old.join("list").display())).unwrap();
    says(&mut watch, &["10.0.0.1"]).await;
    fs::rename(&old, folder.path().join("away")).unwrap();
    fails(&mut watch, &set(&["10.0.0.1"])).await;
    fs::create_dir(&old).unwrap();
    fs::write(old.join("list"), "10.0.0.3:50051\n").unwrap();
    says(&mut watch, &["10.0.0.3"]).await;
}

#[tokio::test]
async fn what_is_no_file_or_too_large_is_an_error_that_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let large = folder.path().join("large");
    fs::File::create(&large).unwrap().set_len(1 << 40).unwrap();
    for (path, why) in [
        ("/dev/zero", "another kind"),
        (folder.path().to_str().unwrap(), "another kind"),
        (large.to_str().unwrap(), "8 MiB"),
        ("/nowhere/list", "No such file"),
    ] {
        let mut watch = open(&format!("file://{path}?format=text")).unwrap();
        let error = fails(&mut watch, &set(&[])).await;
        assert!(error.contains(path) && error.contains(why), "{error}");
    }
}
