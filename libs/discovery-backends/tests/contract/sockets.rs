//! Sockets of this machine, as the kernel lists them.

use std::fs;

/// How many sockets are connected to this port, and not closed by their owner.
pub(crate) fn connected_to(port: u16) -> usize {
    // Being set up, or set up; what comes later is the kernel's own.
    let open = |state: &str| ["01", "02", "07"].contains(&state);
    count(|_, remote, state| remote.ends_with(&format!(":{port:04X}")) && open(state))
}

/// Whether somebody waits for datagrams at this port.
pub(crate) fn receives(port: u16) -> bool {
    count(|local, _, state| local.ends_with(&format!(":{port:04X}")) && state == "07") > 0
}

/// How many sockets have such a local address, remote address and state.
fn count(such: impl Fn(&str, &str, &str) -> bool) -> usize {
    let kinds = ["tcp", "tcp6", "udp", "udp6"].map(|kind| format!("/proc/net/{kind}"));
    let lists = kinds.map(|list| fs::read_to_string(list).unwrap_or_default());
    let lines = lists.iter().flat_map(|list| list.lines().skip(1));
    let such = lines.filter(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        matches!(words[..], [_, local, remote, state, ..] if such(local, remote, state))
    });
    such.count()
}
