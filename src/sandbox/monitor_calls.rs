//! System calls that a monitor gives up: seccomp(2).
//!
//! Nix's library brings others that call what this program does not know, so this is a list of what nobody calls here, and not of what is
//! called. What was seen under strace(1), and what Nix's library has in its sources for a local store or a daemon's, is not
//! in it. Servers inherit it, and have lists of their own.

use std::io;

use nix::libc;
use rustix::io::Errno;
use seccompiler::{
    BackendError, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule,
};

use super::calls::{Rules, filter};

/// What only somebody calls who has taken the monitor over: it ends at once.
const DEADLY: &[i64] = &[
    // The kernel's own code and memory.
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_userfaultfd,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Files by other ways than their names.
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_pivot_root,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    // The machine.
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_vhangup,
];

/// What a library may try: `EPERM`, as without the right to it.
const REFUSED: &[i64] = &[
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_settimeofday,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_personality,
    libc::SYS_chroot,
];

/// Arguments that a filter cannot see: C libraries make a thread or a process by clone(2) then.
const ABSENT: &[i64] = &[libc::SYS_clone3];

/// Namespaces that nobody needs: all but those of mounts.
const NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
    // CLONE_NEWTIME, which clone(2) has for a signal: 0x80.
    0x80,
];

/// The same calls by their other numbers, where the kernel has them: of programs with pointers of 32 bits (`__X32_SYSCALL_BIT`).
#[cfg(target_arch = "x86_64")]
const OTHER_NUMBERS: i64 = 0x4000_0000;
/// Those of them that have a number of their own there: ptrace, kexec_load, process_vm_readv, process_vm_writev.
#[cfg(target_arch = "x86_64")]
const OTHERS: &[i64] = &[521, 528, 539, 540];

/// Leaves this thread, and those that it makes, all calls but those of the tables.
pub(super) fn confine() -> io::Result<()> {
    let errno = |error: Errno| SeccompAction::Errno(error.raw_os_error().unsigned_abs());
    let programs = [
        filter(all(DEADLY, with_others), SeccompAction::Allow, SeccompAction::KillProcess)?,
        filter(all(ABSENT, with_other_numbers), SeccompAction::Allow, errno(Errno::NOSYS))?,
        filter(families().map_err(io::Error::other)?, SeccompAction::Allow, errno(Errno::AFNOSUPPORT))?,
        filter(refused().map_err(io::Error::other)?, SeccompAction::Allow, errno(Errno::PERM))?,
    ];
    for program in &programs {
        seccompiler::apply_filter(program).map_err(io::Error::other)?;
    }
    Ok(())
}

fn all(calls: &[i64], numbers: fn(&[i64]) -> Vec<i64>) -> Rules {
    numbers(calls).into_iter().map(|call| (call, Vec::new())).collect()
}

#[cfg(target_arch = "x86_64")]
fn with_other_numbers(calls: &[i64]) -> Vec<i64> {
    calls.iter().flat_map(|call| [*call, call | OTHER_NUMBERS]).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn with_other_numbers(calls: &[i64]) -> Vec<i64> {
    calls.to_vec()
}

fn with_others(calls: &[i64]) -> Vec<i64> {
    #[cfg(target_arch = "x86_64")]
    let calls = [calls, OTHERS].concat();
    with_other_numbers(&calls)
}

type Built<T> = Result<T, BackendError>;

/// Sockets of other families than those by which users and daemons are asked.
fn families() -> Built<Rules> {
    let known = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
    let other = known.map(|family| condition(0, SeccompCmpOp::Ne, family.unsigned_abs().into()));
    let rule = SeccompRule::new(other.into_iter().collect::<Built<_>>()?)?;
    let calls = with_other_numbers(&[libc::SYS_socket, libc::SYS_socketpair]);
    Ok(calls.into_iter().map(|call| (call, vec![rule.clone()])).collect())
}

fn refused() -> Built<Rules> {
    let mut rules = all(REFUSED, with_other_numbers);
    let mut refuse = |call: i64, alternatives: &[SeccompRule]| {
        rules.extend(with_other_numbers(&[call]).into_iter().map(|call| (call, alternatives.to_vec())));
    };
    let has =
        |at, bits: u64, mask: u64| SeccompRule::new(vec![condition(at, SeccompCmpOp::MaskedEq(mask), bits)?]);
    let flag = |flag: libc::c_int| has(0, flag.unsigned_abs().into(), flag.unsigned_abs().into());
    let namespaces = NAMESPACES.into_iter().map(flag).collect::<Built<Vec<_>>>()?;
    refuse(libc::SYS_unshare, &namespaces);
    // In place of the last flag it has the number of a signal.
    refuse(libc::SYS_clone, namespaces.get(..NAMESPACES.len() - 1).unwrap_or_default());
    let mounts = libc::CLONE_NEWNS.unsigned_abs().into();
    refuse(libc::SYS_setns, &[SeccompRule::new(vec![condition(1, SeccompCmpOp::Ne, mounts)?])?]);
    // Nodes of devices.
    let devices = |at| -> Built<Vec<_>> {
        [libc::S_IFCHR, libc::S_IFBLK]
            .into_iter()
            .map(|kind| has(at, kind.into(), libc::S_IFMT.into()))
            .collect()
    };
    #[cfg(target_arch = "x86_64")]
    refuse(libc::SYS_mknod, &devices(1)?);
    refuse(libc::SYS_mknodat, &devices(2)?);
    Ok(rules)
}

/// On the lower half of an argument: each is of 32 bits.
fn condition(at: u8, operation: SeccompCmpOp, value: u64) -> Built<SeccompCondition> {
    SeccompCondition::new(at, SeccompCmpArgLen::Dword, operation, value)
}
