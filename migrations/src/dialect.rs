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

/// Changes the check `name` of `table` from one condition to another. PostgreSQL does so by name. SQLite
/// cannot change a check, so the schema's text is changed in place, as
/// <https://www.sqlite.org/lang_altertable.html> describes for changes that leave the content as it is:
/// writing the table anew would take as long as it is large.
pub(crate) async fn change_check(
    manager: &SchemaManager<'_>,
    (table, name): (&str, &str),
    (from, to): (&str, &str),
) -> Result<(), DbErr> {
    let statements = match manager.get_connection().get_database_backend() {
        DbBackend::Postgres => format!(
            "ALTER TABLE {table} DROP CONSTRAINT {name}
;
ALTER TABLE {table} ADD CONSTRAINT {name} CHECK ({to})"
        ),
        // The last one has every connection read the schema anew, and forbids such writing again.
        _ => format!(
            "PRAGMA writable_schema = ON
;
UPDATE sqlite_schema SET sql = replace(sql, 'CHECK ({from})', 'CHECK ({to})')
WHERE type = 'table' AND name = '{table}'
;
PRAGMA writable_schema = RESET"
        ),
    };
    execute(manager, &statements).await
}
