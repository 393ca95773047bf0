//! What the tests stand on.

pub(crate) mod app;
pub(crate) mod authority;
pub(crate) mod cluster;
pub(crate) mod database;
pub(crate) mod dns;
pub(crate) mod fleet;
pub(crate) mod foreign;
pub(crate) mod http;
pub(crate) mod mailing;
pub(crate) mod make;
pub(crate) mod namespace;
pub(crate) mod pooler;
pub(crate) mod preload;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod receiver;
pub(crate) mod smtp;

pub(crate) use app::{App, Client};
pub(crate) use database::Database;
pub(crate) use receiver::{Receiver, Reply};

/// Makes two tests of one: `name::sqlite` and `name::postgres`.
macro_rules! on_both {
    ($(#[$meta:meta])* async fn $name:ident($database:ident: Database) $body:block) => {
        $(#[$meta])*
        mod $name {
            use super::*;

            async fn run($database: Database) $body

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                run(Database::sqlite().await).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                run(Database::postgres().await).await;
            }
        }
    };
}
