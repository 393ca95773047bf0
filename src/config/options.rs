//! Every option, declared once.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use toml::Value;

use crate::channel::webhook::{self, Cidr};
use crate::telemetry::{logs, traces};
use crate::{api, dispatch, intake, store, web};

use super::Config;
use super::setting::{Ratio, Setting, Shape, within};
use super::urls::{DatabaseUrl, OtlpEndpoint};

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
        /// Where HTTP is served: `/healthz`, `/readyz` and `/metrics`.
        http_addr: SocketAddr = "127.0.0.1:8080", "ADDRESS";
    }
    "Database" {
        /// The database: `sqlite://path` for a file, or
        /// `postgres://user:password@host:port/database`.
        database_url: DatabaseUrl = "sqlite://tidings.db", "URL";
        /// Most connections to PostgreSQL. SQLite needs none of them.
        database_max_connections: u32 = "20" in "2" to "1000", "COUNT";
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
    "Limits" {
        /// Largest payload of an event, in bytes.
        max_payload_bytes: usize = "262144" in "1024" to "3145728", "BYTES";
        /// Most attempts that run at once on this node. An attempt costs one socket and some
        /// kilobytes.
        max_in_flight: usize = "4096" in "1" to "100000", "COUNT";
        /// Most deliveries in memory that wait for a worker. More wait in the database.
        queue_size: usize = "8192" in "1" to "1000000", "COUNT";
        /// Most events in memory that wait to be committed. More are refused with
        /// `RESOURCE_EXHAUSTED`.
        emit_queue_size: usize = "10000" in "1" to "1000000", "COUNT";
        /// Most gRPC connections.
        max_connections: usize = "4096" in "1" to "1000000", "COUNT";
        /// Most streams (calls at once) of one gRPC connection.
        max_streams_per_connection: u32 = "256" in "1" to "100000", "COUNT";
        /// How long a gRPC connection lives before it is asked to reconnect, so that clients
        /// spread over replicas that are new.
        connection_age: Duration = "1h" in "1m" to "30d", "DURATION";
    }
    "Delivery" {
        /// How long a node's leases outlive its last sign of life. Another node takes its
        /// deliveries over after that.
        lease_ttl: Duration = "15s" in "3s" to "10m", "DURATION";
        /// How often the database is asked for deliveries that became due without a wake-up.
        poll_interval: Duration = "500ms" in "10ms" to "1m", "DURATION";
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
        if self.poll_interval >= self.lease_ttl {
            problems.push("--poll-interval must be shorter than --lease-ttl".into());
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
        }
    }

    /// The logs' part.
    pub fn logs(&self) -> logs::Config {
        logs::Config { format: self.log_format, filter: self.log_filter.clone() }
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
            intake: intake::Config {
                max_payload_bytes: self.max_payload_bytes,
                queue_size: self.emit_queue_size,
            },
            dispatch: dispatch::Config {
                max_in_flight: self.max_in_flight,
                queue_size: self.queue_size,
                lease_ttl: self.lease_ttl,
                poll_interval: self.poll_interval,
                retention: store::Retention {
                    events: self.event_retention,
                    feed: self.feed_retention,
                    idempotency_keys: self.idempotency_retention,
                },
            },
            api: api::Config {
                max_streams_per_connection: self.max_streams_per_connection,
                max_connections: self.max_connections,
                max_connection_age: self.connection_age,
                max_payload_bytes: self.max_payload_bytes,
                ..api::Config::default()
            },
            web: web::Config::default(),
            traces: self.otlp_endpoint.as_ref().map(|endpoint| traces::Config {
                endpoint: endpoint.url().clone(),
                sample_ratio: self.otlp_sample_ratio.0,
            }),
            shutdown_grace: self.shutdown_grace,
        }
    }
}
