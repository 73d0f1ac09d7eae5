/* What loops.c decides about a loop, for loop_emit.c to write down. Between these two files.
 *
 * A block has a range of rows and, where rows need not be whole, a segment of columns. A row is worked on by a group of threads:
 *
 *     1          the thread itself: rows that are short, or whose neighbours lie along the rows
 *     32         a warp; or, where neighbours lie along rows that are too few for a thread each, every eighth thread of a block, so that eight rows are read side by side
 *     a block    long rows
 *
 * Each thread takes V neighbouring columns at a time, the group the next ones beside it: it goes along the row in `iterations`. A loop without
 * reductions is one row of all its elements, cut into segments. */
#ifndef CUDA_LOOPS_H
#define CUDA_LOOPS_H

#include "backend_cuda/expressions.h"

typedef struct {
    kl_loop loop;
    cuda_expressions *x;
    bool listed;                           /* one of many: see writer.c */
    bool launched;
    int widest;                            /* of V */
    int threads, group, V;
    bool across;                           /* a group is every GROUPS-th thread of the block; its rows are as many as the groups', in every block */
    int64_t rows, columns;
    int64_t segment, segments;             /* columns of a block; blocks side by side along a row */
    int64_t rows_per_block, row_blocks;
    int64_t iterations, blocks;
    bool iterations_are_code;              /* in the text: the extent of an array, or the same for loops of any extents */
    int n_levels;
    int *level;                            /* by expression: how many reductions deep; -1: nobody needs it */
    int *most;                             /* by expression: of a sum of exp(x - m) that is made beside m, the maximum of x: m; else -1 */
    bool *once;                            /* by output: stored once a row */
    bool *by_row;                          /* by output: stored or summed once a row, so that rows stay whole */
    bool in_registers;                     /* sums over rows; else in their place in workspace */
    bool **reads;                          /* by pass, by expression: a pass needs it along the row; passes are the levels' reductions, and last the outputs */
    bool unrolled;                         /* what the passes read of a row is in registers, read ahead */
    int row_batch;                         /* where not 0: of so many rows, that is, before the next such */
    int *batch;                            /* by pass, where not: of so many places it reads before it computes */
    int64_t kept_iterations;               /* where not 0: what several passes read of a row is kept in shared memory, of so many iterations */
    size_t shared_bytes;
    int *partial;                          /* by output: the parameter where a block's sum goes */
    int64_t *offset;                       /* by output: where that is in workspace */
} cuda_loop;

/* Whether a pass reads expression i for a batch of places at once. */
bool cuda_is_read_ahead(const cuda_loop *l, int pass, int i);
void cuda_write_loop(cuda_loop *l, base_text *body);        /* loop_emit.c */

#endif
