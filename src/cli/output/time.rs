//! Times and durations as people write and read them.
//!
//! For programs times are RFC 3339 in UTC; for people a recent time is told by its distance.

use std::time::Duration;

use crate::domain::Timestamp;

const SECOND: u64 = 1;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
/// Beyond this distance a date says more than a number of days.
const RELATIVE_LIMIT: Duration = Duration::from_secs(14 * DAY);

/// The present, as this machine's clock has it. The one place where a command reads it.
pub fn now() -> Timestamp {
    #[expect(clippy::disallowed_methods, reason = "a command line has no clock but the machine's")]
    let now = jiff::Timestamp::now();
    Timestamp::from_micros(now.as_microsecond())
}

/// An instant of the contract as ours. What is out of range becomes the nearest that is not.
pub fn from_proto(time: &prost_types::Timestamp) -> Timestamp {
    let micros =
        time.seconds.saturating_mul(1_000_000).saturating_add(i64::from(time.nanos) / 1_000);
    Timestamp::from_micros(micros)
}

/// Our instant as the contract's.
pub fn to_proto(time: Timestamp) -> prost_types::Timestamp {
    let micros = i32::try_from(time.as_micros().rem_euclid(1_000_000)).unwrap_or(0);
    prost_types::Timestamp { seconds: time.as_secs(), nanos: micros * 1_000 }
}

/// A duration of the contract as ours; a negative one, which there is none of, as zero.
pub fn duration_from_proto(duration: &prost_types::Duration) -> Duration {
    Duration::try_from(*duration).unwrap_or_default()
}

/// Our duration as the contract's.
pub fn duration_to_proto(duration: Duration) -> prost_types::Duration {
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    prost_types::Duration { seconds, nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0) }
}

/// `3 min ago`, `in 20 s`; a date when that is far away.
pub fn relative(time: Timestamp, now: Timestamp) -> String {
    let (past, future) = (now.since(time), time.since(now));
    let distance = past.max(future);
    if distance > RELATIVE_LIMIT {
        return date(time);
    }
    if distance < Duration::from_millis(500) {
        return "now".to_owned();
    }
    let amount = coarse(distance);
    if past > future { format!("{amount} ago") } else { format!("in {amount}") }
}

/// `2026-02-05 09:30:00` in UTC.
pub fn date(time: Timestamp) -> String {
    let text = time.to_string();
    text.get(..19).map_or(text.clone(), |day| day.replace('T', " "))
}

/// `09:30:00.250` in UTC: for streams, where the day is known.
pub fn clock(time: Timestamp) -> String {
    let micros = time.as_micros().rem_euclid(86_400_000_000);
    let (seconds, millis) = (micros / 1_000_000, micros / 1_000 % 1_000);
    format!("{:02}:{:02}:{:02}.{millis:03}", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}

/// One number and its unit, rounded: `12 ms`, `1.4 s`, `3 min`, `2 h`, `5 d`. What was two days a
/// moment ago is still told as two days.
pub fn coarse(duration: Duration) -> String {
    let seconds = if duration.as_secs() < 10 {
        duration.as_secs()
    } else {
        duration.saturating_add(Duration::from_millis(500)).as_secs()
    };
    let rounded = |unit: u64| seconds.saturating_add(unit / 2) / unit;
    match seconds {
        0 if duration.as_micros() < 1_000 => format!("{} µs", duration.as_micros()),
        0 => format!("{} ms", duration.as_millis()),
        _ if seconds < 10 => format!("{:.1} s", duration.as_secs_f64()),
        _ if seconds < 2 * MINUTE => format!("{seconds} s"),
        _ if rounded(MINUTE) < 120 => format!("{} min", rounded(MINUTE)),
        _ if rounded(HOUR) < 48 => format!("{} h", rounded(HOUR)),
        _ => format!("{} d", rounded(DAY)),
    }
}

/// A duration exactly, as it can be given to an option: `1h30m`, `200ms`.
pub fn exact(duration: Duration) -> String {
    let mut text = String::new();
    let mut rest = duration.as_millis();
    for (unit, millis) in
        [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)]
    {
        if rest >= millis {
            text = format!("{text}{}{unit}", rest / millis);
            rest %= millis;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// Reads a duration such as `500ms`, `20s`, `1h30m`, `2d`.
///
/// # Errors
/// A sentence for the person who wrote it.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no duration; write for example 500ms, 20s, 1h30m or 2d");
    let mut total = Duration::ZERO;
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let millis = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => MINUTE * 1_000,
            "h" => HOUR * 1_000,
            "d" => DAY * 1_000,
            _ => return Err(wrong()),
        };
        let part = number.checked_mul(millis).map(Duration::from_millis).ok_or_else(wrong)?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = tail;
    }
    Ok(total)
}

/// Reads an instant: RFC 3339, or a duration from now (`10m`).
///
/// # Errors
/// A sentence for the person who wrote it.
pub fn parse_future(text: &str) -> Result<Timestamp, String> {
    parse_instant(text, |distance| now().plus(distance))
}

/// Reads an instant: RFC 3339, or a duration before now (`24h`).
///
/// # Errors
/// A sentence for the person who wrote it.
pub fn parse_past(text: &str) -> Result<Timestamp, String> {
    parse_instant(text, |distance| now().minus(distance))
}

fn parse_instant(text: &str, place: impl Fn(Duration) -> Timestamp) -> Result<Timestamp, String> {
    if let Ok(instant) = text.parse::<jiff::Timestamp>() {
        return Ok(Timestamp::from_micros(instant.as_microsecond()));
    }
    parse_duration(text).map(place).map_err(|_| {
        format!("`{text}` is no time; write 2026-02-05T09:30:00Z, or a distance such as 10m or 2d")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_back() {
        for text in ["500ms", "20s", "1h30m", "2d", "1d2h3m4s5ms"] {
            assert_eq!(exact(parse_duration(text).unwrap()), text);
        }
        assert_eq!(parse_duration("0s"), Ok(Duration::ZERO));
        assert_eq!(exact(Duration::ZERO), "0s");
        for text in ["", "5", "s", "5 s", "1.5h", "-3s", "99999999999999999999s", "5y"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn near_times_are_told_by_distance() {
        let now = Timestamp::from_micros(1_770_283_800_250_000);
        let before = |duration| relative(now.minus(duration), now);
        assert_eq!(before(Duration::ZERO), "now");
        assert_eq!(before(Duration::from_millis(1_400)), "1.4 s ago");
        assert_eq!(before(Duration::from_secs(185)), "3 min ago");
        for (hours, text) in [(2, "2 h"), (24, "24 h"), (48, "2 d"), (72, "3 d")] {
            let exactly = Duration::from_hours(hours);
            assert_eq!(coarse(exactly), text);
            assert_eq!(coarse(exactly.saturating_sub(Duration::from_millis(30))), text);
        }
        assert_eq!(coarse(Duration::from_millis(9_960)), "10.0 s");
        assert_eq!(coarse(Duration::from_mins(110)), "110 min");
        assert_eq!(before(Duration::from_hours(90 * 24)), "2025-11-07 09:30:00");
        assert_eq!(relative(now.plus(Duration::from_secs(20)), now), "in 20 s");
        assert_eq!(clock(now), "09:30:00.250");
    }

    #[test]
    fn instants_are_dates_or_distances() {
        let noon = parse_future("2026-02-05T09:30:00.25Z").unwrap();
        assert_eq!(noon.as_micros(), 1_770_283_800_250_000);
        assert!(parse_future("10m").unwrap() > parse_past("10m").unwrap());
        assert!(parse_past("yesterday").is_err());
        assert_eq!(from_proto(&to_proto(noon)), noon);
    }
}
