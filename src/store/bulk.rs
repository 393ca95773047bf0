//! Many rows as one statement's input: `WITH r(a, b) AS (…)`.
//!
//! On PostgreSQL the rows are one array per column, so the statement's text is the same for every
//! number of rows and is prepared once. SQLite has no arrays: there the rows are VALUES, cut into
//! chunks that stay below its limit of parameters. NULL does not travel: use 0 or '' and NULLIF.

use sea_orm::sea_query::ArrayType;
use std::fmt::Write;

use sea_orm::{ConnectionTrait, DatabaseTransaction, QueryResult, Value};

use super::Error;
use super::dialect::Dialect;

/// SQLite's limit is 32,766 parameters a statement.
const MAX_SQLITE_PARAMETERS: usize = 30_000;

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

    pub(super) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    pub(super) fn push(&mut self, row: [Value; N]) {
        self.values.push(row);
    }

    /// Runs `sql` with the rows as the table `r`, and `values` as `$1`, `$2` and so on before them.
    /// Returns what it returned, over all chunks.
    pub(super) async fn query(
        self,
        transaction: &DatabaseTransaction,
        sql: &str,
        values: &[Value],
    ) -> Result<Vec<QueryResult>, Error> {
        let dialect = self.dialect;
        let mut results = Vec::new();
        for (with, values) in self.statements(values) {
            let statement = dialect.statement(format!("{with}{sql}"), values);
            results.extend(transaction.query_all_raw(statement).await?);
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
        for (with, values) in self.statements(values) {
            let statement = dialect.statement(format!("{with}{sql}"), values);
            changed += transaction.execute_raw(statement).await?.rows_affected();
        }
        Ok(changed)
    }

    fn statements(self, values: &[Value]) -> Vec<(String, Vec<Value>)> {
        if self.values.is_empty() {
            return Vec::new();
        }
        match self.dialect {
            Dialect::Postgres => vec![self.arrays(values)],
            Dialect::Sqlite => self.chunks(values),
        }
    }

    fn names(&self) -> String {
        self.columns.map(|(name, _)| name).join(", ")
    }

    fn arrays(self, values: &[Value]) -> (String, Vec<Value>) {
        let names = self.names();
        let arrays: Vec<_> = self
            .columns
            .iter()
            .enumerate()
            .map(|(index, (_, kind))| format!("${}::{}", values.len() + index + 1, kind.array().1))
            .collect();
        let with = format!("WITH r({names}) AS (SELECT * FROM unnest({}))", arrays.join(", "));
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
        (with, values.iter().cloned().chain(arrays).collect())
    }

    fn chunks(self, values: &[Value]) -> Vec<(String, Vec<Value>)> {
        let names = self.names();
        let size = (MAX_SQLITE_PARAMETERS - values.len()) / N;
        let mut statements = Vec::new();
        let mut rows = self.values.into_iter().peekable();
        while rows.peek().is_some() {
            let mut parameters = values.to_vec();
            let mut table = String::new();
            for row in rows.by_ref().take(size) {
                table.push_str(if table.is_empty() { "(" } else { ", (" });
                for (index, value) in row.into_iter().enumerate() {
                    parameters.push(value);
                    let separator = if index == 0 { "" } else { ", " };
                    // Writing into a String cannot fail.
                    let _ = write!(table, "{separator}${}", parameters.len());
                }
                table.push(')');
            }
            statements.push((format!("WITH r({names}) AS (VALUES {table})"), parameters));
        }
        statements
    }
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
