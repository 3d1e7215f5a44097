//! Maps of fields that are not needed any more, for the messages to come: a map takes two allocations, and a call has
//! three maps.

use std::cell::RefCell;

use http::HeaderMap;

/// How many are kept for a thread.
const KEPT: usize = 256;

/// A map that has room for more fields is not kept.
const LARGEST: usize = 16;

thread_local! {
    static SPARE: RefCell<Vec<HeaderMap>> = const { RefCell::new(Vec::new()) };
}

/// Keeps the room of a map that is not needed any more, and nothing of what is in it.
pub fn recycle(mut map: HeaderMap) {
    if !(1..=LARGEST).contains(&map.capacity()) {
        return;
    }
    map.clear();
    // Where the thread ends nobody needs it.
    let _ = SPARE.try_with(|spare| {
        let mut spare = spare.borrow_mut();
        if spare.len() < KEPT {
            spare.push(map);
        }
    });
}

/// An empty map.
pub(crate) fn take() -> HeaderMap {
    let spare = SPARE.try_with(|spare| spare.borrow_mut().pop());
    spare.ok().flatten().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn map(fields: usize) -> HeaderMap {
        let name = |at| HeaderName::try_from(format!("x-{at}")).expect("it is a name");
        let field = |at| (name(at), HeaderValue::from_static("word"));
        (0..fields).map(field).collect()
    }

    #[test]
    fn of_a_map_only_its_room_is_kept_and_of_a_large_one_nothing() {
        recycle(map(3));
        recycle(map(100));
        let first = take();

        assert!(first.is_empty() && first.capacity() >= 3);
        assert_eq!(take().capacity(), 0);
    }

    #[test]
    fn no_more_are_kept_than_are_needed() {
        for _ in 0..2 * KEPT {
            recycle(map(1));
        }
        let kept = SPARE.with(|spare| spare.borrow().len());
        assert_eq!(kept, KEPT);
    }
}
