//! The floors of this machine: what the parts below the service can do at most, one at a time.
//!
//! Nobody can accept faster than gRPC answers, deliver faster than HTTP posts, or store faster than
//! the database inserts. How close the works come to them says how much the service itself costs.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use sea_orm::sea_query::ArrayType;
use sea_orm::{ConnectionTrait, DatabaseConnection, Statement, TransactionTrait, Value};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Endpoint, Server};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::Result;
use crate::database::Database;
use crate::emit::{CALLERS, CONNECTIONS, payload};
use crate::figures::{Figures, count};
use crate::options::{Kind, Options};
use crate::receiver::Receiver;

/// Bytes of one appended write: a page of a database's log.
const WRITE_BYTES: usize = 8 * 1_024;
/// Rows of one grouped transaction.
const ROWS: usize = 512;

pub(crate) const FSYNC: &str = "fdatasync_of_8_kib_per_s";
pub(crate) const POST: &str = "http_post_per_s";
pub(crate) const GRPC: &str = "grpc_echo_per_s";
pub(crate) const SQLITE_ROWS: &str = "sqlite_rows_in_transactions_of_512_per_s";
pub(crate) const SQLITE_COMMITS: &str = "sqlite_commits_of_one_row_per_s";
pub(crate) const POSTGRES_ROWS: &str = "postgres_rows_in_transactions_of_512_per_s";
pub(crate) const POSTGRES_COMMITS: &str = "postgres_commits_of_one_row_per_s";

/// Measures all floors, one after the other.
pub(crate) async fn measure(options: &Options, folder: &Path) -> Result<Figures> {
    let duration = options.scale().floor;
    let mut floors = Figures::default();
    let file = folder.join("floor");
    floors.set(FSYNC, tokio::task::spawn_blocking(move || syncs(&file, duration)).await??);
    floors.set(POST, posts(duration).await?);
    floors.set(GRPC, echoes(duration).await?);
    for kind in options.kinds() {
        let (rows, commits) = match kind {
            Kind::Sqlite => (SQLITE_ROWS, SQLITE_COMMITS),
            Kind::Postgres => (POSTGRES_ROWS, POSTGRES_COMMITS),
        };
        let database = Database::fresh(kind, options, folder, "floor").await?;
        let connection = &database.connection;
        prepare(connection, kind).await?;
        floors.set(rows, inserts(connection, kind, ROWS, duration).await? * count(ROWS));
        floors.set(commits, inserts(connection, kind, 1, duration).await?);
        database.remove().await?;
    }
    Ok(floors)
}

/// How often per second a page is appended to a file and on the disk.
fn syncs(path: &Path, duration: Duration) -> Result<f64> {
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).open(path)?;
    // As a database does with its log: the space is there before it is written.
    file.write_all(&vec![0; 64 * 1_024 * 1_024])?;
    file.sync_all()?;
    let page = [7; WRITE_BYTES];
    let (begin, mut times) = (Instant::now(), 0);
    while begin.elapsed() < duration {
        file.write_all_at(&page, (times * WRITE_BYTES % (64 * 1_024 * 1_024)) as u64)?;
        file.sync_data()?;
        times += 1;
    }
    let rate = count(times) / begin.elapsed().as_secs_f64();
    fs::remove_file(path)?;
    Ok(rate)
}

/// Runs as many callers as the works have, each calling again once it has its answer; gives how
/// many calls were answered per second.
async fn callers<C, F>(duration: Duration, call: C) -> Result<f64>
where
    C: Fn(usize) -> F + Send + Sync + 'static,
    F: Future<Output = Result<()>> + Send,
{
    let call = Arc::new(call);
    let begin = Instant::now();
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let call = Arc::clone(&call);
        callers.spawn(async move {
            let mut times = 0;
            while begin.elapsed() < duration {
                call(caller).await?;
                times += 1;
            }
            Ok::<usize, crate::Error>(times)
        });
    }
    let mut times = 0;
    while let Some(caller) = callers.join_next().await {
        times += caller??;
    }
    Ok(count(times) / begin.elapsed().as_secs_f64())
}

async fn posts(duration: Duration) -> Result<f64> {
    let receiver = Receiver::start(false).await?;
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let (url, body) = (receiver.url(0), Bytes::from(payload(0)));
    callers(duration, move |_| {
        let request = hyper::Request::post(&url)
            .header("content-type", "application/json")
            .body(Full::new(body.clone()));
        let client = client.clone();
        async move {
            client.request(request?).await?.into_body().collect().await?;
            Ok(())
        }
    })
    .await
}

/// The standard health check: the smallest call that there is.
async fn echoes(duration: Duration) -> Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    let (_reporter, service) = tonic_health::server::health_reporter();
    let mut server = JoinSet::new();
    server.spawn(async move {
        let incoming = TcpListenerStream::new(listener);
        Server::builder().tcp_nodelay(true).add_service(service).serve_with_incoming(incoming).await
    });
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let endpoint = Endpoint::from_shared(endpoint.clone())?.tcp_nodelay(true);
        clients.push(HealthClient::new(endpoint.connect().await?));
    }
    callers(duration, move |caller| {
        let mut client = clients[caller % CONNECTIONS].clone();
        async move {
            client.check(HealthCheckRequest::default()).await?;
            Ok(())
        }
    })
    .await
}

async fn prepare(connection: &DatabaseConnection, kind: Kind) -> Result<()> {
    let bytes = if kind == Kind::Postgres { "BYTEA" } else { "BLOB" };
    if kind == Kind::Sqlite {
        // As the store opens it.
        connection.execute_unprepared("PRAGMA journal_mode = WAL").await?;
        connection.execute_unprepared("PRAGMA synchronous = FULL").await?;
    }
    let table = format!(
        "CREATE TABLE floor_events (tenant_id TEXT NOT NULL, id TEXT NOT NULL, data {bytes} NOT NULL,
         PRIMARY KEY (tenant_id, id))"
    );
    connection.execute_unprepared(&table).await?;
    Ok(())
}

/// How many transactions of `rows` events per second one connection commits.
async fn inserts(
    connection: &DatabaseConnection,
    kind: Kind,
    rows: usize,
    duration: Duration,
) -> Result<f64> {
    let (begin, mut times) = (Instant::now(), 0);
    while begin.elapsed() < duration {
        let transaction = connection.begin().await?;
        transaction.execute_raw(insert(kind, rows, times * rows)).await?;
        transaction.commit().await?;
        times += 1;
    }
    Ok(count(times) / begin.elapsed().as_secs_f64())
}

fn insert(kind: Kind, rows: usize, first: usize) -> Statement {
    let text = |value: String| Value::String(Some(value));
    let tenant = || text("ten_00000000000000000000000000".into());
    let id = |row: usize| text(format!("evt_{rows:04}{:022}", first + row));
    let data = |row: usize| Value::Bytes(Some(payload(first + row).into_bytes()));
    match kind {
        Kind::Postgres => {
            let column = |kind, values| Value::Array(kind, Some(Box::new(values)));
            let values = [
                column(ArrayType::String, (0..rows).map(|_| tenant()).collect()),
                column(ArrayType::String, (0..rows).map(id).collect()),
                column(ArrayType::Bytes, (0..rows).map(data).collect()),
            ];
            let sql = "INSERT INTO floor_events SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[])";
            Statement::from_sql_and_values(sea_orm::DbBackend::Postgres, sql, values)
        }
        Kind::Sqlite => {
            let places: Vec<_> = (0..rows)
                .map(|row| format!("(${}, ${}, ${})", row * 3 + 1, row * 3 + 2, row * 3 + 3))
                .collect();
            let sql = format!("INSERT INTO floor_events VALUES {}", places.join(", "));
            let values = (0..rows).flat_map(|row| [tenant(), id(row), data(row)]);
            Statement::from_sql_and_values(sea_orm::DbBackend::Sqlite, sql, values)
        }
    }
}
