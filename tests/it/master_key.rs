//! The master key: made or asked for, checked before anything is tried with it, never shown. And
//! what older versions stored in the clear is sealed, also where it was before.

use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use tidings::domain::channel::{Channel, WebhookChannel};
use tidings::store::{KeySource, MasterKey, Store};

use crate::support::database::write_key;
use crate::support::make::Maker;
use crate::support::process::{Served, operator_key, tidings};
use crate::support::{Client, Database};

/// Runs a command on the database.
async fn on(database: &Database, command: &[&str]) -> Output {
    let arguments = database.arguments();
    let arguments: Vec<_> =
        command.iter().copied().chain(arguments.iter().map(String::as_str)).collect();
    tidings(&arguments).current_dir(database.folder.path()).output().await.expect("ran")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const SERVE: [&str; 5] = ["serve", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0"];

/// The first start on a file makes a key for the service's user alone; the next start uses it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_made_beside_an_embedded_database() {
    let database = Database::sqlite().await;
    assert!(!database.key_file().exists());
    let key = operator_key(&database).await;
    assert!(!database.key_file().exists(), "a key for clients needs none");
    let served = Served::start(&database, &[]).await;
    let made = std::fs::read_to_string(database.key_file()).expect("made");
    assert!(made.lines().any(|line| line.starts_with("tdmk_")));
    let permissions = std::fs::metadata(database.key_file()).expect("made").permissions();
    assert_eq!(permissions.mode() & 0o777, 0o600);
    // Payloads are in the clear: the database and its log are the user's alone, too.
    for file in ["tidings.db", "tidings.db-wal"] {
        let path = database.folder.path().join(file);
        let permissions = std::fs::metadata(path).expect(file).permissions();
        assert_eq!(permissions.mode() & 0o777, 0o600, "{file}");
    }
    let client = Client::connect(&served.endpoint, &key).await;
    let tenant = client.create_tenant("Acme").await;
    served.signal("TERM").await;
    let (code, log) = served.wait().await;
    assert_eq!(code, Some(0));
    assert!(log.iter().any(|line| line.contains("made a master key")), "{log:?}");
    let served = Served::start(&database, &[]).await;
    assert_eq!(std::fs::read_to_string(database.key_file()).expect("there"), made);
    let client = Client::connect(&served.endpoint, &key).await;
    client.subscribe(&tenant.id, &["*"], "https://hooks.company.com/").await;
    served.kill().await;
}

/// A server's database has many processes, which must not make a key each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_postgres_a_key_is_asked_for() {
    let mut database = Database::postgres().await;
    database.config.master_key = KeySource::Unset;
    for command in [&["migrate"][..], &SERVE] {
        let refused = on(&database, command).await;
        assert_eq!(refused.status.code(), Some(1));
        let error = stderr(&refused);
        assert!(error.contains("tidings master-key generate"), "{error}");
        assert!(error.contains("TIDINGS_MASTER_KEY_FILE"), "{error}");
    }
    // Who is refused has changed nothing: the next one begins with an empty database.
    database.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public").await;
    assert_eq!(on(&database, &["migrate"]).await.status.code(), Some(1));
    database.execute("CREATE TABLE tenants (id INT)").await;
    database.execute("DROP TABLE tenants").await;
    // In the environment, too; and what a program prints can be used as it is.
    let generated = tidings(&["master-key", "generate"]).output().await.expect("ran");
    let text = String::from_utf8(generated.stdout).expect("UTF-8");
    assert!(MasterKey::parse(text.trim()).is_some());
    assert!(!String::from_utf8_lossy(&generated.stderr).contains(text.trim()));
    let migrated = tidings(&["migrate", "--database-url", &database.config.database_url])
        .env("TIDINGS_MASTER_KEY", text.trim())
        .output()
        .await
        .expect("ran");
    assert!(migrated.status.success(), "{}", stderr(&migrated));
    let shown = tidings(&["config"])
        .env("TIDINGS_MASTER_KEY", text.trim())
        .current_dir(database.folder.path())
        .output()
        .await
        .expect("ran");
    assert!(shown.status.success());
    let shown = String::from_utf8(shown.stdout).expect("UTF-8");
    assert!(shown.contains("TIDINGS_MASTER_KEY") && !shown.contains("tdmk_"), "{shown}");
}

on_both! {
    async fn a_wrong_key_is_told_before_anything_fails(database: Database) {
        let store = database.open().await;
        store.close().await;
        let path = database.key_file();
        let right = std::fs::read(&path).expect("read");
        let refused = async |problem: &str| {
            for command in [&["migrate"][..], &SERVE, &["master-key", "status"]] {
                let refused = on(&database, command).await;
                assert_eq!(refused.status.code(), Some(1), "{command:?}");
                let error = stderr(&refused);
                assert!(error.contains(problem), "{problem} is not in {error}");
                assert!(!error.contains("tdmk_A"), "{error}");
            }
        };
        std::fs::remove_file(&path).expect("removed");
        refused("missing").await;
        assert!(!path.exists(), "no other key is made in its place");
        write_key(&path);
        refused("wrong master key").await;
        std::fs::write(&path, "tdmk_A").expect("written");
        refused("line 1 is no master key").await;
        std::fs::write(&path, &right).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("set");
        refused("chmod").await;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("set");
        let migrated = on(&database, &["migrate"]).await;
        assert!(migrated.status.success(), "{}", stderr(&migrated));
    }
}

/// Where in the server's files `canary` stands, dead rows included.
async fn is_in_table_files(database: &Database, canary: &str) -> bool {
    use sea_orm::{ConnectionTrait, Database as SeaDatabase};
    let connection = SeaDatabase::connect(&database.config.database_url).await.expect("connected");
    connection.execute_unprepared("CHECKPOINT").await.expect("on disk");
    let hex = hex::encode(canary);
    let sql = format!(
        "SELECT 1 FROM unnest(ARRAY['subscriptions', 'tenants']) AS t(name)
         WHERE position('\\x{hex}'::bytea in pg_read_binary_file(pg_relation_filepath(t.name))) > 0"
    );
    let statement = sea_orm::Statement::from_string(sea_orm::DatabaseBackend::Postgres, sql);
    let found = connection.query_one_raw(statement).await.expect("read").is_some();
    connection.close().await.expect("closed");
    found
}

on_both! {
    /// Rows as versions before the sealed columns wrote them.
    async fn what_stood_in_the_clear_is_sealed_at_the_start(database: Database) {
        const CANARY: &str = "canary-from-before";
        const FREED: &str = "canary-in-free-pages";
        let store = database.open().await;
        let (maker, now) = (Maker::new(1), store.now().await.expect("now"));
        let tenant = maker.tenant(&store, now).await;
        let mut subscriptions = Vec::new();
        for _ in 0..3 {
            subscriptions.push(maker.subscription(&store, tenant.id, now).await);
        }
        store.close().await;
        let webhook = WebhookChannel {
            url: format!("https://hooks.company.com/?token={CANARY}"),
            headers: [("X-Key".to_owned(), CANARY.to_owned())].into(),
            ..WebhookChannel::default()
        };
        let channel = serde_json::json!({ "Webhook": webhook }).to_string();
        let secrets = format!(r#"[{{"text":"{CANARY}-123456","expire_time":null}}]"#);
        // The last one is sealed already: the work was broken off before the others.
        for subscription in &subscriptions[..2] {
            database.execute(&format!(
                "UPDATE subscriptions SET channel = '{channel}', secrets = '{secrets}', sealed = NULL WHERE id = '{}'",
                subscription.id
            )).await;
        }
        database.execute(&format!("UPDATE tenants SET webhook_url = 'https://a.com/?{CANARY}', sealed = NULL")).await;
        database.execute("UPDATE vault SET all_sealed = 0").await;
        // What was deleted stays in free pages and dead rows.
        database.execute(&format!(
            "CREATE TABLE former AS SELECT '{FREED}' || id || display_name AS text FROM subscriptions"
        )).await;
        database.execute("DROP TABLE former").await;
        let holds = |contents: &[u8], canary: &str| {
            contents.windows(canary.len()).any(|window| window == canary.as_bytes())
        };
        let before = database.contents().await;
        assert!(holds(&before, CANARY), "the canary was planted");
        let is_postgres = !database.is_sqlite();
        assert!(is_postgres || holds(&before, FREED), "the canary was planted");
        assert!(!is_postgres || is_in_table_files(&database, CANARY).await, "the canary was planted");

        let migrated = on(&database, &["migrate"]).await;
        assert!(migrated.status.success(), "{}", stderr(&migrated));
        assert!(stderr(&migrated).contains("sealed the secrets of 3 rows"), "{}", stderr(&migrated));
        // A transaction of somebody else's may still see dead rows: then the next start removes them.
        let mut told = stderr(&migrated);
        for _ in 0..20 {
            if !told.contains("the next start") {
                break;
            }
            told = stderr(&on(&database, &["migrate"]).await);
        }
        let after = database.contents().await;
        assert!(!holds(&after, CANARY), "it stands in the clear");
        assert!(!holds(&after, FREED), "it is in free pages");
        assert!(!is_postgres || !is_in_table_files(&database, CANARY).await, "it is in dead rows: {told}");

        let store = Store::open(&database.config).await.expect("opened");
        assert_eq!(store.prepare_vault().await.expect("ready").sealed, 0, "nothing is left to do");
        for (index, subscription) in subscriptions.iter().enumerate() {
            let read = store.subscription(tenant.id, subscription.id).await.expect("read").expect("there");
            if index == 2 {
                assert_eq!(&read, subscription);
                continue;
            }
            assert_eq!(read.spec.channel, Channel::Webhook(webhook.clone()));
            assert_eq!(read.secrets[0].text, format!("{CANARY}-123456"));
        }
        let read = store.tenant(tenant.id).await.expect("read").expect("there");
        assert_eq!(read.spec.webhook_url, format!("https://a.com/?{CANARY}"));
        store.close().await;
    }
}
