//! Tokens of unsubscribe links: signed by keys that are derived from the master keys.
//!
//! Guarantees: a token is good for as long as the master key that it was made under is kept in the
//! file, at whatever place; a key that another process has put there is looked for before a token is
//! refused.

use crate::domain::unsubscribe::Link;

use super::super::{Error, Store};

impl Store {
    /// The token of a link.
    ///
    /// # Errors
    /// When there is no master key.
    pub fn unsubscribe_token(&self, link: &Link) -> Result<String, Error> {
        Ok(link.token(self.vault.ring()?.link_key()))
    }

    /// What a token names; `None` when it is not one of ours.
    ///
    /// # Errors
    /// When there is no master key.
    pub async fn read_unsubscribe_token(&self, token: &str) -> Result<Option<Link>, Error> {
        let link = Link::read(token, self.vault.ring()?.link_keys());
        if link.is_some() {
            return Ok(link);
        }
        self.vault.refresh().await;
        Ok(Link::read(token, self.vault.ring()?.link_keys()))
    }
}
