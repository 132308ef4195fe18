//! The raw calls that no library offers safely: descriptors by number, what a process is started with, its end, the allocator's,
//! shared [`memory`], what is [`cached`] of files, file [`lock`]s, and the ioctls of `/dev/fuse`.

#![allow(unsafe_code)]

pub mod apart;
pub mod cached;
pub mod lock;
pub mod memory;

use std::ffi::CStr;
use std::io;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use nix::libc;
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use rustix::fs::{Access, Mode, OFlags, RawDir};
use rustix::io::DupFlags;

/// What the calling thread has open: `/proc/self/fd` is the table of the process's first thread (proc(5), Linux 3.17).
const OPEN: &CStr = c"/proc/thread-self/fd";

/// Makes the number of `target` mean what `by` means; what it meant before is closed, close-on-exec stays set
/// (dup3(2)).
///
/// # Errors
/// Those of dup3(2).
pub fn replace(target: BorrowedFd<'_>, by: impl AsFd) -> io::Result<()> {
    // SAFETY: `target` is open for the length of the call, and ManuallyDrop keeps this second owner from ever
    // closing it. dup3 exchanges what the number means atomically, so its real owner still owns an open one.
    let mut place = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(target.as_raw_fd()) });
    Ok(rustix::io::dup3(by, &mut place, DupFlags::CLOEXEC)?)
}

/// A path that leads to what is open (proc_pid_fd(5)), for calls that take a path.
#[must_use]
pub fn path_of(open: impl AsFd) -> PathBuf {
    format!("/proc/self/fd/{}", open.as_fd().as_raw_fd()).into()
}

/// Lets the kernel kill this process when the one ends that made it (PR_SET_PDEATHSIG(2const)). Whether that is still `parent`: it may
/// have ended before the kernel was asked. None: it has no number in this process namespace.
///
/// # Errors
/// Those of prctl(2).
pub fn die_with(parent: Option<rustix::process::Pid>) -> io::Result<bool> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    Ok(parent.is_none() || rustix::process::getppid() == parent)
}

/// Takes ownership of a descriptor that systemd passed to this process, by its number (sd_listen_fds(3)). To be called
/// before this process has opened anything itself: afterwards the number may be that of something else.
///
/// # Errors
/// `EBADF` when no such descriptor is open.
pub fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    if number < 3 {
        return Err(rustix::io::Errno::BADF.into());
    }
    // SAFETY: only borrowed to ask whether the number is open, before anything is built on it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC)?;
    // SAFETY: the number is open, systemd passed it for this process to own, and the caller asks for each one
    // once: the variables that name it are read once at start, before anything else is open.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(target_env = "gnu")]
unsafe extern "C" {
    /// close_range(2), Linux 5.9.
    fn close_range(
        first: std::ffi::c_uint,
        last: std::ffi::c_uint,
        flags: std::ffi::c_int,
    ) -> std::ffi::c_int;
}

/// close_range(2); where the C library has no such call, `ENOSYS`.
///
/// # Safety
/// Nobody uses what it closes.
unsafe fn close_between(first: u32, last: u32, flags: std::ffi::c_int) -> io::Result<()> {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes numbers; the caller knows about what it closes.
    return if unsafe { close_range(first, last, flags) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    };
    #[cfg(not(target_env = "gnu"))]
    Err(rustix::io::Errno::NOSYS.into())
}

/// Whether close_range(2) can be used.
#[must_use]
pub fn closes_ranges() -> bool {
    // SAFETY: no descriptor has this number: the kernel has no table as large.
    unsafe { close_between(u32::MAX, u32::MAX, 0) }.is_ok()
}

/// Gives the calling thread a table of descriptors of its own, with none in it but standard error and `kept`. What other
/// threads have open is theirs alone from then on: it is closed when they end, whatever this thread waits for. So this one must
/// neither use nor drop anything else that is a descriptor.
///
/// # Errors
/// Where close_range(2) is refused or not known (Linux 5.9): those of unshare(2), and of reading [`OPEN`].
pub fn keep_descriptor(kept: RawFd) -> io::Result<()> {
    unshare_ranges(kept).or_else(|_| unshare_listed(kept))
}

fn unshare_ranges(kept: RawFd) -> io::Result<()> {
    const CLOSE_RANGE_UNSHARE: std::ffi::c_int = 1 << 1;
    let kept = kept.unsigned_abs();
    for (first, last) in [(0, 1), (3, kept.saturating_sub(1)), (kept.saturating_add(1), u32::MAX)] {
        if first <= last {
            // SAFETY: what it closes is closed in the table that it makes for this thread, which by its contract uses none
            // of it.
            unsafe { close_between(first, last, CLOSE_RANGE_UNSHARE) }?;
        }
    }
    Ok(())
}

fn unshare_listed(kept: RawFd) -> io::Result<()> {
    // In a table of its own that it cannot read, the thread would hold a copy of everything.
    rustix::fs::access(OPEN, Access::READ_OK)?;
    nix::sched::unshare(CloneFlags::CLONE_FILES)?;
    // SAFETY: what it closes is closed in this thread's own table, of which by its contract it uses no more.
    unsafe { close_listed(&[libc::STDERR_FILENO, kept]) }
}

/// Closes what the calling thread has open, but `kept`. It does what is safe in a signal handler: system calls, without an
/// allocation or a lock.
///
/// # Safety
/// Nobody uses what it closes.
unsafe fn close_listed(kept: &[RawFd]) -> io::Result<()> {
    let close = |number| {
        if !kept.contains(&number) {
            // SAFETY: the caller knows that nobody uses it.
            unsafe { rustix::io::close(number) };
        }
    };
    // Room for the directory: there may be none.
    (0..3).for_each(close);
    let dir = rustix::fs::open(OPEN, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = [const { MaybeUninit::uninit() }; 1024];
    let mut entries = RawDir::new(&dir, &mut buffer);
    // The kernel resumes behind the last number that it listed, whatever was closed.
    while let Some(entry) = entries.next() {
        let entry = entry?;
        // `.` and `..` are none.
        let number = entry.file_name().to_str().ok().and_then(|name| name.parse().ok());
        number.into_iter().filter(|number| *number != dir.as_raw_fd()).for_each(close);
    }
    Ok(())
}

/// Closes every descriptor above standard error. To be called at the start of `main`, before anything is opened.
pub fn close_inherited() {
    // SAFETY: nothing of this process owns a descriptor yet.
    let closed = unsafe { close_between(3, u32::MAX, 0).or_else(|_| close_listed(&[0, 1, 2])) };
    // Where neither can be, they stay open, as in any other program.
    drop(closed);
}

/// Lets the calling thread run where nobody else would (sched(7), SCHED_IDLE).
///
/// # Errors
/// Those of sched_setscheduler(2).
pub fn run_when_idle() -> io::Result<()> {
    // SAFETY: a sched_param of zeros is a valid value, and all that SCHED_IDLE takes; the call reads it.
    let set = unsafe {
        let parameters: libc::sched_param = std::mem::zeroed();
        libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters)
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets the calling thread, and those that it makes, ask the disk when others have been served (ioprio_set(2): best effort, the last of eight
/// levels). Not in the idle class: whoever waits for the same block would wait as long.
///
/// # Errors
/// Those of ioprio_set(2).
pub fn ask_the_disk_last() -> io::Result<()> {
    const WHO_PROCESS: libc::c_int = 1;
    const BEST_EFFORT_LAST: libc::c_int = 2 << 13 | 7;
    // SAFETY: the call takes three numbers, and changes nothing but the priority of this thread.
    let set = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, BEST_EFFORT_LAST) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Starts a process that does statfs(2) on `path` and ends with the number of the error, 0 for none. It holds no descriptor
/// of this one, and ends with it if the kernel lets it end. The caller reaps it.
///
/// # Errors
/// Those of fork(2).
pub fn ask(path: &CStr) -> io::Result<rustix::process::Pid> {
    // SAFETY: the child of a process with several threads may do nothing but what is safe in a signal handler
    // (fork(2)): it makes system calls, on memory that is its own copy, allocates nothing, takes no lock, and ends
    // without returning.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: what they close is this process's copy, which nobody uses any more.
            let _ = unsafe { close_between(0, u32::MAX, 0).or_else(|_| close_listed(&[])) };
            let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
            let answer = rustix::fs::statfs(path).map_or_else(rustix::io::Errno::raw_os_error, |_| 0);
            // SAFETY: ends this process and does nothing else.
            unsafe { libc::_exit(answer) }
        }
        child if child > 0 => rustix::process::Pid::from_raw(child).ok_or_else(io::Error::last_os_error),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Forks twice: true in the process that results, which is a child of whoever takes orphans, and false in this one. It is in a new session
/// if it `leaves` this one. Called while there is one thread.
///
/// # Errors
/// Those of fork(2), of either.
pub fn fork_twice(leaves: bool) -> io::Result<bool> {
    let between = fork()?;
    let Some(between) = between else {
        if leaves {
            // It is no leader of a process group yet.
            let _ = rustix::process::setsid();
        }
        return match fork() {
            Ok(None) => Ok(true),
            Ok(Some(_)) => exit_now(0),
            Err(error) => exit_now(error.raw_os_error().and_then(|errno| errno.try_into().ok()).unwrap_or(1)),
        };
    };
    match wait_for(between)?.and_then(|status| status.exit_status()) {
        Some(0) => Ok(false),
        Some(errno) => Err(io::Error::from_raw_os_error(errno)),
        None => Err(io::Error::other("the process between was killed")),
    }
}

/// How a child has ended, once it has (waitpid(2)).
///
/// # Errors
/// Those of waitpid(2), but for `EINTR`.
pub fn wait_for(child: rustix::process::Pid) -> io::Result<Option<rustix::process::WaitStatus>> {
    loop {
        match rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty()) {
            Err(rustix::io::Errno::INTR) => {}
            ended => return Ok(ended?.map(|(_, status)| status)),
        }
    }
}

/// fork(2) of a process that has one thread: the new one's id, or none in the new one. It can be waited for: SIGCHLD is not ignored from
/// here on, as whoever started this process may have it (wait(2), `ECHILD`).
///
/// # Errors
/// Those of fork(2); that there are more threads.
pub fn fork() -> io::Result<Option<rustix::process::Pid>> {
    if std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() > 1) {
        return Err(io::Error::other("internal error: a process with several threads is not forked"));
    }
    if disposition(libc::SIGCHLD) == libc::SIG_IGN {
        // SAFETY: the default runs no code of this program.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    }
    // SAFETY: there is no other thread that could hold a lock, so the new process may do whatever this one may.
    match unsafe { libc::fork() } {
        0 => Ok(None),
        child if child > 0 => Ok(rustix::process::Pid::from_raw(child)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How a process has ended, as its pidfd tells (PIDFD_GET_INFO of ioctl_pidfd(2)). None: it has not, or nobody has waited for it yet.
///
/// # Errors
/// `ENOTTY` before Linux 6.13; before 6.15 `ESRCH` in the place of how it has ended. Others of ioctl(2).
pub fn end_of(process: impl AsFd) -> io::Result<Option<std::process::ExitStatus>> {
    // SAFETY: a pidfd_info of zeros is a valid value.
    let mut info: libc::pidfd_info = unsafe { std::mem::zeroed() };
    info.mask = libc::PIDFD_INFO_EXIT.into();
    // SAFETY: the kernel reads and writes a pidfd_info, which this is: its size is in the number of the call.
    if unsafe { libc::ioctl(process.as_fd().as_raw_fd(), libc::PIDFD_GET_INFO, &raw mut info) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let is_known = info.mask & u64::from(libc::PIDFD_INFO_EXIT) != 0;
    Ok(is_known.then(|| std::os::unix::process::ExitStatusExt::from_raw(info.exit_code)))
}

/// Closes every descriptor above standard error but `kept`. Called by a process that was just forked, which uses nothing that its
/// parent had open.
pub fn close_others(kept: &[BorrowedFd<'_>]) {
    let mut numbers: Vec<_> = kept.iter().map(|kept| kept.as_raw_fd()).filter(|kept| *kept > 2).collect();
    numbers.sort_unstable();
    let ends = numbers.iter().map(|kept| kept.unsigned_abs());
    let begins = [3].into_iter().chain(ends.clone().map(|kept| kept + 1));
    let mut between = begins.zip(ends.map(|kept| kept - 1).chain([u32::MAX]));
    let all: Vec<_> = [0, 1, 2].into_iter().chain(numbers.iter().copied()).collect();
    // SAFETY: whoever owns what is closed here is a copy that this process never runs.
    let closed = unsafe {
        between
            .try_for_each(|(first, last)| if first <= last { close_between(first, last, 0) } else { Ok(()) })
            .or_else(|_| close_listed(&all))
    };
    // Where neither can be, they stay open.
    drop(closed);
}

/// Lets no directory that is open stay open when a program is executed. In the place of standard input, output and error comes
/// `/dev/null`, and with `now` in that of all others as well, at once.
///
/// # Errors
/// Those of reading [`OPEN`], and of `/dev/null`.
pub fn leave_directories(now: bool) -> io::Result<()> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    let numbers = std::fs::read_dir("/proc/self/fd")?;
    for number in numbers.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<RawFd>().ok()) {
        // SAFETY: borrowed for some calls that leave it open: its number means something else at most; if it is not open, they fail.
        let open = unsafe { BorrowedFd::borrow_raw(number) };
        let is_dir = rustix::fs::fstat(open).is_ok_and(|found| {
            rustix::fs::FileType::from_raw_mode(found.st_mode) == rustix::fs::FileType::Directory
        });
        if is_dir && (now || number < 3) {
            replace(open, &null)?;
        }
        if is_dir {
            let flags = if number < 3 { rustix::io::FdFlags::empty() } else { rustix::io::FdFlags::CLOEXEC };
            rustix::io::fcntl_setfd(open, flags)?;
        }
    }
    Ok(())
}

/// Sends the signal with this number, which may be one of real time.
///
/// # Errors
/// Those of kill(2).
pub fn send_signal(process: i32, number: i32) -> io::Result<()> {
    // SAFETY: the call takes two numbers.
    if unsafe { libc::kill(process, number) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Raises the loopback device of this process's network namespace (netdevice(7)).
///
/// # Errors
/// Those of socket(2) and ioctl(2).
pub fn raise_loopback() -> io::Result<()> {
    nix::ioctl_write_ptr_bad!(set_flags, libc::SIOCSIFFLAGS, libc::ifreq);
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: an ifreq of zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the kernel reads an ifreq, which this is.
    unsafe { set_flags(socket.as_raw_fd(), &raw const request) }?;
    Ok(())
}

/// What is done with a signal.
fn disposition(number: i32) -> libc::sighandler_t {
    // SAFETY: a sigaction of zeros is a valid value, and the call writes to it alone. A number that it refuses, as the C library keeps it
    // for itself, leaves it as it is: that is SIG_DFL.
    unsafe {
        let mut found: libc::sigaction = std::mem::zeroed();
        libc::sigaction(number, std::ptr::null(), &mut found);
        found.sa_sigaction
    }
}

/// The signals that are ignored.
#[must_use]
pub fn ignored_signals() -> Vec<i32> {
    (1..=libc::SIGRTMAX()).filter(|number| disposition(*number) == libc::SIG_IGN).collect()
}

/// Lets the signals with these numbers be ignored, and all others do what they usually do.
pub fn ignore_signals(ignored: &[i32]) {
    for number in 1..=libc::SIGRTMAX() {
        let wanted = if ignored.contains(&number) { libc::SIG_IGN } else { libc::SIG_DFL };
        // SAFETY: neither disposition runs any code of this program.
        unsafe { libc::signal(number, wanted) };
    }
}

/// What was done with SIGPIPE when this program was started: the language's runtime has it ignored before `main`.
static PIPE_IGNORED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// Called by the C library before the runtime begins.
extern "C" fn look_at_sigpipe() {
    let ignored = disposition(libc::SIGPIPE) == libc::SIG_IGN;
    PIPE_IGNORED.store(ignored, std::sync::atomic::Ordering::Relaxed);
}

// SAFETY: a pointer to a function of the right type, in the section for such (gABI, "Initialization and Termination Functions"); the
// function needs nothing that is initialized later.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = look_at_sigpipe;

/// Whether SIGPIPE was ignored when this program was started.
#[must_use]
pub fn was_sigpipe_ignored() -> bool {
    PIPE_IGNORED.load(std::sync::atomic::Ordering::Relaxed)
}

/// Removes variables from the environment. To be called at the start of `main`, before there is another thread.
pub fn remove_variables(names: &[&str]) {
    for name in names {
        // SAFETY: no other thread exists that could read the environment meanwhile.
        unsafe { std::env::remove_var(name) };
    }
}

/// Gives every signal that whoever started this process ignores its default disposition, but for `ignored`, which are
/// ignored from now on. Handlers stay: those of the language's runtime are there before `main`.
pub fn reset_signals(ignored: &[Signal]) {
    for number in 1..=libc::SIGRTMAX() {
        let found = disposition(number);
        let wanted =
            if ignored.iter().any(|signal| *signal as i32 == number) { libc::SIG_IGN } else { libc::SIG_DFL };
        if found != wanted && (found == libc::SIG_IGN || wanted == libc::SIG_IGN) {
            // SAFETY: neither disposition runs any code of this program.
            unsafe { libc::signal(number, wanted) };
        }
    }
}

/// Ends this process at once (_exit(2)): no exit handler and no destructor of a static object runs.
///
/// Other threads still run, one of them perhaps within Nix's library, which would use what those destroy.
pub fn exit_now(code: u8) -> ! {
    // SAFETY: the call takes a number and does not return.
    unsafe { libc::_exit(code.into()) }
}

/// `struct fuse_backing_map` of `linux/fuse.h`.
#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

/// Lets the kernel of the connection `device` read `file` by itself; returns the number of the registration, never 0
/// (FUSE_DEV_IOC_BACKING_OPEN, Linux 6.9; CAP_SYS_ADMIN).
///
/// # Errors
/// Those of ioctl(2).
pub fn open_backing(device: impl AsFd, file: impl AsFd) -> io::Result<u32> {
    nix::ioctl_write_ptr!(backing_open, 229, 1, BackingMap);
    let map = BackingMap { fd: file.as_fd().as_raw_fd(), flags: 0, padding: 0 };
    // SAFETY: the kernel reads a `fuse_backing_map`, which this is, and writes nothing.
    let number = unsafe { backing_open(device.as_fd().as_raw_fd(), &raw const map) }?;
    u32::try_from(number).map_err(|_| rustix::io::Errno::IO.into())
}

/// Ends a registration by its number (FUSE_DEV_IOC_BACKING_CLOSE).
///
/// # Errors
/// Those of ioctl(2).
pub fn close_backing(device: impl AsFd, number: u32) -> io::Result<()> {
    nix::ioctl_write_ptr!(backing_close, 229, 2, u32);
    // SAFETY: the kernel reads one number, and checks it against those of this connection.
    unsafe { backing_close(device.as_fd().as_raw_fd(), &raw const number) }?;
    Ok(())
}

/// Gives memory that was freed back to the kernel (malloc_trim(3)); the allocator keeps it otherwise, where small
/// pieces were freed. Where the C library has no such call, nothing happens.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // SAFETY: the call takes a number, touches only free memory, and may be made from any thread.
        unsafe { malloc_trim(0) };
    }
}

/// Lets all threads take memory from one arena of the allocator (mallopt(3), M_ARENA_MAX). Each would get one of its own otherwise,
/// which keeps what others could use. For a process whose threads seldom need memory at the same time; to be called before they are
/// there. Where the C library has no such call, nothing happens.
pub fn share_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes two numbers, and what it sets is for arenas that are made later.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_replaced_descriptor_leads_elsewhere_under_its_old_number() {
        let (mut far, near) = UnixStream::pair().unwrap();
        let (other, _keep) = UnixStream::pair().unwrap();
        let number = other.as_raw_fd();
        replace(other.as_fd(), &near).unwrap();
        assert_eq!(other.as_raw_fd(), number);
        (&other).write_all(b"x").unwrap();
        let mut byte = [0];
        far.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }

    /// What the other threads close is closed, though a thread that has left them lives on.
    fn holds_nothing_of_the_others(keep: fn(RawFd) -> io::Result<()>) {
        let (mut far, near) = UnixStream::pair().unwrap();
        let (mut kept_far, kept) = UnixStream::pair().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let (go_on, wait) = std::sync::mpsc::channel::<()>();
        let number = kept.as_raw_fd();
        let thread = std::thread::spawn(move || {
            keep(number).unwrap();
            tell.send(()).unwrap();
            let _told = wait.recv();
            let still_open = rustix::io::fcntl_getfd(&kept).is_ok();
            (&kept).write_all(b"x").unwrap();
            still_open
        });
        told.recv().unwrap();
        drop(near);
        far.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        assert_eq!(far.read(&mut [0]).unwrap(), 0, "somebody else holds it open");
        drop(go_on);
        assert!(thread.join().unwrap());
        kept_far.read_exact(&mut [0]).unwrap();
    }

    #[test]
    fn a_thread_of_its_own_holds_nothing_of_the_others() {
        holds_nothing_of_the_others(keep_descriptor);
    }

    /// As where close_range(2) is refused.
    #[test]
    fn a_thread_that_closes_what_is_listed_holds_nothing_of_the_others() {
        holds_nothing_of_the_others(unshare_listed);
    }

    #[test]
    fn numbers_that_are_not_open_are_not_adopted() {
        assert!(adopt(0).is_err());
        assert!(adopt(900_000).is_err());
    }
}
