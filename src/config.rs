//! Configuration: every option by flag, `TIDINGS_…` variable or TOML file, in this precedence.
//!
//! Each option is declared once, in `options`; the flags, the variables, the file's keys, the help
//! texts and `docs/configuration.md` all come from that declaration. Reading has no side effects.
//! Wrong options are reported all at once, each with what would be right. Each component owns its
//! own `Config`; here the options are mapped to them.

mod flags;
mod load;
mod mail;
mod options;
mod reference;
mod secret;
mod setting;
mod unknown;
mod urls;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::channel::{email, webhook};
use crate::telemetry::traces;
use crate::{api, dispatch, intake, store, web};

pub use flags::{AllFlags, DatabaseFlags};
pub use load::{Environment, Loaded, Origin};
pub use mail::{Color, DnsName, Footer, LogoUrl, Rate};
pub use options::Options;
pub use reference::configuration_markdown;
pub use secret::MasterKeyFile;
pub use setting::Ratio;
pub use urls::{DatabaseUrl, OtlpEndpoint, PublicUrl};

/// The options are wrong: every problem, each with the option's name and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid(Vec<String>);

impl Invalid {
    /// The problems, in order of the options' declarations.
    pub fn problems(&self) -> &[String] {
        &self.0
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [problem] => f.write_str(problem),
            problems => {
                write!(f, "{} options are wrong:", problems.len())?;
                problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

impl std::error::Error for Invalid {}

/// What the whole service is built from.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where gRPC is served; port 0 takes a free one.
    pub grpc_addr: SocketAddr,
    /// Where HTTP (health, metrics) is served; port 0 takes a free one.
    pub http_addr: SocketAddr,
    /// The database.
    pub store: store::Config,
    /// Requests to receivers.
    pub webhook: webhook::Config,
    /// Mail.
    pub email: email::Config,
    /// The program that makes attempts in a process of their own, for deliveries whose attempts may
    /// bring down the process: this one. `None` for none.
    pub program: Option<PathBuf>,
    /// Accepting events.
    pub intake: intake::Config,
    /// Delivering them.
    pub dispatch: dispatch::Config,
    /// The gRPC services.
    pub api: api::Config,
    /// The HTTP pages.
    pub web: web::Config,
    /// Who may report bounces and complaints over HTTP.
    pub web_mail: web::mail::Config,
    /// Where recipients of mail reach the HTTP pages; the base of the links in messages. `None`:
    /// messages have no such links.
    pub public_url: Option<PublicUrl>,
    /// Where traces are sent, if anywhere.
    pub traces: Option<traces::Config>,
    /// How long a graceful stop may take.
    pub shutdown_grace: Duration,
}
