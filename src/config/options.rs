//! Every option, declared once.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use toml::Value;

use crate::channel::email::{self, Sender, Server};
use crate::channel::webhook::{self, Cidr};
use crate::domain::feedback::webhook::SendGridKey;
use crate::domain::health;
use crate::telemetry::{logs, traces};
use crate::{api, dispatch, intake, store, web};

use super::Config;
use super::mail::{self, Color, DnsName, Footer, LogoUrl, Rate};
use super::secret::MasterKeyFile;
use super::setting::{Ratio, Setting, Shape, within};
use super::urls::{DatabaseUrl, OtlpEndpoint, PublicUrl};

/// What is known of an option beside its value.
pub(super) struct Declaration {
    /// The heading under which it stands in help and documentation.
    pub(super) group: &'static str,
    /// Its key in the TOML file.
    pub(super) key: String,
    /// Its flag, without the dashes. One value of many is singular.
    pub(super) flag: String,
    /// Its environment variable.
    pub(super) variable: String,
    /// What stands for its value in the help.
    pub(super) value_name: &'static str,
    /// Its default as text; empty for none.
    pub(super) default: &'static str,
    /// The least and the most that it may be.
    pub(super) range: Option<(&'static str, &'static str)>,
    /// What it is for, in one paragraph.
    pub(super) help: String,
    /// How it is written.
    pub(super) shape: Shape,
    /// Reads a value into the options. The error completes "must be …".
    pub(super) set: fn(&mut Options, &str) -> Result<(), String>,
    /// The value as it is shown, without secrets.
    pub(super) show: fn(&Options) -> Option<Value>,
}

macro_rules! options {
    ($($group:literal {
        $(
            $(#[doc = $doc:literal])+
            $name:ident: $type:ty = $default:literal
                $(in $least:literal to $most:literal)?
                $(, flag $flag:literal)?
                , $value_name:literal;
        )+
    })+) => {
        /// The value of every option.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Options {
            $($(
                $(#[doc = $doc])+
                pub $name: $type,
            )+)+
        }

        impl Default for Options {
            fn default() -> Self {
                Self { $($( $name: preset($default), )+)+ }
            }
        }

        fn declare() -> Vec<Declaration> {
            vec![$($({
                let key = stringify!($name).replace('_', "-");
                let flag = options!(@flag $($flag)?).map_or_else(|| key.clone(), str::to_owned);
                Declaration {
                    group: $group,
                    key,
                    flag,
                    variable: format!("TIDINGS_{}", stringify!($name).to_ascii_uppercase()),
                    value_name: $value_name,
                    default: $default,
                    range: options!(@range $($least, $most)?),
                    help: [$($doc),+].map(str::trim).join(" "),
                    shape: <$type as Setting>::SHAPE,
                    set: |options, text| {
                        let value = <$type as Setting>::read(text)?;
                        $(let value = within(value, $least, $most)?;)?
                        options.$name = value;
                        Ok(())
                    },
                    show: |options| options.$name.show(),
                }
            },)+)+]
        }
    };
    (@range) => { None };
    (@range $least:literal, $most:literal) => { Some(($least, $most)) };
    (@flag) => { None::<&str> };
    (@flag $flag:literal) => { Some($flag) };
}

static DECLARATIONS: LazyLock<Vec<Declaration>> = LazyLock::new(declare);

/// Every option in the order in which it is documented.
pub(super) fn declarations() -> &'static [Declaration] {
    &DECLARATIONS
}

/// The group of options that commands take which work on the database alone.
pub(super) const DATABASE: &str = "Database";

options! {
    "Addresses" {
        /// Where gRPC is served: an IP address and a port; port 0 takes a free one.
        grpc_addr: SocketAddr = "127.0.0.1:50051", "ADDRESS";
        /// Where HTTP is served: `/healthz`, `/readyz` and `/metrics`; to recipients and providers of mail, `/unsubscribe/` and `/bounces`.
        http_addr: SocketAddr = "127.0.0.1:8080", "ADDRESS";
        /// The certificate of the gRPC server with its chain, a PEM file. Without one gRPC is served
        /// in the clear: only for a loopback address, or behind something that does TLS.
        grpc_tls_cert: Option<PathBuf> = "", "PATH";
        /// The private key of the certificate, a PEM file.
        grpc_tls_key: Option<PathBuf> = "", "PATH";
        /// Authorities of clients' certificates, a PEM file. With it only clients with a
        /// certificate of theirs can connect to gRPC; they need an API key all the same.
        grpc_client_ca: Option<PathBuf> = "", "PATH";
    }
    "Database" {
        /// The database: `sqlite://path` for a file, or
        /// `postgres://user:password@host:port/database`.
        database_url: DatabaseUrl = "sqlite://tidings.db", "URL";
        /// Most connections to PostgreSQL. SQLite needs none of them.
        database_max_connections: u32 = "20" in "5" to "1000", "COUNT";
        /// The file with the master keys that seal the secrets in the database, one a line: the
        /// first seals, the others still open. PostgreSQL needs one (`tidings master-key generate`);
        /// beside a SQLite file one is made (`tidings.db.key`). The variable `TIDINGS_MASTER_KEY`
        /// may hold the keys themselves instead; there is no flag for them. See docs/secrets.md.
        master_key_file: MasterKeyFile = "", "PATH";
    }
    "Receivers" {
        /// Networks that may be called although they are not public, such as `127.0.0.0/8` for
        /// development. Repeatable; comma-separated in the variable.
        allow_cidrs: Vec<Cidr> = "", flag "allow-cidr", "CIDR";
        /// Networks that may not be called although they are public. Repeatable; comma-separated
        /// in the variable.
        deny_cidrs: Vec<Cidr> = "", flag "deny-cidr", "CIDR";
        /// Permit receivers without TLS (`http://`).
        allow_http: bool = "false", "BOOL";
        /// A PEM file with root certificates that are trusted beside the system's, for receivers
        /// of your own.
        ca_file: Option<PathBuf> = "", "PATH";
    }
    "Mail" {
        /// The mail relays in order of preference: `smtp://user:password@host:port` (encrypted by
        /// STARTTLS, except on loopback), `smtps://user:password@host:port`, or `file:///folder` for
        /// development. When one is out of order the next one is asked. `?provider=sendgrid` behind
        /// one that hands on to SendGrid has its events name deliveries. Repeatable; comma-separated
        /// in the variable. Without one no mail is sent.
        smtp_url: Vec<Server> = "", "URL";
        /// Who mail comes from, such as `Company <no-reply@company.com>`.
        mail_from: Option<Sender> = "", "ADDRESS";
        /// Most connections to each relay.
        smtp_max_connections: usize = "8" in "1" to "1000", "COUNT";
        /// Most messages per second to each relay from this node; 0 for no limit.
        smtp_max_rate: Rate = "0" in "0" to "10000", "RATE";
        /// Most messages per second to each recipient domain from this node; 0 for no limit.
        smtp_max_domain_rate: Rate = "0" in "0" to "10000", "RATE";
        /// A PEM file with root certificates that are trusted beside the system's, for relays of
        /// your own.
        smtp_ca_file: Option<PathBuf> = "", "PATH";
        /// A private key that signs mail (DKIM), a PEM file: RSA or Ed25519. Repeatable, to have
        /// both side by side; comma-separated in the variable.
        dkim_key_file: Vec<PathBuf> = "", "PATH";
        /// The selector of each key, in the same order: its record stands at
        /// `<selector>._domainkey.<domain>`. Repeatable; comma-separated in the variable.
        dkim_selector: Vec<DnsName> = "", "NAME";
        /// The domain that signs. By default that of `mail-from`.
        dkim_domain: Option<DnsName> = "", "DOMAIN";
        /// The logo over every mail: the https URL of an image that is 32 pixels high.
        mail_logo_url: LogoUrl = "", "URL";
        /// The accent of mails, such as `#3457d5`.
        mail_color: Color = "#3457d5", "COLOR";
        /// A line under every mail, such as the company's postal address.
        mail_footer: Footer = "", "TEXT";
    }
    "Recipients of mail" {
        /// Where recipients reach the HTTP port from outside, such as
        /// `https://tidings.company.com`: the base of the unsubscribe links in messages, which have
        /// none without it. What stands in front needs to let only `/unsubscribe/` and `/bounces`
        /// through.
        public_url: Option<PublicUrl> = "", "URL";
        /// The file with the secrets (`whsec_…`, one a line) that sign what is posted to `/bounces`:
        /// bounces and complaints as JSON, or as the mail that came back. See docs/bounces.md.
        bounce_secret_file: Option<PathBuf> = "", "PATH";
        /// The verification key of SendGrid's signed Event Webhook, which is posted to
        /// `/bounces/sendgrid`.
        sendgrid_key: Option<SendGridKey> = "", "KEY";
    }
    "Limits" {
        /// Largest payload of an event, in bytes.
        max_payload_bytes: usize = "262144" in "1024" to "3145728", "BYTES";
        /// Most attempts that run at once on this node. An attempt costs one socket and some
        /// kilobytes. A quarter is kept for endpoints that answer within a second, and one tenant
        /// never takes more than three quarters of what the others leave.
        max_in_flight: usize = "4096" in "1" to "100000", "COUNT";
        /// Most deliveries in memory that wait for a worker. More wait in the database.
        queue_size: usize = "8192" in "1" to "1000000", "COUNT";
        /// Most bytes of events that these deliveries have together. An event counts for each of
        /// its deliveries. More wait in the database.
        queue_bytes: usize = "134217728" in "16777216" to "68719476736", "BYTES";
        /// Most events in memory that wait to be committed. More are refused with
        /// `RESOURCE_EXHAUSTED`.
        emit_queue_size: usize = "10000" in "1" to "1000000", "COUNT";
        /// Most bytes that these events have together. More are refused with
        /// `RESOURCE_EXHAUSTED`.
        emit_queue_bytes: usize = "67108864" in "16777216" to "68719476736", "BYTES";
        /// Most gRPC connections.
        max_connections: usize = "4096" in "1" to "1000000", "COUNT";
        /// Most streams (calls at once) of one gRPC connection.
        max_streams_per_connection: u32 = "256" in "1" to "100000", "COUNT";
        /// Most calls per second of one API key on this node; every event of a batch or a stream
        /// counts as one. More are refused with `RESOURCE_EXHAUSTED`; a stream is slowed down.
        key_rate_limit: u32 = "50000" in "1" to "10000000", "COUNT";
        /// How long a gRPC connection lives before it is asked to reconnect, so that clients
        /// spread over replicas that are new.
        connection_age: Duration = "1h" in "1m" to "30d", "DURATION";
    }
    "Delivery" {
        /// How long a node's leases outlive its last sign of life. Another node takes its
        /// deliveries over within about two seconds after that.
        lease_ttl: Duration = "10s" in "3s" to "10m", "DURATION";
        /// How often the database is asked for deliveries that became due without a wake-up.
        poll_interval: Duration = "500ms" in "10ms" to "1m", "DURATION";
        /// How long nothing but failures disables a subscription; its deliveries are held, and
        /// the tenant is told by an event `tidings.subscription.disabled`. `0s` means never.
        disable_after: Duration = "5d" in "0s" to "365d", "DURATION";
    }
    "Retention" {
        /// How long events are kept, with their deliveries and attempts, once these have ended.
        event_retention: Duration = "30d" in "1h" to "3650d", "DURATION";
        /// How old a resume token of `WatchDeliveries` may be.
        feed_retention: Duration = "3d" in "1h" to "365d", "DURATION";
        /// How long an idempotency key is remembered.
        idempotency_retention: Duration = "48h" in "24h" to "365d", "DURATION";
    }
    "Logs and traces" {
        /// How logs are written: `text` for people or `json` for programs. They go to standard error.
        log_format: logs::Format = "text", "FORMAT";
        /// What is logged: a level (error, warn, info, debug, trace) or directives such as
        /// `info,tidings::dispatch=debug`.
        log_filter: logs::Filter = "info", "FILTER";
        /// Where traces are sent with OTLP over gRPC, such as `http://127.0.0.1:4317`. No traces
        /// are sent without it.
        otlp_endpoint: Option<OtlpEndpoint> = "", "URL";
        /// The share of traces that are sent, from 0.0 to 1.0, of those that their callers have
        /// sampled or that begin here. All replicas choose the same ones.
        otlp_sample_ratio: Ratio = "1.0", "RATIO";
    }
    "Stopping" {
        /// How long a stop may take. What is still in flight after that is left to other nodes, or
        /// to the next start.
        shutdown_grace: Duration = "25s" in "1s" to "10m", "DURATION";
    }
}

/// A default; a test reads every one of them.
fn preset<T: Setting>(text: &str) -> T {
    T::read(text).unwrap_or_else(|right| panic!("the default {text} must be {right}"))
}

impl Options {
    /// What is wrong although each option alone is right.
    pub(super) fn conflicts(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.grpc_addr == self.http_addr && self.grpc_addr.port() != 0 {
            problems.push(format!(
                "--grpc-addr and --http-addr are both {}: each needs its own port",
                self.grpc_addr
            ));
        }
        if self.grpc_tls_cert.is_some() != self.grpc_tls_key.is_some() {
            problems.push("--grpc-tls-cert and --grpc-tls-key must be given together".into());
        }
        if self.grpc_client_ca.is_some() && self.grpc_tls_cert.is_none() {
            problems.push("--grpc-client-ca needs --grpc-tls-cert and --grpc-tls-key".into());
        }
        if self.poll_interval >= self.lease_ttl {
            problems.push("--poll-interval must be shorter than --lease-ttl".into());
        }
        if self.smtp_url.is_empty() != self.mail_from.is_none() {
            problems.push("--smtp-url and --mail-from must be given together".into());
        }
        if self.dkim_key_file.len() != self.dkim_selector.len() {
            problems.push("--dkim-key-file and --dkim-selector must be given equally often".into());
        }
        if self.feed_retention > self.event_retention {
            problems.push(
                "--feed-retention must not be longer than --event-retention: the feed tells of \
                 deliveries that still exist"
                    .into(),
            );
        }
        problems
    }

    /// The database's part.
    pub fn store(&self) -> store::Config {
        store::Config {
            database_url: self.database_url.as_str().to_owned(),
            max_connections: self.database_max_connections,
            master_key: self.master_key_file.source().clone(),
        }
    }

    /// The logs' part.
    pub fn logs(&self) -> logs::Config {
        logs::Config { format: self.log_format, filter: self.log_filter.clone() }
    }

    fn email(&self) -> email::Config {
        let selectors = self.dkim_selector.iter().map(|name| name.as_str().to_owned());
        let domain = self.dkim_domain.as_ref().map(|name| name.as_str().to_owned());
        email::Config {
            servers: self.smtp_url.clone(),
            sender: self.mail_from.clone(),
            max_connections: self.smtp_max_connections,
            max_rate: self.smtp_max_rate.0,
            max_domain_rate: self.smtp_max_domain_rate.0,
            ca_file: self.smtp_ca_file.clone(),
            dkim_keys: self
                .dkim_key_file
                .iter()
                .cloned()
                .zip(selectors)
                .map(|(file, selector)| email::DkimKey { file, selector })
                .collect(),
            dkim_domain: domain.unwrap_or_default(),
            look: mail::look(&self.mail_logo_url, &self.mail_color, &self.mail_footer),
        }
    }

    fn grpc_tls(&self) -> Option<api::tls::Config> {
        Some(api::tls::Config {
            cert_file: self.grpc_tls_cert.clone()?,
            key_file: self.grpc_tls_key.clone()?,
            client_ca_file: self.grpc_client_ca.clone(),
        })
    }

    /// The whole service's configuration.
    pub fn config(&self) -> Config {
        Config {
            grpc_addr: self.grpc_addr,
            http_addr: self.http_addr,
            store: self.store(),
            webhook: webhook::Config {
                allow_cidrs: self.allow_cidrs.clone(),
                deny_cidrs: self.deny_cidrs.clone(),
                allow_http: self.allow_http,
                ca_file: self.ca_file.clone(),
                ..webhook::Config::default()
            },
            email: self.email(),
            program: None,
            intake: intake::Config {
                max_payload_bytes: self.max_payload_bytes,
                queue_size: self.emit_queue_size,
                queue_bytes: self.emit_queue_bytes,
            },
            dispatch: dispatch::Config {
                public_url: self.public_url.as_ref().map(|url| url.as_str().to_owned()),
                max_in_flight: self.max_in_flight,
                queue_size: self.queue_size,
                queue_bytes: self.queue_bytes,
                lease_ttl: self.lease_ttl,
                poll_interval: self.poll_interval,
                retention: store::Retention {
                    events: self.event_retention,
                    feed: self.feed_retention,
                    idempotency_keys: self.idempotency_retention,
                },
                health: health::Policy {
                    disable_after: Some(self.disable_after).filter(|limit| !limit.is_zero()),
                    ..health::Policy::default()
                },
                ..dispatch::Config::default()
            },
            api: api::Config {
                max_streams_per_connection: self.max_streams_per_connection,
                max_connections: self.max_connections,
                max_connection_age: self.connection_age,
                max_requests_per_second: self.key_rate_limit,
                tls: self.grpc_tls(),
                max_payload_bytes: self.max_payload_bytes,
                ..api::Config::default()
            },
            web: web::Config::default(),
            web_mail: web::mail::Config {
                secret_file: self.bounce_secret_file.clone(),
                sendgrid_key: self.sendgrid_key.clone(),
            },
            public_url: self.public_url.clone(),
            traces: self.otlp_endpoint.as_ref().map(|endpoint| traces::Config {
                endpoint: endpoint.url().clone(),
                sample_ratio: self.otlp_sample_ratio.0,
            }),
            shutdown_grace: self.shutdown_grace,
        }
    }
}
