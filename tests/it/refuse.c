/* Runs a command for which one system call always fails.
 *
 * usage: refuse ERRNO CALL COMMAND [ARGUMENT]...
 * CALL is readlinkat, preadv2, openat2, unshare, fsopen, close_range, landlock_create_ruleset, capset, sched_setscheduler, or mmap=BYTES
 * and ftruncate=BYTES for mappings and files of so many bytes (seccomp(2), SECCOMP_RET_ERRNO). */
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    if (argc < 4)
        return 2;
    unsigned number, bytes = 0;
    if (!strcmp(argv[2], "readlinkat"))
        number = SYS_readlinkat;
    else if (!strcmp(argv[2], "preadv2"))
        number = SYS_preadv2;
    else if (!strcmp(argv[2], "unshare"))
        number = SYS_unshare;
    else if (!strcmp(argv[2], "openat2"))
        number = SYS_openat2;
    else if (!strncmp(argv[2], "mmap=", 5)) {
        number = SYS_mmap;
        bytes = strtoul(argv[2] + 5, NULL, 10);
    }
    else if (!strncmp(argv[2], "ftruncate=", 10)) {
        number = SYS_ftruncate;
        bytes = strtoul(argv[2] + 10, NULL, 10);
    }
    else if (!strcmp(argv[2], "fsopen"))
        number = SYS_fsopen;
    else if (!strcmp(argv[2], "close_range"))
        number = SYS_close_range;
    else if (!strcmp(argv[2], "landlock_create_ruleset"))
        number = SYS_landlock_create_ruleset;
    else if (!strcmp(argv[2], "capset"))
        number = SYS_capset;
    else if (!strcmp(argv[2], "sched_setscheduler"))
        number = SYS_sched_setscheduler;
    else
        return 2;
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
        BPF_JUMP(BPF_JMP | (bytes ? BPF_JEQ : BPF_JGE) | BPF_K, bytes, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | atoi(argv[1])),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { sizeof filter / sizeof *filter, filter };
    /* Without a privilege the kernel wants this first; with one it does no harm. */
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        return 3;
    execvp(argv[3], argv + 3);
    return 4;
}
