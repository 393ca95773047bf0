//! How violations are told when they are more than an answer has room for: every wrong field is
//! named, and the descriptions become shorter instead.
//!
//! First the items of one list or map are told as one violation of the list, with their places in
//! its description; then each description gets an equal part of the room that is left. What a request
//! can have besides lists and maps is some thirty fields, so that their names always have room.

use std::fmt::Write as _;

use crate::domain::Violations;

/// Most bytes of one violation's field, and of its description.
const MAX_TEXT_BYTES: usize = 300;
/// Fewest bytes of a description that say anything.
const MIN_TEXT_BYTES: usize = 24;
/// Most bytes that the places within a list take in a description.
const MAX_PLACES_BYTES: usize = 200;

/// A violation as it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    field: String,
    description: String,
    /// The items that are wrong, when it is told of several.
    places: Vec<String>,
}

/// The violations that fit into an answer of `budget` bytes, as (field, description).
pub(super) fn told(violations: &Violations, budget: usize) -> Vec<(String, String)> {
    let mut told: Vec<_> = violations
        .iter()
        .map(|violation| Told {
            field: shortened(&violation.field, MAX_TEXT_BYTES),
            description: shortened(&violation.description, MAX_TEXT_BYTES),
            places: Vec::new(),
        })
        .collect();
    if size(&told) > budget {
        told = merged(told);
    }
    if size(&told) > budget {
        let names: usize = told.iter().map(|violation| violation.field.len()).sum();
        let room = budget.saturating_sub(names) / told.len().max(1);
        for violation in &mut told {
            violation.shorten(room.max(MIN_TEXT_BYTES));
        }
    }
    let mut told: Vec<_> = told.into_iter().map(Told::into_text).collect();
    // Only a budget that is smaller than the names gets here; the message has the count.
    let mut left = budget;
    told.retain(|(field, description)| {
        let rest = left.checked_sub(field.len() + description.len());
        left = rest.unwrap_or(0);
        rest.is_some()
    });
    told
}

fn size(told: &[Told]) -> usize {
    told.iter().map(|violation| violation.field.len() + violation.text().len()).sum()
}

/// One violation for all items of a list or a map. A list's own violation stays beside it.
fn merged(told: Vec<Told>) -> Vec<Told> {
    let mut merged: Vec<Told> = Vec::new();
    for violation in told {
        let Some((list, place)) = item(&violation.field) else {
            merged.push(violation);
            continue;
        };
        let (list, place) = (list.to_owned(), place.to_owned());
        match merged.iter_mut().find(|known| known.field == list && !known.places.is_empty()) {
            Some(known) if known.places.contains(&place) => {}
            Some(known) => known.places.push(place),
            None => merged.push(Told { field: list, places: vec![place], ..violation }),
        }
    }
    for violation in &mut merged {
        if let [place] = violation.places.as_slice() {
            violation.field.push_str(place);
            violation.places.clear();
        }
    }
    merged
}

/// `headers["x-a"]` as `headers` and `["x-a"]`; what lies below an item belongs to its place.
fn item(field: &str) -> Option<(&str, &str)> {
    field.find('[').map(|place| field.split_at(place))
}

impl Told {
    /// What is told beside the field.
    fn text(&self) -> String {
        let [first, others @ ..] = self.places.as_slice() else {
            return self.description.clone();
        };
        let mut places = first.clone();
        for (index, place) in others.iter().enumerate() {
            if places.len() + place.len() > MAX_PLACES_BYTES {
                let _ = write!(places, " and {} more", others.len() - index);
                break;
            }
            let _ = write!(places, ", {place}");
        }
        format!("{places}: the first {}", self.description)
    }

    fn shorten(&mut self, bytes: usize) {
        let beside = self.text().len() - self.description.len();
        let room = bytes.saturating_sub(beside).max(MIN_TEXT_BYTES);
        self.description = shortened(&self.description, room);
    }

    fn into_text(self) -> (String, String) {
        let text = self.text();
        (self.field, text)
    }
}

/// `text`, or its beginning when it is longer than `max` bytes, with a mark that it goes on.
pub(super) fn shortened(text: &str, max: usize) -> String {
    const MARK: &str = "…";
    if text.len() <= max {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(max.saturating_sub(MARK.len()));
    format!("{}{MARK}", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: usize = 3 * 1024;

    fn told_of(fields: impl IntoIterator<Item = (String, String)>) -> Vec<(String, String)> {
        let mut violations = Violations::new();
        for (field, description) in fields {
            violations.add(field, description);
        }
        let told = told(&violations, BUDGET);
        let size: usize = told.iter().map(|(field, text)| field.len() + text.len()).sum();
        assert!(size <= BUDGET, "{size}");
        told
    }

    #[test]
    fn what_has_room_is_told_as_it_is() {
        let few = [("a", "must be b"), ("c[0]", "must be d"), ("c[1]", "must be d")];
        let few = few.map(|(field, text)| (field.to_owned(), text.to_owned()));
        assert_eq!(told_of(few.clone()), few);
    }

    #[test]
    fn a_long_list_leaves_room_for_every_other_field() {
        let items = (0..90).map(|index| (format!("event_types[{index}]"), "x".repeat(200)));
        let others = (0..9).map(|index| (format!("field_{index}"), "y".repeat(250)));
        let told = told_of(items.chain(others));
        let fields: Vec<_> = told.iter().map(|(field, _)| field.as_str()).collect();
        assert_eq!(fields[0], "event_types");
        assert!((0..9).all(|index| fields.contains(&format!("field_{index}").as_str())));
        let places = &told[0].1;
        assert!(places.starts_with("[0], [1], [2]") && places.contains(" more: "), "{places}");
    }

    #[test]
    fn a_list_and_its_items_are_told_apart() {
        let items = (0..60).map(|index| (format!("l[{index}].x"), "ä".repeat(150)));
        let told = told_of([("l".to_owned(), "has too many".to_owned())].into_iter().chain(items));
        assert_eq!(told[0], ("l".to_owned(), "has too many".to_owned()));
        assert_eq!((told.len(), told[1].0.as_str()), (2, "l"));
        assert!(told[1].1.starts_with("[0].x, [1].x"), "{}", told[1].1);
    }

    #[test]
    fn a_budget_that_is_too_small_even_for_the_names_is_kept() {
        let mut violations = Violations::new();
        for index in 0..100 {
            violations.add(format!("field_{index}"), "must not be empty");
        }
        let told = told(&violations, 512);
        assert!((1..100).contains(&told.len()));
    }
}
