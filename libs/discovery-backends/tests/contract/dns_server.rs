//! A real DNS server (dnsmasq) on a free loopback port, with names a test can change.

use std::{
    fs,
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tempfile::TempDir;

use crate::place::place;

/// Answers for `web.test`; every other name under `test` does not exist.
pub(crate) struct Dns {
    child: Option<Child>,
    directory: TempDir,
    /// Where it answers.
    pub(crate) port: u16,
}

impl Dns {
    /// Starts with these addresses for `web.test`.
    pub(crate) fn start(addresses: &[&str]) -> Self {
        let mut dns = Self {
            child: None,
            directory: tempfile::tempdir().unwrap(),
            port: place().port(),
        };
        dns.write(addresses);
        dns.restart();
        dns
    }

    fn write(&self, addresses: &[&str]) {
        let lines: String = addresses
            .iter()
            .map(|ip| format!("{ip} web.test\n"))
            .collect();
        fs::write(self.directory.path().join("hosts"), lines).unwrap();
    }

    /// Changes the addresses of `web.test` at once.
    pub(crate) fn set(&self, addresses: &[&str]) {
        self.write(addresses);
        let child = self.child.as_ref().unwrap();
        let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).unwrap();
        pidfd_send_signal(&pidfd, Signal::HUP).unwrap();
    }

    /// Ends the server; nobody answers.
    pub(crate) fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts the server again on the same port.
    pub(crate) fn restart(&mut self) {
        let hosts = self.directory.path().join("hosts");
        let child = Command::new("dnsmasq")
            .args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--pid-file=",
            ])
            .args([
                "--listen-address=127.0.0.1",
                "--bind-interfaces",
                "--user=root",
            ])
            .args([
                "--no-resolv",
                "--no-hosts",
                "--local=/test/",
                "--local-ttl=1",
            ])
            // Keeps the name alive when it has no addresses.
            .arg("--txt-record=web.test,here")
            .arg(format!("--port={}", self.port))
            .arg(format!("--addn-hosts={}", hosts.display()))
            .stderr(Stdio::null())
            .spawn()
            .expect("this test needs dnsmasq on `PATH`: run `cargo xtask test`, which fetches it, or install dnsmasq-base");
        self.child = Some(child);
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.stop();
    }
}
