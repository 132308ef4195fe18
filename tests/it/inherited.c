// inherited signals PROGRAM...: runs PROGRAM with every signal ignored and blocked.
// inherited terminal FIFO PROGRAM...: runs PROGRAM as the leader of a session with a terminal, which stops background
// processes that write to it, and which hangs up once somebody has opened and closed FIFO for writing.
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

static void must(int good, const char *what)
{
    if (!good) {
        perror(what);
        exit(99);
    }
}

static void signals(void)
{
    sigset_t all;
    sigfillset(&all);
    must(sigprocmask(SIG_BLOCK, &all, NULL) == 0, "sigprocmask");
    for (int number = 1; number <= SIGRTMAX; number++)
        signal(number, SIG_IGN);
}

// Reads what is written to the terminal until the other end of the fifo is closed.
static void keep(int master, const char *fifo)
{
    char bytes[4096];
    int told = open(fifo, O_RDONLY | O_NONBLOCK);
    must(told >= 0, fifo);
    struct pollfd polled[] = {{told, POLLIN, 0}, {master, POLLIN, 0}};
    // A fifo that nobody has opened yet reports nothing.
    while (poll(polled, 2, -1) >= 0 && !polled[0].revents)
        if (polled[1].revents && read(master, bytes, sizeof bytes) <= 0)
            break;
    _exit(0);
}

static void terminal(const char *fifo)
{
    int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    must(master >= 0 && grantpt(master) == 0 && unlockpt(master) == 0, "posix_openpt");
    const char *name = ptsname(master);
    pid_t keeper = fork();
    must(keeper >= 0, "fork");
    if (keeper == 0) {
        close(2);
        keep(master, fifo);
    }
    must(setsid() >= 0, "setsid");
    int slave = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
    must(slave >= 0 && ioctl(slave, TIOCSCTTY, 0) == 0, name);
    struct termios mode;
    must(tcgetattr(slave, &mode) == 0, "tcgetattr");
    mode.c_lflag |= TOSTOP;
    must(tcsetattr(slave, TCSANOW, &mode) == 0, "tcsetattr");
    must(dup2(slave, 2) == 2, "dup2");
}

int main(int count, char **arguments)
{
    int next = 2;
    if (count > 2 && strcmp(arguments[1], "signals") == 0)
        signals();
    else if (count > 3 && strcmp(arguments[1], "terminal") == 0)
        terminal(arguments[next++]);
    else
        return 98;
    execv(arguments[next], arguments + next);
    perror(arguments[next]);
    return 97;
}
