//! Keeps characters out of mails that could make them say or do something else.
//!
//! Guarantees: what comes out holds no control character but line feeds and tabs, and nothing that
//! turns the direction of text or is invisible on purpose. A line holds no line break either, so it
//! cannot start a header of its own.

/// What a forbidden character becomes: visible, so that nobody is deceived by what is missing.
const REPLACEMENT: char = '\u{FFFD}';

/// Whether the character reorders or hides text.
const fn is_deceiving(c: char) -> bool {
    matches!(
        c,
        // Directional marks, embeddings, overrides and isolates (UAX #9).
        '\u{061C}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}'
        // Invisible: zero-width space, word joiner and its like, byte order mark, annotations, tags.
        | '\u{200B}' | '\u{2060}'..='\u{2064}' | '\u{206A}'..='\u{206F}' | '\u{FEFF}'
        | '\u{FFF9}'..='\u{FFFB}' | '\u{E0000}'..='\u{E0FFF}'
    )
}

/// Text of several lines, of at most `max` characters; what is longer ends with an ellipsis.
pub(super) fn text(text: &str, max: usize) -> String {
    let mut cleaned = String::with_capacity(text.len().min(max * 4));
    let mut chars = text.chars().peekable();
    let mut count = 0;
    while let Some(c) = chars.next() {
        if count == max {
            cleaned.push('…');
            break;
        }
        count += 1;
        match c {
            // A line break, whichever way it is written.
            '\r' => {
                chars.next_if_eq(&'\n');
                cleaned.push('\n');
            }
            '\n' | '\u{2028}' | '\u{2029}' | '\u{85}' | '\u{0B}' | '\u{0C}' => cleaned.push('\n'),
            '\t' => cleaned.push('\t'),
            c if c.is_control() || is_deceiving(c) => cleaned.push(REPLACEMENT),
            c => cleaned.push(c),
        }
    }
    cleaned
}

/// One line of at most `max` characters: breaks and runs of spaces are single spaces.
pub fn line(content: &str, max: usize) -> String {
    // Reads no more than can end up in the line, spaces aside.
    let head: String = content.chars().take(max.saturating_mul(4)).collect();
    let cleaned = text(&head, usize::MAX / 8);
    let joined = cleaned.split_whitespace().collect::<Vec<_>>().join(" ");
    if joined.chars().count() <= max && head.len() == content.len() {
        return joined;
    }
    let mut cut: String = joined.chars().take(max.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

/// One line of whatever length.
pub fn one_line(content: &str) -> String {
    line(content, usize::MAX / 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_cannot_become_two() {
        for breaks in ["\r\n", "\n", "\r", "\u{2028}", "\u{85}", "\u{0B}", " \r\n \r\n "] {
            assert_eq!(
                one_line(&format!("Paid{breaks}Bcc: all@company.com")),
                "Paid Bcc: all@company.com"
            );
        }
        assert_eq!(one_line("a\0b"), "a\u{FFFD}b");
    }

    #[test]
    fn what_turns_or_hides_text_is_made_visible() {
        for c in ['\u{202E}', '\u{2066}', '\u{200F}', '\u{200B}', '\u{E0041}', '\u{7}', '\u{1B}'] {
            assert_eq!(one_line(&format!("gnp{c}.exe")), "gnp\u{FFFD}.exe", "{c:?}");
        }
        // Joiners are letters' business, in scripts and in emoji.
        assert_eq!(one_line("👩\u{200D}💻 نمی\u{200C}خواهم"), "👩\u{200D}💻 نمی\u{200C}خواهم");
    }

    #[test]
    fn lengths_hold_in_characters() {
        assert_eq!(line("żółty", 5), "żółty");
        assert_eq!(line("żółtyy", 5), "żółt…");
        assert_eq!(line(&"a ".repeat(10_000_000), 5).chars().count(), 5);
        assert_eq!(text("abc", 2), "ab…");
        assert_eq!(text("a\r\nb\rc\td\0", 100), "a\nb\nc\td\u{FFFD}");
    }
}
