//! `tidings master-key`: the keys under which secrets are sealed in the database.
//!
//! Works on the database and the key file themselves, like `migrate`; a service may run meanwhile.

use std::process::ExitCode;
use std::time::Duration;

use crate::config::DatabaseFlags;
use crate::store::{MasterKey, Store, Table, VaultStatus, add_master_key};

use super::Error;
use super::output::{self, Cell, Output, Style, table, time};

const EXAMPLES: &str = "\
Examples:
  (umask 077; tidings master-key generate > master.key)
      A first key, for PostgreSQL: give the file to every replica with --master-key-file.

  tidings master-key rotate
  tidings master-key status
      A new key in front of the file that all processes share, and every row under it. When the
      status says so, remove the old key's line from the file.

  tidings master-key rewrap --pause 200ms
      Only the rows: after an interruption, or when you have put the new key there yourself.

Secrets (signing secrets, URLs, header values) are sealed before they are stored. The file holds one \
key a line: the first seals, the others still open. Replicas that have files of their own get the new \
key in steps, so that none meets a row that it cannot open: add it as the last line everywhere, then \
move it to the front everywhere, then rewrap, then remove the old one. docs/secrets.md tells it in \
full. Whoever loses the key loses the secrets: keep a copy apart from the database's backups.";

/// Make, rotate and look after the keys that seal secrets in the database.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    output: output::Options,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print a new key; nothing else is read or changed
    Generate,
    /// Put a new key in front of the file, and seal every row anew under it
    Rotate(Work),
    /// Seal every row anew that is not under the first key; may be interrupted and repeated
    Rewrap(Work),
    /// Show how many rows are under which key, and whether an old key can be removed
    Status {
        #[command(flatten)]
        database: DatabaseFlags,
    },
}

#[derive(Debug, clap::Args)]
struct Work {
    /// Rows of one transaction
    #[arg(long, value_name = "ROWS", default_value_t = 100,
        value_parser = clap::value_parser!(u32).range(1..=1_000))]
    batch_size: u32,
    /// How long to wait between two transactions, to go easy on the database
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = time::parse_duration)]
    pause: Duration,
    #[command(flatten)]
    database: DatabaseFlags,
}

/// Runs the command.
///
/// # Errors
/// When options are wrong, the keys are not the database's, or the database does not take it.
pub async fn run(args: Args) -> Result<ExitCode, Error> {
    let output = Output::new(args.output);
    match args.command {
        Command::Generate => generate(output)?,
        Command::Rotate(work) => {
            let store = open(&work.database).await?;
            let rotated = rotate(&store, &work, output).await;
            store.close().await;
            rotated?;
        }
        Command::Rewrap(work) => {
            let store = open(&work.database).await?;
            let rewrapped = rewrap(&store, &work, output).await;
            store.close().await;
            rewrapped?;
        }
        Command::Status { database } => {
            let store = open(&database).await?;
            let status = store.vault_status().await;
            store.close().await;
            show(&status?, output)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn generate(output: Output) -> Result<(), Error> {
    let key = MasterKey::generate().map_err(|error| Error::failure(error.to_string()))?;
    let text = key.text();
    if output.is_json() {
        let id = key.id().to_string();
        output.document(&serde_json::json!({ "id": id, "key": text.expose() }))?;
    } else {
        output.line(text.expose())?;
    }
    output.note(&format!(
        "Master key {}. Keep it in a file that only the service can read (chmod 600), and a copy \
         apart from the database's backups.",
        key.id()
    ));
    Ok(())
}

/// The database, its keys read and checked.
async fn open(flags: &DatabaseFlags) -> Result<Store, Error> {
    let store = Store::open(&flags.load_from(&super::environment())?.options.store()).await?;
    store.check_schema().await?;
    store.unlock().await?;
    Ok(store)
}

async fn rotate(store: &Store, work: &Work, output: Output) -> Result<(), Error> {
    let Some(path) = store.master_key_file() else {
        return Err(Error::failure(
            "the master key comes from TIDINGS_MASTER_KEY, not from a file",
        )
        .hint(
            "put a new key in front of it yourself (tidings master-key generate), restart the \
                 service, and run: tidings master-key rewrap",
        ));
    };
    let id = add_master_key(&path).await?;
    output.note(&format!("{id} is the first key of {} now", path.display()));
    store.unlock().await?;
    rewrap(store, work, output).await
}

/// Goes over the tables until a pass finds nothing more to do.
async fn rewrap(store: &Store, work: &Work, output: Output) -> Result<(), Error> {
    // A service that still seals under an old key makes work while work is done. More passes than
    // these mean that it does not have the new key.
    const MAX_PASSES: usize = 10;
    let mut progress =
        Progress { total: store.vault_status().await?.left(), ..Progress::default() };
    for _ in 0..MAX_PASSES {
        let pass = pass(store, work, &mut progress, output).await?;
        if !pass.unreadable.is_empty() && pass.rows == 0 {
            return Err(unreadable(&pass.unreadable));
        }
        if pass.rows == 0 {
            store.finish_rewrap().await?;
            return show(&store.vault_status().await?, output);
        }
    }
    Err(Error::failure("rows keep appearing that are sealed under another key than the first")
        .hint(
            "does every process have the new key in front of its file? Then run this command again",
        ))
}

#[derive(Default)]
struct Progress {
    total: u64,
    done: u64,
    told_percent: u64,
}

#[derive(Default)]
struct Pass {
    /// Rows that were found and could be opened.
    rows: u64,
    unreadable: Vec<String>,
}

async fn pass(
    store: &Store,
    work: &Work,
    progress: &mut Progress,
    output: Output,
) -> Result<Pass, Error> {
    let mut pass = Pass::default();
    for table in Table::ALL {
        let mut last = None;
        loop {
            let rows = store.rows_to_rewrap(table, last.as_ref(), work.batch_size).await?;
            if rows.is_empty() {
                break;
            }
            let batch = store.rewrap(table, &rows).await?;
            pass.rows += batch.rows + batch.changed;
            pass.unreadable.extend(batch.unreadable);
            progress.done += batch.rows;
            tell(progress, table, output);
            last = rows.into_iter().next_back();
            if !work.pause.is_zero() {
                tokio::time::sleep(work.pause).await;
            }
        }
    }
    Ok(pass)
}

/// Tells how far it is, at most a hundred times.
fn tell(progress: &mut Progress, table: Table, output: Output) {
    let total = progress.total.max(progress.done).max(1);
    let percent = progress.done * 100 / total;
    if percent > progress.told_percent {
        progress.told_percent = percent;
        output.note(&format!("{}: {} of about {total} rows", table.as_str(), progress.done));
    }
}

fn unreadable(ids: &[String]) -> Error {
    const SHOWN: usize = 20;
    let error = Error::failure(format!(
        "{} rows cannot be opened with any key that is there; all others are under the first key",
        ids.len()
    ));
    ids.iter().take(SHOWN).fold(error, Error::detail).hint(
        "restore those rows from a backup, or delete the subscriptions, and run this command again; \
         the old keys stay needed until then",
    )
}

fn show(status: &VaultStatus, output: Output) -> Result<(), Error> {
    let is_done = status.left() == 0;
    if output.is_json() {
        let keys: Vec<_> = status
            .keys
            .iter()
            .map(|key| {
                serde_json::json!({
                    "id": key.id.to_string(),
                    "rows": key.rows,
                    "known": key.place.is_some(),
                    "seals": key.place == Some(0),
                    "removable": is_done && key.place.is_some_and(|place| place > 0),
                })
            })
            .collect();
        return output.document(&serde_json::json!({ "keys": keys, "rows_left": status.left() }));
    }
    let mut lines = table::Table::new(&["KEY", "ROWS", "USE"]);
    for key in &status.keys {
        let (text, style) = match key.place {
            Some(0) => ("seals", Style::Good),
            Some(_) if key.rows == 0 => ("not used any more", Style::Dim),
            Some(_) => ("opens; still needed", Style::Plain),
            None => ("missing: these rows cannot be read", Style::Error),
        };
        lines.row([key.id.to_string().into(), key.rows.to_string().into(), Cell::new(text, style)]);
    }
    output.table(&lines, "")?;
    output.note(match (is_done, status.keys.len()) {
        (true, 1) => "Every row is under the only key.",
        (true, _) => {
            "Every row is under the first key: the others can be removed, once every process has \
             the first one."
        }
        (false, _) => "Rows are left under other keys: run `tidings master-key rewrap`.",
    });
    Ok(())
}
