//! Many rows as one statement's input: `WITH r(a, b) AS (…)`.
//!
//! On PostgreSQL the rows are one array per column, so the statement's text is the same for every
//! number of rows and is prepared once. SQLite has no arrays: there the rows are VALUES, cut into
//! chunks of a few sizes, each of which is prepared once. NULL does not travel: use 0 or '' and NULLIF.

use sea_orm::sea_query::ArrayType;
use std::fmt::Write;

use sea_orm::{ConnectionTrait, DatabaseTransaction, QueryResult, Value};

use crate::domain::Timestamp;

use super::Error;
use super::dialect::Dialect;

/// Most rows in one of SQLite's statements, which take 32,766 parameters at most.
const MAX_CHUNK: usize = 128;

/// A column's type.
#[derive(Clone, Copy, Debug)]
pub(super) enum Type {
    Text,
    Bytes,
    Int,
    BigInt,
}

impl Type {
    const fn array(self) -> (ArrayType, &'static str) {
        match self {
            Self::Text => (ArrayType::String, "text[]"),
            Self::Bytes => (ArrayType::Bytes, "bytea[]"),
            Self::Int => (ArrayType::Int, "int[]"),
            Self::BigInt => (ArrayType::BigInt, "bigint[]"),
        }
    }
}

/// Rows on their way into a statement. `N` is the number of columns.
pub(super) struct Rows<const N: usize> {
    dialect: Dialect,
    columns: [(&'static str, Type); N],
    values: Vec<[Value; N]>,
}

impl<const N: usize> Rows<N> {
    pub(super) fn new(
        dialect: Dialect,
        columns: [(&'static str, Type); N],
        capacity: usize,
    ) -> Self {
        Self { dialect, columns, values: Vec::with_capacity(capacity) }
    }

    pub(super) fn push(&mut self, row: [Value; N]) {
        self.values.push(row);
    }

    /// Runs `sql` with the rows as the table `r`, and `values` as `$1`, `$2` and so on before them.
    /// Returns what it returned, over all chunks.
    pub(super) async fn query(
        self,
        connection: &impl ConnectionTrait,
        sql: &str,
        values: &[Value],
    ) -> Result<Vec<QueryResult>, Error> {
        let dialect = self.dialect;
        let mut results = Vec::new();
        for (sql, values) in self.statements(sql, values) {
            let statement = dialect.statement(sql, values);
            results.extend(connection.query_all_raw(statement).await?);
        }
        Ok(results)
    }

    /// Runs `sql` like [`Rows::query`] and returns how many rows it changed.
    pub(super) async fn execute(
        self,
        transaction: &DatabaseTransaction,
        sql: &str,
        values: &[Value],
    ) -> Result<u64, Error> {
        let dialect = self.dialect;
        let mut changed = 0;
        for (sql, values) in self.statements(sql, values) {
            let statement = dialect.statement(sql, values);
            changed += transaction.execute_raw(statement).await?.rows_affected();
        }
        Ok(changed)
    }

    fn statements(self, sql: &str, values: &[Value]) -> Vec<(String, Vec<Value>)> {
        if self.values.is_empty() {
            return Vec::new();
        }
        match self.dialect {
            Dialect::Postgres => vec![self.arrays(sql, values)],
            Dialect::Sqlite => self.chunks(sql, values),
        }
    }

    fn names(&self) -> String {
        self.columns.map(|(name, _)| name).join(", ")
    }

    fn arrays(self, sql: &str, values: &[Value]) -> (String, Vec<Value>) {
        let names = self.names();
        let arrays: Vec<_> = self
            .columns
            .iter()
            .enumerate()
            .map(|(index, (_, kind))| {
                format!("unnest(${}::{})", values.len() + index + 1, kind.array().1)
            })
            .collect();
        let sql = format!("WITH r({names}) AS (SELECT {}){sql}", arrays.join(", "));
        let mut columns = self.columns.map(|_| Vec::with_capacity(self.values.len()));
        for row in self.values {
            for (column, value) in columns.iter_mut().zip(row) {
                column.push(value);
            }
        }
        let arrays = columns
            .into_iter()
            .zip(self.columns)
            .map(|(column, (_, kind))| Value::Array(kind.array().0, Some(Box::new(column))));
        (sql, values.iter().cloned().chain(arrays).collect())
    }

    /// The rows' parameters have no names, and come first: the driver asks SQLite for the name of each
    /// parameter, and SQLite looks through all names for it.
    fn chunks(self, sql: &str, values: &[Value]) -> Vec<(String, Vec<Value>)> {
        let names = self.names();
        let row = format!("({})", ["?"; N].join(", "));
        let mut statements = Vec::new();
        let mut left = self.values.len();
        let mut rows = self.values.into_iter();
        while left > 0 {
            let size = chunk(left);
            left -= size;
            let mut parameters = Vec::with_capacity(size * N + values.len());
            parameters.extend(rows.by_ref().take(size).flatten());
            parameters.extend_from_slice(values);
            let table = vec![row.as_str(); size].join(", ");
            let sql = with_places_moved(sql, size * N);
            statements.push((format!("WITH r({names}) AS (VALUES {table}){sql}"), parameters));
        }
        statements
    }
}

/// `sql` with its `$1` as `$(1 + by)`, and so on.
fn with_places_moved(sql: &str, by: usize) -> String {
    let mut parts = sql.split('$');
    let mut moved = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        let (place, rest) = part.split_at(end);
        let place: usize = place.parse().unwrap_or(0);
        // Writing into a String cannot fail.
        let _ = write!(moved, "${}{rest}", place + by);
    }
    moved
}

/// The largest power of two up to `rows`, and up to [`MAX_CHUNK`]: so the statements have few
/// different texts, and stay prepared.
const fn chunk(rows: usize) -> usize {
    let rows = if rows < MAX_CHUNK { rows } else { MAX_CHUNK };
    1 << rows.ilog2()
}

/// A text value.
pub(super) fn text(value: impl Into<String>) -> Value {
    Value::String(Some(value.into()))
}

/// A byte string.
pub(super) fn bytes(value: impl Into<Vec<u8>>) -> Value {
    Value::Bytes(Some(value.into()))
}

/// A 32-bit integer.
pub(super) const fn int(value: i32) -> Value {
    Value::Int(Some(value))
}

/// A 64-bit integer.
pub(super) const fn bigint(value: i64) -> Value {
    Value::BigInt(Some(value))
}

/// A statement that ends in `= ANY` of `values`, which are texts: `sql` stops right before it.
pub(super) fn any(dialect: Dialect, sql: &str, values: Vec<Value>) -> sea_orm::Statement {
    match dialect {
        Dialect::Postgres => {
            let array = Value::Array(ArrayType::String, Some(Box::new(values)));
            dialect.statement(format!("{sql}= ANY($1)"), vec![array])
        }
        Dialect::Sqlite => {
            let places: Vec<_> = (1..=values.len()).map(|place| format!("${place}")).collect();
            dialect.statement(format!("{sql}IN ({})", places.join(", ")), values)
        }
    }
}

/// A time where NULL does not travel: 0 for none.
pub(super) fn time_or_zero(time: Option<Timestamp>) -> Value {
    bigint(time.map_or(0, Timestamp::as_micros))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_sqlite_the_rows_come_first_and_the_values_after_them() {
        let columns = [("a", Type::BigInt), ("b", Type::BigInt)];
        let mut rows = Rows::new(Dialect::Sqlite, columns, 3);
        for number in 0..3 {
            rows.push([bigint(number), bigint(number + 10)]);
        }
        let statements = rows.statements(" SELECT a, $2, b FROM r WHERE a > $1", &[int(7), int(8)]);
        let [(first, first_values), (second, second_values)] = &statements[..] else {
            panic!("{statements:?}");
        };
        assert_eq!(
            first,
            "WITH r(a, b) AS (VALUES (?, ?), (?, ?)) SELECT a, $6, b FROM r WHERE a > $5"
        );
        assert_eq!(*first_values, [bigint(0), bigint(10), bigint(1), bigint(11), int(7), int(8)]);
        assert_eq!(second, "WITH r(a, b) AS (VALUES (?, ?)) SELECT a, $4, b FROM r WHERE a > $3");
        assert_eq!(*second_values, [bigint(2), bigint(12), int(7), int(8)]);
    }
}
