/* What loops.c decides about a loop, for loop_emit.c to write down in LLVM. Between these two files.
 *
 * A loop's index space is walked in units. Its lanes lie along one axis:
 *
 *   along a row       lanes run along the last inner axis; a unit is a row
 *   across rows       lanes are neighbouring rows, along the last outer axis; a unit is a strip of rows. For inner axes that are
 *                     short, or whose elements lie apart
 *
 * A unit is gone through once for each level of reductions: level 0 reads memory and makes the reductions that need nothing
 * else, level 1 those that need these, and the last one makes the outputs. What is dear and needed again is kept
 * in scratch. A task is a block of units, and where there are no reductions a segment of columns. */
#ifndef CPU_LOOPS_H
#define CPU_LOOPS_H

#include "backend_cpu/expressions.h"

enum { CPU_LOOP_PARTIALS = 16 };

typedef struct {
    cpu_expressions *x;
    bool across_rows;
    int lanes;
    int n_levels;                 /* the last makes the outputs */
    int *level;                   /* by expression: how many reductions deep */
    int *first;                   /* by expression: the level that computes it, of those in the body; -1: none */
    bool *kept;                   /* by expression: from the level that computes it for later ones */
    int *keep_arg, *run_arg;      /* by expression: offset in scratch in bytes, of what is kept, of a run of random words; -1: none */
    bool *row_output;             /* by output: once a row */
    int *unroll;                  /* by level */
    int *partial_arg;             /* by output: workspace of a sum; -1 of others */
    int units_arg, units_per_task_arg, segments_arg, segment_arg, inner_arg;
    int extent_arg[KL_MAX_AXES];  /* of the last outer axis across rows: the number of strips, and strip_rows_arg the axis */
    int strip_rows_arg;
    int n_args;
} cpu_loop_code;

cpu_emit cpu_emit_loop;           /* context: a cpu_loop_code */

#endif
