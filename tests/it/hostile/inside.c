/* What root of a container tries against the view that it has as /nix/store.
 *
 * usage: inside handle FILE
 *        inside attack MEMBER POINTER SYSTEM OUTSIDE WITHDRAWN HANDLES WORD...
 *
 * The first prints a file handle of FILE, as TYPE:HEXADECIMAL, or "-" where its file system gives none. The second does what each
 * WORD names, in their order, and prints a line for each deed: what it is, ": ", and how it ended: "done", the name of an error, or
 * what was reached. The others are names in /nix/store: a directory with a file `text`; a link to OUTSIDE without a directory;
 * a directory with a link `to-outside`; one outside the closure, with a file `secret`; one with a file `text` that is withdrawn
 * after `begin`. "wait for: " and what is to be done outside is a line as well; then a line is read. HANDLES is what the first prints for OUTSIDE and its `secret`, with a comma
 * between. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#define STORE "/nix/store"
#define SECRET "not for this container\n"
#define WITHDRAWN "for some time\n"
/* More node ids than the view has entries. */
#define LAST 5000

static const char *member, *pointer, *system_of_it, *outside, *withdrawn, *handles_of_secret;

/* A path in the store. Some are in use at the same time. */
static const char *in_store(const char *format, const char *name)
{
    static char places[8][4096];
    static unsigned next;
    char *place = places[next++ % 8];
    size_t length = snprintf(place, sizeof places[0], STORE "/");
    snprintf(place + length, sizeof places[0] - length, format, name);
    return place;
}

static void say(const char *deed, const char *way, const char *outcome)
{
    printf("%s%s%s: %s\n", deed, *way ? " " : "", way, outcome);
}

static void tell(const char *deed, const char *way, long result)
{
    say(deed, way, result < 0 ? strerrorname_np(errno) : "done");
}

/* Closes what was opened; errno stays. */
static int closed(int file)
{
    if (file >= 0)
        close(file);
    return file;
}

/* Whether this is a file with that text, or a directory with such a file of that name. */
static int holds(int directory, const char *path, const char *name, const char *text)
{
    char bytes[64] = "";
    struct stat status;
    int is = 0;
    if (fstatat(directory, path, &status, 0) || !(S_ISDIR(status.st_mode) || S_ISREG(status.st_mode)))
        return 0;
    int file = openat(directory, path, O_RDONLY | O_NONBLOCK);
    if (file < 0)
        return 0;
    if (!S_ISDIR(status.st_mode))
        is = read(file, bytes, sizeof bytes - 1) > 0 && !strcmp(bytes, text);
    else if (name)
        is = holds(file, name, 0, text);
    close(file);
    return is;
}

static int is_secret(const char *path)
{
    return holds(AT_FDCWD, path, "secret", SECRET);
}

static int list(const char *path)
{
    DIR *directory = opendir(path);
    if (!directory)
        return -1;
    while (readdir(directory))
        ;
    return closedir(directory);
}

static void look(void)
{
    char up[4096], below[4096 + 8];
    snprintf(up, sizeof up, STORE "/%s/../%s", member, outside);
    const char *places[][2] = {
        {"by its name", in_store("%s", outside)},
        {"by its name with a slash", in_store("%s/", outside)},
        {"from a member up", up},
        {"from the root up", in_store("../store/%s", outside)},
        {"from a working directory", outside},
        {"by a relative link", in_store("%s", pointer)},
        {"by an absolute link", in_store("%s/to-outside", system_of_it)},
    };
    if (chdir(STORE))
        exit(3);
    for (unsigned i = 0; i < sizeof places / sizeof *places; i++) {
        const char *way = places[i][0], *path = places[i][1];
        struct stat status;
        tell("stat", way, stat(path, &status));
        tell("open", way, closed(open(path, O_RDONLY)));
        tell("open as a place", way, closed(open(path, O_PATH)));
        tell("list", way, list(path));
        snprintf(below, sizeof below, "%s/secret", path);
        if (is_secret(below))
            say("read a file in it", way, "THE SECRET");
        else
            tell("read a file in it", way, closed(open(below, O_RDONLY)));
    }
    if (chdir("/"))
        exit(3);
}

/* The worst that handles have reached. */
struct reached {
    enum { nothing, view, gone, elsewhere, secret } what;
    int error;
};

static void open_handle(int mount, int type, const void *bytes, unsigned count, struct reached *reached)
{
    char place[sizeof(struct file_handle) + MAX_HANDLE_SZ] __attribute__((aligned(8)));
    struct file_handle *handle = (struct file_handle *)place;
    handle->handle_bytes = count;
    handle->handle_type = type;
    memcpy(handle->f_handle, bytes, count);
    int file = open_by_handle_at(mount, handle, O_PATH);
    /* Since Linux 6.11 root of a user namespace opens directories by handle. */
    if (file < 0 && errno == EPERM)
        file = open_by_handle_at(mount, handle, O_PATH | O_DIRECTORY);
    if (file < 0) {
        /* Another error than all others is the one to tell. */
        if (!reached->error || errno != ESTALE)
            reached->error = errno;
        return;
    }
    char self[64], path[4096] = "";
    snprintf(self, sizeof self, "/proc/self/fd/%d", file);
    ssize_t length = readlink(self, path, sizeof path - 1);
    int what = length > 0 && !strncmp(path, STORE, strlen(STORE)) ? view : elsewhere;
    if (holds(AT_FDCWD, self, "text", WITHDRAWN))
        what = gone;
    if (is_secret(self))
        what = secret;
    if ((int)reached->what < what)
        reached->what = what;
    close(file);
}

static void tell_reached(const char *deed, const struct reached *reached)
{
    const char *names[] = {0, "the view", "WHAT WAS WITHDRAWN", "ELSEWHERE", "THE SECRET"};
    say(deed, "", reached->what == nothing ? strerrorname_np(reached->error) : names[reached->what]);
}

static void handles(void)
{
    int mount = open(STORE, O_RDONLY | O_DIRECTORY);
    struct reached nodes = {0}, others = {0}, inodes = {0}, host = {0};
    for (uint32_t node = 1; node <= LAST; node++) {
        /* FUSE: node id in two halves, generation (Linux fs/fuse/inode.c, fuse_encode_fh). A disk: inode, generation. */
        open_handle(mount, 0x81, (uint32_t[]){0, node, 0}, 12, &nodes);
        open_handle(mount, 0x81, (uint32_t[]){0, node, 1}, 12, &others);
        open_handle(mount, 0x81, (uint32_t[]){node, node, 0}, 12, &others);
        open_handle(mount, 1, (uint32_t[]){node, 0}, 8, &inodes);
    }
    tell_reached("open guessed nodes", &nodes);
    tell_reached("open guessed nodes of other generations", &others);
    tell_reached("open guessed inodes of a disk", &inodes);
    unsigned type, byte, known = 0;
    char *rest = strdupa(handles_of_secret), *text;
    while ((text = strsep(&rest, ","))) {
        unsigned char bytes[MAX_HANDLE_SZ];
        unsigned count = 0;
        if (sscanf(text, "%u:", &type) != 1)
            continue;
        for (text = strchr(text, ':') + 1; count < sizeof bytes && sscanf(text, "%2x", &byte) == 1; text += 2)
            bytes[count++] = byte;
        open_handle(mount, type, bytes, count, &host);
        /* As one of FUSE's, too. */
        open_handle(mount, 0x81, bytes, count, &host);
        known++;
    }
    if (known)
        tell_reached("open the host's handles", &host);
    close(mount);
}

/* Waits until the test has done something, and said so by a line. */
static void wait_for(const char *what)
{
    char line[16];
    printf("wait for: %s\n", what);
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin))
        exit(4);
}

static int begun = -1;

/* Starts a listing, and waits until the test has withdrawn something. */
static void begin(void)
{
    char entries[512];
    struct stat status;
    begun = open(STORE, O_RDONLY | O_DIRECTORY);
    tell("begin a listing", "", syscall(SYS_getdents64, begun, entries, sizeof entries));
    tell("look up what is still there", "", stat(in_store("%s", withdrawn), &status));
    wait_for("withdraw");
}

/* Lists from a position to the end; 0 or -1. */
static int list_from(uint64_t position)
{
    static char entries[8192];
    if (lseek(begun, (off_t)position, SEEK_SET) < 0)
        return -1;
    long length;
    while ((length = syscall(SYS_getdents64, begun, entries, sizeof entries)) > 0)
        ;
    return (int)length;
}

static void positions(void)
{
    const unsigned numbers[] = {0, 1, 2, 30};
    const char *paths[] = {in_store("%s", withdrawn), in_store("%s/text", withdrawn)};
    struct stat status;
    int failed = 0, wide = 0, found = 0;
    /* Where the first listing was, then at each position, of this form (src/view/root.rs) and of a wider one. */
    char entries[512];
    while (syscall(SYS_getdents64, begun, entries, sizeof entries) > 0)
        ;
    for (uint64_t epoch = 0; epoch < 128; epoch++)
        for (unsigned i = 0; i < 4; i++) {
            if (list_from(epoch << 24 | numbers[i]))
                failed = errno;
            if (list_from(epoch << 32 | numbers[i]) && errno != ESTALE)
                wide = errno;
            for (unsigned path = 0; path < 2; path++) {
                found += !stat(paths[path], &status) || errno != ENOENT;
                found += closed(open(paths[path], O_RDONLY)) >= 0 || errno != ENOENT;
            }
        }
    say("list at each position", "", failed ? strerrorname_np(failed) : "done");
    say("list at each wider position", "", wide ? strerrorname_np(wide) : "done");
    say("look up what was withdrawn", "", found ? "FOUND" : "ENOENT");
}

static int write_to(const char *path, int flags)
{
    int file = open(path, flags, 0600);
    if (file < 0)
        return -1;
    int result = (int)write(file, "changed", 7);
    int error = errno;
    close(file);
    errno = error;
    return result;
}

static void writes(void)
{
    const char *text = in_store("%s/text", member), *new = in_store("%s/new", member), *in_root = in_store("%s", "new");
    const struct timespec times[2] = {{5, 5}, {5, 5}};
    /* After this the kernel may open it without asking. */
    tell("read", "", closed(open(text, O_RDONLY)));
    tell("write", "", write_to(text, O_WRONLY));
    tell("write and read", "", write_to(text, O_RDWR));
    tell("append", "", write_to(text, O_WRONLY | O_APPEND));
    tell("truncate at opening", "", closed(open(text, O_WRONLY | O_TRUNC)));
    tell("truncate", "", truncate(text, 1));
    tell("create", "", closed(open(new, O_WRONLY | O_CREAT, 0600)));
    tell("create in the root", "", closed(open(in_root, O_WRONLY | O_CREAT, 0600)));
    tell("mkdir", "", mkdir(new, 0700));
    tell("mkdir in the root", "", mkdir(in_root, 0700));
    tell("make a device", "", mknod(new, S_IFCHR | 0600, makedev(1, 3)));
    tell("make a pipe", "", mkfifo(new, 0600));
    tell("make a link", "", symlink("text", new));
    tell("link", "", link(text, new));
    tell("rename", "", rename(text, new));
    tell("chmod", "", chmod(text, 0600));
    tell("chown", "", chown(text, 1, 1));
    tell("set times", "", utimensat(AT_FDCWD, text, times, 0));
    tell("set an attribute", "", setxattr(text, "user.x", "y", 1, 0));
    tell("unlink", "", unlink(text));
}

/* Takes read-only from the mount by the older call and by the newer one. */
static void remount_mount(void)
{
    tell("remount the mount", "", mount(0, STORE, 0, MS_REMOUNT | MS_BIND, 0));
    struct mount_attr attributes = {.attr_clr = MOUNT_ATTR_RDONLY};
    tell("change the mount's attributes", "", syscall(SYS_mount_setattr, AT_FDCWD, STORE, 0, &attributes, sizeof attributes));
}

static void remount_superblock(void)
{
    tell("remount the file system", "", mount(0, STORE, 0, MS_REMOUNT, 0));
}

/* Mounts over what it sees, which is for itself alone. */
static void mount_over(void)
{
    tell("mount over a member", "", mount("none", in_store("%s", member), "tmpfs", 0, 0));
    tell("mount over the view", "", mount("none", STORE, "tmpfs", 0, 0));
    tell("write there", "", write_to(STORE "/new", O_WRONLY | O_CREAT));
    wait_for("compare");
    tell("unmount that", "", umount2(STORE, 0));
    tell("unmount that of the member", "", umount2(in_store("%s", member), 0));
    tell("mount proc over a member", "", mount("none", in_store("%s", member), "proc", 0, 0));
    umount2(in_store("%s", member), 0);
}

static void fusectl(void)
{
    mkdir("/fusectl", 0700);
    tell("mount fusectl", "", mount("none", "/fusectl", "fusectl", 0, 0));
}

/* What is in the store's place, where that is not the view. */
static const char *in_its_place(void)
{
    DIR *directory = opendir(STORE);
    unsigned entries = 0;
    while (directory && readdir(directory))
        entries++;
    if (directory)
        closedir(directory);
    if (is_secret(in_store("%s", outside)))
        return "THE SECRET";
    return entries == 2 ? "nothing" : "SOMETHING";
}

/* Unmounts whatever can be, and tells what was below it, if it was more than nothing. */
static void unmount(void)
{
    const char *below = 0;
    int result;
    while (!(result = umount2(STORE, MNT_DETACH)))
        if (!below || !strcmp(below, "nothing"))
            below = in_its_place();
    tell("unmount", "", below ? 0 : result);
    struct stat status;
    say("look below", "", below ? below : stat(in_store("%s", member), &status) ? "SOMETHING" : "the view");
}

static int print_handle(const char *path)
{
    char place[sizeof(struct file_handle) + MAX_HANDLE_SZ] __attribute__((aligned(8)));
    struct file_handle *handle = (struct file_handle *)place;
    int mount;
    handle->handle_bytes = MAX_HANDLE_SZ;
    if (name_to_handle_at(AT_FDCWD, path, handle, &mount, 0)) {
        printf("-\n");
        return errno != EOPNOTSUPP;
    }
    printf("%d:", handle->handle_type);
    for (unsigned i = 0; i < handle->handle_bytes; i++)
        printf("%02x", handle->f_handle[i]);
    printf("\n");
    return 0;
}

int main(int argc, char **argv)
{
    const struct {
        const char *word;
        void (*deeds)(void);
    } words[] = {
        {"begin", begin}, {"positions", positions}, {"look", look}, {"handles", handles}, {"writes", writes},
        {"remount-mount", remount_mount}, {"remount-superblock", remount_superblock}, {"mount-over", mount_over},
        {"fusectl", fusectl}, {"unmount", unmount},
    };
    if (argc == 3 && !strcmp(argv[1], "handle"))
        return print_handle(argv[2]);
    if (argc < 8 || strcmp(argv[1], "attack"))
        return 2;
    member = argv[2], pointer = argv[3], system_of_it = argv[4], outside = argv[5], withdrawn = argv[6];
    handles_of_secret = argv[7];
    for (int i = 8; i < argc; i++) {
        unsigned word = 0;
        while (word < sizeof words / sizeof *words && strcmp(words[word].word, argv[i]))
            word++;
        if (word == sizeof words / sizeof *words)
            return 2;
        words[word].deeds();
        fflush(stdout);
    }
    return 0;
}
