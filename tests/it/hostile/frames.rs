//! Frames of HTTP/2 (RFC 9113, section 4), written by hand so that they can be wrong.

use tokio::io::{AsyncRead, AsyncReadExt};

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

/// What a client sends first of all (section 3.4).
const PREFACE_BYTES: usize = 24;
/// The header of a frame.
const HEADER_BYTES: usize = 9;

/// HPACK: `:status: 200`, from the static table.
pub(super) const STATUS_200: &[u8] = &[0x88];

/// One frame.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame").to_be_bytes();
    let head = [length[1], length[2], length[3], kind, flags];
    [&head[..], &stream.to_be_bytes(), payload].concat()
}

/// SETTINGS with one value; none for `None`.
pub(super) fn settings(value: Option<(u16, u32)>) -> Vec<u8> {
    let payload = value.map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat());
    frame(SETTINGS, 0, 0, &payload.unwrap_or_default())
}

/// HPACK: a header that is written out and not kept.
pub(super) fn literal(name: &str, value: &str) -> Vec<u8> {
    let length = |text: &str| u8::try_from(text.len()).expect("short");
    [&[0, length(name)], name.as_bytes(), &[length(value)], value.as_bytes()].concat()
}

/// Reads the client's frames until the head of its request has come.
pub(super) async fn read_head(stream: &mut (impl AsyncRead + Unpin)) {
    let mut preface = [0; PREFACE_BYTES];
    if stream.read_exact(&mut preface).await.is_err() {
        return;
    }
    let mut head = [0; HEADER_BYTES];
    while stream.read_exact(&mut head).await.is_ok() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).expect("small")];
        if stream.read_exact(&mut payload).await.is_err() || head[3] == HEADERS {
            return;
        }
    }
}
