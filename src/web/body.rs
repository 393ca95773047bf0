//! Reading a request's body, and no more of it than there is room and time for.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Limited};
use hyper::body::Body;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time;

/// How long a body may take to arrive.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes that a permit of a shared room stands for.
pub(super) const UNIT: usize = 64 * 1024;

/// The body was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// It is larger than it may be.
    TooLarge,
    /// It was cut off, or took too long.
    Broken,
    /// Others have the room.
    NoRoom,
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

/// The whole body, of at most `most` bytes, read into a room that is shared. Room is taken as bytes come:
/// who sends slowly, or nothing, keeps little from others. It is given back with the permit.
pub(super) async fn read_into<B>(
    body: B,
    most: usize,
    room: &Arc<Semaphore>,
) -> Result<(Bytes, OwnedSemaphorePermit), Unread>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if body.size_hint().lower() > most as u64 {
        return Err(Unread::TooLarge);
    }
    let unit = || Arc::clone(room).try_acquire_owned().map_err(|_| Unread::NoRoom);
    let mut held = unit()?;
    let mut read = BytesMut::new();
    let mut body = pin!(body);
    let reading = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Unread::Broken)?;
            let Ok(data) = frame.into_data() else { continue };
            let length = read.len() + data.len();
            if length > most {
                return Err(Unread::TooLarge);
            }
            while held.num_permits() * UNIT < length {
                held.merge(unit()?);
            }
            read.extend_from_slice(&data);
        }
        Ok(())
    };
    time::timeout(TIMEOUT, reading).await.map_err(|_| Unread::Broken)??;
    Ok((read.freeze(), held))
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, stream};
    use http_body_util::{Full, StreamBody};
    use hyper::body::Frame;

    use super::*;

    /// A body of which `bytes` come, and then nothing more for ever.
    fn stuck(bytes: usize) -> impl Body<Data = Bytes, Error = std::io::Error> {
        use futures::StreamExt;
        let first = stream::iter([Ok(Frame::data(Bytes::from(vec![0; bytes])))]);
        StreamBody::new(first.chain(stream::pending()))
    }

    #[tokio::test]
    async fn slow_bodies_hold_no_more_room_than_has_come() {
        let room = Arc::new(Semaphore::new(4));
        let mut slow: Vec<_> =
            (0..2).map(|_| Box::pin(read_into(stuck(1), 10 * UNIT, &room))).collect();
        for reading in &mut slow {
            assert!(reading.as_mut().now_or_never().is_none());
        }
        assert_eq!(room.available_permits(), 2);
        let whole = Full::new(Bytes::from(vec![1; 2 * UNIT]));
        let (bytes, held) = read_into(whole.clone(), 10 * UNIT, &room).await.expect("room");
        assert_eq!((bytes.len(), room.available_permits()), (2 * UNIT, 0));
        assert_eq!(read_into(whole.clone(), 10 * UNIT, &room).await.err(), Some(Unread::NoRoom));
        drop((held, slow));
        assert_eq!(room.available_permits(), 4, "all of it comes back");
        assert!(read_into(whole.clone(), 2 * UNIT, &room).await.is_ok());
        assert_eq!(read_into(whole, UNIT, &room).await.err(), Some(Unread::TooLarge));
        assert_eq!(room.available_permits(), 4);
    }
}
