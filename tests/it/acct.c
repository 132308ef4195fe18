/* Has the kernel write its accounting (acct(2)) to a file, lets a process end, and stops that again: says what the first
   call gave. In a process namespace of its own, which is what it is for. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    int on = argc > 1 ? acct(argv[1]) : -1;
    printf("%d\n", on == 0 ? 0 : errno);
    if (on != 0)
        return 0;
    pid_t child = fork();
    if (child == 0)
        _exit(0);
    waitpid(child, NULL, 0);
    return acct(NULL) != 0;
}
