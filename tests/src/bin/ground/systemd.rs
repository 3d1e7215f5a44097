//! Tether as units of systemd: in a container, whose systemd is talked to while it runs, and on a kernel with cgroups of
//! version 2.

mod apart;
mod files;
mod kernel;
mod machine;
mod package;
mod rows;
mod supervisors;
mod watchdog;

use tether_tests::{
    evidence::{Evidence, Report},
    ground::{Refused, packages},
};

use machine::Deployed;
use rows::Row;

/// Plays the rows whose names contain one of the texts in `only`.
pub(crate) async fn play(only: &str, report: &mut Report) {
    let wanted = |name: &str| only.split('|').any(|text| name.contains(text));
    let all = rows::ALL.iter().chain(apart::ALL);
    let rows: Vec<_> = all.filter(|row| wanted(row.name)).collect();
    if !rows.is_empty() {
        report.scene("In a container");
        match Deployed::boot(&files::install()).await {
            Ok(deployed) => play_all(&rows, &deployed, true, report).await,
            Err(why) => why.record(rows.iter().map(|row| row.name), report),
        }
    }
    // Each goes on where the last one ended.
    let rows: Vec<_> = package::ALL.iter().collect();
    if rows.iter().any(|row| wanted(row.name)) {
        report.scene("In a container, by the package");
        match Deployed::boot("true").await {
            Ok(deployed) => match package::make(deployed.packages()).await {
                Ok(()) => play_all(&rows, &deployed, false, report).await,
                Err(why) => {
                    let why = format!("{why:#}");
                    report.add(Evidence::failed("the package is made", why));
                }
            },
            Err(why) => why.record(rows.iter().map(|row| row.name), report),
        }
    }
    for (scene, all, boot) in supervisors::ALL {
        if all.iter().any(|row| wanted(row.name)) {
            report.scene(scene);
            let names = all.iter().map(|row| row.name);
            if let Err(Refused(why)) = packages("supervisors") {
                report.skip(names, &why);
                continue;
            }
            match Deployed::boot(boot).await {
                // The second goes on where the first one ended.
                Ok(deployed) => {
                    let rows: Vec<_> = all.iter().collect();
                    play_all(&rows, &deployed, false, report).await;
                }
                Err(why) => why.record(names, report),
            }
        }
    }
    let rows: Vec<_> = kernel::ALL.iter().filter(|row| wanted(row.name)).collect();
    if !rows.is_empty() {
        report.scene("On a kernel of its own");
        match kernel::run().await {
            Ok(said) => {
                for row in rows {
                    report.add(judged(row.name, row.expected, (row.judge)(&said)));
                }
            }
            Err(why) => why.record(rows.iter().map(|row| row.name), report),
        }
    }
}

async fn play_all(rows: &[&Row], deployed: &Deployed, clears: bool, report: &mut Report) {
    for row in rows {
        let mut seen = (row.play)(deployed).await;
        if clears && let Err(left) = deployed.clear().await {
            seen = seen.and(Err(left));
        }
        report.add(judged(row.name, row.expected, seen));
    }
}

fn judged(name: &str, expected: &str, seen: anyhow::Result<String>) -> Evidence {
    match seen {
        Ok(seen) => Evidence::new(name, expected, seen, true),
        Err(error) => Evidence::new(name, expected, format!("{error:#}"), false),
    }
}
