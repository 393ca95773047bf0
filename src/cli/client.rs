//! The way to a service: where it is, who we are, and what its refusals mean to a person.
//!
//! Every client command takes [`Connection`] and, where a tenant is meant, [`TenantOption`]. What
//! the service refuses becomes an [`Error`] with the reason, every wrong field, and what to do.

mod refusal;

use std::path::PathBuf;
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

use super::Error;
use crate::api::proto::catalog_service_client::CatalogServiceClient;
use crate::api::proto::delivery_service_client::DeliveryServiceClient;
use crate::api::proto::event_service_client::EventServiceClient;
use crate::api::proto::subscription_service_client::SubscriptionServiceClient;
use crate::api::proto::suppression_service_client::SuppressionServiceClient;
use crate::api::proto::tenant_service_client::TenantServiceClient;

use refusal::{causes, unreachable};
pub use refusal::{incomplete, is_transient, retry_delay};

/// Where `tidings serve` listens unless it is told otherwise.
pub const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:50051";
/// How long to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often to ask a silent connection whether it still lives; a watch may be silent for long.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// How long to wait for that answer.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Items that one call can ask for at most.
const MAX_PAGE_SIZE: u32 = 1_000;

/// Where the service is, and the key that it knows us by.
#[derive(Clone, Debug, clap::Args)]
pub struct Connection {
    /// Where the service listens for gRPC; https:// connects with TLS
    #[arg(
        long,
        env = "TIDINGS_ENDPOINT",
        value_name = "URL",
        default_value = DEFAULT_ENDPOINT,
        global = true, hide_env_values = true, help_heading = "Connection")]
    pub endpoint: String,
    /// The API key: of a tenant, or an operator's
    #[arg(
        long,
        env = "TIDINGS_API_KEY",
        value_name = "KEY",
        hide_env_values = true,
        global = true,
        help_heading = "Connection"
    )]
    pub api_key: Option<String>,
    /// A file with the certificates (PEM) to trust besides the usual ones
    #[arg(
        long,
        env = "TIDINGS_TLS_CA_FILE",
        value_name = "FILE",
        global = true,
        hide_env_values = true,
        help_heading = "Connection"
    )]
    pub tls_ca_file: Option<PathBuf>,
}

/// Which tenant is meant.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct TenantOption {
    /// The tenant; needed only with an operator key
    #[arg(
        long = "tenant",
        env = "TIDINGS_TENANT",
        value_name = "TENANT_ID",
        global = true,
        hide_env_values = true,
        help_heading = "Connection"
    )]
    tenant: Option<String>,
}

impl TenantOption {
    /// The tenant's id; empty when the key says it.
    pub fn id(&self) -> String {
        self.tenant.clone().unwrap_or_default()
    }
}

/// Adds the API key to each call.
#[derive(Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// What the generated clients send through.
type Service = InterceptedService<Channel, Bearer>;

/// A connection, shared by the clients of all six services.
#[derive(Clone)]
pub struct Client {
    service: Service,
    endpoint: String,
}

impl Connection {
    /// A connection to a service that is known already.
    pub fn to(endpoint: impl Into<String>, api_key: impl Into<String>) -> Self {
        Self { endpoint: endpoint.into(), api_key: Some(api_key.into()), tls_ca_file: None }
    }

    /// Connects.
    ///
    /// # Errors
    /// When an option is wrong, or nobody answers.
    pub async fn connect(&self) -> Result<Client, Error> {
        let key = self.api_key.as_deref().map(str::trim).filter(|key| !key.is_empty());
        let bearer = key.map(|key| format!("Bearer {key}").parse()).transpose().map_err(|_| {
            Error::usage("the API key contains characters that no key has")
                .hint("a key is `tdk_` and 43 letters, digits, `-` and `_`")
        })?;
        let channel =
            self.configured()?.connect().await.map_err(|error| self.unreachable(&error))?;
        let service = InterceptedService::new(channel, Bearer(bearer));
        Ok(Client { service, endpoint: self.endpoint.clone() })
    }

    fn configured(&self) -> Result<Endpoint, Error> {
        let wrong = |text: String| {
            Error::usage(format!("--endpoint {}: {text}", self.endpoint))
                .hint(format!("write it as {DEFAULT_ENDPOINT} or https://tidings.example.com"))
        };
        let endpoint = Endpoint::from_shared(self.endpoint.clone())
            .map_err(|_| wrong("this is no URL".into()))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .tcp_nodelay(true)
            .user_agent(concat!("tidings-cli/", env!("CARGO_PKG_VERSION")))
            .map_err(|error| wrong(causes(&error)))?;
        match endpoint.uri().scheme_str() {
            Some("http") => Ok(endpoint),
            Some("https") => {
                endpoint.tls_config(self.tls()?).map_err(|error| wrong(causes(&error)))
            }
            _ => Err(wrong("it must start with http:// or https://".into())),
        }
    }

    fn tls(&self) -> Result<ClientTlsConfig, Error> {
        let tls = ClientTlsConfig::new().with_enabled_roots();
        let Some(file) = &self.tls_ca_file else {
            return Ok(tls);
        };
        let pem = std::fs::read(file)
            .map_err(|error| Error::usage(format!("--tls-ca-file {}: {error}", file.display())))?;
        Ok(tls.ca_certificate(Certificate::from_pem(pem)))
    }

    fn unreachable(&self, error: &tonic::transport::Error) -> Error {
        unreachable(&self.endpoint, error)
    }
}

impl Client {
    /// Emits events.
    pub fn events(&self) -> EventServiceClient<Service> {
        EventServiceClient::new(self.service.clone())
    }

    /// Keeps subscriptions.
    pub fn subscriptions(&self) -> SubscriptionServiceClient<Service> {
        SubscriptionServiceClient::new(self.service.clone())
    }

    /// Keeps addresses that get nothing more.
    pub fn suppressions(&self) -> SuppressionServiceClient<Service> {
        SuppressionServiceClient::new(self.service.clone())
    }

    /// Shows deliveries.
    pub fn deliveries(&self) -> DeliveryServiceClient<Service> {
        DeliveryServiceClient::new(self.service.clone())
    }

    /// Keeps event types.
    pub fn catalog(&self) -> CatalogServiceClient<Service> {
        CatalogServiceClient::new(self.service.clone())
    }

    /// Keeps tenants and keys.
    pub fn tenants(&self) -> TenantServiceClient<Service> {
        TenantServiceClient::new(self.service.clone())
    }

    /// The service's address, as the person gave it.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

/// How much of a list is wanted.
#[derive(Clone, Debug, clap::Args)]
pub struct Paging {
    /// How many to list at most
    #[arg(long, value_name = "COUNT", default_value_t = 50,
        value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
    /// Go on where an earlier list ended: its `next_page_token`
    #[arg(
        long,
        value_name = "TOKEN",
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    pub page_token: String,
}

impl Paging {
    /// Turns pages until `limit` items are there or none are left, and returns them with the token
    /// that leads to the next. `page` is given a page's size and token.
    ///
    /// # Errors
    /// The first that a page gives.
    pub async fn collect<T>(
        &self,
        mut page: impl AsyncFnMut(i32, String) -> Result<(Vec<T>, String), Status>,
    ) -> Result<(Vec<T>, String), Error> {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let (mut items, mut token) = (Vec::new(), self.page_token.clone());
        loop {
            let missing = u32::try_from(limit - items.len()).unwrap_or(u32::MAX);
            let size = i32::try_from(missing.min(MAX_PAGE_SIZE)).unwrap_or(i32::MAX);
            let (more, next) = page(size, token).await?;
            items.extend(more);
            if next.is_empty() || items.len() >= limit {
                return Ok((items, next));
            }
            token = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wrong_endpoint_is_wrong_usage() {
        for endpoint in ["127.0.0.1:50051", "ftp://127.0.0.1", "http://a b", ""] {
            let error = Connection::to(endpoint, "tdk_x").connect().await.err().unwrap();
            assert_eq!(error.exit_code(), std::process::ExitCode::from(2), "{endpoint}: {error}");
        }
    }

    #[tokio::test]
    async fn nobody_at_the_endpoint_is_said_plainly() {
        // Port 1 is reserved (tcpmux), and nobody listens there.
        let error = Connection::to("http://127.0.0.1:1", "tdk_x").connect().await.err().unwrap();
        assert!(error.to_string().contains("refused"), "{error}");
        assert!(error.to_string().contains("tidings serve"), "{error}");
    }

    /// An endpoint that answers each connection with `bytes`, whatever it is asked.
    async fn answering(bytes: &'static [u8]) -> std::net::SocketAddr {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut asked = [0; 64];
                let _ = stream.read(&mut asked).await;
                let _ = stream.write_all(bytes).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn a_scheme_that_does_not_suit_the_service_is_told() {
        // A TLS alert: unexpected message.
        let with_tls = answering(&[0x15, 3, 3, 0, 2, 2, 10]).await;
        let client = Connection::to(format!("http://{with_tls}"), "tdk_x").connect().await;
        let error = match client {
            Ok(client) => {
                let request = crate::api::proto::ListTenantsRequest::default();
                Error::from(client.tenants().list_tenants(request).await.unwrap_err())
            }
            Err(error) => error,
        };
        assert!(error.to_string().contains("https://"), "{error}");
        // SETTINGS, without any: how HTTP/2 begins.
        let without = answering(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await;
        let refused = Connection::to(format!("https://{without}"), "tdk_x").connect().await;
        let error = refused.err().unwrap();
        assert!(error.to_string().contains("does not speak TLS: write http://"), "{error}");
        let canceled = Error::from(Status::cancelled("operation was canceled"));
        assert!(canceled.to_string().contains("https://"), "{canceled}");
    }

    #[tokio::test]
    async fn pages_are_turned_until_enough_is_there() {
        let paging = Paging { limit: 5, page_token: String::new() };
        let mut sizes = Vec::new();
        let (items, token) = paging
            .collect(async |size, token: String| {
                sizes.push(size);
                Ok((vec![0; 2], format!("{token}x")))
            })
            .await
            .unwrap();
        assert_eq!((items.len(), token.as_str()), (6, "xxx"));
        assert_eq!(sizes, [5, 3, 1]);
    }
}
