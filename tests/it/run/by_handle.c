/* make FILE: prints the handle of a file; open HANDLE PATH...: opens it by each of the mounts at PATH, and prints what it has. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

union handle {
    struct file_handle head;
    unsigned char bytes[sizeof(struct file_handle) + MAX_HANDLE_SZ];
};

int main(int argc, char **argv)
{
    union handle handle = { 0 };
    int opened = 0;

    if (argc < 3)
        return 2;
    if (!strcmp(argv[1], "make")) {
        int mount;
        handle.head.handle_bytes = MAX_HANDLE_SZ;
        if (name_to_handle_at(AT_FDCWD, argv[2], &handle.head, &mount, 0))
            return perror("name_to_handle_at"), 1;
        size_t length = sizeof(struct file_handle) + handle.head.handle_bytes;
        for (size_t i = 0; i < length; i++)
            printf("%02x", handle.bytes[i]);
        return puts(""), 0;
    }
    for (size_t i = 0; argv[2][2 * i] && i < sizeof handle.bytes; i++) {
        unsigned int byte;
        if (sscanf(argv[2] + 2 * i, "%2x", &byte) != 1)
            return 2;
        handle.bytes[i] = byte;
    }
    for (int i = 3; i < argc; i++) {
        char text[256];
        int mount = open(argv[i], O_RDONLY);
        int file = mount < 0 ? -1 : open_by_handle_at(mount, &handle.head, O_RDONLY);
        ssize_t got = file < 0 ? -1 : read(file, text, sizeof text);
        if (got > 0) {
            opened = 1;
            fwrite(text, 1, got, stdout);
            break;
        }
    }
    return !opened;
}
