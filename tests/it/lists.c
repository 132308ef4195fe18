/* Lists a directory into memory whose page fault never ends, and so keeps the directory locked.
 *
 * usage: lists DIRECTORY [FILE]
 * The memory is a mapping of FILE, which is never read to its end; without FILE, memory that userfaultfd(2) leaves to
 * this program, which does nothing about it. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SIZE = 4096 };

static void *never_there(void)
{
    int faults = syscall(SYS_userfaultfd, O_CLOEXEC);
    struct uffdio_api api = { .api = UFFD_API };
    void *at = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct uffdio_register all = {
        .range = { .start = (unsigned long)at, .len = SIZE },
        .mode = UFFDIO_REGISTER_MODE_MISSING,
    };
    if (faults < 0 || at == MAP_FAILED || ioctl(faults, UFFDIO_API, &api) || ioctl(faults, UFFDIO_REGISTER, &all))
        return MAP_FAILED;
    return at;
}

static void *never_read(const char *path)
{
    int file = open(path, O_RDONLY | O_CLOEXEC);
    return file < 0 ? MAP_FAILED : mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    int directory = open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    void *memory = argc > 2 ? never_read(argv[2]) : never_there();
    if (directory < 0 || memory == MAP_FAILED)
        return 3;
    return syscall(SYS_getdents64, directory, memory, SIZE) < 0;
}
