//! Made-up roots, and sockets that answer.

use std::{io::Read as _, os::unix::net::UnixListener, thread};

use super::*;

/// A root that looks as it is told to.
struct Root(tempfile::TempDir);

impl Root {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn with(self, path: &str, text: &str) -> Self {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn look(&self, env: &[(&str, &str)], uid: u32) -> Surroundings {
        let find = |name: &str| {
            let found = env.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Look {
            root: self.0.path(),
            env: &find,
            pid: 1,
            uid,
        }
        .around()
    }
}

const IN_A_POD: (&str, &str) = ("KUBERNETES_SERVICE_HOST", "10.0.0.1");

#[test]
fn a_pod_is_known_by_more_than_its_environment() {
    let bare = Root::new().look(&[IN_A_POD], 1).kubernetes;
    assert!(bare.claimed && !bare.is_here());

    // With `automountServiceAccountToken: false` and a cgroup namespace, this is all there is.
    let hosts =
        "1046 1039 254:1 /var/lib/kubelet/pods/0a1b/etc-hosts /etc/hosts rw - ext4 /dev/vda1 rw\n";
    let mounts = Root::new().with("proc/self/mountinfo", hosts);
    assert!(mounts.look(&[IN_A_POD], 1).kubernetes.is_here());

    let account = format!("{SERVICE_ACCOUNT}/namespace");
    let account = Root::new().with(&account, "default");
    assert!(account.look(&[IN_A_POD], 1).kubernetes.is_here());
    assert!(!account.look(&[], 1).kubernetes.is_here());

    let cgroup = Root::new().with("proc/self/cgroup", "0::/kubepods.slice/pod1/cri-2.scope\n");
    assert!(cgroup.look(&[IN_A_POD], 1).kubernetes.is_here());
    assert!(!cgroup.look(&[IN_A_POD], 1).in_session);
}

#[test]
fn an_allocation_is_known_by_more_than_its_environment() {
    let env = [("NOMAD_ALLOC_ID", "81f8"), ("NOMAD_ALLOC_DIR", "/alloc")];
    let left = Root::new().look(&env, 0).nomad;
    assert!(left.claimed && !left.is_here());

    let there = Root::new().with("alloc/logs/x", "");
    assert!(there.look(&env, 0).nomad.is_here());
    let cgroup = Root::new().with("proc/self/cgroup", "0::/nomad.slice/81f8.agent.scope\n");
    assert!(cgroup.look(&env, 0).nomad.is_here());
}

#[test]
fn systemd_is_usable_where_it_takes_this_user_for_who_it_is() {
    let answering = |answer: &'static str| {
        let root = Root::new().with("run/systemd/system/x", "");
        let listener = UnixListener::bind(root.0.path().join("run/systemd/private")).unwrap();
        let asked = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut said = vec![0; "\0AUTH EXTERNAL 30\r\n".len()];
            stream.read_exact(&mut said).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(said).unwrap()
        });
        let found = root.look(&[], 0).systemd;
        (found, asked.join().unwrap())
    };

    let (usable, said) = answering("OK 1234deadbeef\r\n");
    assert_eq!(usable, Systemd::Usable("/run/systemd/private".to_owned()));
    assert_eq!(said, "\0AUTH EXTERNAL 30\r\n");
    let (refused, _) = answering("REJECTED EXTERNAL\r\n");
    assert!(
        matches!(&refused, Systemd::Refused(why) if why.contains("REJECTED")),
        "{refused:?}"
    );
}

#[test]
fn systemd_that_is_not_there_or_does_not_answer_is_told_apart() {
    assert_eq!(Root::new().look(&[], 0).systemd, Systemd::Absent);
    let silent = Root::new().with("run/systemd/system/x", "");
    let told = |env: &[(&str, &str)], uid| match silent.look(env, uid).systemd {
        Systemd::Refused(why) => why,
        other => panic!("{other:?}"),
    };

    assert!(told(&[], 0).contains("/run/systemd/private"));
    assert!(told(&[], 1000).contains("enable-linger"));
    assert!(
        told(&[("XDG_RUNTIME_DIR", "/run/user/1000")], 1000)
            .contains("/run/user/1000/systemd/private")
    );
}

#[test]
fn a_session_is_a_terminals_or_a_desktops_and_a_service_is_none() {
    let of = |cgroup: &str| {
        let root = Root::new().with("proc/self/cgroup", &format!("0::{cgroup}\n"));
        root.look(&[], 0).in_session
    };

    assert!(of("/user.slice/user-1000.slice/session-3.scope"));
    assert!(of(
        "/user.slice/user-1000.slice/user@1000.service/app.slice/app-kitty-7.scope"
    ));
    assert!(!of(
        "/user.slice/user-1000.slice/user@1000.service/app.slice/tether.service"
    ));
    assert!(!of("/system.slice/tether-agent.service"));
    assert!(!of("/"));
}

#[test]
fn a_cgroup_is_delegated_where_it_can_be_written_and_is_not_that_of_the_machine() {
    let own = |files: &[&str]| {
        let root = Root::new().with("proc/self/cgroup", "0::/system.slice/a.service\n");
        let root = files.iter().fold(root, |root, file| {
            root.with(&format!("sys/fs/cgroup/system.slice/a.service/{file}"), "")
        });
        root.look(&[], 0).delegated
    };

    assert!(own(&[
        "cgroup.type",
        "cgroup.procs",
        "cgroup.subtree_control"
    ]));
    assert!(!own(&["cgroup.procs", "cgroup.subtree_control"]));
    assert!(!own(&["cgroup.type", "cgroup.procs"]));
}
