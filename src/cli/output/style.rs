//! Colour, where somebody sees it.
//!
//! Plain escape codes of the sixteen colours that every terminal theme defines. `NO_COLOR`
//! (<https://no-color.org>) and `TERM=dumb` switch them off; a pipe never gets any.

use crate::api::proto::DeliveryState;

/// What a piece of text is, which decides its colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Style {
    /// As everything else.
    #[default]
    Plain,
    /// A heading.
    Strong,
    /// Less important: units, ids, explanations.
    Dim,
    /// It went well.
    Good,
    /// It is under way, or will be tried again.
    Pending,
    /// It went wrong.
    Error,
    /// Something to look at or to type.
    Accent,
}

impl Style {
    const fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Strong => "1",
            Self::Dim => "2",
            Self::Good => "32",
            Self::Pending => "33",
            Self::Error => "31",
            Self::Accent => "36",
        }
    }

    /// The colour of a delivery's state.
    pub fn of_state(state: DeliveryState) -> Self {
        match state {
            DeliveryState::Succeeded => Self::Good,
            DeliveryState::Failed | DeliveryState::Expired => Self::Error,
            DeliveryState::Delivering | DeliveryState::Scheduled => Self::Pending,
            DeliveryState::Held => Self::Accent,
            DeliveryState::Canceled | DeliveryState::Suppressed | DeliveryState::Unspecified => {
                Self::Dim
            }
        }
    }
}

/// Whether to colour what goes to a stream that is, or is not, a terminal.
pub fn wanted(is_terminal: bool) -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    is_terminal && !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// `text` in its style; untouched without colour.
pub fn paint(color: bool, style: Style, text: &str) -> String {
    if color && style != Style::Plain && !text.is_empty() {
        format!("\x1b[{}m{text}\x1b[0m", style.code())
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_terminal_no_colour() {
        assert!(!wanted(false));
        assert_eq!(paint(false, Style::Good, "ok"), "ok");
        assert_eq!(paint(true, Style::Good, "ok"), "\x1b[32mok\x1b[0m");
        assert_eq!(paint(true, Style::Plain, "ok"), "ok");
    }
}
