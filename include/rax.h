/* rax.h: RAX, a tracing just-in-time compiler for tensor programs. The whole public interface.
 *
 * A program is a C function that takes its arguments from rax_args, calls rax ops on tensors, and returns its results through
 * rax_results. rax_function makes of it something that can be called. The first call records the ops (a trace), checks types
 * and shapes, differentiates, fuses, plans memory and compiles; later calls run the compiled step. Nothing in the function
 * says so.
 *
 *   errors and memory       settings       tensors       trees       records
 *   functions and calls     arguments and results, inside a step
 *   ops: elementwise, reductions, products, movement, indexing, random, control, composites
 *   gradients               what a function did      where time goes      reading graphs
 *
 * Threads: one thread at a time may be inside a rax_fn; the runtime uses threads of its own.
 */
#ifndef RAX_H
#define RAX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

#define RAX_VERSION "0.1.0"

/* == errors and memory ================================================================================================= */

/* What went wrong is a value: functions that can fail return false or NULL and leave a message with the thread. A mistake is
 * the user's (a wrong key, a shape that does not fit), a failure the machine's (memory, a file, a driver). The numbers are
 * also the exit statuses of a program that ends because of one. */
typedef enum { RAX_FAILURE = 1, RAX_MISTAKE = 2 } rax_error_kind;

/* The thread's last error: one line (a shape error has a hint in a second), "" where there is none. Belongs to rax; valid
 * until the next error. */
const char *rax_error(void);
rax_error_kind rax_error_kind_of(void);
void rax_error_clear(void);

/* Sets the thread's error as printf would and returns false: `return rax_fail(RAX_MISTAKE, "%s: ...", path);` Control characters
 * are shown as '?', so that what an argument quotes cannot break the line; a line's end only where the format has one. */
bool rax_fail(rax_error_kind kind, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Zeroed memory, 64-byte aligned, from rax's one allocator; to be freed with rax_free. rax_alloc ends the process with one
 * line and status 1 where the machine refuses; rax_try_alloc, for what may be large, returns NULL. */
void *rax_alloc(size_t bytes);
void *rax_try_alloc(size_t bytes);
void rax_free(void *memory);

/* Where a call stands in the user's source; public ops add it themselves. */
typedef struct { const char *file; int line; } rax_place;
#define RAX_HERE ((rax_place){__FILE__, __LINE__})

/* == settings ========================================================================================================== */

/* What holds for the whole process. {0} are the defaults; text is copied. Where the program does not say otherwise, the environment
 * does: RAX_NO_JIT, RAX_NUM_THREADS, RAX_ISA, RAX_TF32, RAX_CACHE_DIR. */
typedef struct {
    bool no_jit;              /* run every function by the interpreter */
    int verbose;              /* to standard error: 0 a line a compiled function; 1 the compile trace; 2 every kernel; 3 why */
    int threads;              /* 0: all that the process may use */
    const char *isa;          /* "generic", "avx2", "avx512", "avx512bf16", "amx"; NULL: the CPU's own */
    bool tf32;                /* round the operands of products in f32 to ten bits, for tensor cores (cuda) */
    const char *device;       /* "cpu", "cuda"; NULL: cpu. Tensors lie in its memory: to be chosen before the first is made */
    const char *cache_dir;    /* compiled objects; NULL: $XDG_CACHE_HOME/rax or ~/.cache/rax; "": no cache on disk */
    const char *dump_dir;     /* where graphs after each pass, kernels, LLVM IR and assembly are written; NULL: nowhere */
    bool quiet;               /* not even the line a compiled function */
    bool profile;             /* time every kernel: rax_profile_of */
    int trace_runs;           /* with profile: keep the events of so many runs of each program */
    bool tune;                /* time the algorithms that there are for each product, and keep the fastest in cache_dir for all later runs (cuda) */
} rax_settings;

/* To be called before the first rax_call; NULL is {0}. Fails on an ISA that is unknown or that the CPU lacks. */
bool rax_configure(const rax_settings *settings);

/* The machine as rax sees it, for people: CPU, ISA, caches, threads, memory, LLVM, BLAS and its kernel, cache folder. */
void rax_print_info(FILE *out);

/* CPUs that this process may use, by affinity and by the quota of its cgroups: at least 1. */
int rax_usable_cpus(void);

/* How products are computed, where that is a choice: "tf32", and a digest of what tuning has chosen, now or before. Results depend on it. "": no choice. */
const char *rax_tuned(void);

/* Ends the runtime's threads and frees what the process keeps. Functions, trees and tensors must be freed before. */
void rax_shutdown(void);

/* == tensors =========================================================================================================== */

typedef enum { RAX_F32, RAX_F64, RAX_BF16, RAX_I32, RAX_BOOL } rax_dtype;         /* a bool is a byte, 0 or 1 */
enum { RAX_MAX_RANK = 8 };

typedef struct { int rank; int64_t dim[RAX_MAX_RANK]; } rax_shape;
/* RAX_SHAPE(8, 64): f32[8,64]'s shape. Of a scalar: RAX_SCALAR. */
#define RAX_SHAPE(...) ((rax_shape){ (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), { __VA_ARGS__ } })
#define RAX_SCALAR ((rax_shape){ 0 })

/* A handle: an array in memory, or, inside a step, a value of the trace. Copying it copies no data. A handle whose memory a
 * call has taken over (see donation) is out of date, and using it is an error that names the line of that call. */
typedef struct { struct rax_tensor_body *at; uint32_t generation; } rax_tensor;
#define RAX_NO_TENSOR ((rax_tensor){ 0 })
static inline bool rax_is_tensor(rax_tensor tensor) { return tensor.at != NULL; }

/* Arrays in memory, row-major. They belong to the caller until rax_tensor_free, or until a tree takes them.
 * RAX_NO_TENSOR where memory is refused or the shape is wrong. */
rax_tensor rax_tensor_new(rax_dtype dtype, rax_shape shape);                          /* zeros */
rax_tensor rax_tensor_from(rax_dtype dtype, rax_shape shape, const void *elements);  /* a copy of elements */
void rax_tensor_free(rax_tensor tensor);
/* The elements of an array, in row-major order, to read and to write; NULL (and an error) inside a step. With a device that has memory of
 * its own this is a copy, which the next rax_call takes back: ask again after it. rax_read: to read alone, so that nothing is copied back. */
void *rax_data(rax_tensor tensor);
const void *rax_read(rax_tensor tensor);
/* As rax_data, for who is about to write every element: a device's elements are not waited for and not fetched. */
void *rax_overwrite(rax_tensor tensor);
double rax_item(rax_tensor tensor, int64_t index);                                   /* element index, row-major, of an array */

/* Of arrays, and inside a step: shapes are known while tracing, and a step may use them as C values. */
rax_dtype rax_dtype_of(rax_tensor tensor);
rax_shape rax_shape_of(rax_tensor tensor);
int rax_rank(rax_tensor tensor);
int64_t rax_dim(rax_tensor tensor, int axis);    /* axis -1 is the last */
int64_t rax_count(rax_tensor tensor);            /* elements */
const char *rax_dtype_name(rax_dtype dtype);     /* "f32" */
size_t rax_dtype_bytes(rax_dtype dtype);

/* == trees ============================================================================================================= */

/* An ordered list of named tensors. Names may have dots ("h.0.attn.weight"); a name occurs once. */
typedef struct { struct rax_tree_body *at; uint32_t generation; } rax_tree;
#define RAX_NO_TREE ((rax_tree){ 0 })
static inline bool rax_is_tree(rax_tree tree) { return tree.at != NULL; }

rax_tree rax_tree_new(void);
void rax_tree_free(rax_tree tree);                                                    /* and its tensors */
/* Adds a leaf; the tree takes the tensor. The name is made as printf would. False where the name is there already, or the tensor
 * is none (RAX_NO_TENSOR of a refused rax_tensor_new: its error stays); then the tensor stays the caller's. */
bool rax_tree_add(rax_tree tree, rax_tensor tensor, const char *name, ...) __attribute__((format(printf, 3, 4)));
int rax_tree_size(rax_tree tree);
rax_tensor rax_leaf(rax_tree tree, int index);
const char *rax_leaf_name(rax_tree tree, int index);
/* The leaf of a name, made as printf would: rax_get(params, "h.%d.weight", i). An error where there is none; inside a step the
 * step's first error. rax_has asks without an error. */
#define rax_get(tree, ...) rax_get_at(RAX_HERE, tree, __VA_ARGS__)
rax_tensor rax_get_at(rax_place place, rax_tree tree, const char *name, ...) __attribute__((format(printf, 3, 4)));
bool rax_has(rax_tree tree, const char *name, ...) __attribute__((format(printf, 2, 3)));
/* A tree with the same names. Outside a step: arrays of zeros of the same types. Inside: leaves that must be set before the
 * tree is returned. The trace owns what is made inside a step. */
rax_tree rax_tree_like(rax_tree tree);
#define rax_set_leaf(tree, index, tensor) rax_set_leaf_at(RAX_HERE, tree, index, tensor)   /* inside a step */
void rax_set_leaf_at(rax_place place, rax_tree tree, int index, rax_tensor tensor);

/* == records =========================================================================================================== */

/* A C struct with a table of its fields, so that rax can compare and name them. */
typedef enum { RAX_FIELD_INT, RAX_FIELD_INT64, RAX_FIELD_FLOAT, RAX_FIELD_DOUBLE, RAX_FIELD_BOOL, RAX_FIELD_TEXT } rax_field_type;
typedef struct { const char *name; rax_field_type type; size_t offset; } rax_field;   /* TEXT: a const char *, compared as text */
typedef struct { const char *name; int n_fields; const rax_field *fields; size_t bytes; } rax_record_type;
#define RAX_FIELD(record, field, kind) { #field, RAX_FIELD_##kind, offsetof(record, field) }
/* static const rax_field fields[] = { RAX_FIELD(mlp_config, hidden, INT), ... };
 * static const rax_record_type mlp_record = RAX_RECORD(mlp_config, fields); */
#define RAX_RECORD(record, fields) { #record, (int)(sizeof(fields) / sizeof((fields)[0])), (fields), sizeof(record) }

/* == functions and calls =============================================================================================== */

typedef struct rax_args rax_args;
typedef struct rax_results rax_results;
typedef struct rax_fn rax_fn;
typedef void rax_step(rax_args *in, rax_results *out);

/* Makes a callable of a step. name is for messages. A step is called whenever it has to be traced, which may be several times for
 * one compilation: what it does must follow from its arguments. The signature lists the arguments in order:
 *
 *   "params: tree, x: f32[B,T], y: i32[B], scale: f32[], step: i32, config: record"
 *
 *   tree              a rax_tree; tree{wte: f32[V,C], ...} also states the types of some leaves
 *   f32[B,T], i32[8]  a tensor; a dim is a number, a name, or _ for any. Equal names must be equal dims over all arguments
 *   f32[...]          a tensor of any shape; f32[...,C] of any that ends so
 *   i32 f32 f64 bool  a scalar, passed by value
 *   record            a record
 *
 * NULL on a mistake in the signature. */
rax_fn *rax_function(rax_step *step, const char *name, const char *signature);
void rax_function_free(rax_fn *fn);               /* compiled programs with it; NULL is fine */

/* What is passed. */
typedef enum { RAX_PASS_TREE, RAX_PASS_TENSOR, RAX_PASS_NUMBER, RAX_PASS_RECORD } rax_pass_kind;
typedef struct {
    rax_pass_kind kind;
    rax_tree tree;
    rax_tensor tensor;
    double number;
    const void *record;
    const rax_record_type *record_type;
} rax_value;
static inline rax_value rax_pass_tree(rax_tree tree) { return (rax_value){ .kind = RAX_PASS_TREE, .tree = tree }; }
static inline rax_value rax_pass_tensor(rax_tensor tensor) { return (rax_value){ .kind = RAX_PASS_TENSOR, .tensor = tensor }; }
static inline rax_value rax_pass_number(double number) { return (rax_value){ .kind = RAX_PASS_NUMBER, .number = number }; }
static inline rax_value rax_pass_record(const void *record, const rax_record_type *type)
{
    return (rax_value){ .kind = RAX_PASS_RECORD, .record = record, .record_type = type };
}

/* Where a result goes: *tree or *tensor. If that is empty (RAX_NO_TREE), something new is made, which belongs to the caller.
 * If it was passed as an argument of the same call, its memory is donated: the result takes it over in place, the handle
 * there is renewed, and all other copies of the old handle are out of date. Otherwise it is overwritten, and must fit. */
typedef struct { rax_tree *tree; rax_tensor *tensor; } rax_into;
static inline rax_into rax_into_tree(rax_tree *tree) { return (rax_into){ tree, NULL }; }
static inline rax_into rax_into_tensor(rax_tensor *tensor) { return (rax_into){ NULL, tensor }; }

/* Calls fn with arrays of rax_value and rax_into (arrays, not pointers: their lengths are taken). False on an error: a shape
 * that does not fit the signature or an op, a leaf that was donated before, memory; nothing is changed then. */
#define rax_call(fn, args, results) \
    rax_call_at(RAX_HERE, fn, (int)(sizeof(args) / sizeof((args)[0])), args, (int)(sizeof(results) / sizeof((results)[0])), results)
bool rax_call_at(rax_place place, rax_fn *fn, int n_args, const rax_value *args, int n_results, const rax_into *results);
/* Until all that was called is done. A device works on its own: a call returns when its results can be passed on, and whoever reads them waits.
 * False where one of them has failed. */
bool rax_wait(void);

/* == inside a step: arguments and results ============================================================================== */

#define rax_arg_tree(in, index) rax_arg_tree_at(RAX_HERE, in, index)
rax_tree rax_arg_tree_at(rax_place place, rax_args *in, int index);
/* A tensor, or a scalar as a tensor of rank 0, which is dynamic: its changes cost nothing. */
#define rax_arg_tensor(in, index) rax_arg_tensor_at(RAX_HERE, in, index)
rax_tensor rax_arg_tensor_at(rax_place place, rax_args *in, int index);
/* A scalar as a C value: it is static, and another value is another compilation. */
#define rax_arg_number(in, index) rax_arg_number_at(RAX_HERE, in, index)
double rax_arg_number_at(rax_place place, rax_args *in, int index);
/* A record as a C struct, whose fields may decide loops and shapes: they are static. Belongs to the trace. Traces that find out
 * what a step depends on see it with other values in floats and bools that are taken as tensors as well (rax_arg_field). */
#define rax_arg_record(in, index) rax_arg_record_at(RAX_HERE, in, index)
const void *rax_arg_record_at(rax_place place, rax_args *in, int index);
/* A field of a record as a tensor of rank 0 (f32; i32 for whole numbers, bool). It is taken as a constant while it stays
 * the same over calls; once it has varied, the step is traced again with the field dynamic. */
#define rax_arg_field(in, index, field) rax_arg_field_at(RAX_HERE, in, index, field)
rax_tensor rax_arg_field_at(rax_place place, rax_args *in, int index, const char *field);

#define rax_return_tree(out, index, tree) rax_return_tree_at(RAX_HERE, out, index, tree)
#define rax_return_tensor(out, index, tensor) rax_return_tensor_at(RAX_HERE, out, index, tensor)
void rax_return_tree_at(rax_place place, rax_results *out, int index, rax_tree tree);
void rax_return_tensor_at(rax_place place, rax_results *out, int index, rax_tensor tensor);

/* == ops =============================================================================================================== */

/* Inside a step only. The result belongs to the trace. Binary ops broadcast as NumPy does: shapes are aligned at their last
 * axes, and an axis of 1 or none repeats. Both operands have one dtype. axis may be negative: -1 is the last. An error (shapes
 * or dtypes that do not fit) is kept by the trace: the result is poisoned, what touches it stays silent, and the call
 * returns the message, which names op, shapes, axis, and the line that called. */

typedef struct { int n; int axis[RAX_MAX_RANK]; } rax_axes;
#define RAX_AXES(...) ((rax_axes){ (int)(sizeof((int[]){__VA_ARGS__}) / sizeof(int)), { __VA_ARGS__ } })
#define RAX_ALL_AXES ((rax_axes){ -1 })

/* -- constants -------------------------------------------------------------------------------------------------------- */

#define rax_constant(dtype, shape, value) rax_constant_at(RAX_HERE, dtype, shape, value)          /* every element is value */
#define rax_literal(dtype, shape, elements) rax_literal_at(RAX_HERE, dtype, shape, elements)       /* copied, row-major */
#define rax_iota(dtype, shape, axis) rax_iota_at(RAX_HERE, dtype, shape, axis)                     /* the index on axis */
rax_tensor rax_constant_at(rax_place place, rax_dtype dtype, rax_shape shape, double value);
rax_tensor rax_literal_at(rax_place place, rax_dtype dtype, rax_shape shape, const void *elements);
rax_tensor rax_iota_at(rax_place place, rax_dtype dtype, rax_shape shape, int axis);

/* -- elementwise ------------------------------------------------------------------------------------------------------ */

/* Numbers: f32, f64, bf16 and, for neg abs sign, i32. */
#define rax_neg(x) rax_unary_at(RAX_HERE, "neg", x)
#define rax_abs(x) rax_unary_at(RAX_HERE, "abs", x)                   /* gradient 0 at 0 */
#define rax_sign(x) rax_unary_at(RAX_HERE, "sign", x)                 /* -1, 0, 1; no gradient */
#define rax_floor(x) rax_unary_at(RAX_HERE, "floor", x)               /* no gradient */
#define rax_exp(x) rax_unary_at(RAX_HERE, "exp", x)
#define rax_log(x) rax_unary_at(RAX_HERE, "log", x)
#define rax_sqrt(x) rax_unary_at(RAX_HERE, "sqrt", x)
#define rax_rsqrt(x) rax_unary_at(RAX_HERE, "rsqrt", x)               /* 1 / sqrt x */
#define rax_tanh(x) rax_unary_at(RAX_HERE, "tanh", x)
#define rax_sigmoid(x) rax_unary_at(RAX_HERE, "sigmoid", x)
#define rax_sin(x) rax_unary_at(RAX_HERE, "sin", x)
#define rax_cos(x) rax_unary_at(RAX_HERE, "cos", x)
#define rax_erf(x) rax_unary_at(RAX_HERE, "erf", x)
#define rax_erf_inv(x) rax_unary_at(RAX_HERE, "erf_inv", x)
#define rax_not(x) rax_unary_at(RAX_HERE, "not", x)                   /* bool */
rax_tensor rax_unary_at(rax_place place, const char *op, rax_tensor x);

#define rax_add(lhs, rhs) rax_binary_at(RAX_HERE, "add", lhs, rhs)
#define rax_sub(lhs, rhs) rax_binary_at(RAX_HERE, "sub", lhs, rhs)
#define rax_mul(lhs, rhs) rax_binary_at(RAX_HERE, "mul", lhs, rhs)
#define rax_div(lhs, rhs) rax_binary_at(RAX_HERE, "div", lhs, rhs)    /* i32: truncates, x / 0 is 0 */
#define rax_rem(lhs, rhs) rax_binary_at(RAX_HERE, "rem", lhs, rhs)    /* sign of lhs; no gradient */
#define rax_pow(lhs, rhs) rax_binary_at(RAX_HERE, "pow", lhs, rhs)
#define rax_max(lhs, rhs) rax_binary_at(RAX_HERE, "max", lhs, rhs)    /* ties share the gradient */
#define rax_min(lhs, rhs) rax_binary_at(RAX_HERE, "min", lhs, rhs)
#define rax_and(lhs, rhs) rax_binary_at(RAX_HERE, "and", lhs, rhs)    /* bool */
#define rax_or(lhs, rhs) rax_binary_at(RAX_HERE, "or", lhs, rhs)
#define rax_eq(lhs, rhs) rax_binary_at(RAX_HERE, "eq", lhs, rhs)      /* comparisons give bool */
#define rax_ne(lhs, rhs) rax_binary_at(RAX_HERE, "ne", lhs, rhs)
#define rax_lt(lhs, rhs) rax_binary_at(RAX_HERE, "lt", lhs, rhs)
#define rax_le(lhs, rhs) rax_binary_at(RAX_HERE, "le", lhs, rhs)
#define rax_gt(lhs, rhs) rax_binary_at(RAX_HERE, "gt", lhs, rhs)
#define rax_ge(lhs, rhs) rax_binary_at(RAX_HERE, "ge", lhs, rhs)
rax_tensor rax_binary_at(rax_place place, const char *op, rax_tensor lhs, rax_tensor rhs);

#define rax_scale(x, factor) rax_scale_at(RAX_HERE, x, factor)        /* x * a C number */
#define rax_shift(x, addend) rax_shift_at(RAX_HERE, x, addend)        /* x + a C number */
rax_tensor rax_scale_at(rax_place place, rax_tensor x, double factor);
rax_tensor rax_shift_at(rax_place place, rax_tensor x, double addend);

#define rax_select(condition, yes, no) rax_select_at(RAX_HERE, condition, yes, no)    /* broadcasts all three */
rax_tensor rax_select_at(rax_place place, rax_tensor condition, rax_tensor yes, rax_tensor no);

/* To another dtype: to i32 truncates and saturates, NaN gives 0; to bf16 rounds to nearest even; to bool is x != 0. */
#define rax_cast(x, dtype) rax_cast_at(RAX_HERE, x, dtype)
rax_tensor rax_cast_at(rax_place place, rax_tensor x, rax_dtype dtype);

/* -- reductions ------------------------------------------------------------------------------------------------------- */

/* Over the axes given (RAX_ALL_AXES: to a scalar), which go, or with keep stay as 1. The order of a sum is fixed by the shape. */
#define rax_sum(x, axes) rax_reduce_at(RAX_HERE, "sum", x, axes, false)
#define rax_mean(x, axes) rax_reduce_at(RAX_HERE, "mean", x, axes, false)
#define rax_reduce_max(x, axes) rax_reduce_at(RAX_HERE, "max", x, axes, false)
#define rax_sum_keep(x, axes) rax_reduce_at(RAX_HERE, "sum", x, axes, true)
#define rax_mean_keep(x, axes) rax_reduce_at(RAX_HERE, "mean", x, axes, true)
#define rax_reduce_max_keep(x, axes) rax_reduce_at(RAX_HERE, "max", x, axes, true)
rax_tensor rax_reduce_at(rax_place place, const char *kind, rax_tensor x, rax_axes axes, bool keep);
#define rax_argmax(x, axis) rax_argmax_at(RAX_HERE, x, axis)          /* i32, the first of equals */
rax_tensor rax_argmax_at(rax_place place, rax_tensor x, int axis);

/* -- products --------------------------------------------------------------------------------------------------------- */

/* Product over the last axis of a and the last but one of b; leading axes broadcast.
 * a: D[...,M,K]  b: D[...,K,N]  result: D[...,M,N]; D f32, f64 or bf16. Sums in f32 (f64 for f64), k ascending, for any number
 * of threads. A transposed operand costs nothing. rax_matmul_f32: bf16 operands, f32 result.
 * Errors: K differs; dtypes differ; leading axes do not broadcast. */
#define rax_matmul(a, b) rax_matmul_at(RAX_HERE, a, b, false)
#define rax_matmul_f32(a, b) rax_matmul_at(RAX_HERE, a, b, true)
rax_tensor rax_matmul_at(rax_place place, rax_tensor a, rax_tensor b, bool result_f32);

/* -- movement --------------------------------------------------------------------------------------------------------- */

#define rax_reshape(x, shape) rax_reshape_at(RAX_HERE, x, shape)            /* one dim may be -1: the rest */
#define rax_transpose(x, ...) rax_transpose_at(RAX_HERE, x, RAX_AXES(__VA_ARGS__))   /* axis i of the result is axis argument i of x */
#define rax_swap(x, a, b) rax_swap_at(RAX_HERE, x, a, b)                    /* swaps two axes */
#define rax_broadcast(x, shape) rax_broadcast_at(RAX_HERE, x, shape)        /* as NumPy's broadcast_to */
#define rax_slice(x, axis, start, length) rax_slice_at(RAX_HERE, x, axis, start, length)
#define rax_pad(x, axis, before, after, value) rax_pad_at(RAX_HERE, x, axis, before, after, value)
#define rax_concatenate(n, xs, axis) rax_concatenate_at(RAX_HERE, n, xs, axis)
/* The part of `length` on axis that begins at start, an i32 scalar known only when the step runs; moved into range if need be. */
#define rax_dynamic_slice(x, axis, start, length) rax_dynamic_slice_at(RAX_HERE, x, axis, start, length)
/* base with update written over its part that begins at start on axis; update has base's dims on all other axes. */
#define rax_update_slice(base, update, axis, start) rax_update_slice_at(RAX_HERE, base, update, axis, start)
rax_tensor rax_reshape_at(rax_place place, rax_tensor x, rax_shape shape);
rax_tensor rax_transpose_at(rax_place place, rax_tensor x, rax_axes axes);
rax_tensor rax_swap_at(rax_place place, rax_tensor x, int a, int b);
rax_tensor rax_broadcast_at(rax_place place, rax_tensor x, rax_shape shape);
rax_tensor rax_slice_at(rax_place place, rax_tensor x, int axis, int64_t start, int64_t length);
rax_tensor rax_pad_at(rax_place place, rax_tensor x, int axis, int64_t before, int64_t after, double value);
rax_tensor rax_concatenate_at(rax_place place, int n, const rax_tensor *xs, int axis);
rax_tensor rax_dynamic_slice_at(rax_place place, rax_tensor x, int axis, rax_tensor start, int64_t length);
rax_tensor rax_update_slice_at(rax_place place, rax_tensor base, rax_tensor update, int axis, rax_tensor start);

/* -- indexing --------------------------------------------------------------------------------------------------------- */

/* axis of x is replaced by the axes of indices (i32); an index out of range is moved to the nearest in range. An embedding
 * is rax_gather(table, ids, 0). */
#define rax_gather(x, indices, axis) rax_gather_at(RAX_HERE, x, indices, axis)
/* base plus each slice of updates at its index on axis: the gradient of gather. Repeated indices add up in their order. */
#define rax_scatter_add(base, indices, updates, axis) rax_scatter_add_at(RAX_HERE, base, indices, updates, axis)
#define rax_one_hot(indices, depth, dtype) rax_one_hot_at(RAX_HERE, indices, depth, dtype)      /* a new last axis of depth */
rax_tensor rax_gather_at(rax_place place, rax_tensor x, rax_tensor indices, int axis);
rax_tensor rax_scatter_add_at(rax_place place, rax_tensor base, rax_tensor indices, rax_tensor updates, int axis);
rax_tensor rax_one_hot_at(rax_place place, rax_tensor indices, int64_t depth, rax_dtype dtype);

/* -- random ----------------------------------------------------------------------------------------------------------- */

/* Philox4x32-10 (Salmon et al., SC11): a value depends on seed, counter, the number of the op in its trace, and the
 * element's index alone. seed: i32[2], low word first. counter: i32[], to be different in each step or micro-batch. */
typedef struct { rax_tensor seed, counter; } rax_random;
#define rax_seed(seed) rax_seed_at(RAX_HERE, seed)                        /* a C number as i32[2] */
#define rax_uniform(random, shape) rax_random_at(RAX_HERE, "random_uniform", random, shape, 0)  /* f32 in [0,1) */
#define rax_normal(random, shape) rax_random_at(RAX_HERE, "random_normal", random, shape, 0)    /* f32, mean 0, variance 1 */
#define rax_bernoulli(random, shape, p_false) rax_random_at(RAX_HERE, "bernoulli", random, shape, p_false)   /* bool */
/* x / (1 - p) with probability 1 - p, else 0; x itself where p is 0. */
#define rax_dropout(random, x, p) rax_dropout_at(RAX_HERE, random, x, p)
/* Four of its words on the host, for numbers that a program draws beside its steps. The key is the seed, low word first. */
void rax_philox_words(uint64_t seed, const uint32_t counter[4], uint32_t word[4]);
rax_tensor rax_seed_at(rax_place place, uint64_t seed);
rax_tensor rax_random_at(rax_place place, const char *op, rax_random random, rax_shape shape, double p_false);
rax_tensor rax_dropout_at(rax_place place, rax_random random, rax_tensor x, double p);

/* -- control ---------------------------------------------------------------------------------------------------------- */

#define rax_stop_gradient(x) rax_unary_at(RAX_HERE, "stop_gradient", x)

/* A loop of `count` iterations inside the one program. body gets the carries and slice i of each xs (its axis 0, of dim
 * count, goes), and sets the next carries, of the same types, and a y each, which are stacked on a new axis 0. It may use tensors
 * of the step around it. carry: in, the first values; out, the last ones. Differentiable. */
typedef void rax_scan_body(void *context, const rax_tensor *carry, const rax_tensor *x, rax_tensor *next, rax_tensor *y);
#define rax_scan(body, context, count, n_carry, carry, n_xs, xs, n_ys, ys) \
    rax_scan_at(RAX_HERE, body, context, count, n_carry, carry, n_xs, xs, n_ys, ys)
void rax_scan_at(rax_place place, rax_scan_body *body, void *context, int64_t count, int n_carry, rax_tensor *carry,
                 int n_xs, const rax_tensor *xs, int n_ys, rax_tensor *ys);

/* y, with a gradient of the user's own: vjp gets the xs, y and the cotangent of y, and sets the cotangents of the xs, of their types.
 * Nothing flows through what y was made of. */
typedef void rax_vjp(void *context, const rax_tensor *xs, rax_tensor y, rax_tensor dy, rax_tensor *dxs);
#define rax_custom_gradient(y, n, xs, vjp, context) rax_custom_gradient_at(RAX_HERE, y, n, xs, vjp, context)
rax_tensor rax_custom_gradient_at(rax_place place, rax_tensor y, int n, const rax_tensor *xs, rax_vjp *vjp, void *context);

/* -- composites ------------------------------------------------------------------------------------------------------- */

#define rax_softmax(x, axis) rax_along_at(RAX_HERE, "softmax", x, axis)
#define rax_log_softmax(x, axis) rax_along_at(RAX_HERE, "log_softmax", x, axis)
rax_tensor rax_along_at(rax_place place, const char *op, rax_tensor x, int axis);
#define rax_gelu(x) rax_unary_at(RAX_HERE, "gelu", x)                 /* tanh form, arXiv:1606.08415 */
#define rax_silu(x) rax_unary_at(RAX_HERE, "silu", x)
/* Over the last axis; x: D[...,C], weight and bias: D[C]; bias may be RAX_NO_TENSOR. arXiv:1607.06450, arXiv:1910.07467 */
#define rax_layer_norm(x, weight, bias, epsilon) rax_layer_norm_at(RAX_HERE, x, weight, bias, epsilon)
#define rax_rms_norm(x, weight, epsilon) rax_rms_norm_at(RAX_HERE, x, weight, epsilon)
rax_tensor rax_layer_norm_at(rax_place place, rax_tensor x, rax_tensor weight, rax_tensor bias, double epsilon);
rax_tensor rax_rms_norm_at(rax_place place, rax_tensor x, rax_tensor weight, double epsilon);
/* logits: D[...,V], targets: i32[...]; result D[...]: logsumexp(logits) - logits[target]. */
#define rax_cross_entropy(logits, targets) rax_cross_entropy_at(RAX_HERE, logits, targets)
/* The same of logits = x weight^T, which are never stored as a whole: x: D[N,C], weight: D[V,C], targets: i32[N]; result f32[N]. */
#define rax_linear_cross_entropy(x, weight, targets) rax_linear_cross_entropy_at(RAX_HERE, x, weight, targets)
rax_tensor rax_cross_entropy_at(rax_place place, rax_tensor logits, rax_tensor targets);
rax_tensor rax_linear_cross_entropy_at(rax_place place, rax_tensor x, rax_tensor weight, rax_tensor targets);

/* softmax(scale q k^T) v by head; q: D[B,H,T,D'], k, v: D[B,H,S,D']; row i sees the keys up to i + S - T where causal. T×S is never
 * stored. With dropout > 0 on the attention weights, random must be set. scale 0: 1/sqrt(D'). arXiv:2205.14135 */
typedef struct { bool causal; double scale; double dropout; rax_random random; } rax_attention_options;
#define rax_attention(q, k, v, options) rax_attention_at(RAX_HERE, q, k, v, options)
rax_tensor rax_attention_at(rax_place place, rax_tensor q, rax_tensor k, rax_tensor v, rax_attention_options options);

/* One AdamW update (arXiv:1711.05101) of w with gradient g, in place of *w, *m, *v. Scalars are f32[]: lr, and the bias corrections
 * 1 - beta^t. Decay first: w (1 - lr decay). */
typedef struct { rax_tensor lr, correction1, correction2; double beta1, beta2, epsilon, weight_decay; } rax_adamw_options;
#define rax_adamw(w, m, v, g, options) rax_adamw_at(RAX_HERE, w, m, v, g, options)
void rax_adamw_at(rax_place place, rax_tensor *w, rax_tensor *m, rax_tensor *v, rax_tensor g, rax_adamw_options options);

/* == gradients ========================================================================================================= */

/* d loss / d each leaf, as a tree of the same names. loss: a scalar float. A leaf that the loss does not depend on gets zeros.
 * Gradients are part of the program like all else: they can be differentiated again. */
#define rax_grad(loss, tree) rax_grad_at(RAX_HERE, loss, tree)
rax_tree rax_grad_at(rax_place place, rax_tensor loss, rax_tree tree);
#define rax_grad_of(loss, n, xs, dxs) rax_grad_of_at(RAX_HERE, loss, n, xs, dxs)      /* of n tensors, into dxs */
void rax_grad_of_at(rax_place place, rax_tensor loss, int n, const rax_tensor *xs, rax_tensor *dxs);

/* == what a function did =============================================================================================== */

typedef struct {
    int64_t calls, traces, compilations, hits, misses;
    double trace_ms, compile_ms;          /* of all so far */
    double check_us;                      /* median over recent calls: entering the call to the first kernel */
    size_t arena_bytes;                   /* the last program's intermediates */
    const char *last_miss;                /* "arg 5 model_config.n_layer: 6 → 8"; "" where there was none */
} rax_fn_stats;
rax_fn_stats rax_stats(const rax_fn *fn);

/* == where time goes =================================================================================================== */

/* With rax_settings.profile programs are timed kernel by kernel. Figures are of all runs but a program's first, which touches
 * its memory for the first time (of that where there was no other). busy_ms is added over the threads; so is idle_ms: what
 * threads waited while the kernel ran, because it was too small to be shared or its tasks did not end together. Over a
 * program's kernels both come to wall_ms * threads, less what waking the threads takes. */
typedef struct {
    const char *name, *shape, *how;       /* "matmul+gelu"; "256x3072x768"; "generated 12x32", or "" */
    rax_place place;                      /* the line of the step; file NULL: none */
    rax_dtype dtype;                      /* that its products are made in; RAX_F32 where it has none */
    int64_t runs;                         /* 0: no work of its own */
    double busy_ms, idle_ms;
    double gflop, mb;                     /* arithmetic; what is read and written, each element once a run */
} rax_kernel_profile;
typedef struct { int kernel, thread; double begin_us, end_us; } rax_profile_event;      /* kernel -1: waiting for other threads */
typedef struct {
    const char *function;
    const char *device;                   /* its name, and threads is 1; NULL: threads of the CPU */
    int threads;
    int64_t runs;
    double wall_ms;
    int n_kernels;
    const rax_kernel_profile *kernels;
    int n_events;                         /* of the first rax_settings.trace_runs of these runs */
    const rax_profile_event *events;
} rax_profile;

/* Of a program of fn: index 0 is the one that was called last. NULL where there is none, or it is not timed (what the
 * interpreter runs never is). fn's; valid until it is asked again, called, or freed. */
const rax_profile *rax_profile_of(rax_fn *fn, int index);

/* What the machine can do on all of rax's threads: multiply-adds on registers alone, by the instructions that products of f32 and
 * of bf16 use at the ISA in force (where there are none for bf16, its peak is that of f32); memory that no cache holds, read, and
 * read and written in place, both counted. Measured in the call, which takes some half a second and up to 1 GB. Of a device: a large product
 * of each dtype. False on an error: no memory; the interpreter. */
typedef struct { const char *device; int threads; double f32_gflops, bf16_gflops, read_gbs, update_gbs; } rax_peak;      /* device: as in rax_profile */
bool rax_measure_peak(rax_peak *peak);

/* == reading graphs ==================================================================================================== */

/* Reads a graph as text and prints it after each pass, then its kernel list and its memory plan. Fails on a mistake in the
 * text, naming file and line. */
bool rax_compile_text(const char *path, FILE *out);

#ifdef __cplusplus
}
#endif

#endif
