//! What `docs/scaling.md` rests on: the schema uses nothing that a distributed PostgreSQL refuses, the
//! statements that are not portable stand where the document says, and the bytes that it counts with
//! are those of real tables.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement};
use tidings::api::proto::{DeliveryState, EmitRequest, emit_request};
use tokio::task::JoinSet;

use crate::support::fleet::Fleet;
use crate::support::{Database, Receiver};

/// Tables that belong to the installation and not to a tenant: a few rows each, the same for every
/// shard (Citus: reference tables).
const OF_THE_INSTALLATION: [&str; 4] = ["leases", "nodes", "seaql_migrations", "vault"];

/// Indexes that the tenant does not lead, with the reason. None of them is unique: a distributed
/// database keeps them shard by shard.
const ACROSS_TENANTS: [(&str, &str); 5] = [
    ("api_keys_by_hash", "whoever comes with a key has not said yet whose it is"),
    ("deliveries_expiring", "the janitor asks for what has expired, of all tenants"),
    ("deliveries_mailed", "what says that a mail came back names its delivery alone"),
    ("endpoint_health_changes", "replicas ask for what has changed lately, of all tenants"),
    ("idempotency_keys_by_time", "the oldest keys go, whoever's they are"),
];

/// Types that every PostgreSQL knows.
const TYPES: [&str; 6] = ["bytea", "int2", "int4", "int8", "text", "varchar"];

async fn rows(connection: &DatabaseConnection, sql: &str) -> Vec<Vec<String>> {
    let found = connection.query_all_raw(Statement::from_string(DbBackend::Postgres, sql)).await;
    let found = found.unwrap_or_else(|error| panic!("{sql}: {error}"));
    let read = |row: &sea_orm::QueryResult| {
        let columns = row.column_names().len();
        (0..columns).map(|at| row.try_get_by_index::<String>(at).expect("a text")).collect()
    };
    found.iter().map(read).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tenant_leads_every_key_and_nothing_is_used_that_distributed_databases_refuse() {
    let database = Database::postgres().await;
    let connection =
        sea_orm::Database::connect(&database.config.database_url).await.expect("connected");
    let keys = rows(
        &connection,
        "SELECT t.relname::text, i.relname::text, x.indisprimary::text, x.indisunique::text,
            a.attname::text, (x.indexprs IS NOT NULL)::text
        FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class t ON t.oid = x.indrelid
        LEFT JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = x.indkey[0]
        WHERE t.relnamespace = 'public'::regnamespace",
    )
    .await;
    let tables: BTreeSet<_> = rows(
        &connection,
        "SELECT relname::text FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'",
    )
    .await
    .into_iter()
    .flatten()
    .collect();
    assert!(tables.len() >= 14, "{tables:?}");
    let mut with_primary = BTreeSet::new();
    let mut across = BTreeSet::new();
    for key in &keys {
        let [table, index, primary, unique, first, is_expression] = key.as_slice() else {
            panic!("{key:?}")
        };
        assert_eq!(is_expression, "false", "{index} is over an expression");
        if primary == "true" {
            with_primary.insert(table.clone());
        }
        // A tenant's id is its tenant column: it is called `id` there alone.
        let tenant = if table == "tenants" { "id" } else { "tenant_id" };
        if OF_THE_INSTALLATION.contains(&table.as_str()) || first == tenant {
            continue;
        }
        assert_eq!(unique, "false", "{index} is unique over all tenants");
        across.insert(index.as_str());
    }
    assert_eq!(with_primary, tables, "each table has a primary key");
    let expected: BTreeSet<_> = ACROSS_TENANTS.iter().map(|(index, _)| *index).collect();
    assert_eq!(across, expected, "indexes that the tenant does not lead");
    let of_tenants = rows(
        &connection,
        "SELECT c.relname::text FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
          AND a.attname = 'tenant_id' AND a.attnotnull",
    )
    .await;
    assert_eq!(of_tenants.len() + OF_THE_INSTALLATION.len() + 1, tables.len(), "{of_tenants:?}");

    for (what, sql) in REFUSED {
        let found = rows(&connection, sql).await;
        assert!(found.is_empty(), "{what}: {found:?}");
    }
    let types =
        "SELECT DISTINCT y.typname::text FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        JOIN pg_type y ON y.oid = a.atttypid
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0
          AND NOT a.attisdropped";
    for name in rows(&connection, types).await.into_iter().flatten() {
        assert!(TYPES.contains(&name.as_str()), "a column of the type {name}");
    }
    connection.close().await.expect("closed");
}

/// What one or the other refuses, or takes only in part. None of it may be in the schema.
const REFUSED: [(&str, &str); 8] = [
    (
        "constraints other than primary keys and checks of the row itself (foreign keys, exclusion)",
        "SELECT conname::text FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace AND contype NOT IN ('p', 'c', 'n')",
    ),
    (
        "deferrable constraints",
        "SELECT conname::text FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace AND condeferrable",
    ),
    (
        "triggers",
        "SELECT tgname::text FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
        WHERE c.relnamespace = 'public'::regnamespace AND NOT tgisinternal",
    ),
    (
        "rules, views, sequences (serial, identity), partitions, foreign tables",
        "SELECT relname::text FROM pg_class
        WHERE relnamespace = 'public'::regnamespace
          AND (relkind NOT IN ('r', 'i', 't') OR relhasrules OR relispartition OR relpersistence <> 'p')",
    ),
    (
        "inheritance",
        "SELECT inhrelid::text FROM pg_inherits",
    ),
    (
        "functions and types of our own",
        "SELECT proname::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        UNION ALL SELECT t.typname::text FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid
        WHERE t.typnamespace = 'public'::regnamespace AND t.typtype <> 'c' AND t.typcategory <> 'A'",
    ),
    (
        "extensions",
        "SELECT extname::text FROM pg_extension WHERE extname <> 'plpgsql'",
    ),
    (
        "generated and identity columns, and index methods other than b-tree",
        "SELECT attname::text FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        WHERE c.relnamespace = 'public'::regnamespace AND (attgenerated <> '' OR attidentity <> '')
        UNION ALL SELECT c.relname::text FROM pg_class c JOIN pg_am m ON m.oid = c.relam
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'i' AND m.amname <> 'btree'",
    ),
];

/// Words of SQL that one or the other refuses, and the only files that may have them: each is told of
/// in docs/scaling.md, with what takes its place.
const NOT_PORTABLE: [(&str, &[&str]); 12] = [
    ("pg_advisory", &["connect.rs"]),
    ("LISTEN ", &[]),
    ("NOTIFY ", &["wake.rs"]),
    (".listen(", &["wake.rs"]),
    ("VACUUM ", &["prepare.rs"]),
    ("LOCK TABLE", &[]),
    ("CREATE TEMP", &[]),
    ("nextval", &[]),
    ("TABLESAMPLE", &[]),
    ("pg_snapshot", &[]),
    ("ctid", &[]),
    ("WITH RECURSIVE", &["claim.rs", "nodes.rs"]),
];

#[test]
fn statements_that_are_not_portable_stand_where_the_document_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = std::fs::read_to_string(root.join("docs/scaling.md")).expect("the document");
    let mut found: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut folders = vec![root.join("src/store")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("readable") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("text");
            // Comments may speak of anything.
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            let code: String = code.flat_map(|line| [line, "\n"]).collect();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            for (word, _) in NOT_PORTABLE {
                if code.contains(word) {
                    found.entry(word).or_default().insert(name.clone());
                }
            }
        }
    }
    assert!(found.len() >= 4, "the statements are not looked for in the right place: {found:?}");
    for (word, files) in NOT_PORTABLE {
        let found = found.remove(word).unwrap_or_default();
        let unexpected: Vec<_> =
            found.iter().filter(|file| !files.contains(&file.as_str())).collect();
        assert!(unexpected.is_empty(), "{word} is in {unexpected:?}");
        if !found.is_empty() {
            let named = word.trim_matches([' ', '.', '(']).to_ascii_lowercase();
            assert!(document.to_ascii_lowercase().contains(&named), "{word} is not told of");
        }
    }
}

/// What the tables hold is what the document counts with.
///
/// `make test TEST_ARGS='--test it -- scaling:: --nocapture'` shows the figures of this machine. Bytes
/// of the write-ahead log are those of the whole server: run it alone for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storage_per_delivery_is_what_the_document_counts_with() {
    const EVENTS: usize = 2_000;
    const CALLERS: usize = 64;
    let fleet = Fleet::start(Database::postgres().await, 1).await;
    let connection =
        sea_orm::Database::connect(&fleet.database.config.database_url).await.expect("connected");
    let receiver = Receiver::answering(200).await;
    let client = fleet.client(0);
    let tenant = client.create_tenant("Acme").await;
    let (subscription, _) = client.subscribe(&tenant.id, &["*"], &receiver.url()).await;
    let payload = format!(r#"{{"id":"{}"}}"#, "0123456789abcdef".repeat(64));
    assert!((1_024..1_100).contains(&payload.len()));
    let log = "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint::text";
    let before: u64 = rows(&connection, log).await[0][0].parse().expect("bytes");
    let next = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (client, next) = (client.clone(), Arc::clone(&next));
        let (tenant_id, payload) = (tenant.id.clone(), payload.clone());
        callers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= EVENTS {
                    return;
                }
                let request = EmitRequest {
                    tenant_id: tenant_id.clone(),
                    r#type: "billing.paid".into(),
                    idempotency_key: format!("invoice-{number}"),
                    payload: Some(emit_request::Payload::DataJson(payload.clone())),
                    ..Default::default()
                };
                client.events().emit(request).await.expect("accepted");
            }
        });
    }
    while callers.join_next().await.transpose().expect("no panic").is_some() {}
    receiver.wait_for(EVENTS).await;
    client.wait_for_all(&subscription, DeliveryState::Succeeded).await;
    let after: u64 = rows(&connection, log).await[0][0].parse().expect("bytes");
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let per_event = |bytes: u64| bytes as f64 / EVENTS as f64;
    println!("write-ahead log: {:.0} bytes an event", per_event(after - before));

    let documented = documented();
    connection.execute_unprepared("VACUUM FULL").await.expect("vacuumed");
    let mut wrong = Vec::new();
    for (table, expected) in documented {
        let sql = format!("SELECT pg_total_relation_size('{table}')::text");
        let bytes: u64 = rows(&connection, &sql).await[0][0].parse().expect("bytes");
        let bytes = per_event(bytes);
        println!("{table}: {bytes:.0} bytes an event, {expected} in the document");
        // One row of the feed holds what a group commit changed, and is compressed: larger groups make
        // it smaller.
        let tolerance = if table == "feed" { 2.0 } else { 0.25 };
        if (bytes / expected - 1.0).abs() > tolerance {
            wrong.push(table);
        }
    }
    assert!(wrong.is_empty(), "not what the document says: {wrong:?}");
    connection.close().await.expect("closed");
    fleet.kill().await;
}

/// The bytes that `scripts/scaling-cost` counts with, by table.
fn documented() -> Vec<(String, f64)> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/scaling-cost");
    let script = std::fs::read_to_string(script).expect("the script");
    let table = script.split_once("STORED_BYTES = {").expect("the table").1;
    let table = table.split_once('}').expect("its end").0;
    let lines = table.lines().filter_map(|line| line.trim().split_once(": "));
    let read: Vec<_> = lines
        .map(|(name, value)| {
            let value = value.split([',', ' ']).next().expect("a number");
            (name.trim_matches('"').to_owned(), value.parse().expect("a number"))
        })
        .collect();
    assert_eq!(read.len(), 5, "{read:?}");
    read
}
