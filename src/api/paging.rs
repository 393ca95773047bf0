//! Lists: how a page is gathered, and where it ends.
//!
//! A page ends at its size, or when it grows to [`MAX_PAGE_BYTES`]. Rows are read in chunks, so a
//! page of large rows costs the memory of one chunk more than the page, not of a thousand rows.

use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::store::{self, Page};

use super::Reason;
use super::status::Failure;
use super::token::Binding;

/// About where a page ends: clients usually accept 4 MiB.
pub(super) const MAX_PAGE_BYTES: usize = 3 * 1024 * 1024;
/// What an item of a list takes besides itself: tag and length.
pub(super) const ITEM_OVERHEAD: usize = 6;

/// Where the list goes on, as `page_token` says; `None` for its beginning.
pub(super) fn place<K: DeserializeOwned>(
    token: &str,
    binding: &Binding,
) -> Result<Option<K>, Failure> {
    if token.is_empty() {
        return Ok(None);
    }
    binding.open(token).map(Some).map_err(|_| Failure::of(Reason::PageTokenInvalid))
}

/// The token for `place`; empty for the end.
pub(super) fn next_token<K: Serialize>(
    place: Option<K>,
    binding: &Binding,
) -> Result<String, Failure> {
    place.map_or_else(
        || Ok(String::new()),
        |place| binding.seal(&place).map_err(|error| Failure::internal(&error)),
    )
}

/// A page of at most `size` messages, and the key of its last one when more follow. `read` reads
/// rows from behind a key, at most `chunk` at a time.
pub(super) async fn gather<T, K, M, F>(
    (size, chunk): (u64, u64),
    start: Option<K>,
    read: impl Fn(Option<K>, u64) -> F,
    key: impl Fn(&T) -> K,
    convert: impl Fn(T) -> M,
) -> Result<(Vec<M>, Option<K>), Failure>
where
    K: Clone,
    M: Message,
    F: Future<Output = Result<Page<T>, store::Error>>,
{
    let mut messages = Vec::new();
    let mut bytes = 0;
    let mut last = start;
    loop {
        let left = size.saturating_sub(messages.len() as u64);
        let page = read(last.clone(), left.min(chunk)).await?;
        for item in page.items {
            let place = key(&item);
            let message = convert(item);
            bytes += message.encoded_len() + ITEM_OVERHEAD;
            if bytes > MAX_PAGE_BYTES && !messages.is_empty() {
                return Ok((messages, last));
            }
            messages.push(message);
            last = Some(place);
        }
        if !page.has_more {
            return Ok((messages, None));
        }
        if messages.len() as u64 >= size {
            return Ok((messages, last));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::proto as pb;

    /// A list of `count` events of `bytes` bytes each, gathered page by page.
    async fn pages(count: u32, bytes: usize, size: u64) -> Vec<usize> {
        let read = |after: Option<u32>, limit: u64| async move {
            let first = after.map_or(0, |after| after + 1);
            let limit = u32::try_from(limit).expect("small");
            let items: Vec<u32> = (first..count.min(first + limit)).collect();
            Ok(Page { has_more: first + limit < count, items })
        };
        let convert = |_| pb::Event { data_json: "x".repeat(bytes), ..Default::default() };
        let (mut sizes, mut start) = (Vec::new(), None);
        loop {
            let (page, next) =
                gather((size, 10), start, read, |item| *item, convert).await.expect("read");
            sizes.push(page.len());
            match next {
                Some(_) => start = next,
                None => return sizes,
            }
        }
    }

    #[tokio::test]
    async fn pages_end_at_their_size_or_at_their_bytes() {
        assert_eq!(pages(0, 1, 50).await, [0]);
        assert_eq!(pages(25, 1, 50).await, [25]);
        assert_eq!(pages(25, 1, 10).await, [10, 10, 5]);
        assert_eq!(pages(20, 1, 10).await, [10, 10]);
        let mib = 1024 * 1024;
        assert_eq!(pages(7, mib, 50).await, [2, 2, 2, 1]);
        // One item always fits.
        assert_eq!(pages(3, 5 * mib, 50).await, [1, 1, 1]);
    }
}
