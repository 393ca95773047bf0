//! The file that holds master keys: reading it, making it, and adding a key in front.
//!
//! Guarantees: a key file that others may read is refused, as OpenSSH and libpq refuse one; a file
//! is made, or replaced, whole or not at all, and is on disk, its folder's entry too, before anybody
//! seals with what it holds.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use zeroize::Zeroizing;

use super::key::{KeyId, Keyring, MasterKey};

/// Most bytes that are read: 16 keys and many comments.
const MAX_BYTES: u64 = 64 * 1_024;

/// Tells whether a file has changed since it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    modified: Option<SystemTime>,
    bytes: u64,
    inode: u64,
}

/// A key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    /// It is not there.
    #[error("{} does not exist", .0.display())]
    Missing(PathBuf),
    /// It cannot be read or written.
    #[error("{} cannot be used: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What it holds is wrong.
    #[error("{}: {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl FileError {
    fn io(path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::NotFound => Self::Missing(path.to_owned()),
            _ => Self::Io { path: path.to_owned(), source },
        }
    }

    fn content(path: &Path) -> impl Fn(String) -> Self {
        move |problem| Self::Content { path: path.to_owned(), problem }
    }
}

/// When the file last changed.
pub(super) fn stamp(path: &Path) -> Result<Stamp, FileError> {
    Ok(stamp_of(&fs::metadata(path).map_err(FileError::io(path))?))
}

fn stamp_of(metadata: &fs::Metadata) -> Stamp {
    Stamp { modified: metadata.modified().ok(), bytes: metadata.len(), inode: inode(metadata) }
}

/// The keys in the file.
pub(super) fn read(path: &Path) -> Result<(Keyring, Stamp), FileError> {
    let (text, stamp) = read_text(path)?;
    let ring = Keyring::parse(&text).map_err(FileError::content(path))?;
    Ok((ring, stamp))
}

fn read_text(path: &Path) -> Result<(Zeroizing<String>, Stamp), FileError> {
    let file = File::open(path).map_err(FileError::io(path))?;
    let metadata = file.metadata().map_err(FileError::io(path))?;
    check_permissions(&metadata).map_err(FileError::content(path))?;
    if metadata.len() > MAX_BYTES {
        return Err(FileError::content(path)(format!("is larger than {MAX_BYTES} bytes")));
    }
    let mut text = Zeroizing::new(String::with_capacity(1_024));
    file.take(MAX_BYTES).read_to_string(&mut text).map_err(FileError::io(path))?;
    Ok((text, stamp_of(&metadata)))
}

/// Makes a file with one new key, unless there is one already, and returns the key's id.
pub(super) fn create(path: &Path, key: &MasterKey) -> Result<KeyId, FileError> {
    let text = Zeroizing::new(format!(
        "# The master key of the Tidings database beside this file. Whoever has both can read the \
         secrets;\n# whoever loses this one cannot. Keep a copy of it, apart from the database's \
         backups.\n{}\n",
        key.text().expose()
    ));
    let made = write_beside(path, &text, None)?;
    // A link fails where the name is taken: of two that make the file at once, one wins.
    let linked = fs::hard_link(&made, path);
    fs::remove_file(&made).map_err(FileError::io(&made))?;
    linked.map_err(FileError::io(path))?;
    sync_folder(path)?;
    Ok(key.id())
}

/// Puts a new key in front of those in the file. Fails when somebody else is at it.
pub(super) fn add_in_front(path: &Path, key: &MasterKey) -> Result<(), FileError> {
    // The name may be a link to where the file really is; the link stays.
    let path = &fs::canonicalize(path).map_err(FileError::io(path))?;
    let current = File::open(path).map_err(FileError::io(path))?;
    match current.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(FileError::content(path)("is being changed by another tidings".into()));
        }
        Err(TryLockError::Error(source)) => return Err(FileError::io(path)(source)),
    }
    let metadata = current.metadata().map_err(FileError::io(path))?;
    let (text, stamp) = read_text(path)?;
    if stamp.inode != inode(&metadata) {
        // Replaced between the opening and the lock: its lock is not ours.
        return Err(FileError::content(path)("is being changed by another tidings".into()));
    }
    Keyring::parse(&text).map_err(FileError::content(path))?;
    let text = Zeroizing::new(format!("{}\n{}", key.text().expose(), text.as_str()));
    let made = write_beside(path, &text, Some(&metadata))?;
    fs::rename(&made, path).map_err(FileError::io(path))?;
    sync_folder(path)
}

/// Writes `text` to a new file in the same folder, on disk when this returns.
fn write_beside(
    path: &Path,
    text: &str,
    like: Option<&fs::Metadata>,
) -> Result<PathBuf, FileError> {
    let mut made = path.as_os_str().to_owned();
    made.push(format!(".{}.new", std::process::id()));
    let made = PathBuf::from(made);
    // Left behind by a process of the same number that was killed here.
    let _ = fs::remove_file(&made);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    only_for_owner(&mut options);
    let mut file = options.open(&made).map_err(FileError::io(&made))?;
    let written = file.write_all(text.as_bytes()).and_then(|()| {
        if let Some(like) = like {
            file.set_permissions(like.permissions())?;
        }
        file.sync_all()
    });
    if let Err(error) = written {
        let _ = fs::remove_file(&made);
        return Err(FileError::io(&made)(error));
    }
    Ok(made)
}

/// Has the folder's entry on disk.
fn sync_folder(path: &Path) -> Result<(), FileError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    if cfg!(unix) {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(FileError::io(folder))?;
    }
    Ok(())
}

#[cfg(unix)]
fn only_for_owner(options: &mut OpenOptions) {
    use std::os::unix::fs::OpenOptionsExt;
    options.mode(0o600);
}

#[cfg(not(unix))]
fn only_for_owner(_options: &mut OpenOptions) {}

#[cfg(unix)]
fn inode(metadata: &fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    metadata.ino()
}

#[cfg(not(unix))]
fn inode(_metadata: &fs::Metadata) -> u64 {
    0
}

/// The rule of libpq for private keys: a file of root's may be read by its group, since that is how
/// orchestrators hand secrets to processes that are not root; any other is its owner's alone.
#[cfg(unix)]
fn check_permissions(metadata: &fs::Metadata) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt;
    if !metadata.is_file() {
        return Err("is no file".into());
    }
    let mode = metadata.mode() & 0o7777;
    // Orchestrators mount secrets that belong to root, readable by a group.
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if mode & forbidden == 0 {
        return Ok(());
    }
    Err(format!(
        "others may read or change it (mode {mode:04o}), so what it holds is no secret; run: \
         chmod 600 on it"
    ))
}

#[cfg(not(unix))]
fn check_permissions(_metadata: &fs::Metadata) -> Result<(), String> {
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("there").permissions().mode() & 0o777
    }

    #[test]
    fn a_file_is_made_once_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tidings.db.key");
        let key = MasterKey::generate().unwrap();
        assert_eq!(create(&path, &key).unwrap(), key.id());
        assert_eq!(mode(&path), 0o600);
        assert_eq!(read(&path).unwrap().0.ids(), [key.id()]);
        let error = create(&path, &MasterKey::generate().unwrap()).unwrap_err();
        assert!(matches!(error, FileError::Io { .. }), "{error}");
        assert_eq!(read(&path).unwrap().0.ids(), [key.id()], "the first one stays");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left behind");
    }

    #[test]
    fn a_new_key_goes_in_front_and_nothing_else_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master.key");
        let (old, new) = (MasterKey::generate().unwrap(), MasterKey::generate().unwrap());
        fs::write(&path, format!("# ours\n{}\n", old.text().expose())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let before = stamp(&path).unwrap();
        add_in_front(&link, &new).unwrap();
        let (ring, after) = read(&link).unwrap();
        assert_eq!(ring.ids(), [new.id(), old.id()]);
        assert_ne!(before, after);
        assert_eq!(mode(&path), 0o400);
        assert!(fs::read_to_string(&path).unwrap().contains("# ours"));
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        let held = File::open(&path).unwrap();
        held.lock().unwrap();
        assert!(add_in_front(&path, &old).unwrap_err().to_string().contains("another tidings"));
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master.key");
        let key = MasterKey::generate().unwrap();
        fs::write(&path, key.text().expose()).unwrap();
        for open in [0o644, 0o604, 0o620, 0o660, 0o606] {
            fs::set_permissions(&path, fs::Permissions::from_mode(open)).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains("chmod 6"), "{open:o}: {error}");
            assert!(!error.contains(key.text().expose()));
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        read(&path).unwrap();
        let missing = read(&folder.path().join("none")).unwrap_err();
        assert!(matches!(missing, FileError::Missing(_)));
        assert!(read(folder.path()).is_err(), "a folder is no file");
    }
}
