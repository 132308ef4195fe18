/* A hostile server, started by the monitor in the place of its own: what it does to the socket, its standard input, is
 * named by NSF_HOSTILE. It does not end by itself. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static char bytes[1 << 17];

static void repeat(const void *message, size_t length)
{
    while (send(0, message, length, MSG_NOSIGNAL) >= 0)
        ;
}

int main(void)
{
    const char *deed = getenv("NSF_HOSTILE");
    if (!deed)
        return 2;
    signal(SIGTERM, SIG_IGN);
    /* One that was started early and never told to begin outlives its monitor: it does not look at its socket. */
    alarm(300);
    unsigned long long gibibyte = 1 << 30;
    if (!strcmp(deed, "floods"))
        repeat("\"Answered\"", 10);
    else if (!strcmp(deed, "refuses"))
        repeat("{\"Failed\":{\"cause\":\"Passing\",\"why\":\"because\"}}", 44);
    else if (!strcmp(deed, "garbage"))
        repeat(memset(bytes, 0xff, 4096), 4096);
    else if (!strcmp(deed, "too long"))
        repeat(bytes, sizeof bytes);
    else if (!strcmp(deed, "length without a body"))
        repeat(&gibibyte, sizeof gibibyte);
    else if (!strcmp(deed, "empty"))
        repeat("", 0);
    else if (!strcmp(deed, "closes"))
        close(0);
    else if (strcmp(deed, "is silent"))
        return 2;
    for (;;)
        pause();
}
