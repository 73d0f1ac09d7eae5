/* The code of a kernel's expressions, at a place of its index space. Loops stand on it, and what is fused into products.
 *
 * A kernel's axes are cut in two: those of a unit (a row, or a strip of rows), fixed while the unit is worked on, and those inside it.
 * Along one axis, the vector axis, neighbours are lanes. An expression's depth says how often it must be computed: once a
 * task, once a unit, or at every place; its code goes to the entry of the function, to the unit's beginning, or to the body, whenever it is first
 * asked for. So evaluation is lazy and nothing is computed twice.
 *
 * Values in registers: f32, f64 and i32 as they are; bf16 as the f32 that it is equal to; bool as i1. A value that is the same
 * for all lanes is a scalar until it meets a vector.
 *
 * Extents, strides, offsets, sites and most constants are arguments of the code, so that kernels of equal form share it. What the form
 * is, cpu_expressions_key writes down. */
#ifndef CPU_EXPRESSIONS_H
#define CPU_EXPRESSIONS_H

#include <llvm-c/Core.h>

#include "backend_cpu/backend.h"
#include "backend_cpu/vector_math.h"

/* -- expressions_plan.c: no LLVM --------------------------------------------------------------------------------------- */

typedef enum { CPU_DEPTH_TASK, CPU_DEPTH_UNIT, CPU_DEPTH_BODY } cpu_depth;
typedef enum { CPU_LANES_ONE_PLACE, CPU_LANES_SIDE_BY_SIDE, CPU_LANES_APART } cpu_lane_stride;     /* 0, 1, any other */

/* Strides along all axes but the vector's: views with equal ones share the arithmetic. Zero strides are no arguments. */
typedef struct { int64_t stride[KL_MAX_AXES]; int arg[KL_MAX_AXES]; } cpu_stride_set;

/* Indices into the arguments; -1 where there is none. */
typedef struct {
    bool used;
    int set;                      /* -1: all zero */
    cpu_lane_stride lanes;
    int lane_arg;                 /* the stride, of CPU_LANES_APART */
    int at;                       /* a view's buffer and offset; of KL_INDEX and KL_RANDOM the offset alone */
    int dynamic;                  /* the first dynamic term's stride; its limit and the other terms follow */
} cpu_view_plan;

typedef struct {
    kl_loop loop;                 /* its axes may be in another order than the kernel's */
    bool of_product;              /* an epilogue: KL_PRODUCT is among the expressions */
    int n_unit_axes, vector_axis; /* the vector axis is the last axis, or the last of the unit's */
    int arg_base;                 /* where this function's arguments begin; all indices count from there */
    int n_sets, cap_sets;
    cpu_stride_set *sets;
    cpu_view_plan *views;         /* by expression; then by output */
    int *value_arg;               /* by expression: of KL_VALUE, or -1 where the code has it; of KL_RANDOM the site */
    cpu_depth *depth;             /* by expression */
    bool *varies;                 /* by expression: from lane to lane */
} cpu_expressions;

cpu_expressions *cpu_expressions_plan(cpu_compiler *compiler, cpu_plan *plan, const kl_loop *loop, int n_unit_axes, int vector_axis, int arg_base);
/* All that the code depends on beside what the caller makes of it. */
void cpu_expressions_key(base_text *key, const cpu_expressions *x);
/* What one vector of this expression alone costs, its operands being there: about in cycles. */
double cpu_expression_cost(const cpu_expressions *x, int expr);
double cpu_rounded(ir_dtype dtype, double value);                                   /* a constant as the dtype has it */

/* -- expressions.c ----------------------------------------------------------------------------------------------------- */

typedef struct { LLVMValueRef value, splat, bits; } cpu_value;       /* splat, bits (of bf16, i16): the same otherwise, or NULL */

typedef struct {
    const cpu_expressions *plan;
    cpu_vector_env entry, unit, body;                 /* the three places: builders of their own */
    LLVMValueRef args, buffers;
    LLVMValueRef *arg;                                /* those loaded so far */
    LLVMValueRef index[KL_MAX_AXES];                  /* i64; along the vector axis, of lane 0 */
    LLVMValueRef mask, last_lane;                     /* lanes that exist, and the last of them, an i64; NULL where all do */
    cpu_value *values;                                /* by expression; who emits a loop sets those of KL_REDUCE and KL_PRODUCT */
    LLVMValueRef *unit_at;                            /* by view: pointer (or offset) at the unit's place */
    LLVMValueRef *unit_offset, *body_offset;          /* by stride set */
} cpu_emitter;

/* Builders of entry, unit and body are the caller's; arg_count as planned. */
void cpu_emitter_init(cpu_emitter *e, const cpu_expressions *plan, int arg_count, base_arena *scratch);
/* Everything computed for a body is forgotten: a new place begins. */
void cpu_emitter_next_place(cpu_emitter *e);
LLVMValueRef cpu_emit_arg(cpu_emitter *e, int arg);                                /* an i64 */
cpu_value cpu_eval(cpu_emitter *e, int expr);
LLVMValueRef cpu_eval_vector(cpu_emitter *e, int expr);                            /* splat where need be */
/* Stores value, of the output's dtype, at the place. unit: once a unit, at its builder. */
void cpu_emit_store(cpu_emitter *e, int output, bool unit);
/* A pointer to element 0 of the view at arguments at, at+1. */
LLVMValueRef cpu_emit_base(cpu_emitter *e, int at);
/* The element number, an i64 scalar, of KL_RANDOM expression expr at the beginning of the unit (inner indices 0). */
LLVMValueRef cpu_emit_unit_element(cpu_emitter *e, int expr);

LLVMTypeRef cpu_memory_type(LLVMContextRef llvm, ir_dtype dtype);
LLVMTypeRef cpu_register_type(LLVMContextRef llvm, ir_dtype dtype);
/* Between memory's form and registers'. */
LLVMValueRef cpu_from_memory(const cpu_vector_env *env, ir_dtype dtype, LLVMValueRef x);
LLVMValueRef cpu_to_memory(const cpu_vector_env *env, ir_dtype dtype, LLVMValueRef x);
LLVMValueRef cpu_round_bf16(const cpu_vector_env *env, LLVMValueRef x);            /* f32, to the nearest that is a bf16 */
LLVMValueRef cpu_emit_max(const cpu_vector_env *env, LLVMValueRef x, LLVMValueRef y);    /* NaN if either is; of i32 signed */
LLVMValueRef cpu_lane_numbers(const cpu_vector_env *env, LLVMTypeRef integer);     /* 0, 1, 2 ... */

/* -- random.c ---------------------------------------------------------------------------------------------------------- */

/* The word of elements (i64, vector or scalar): each lane computes its block. */
LLVMValueRef cpu_emit_random_at(const cpu_vector_env *env, LLVMValueRef element, LLVMValueRef key[2], LLVMValueRef site, LLVMValueRef step);
/* Words of 4*lanes elements from 4*block on, in order: four vectors. block is an i64 scalar. */
void cpu_emit_random_run(const cpu_vector_env *env, LLVMValueRef block, LLVMValueRef key[2], LLVMValueRef site, LLVMValueRef step, LLVMValueRef words[4]);

#endif
