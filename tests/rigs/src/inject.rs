//! Faults in system calls: from some moment on, one thread of this process and all that it starts ask
//! a supervisor for each call of a list, and one of these calls goes wrong.
//!
//! It is done by a seccomp filter that notifies a second thread (seccomp_unotify(2)), which lets a call
//! go on, answers in the kernel's place, makes it do half of its work, or kills the process. A notified
//! call costs microseconds, and nothing is traced, so hundreds of faults a second are possible. Calls
//! are counted over all threads; an injection is told on the standard output at the moment it happens,
//! so that its place in the tale is known.
//!
//! Not counted: what writes to the three standard streams, maps of memory that have no file, and
//! controls of files that are neither a clone nor a copy of a descriptor.

use crate::options::Result;
use libc::{c_int, c_long};
use std::ffi::CStr;
use std::fmt;
use std::mem::offset_of;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a call is for, which says what can go wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sort {
    Open,
    Read,
    Look,
    Write,
    Sync,
    /// Names that come.
    Name,
    /// Names that go, or move; what succeeds without having happened is a lie that can be told.
    Move,
    Meta,
    Lock,
    Map,
    Close,
    Other,
}

/// A system call that can be hit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    pub(crate) name: &'static str,
    number: c_long,
    pub(crate) sort: Sort,
}

const fn call(name: &'static str, number: c_long, sort: Sort) -> Call {
    Call { name, number, sort }
}

/// All that can be hit. What a filesystem gets to see, and no more.
pub(crate) const CALLS: &[Call] = &[
    call("openat", libc::SYS_openat, Sort::Open),
    call("openat2", libc::SYS_openat2, Sort::Open),
    call("read", libc::SYS_read, Sort::Read),
    call("pread64", libc::SYS_pread64, Sort::Read),
    call("getdents64", libc::SYS_getdents64, Sort::Look),
    call("fstat", libc::SYS_fstat, Sort::Look),
    call("newfstatat", libc::SYS_newfstatat, Sort::Look),
    call("statx", libc::SYS_statx, Sort::Look),
    call("lseek", libc::SYS_lseek, Sort::Look),
    call("readlinkat", libc::SYS_readlinkat, Sort::Look),
    call("statfs", libc::SYS_statfs, Sort::Look),
    call("fstatfs", libc::SYS_fstatfs, Sort::Look),
    call("write", libc::SYS_write, Sort::Write),
    call("writev", libc::SYS_writev, Sort::Write),
    call("pwrite64", libc::SYS_pwrite64, Sort::Write),
    call("ftruncate", libc::SYS_ftruncate, Sort::Write),
    call("fallocate", libc::SYS_fallocate, Sort::Write),
    call("copy_file_range", libc::SYS_copy_file_range, Sort::Write),
    call("ioctl", libc::SYS_ioctl, Sort::Write),
    call("fsync", libc::SYS_fsync, Sort::Sync),
    call("fdatasync", libc::SYS_fdatasync, Sort::Sync),
    call("syncfs", libc::SYS_syncfs, Sort::Sync),
    call("mkdirat", libc::SYS_mkdirat, Sort::Name),
    call("symlinkat", libc::SYS_symlinkat, Sort::Name),
    call("linkat", libc::SYS_linkat, Sort::Move),
    call("renameat", libc::SYS_renameat, Sort::Move),
    call("renameat2", libc::SYS_renameat2, Sort::Move),
    call("unlinkat", libc::SYS_unlinkat, Sort::Move),
    call("utimensat", libc::SYS_utimensat, Sort::Meta),
    call("fchmod", libc::SYS_fchmod, Sort::Meta),
    call("fchmodat", libc::SYS_fchmodat, Sort::Meta),
    call("flock", libc::SYS_flock, Sort::Lock),
    call("fcntl", libc::SYS_fcntl, Sort::Other),
    call("mmap", libc::SYS_mmap, Sort::Map),
    call("close", libc::SYS_close, Sort::Close),
];

/// FICLONE of linux/fs.h.
const FICLONE: u64 = 0x4004_9409;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The call fails.
    Errno(c_int),
    /// It fails, and all further ones of its name.
    Sticky(c_int),
    /// The process is killed before the call.
    Kill,
    /// The call succeeds and does nothing.
    Lie,
    /// The call does half of its work and says so.
    Short,
}

const ERRNOS: &[(&str, c_int)] = &[
    ("EIO", libc::EIO),
    ("ENOSPC", libc::ENOSPC),
    ("EDQUOT", libc::EDQUOT),
    ("EMFILE", libc::EMFILE),
    ("EINTR", libc::EINTR),
    ("EROFS", libc::EROFS),
    ("EACCES", libc::EACCES),
    ("EMLINK", libc::EMLINK),
    ("ENOLCK", libc::ENOLCK),
    ("ENOMEM", libc::ENOMEM),
    ("EOPNOTSUPP", libc::EOPNOTSUPP),
];

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name =
            |errno| ERRNOS.iter().find(|(_, known)| *known == errno).map_or("?", |(name, _)| name);
        match self {
            Fault::Errno(errno) => out.write_str(name(*errno)),
            Fault::Sticky(errno) => write!(out, "{}+", name(*errno)),
            Fault::Kill => out.write_str("kill"),
            Fault::Lie => out.write_str("lie"),
            Fault::Short => out.write_str("short"),
        }
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Fault, String> {
        let errno = |name: &str| {
            let known = ERRNOS.iter().find(|(known, _)| *known == name);
            known.map(|(_, errno)| *errno).ok_or_else(|| format!("{name} is no fault"))
        };
        Ok(match text {
            "kill" => Fault::Kill,
            "lie" => Fault::Lie,
            "short" => Fault::Short,
            _ => match text.strip_suffix('+') {
                Some(name) => Fault::Sticky(errno(name)?),
                None => Fault::Errno(errno(text)?),
            },
        })
    }
}

/// Which call is hit, and with what. `--fault CALL:N:FAULT`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) call: Call,
    /// Counted from 1.
    pub(crate) nth: u64,
    pub(crate) fault: Fault,
}

impl fmt::Display for Plan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}:{}", self.call.name, self.nth, self.fault)
    }
}

impl FromStr for Plan {
    type Err = String;

    fn from_str(text: &str) -> Result<Plan, String> {
        let no_plan = || format!("{text:?} is not CALL:N:FAULT");
        let mut parts = text.splitn(3, ':');
        let (Some(name), Some(nth), Some(fault)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(no_plan());
        };
        let call = CALLS.iter().find(|call| call.name == name).ok_or_else(no_plan)?;
        Ok(Plan { call: *call, nth: nth.parse().map_err(|_| no_plan())?, fault: fault.parse()? })
    }
}

static COUNTS: [AtomicU64; CALLS.len()] = [const { AtomicU64::new(0) }; CALLS.len()];

/// How often each call was made since the filter is there.
pub(crate) fn counts() -> impl Iterator<Item = (&'static str, u64)> {
    let count = |at: usize| COUNTS[at].load(Ordering::Relaxed);
    CALLS.iter().enumerate().map(move |(at, call)| (call.name, count(at)))
}

/// From now on this thread, and every one that it starts, is under the plan; without one its calls are
/// only counted.
pub(crate) fn arm(plan: Option<Plan>) -> Result<()> {
    let numbers: Vec<c_long> = match plan {
        Some(plan) => vec![plan.call.number],
        None => CALLS.iter().map(|call| call.number).collect(),
    };
    // The supervisor must not be under the filter, so it is there first.
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        if let Ok(listener) = receive.recv() {
            supervise(listener, plan);
        }
    });
    let listener = install(&numbers)?;
    send.send(listener)?;
    Ok(())
}

/// A filter that notifies for calls of these numbers. Returns the descriptor of the notifications.
fn install(numbers: &[c_long]) -> Result<c_int> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let line = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = vec![line(LOAD, 0, 0, offset_of!(libc::seccomp_data, nr) as u32)];
    for (at, number) in numbers.iter().enumerate() {
        program.push(line(EQUAL, (numbers.len() - at) as u8, 0, *number as u32));
    }
    program.push(line(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    program.push(line(RETURN, 0, 0, libc::SECCOMP_RET_USER_NOTIF));
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program lives until the call returns, and is as long as it says.
    let listener = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &program,
        )
    };
    if listener < 0 {
        return Err(format!("seccomp: {}", std::io::Error::last_os_error()).into());
    }
    Ok(listener as c_int)
}

/// Answers notifications until the process ends.
fn supervise(listener: c_int, plan: Option<Plan>) {
    const RECEIVE: u64 = 0xc050_2100;
    const SEND: u64 = 0xc018_2101;
    loop {
        // SAFETY: zeros are a value of both, as the kernel wants it; it writes and reads just these.
        let mut heard: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        if unsafe { libc::ioctl(listener, RECEIVE as _, &raw mut heard) } != 0 {
            match std::io::Error::last_os_error().raw_os_error() {
                // The caller was interrupted before it was heard.
                Some(libc::EINTR | libc::ENOENT) => continue,
                _ => return,
            }
        }
        let mut answer: libc::seccomp_notif_resp = unsafe { std::mem::zeroed() };
        answer.id = heard.id;
        match judge(&heard.data, plan) {
            Some(Ok(value)) => answer.val = value,
            Some(Err(errno)) => answer.error = -errno,
            None => answer.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
        }
        unsafe { libc::ioctl(listener, SEND as _, &raw mut answer) };
    }
}

/// What a call returns in the kernel's place, or nothing if it goes on.
fn judge(data: &libc::seccomp_data, plan: Option<Plan>) -> Option<Result<i64, c_int>> {
    let at = CALLS.iter().position(|call| call.number == c_long::from(data.nr))?;
    let (call, args) = (CALLS[at], &data.args);
    let has_standard_stream = args[0] <= 2;
    let is_passed_over = match call.name {
        "write" | "writev" | "fstat" | "close" | "read" => has_standard_stream,
        "ioctl" => args[1] != FICLONE,
        "fcntl" => args[1] != libc::F_DUPFD_CLOEXEC as u64,
        "mmap" => args[4] as i32 == -1,
        _ => false,
    };
    if is_passed_over {
        return None;
    }
    let nth = COUNTS[at].fetch_add(1, Ordering::Relaxed) + 1;
    let plan = plan.filter(|plan| plan.nth == nth || is_sticky(plan.fault) && nth > plan.nth)?;
    if plan.nth == nth {
        tell(&call, nth, args);
    }
    match plan.fault {
        Fault::Errno(errno) | Fault::Sticky(errno) => Some(Err(errno)),
        Fault::Lie => Some(Ok(0)),
        Fault::Kill => {
            // SAFETY: a plain call.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
            None
        }
        Fault::Short => {
            let mut args = *args;
            let length = if call.name == "copy_file_range" { 4 } else { 2 };
            if args[length] < 2 {
                return None;
            }
            args[length] /= 2;
            // SAFETY: the arguments of a call that a thread of this process makes, which waits for it;
            // with a shorter length.
            let done = unsafe {
                libc::syscall(call.number, args[0], args[1], args[2], args[3], args[4], args[5])
            };
            let errno = std::io::Error::last_os_error().raw_os_error();
            Some(if done < 0 { Err(errno.unwrap_or(libc::EIO)) } else { Ok(done) })
        }
    }
}

fn is_sticky(fault: Fault) -> bool {
    matches!(fault, Fault::Sticky(_))
}

/// One line of the tale: `injected CALL N INODE PATH [NAME]`. Written past the buffers and locks of the
/// standard output, since a thread that has those may wait for this one.
fn tell(call: &Call, nth: u64, args: &[u64; 6]) {
    let name_at = match call.sort {
        _ if call.name == "symlinkat" => None,
        Sort::Open | Sort::Name | Sort::Move => Some(1),
        _ if matches!(
            call.name,
            "newfstatat" | "statx" | "readlinkat" | "utimensat" | "fchmodat"
        ) =>
        {
            Some(1)
        }
        _ => None,
    };
    let name = name_at.filter(|at| args[*at] != 0).map_or(String::new(), |at| {
        // SAFETY: the argument of a call that a thread of this process makes, which waits.
        let name = unsafe { CStr::from_ptr(args[at] as *const libc::c_char) };
        name.to_string_lossy().into_owned()
    });
    let link = format!("/proc/self/fd/{}", args[0] as i32);
    let path = std::fs::read_link(&link).unwrap_or_default();
    let inode = std::fs::metadata(&link).map_or(0, |found| {
        use std::os::unix::fs::MetadataExt;
        found.ino()
    });
    let line = format!("injected {} {nth} {inode} {} {name}\n", call.name, path.display());
    // SAFETY: the bytes are there, and so many.
    unsafe { libc::write(1, line.as_ptr().cast(), line.len()) };
}
