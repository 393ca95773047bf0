//! Reading a request's body, and no more of it than there is room and time for.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Body;
use tokio::time;

/// How long a body may take to arrive.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The body was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// It is larger than it may be.
    TooLarge,
    /// It was cut off, or took too long.
    Broken,
}

/// The whole body, of at most `most` bytes.
pub(super) async fn read<B>(body: B, most: usize) -> Result<Bytes, Unread>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    // Said beforehand by most clients: then not even the beginning is read.
    if body.size_hint().lower() > most as u64 {
        return Err(Unread::TooLarge);
    }
    match time::timeout(TIMEOUT, Limited::new(body, most).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(Unread::TooLarge),
        Ok(Err(_)) | Err(_) => Err(Unread::Broken),
    }
}
