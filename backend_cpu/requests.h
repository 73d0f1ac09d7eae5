/* The functions of the process, and how a compilation gets those that it asked for (backend.h, cpu_request_code). */
#ifndef CPU_REQUESTS_H
#define CPU_REQUESTS_H

#include "backend_cpu/backend.h"

/* Code in memory and on disk. cache_dir: NULL for the default, "" for none. */
cpu_store *cpu_store_new(const cpu_machine *machine, const char *cache_dir);
void cpu_store_free(cpu_store *store);
const char *cpu_store_folder(const cpu_store *store);

/* By request: address and code. functions: all that were asked for; new_functions: those that the process did not have;
 * compiled_functions: those that the disk did not have either. */
typedef struct {
    void **address;
    const cpu_code **code;
    int functions, new_functions, compiled_functions, modules;
    size_t bytes;
} cpu_fetched;

/* fetched is {0} to begin with. dump_dir: everything is generated anew, and leaves its text there. False and base_error where
 * code cannot be had. */
bool cpu_store_fetch(cpu_store *store, cpu_compiler *compiler, const char *dump_dir, bool verify, cpu_fetched *fetched);
/* Gives a plan's phases their code, and calls its link. */
void cpu_link_plan(cpu_compiler *compiler, cpu_plan *plan, const cpu_fetched *fetched);

#endif
