/* The text of a kernel's expressions at a place of its index space; between loops.c, loop_emit.c, expressions.c and random.c.
 *
 * A place is V neighbours along the last axis: j counts them. Names in the text: x3 is the index along axis 3 (of the first neighbour), e5 the
 * value of expression 5, e5[j] where it differs from neighbour to neighbour, p2 a parameter. */
#ifndef CUDA_EXPRESSIONS_H
#define CUDA_EXPRESSIONS_H

#include "backend_cuda/backend.h"

typedef struct {
    cuda_writer *writer;
    const kl_loop *loop;
    int n_outer, V;
    bool *uniform;                /* by expression: the same all along a row */
    bool *lanes;                  /* by expression: differs between neighbours */
    bool *written_down;           /* by expression: in the text where it can be seen from here */
    int *param;                   /* by expression, then by output: of its view; of KL_INDEX and KL_RANDOM the offset */
    int *site;                    /* by expression: of KL_RANDOM */
    bool *vector;                 /* by expression, then by output: V neighbours are one access */
    bool *random_run;             /* by expression: four neighbours are one block of Philox */
    bool *kept;                   /* by expression: a load of which the thread keeps what it has read of its row, in shared memory: k5[], of so many iterations as have room */
    bool *filled;                 /* by expression: of those, the text has read it */
    bool *held;                   /* by expression: a load that was read ahead, into registers: h5[], as it is in memory */
    const char *held_at;          /* at "it" or "b" of h5 */
    bool *unrounded;              /* by expression: of bf16, not rounded yet, for whoever stores it rounds */
    const char *index_type;       /* "int", or "rax_i64" where that could overflow */
} cuda_expressions;

/* loop's axes: the first n_outer are fixed for a row. Declares the parameters. */
cuda_expressions *cuda_expressions_plan(cuda_writer *w, const kl_loop *loop, int n_outer, int V);
/* Whether the place is a multiple of so many elements from the beginning of its memory, in all iterations. */
bool cuda_is_aligned(const kl_program *program, int buffer, int64_t offset, int of);
/* Whether V neighbours of the view are one aligned access. */
bool cuda_view_is_vector(const kl_program *program, const kl_loop *loop, const kl_view *view, int V);
/* Writes what expr needs and is not written down yet, and expr itself, at this indentation. */
void cuda_write_expression(cuda_expressions *x, base_text *text, const char *indent, int expr);
/* Whether V neighbours of an expression are a load whose place is known at the beginning of a row. */
bool cuda_can_hold(const cuda_expressions *x, int expr);
/* Declares h5[n], and reads this place's; declares k5, so many bytes a thread and iteration behind the beginning. */
void cuda_write_held(const cuda_expressions *x, base_text *text, const char *indent, int expr, const char *n);
void cuda_write_ahead(const cuda_expressions *x, base_text *text, const char *indent, int expr);
void cuda_write_kept(const cuda_expressions *x, base_text *text, int expr, size_t offset);
/* m, where expression i is exp(x - m) and m is the maximum of x along the row; or -1. */
int cuda_exp_below(const kl_loop *loop, int expr);
/* Forgets what was written for a place; what is uniform stays. */
void cuda_forget_place(cuda_expressions *x);
/* "e5" or "e5[j]". Good until the fourth call after it. */
const char *cuda_operand(const cuda_expressions *x, int expr);
/* Stores the output's value, whose expression is written down. once: for the row, not for V neighbours. */
void cuda_write_store(cuda_expressions *x, base_text *text, const char *indent, int output, bool once);
/* "x0 * 768 + x1 + j": the place of a view; j: along neighbours too. */
void cuda_write_place(const cuda_expressions *x, base_text *text, const kl_view *view, bool j, const char *type);
void cuda_write_random(cuda_expressions *x, base_text *text, const char *indent, int expr);          /* random.c */

const char *cuda_memory_type(ir_dtype dtype);
const char *cuda_register_type(ir_dtype dtype);
const char *cuda_suffix(ir_dtype dtype);                    /* of functions in common.cu: bf16 is computed as f32 */
#endif
