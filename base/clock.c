/* The clock that runs on, whatever becomes of the time of day. */
#include "base/base.h"

#include <time.h>

int64_t base_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

double base_now_ms(void) { return (double)base_now_ns() * 1e-6; }
