//! Which launchers this node offers: each is asked for what it takes, and what is missing is told once.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::timeout;

use crate::{config::Ground, supervisors, units};

/// Why those are not offered that are not, as it was told last.
static TOLD: Mutex<BTreeMap<&str, String>> = Mutex::new(BTreeMap::new());

/// A supervisor that takes longer to say that it is there is not offered until the next look.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);

/// Those that can be had now.
pub(crate) async fn offered(ground: &Ground) -> Vec<String> {
    let (systemd, supervisord) = tokio::join!(
        in_time(ground.units.check()),
        in_time(ground.supervisors.check_supervisord())
    );
    let found = [
        (units::LAUNCHER, systemd),
        (supervisors::SUPERVISORD, supervisord),
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

async fn in_time(check: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    within(ANSWERS_WITHIN, check).await
}

async fn within(
    limit: Duration,
    check: impl Future<Output = Result<(), String>>,
) -> Result<(), String> {
    let checked = timeout(limit, check).await;
    checked.unwrap_or_else(|_| Err(format!("it does not answer within {limit:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_check_that_hangs_is_over_in_time_and_says_so() {
        let hangs = within(Duration::from_millis(3), std::future::pending()).await;

        assert_eq!(hangs, Err("it does not answer within 3ms".to_owned()));
        assert_eq!(in_time(async { Ok(()) }).await, Ok(()));
    }
}
