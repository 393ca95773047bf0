//! The headers of a request or an answer, as they are recorded.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What a header takes, about: the room to reserve.
const HEADER_BYTES: usize = 48;

/// Names and values in order, all in one text: with each attempt there are a dozen of them, and two
/// texts each would be most of what it allocates.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct HeaderList {
    text: String,
    /// Where in the text each name and each value ends, by turns.
    ends: Vec<usize>,
}

impl HeaderList {
    /// An empty list with room for `count` headers.
    pub fn with_capacity(count: usize) -> Self {
        Self {
            text: String::with_capacity(count * HEADER_BYTES),
            ends: Vec::with_capacity(count * 2),
        }
    }

    /// Adds a header.
    pub fn push(&mut self, name: &str, value: &str) {
        for part in [name, value] {
            self.text.push_str(part);
            self.ends.push(self.text.len());
        }
    }

    /// Names and values.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        let mut begin = 0;
        self.ends.chunks_exact(2).map(move |ends| {
            let (name, value) = (begin..ends[0], ends[0]..ends[1]);
            begin = ends[1];
            (&self.text[name], &self.text[value])
        })
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}

impl<N: AsRef<str>, V: AsRef<str>> FromIterator<(N, V)> for HeaderList {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(headers: I) -> Self {
        let mut list = Self::default();
        for (name, value) in headers {
            list.push(name.as_ref(), value.as_ref());
        }
        list
    }
}

impl fmt::Debug for HeaderList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// An array of pairs.
impl Serialize for HeaderList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for HeaderList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Vec::<(String, String)>::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_in_order_and_are_written_as_pairs() {
        let headers = [("a", "1"), ("", ""), ("ä", "\"2\""), ("a", "")];
        let list: HeaderList = headers.into_iter().collect();
        assert_eq!(list.iter().collect::<Vec<_>>(), headers);
        let written = serde_json::to_string(&list).expect("written");
        assert_eq!(written, r#"[["a","1"],["",""],["ä","\"2\""],["a",""]]"#);
        assert_eq!(serde_json::from_str::<HeaderList>(&written).expect("read"), list);
        assert!(!list.is_empty() && HeaderList::with_capacity(1).is_empty());
    }
}
