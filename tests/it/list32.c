/* Lists a directory as a program without large-file support does: as a 32-bit program (-m32) with entries whose offsets
 * have to fit into 32 bits.
 *
 * usage: list32 DIRECTORY OUTPUT SEED
 * Lists DIRECTORY, noting the position of each entry (telldir(3)). Writes the names to OUTPUT.first, each ended by NUL.
 * Says how many there are, and waits for a line on standard input. Then seeks to positions chosen at random, where the same
 * names must follow. Finally rewinds, lists once more, and writes the names to OUTPUT.again. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SEEKS = 2000, FOLLOWING = 40 };

static long count, room;
static char **names;
static long *positions;

static void fail(const char *what, long at)
{
    fprintf(stderr, "%s at entry %ld of %ld: %s\n", what, at, count, errno ? strerror(errno) : "no error");
    exit(1);
}

/* The next entry's name, or NULL at the end. */
static const char *next(DIR *dir, long at)
{
    errno = 0;
    struct dirent *entry = readdir(dir);
    if (!entry && errno)
        fail("readdir", at);
    return entry ? entry->d_name : NULL;
}

static void keep(long position, const char *name)
{
    if (count == room) {
        room = room ? room * 2 : 1024;
        names = realloc(names, room * sizeof *names);
        positions = realloc(positions, room * sizeof *positions);
        if (!names || !positions)
            fail("realloc", count);
    }
    positions[count] = position;
    names[count] = name ? strdup(name) : NULL;
}

static FILE *output(const char *path, const char *end)
{
    char full[4096];
    snprintf(full, sizeof full, "%s.%s", path, end);
    FILE *file = fopen(full, "w");
    if (!file)
        fail(full, 0);
    return file;
}

static int known(const char *name)
{
    for (long at = 0; at < count; at++)
        if (!strcmp(name, names[at]))
            return 1;
    return 0;
}

static void check(DIR *dir, long from)
{
    seekdir(dir, positions[from]);
    for (long at = from; at <= count && at < from + FOLLOWING; at++) {
        const char *name = next(dir, at);
        /* What has been added since may follow at the end (readdir(3p)). */
        if (at == count && name && !known(name))
            return;
        if (!name != !names[at] || (name && strcmp(name, names[at]))) {
            fprintf(stderr, "after seeking to entry %ld of %ld, %ld is '%s', not '%s'\n", from, count, at,
                    name ? name : "the end", names[at] ? names[at] : "the end");
            exit(1);
        }
    }
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    DIR *dir = opendir(argv[1]);
    if (!dir)
        fail("opendir", 0);
    FILE *first = output(argv[2], "first");
    const char *name;
    do {
        errno = 0;
        long position = telldir(dir);
        if (position == -1)
            fail("telldir", count);
        name = next(dir, count);
        keep(position, name);
        if (name) {
            fwrite(name, 1, strlen(name) + 1, first);
            count++;
        }
    } while (name);
    fclose(first);
    printf("%ld entries\n", count);
    fflush(stdout);
    getchar();

    srand(atoi(argv[3]));
    for (int seek = 0; seek < SEEKS; seek++)
        check(dir, rand() % (count + 1));
    check(dir, 0);
    check(dir, count);

    rewinddir(dir);
    FILE *again = output(argv[2], "again");
    for (long at = 0; (name = next(dir, at)); at++)
        fwrite(name, 1, strlen(name) + 1, again);
    fclose(again);
    closedir(dir);
    return 0;
}
