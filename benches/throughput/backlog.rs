//! A backlog, put into the database by SQL: far more deliveries than anybody could emit in the time.
//!
//! The rows are copies of rows that the service has made, with new ids. So they hold whatever the
//! schema asks for, now and in later versions.

use sea_orm::{ConnectionTrait, DatabaseConnection, FromQueryResult, Statement};
use tidings::domain::Timestamp;
use tidings::domain::id::{DeliveryId, EventId};

use crate::database::{Database, number};
use crate::{Result, progress};

/// Rows that one statement makes at most: bounds the size of a transaction.
const PORTION: usize = 50_000;
/// How often a person is told how far it is.
const TELL_EVERY: usize = 200_000;
/// Characters of an id that tell its kind and its time.
const TIME_CHARS: usize = 14;
/// The smallest number with as many digits as an id has random characters.
const FIRST: usize = 1_000_000_000_000_000;

/// Copies the scheduled deliveries, and their events, until `count` are due.
pub(crate) async fn seed(database: &Database, count: usize) -> Result<()> {
    let connection = &database.connection;
    let now = Timestamp::from_micros(number(connection, database.now()).await?);
    let templates = "CREATE TABLE bench_templates AS
        SELECT row_number() OVER (ORDER BY tenant_id, id) AS template, tenant_id, id, event_id
        FROM deliveries WHERE state = 1";
    connection.execute_unprepared(templates).await?;
    let templates = number(connection, "SELECT count(*) FROM bench_templates").await?;
    let templates = usize::try_from(templates)?;
    if templates == 0 {
        return Err("there is no scheduled delivery to copy".into());
    }
    let copies = count.div_ceil(templates);
    let statements = [
        copying(database, "events", "x.id = t.event_id", now).await?,
        copying(database, "deliveries", "x.id = t.id", now).await?,
    ];
    let step = (PORTION / templates).max(1);
    let mut told = 0;
    for first in (0..copies).step_by(step) {
        let last = (first + step).min(copies) - 1;
        for statement in &statements {
            let numbers = format!(
                "WITH RECURSIVE c(copy) AS
                    (SELECT {first} UNION ALL SELECT copy + 1 FROM c WHERE copy < {last})"
            );
            // SQLite wants the WITH before the INSERT, PostgreSQL takes it there.
            connection.execute_unprepared(&format!("{numbers} {statement}")).await?;
        }
        let made = (last + 1) * templates;
        if made - told >= TELL_EVERY {
            told = made;
            progress(&format!("    backlog: {made} deliveries"));
        }
    }
    connection.execute_unprepared("DROP TABLE bench_templates").await?;
    check(connection, count, now).await?;
    database.analyze().await
}

async fn check(connection: &DatabaseConnection, count: usize, now: Timestamp) -> Result<()> {
    let sql = format!(
        "SELECT count(*) FROM deliveries WHERE state = 1 AND next_attempt_time <= {}",
        now.as_micros()
    );
    let due = number(connection, &sql).await?;
    if due < i64::try_from(count)? {
        return Err(format!("only {due} of {count} deliveries became due").into());
    }
    Ok(())
}

/// The statement that copies a table's rows: once for each number in `c` and each template in `t`.
async fn copying(
    database: &Database,
    table: &str,
    condition: &str,
    now: Timestamp,
) -> Result<String> {
    let templates = "(SELECT count(*) FROM bench_templates)";
    let place = format!("CAST({FIRST} + c.copy * {templates} + t.template AS TEXT)");
    let time = |id: &str| format!("'{}' || {place}", &id[..TIME_CHARS]);
    let (event, delivery) =
        (time(EventId::first_at(now).as_str()), time(DeliveryId::first_at(now).as_str()));
    let columns = columns(database, table).await?;
    let values: Vec<String> = columns
        .iter()
        .map(|column| match (table, column.as_str()) {
            ("events", "id") | ("deliveries", "event_id") => event.clone(),
            ("deliveries", "id") => delivery.clone(),
            ("events", "deliver_time") => "NULL".into(),
            ("deliveries", "next_attempt_time") => now.as_micros().to_string(),
            (_, column) => format!("x.{column}"),
        })
        .collect();
    Ok(format!(
        "INSERT INTO {table} ({}) SELECT {} FROM c CROSS JOIN bench_templates t
         JOIN {table} x ON x.tenant_id = t.tenant_id AND {condition}",
        columns.join(", "),
        values.join(", ")
    ))
}

#[derive(FromQueryResult)]
struct Column {
    name: String,
}

async fn columns(database: &Database, table: &str) -> Result<Vec<String>> {
    let sql = if database.is_postgres() {
        format!(
            "SELECT CAST(column_name AS TEXT) AS name FROM information_schema.columns
             WHERE table_schema = current_schema() AND table_name = '{table}'"
        )
    } else {
        format!("SELECT name FROM pragma_table_info('{table}')")
    };
    let connection = &database.connection;
    let statement = Statement::from_string(connection.get_database_backend(), sql);
    let columns = Column::find_by_statement(statement).all(connection).await?;
    Ok(columns.into_iter().map(|column| column.name).collect())
}
