/* What the machine can do, measured. */
#ifndef CPU_PEAK_H
#define CPU_PEAK_H

#include "backend_cpu/backend.h"

/* On all threads of the pool, in about half a second; takes up to 1 GB for that time. False and base_error where the code or the
 * memory cannot be had. */
bool cpu_measure_peak(const cpu_machine *machine, cpu_pool *pool, ir_peak *peak);

#endif
