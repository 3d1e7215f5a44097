//! Tether as units of systemd.

use std::time::Duration;

use tether_tests::{
    evidence::{Evidence, Report},
    ground::{Ground, Refused, uml},
};

const UML: Duration = Duration::from_secs(180);

pub(crate) async fn play(_: &str, report: &mut Report) {
    for (name, seen) in [
        ("a container boots", in_container().await),
        ("a kernel boots", in_uml().await),
    ] {
        match seen {
            Ok(seen) => report.add(Evidence::new(name, "running", &seen, seen == "running")),
            Err(Refused(why)) => {
                report.scene(&format!("skipped: {name}: {why}"));
                report.skip(1);
            }
        }
    }
}

async fn in_container() -> Result<String, Refused> {
    let machine = Ground::new().await?.boot().await?;
    let seen = machine.sh("systemctl is-system-running").await;
    let ended = machine.power_off().await;
    Ok(match (seen, ended) {
        (Ok(seen), Ok(())) => seen,
        (Err(error), _) | (_, Err(error)) => error.to_string(),
    })
}

async fn in_uml() -> Result<String, Refused> {
    let script = "#!/bin/sh\nsystemctl is-active multi-user.target | sed s/^active/running/";
    let said = uml(Ground::new().await?, script, UML).await?;
    Ok(said.out.trim().to_owned())
}
