//! Speaks SMTP over a connection: logs in, and hands messages over.

use std::io;
use std::sync::Arc;

use lettre::transport::smtp::Error;
use lettre::transport::smtp::authentication::{Credentials, DEFAULT_MECHANISMS};
use lettre::transport::smtp::client::AsyncSmtpConnection;
use lettre::transport::smtp::commands::{Data, Mail, Noop, Rcpt, Rset};
use lettre::transport::smtp::extension::{ClientId, Extension, MailParameter};
use rustls::ClientConfig;

use super::message::Message;
use super::reply::{Problem, Reply, Stage};
use super::server::Address;
use super::stream;
use crate::channel::Counted;

/// A session that is ready for messages.
pub(super) struct Session {
    connection: AsyncSmtpConnection,
    /// Messages that were handed over.
    pub(super) sent: u32,
    /// Whether the relay has arguments of a message in a header of its own.
    is_sendgrid: bool,
    /// Held while the connection is open.
    counted: Option<Counted>,
}

impl Session {
    /// Opens a session, logged in when the address has credentials.
    pub(super) async fn open(
        address: &Address,
        tls: &Arc<ClientConfig>,
        hello: &str,
        stage: &mut Stage,
    ) -> Result<Self, Problem> {
        let stream = stream::connect(address, tls, hello, stage).await?;
        let name = ClientId::Domain(hello.to_owned());
        let mut connection = AsyncSmtpConnection::connect_with_transport(Box::new(stream), &name)
            .await
            .map_err(|error| problem(&error))?;
        if let Some((user, password)) = &address.credentials {
            *stage = Stage::Auth;
            let credentials = Credentials::new(user.clone(), password.clone());
            let answer = connection.auth(DEFAULT_MECHANISMS, &credentials).await;
            answer.map_err(|error| match problem(&error) {
                // It offers no mechanism that we have: as good as a refusal.
                Problem::Unsupported(_) => {
                    Problem::Refused(Reply::new(504, "no common way to log in"))
                }
                problem => problem,
            })?;
        }
        Ok(Self { connection, sent: 0, is_sendgrid: address.is_sendgrid, counted: None })
    }

    /// Has it count as an open connection.
    pub(super) fn count(&mut self, counted: Counted) {
        self.counted = Some(counted);
    }

    /// Announces a message; its content comes next.
    pub(super) async fn prepare(
        &mut self,
        message: &Message,
        stage: &mut Stage,
    ) -> Result<(), Problem> {
        let connection = &mut self.connection;
        let mut parameters = Vec::new();
        if message.needs_utf8() {
            if !connection.server_info().supports_feature(Extension::SmtpUtfEight) {
                return Err(Problem::Unsupported(
                    "The address has letters that the mail server cannot handle (SMTPUTF8).",
                ));
            }
            parameters.push(MailParameter::SmtpUtfEight);
        }
        *stage = Stage::Sender;
        let mail = Mail::new(Some(message.from().clone()), parameters);
        connection.command(mail).await.map_err(|error| problem(&error))?;
        *stage = Stage::Recipient;
        let recipient = Rcpt::new(message.to().clone(), Vec::new());
        connection.command(recipient).await.map_err(|error| problem(&error))?;
        *stage = Stage::Data;
        connection.command(Data).await.map_err(|error| problem(&error))?;
        Ok(())
    }

    /// Hands the content of an announced message over. The server's reply when it took it.
    pub(super) async fn content(&mut self, message: &Message) -> Result<String, Problem> {
        let wire = message.wire();
        let sent = if self.is_sendgrid {
            // Not signed: SendGrid takes it out.
            let content = [message.sendgrid_header().as_bytes(), wire].concat();
            self.connection.message(&content).await
        } else {
            self.connection.message(wire).await
        };
        let reply = sent.map_err(|error| problem(&error))?;
        self.sent += 1;
        let text = reply.message().collect::<Vec<_>>().join(" ");
        let code = reply.code().to_string().parse().unwrap_or(250);
        Ok(Reply::new(code, &text).shown())
    }

    /// Makes the session ready for another message after a refusal; whether it is.
    pub(super) async fn reset(&mut self) -> bool {
        self.connection.command(Rset).await.is_ok()
    }

    /// Whether the server still answers.
    pub(super) async fn is_alive(&mut self) -> bool {
        self.connection.command(Noop).await.is_ok()
    }

    /// Says goodbye.
    pub(super) async fn quit(mut self) {
        let _ = self.connection.quit().await;
    }
}

/// What an error of lettre's says.
fn problem(error: &Error) -> Problem {
    if let Some(code) = error.status() {
        let code = code.to_string().parse().unwrap_or(0);
        let text = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
        return Problem::Refused(Reply::new(code, &text));
    }
    if error.is_timeout() {
        return Problem::Timeout;
    }
    if error.is_client() {
        return Problem::Unsupported("The mail server cannot do what the message needs.");
    }
    if error.is_response() {
        let text = std::error::Error::source(error).map(ToString::to_string);
        // How lettre says that the server hung up.
        let is_end = text.is_some_and(|text| text == "incomplete response");
        return if is_end { Problem::Connection } else { Problem::Protocol };
    }
    let source = std::error::Error::source(error).and_then(|it| it.downcast_ref::<io::Error>());
    match source.map(io::Error::kind) {
        // The reply had no end.
        Some(io::ErrorKind::InvalidData) => Problem::Protocol,
        _ => Problem::Connection,
    }
}
