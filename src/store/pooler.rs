//! What may stand between us and PostgreSQL: a connection pooler.
//!
//! A pooler that lends a server's session for one transaction at a time serves us as well as a session
//! of our own: locks are held within transactions, and where nobody can listen, polling takes its place.
//! Prepared statements are the exception. A pooler that does not keep those of its clients apart would
//! run one statement in the place of another, so the service refuses to start behind one.

use std::time::Duration;

use sea_orm::sqlx::postgres::PgConnection;
use sea_orm::sqlx::{self, Connection as _, PgPool};

use super::Error;
use super::connect::not_connected;

/// How long a pooler gets to find another session while one is held.
const WAIT: Duration = Duration::from_secs(5);

/// How often a connection is asked for its session while nobody holds another one, and then again.
const ASKED: usize = 3;

/// Which of the server's sessions runs this. Prepared under a name, and run again under it.
const SESSION: &str = "SELECT pg_backend_pid()";

const REFUSED: &str = "the connection pooler before PostgreSQL shares sessions between transactions, \
     but does not keep prepared statements apart: let it pool sessions, or let it track prepared \
     statements (PgBouncer from 1.21: max_prepared_statements)";

/// Whose the server's sessions are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sessions {
    /// Each connection has one as long as it lasts.
    Own,
    /// A pooler lends one for each transaction. Whoever listened there would leave that to others,
    /// whose drivers do not expect notifications.
    Lent,
}

/// Finds out whose the sessions are, and checks that statements that were prepared on one connection
/// are found there again, and are nobody else's.
///
/// The way: without a pooler, and with one that pools sessions, a connection has the same session
/// each time that it is asked, and no other connection has it. One that lends sessions in turn gives
/// another one soon; one that lends the last one first gives it to the second connection. Each answer
/// may be as it would be anyway when others use the pooler at the same time, so several are asked for.
///
/// # Errors
/// [`Error::Configuration`] when statements are mixed up; or the database does not answer.
pub(super) async fn check(pool: &PgPool) -> Result<Sessions, Error> {
    let mut first = pool.acquire().await.map_err(not_connected)?;
    let own = session(&mut first).await?;
    let mut is_lent = false;
    for _ in 0..ASKED {
        is_lent |= session(&mut first).await? != own;
    }
    let mut second = pool.acquire().await.map_err(not_connected)?;
    let mut holding = second.begin().await.map_err(not_connected)?;
    is_lent |= session(&mut holding).await? == own;
    for _ in 0..ASKED {
        // A pooler with a single session cannot lend another one now, and has shown itself already.
        match tokio::time::timeout(WAIT, session(&mut first)).await {
            Ok(session) => is_lent |= session? != own,
            Err(_) => break,
        }
    }
    holding.rollback().await.map_err(not_connected)?;
    Ok(if is_lent { Sessions::Lent } else { Sessions::Own })
}

async fn session(connection: &mut PgConnection) -> Result<i32, Error> {
    sqlx::query_scalar(SESSION).fetch_one(connection).await.map_err(|error| {
        // 42P05: the name is taken; 26000: no statement has it.
        match error.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref() {
            Some("42P05" | "26000") => Error::Configuration(REFUSED.into()),
            _ => not_connected(error),
        }
    })
}
