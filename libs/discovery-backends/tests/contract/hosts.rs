//! Hosts on one machine: network namespaces on a bridge of their own, which go with this process, whatever ends it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    future::Future,
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Several hosts, each of which reaches all others.
pub(crate) struct Hosts {
    hub: Namespace,
    hosts: BTreeMap<&'static str, Namespace>,
}

/// A network namespace: it is there as long as this is open.
struct Namespace(File);

/// Why there are none.
#[derive(Debug)]
pub(crate) enum Unmade {
    /// The kernel has none for this user.
    Kernel(String),
    /// A program that makes them is not there.
    Missing(String),
}

impl Hosts {
    /// Makes them, at `10.78.0.1` and so on.
    ///
    /// # Errors
    /// Where this machine does not let us, or has not what it takes.
    pub(crate) fn make(names: &[&'static str]) -> Result<Self, Unmade> {
        let hub = Namespace::make()?;
        hub.run("ip link add bridge type bridge")?;
        hub.run("ip link set bridge up")?;
        let mut hosts = BTreeMap::new();
        for (index, name) in names.iter().enumerate() {
            let host = Namespace::make()?;
            hub.run(&format!(
                "ip link add {name} type veth peer name eth0 netns {}",
                host.path()
            ))?;
            hub.run(&format!("ip link set {name} master bridge up"))?;
            host.run(&format!("ip addr add {}/24 dev eth0", address(index)))?;
            host.run("ip link set lo up")?;
            host.run("ip link set eth0 up")?;
            hosts.insert(*name, host);
        }
        Ok(Self { hub, hosts })
    }

    /// What enters a host and becomes the program behind it.
    pub(crate) fn wrapper(&self, name: &str) -> Vec<String> {
        vec![
            "nsenter".to_owned(),
            format!("--net={}", self.hosts[name].path()),
        ]
    }

    /// Takes the calling thread there.
    pub(crate) fn enter(&self, name: &str) {
        move_into_link_name_space(self.hosts[name].0.as_fd(), Some(LinkNameSpaceType::Network))
            .unwrap();
    }

    /// Does something there, in a thread of its own.
    pub(crate) fn at<T: Send, F: Future<Output = T>>(
        &self,
        name: &str,
        what: impl FnOnce() -> F + Send,
    ) -> T {
        let there = || {
            self.enter(name);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(what())
        };
        thread::scope(|scope| scope.spawn(there).join().unwrap())
    }

    /// Loses everything from and to a host, without a word to anybody.
    pub(crate) fn cut_off(&self, name: &str) {
        self.hub
            .run(&format!("ip link set {name} nomaster"))
            .unwrap();
    }

    /// Ends that.
    pub(crate) fn heal(&self, name: &str) {
        self.hub
            .run(&format!("ip link set {name} master bridge"))
            .unwrap();
    }
}

/// The address of a host by its place in the list.
pub(crate) fn address(index: usize) -> String {
    format!("10.78.0.{}", index + 1)
}

impl Namespace {
    fn make() -> Result<Self, Unmade> {
        let refused = |error: io::Error| Unmade::Kernel(error.to_string());
        let own = fs::read_link("/proc/self/ns/net").map_err(refused)?;
        // It makes the namespace and lives until that is open here.
        let mut maker = Command::new("unshare")
            .args(["--net", "sleep", "60"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| Unmade::Missing(format!("`unshare`: {error}")))?;
        let path = format!("/proc/{}/ns/net", maker.id());
        let why = "`unshare` makes no network namespace".to_owned();
        let mut made = Err(Unmade::Kernel(why));
        for _ in 0..2_000 {
            if matches!(maker.try_wait(), Ok(Some(_))) {
                break;
            }
            if fs::read_link(&path).is_ok_and(|link| link != own) {
                made = File::open(&path).map(Self).map_err(refused);
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        let _ = maker.kill();
        let _ = maker.wait();
        made
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    fn run(&self, command: &str) -> Result<(), Unmade> {
        let output = Command::new("nsenter")
            .arg(format!("--net={}", self.path()))
            .args(command.split(' '))
            .stdin(Stdio::null())
            .output()
            .map_err(|error| Unmade::Missing(format!("`nsenter`: {error}")))?;
        let said = String::from_utf8_lossy(&output.stderr);
        let why = format!("`{command}`: {}", said.trim());
        match output.status.success() {
            true => Ok(()),
            false if said.contains("failed to execute") => Err(Unmade::Missing(why)),
            false => Err(Unmade::Kernel(why)),
        }
    }
}
