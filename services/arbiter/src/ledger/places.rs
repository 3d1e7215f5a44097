//! The places of a pool by their numbers, in as little memory as a million of them want.

use std::{collections::BTreeMap, ops::RangeInclusive};

use tether_types::Slot;

/// Places are numbered from 0 on, so that of a few that lie beside each other mostly all are there.
const TOGETHER: Slot = 16;

/// A map whose nodes are as full as the pool is: those of a tree that grew in order are half empty.
#[derive(Debug)]
pub(super) struct Places<T>(BTreeMap<Slot, Box<Row<T>>>);

type Row<T> = [Option<T>; TOGETHER as usize];

impl<T> Default for Places<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

fn split(slot: Slot) -> (Slot, usize) {
    (slot / TOGETHER, (slot % TOGETHER) as usize)
}

fn slots(row: Slot) -> RangeInclusive<Slot> {
    let first = row * TOGETHER;
    first..=first + (TOGETHER - 1)
}

impl<T> Places<T> {
    pub(super) fn get(&self, slot: Slot) -> Option<&T> {
        let (row, at) = split(slot);
        self.0.get(&row)?[at].as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: Slot) -> Option<&mut T> {
        let (row, at) = split(slot);
        self.0.get_mut(&row)?[at].as_mut()
    }

    pub(super) fn contains(&self, slot: Slot) -> bool {
        self.get(slot).is_some()
    }

    fn at(&mut self, slot: Slot) -> &mut Option<T> {
        let (row, at) = split(slot);
        let row = self.0.entry(row);
        &mut row.or_insert_with(|| Box::new([const { None }; _]))[at]
    }

    pub(super) fn get_or_insert_with(&mut self, slot: Slot, make: impl FnOnce() -> T) -> &mut T {
        self.at(slot).get_or_insert_with(make)
    }

    pub(super) fn insert(&mut self, slot: Slot, place: T) {
        *self.at(slot) = Some(place);
    }

    pub(super) fn remove(&mut self, slot: Slot) -> Option<T> {
        let (row, at) = split(slot);
        let places = self.0.get_mut(&row)?;
        let removed = places[at].take();
        if places.iter().all(Option::is_none) {
            self.0.remove(&row);
        }
        removed
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In the order of their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Slot, &T)> + Clone {
        self.0.iter().flat_map(|(&row, places)| {
            let numbered = slots(row).zip(places.iter());
            numbered.filter_map(|(slot, place)| Some((slot, place.as_ref()?)))
        })
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &T> + Clone {
        self.iter().map(|(_, place)| place)
    }

    pub(super) fn slots(&self) -> impl Iterator<Item = Slot> {
        self.iter().map(|(slot, _)| slot)
    }

    pub(super) fn range_mut(
        &mut self,
        range: RangeInclusive<Slot>,
    ) -> impl Iterator<Item = (Slot, &mut T)> {
        let rows = split(*range.start()).0..=split(*range.end()).0;
        self.0.range_mut(rows).flat_map(move |(&row, places)| {
            let range = range.clone();
            let numbered = slots(row).zip(places.iter_mut());
            let numbered = numbered.filter(move |(slot, _)| range.contains(slot));
            numbered.filter_map(|(slot, place)| Some((slot, place.as_mut()?)))
        })
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.range_mut(0..=Slot::MAX).map(|(_, place)| place)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn slot() -> impl Strategy<Value = Slot> {
        prop_oneof![0..40_u32, (Slot::MAX - 20)..=Slot::MAX]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_is_an_ordered_map(
            steps in vec((0..4_u8, slot(), any::<u8>()), 0..80),
            (from, to) in (slot(), slot()),
        ) {
            let (mut places, mut model) = (Places::default(), BTreeMap::new());
            for (what, slot, value) in steps {
                match what {
                    0 => prop_assert_eq!(places.remove(slot), model.remove(&slot)),
                    1 => {
                        let kept = *places.get_or_insert_with(slot, || value);
                        prop_assert_eq!(kept, *model.entry(slot).or_insert(value));
                    }
                    _ => {
                        places.insert(slot, value);
                        model.insert(slot, value);
                    }
                }
                prop_assert_eq!(places.get(slot), model.get(&slot));
                prop_assert_eq!(places.get_mut(slot), model.get_mut(&slot));
                prop_assert_eq!(places.contains(slot), model.contains_key(&slot));
                prop_assert_eq!(places.is_empty(), model.is_empty());
            }
            prop_assert!(places.iter().eq(model.iter().map(|(&slot, value)| (slot, value))));
            prop_assert!(places.values().eq(model.values()));
            prop_assert!(places.slots().eq(model.keys().copied()));
            let range = from.min(to)..=from.max(to);
            places.range_mut(range.clone()).for_each(|(_, value)| *value = value.wrapping_add(1));
            model.range_mut(range).for_each(|(_, value)| *value = value.wrapping_add(1));
            prop_assert!(places.iter().eq(model.iter().map(|(&slot, value)| (slot, value))));
            places.values_mut().for_each(|value| *value = 0);
            prop_assert!(places.values().all(|value| *value == 0));
        }
    }
}
