//! The service as a process of its own, run as a user would, and clients for it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use rustix::process::{Pid, Signal, kill_process};
use tidings::api::proto;
use tidings::api::proto::delivery_service_client::DeliveryServiceClient;
use tidings::api::proto::event_service_client::EventServiceClient;
use tidings::api::proto::subscription_service_client::SubscriptionServiceClient;
use tidings::api::proto::tenant_service_client::TenantServiceClient;
use tidings::store::MasterKey;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::emit::{CONNECTIONS, Emitter, Events};
use crate::line::Line;
use crate::{Error, Result};

/// How long it may take to start, and to stop.
const PATIENCE: Duration = Duration::from_mins(1);
/// Lines of its log that are kept, to be shown when it fails.
const LOG_LINES: usize = 40;
const READY: &str = "tidings is ready";
/// Seals the secrets of the databases that this program makes and drops.
static MASTER_KEY: LazyLock<String> = LazyLock::new(|| {
    let key = MasterKey::generate().expect("the system has random numbers");
    key.text().expose().to_owned()
});

/// Puts a key into every request.
#[derive(Clone)]
pub(crate) struct WithKey(MetadataValue<Ascii>);

impl Interceptor for WithKey {
    fn call(&mut self, mut request: Request<()>) -> std::result::Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

type Authorized = InterceptedService<Channel, WithKey>;

/// The binary with arguments, and without the options of whoever runs this.
fn tidings(binary: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary);
    command.args(arguments).kill_on_drop(true);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TIDINGS_")) {
        command.env_remove(name);
    }
    command.env("TIDINGS_MASTER_KEY", MASTER_KEY.as_str());
    command
}

/// What a command that ends by itself prints.
async fn output(binary: &Path, arguments: &[&str]) -> Result<String> {
    let output = tidings(binary, arguments)
        .output()
        .await
        .map_err(|error| format!("{} cannot be run: {error}", binary.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("tidings {} failed: {said}", arguments.join(" ")).into());
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// The version that the binary says it has.
pub(crate) async fn version(binary: &Path) -> Result<String> {
    output(binary, &["--version"]).await
}

/// Makes the schema and an operator's key; gives the key.
pub(crate) async fn prepare(binary: &Path, database_url: &str) -> Result<String> {
    output(binary, &["migrate", "--database-url", database_url]).await?;
    output(binary, &["keys", "create", "--operator", "--database-url", database_url]).await
}

/// A running `tidings serve`.
pub(crate) struct Service {
    child: Child,
    pid: u32,
    log: Arc<Mutex<VecDeque<String>>>,
    reader: JoinHandle<()>,
    endpoint: String,
    key: WithKey,
}

impl Service {
    /// Starts it on free ports, with its default options but for receivers on the loopback.
    /// `relay` takes its mail.
    pub(crate) async fn start(
        binary: &Path,
        database_url: &str,
        key: &str,
        relay: Option<SocketAddr>,
    ) -> Result<Self> {
        let free = "127.0.0.1:0";
        let mut command = tidings(binary, &["serve", "--database-url", database_url]);
        if let Some(relay) = relay {
            command.arg(format!("--smtp-url=smtp://{relay}"));
            command.arg("--mail-from=bench@example.com");
        }
        let mut child = command
            .args(["--grpc-addr", free, "--http-addr", free, "--log-format", "json"])
            .args(["--allow-cidr", "127.0.0.0/8", "--allow-http"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{} cannot be run: {error}", binary.display()))?;
        let pid = child.id().ok_or("the service has ended at once")?;
        let stderr = child.stderr.take().ok_or("the service has no log")?;
        let log = Arc::new(Mutex::new(VecDeque::new()));
        let (told, ready) = tokio::sync::oneshot::channel();
        let lines = Arc::clone(&log);
        let reader = tokio::spawn(async move {
            let (mut told, mut stderr) = (Some(told), BufReader::new(stderr).lines());
            while let Ok(Some(line)) = stderr.next_line().await {
                if line.contains(READY)
                    && let Some(told) = told.take()
                {
                    // Whoever waits no longer has failed already.
                    let _ = told.send(line.clone());
                }
                let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                lines.push_back(line);
                if lines.len() > LOG_LINES {
                    lines.pop_front();
                }
            }
        });
        let key = WithKey(format!("Bearer {key}").parse()?);
        let mut service = Self { child, pid, log, reader, endpoint: String::new(), key };
        let Ok(Ok(line)) = tokio::time::timeout(PATIENCE, ready).await else {
            return Err(service.failure("did not start"));
        };
        let entry: serde_json::Value = serde_json::from_str(&line)?;
        let address = address(&entry).ok_or_else(|| format!("no gRPC address in {line}"))?;
        service.endpoint = format!("http://{address}");
        Ok(service)
    }

    fn failure(&self, what: &str) -> Error {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        format!("the service {what}. Its log ends:\n{}", Vec::from(log.clone()).join("\n")).into()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// A connection of its own.
    pub(crate) async fn connect(&self) -> Result<Channel> {
        Ok(Endpoint::from_shared(self.endpoint.clone())?.tcp_nodelay(true).connect().await?)
    }

    /// Clients for the load, on [`CONNECTIONS`] connections.
    pub(crate) async fn emitter(&self) -> Result<Emitter> {
        let mut clients: Vec<Events> = Vec::with_capacity(CONNECTIONS);
        let address = self.endpoint.trim_start_matches("http://");
        let key: HeaderValue = self.key.0.as_encoded_bytes().try_into()?;
        for _ in 0..CONNECTIONS {
            let line = Line::open(address, key.clone()).await?;
            clients.push(EventServiceClient::with_origin(line, self.endpoint.parse()?));
        }
        Ok(Emitter(clients.into()))
    }

    pub(crate) fn deliveries(&self, channel: Channel) -> DeliveryServiceClient<Authorized> {
        DeliveryServiceClient::with_interceptor(channel, self.key.clone())
    }

    /// A new tenant's id.
    pub(crate) async fn create_tenant(&self, channel: &Channel, name: &str) -> Result<String> {
        let tenant = proto::Tenant { display_name: name.into(), ..proto::Tenant::default() };
        let request = proto::CreateTenantRequest { tenant: Some(tenant) };
        let mut client = TenantServiceClient::with_interceptor(channel.clone(), self.key.clone());
        let created = client.create_tenant(request).await?.into_inner().tenant;
        Ok(created.ok_or("no tenant in the answer")?.id)
    }

    /// Subscribes a signed webhook to types of events; gives the subscription's id.
    pub(crate) async fn subscribe(
        &self,
        channel: &Channel,
        tenant_id: &str,
        event_types: Vec<String>,
        to: proto::subscription::Channel,
    ) -> Result<String> {
        let subscription = proto::Subscription {
            tenant_id: tenant_id.into(),
            display_name: "throughput".into(),
            event_types,
            channel: Some(to),
            ..proto::Subscription::default()
        };
        let request = proto::CreateSubscriptionRequest {
            subscription: Some(subscription),
            ..proto::CreateSubscriptionRequest::default()
        };
        let mut client =
            SubscriptionServiceClient::with_interceptor(channel.clone(), self.key.clone());
        let created = client.create_subscription(request).await?.into_inner().subscription;
        Ok(created.ok_or("no subscription in the answer")?.id)
    }

    /// Stops it gracefully.
    pub(crate) async fn stop(mut self) -> Result<()> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw).ok_or("no process")?;
        kill_process(pid, Signal::TERM)?;
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        match ended {
            Ok(Ok(status)) if status.success() => {
                self.reader.await?;
                Ok(())
            }
            other => Err(self.failure(&format!("did not stop as it should ({other:?})"))),
        }
    }

    /// Ends it at once: with attempts under way that will never end, a graceful stop takes long.
    pub(crate) async fn kill(mut self) -> Result<()> {
        self.child.kill().await?;
        self.reader.await?;
        Ok(())
    }
}

/// Where gRPC is served, as the log entry says, whether fields stand at its top or in `fields`.
fn address(entry: &serde_json::Value) -> Option<&str> {
    let top = entry.get("grpc.addr");
    top.or_else(|| entry.get("fields")?.get("grpc.addr"))?.as_str()
}
