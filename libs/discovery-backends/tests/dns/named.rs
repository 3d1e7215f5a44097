//! A real authoritative server (BIND's `named`) on a loopback address of its own, with a zone a test can change.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    process::{Child, ChildStderr, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use hickory_resolver::proto::{
    op::{Message, Query},
    rr::{Name, RecordType},
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tempfile::TempDir;

use super::{PATIENCE, place::place};

/// Answers for the zone `test`; `broken.` is a zone whose file it cannot read, and any other is refused.
pub(crate) struct Named {
    child: Option<Child>,
    directory: TempDir,
    serial: u32,
    minimum: u32,
    asked: Arc<Mutex<Vec<String>>>,
    /// Where it answers.
    pub(crate) at: SocketAddr,
}

impl Named {
    /// Starts with these records, one a line as in a zone's file. What they do not say of their time is 1 s.
    pub(crate) fn start(records: &str) -> Self {
        Self::with(records, 1, "")
    }

    /// The same, with so many seconds for which "there is none" holds and further options of its own.
    pub(crate) fn with(records: &str, minimum: u32, options: &str) -> Self {
        let at = place();
        let mut named = Self {
            child: None,
            directory: tempfile::tempdir().unwrap(),
            serial: 0,
            minimum,
            asked: Arc::default(),
            at,
        };
        let (ip, port) = (at.ip(), at.port());
        let directory = named.directory.path().display();
        let config = format!(
            "options {{ directory \"{directory}\"; listen-on port {port} {{ {ip}; }}; listen-on-v6 {{ none; }};
               pid-file none; session-keyfile none; lock-file none; managed-keys-directory \"{directory}\";
               recursion no; dnssec-validation no; notify no; querylog yes; check-names primary ignore; {options} }};
             controls {{ }};
             zone \"test\" {{ type primary; file \"test.zone\"; }};
             zone \"broken\" {{ type primary; file \"no-such-file\"; }};\n"
        );
        fs::write(named.directory.path().join("named.conf"), config).unwrap();
        named.write(records);
        named.restart();
        named
    }

    fn write(&mut self, records: &str) {
        self.serial += 1;
        let records: String = records
            .lines()
            .map(|line| format!("{}\n", line.trim()))
            .collect();
        let zone = format!(
            "$TTL 1\n$ORIGIN test.\n@ {minimum} SOA ns hostmaster {serial} 1 1 1 {minimum}\n@ NS ns\nns A 127.0.0.1\n{records}",
            minimum = self.minimum,
            serial = self.serial,
        );
        fs::write(self.directory.path().join("test.zone"), zone).unwrap();
    }

    /// Changes the records of the zone.
    pub(crate) fn set(&mut self, records: &str) {
        self.write(records);
        let child = self.child.as_ref().unwrap();
        let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).unwrap();
        pidfd_send_signal(&pidfd, Signal::HUP).unwrap();
    }

    /// How many queries it has had for this name and kind until now, as in `web.test IN A`.
    pub(crate) fn asked(&self, query: &str) -> usize {
        static SETTLED: AtomicUsize = AtomicUsize::new(0);
        // It tells of queries in their order, and a little later: one of our own comes after all that count.
        let last = format!("settled-{}.test", SETTLED.fetch_add(1, Ordering::Relaxed));
        let mut message = Message::query();
        let name = Name::from_ascii(format!("{last}.")).unwrap();
        message.queries.push(Query::query(name, RecordType::TXT));
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.send_to(&message.to_vec().unwrap(), self.at).unwrap();
        let count = |query: &str| {
            let query = format!("query: {query} ");
            let asked = self.asked.lock().unwrap();
            asked.iter().filter(|line| line.contains(&query)).count()
        };
        let begun = Instant::now();
        while count(&format!("{last} IN TXT")) == 0 {
            assert!(begun.elapsed() < PATIENCE, "named tells of no queries");
            thread::sleep(Duration::from_millis(2));
        }
        count(query)
    }

    /// Ends the server; nobody answers.
    pub(crate) fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts the server, on the same address as before, and waits until it serves.
    pub(crate) fn restart(&mut self) {
        let mut child = Command::new("named")
            .args(["-g", "-n", "1", "-c"])
            .arg(self.directory.path().join("named.conf"))
            .stderr(Stdio::piped())
            .spawn()
            .expect("this test needs named on `PATH`: run `cargo xtask test`, which fetches it, or install bind9");
        let mut log = BufReader::new(child.stderr.take().unwrap());
        self.child = Some(child);
        let mut seen = String::new();
        while !seen.ends_with(" running\n") {
            let read = log.read_line(&mut seen).unwrap();
            assert!(read > 0, "named does not start:\n{seen}");
        }
        self.read(log);
    }

    fn read(&self, log: BufReader<ChildStderr>) {
        let asked = Arc::clone(&self.asked);
        thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                if line.contains("query: ") {
                    asked.lock().unwrap().push(line);
                }
            }
        });
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        self.stop();
    }
}
