//! Aligned columns for people.
//!
//! Widths are counted in characters: right for everything that we write ourselves, and close enough
//! for names in scripts whose characters are two columns wide.

use super::style::{Style, paint};

/// Between two columns.
const GAP: &str = "  ";

/// One field of a table.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// Text in a style of its own. Line breaks and control characters are shown, never obeyed.
    pub fn new(text: impl Into<String>, style: Style) -> Self {
        Self { text: printable(&text.into()), style }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::new(text, Style::Plain)
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::new(text, Style::Plain)
    }
}

/// Rows under headings.
#[derive(Clone, Debug)]
pub struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty table with these headings.
    pub fn new(headings: &[&'static str]) -> Self {
        Self { headings: headings.to_vec(), rows: Vec::new() }
    }

    /// Adds a row: one cell for each heading.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The lines, headings first.
    pub fn lines(&self, color: bool) -> Vec<String> {
        let headings: Vec<_> =
            self.headings.iter().map(|text| Cell::new(*text, Style::Strong)).collect();
        let widths: Vec<_> = (0..headings.len())
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells.chain([&headings[column]]).map(|cell| width(&cell.text)).max().unwrap_or(0)
            })
            .collect();
        let rows = std::iter::once(&headings).chain(&self.rows);
        rows.map(|row| line(row, &widths, color)).collect()
    }
}

fn line(row: &[Cell], widths: &[usize], color: bool) -> String {
    let mut text = String::new();
    for (index, (cell, wanted)) in row.iter().zip(widths).enumerate() {
        text.push_str(&paint(color, cell.style, &cell.text));
        if index + 1 < row.len() {
            text.push_str(&" ".repeat(wanted.saturating_sub(width(&cell.text))));
            text.push_str(GAP);
        }
    }
    text.truncate(text.trim_end().len());
    text
}

/// How many columns a text takes.
pub fn width(text: &str) -> usize {
    text.chars().count()
}

/// `text` padded with spaces on the right, or cut with `…`, to exactly `columns`.
pub fn fit(text: &str, columns: usize) -> String {
    let length = width(text);
    if length <= columns {
        return format!("{text}{}", " ".repeat(columns - length));
    }
    let kept: String = text.chars().take(columns.saturating_sub(1)).collect();
    format!("{kept}…")
}

/// A line, styled or not, cut with `…` so that it takes at most `columns`.
pub fn clip(line: &str, columns: usize) -> String {
    let (mut kept, mut used, mut cut_at) = (String::new(), 0, 0);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if c == '\x1b' {
            // Colours end with a letter and take no room; those after the cut close what is open.
            kept.push(c);
            for code in chars.by_ref() {
                kept.push(code);
                if code.is_ascii_alphabetic() {
                    break;
                }
            }
            continue;
        }
        used += 1;
        if used <= columns {
            if used == columns {
                cut_at = kept.len();
            }
            kept.push(c);
        } else if used == columns + 1 {
            let last = kept[cut_at..].chars().next().map_or(0, char::len_utf8);
            kept.replace_range(cut_at..cut_at + last, "…");
        }
    }
    if columns == 0 { String::new() } else { kept }
}

/// `text` in lines of at most `columns`, broken between words; a longer word stays whole, because a
/// path or a command that is cut cannot be copied.
pub fn wrap(text: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let Some(line) = lines.last_mut() else { continue };
        if line.is_empty() {
            line.push_str(word);
        } else if width(line) + 1 + width(word) <= columns {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

/// `text` without characters that a terminal would obey: what comes from outside must not move the
/// cursor or change colours.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// As [`printable`], and line breaks and tabs stay: for bodies.
pub fn printable_lines(text: &str) -> String {
    let shown = |c: char| {
        if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }
    };
    text.replace("\r\n", "\n").chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["ID", "STATE"]);
        table.row(["a".into(), Cell::new("SUCCEEDED", Style::Good)]);
        table.row(["größer".into(), "HELD".into()]);
        assert_eq!(table.lines(false), ["ID      STATE", "a       SUCCEEDED", "größer  HELD"]);
        assert!(table.lines(true)[1].ends_with("\x1b[32mSUCCEEDED\x1b[0m"));
    }

    #[test]
    fn foreign_text_cannot_steer_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\nc"), "a\u{fffd}[2Jb\u{fffd}c");
        assert_eq!(printable_lines("a\r\nb\x07"), "a\nb\u{fffd}");
    }

    #[test]
    fn a_line_is_clipped_to_its_width_and_keeps_its_colours() {
        assert_eq!(clip("größer", 6), "größer");
        assert_eq!(clip("größer", 5), "größ…");
        assert_eq!(clip("größer", 1), "…");
        assert_eq!(clip("größer", 0), "");
        assert_eq!(clip("\x1b[1mabc\x1b[0mdef", 6), "\x1b[1mabc\x1b[0mdef");
        assert_eq!(clip("\x1b[1mabcdef\x1b[0m", 3), "\x1b[1mab…\x1b[0m");
    }

    #[test]
    fn text_is_wrapped_between_words() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("a /long/path b", 5), ["a", "/long/path", "b"]);
        assert_eq!(wrap("", 5), [""]);
    }

    #[test]
    fn text_is_fitted_to_a_width() {
        assert_eq!(fit("abc", 5), "abc  ");
        assert_eq!(fit("abcdef", 5), "abcd…");
    }
}
