//! A key with what a commit put there, in one piece of memory.

use std::{borrow::Borrow, cmp::Ordering, sync::Arc};

use bytes::Bytes;

use crate::{Change, Entry, Revision};

/// Copies share it. In order, and equal, by the key alone.
///
/// ```text
/// | revision, 8 bytes | length of the key, 4 bytes | 1, or 0 for a deletion | key | value |
/// ```
#[derive(Debug, Clone)]
pub(crate) struct Row(Arc<[u8]>);

/// Where the length is, the mark, and the key.
const LENGTH: usize = size_of::<Revision>();
const MARK: usize = LENGTH + size_of::<u32>();
const KEY: usize = MARK + 1;

impl Row {
    /// What a commit put at a key; none where it deleted what was there.
    pub(crate) fn new(revision: Revision, key: &str, value: Option<&[u8]>) -> Self {
        let length = u32::try_from(key.len()).unwrap_or(u32::MAX);
        let there = [u8::from(value.is_some())];
        let parts = [
            &revision.to_le_bytes()[..],
            &length.to_le_bytes(),
            &there,
            key.as_bytes(),
            value.unwrap_or_default(),
        ];
        Self(parts.concat().into())
    }

    /// Of the commit.
    pub(crate) fn revision(&self) -> Revision {
        let bytes = self.0.first_chunk();
        bytes.map_or(0, |bytes| Revision::from_le_bytes(*bytes))
    }

    fn parts(&self) -> (&[u8], &[u8]) {
        let length = self.0[LENGTH..].first_chunk();
        let length = length.map_or(0, |bytes| u32::from_le_bytes(*bytes));
        self.0[KEY..].split_at(usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn key(&self) -> String {
        String::from_utf8_lossy(self.parts().0).into_owned()
    }

    fn value(&self) -> Option<Bytes> {
        let (_, value) = self.parts();
        (self.0[MARK] != 0).then(|| Bytes::copy_from_slice(value))
    }

    pub(crate) fn is_under(&self, prefix: &str) -> bool {
        self.parts().0.starts_with(prefix.as_bytes())
    }

    /// As what is there; none where that was deleted.
    pub(crate) fn entry(&self) -> Option<Entry> {
        Some(Entry {
            key: self.key(),
            value: self.value()?,
            mod_revision: self.revision(),
        })
    }

    /// As what the commit changed.
    pub(crate) fn change(&self) -> Change {
        Change {
            key: self.key(),
            value: self.value(),
        }
    }
}

impl Borrow<[u8]> for Row {
    fn borrow(&self) -> &[u8] {
        self.parts().0
    }
}

impl PartialEq for Row {
    fn eq(&self, other: &Self) -> bool {
        self.parts().0 == other.parts().0
    }
}

impl Eq for Row {}

impl PartialOrd for Row {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Row {
    fn cmp(&self, other: &Self) -> Ordering {
        self.parts().0.cmp(other.parts().0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_tells_what_was_put_there_or_that_it_was_deleted() {
        let put = Row::new(7, "a/ä", Some(b"x"));
        let empty = Row::new(8, "a/ä", Some(b""));
        let deleted = Row::new(9, "a/ä", None);

        let entry = put.entry().unwrap();
        assert_eq!(
            (&*entry.key, &*entry.value, entry.mod_revision),
            ("a/ä", &b"x"[..], 7)
        );
        assert_eq!(empty.change().value.as_deref(), Some(&b""[..]));
        assert_eq!((deleted.entry(), deleted.change().value), (None, None));
        assert!(put == empty && empty == deleted);
    }

    #[test]
    fn rows_are_in_the_order_of_their_keys_whatever_is_there() {
        let keys = ["", "a", "a/b", "ab", "b"];
        let rows = keys.map(|key| Row::new(u64::from(key.len() as u32), key, Some(b"zz")));

        assert!(rows.is_sorted());
        assert!(rows[2].is_under("a/") && !rows[3].is_under("a/"));
    }
}
