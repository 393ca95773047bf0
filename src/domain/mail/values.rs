//! Reads a payload for people: lazily, in bounded memory, with numbers as they were emitted.
//!
//! `serde_json`'s own values would turn large integers into floats and reorder members, so raw values
//! are walked. What cannot be read as text (a lone surrogate) is shown as it was written.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Number, Value};

use super::clean;

/// Most values, containers included, that a template sees of a payload.
const MAX_NODES: usize = 2_000;
/// Most characters of a string that a template sees.
const MAX_STRING_CHARS: usize = 4_000;
/// Most characters of a member's name.
const MAX_NAME_CHARS: usize = 100;
/// Most characters of a number that is shown in full.
const MAX_NUMBER_CHARS: usize = 100;

/// One value of a payload.
pub(super) enum Node<'a> {
    /// Members in order, duplicates included.
    Object(Vec<(String, &'a RawValue)>),
    /// Items in order.
    Array(Vec<&'a RawValue>),
    /// Text, cleaned.
    Text(String),
    /// A number as it was written.
    Number(&'a str),
    /// True or false.
    Bool(bool),
    /// Nothing.
    Null,
}

impl<'a> Node<'a> {
    /// The value that `raw` is.
    pub(super) fn of(raw: &'a RawValue) -> Self {
        let written = raw.get();
        let as_written = || Self::Text(clean::text(written, MAX_STRING_CHARS));
        match written.as_bytes().first() {
            Some(b'{') => serde_json::from_str::<Members<'a>>(written)
                .map_or_else(|_| as_written(), |members| Self::Object(members.0)),
            Some(b'[') => serde_json::from_str::<Items<'a>>(written)
                .map_or_else(|_| as_written(), |items| Self::Array(items.0)),
            Some(b'"') => serde_json::from_str::<Cow<'_, str>>(written).map_or_else(
                |_| as_written(),
                |text| Self::Text(clean::text(&text, MAX_STRING_CHARS)),
            ),
            Some(b't') => Self::Bool(true),
            Some(b'f') => Self::Bool(false),
            Some(b'n') => Self::Null,
            _ if written.len() > MAX_NUMBER_CHARS => as_written(),
            _ => Self::Number(written),
        }
    }
}

/// The payload as templates see it. What is too much is left out.
pub(super) fn value(raw: &RawValue) -> Value {
    let mut left = MAX_NODES;
    build(raw, &mut left)
}

fn build(raw: &RawValue, left: &mut usize) -> Value {
    *left = left.saturating_sub(1);
    match Node::of(raw) {
        Node::Object(members) => {
            let mut object = Map::new();
            for (name, member) in members {
                if *left == 0 {
                    break;
                }
                object.insert(name, build(member, left));
            }
            Value::Object(object)
        }
        Node::Array(items) => {
            let mut array = Vec::new();
            for item in items {
                if *left == 0 {
                    break;
                }
                array.push(build(item, left));
            }
            Value::Array(array)
        }
        Node::Text(text) => Value::String(text),
        Node::Number(written) => number(written),
        Node::Bool(value) => Value::Bool(value),
        Node::Null => Value::Null,
    }
}

/// A number when it is shown again as it was written, else its text.
fn number(written: &str) -> Value {
    let number = written.parse::<Number>().ok();
    match number.filter(|number| number.to_string() == written) {
        Some(number) => Value::Number(number),
        None => Value::String(written.to_owned()),
    }
}

struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some((name, value)) = map.next_entry::<Cow<'de, str>, &'de RawValue>()? {
                    if members.len() < MAX_NODES {
                        members.push((clean::line(&name, MAX_NAME_CHARS), value));
                    }
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(All)
    }
}

struct Items<'a>(Vec<&'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for Items<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Items<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element::<&'de RawValue>()? {
                    if items.len() < MAX_NODES {
                        items.push(item);
                    }
                }
                Ok(Items(items))
            }
        }
        deserializer.deserialize_seq(All)
    }
}
