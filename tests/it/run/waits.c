/* Waits for all children, as a program does that started some, and has none left. */
#include <stdio.h>
#include <sys/wait.h>

int main(void)
{
    while (wait(NULL) > 0)
        ;
    puts("no child is left");
    return 0;
}
