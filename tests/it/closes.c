/* Closes a file in the middle of execve(2), where the kernel holds what others need to look at the process.
 *
 * usage: closes FILE
 * Opens FILE, says "open", waits for a line, and becomes true(1). */
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    char line[16];
    if (argc != 2 || open(argv[1], O_RDONLY | O_CLOEXEC) < 0) {
        perror("closes");
        return 2;
    }
    puts("open");
    fflush(stdout);
    if (read(0, line, sizeof line) <= 0)
        return 2;
    execlp("true", "true", (char *)NULL);
    return 2;
}
