//! What the service says about itself: logs for people, traces for collectors. (Metrics belong to
//! the components and are served by `web`.)

pub mod logs;
pub mod traces;

/// Logs or traces cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Logs were already set up by this process.
    #[error("logs are already set up")]
    LogsAlreadySet,
    /// The exporter cannot be made from its configuration.
    #[error("otlp-endpoint cannot be used: {0}")]
    Traces(String),
}
