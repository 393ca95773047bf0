//! Watchers beside the load: streams of `WatchDeliveries`, read as fast as they come.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tidings::api::proto::{DeliveryState, WatchDeliveriesRequest};
use tokio::task::JoinSet;
use tonic::Code;
use tonic::transport::Channel;

use crate::service::Service;
use crate::{Error, Result};

/// Connections that the streams share.
const CONNECTIONS: usize = 4;
/// How long after the last arrival the last change may be told.
const PATIENCE: Duration = Duration::from_mins(2);
const LOOK: Duration = Duration::from_millis(10);

#[derive(Default)]
struct Told {
    changes: AtomicUsize,
    /// Deliveries that were told to have succeeded, over all streams.
    succeeded: AtomicUsize,
    open: AtomicUsize,
}

/// Open streams; they end when this is dropped.
pub(crate) struct Watchers {
    told: Arc<Told>,
    streams: JoinSet<Error>,
}

impl Watchers {
    /// Opens `count` streams on one tenant: of everything, or each of its own type of event.
    pub(crate) async fn open(
        service: &Service,
        tenant_id: &str,
        count: usize,
        is_of_all: bool,
    ) -> Result<Self> {
        let told = Arc::new(Told::default());
        let mut streams = JoinSet::new();
        let mut channels = Vec::new();
        for _ in 0..CONNECTIONS {
            channels.push(service.connect().await?);
        }
        for number in 0..count {
            let own_type = || format!("bench.t{number}");
            let request = WatchDeliveriesRequest {
                tenant_id: tenant_id.into(),
                event_types: if is_of_all { Vec::new() } else { vec![own_type()] },
                ..WatchDeliveriesRequest::default()
            };
            let channel = channels[number % CONNECTIONS].clone();
            streams.spawn(follow(service.deliveries(channel), request, Arc::clone(&told)));
        }
        let mut watchers = Self { told, streams };
        while watchers.told.open.load(Ordering::Relaxed) < count {
            watchers.check()?;
            tokio::time::sleep(LOOK).await;
        }
        Ok(watchers)
    }

    /// The error of a stream that could not go on.
    fn check(&mut self) -> Result<()> {
        match self.streams.try_join_next() {
            None => Ok(()),
            Some(ended) => Err(ended?),
        }
    }

    /// Waits until so many successes have been told; gives how many changes were told in all.
    pub(crate) async fn wait(mut self, succeeded: usize) -> Result<usize> {
        let begin = Instant::now();
        loop {
            self.check()?;
            let told = self.told.succeeded.load(Ordering::Relaxed);
            if told >= succeeded {
                return Ok(self.told.changes.load(Ordering::Relaxed));
            }
            if begin.elapsed() > PATIENCE {
                return Err(format!("watchers were told {told} of {succeeded} successes").into());
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

type Client = tidings::api::proto::delivery_service_client::DeliveryServiceClient<
    tonic::service::interceptor::InterceptedService<Channel, crate::service::WithKey>,
>;

/// Follows one stream, and takes it up again where the service lets go of it.
async fn follow(mut client: Client, mut request: WatchDeliveriesRequest, told: Arc<Told>) -> Error {
    loop {
        let mut stream = match client.watch_deliveries(request.clone()).await {
            Ok(response) => response.into_inner(),
            Err(status) => return format!("WatchDeliveries failed: {status}").into(),
        };
        loop {
            let response = match stream.message().await {
                Ok(Some(response)) => response,
                Ok(None) => break,
                Err(status) if matches!(status.code(), Code::Unavailable | Code::Aborted) => break,
                Err(status) => return format!("WatchDeliveries ended: {status}").into(),
            };
            if request.resume_token.is_empty() {
                told.open.fetch_add(1, Ordering::Relaxed);
            }
            request.resume_token = response.resume_token;
            let Some(delivery) = response.delivery else { continue };
            told.changes.fetch_add(1, Ordering::Relaxed);
            if delivery.state() == DeliveryState::Succeeded {
                told.succeeded.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}
