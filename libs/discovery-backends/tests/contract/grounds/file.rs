//! A list in a file, replaced by a rename as programs do that know how.

use std::{fs, os::unix::fs::MetadataExt as _, path::PathBuf};

use async_trait::async_trait;
use serde_json::json;
use tempfile::TempDir;

use crate::ground::{Ground, PORT};

pub(crate) struct ListFile {
    folder: TempDir,
}

impl ListFile {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, list: &serde_json::Value) {
        fs::write(self.path("next"), list.to_string()).unwrap();
        fs::rename(self.path("next"), self.path("list.json")).unwrap();
    }
}

#[async_trait]
impl Ground for ListFile {
    const SCHEME: &'static str = "file";
    const NONSENSE: &'static [&'static str] = &[
        "list.json",
        "./list",
        "/a/..",
        "/list?format=yaml",
        "/list?poll=0s",
        "/list?poll=soon",
    ];

    async fn start(hosts: &[&str]) -> Self {
        let mut ground = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        ground.serve(hosts).await;
        ground
    }

    fn url(&self) -> String {
        format!("file://{}", self.path("list.json").display())
    }

    fn name(&self) -> String {
        self.path("list.json").display().to_string()
    }

    async fn serve(&mut self, hosts: &[&str]) {
        let list: Vec<_> = hosts.iter().map(|host| format!("{host}:{PORT}")).collect();
        self.write(&json!(list));
    }

    async fn away(&mut self) {
        fs::rename(self.path("list.json"), self.path("away")).unwrap();
    }

    async fn back(&mut self) {
        fs::rename(self.path("away"), self.path("list.json")).unwrap();
    }

    async fn spoil(&mut self) -> usize {
        let long = "x".repeat(300);
        let bad = json!([
            "10.0.0.2:0", "10.0.0.3", "10.0.0.4:70000", "a\u{7}:1", "0.0.0.0:1", 7, null, ["10.0.0.5:1"],
            {"address": "10.0.0.6:1", "zone": long}, {"address": "10.0.0.7:1", "weight": 70000},
            {"zone": "a"}, {"address": "10.0.0.8:1", "identity": "a\nb"}, long,
        ]);
        let mut list = bad.as_array().unwrap().clone();
        let count = list.len();
        list.push(json!(format!("10.0.0.1:{PORT}")));
        self.write(&list.into());
        count
    }

    async fn flood(&mut self) {
        let list: Vec<_> = (1..=20_000)
            .map(|port| format!("10.0.0.9:{port}"))
            .collect();
        self.write(&json!(list));
    }

    fn held(&self) -> usize {
        let inode = format!("ino:{:x} ", fs::metadata(self.folder.path()).unwrap().ino());
        let holds = fs::read_dir("/proc/self/fdinfo").unwrap().flatten();
        let holds = holds.filter_map(|entry| fs::read_to_string(entry.path()).ok());
        holds
            .filter(|info| {
                info.lines()
                    .any(|line| line.starts_with("inotify") && line.contains(&inode))
            })
            .count()
    }
}
