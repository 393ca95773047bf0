//! What operators choose about the look of mails.

use serde::{Deserialize, Serialize};
use url::Url;

use super::clean;

/// The accent unless an operator chooses another.
const DEFAULT_COLOR: &str = "#3457d5";
/// Most characters in a footer.
const MAX_FOOTER_CHARS: usize = 500;
/// Most bytes in the logo's URL.
const MAX_LOGO_URL_BYTES: usize = 2_048;

/// The look of mails. The default is plain and shows no logo.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    logo_url: String,
    color: String,
    /// What can be read on the accent.
    on_color: String,
    footer: String,
}

/// Why a look cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLook {
    /// The logo.
    #[error("an https URL of an image, of at most {MAX_LOGO_URL_BYTES} bytes")]
    LogoUrl,
    /// The accent.
    #[error("a colour of six hexadecimal digits, such as #3457d5")]
    Color,
    /// The footer.
    #[error("one line of at most {MAX_FOOTER_CHARS} characters")]
    Footer,
}

impl Default for Look {
    fn default() -> Self {
        let (color, on_color) = (DEFAULT_COLOR.to_owned(), "#ffffff".to_owned());
        Self { logo_url: String::new(), color, on_color, footer: String::new() }
    }
}

impl Look {
    /// A logo by its URL; empty for none.
    ///
    /// # Errors
    /// When it is not an https URL.
    pub fn with_logo_url(self, url: &str) -> Result<Self, InvalidLook> {
        if url.is_empty() {
            return Ok(Self { logo_url: String::new(), ..self });
        }
        let parsed = Url::parse(url).ok().filter(|url| url.scheme() == "https" && url.has_host());
        match parsed {
            Some(parsed) if url.len() <= MAX_LOGO_URL_BYTES => {
                Ok(Self { logo_url: parsed.into(), ..self })
            }
            _ => Err(InvalidLook::LogoUrl),
        }
    }

    /// An accent, as `#rrggbb`; empty for the default.
    ///
    /// # Errors
    /// When it is no such colour.
    pub fn with_color(self, color: &str) -> Result<Self, InvalidLook> {
        if color.is_empty() {
            let Self { color, on_color, .. } = Self::default();
            return Ok(Self { color, on_color, ..self });
        }
        let digits = color.strip_prefix('#').filter(|digits| digits.len() == 6);
        let digits = digits.filter(|digits| digits.chars().all(|c| c.is_ascii_hexdigit()));
        let number = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let number = number.ok_or(InvalidLook::Color)?;
        let on_color = if is_light(number) { "#111827" } else { "#ffffff" };
        Ok(Self { color: format!("#{number:06x}"), on_color: on_color.to_owned(), ..self })
    }

    /// A line under every mail, such as the sender's postal address; empty for none.
    ///
    /// # Errors
    /// When it is not one short line.
    pub fn with_footer(self, footer: &str) -> Result<Self, InvalidLook> {
        if footer.chars().any(char::is_control) || footer.chars().count() > MAX_FOOTER_CHARS {
            return Err(InvalidLook::Footer);
        }
        Ok(Self { footer: clean::one_line(footer), ..self })
    }
}

/// Whether dark text reads better on the colour than white: by its relative luminance (WCAG 2,
/// section 1.4.3), about.
fn is_light(rgb: u32) -> bool {
    let channel = |shift: u32| f64::from((rgb >> shift) & 0xFF) / 255.0;
    let linear = |value: f64| value.powf(2.2);
    let luminance =
        0.2126 * linear(channel(16)) + 0.7152 * linear(channel(8)) + 0.0722 * linear(channel(0));
    // Where both contrasts are equal.
    luminance > 0.179
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_shown_is_refused() {
        let look = Look::default;
        for url in ["http://company.com/l.png", "javascript:alert(1)", "logo.png", "https://"] {
            assert_eq!(look().with_logo_url(url), Err(InvalidLook::LogoUrl), "{url}");
        }
        for color in ["red", "#fff", "#12345g", "3457d5", "#3457d5;background:url(x)"] {
            assert_eq!(look().with_color(color), Err(InvalidLook::Color), "{color}");
        }
        assert_eq!(look().with_footer("a\nb"), Err(InvalidLook::Footer));
        assert_eq!(look().with_footer(&"a".repeat(501)), Err(InvalidLook::Footer));
        let chosen = look().with_logo_url("https://company.com/l\".png").expect("a URL");
        assert_eq!(chosen.logo_url, "https://company.com/l%22.png");
    }

    #[test]
    fn text_can_be_read_on_the_accent() {
        for (color, on_color) in [
            ("#000000", "#ffffff"),
            ("#FFFFFF", "#111827"),
            ("#ffd400", "#111827"),
            ("#3457d5", "#ffffff"),
        ] {
            assert_eq!(Look::default().with_color(color).expect("a colour").on_color, on_color);
        }
    }
}
