//! System calls of a server: seccomp(2).
//!
//! What a server calls after it has been told what to serve, found by tests that end it at any other call.

use std::collections::BTreeMap;
use std::io;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use crate::sys::cached::CACHESTAT;

/// What is allowed whatever its arguments are. What requests take comes without conditions: the kernel knows such calls by a
/// table of bits, and does not run the filter for them (`seccomp_cache_check_allow`, Linux 5.11).
const ALLOWED: &[i64] = &[
    // The device, the store, the journal, the log.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv2,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_openat2,
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_statx,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_fstatfs,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_readlinkat,
    libc::SYS_ppoll,
    // The monitor.
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    // Memory.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mlock,
    libc::SYS_brk,
    // Threads, and time.
    libc::SYS_futex,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_close_range,
    libc::SYS_getrandom,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Signals to itself.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // What a thread looks at that has a table of descriptors of its own.
    libc::SYS_faccessat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
];

/// What does not exist in any build: arguments that a filter cannot see. C libraries make a thread by clone(2) then.
const ABSENT: &[i64] = &[libc::SYS_clone3];

/// What stops a server where a test wants it, in builds for tests (`src/server/stops.rs`).
const OF_TESTS: &[i64] = &[
    #[cfg(all(debug_assertions, target_arch = "x86_64"))]
    libc::SYS_rename,
    #[cfg(all(debug_assertions, target_arch = "x86_64"))]
    libc::SYS_unlink,
    #[cfg(all(debug_assertions, not(target_arch = "x86_64")))]
    libc::SYS_unlinkat,
    #[cfg(all(debug_assertions, not(any(target_arch = "x86_64", target_arch = "riscv64"))))]
    libc::SYS_renameat,
    #[cfg(all(debug_assertions, not(target_arch = "x86_64")))]
    libc::SYS_renameat2,
];

/// What only somebody calls who has taken the server over: it ends at once.
const DEADLY: &[i64] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_setns,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_io_uring_setup,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_kexec_load,
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_setuid,
    libc::SYS_setresuid,
    libc::SYS_fchmodat,
    libc::SYS_fchownat,
    libc::SYS_mknodat,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_open_by_handle_at,
];

/// `PR_GET_AUXV` of `linux/prctl.h` (Linux 6.4): what the C library would give.
const PR_GET_AUXV: libc::c_int = 0x4155_5856;

/// Calls, each with alternatives for its arguments; none: whatever they are.
pub(super) type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// What those call who ask for bytes ahead of their readers: what is in memory, and what will be needed of a file.
pub(super) const OF_READING_AHEAD: &[i64] = &[libc::SYS_fadvise64, CACHESTAT];
/// The same, and whether a thread has waited for the disk.
pub(super) const OF_PLAYERS: &[i64] = &[libc::SYS_fadvise64, CACHESTAT, libc::SYS_getrusage];

/// Leaves this thread, and those that it makes, the calls of the table, and `more`.
pub(super) fn confine(more: &[i64]) -> io::Result<()> {
    let absent = || SeccompAction::Errno(rustix::io::Errno::NOSYS.raw_os_error().unsigned_abs());
    let any = |calls: &[i64]| -> Rules { calls.iter().map(|call| (*call, Vec::new())).collect() };
    let unknown = if cfg!(debug_assertions) { SeccompAction::KillProcess } else { absent() };
    let mut allowed = any(ALLOWED);
    allowed.extend(any(OF_TESTS));
    allowed.extend(any(more));
    allowed.extend(any(ABSENT));
    allowed.extend(conditional().map_err(io::Error::other)?);
    let programs = [
        filter(any(DEADLY), SeccompAction::Allow, SeccompAction::KillProcess)?,
        filter(any(ABSENT), SeccompAction::Allow, absent())?,
        // The last one refuses to install any more.
        filter(allowed, unknown, SeccompAction::Allow)?,
    ];
    for program in &programs {
        seccompiler::apply_filter(program).map_err(io::Error::other)?;
    }
    Ok(())
}

/// A filter that does `matching` with the calls of `rules`, and `otherwise` with any other.
pub(super) fn filter(
    rules: Rules,
    otherwise: SeccompAction,
    matching: SeccompAction,
) -> io::Result<BpfProgram> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
    let filter = SeccompFilter::new(rules, otherwise, matching, arch).map_err(io::Error::other)?;
    BpfProgram::try_from(filter).map_err(io::Error::other)
}

/// What is allowed with certain arguments only.
fn conditional() -> Result<Rules, seccompiler::BackendError> {
    let whole = |at, value: u64| SeccompCondition::new(at, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value);
    let one_of = |at, values: &[u64]| -> Result<Vec<SeccompRule>, _> {
        values.iter().map(|value| SeccompRule::new(vec![whole(at, *value)?])).collect()
    };
    let own = u64::from(std::process::id());
    let thread = libc::CLONE_THREAD.unsigned_abs().into();
    let is_thread =
        SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(thread), thread)?;
    Ok(Rules::from([
        (libc::SYS_clone, vec![SeccompRule::new(vec![is_thread])?]),
        (libc::SYS_unshare, one_of(0, &[libc::CLONE_FILES.unsigned_abs().into()])?),
        (libc::SYS_tgkill, one_of(0, &[own])?),
        (libc::SYS_kill, one_of(0, &[own])?),
        (
            libc::SYS_fcntl,
            one_of(
                1,
                &[libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_DUPFD_CLOEXEC]
                    .map(|c| c.unsigned_abs().into()),
            )?,
        ),
        (
            libc::SYS_prctl,
            one_of(0, &[libc::PR_SET_NAME, libc::PR_SET_VMA, PR_GET_AUXV].map(|c| c.unsigned_abs().into()))?,
        ),
    ]))
}
