/* What rax_profile_of tells, for people and for viewers of traces. */
#ifndef CLI_PROFILE_H
#define CLI_PROFILE_H

#include <stdbool.h>
#include <stdio.h>

#include "rax.h"

/* A line on the whole, then a row for all kernels that are equal but for their buffers, by time. A row's time is that of one run
 * as if all threads had shared the kernel, waiting included, so that rows add up to the run. bound%: of the peak of arithmetic (a) or of
 * memory (m), whichever is the greater share. */
void cli_print_profile(FILE *out, const rax_profile *profile, const rax_peak *peak);

/* Chrome's trace format, an array of complete events: a track for each thread, an event for the tasks of a kernel that a thread
 * runs one after another, or for waiting. Opens in https://ui.perfetto.dev. NULL: rax_error(). */
typedef struct cli_trace cli_trace;
cli_trace *cli_trace_new(const char *path);                    /* borrows path */
void cli_trace_add(cli_trace *trace, const rax_profile *profile);
bool cli_trace_end(cli_trace *trace, bool keep);               /* and frees it; keep: into the file. false: rax_error() */

#endif
