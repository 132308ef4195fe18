/* Prints how many pages of a file are in the page cache that a mapping of it uses, and how many pages it has.
 *
 * usage: resident FILE
 * Nothing is read by looking: mincore(2) tells of the cache of the file that the kernel maps, which with a
 * passed-through FUSE file is the file below. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct stat status;
    int file = argc == 2 ? open(argv[1], O_RDONLY) : -1;
    if (file < 0 || fstat(file, &status) < 0)
        return 1;
    size_t pages = (status.st_size + 4095) / 4096, resident = 0;
    void *at = mmap(NULL, pages * 4096, PROT_READ, MAP_SHARED, file, 0);
    unsigned char *in = malloc(pages);
    if (at == MAP_FAILED || !in || mincore(at, pages * 4096, in) < 0)
        return 1;
    for (size_t page = 0; page < pages; page++)
        resident += in[page] & 1;
    printf("%zu %zu\n", resident, pages);
    return 0;
}
