//! The few words in which the two databases differ.

use sea_orm_migration::SchemaManager;
use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend, DbErr};

/// Runs `statements`, separated by a line with a lone semicolon, in the words of the database:
/// `BYTES` is a byte string, `ID` is text that is compared byte by byte.
pub(crate) async fn execute(manager: &SchemaManager<'_>, statements: &str) -> Result<(), DbErr> {
    let connection = manager.get_connection();
    let (bytes, id) = match connection.get_database_backend() {
        DbBackend::Postgres => ("BYTEA", "TEXT COLLATE \"C\""),
        _ => ("BLOB", "TEXT"),
    };
    for statement in statements.split("\n;\n") {
        let statement =
            statement.replace(" BYTES", &format!(" {bytes}")).replace(" ID", &format!(" {id}"));
        if !statement.trim().is_empty() {
            connection.execute_unprepared(&statement).await?;
        }
    }
    Ok(())
}
