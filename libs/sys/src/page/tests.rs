//! The page as its writer and its readers see it, and the proof that no reader takes what is not its own.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::*;

const FIRST: Seat = Seat {
    slot: 3,
    generation: 1,
};
const SECOND: Seat = Seat {
    slot: 3,
    generation: 2,
};

fn both(at: u64) -> Until {
    Until {
        enabled: at,
        alive: at,
    }
}

#[test]
fn what_an_agent_stores_is_read_by_whoever_has_the_seat_and_by_nobody_else() {
    let made = View::make().unwrap();
    let page = Page::of(&made.writable).unwrap();
    assert_eq!(page.id(), made.view.id());
    assert_eq!(made.view.read(FIRST), None, "nobody has a seat yet");

    page.set_node(both(70));
    let apart = Until {
        enabled: 40,
        alive: 50,
    };
    page.open(FIRST, apart, 9);

    let said = made.view.read(FIRST).unwrap();
    assert_eq!((said.node, said.owner, said.epoch), (both(70), apart, 9));
    page.set(FIRST.slot, both(60), 10);
    assert_eq!(made.view.read(FIRST).unwrap().owner, both(60));
    let again = Page::of(&made.writable).unwrap();
    assert_eq!(
        [
            page.next_generation(),
            again.next_generation(),
            page.next_generation()
        ],
        [1, 2, 3],
        "whoever writes to it later goes on from there"
    );
    page.close(FIRST.slot);
    page.open(SECOND, both(99), 1);
    assert_eq!(made.view.read(FIRST), None, "it is another's");
    assert_eq!(made.view.read(SECOND).unwrap().owner, both(99));
    let beyond = Seat {
        slot: SLOTS,
        generation: 2,
    };
    page.open(beyond, both(1), 1);
    assert_eq!(made.view.read(beyond), None);
}

#[test]
fn a_page_cannot_be_cut_short_and_what_a_worker_is_given_cannot_be_written_to() {
    let made = View::make().unwrap();

    assert_eq!(ftruncate(&made.writable, 0), Err(Errno::PERM));
    assert!(Page::of(&made.readable).is_err());
    let last = Seat {
        slot: SLOTS - 1,
        generation: 1,
    };
    Page::of(&made.writable).unwrap().open(last, both(5), 1);
    let seen = View::of(&made.readable).unwrap();
    assert_eq!(seen.read(last).unwrap().owner, both(5));
}

#[test]
fn what_is_no_page_or_could_go_away_is_not_mapped() {
    let unsealed = |length| {
        let file = memfd_create(c"x", MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&file, length).unwrap();
        pwrite(&file, &MARK.to_ne_bytes(), 0).unwrap();
        file
    };
    let refused = |file: &OwnedFd| Page::of(file).is_err() && View::of(file).is_err();
    let all = SealFlags::SHRINK | SealFlags::GROW;

    assert!(refused(&unsealed(PAGE_BYTES as u64)));
    let short = unsealed(4096);
    fcntl_add_seals(&short, all).unwrap();
    assert!(refused(&short));
    let blank = unsealed(PAGE_BYTES as u64);
    pwrite(&blank, &[0; 8], 0).unwrap();
    fcntl_add_seals(&blank, all).unwrap();
    assert!(refused(&blank));
    assert!(refused(&File::open("/dev/null").unwrap().into()));
}

#[test]
fn a_slot_of_ones_own_is_found_by_whose_it_is_and_no_pool_ever_has_its_generation() {
    let made = View::make().unwrap();
    let page = Page::of(&made.writable).unwrap();
    let own = Seat {
        slot: SLOTS - 1,
        generation: Seat::own_generation(42),
    };
    assert!(own.is_own() && !FIRST.is_own());
    assert_eq!(page.find(own.generation), None);
    assert!(!page.is_open(own.slot));

    page.open(FIRST, both(10), 1);
    page.open_own(own, both(60), 1);

    let again = Page::of(&made.writable).unwrap();
    assert_eq!(again.find(own.generation), Some(own));
    assert_eq!(again.find(Seat::own_generation(43)), None);
    assert_eq!(made.view.read(own).unwrap().owner, both(60));
    assert!(page.is_open(FIRST.slot) && page.is_open(own.slot));
    assert!(!page.is_open(SLOTS));
}

/// A word of the model checker's.
struct Modelled(loom::sync::atomic::AtomicU64);

impl Word for Modelled {
    fn get(&self) -> u64 {
        self.0.load(loom::sync::atomic::Ordering::Acquire)
    }

    fn set(&self, value: u64) {
        self.0.store(value, loom::sync::atomic::Ordering::Release);
    }
}

/// A page with one slot, opened for the first seat.
fn modelled() -> Arc<Vec<Modelled>> {
    let word = |_| Modelled(loom::sync::atomic::AtomicU64::new(0));
    let words: Vec<_> = (0..SLOTS_AT + SLOT_WORDS).map(word).collect();
    set_until(&words[NODE_AT..], both(10));
    open(&words, seat(1), both(10), 1);
    Arc::new(words)
}

fn seat(generation: u64) -> Seat {
    Seat {
        slot: 0,
        generation,
    }
}

/// Every order of every load and store that the memory model allows.
#[test]
fn no_reader_takes_the_time_of_a_slots_next_owner_for_its_own() {
    loom::model(|| {
        let words = modelled();
        let theirs = Arc::clone(&words);
        let writer = loom::thread::spawn(move || {
            close(&theirs, 0);
            open(&theirs, seat(2), both(99), 2);
        });

        let said = read(&words, seat(1));

        assert!(said.is_none_or(|said| said.owner == both(10)), "{said:?}");
        writer.join().unwrap();
        assert_eq!(read(&words, seat(1)), None);
        assert_eq!(read(&words, seat(2)).map(|said| said.owner), Some(both(99)));
    });
}

#[test]
fn no_reader_of_an_ended_term_sees_the_time_of_the_next() {
    loom::model(|| {
        let words = modelled();
        let theirs = Arc::clone(&words);
        let writer = loom::thread::spawn(move || {
            close(&theirs, 0);
            set_until(&theirs[NODE_AT..], both(99));
        });

        let said = read(&words, seat(1));

        assert!(said.is_none_or(|said| said.node == both(10)), "{said:?}");
        writer.join().unwrap();
    });
}

#[test]
fn whoever_sees_that_somebody_moved_finds_its_own_seat() {
    loom::model(|| {
        let words = modelled();
        let theirs = Arc::clone(&words);
        let own = seat(Seat::own_generation(7));
        let writer = loom::thread::spawn(move || {
            close(&theirs, 0);
            open_own(&theirs, own, both(60), 2);
        });

        let moves = words[MOVES_AT].get();
        let found = find(&words, own.generation);

        assert!(moves == 0 || found == Some(own), "{found:?}");
        let said = found.and_then(|found| read(&words, found));
        assert!(said.is_none_or(|said| said.owner == both(60)), "{said:?}");
        writer.join().unwrap();
        assert_eq!(find(&words, own.generation), Some(own));
    });
}

#[test]
fn a_renewal_is_read_whole_or_not_yet() {
    loom::model(|| {
        let words = modelled();
        let theirs = Arc::clone(&words);
        let writer = loom::thread::spawn(move || set_until(&theirs[NODE_AT..], both(20)));

        let said = read(&words, seat(1)).unwrap();

        assert!([10, 20].contains(&said.node.alive), "{said:?}");
        writer.join().unwrap();
        assert_eq!(read(&words, seat(1)).unwrap().node, both(20));
    });
}
