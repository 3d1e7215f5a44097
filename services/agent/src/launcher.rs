//! Which launchers this node offers: each is asked for what it takes, and what is missing is told once.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use crate::{config::Ground, supervisors, units};

/// Why those are not offered that are not, as it was told last.
static TOLD: Mutex<BTreeMap<&str, String>> = Mutex::new(BTreeMap::new());

/// Those that can be had now.
pub(crate) async fn offered(ground: &Ground) -> Vec<String> {
    let found = [
        (units::LAUNCHER, ground.units.check().await),
        (
            supervisors::SUPERVISORD,
            ground.supervisors.check_supervisord().await,
        ),
        (supervisors::RUNIT, ground.supervisors.check_runit()),
    ];
    let mut offered = vec!["exec".to_owned()];
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    for (launcher, usable) in found {
        match usable {
            Ok(()) => {
                offered.push(launcher.to_owned());
                told.remove(launcher);
            }
            Err(why) => {
                if told.get(launcher) != Some(&why) {
                    tracing::info!(launcher, why, "Launcher is not offered");
                    told.insert(launcher, why);
                }
            }
        }
    }
    offered
}
