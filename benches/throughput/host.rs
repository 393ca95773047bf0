//! What the operating system tells: about this machine, and about a process.
//!
//! Read from `/proc`, so complete on Linux; elsewhere the figures that need it are left out.

use std::path::Path;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// This machine.
#[derive(Debug, Default, serde::Serialize)]
pub(crate) struct Facts {
    pub(crate) cores: usize,
    pub(crate) cpu: Option<String>,
    pub(crate) memory_mib: Option<u64>,
    pub(crate) system: &'static str,
    pub(crate) kernel: Option<String>,
    /// How busy the machine was when the measurement began: runnable processes over a minute.
    pub(crate) load_average: Option<f32>,
}

pub(crate) fn facts() -> Facts {
    Facts {
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        system: std::env::consts::OS,
        ..linux::facts()
    }
}

/// Raises this process's limit of open files as far as it may: receivers that never answer keep
/// thousands of connections. The service inherits it.
pub(crate) fn allow_many_files() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    // What cannot be raised stays, and shows itself as an error of whoever needs it.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// The CPU time that a process has used, threads included.
pub(crate) fn cpu(pid: u32) -> Option<Duration> {
    linux::cpu(pid)
}

/// The CPU time of a process and of all its children, those that have ended included.
pub(crate) fn family_cpu(pid: u32) -> Option<Duration> {
    linux::family_cpu(pid)
}

/// The largest memory that a process has had resident, in MiB.
pub(crate) fn peak_memory(pid: u32) -> Option<f64> {
    linux::peak_memory(pid)
}

/// The parent of a process, when both are called `name`.
pub(crate) fn parent_called(pid: u32, name: &str) -> Option<u32> {
    linux::parent_called(pid, name)
}

/// Whether what is written to a folder only goes to memory.
pub(crate) fn is_in_memory(folder: &Path) -> bool {
    linux::is_in_memory(folder)
}

#[cfg(target_os = "linux")]
mod linux {
    use super::{Duration, Facts, Path};
    use procfs::process::{Process, Stat, all_processes};
    use procfs::{CpuInfo, Current, LoadAverage, Meminfo};

    /// The type of a tmpfs and of a ramfs, as statfs(2) has them.
    const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

    pub(super) fn facts() -> Facts {
        let model = |cpus: CpuInfo| cpus.model_name(0).map(str::to_owned);
        let kernel = procfs::sys::kernel::Version::current().ok();
        Facts {
            cpu: CpuInfo::current().ok().and_then(model),
            memory_mib: Meminfo::current().ok().map(|memory| memory.mem_total / (1024 * 1024)),
            kernel: kernel.map(|v| format!("{}.{}.{}", v.major, v.minor, v.patch)),
            load_average: LoadAverage::current().ok().map(|load| load.one),
            ..Facts::default()
        }
    }

    fn process(pid: u32) -> Option<Process> {
        Process::new(i32::try_from(pid).ok()?).ok()
    }

    fn ticks(count: u64) -> Duration {
        Duration::from_millis(count * 1_000 / procfs::ticks_per_second().max(1))
    }

    pub(super) fn cpu(pid: u32) -> Option<Duration> {
        let stat = process(pid)?.stat().ok()?;
        Some(ticks(stat.utime + stat.stime))
    }

    pub(super) fn family_cpu(pid: u32) -> Option<Duration> {
        let root = process(pid)?.stat().ok()?;
        let is_child = |stat: &Stat| u32::try_from(stat.ppid) == Ok(pid);
        let children = all_processes().ok()?.filter_map(|process| process.ok()?.stat().ok());
        let living: u64 = children.filter(is_child).map(|child| child.utime + child.stime).sum();
        let ended = u64::try_from(root.cutime + root.cstime).unwrap_or(0);
        Some(ticks(root.utime + root.stime + ended + living))
    }

    pub(super) fn peak_memory(pid: u32) -> Option<f64> {
        let kibibytes = process(pid)?.status().ok()?.vmhwm?;
        Some(f64::from(u32::try_from(kibibytes).ok()?) / 1_024.0)
    }

    pub(super) fn parent_called(pid: u32, name: &str) -> Option<u32> {
        let child = process(pid)?.stat().ok()?;
        let parent = u32::try_from(child.ppid).ok()?;
        let both = [child.comm, process(parent)?.stat().ok()?.comm];
        both.iter().all(|comm| comm == name).then_some(parent)
    }

    pub(super) fn is_in_memory(folder: &Path) -> bool {
        rustix::fs::statfs(folder).is_ok_and(|system| IN_MEMORY.contains(&system.f_type))
    }
}

#[cfg(not(target_os = "linux"))]
mod linux {
    use super::{Duration, Facts, Path};

    pub(super) fn facts() -> Facts {
        Facts::default()
    }

    pub(super) fn cpu(_: u32) -> Option<Duration> {
        None
    }

    pub(super) fn family_cpu(_: u32) -> Option<Duration> {
        None
    }

    pub(super) fn peak_memory(_: u32) -> Option<f64> {
        None
    }

    pub(super) fn parent_called(_: u32, _: &str) -> Option<u32> {
        None
    }

    pub(super) fn is_in_memory(_: &Path) -> bool {
        false
    }
}
