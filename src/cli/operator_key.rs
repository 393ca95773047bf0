//! `tidings keys create --operator`: the first key, made in the database itself, since without a
//! key nobody can ask the service for one.

use std::process::ExitCode;
use std::time::Duration;

use crate::api::proto;
use crate::app::{self, DatabaseLock, random};
use crate::config::DatabaseFlags;
use crate::domain::id::KeyId;
use crate::domain::key::{self, ApiKey, Scope};
use crate::store::{self, Store};

use super::Error;
use super::output::{self, Json, Output, time};

/// How often, and how far apart, to look whether a starting service has migrated: 5 s in all.
const SCHEMA_CHECKS: u32 = 50;
const SCHEMA_PAUSE: Duration = Duration::from_millis(100);

/// Creates an operator key and prints it alone on standard output; hints go to standard error.
///
/// # Errors
/// When options are wrong, or the database does not take it.
pub async fn create(
    database: &DatabaseFlags,
    display_name: &str,
    output: output::Options,
) -> Result<ExitCode, Error> {
    let config = database.load_from(&super::environment())?.options.store();
    let is_served = migrate(&config).await?;
    let store = Store::open(&config).await?;
    if is_served {
        wait_for_schema(&store).await;
    }
    let created = create_in(&store, display_name).await;
    store.close().await;
    let (text, created) = created?;
    let output = Output::new(output);
    if output.is_json() {
        output.document(&Json(&answer(&created, text)))?;
    } else {
        output.line(&text)?;
    }
    output.note(&format!(
        "{} is an operator key: it serves all tenants. Its text is shown only this once.",
        created.id
    ));
    Ok(ExitCode::SUCCESS)
}

/// What `CreateApiKey` would answer: programs read one form, whoever made the key.
fn answer(created: &ApiKey, secret: String) -> proto::CreateApiKeyResponse {
    let api_key = proto::ApiKey {
        id: created.id.to_string(),
        display_name: created.display_name.clone(),
        prefix: created.prefix.clone(),
        scopes: created.scopes.iter().map(|scope| scope.as_str().to_owned()).collect(),
        create_time: Some(time::to_proto(created.create_time)),
        ..proto::ApiKey::default()
    };
    proto::CreateApiKeyResponse { api_key: Some(api_key), secret }
}

/// Creates an operator key in an open database; gives its text, which is not stored, and the key.
///
/// # Errors
/// When the database does not take it.
pub async fn create_in(store: &Store, display_name: &str) -> Result<(String, ApiKey), Error> {
    store.check_schema().await?;
    let mut random = random::generator()?;
    let now = store.now().await?;
    let text = key::generate(&mut random);
    let created = ApiKey {
        id: KeyId::new(now, &mut random),
        tenant_id: None,
        display_name: display_name.to_owned(),
        prefix: key::shown(&text).to_owned(),
        scopes: vec![Scope::Admin],
        create_time: now,
        expire_time: None,
        revoke_time: None,
        last_use_time: None,
    };
    store.create_key(&created, key::hash(&text)).await?;
    Ok((text, created))
}

/// Migrates an embedded database, unless a service runs on it, which does so itself; tells whether
/// one does.
async fn migrate(config: &store::Config) -> Result<bool, Error> {
    match DatabaseLock::take(config) {
        Ok(Some(_lock)) => {
            Store::migrate(config).await?;
            Ok(false)
        }
        Ok(None) => Ok(false),
        Err(app::Error::Locked { .. }) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Gives a service that is just starting the time to migrate.
async fn wait_for_schema(store: &Store) {
    for _ in 0..SCHEMA_CHECKS {
        if store.check_schema().await.is_ok() {
            break;
        }
        tokio::time::sleep(SCHEMA_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_operator_key_is_stored_by_its_hash() {
        let folder = tempfile::tempdir().unwrap();
        let database_url = format!("sqlite://{}/tidings.db", folder.path().display());
        let config = store::Config { database_url, ..store::Config::default() };
        migrate(&config).await.unwrap();
        let store = Store::open(&config).await.unwrap();
        let (text, created) = create_in(&store, "first").await.unwrap();
        assert!(text.starts_with(key::PREFIX) && text.starts_with(&created.prefix));
        let found = store.key_by_hash(key::hash(&text)).await.unwrap();
        assert_eq!(found, Some(created));
        store.close().await;
    }
}
