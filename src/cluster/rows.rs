//! A table by numbers that are handed out one after the other: neighbours lie side by side, so what goes through many of
//! them in a row does not look for each, and a page of them is given back when its last has gone, but for a few that are
//! kept for the numbers to come.

use rustc_hash::FxHashMap;

/// So many numbers share a page.
const PAGE: u64 = 64;
/// So many empty pages are kept.
const SPARE: usize = 2;

pub(crate) struct Rows<T> {
    pages: FxHashMap<u64, Page<T>>,
    spare: Vec<Page<T>>,
    len: usize,
}

struct Page<T> {
    rows: Box<[Option<T>]>,
    len: u32,
}

impl<T> Default for Rows<T> {
    fn default() -> Self {
        Rows { pages: FxHashMap::default(), spare: Vec::new(), len: 0 }
    }
}

fn place(number: u64) -> (u64, usize) {
    (number / PAGE, (number % PAGE) as usize)
}

impl<T> Rows<T> {
    pub(crate) fn get(&self, number: u64) -> Option<&T> {
        let (page, at) = place(number);
        self.pages.get(&page)?.rows[at].as_ref()
    }

    pub(crate) fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        let (page, at) = place(number);
        self.pages.get_mut(&page)?.rows[at].as_mut()
    }

    pub(crate) fn contains(&self, number: u64) -> bool {
        self.get(number).is_some()
    }

    pub(crate) fn insert(&mut self, number: u64, row: T) -> Option<T> {
        let (page, at) = place(number);
        let spare = &mut self.spare;
        let new = || spare.pop().unwrap_or_else(|| Page { rows: (0..PAGE).map(|_| None).collect(), len: 0 });
        let page = self.pages.entry(page).or_insert_with(new);
        let before = page.rows[at].replace(row);
        if before.is_none() {
            page.len += 1;
            self.len += 1;
        }
        before
    }

    pub(crate) fn remove(&mut self, number: u64) -> Option<T> {
        let (number, at) = place(number);
        let page = self.pages.get_mut(&number)?;
        let row = page.rows[at].take()?;
        self.len -= 1;
        page.len -= 1;
        if page.len == 0 {
            let page = self.pages.remove(&number).filter(|_| self.spare.len() < SPARE);
            self.spare.extend(page);
        }
        Some(row)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All, in no order.
    pub(crate) fn into_values(self) -> impl Iterator<Item = T> {
        self.pages.into_values().flat_map(|page| page.rows.into_iter().flatten())
    }

    /// All, in the order of their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        let mut pages: Vec<_> = self.pages.iter().collect();
        pages.sort_unstable_by_key(|(page, _)| **page);
        pages.into_iter().flat_map(|(page, rows)| {
            let numbers = page * PAGE..;
            numbers.zip(&*rows.rows).filter_map(|(number, row)| Some((number, row.as_ref()?)))
        })
    }

    /// The same, to be changed.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut T)> {
        let mut pages: Vec<_> = self.pages.iter_mut().collect();
        pages.sort_unstable_by_key(|(page, _)| **page);
        pages.into_iter().flat_map(|(page, rows)| {
            let numbers = page * PAGE..;
            numbers.zip(&mut *rows.rows).filter_map(|(number, row)| Some((number, row.as_mut()?)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn it_is_a_map_and_keeps_no_page_that_is_empty(steps in prop::collection::vec((0..300_u64, any::<bool>()), 0..500)) {
            let (mut rows, mut model) = (Rows::default(), BTreeMap::new());
            for (at, (number, inserts)) in steps.into_iter().enumerate() {
                match inserts {
                    true => prop_assert_eq!(rows.insert(number, at), model.insert(number, at)),
                    false => prop_assert_eq!(rows.remove(number), model.remove(&number)),
                }
                prop_assert_eq!((rows.len(), rows.is_empty()), (model.len(), model.is_empty()));
                prop_assert_eq!((rows.get(number), rows.contains(number)), (model.get(&number), model.contains_key(&number)));
            }
            prop_assert!(rows.iter().map(|(number, row)| (number, *row)).eq(model.clone()));
            rows.iter_mut().for_each(|(number, row)| *row = number as usize);
            prop_assert!(rows.iter().all(|(number, row)| *row == number as usize));
            prop_assert!(model.keys().all(|number| rows.remove(*number) == Some(*number as usize)));
            prop_assert!(rows.pages.is_empty() && rows.spare.len() <= SPARE);
            prop_assert!(rows.spare.iter().flat_map(|page| &page.rows).all(Option::is_none));
        }
    }
}
