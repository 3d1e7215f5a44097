//! Processes in rooms: each has its own, and none is given away while somebody is in it.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test, and its own harness"
)]

use std::process::ExitCode;

use rustix::fd::{AsFd, OwnedFd};
use rustix::io::{read, write};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, getpid, set_child_subreaper, wait, waitpid};
use tether_sys::{Birth, OwnHeap, Rooms};

#[global_allocator]
static HEAP: OwnHeap = OwnHeap;

const TESTS: &[(&str, fn())] = &[
    (
        "a_room_is_given_to_nobody_while_a_first_process_is_in_it",
        a_room_is_given_to_nobody_while_a_first_process_is_in_it,
    ),
    (
        "what_a_child_did_beside_its_parent_is_there_and_leaves_the_room",
        what_a_child_did_beside_its_parent_is_there_and_leaves_the_room,
    ),
    (
        "a_process_that_allocates_much_and_dies_leaves_the_others_alone",
        a_process_that_allocates_much_and_dies_leaves_the_others_alone,
    ),
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| words.iter().any(|said| said == word);
    if has("--list") {
        if !has("--ignored") {
            TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
        }
        return ExitCode::SUCCESS;
    }
    let wanted = |name: &str| {
        let mut named = words
            .iter()
            .filter(|word| !word.starts_with('-'))
            .peekable();
        named.peek().is_none() || named.any(|word| name.contains(word.as_str()))
    };
    let chosen = TESTS.iter().filter(|(name, _)| wanted(name));
    let mut ran = 0;
    for (_, test) in chosen {
        // Addresses are set aside once for each program.
        let child = tether_sys::fork(&Birth::default()).unwrap();
        let Some(child) = child else {
            test();
            tether_sys::exit_child(0)
        };
        let (_, status) = waitpid(Some(child.pid), WaitOptions::empty())
            .unwrap()
            .unwrap();
        assert_eq!(status.exit_status(), Some(0));
        ran += 1;
    }
    println!("test result: ok. {ran} passed; 0 failed");
    ExitCode::SUCCESS
}

fn pipe() -> (OwnedFd, OwnedFd) {
    pipe_with(PipeFlags::CLOEXEC).unwrap()
}

fn end_of(pid: Pid) -> Option<i32> {
    let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
    status.exit_status()
}

/// Says where this process's stack is.
fn tell_place((): (), given: Vec<OwnedFd>) -> i32 {
    let here = 0_u8;
    let here = (&raw const here).addr().to_ne_bytes();
    i32::from(write(&given[0], &here) != Ok(here.len()))
}

/// Where a new process has its stack.
fn place(rooms: &mut Rooms) -> usize {
    let (ours, theirs) = pipe();
    let (pid, room) = rooms.start(tell_place, (), &[theirs.as_fd()]).unwrap();
    let mut place = [0; size_of::<usize>()];
    assert_eq!(read(&ours, &mut place), Ok(place.len()));
    assert_eq!(end_of(pid), Some(0));
    rooms.leave(room);
    rooms.look();
    usize::from_ne_bytes(place)
}

/// Starts a first process that waits for the end of a pipe, and leaves it behind.
fn leave_init_behind((): (), given: Vec<OwnedFd>) -> i32 {
    let mut given = given.into_iter();
    let wait: &'static OwnedFd = Box::leak(Box::new(given.next().unwrap()));
    // The other end, which would keep it open.
    given.for_each(drop);
    let started = tether_sys::start_init(wait, |wait| {
        let _ = read(wait, &mut [0; 1]);
    });
    i32::from(started.is_err())
}

fn a_room_is_given_to_nobody_while_a_first_process_is_in_it() {
    set_child_subreaper(Some(getpid())).unwrap();
    let mut rooms = Rooms::set_aside().unwrap();
    let first = place(&mut rooms);
    assert_eq!(place(&mut rooms), first, "an empty room is used again");
    let (wait_for, hold) = pipe();

    let given = [wait_for.as_fd(), hold.as_fd()];
    let (pid, room) = rooms.start(leave_init_behind, (), &given).unwrap();
    assert_eq!(end_of(pid), Some(0));
    rooms.leave(room);
    rooms.look();
    let other = place(&mut rooms);
    drop(hold);
    wait(WaitOptions::empty()).unwrap();
    rooms.look();
    let both = [place(&mut rooms), other];

    assert_ne!(other, first, "the first process was still in there");
    assert!(both.contains(&first), "it was not given again afterwards");
}

fn be_parent((): (), _: Vec<OwnedFd>) -> i32 {
    let mut text = String::from("before");
    let mut change = || text.push_str(", and after");
    let child = tether_sys::become_beside(&Birth::default(), &mut change).unwrap();
    let status = end_of(child.pid);
    i32::from(status != Some(127) || text != "before, and after")
}

fn what_a_child_did_beside_its_parent_is_there_and_leaves_the_room() {
    let mut rooms = Rooms::set_aside().unwrap();
    let first = place(&mut rooms);

    let (pid, room) = rooms.start(be_parent, (), &[]).unwrap();
    let status = end_of(pid);
    rooms.leave(room);
    rooms.look();

    assert_eq!(status, Some(0));
    assert_eq!(place(&mut rooms), first);
}

/// Allocates small and large pieces in both parts of its heap, and is killed with all of it.
fn allocate((): (), given: Vec<OwnedFd>) -> i32 {
    let mut kept = Vec::new();
    for size in 1..2_000_usize {
        kept.push(vec![size as u8; size % 700]);
        let passing = tether_sys::passing(|| vec![1_u8; size * 50]);
        if kept[size / 2]
            .iter()
            .any(|byte| *byte != (size / 2 + 1) as u8)
            || passing[size] != 1
        {
            return 1;
        }
        if size % 3 == 0 {
            kept[size / 3].truncate(1);
            kept[size / 3].shrink_to_fit();
        }
        if size % 500 == 0 {
            tether_sys::let_go();
        }
    }
    drop(kept.split_off(1_000));
    // Of one it is rid itself; with the other, which lies outside of its room as well, it is killed.
    let (gone, large) = (vec![6_u8; LARGE_BYTES], vec![7_u8; LARGE_BYTES]);
    drop(gone);
    let whole = kept
        .iter()
        .all(|piece| piece.iter().all(|byte| *byte == piece[0]));
    let whole = whole && large.iter().all(|byte| *byte == 7);
    let _ = write(&given[0], &[u8::from(whole)]);
    loop {
        tether_sys::wait_for_child_signal();
    }
}

fn a_process_that_allocates_much_and_dies_leaves_the_others_alone() {
    let mut rooms = Rooms::set_aside().unwrap();
    let before = mapped_bytes();
    let mut living = Vec::new();
    for _ in 0..8 {
        let (ours, theirs) = pipe();
        living.push((rooms.start(allocate, (), &[theirs.as_fd()]).unwrap(), ours));
    }

    let mut wholes = Vec::new();
    for ((pid, room), ours) in living {
        let mut whole = [0];
        read(&ours, &mut whole).unwrap();
        wholes.push(whole[0]);
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).unwrap();
        assert_eq!(end_of(pid), None);
        rooms.leave(room);
    }
    rooms.look();

    assert_eq!(wholes, [1; 8]);
    place(&mut rooms);
    let left = mapped_bytes().saturating_sub(before);
    assert!(left < LARGE_BYTES, "{left} bytes are left of the dead");
}

/// More than a heap has room for.
const LARGE_BYTES: usize = 1 << 20;

fn mapped_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = pages.split(' ').next().unwrap().parse().unwrap();
    pages * 4096
}
