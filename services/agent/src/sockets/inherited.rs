//! Listening sockets that this process was started with, as in sd_listen_fds(3).

use std::{collections::BTreeMap, os::fd::OwnedFd};

/// The first number after the standard streams.
const FIRST: i32 = 3;

/// The name of a socket that got none.
const UNNAMED: &str = "unknown";

/// Takes those that are meant for this process, by their names; where one name is there more than once, the
/// first.
pub(super) fn take() -> BTreeMap<String, OwnedFd> {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let named = names(
        std::process::id(),
        &variable("LISTEN_PID"),
        &variable("LISTEN_FDS"),
        &variable("LISTEN_FDNAMES"),
    );
    let mut sockets = BTreeMap::new();
    for (number, name) in named {
        match tether_sys::inherited(number) {
            Ok(socket) => drop(sockets.entry(name).or_insert(socket)),
            Err(error) => {
                tracing::warn!(number, name, %error, "Cannot take a socket that LISTEN_FDS announces");
            }
        }
    }
    sockets
}

/// Numbers and names, where the variables speak to the process `own`.
fn names(own: u32, pid: &str, count: &str, names: &str) -> Vec<(i32, String)> {
    if pid.parse() != Ok(own) {
        return Vec::new();
    }
    let count = count.parse::<u16>().unwrap_or(0);
    let mut names = names.split(':').filter(|name| !name.is_empty());
    (FIRST..FIRST + i32::from(count))
        .map(|number| (number, names.next().unwrap_or(UNNAMED).to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_known_by_name_and_those_of_another_process_are_left_alone() {
        let own = |number, name: &str| (number, name.to_owned());

        assert_eq!(
            names(7, "7", "3", "http:grpc"),
            [own(3, "http"), own(4, "grpc"), own(5, "unknown")]
        );
        assert!(names(7, "8", "3", "http").is_empty());
        assert!(names(7, "7", "-1", "http").is_empty());
        assert!(names(7, "", "", "").is_empty());
    }
}
