/* Shared by the files that run a kernel list: run_kernels.c, run_attention.c. Not for others. */
#ifndef IR_RUN_KERNELS_H
#define IR_RUN_KERNELS_H

#include "ir/kernels.h"

typedef struct {
    const kl_program *program;
    void *const *params, *const *results;
    char *arena;
    int64_t *iteration;        /* by repeat: the number that moves its KL_MOVING buffers */
    kl_life *lives;
} kl_machine;

/* Where element 0 of the buffer lies now. */
char *kl_address(const kl_machine *machine, int buffer);

void kl_run_attention(const kl_machine *machine, const kl_attention *attention);

#endif
