/* A server that its filter ends. */
#include <signal.h>

int main(void)
{
    return raise(SIGSYS);
}
