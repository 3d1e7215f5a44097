//! One fork server for each template: which is asked, when one ends, and what a failure means.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tether_proto::pool::ForkedFrom;
use tether_shim_protocol::Identity;
use tether_types::{Epoch, Incarnation, OwnerName};

use super::*;

fn worker() -> Template {
    Template {
        command: "python3".into(),
        args: vec!["worker.py".into(), "{slot}".into()],
        env: [("A".into(), "1".into()), ("B".into(), "{slot}".into())].into(),
        cwd: "/srv".into(),
        forked_from: Some(ForkedFrom {
            imports: vec!["grpc".into(), "numpy".into()],
        }),
        ..Template::default()
    }
}

#[test]
fn a_server_has_of_its_workers_what_is_the_same_for_all() {
    let server = template_of(&worker(), Path::new("/run/t/fork.py"));

    let args = ["/run/t/fork.py", "--import", "grpc", "--import", "numpy"];
    assert_eq!(
        (server.command.as_str(), server.args),
        ("python3", args.map(String::from).to_vec())
    );
    assert_eq!(server.env, [("A".into(), "1".into())].into());
    assert_eq!((server.cwd.as_str(), server.forked_from), ("/srv", None));
    let elsewhere = Template {
        cwd: "{dir}/x".into(),
        ..worker()
    };
    assert_eq!(template_of(&elsewhere, Path::new("/s")).cwd, "");
}

fn permission(seconds: u64, on_link_loss: OnLinkLoss) -> PoolPermission {
    PoolPermission {
        owner: OwnerName::new("beam").unwrap(),
        epoch: Epoch(1),
        deadline: Tick::ZERO + Duration::from_secs(seconds),
        process: Some(Identity {
            pid: 7,
            start_ticks: 9,
        }),
        on_owner_exit: OnOwnerExit::Kill,
        on_link_loss,
        grace: Duration::from_secs(seconds),
        job_grace: Duration::from_secs(100),
        jobs: BTreeSet::new(),
    }
}

#[test]
fn a_server_may_live_as_long_as_any_of_its_workers() {
    let [a, b, own, gone] = ["a", "b", "own", "gone"].map(|name| PoolName::new(name).unwrap());
    let all = Permissions {
        nearer: 0,
        node: Tick::ZERO + Duration::from_secs(9),
        pools: BTreeMap::from([
            (a.clone(), permission(5, OnLinkLoss::Kill)),
            (b.clone(), permission(7, OnLinkLoss::Hold)),
        ]),
    };
    let none = Permissions::default();

    let one = permission_of([&a].into_iter(), &all, &none, &own);
    let both = permission_of([&a, &b].into_iter(), &all, &one, &own);
    let mut with_job = all.clone();
    if let Some(pool) = with_job.pools.get_mut(&a) {
        pool.jobs = [Incarnation(3)].into();
    }
    let jobs = permission_of([&a, &b].into_iter(), &with_job, &one, &own);
    let grace = |permissions: &Permissions| permissions.pool(&own).unwrap().grace.as_secs();
    assert_eq!((grace(&one), grace(&both), grace(&jobs)), (5, 7, 100));
    let lost = permission_of([&gone].into_iter(), &all, &both, &own);

    let of = |permissions: &Permissions| {
        let own = permissions.pool(&own).unwrap();
        assert_eq!(
            (own.process, own.on_owner_exit),
            (None, OnOwnerExit::Ignore)
        );
        (own.deadline.since(Tick::ZERO).as_secs(), own.on_link_loss)
    };
    assert_eq!(of(&one), (5, OnLinkLoss::Kill));
    assert_eq!(of(&both), (7, OnLinkLoss::Hold));
    assert_eq!(of(&lost), of(&both));
    assert_eq!(one.node, all.node);
    assert_eq!(
        permission_of([&gone].into_iter(), &all, &none, &own).pool(&own),
        None
    );
}

#[test]
fn what_an_import_says_is_told_and_not_tried_again_and_what_was_killed_is() {
    let id: WorkerId = "digits/0.3".parse().unwrap();
    let death = |cause, was_ready| {
        let mut report = report::lost(&id, cause, "");
        if let Some(death) = &mut report.death {
            death.stderr_tail = "Traceback\nModuleNotFoundError: No module named 'x'\n".into();
            death.exit_code = Some(1).filter(|_| matches!(cause, DeathCause::Exited(_)));
        }
        NotServed::of(&report, was_ready).report(&id)
    };

    let broken = death(DeathCause::Exited(1), false);
    let told = broken.death.as_ref().unwrap();
    assert!(broken.permanent);
    assert_eq!(
        told.detail,
        "it cannot be started: the process that it is to be forked from was never ready (exit code 1): \
         ModuleNotFoundError: No module named 'x'"
    );
    assert!(told.stderr_tail.starts_with("Traceback"));
    assert!(!death(DeathCause::Signaled(9), false).permanent);
    assert!(!death(DeathCause::Exited(1), true).permanent);
}
