/* Inside the machine: programs as parse.c leaves them, a warp and a block as they run. */
#ifndef TESTS_PTX_MACHINE_H
#define TESTS_PTX_MACHINE_H

#include "tests/ptx/ptx.h"

#include <setjmp.h>

enum { LANES = 32, MOST_PARAMS = 16, MOST_THREADS = 1024, MOST_SHARED = 232448 };
#define ALL_LANES 0xffffffffu

/* -- programs ----------------------------------------------------------------------------------------------------- */

/* A type is a kind and a width. bf16 in pairs is b32 by its own name. */
typedef enum { T_NONE, T_PRED, T_B8, T_B16, T_B32, T_B64, T_U8, T_U16, T_U32, T_U64, T_S8, T_S16, T_S32, T_S64, T_F32, T_F64, T_BF16, T_BF16X2 } ptx_type;

typedef enum {
#define OP(name, text, class) OP_##name,
#include "tests/ptx/ops.def"
#undef OP
    N_OPS
} ptx_op;

/* Which of an instruction's counters it is. */
typedef enum { CLASS_ARITHMETIC, CLASS_SPECIAL, CLASS_PRODUCT, CLASS_CONVERSION, CLASS_SHUFFLE, CLASS_BRANCH, CLASS_MEMORY, CLASS_MOVE, CLASS_BARRIER } ptx_class;

typedef enum {
    CMP_NONE, CMP_EQ, CMP_NE, CMP_LT, CMP_LE, CMP_GT, CMP_GE, CMP_LO, CMP_LS, CMP_HI, CMP_HS,
    CMP_EQU, CMP_NEU, CMP_LTU, CMP_LEU, CMP_GTU, CMP_GEU, CMP_NUM, CMP_NAN
} ptx_compare;
typedef enum { ROUND_NEAREST, ROUND_ZERO, ROUND_DOWN, ROUND_UP } ptx_round;
typedef enum { HALF_NONE, HALF_LOW, HALF_HIGH, HALF_WIDE } ptx_half;
typedef enum { SPACE_GENERIC, SPACE_GLOBAL, SPACE_SHARED, SPACE_LOCAL, SPACE_PARAM, N_SPACES } ptx_space;
typedef enum { SHUFFLE_BFLY, SHUFFLE_UP, SHUFFLE_DOWN, SHUFFLE_IDX } ptx_shuffle;

/* A register is a slot in a warp's file: a word of which lanes have written it, then a value a lane (a predicate: one
 * word of 32). A constant is a slot that is written before the first instruction. */
typedef struct { int slot; short bits; bool is_constant, is_negated; } ptx_operand;   /* bits 1: a predicate. slot < 0: '_' */

/* A register, or none (-1), and what is added to it. */
typedef struct { int base, bits; int64_t offset; } ptx_address;

typedef struct {
    ptx_op op;
    ptx_type type, from;                    /* the last two of its types: of the result and, where it has two, of the operand */
    ptx_compare compare;
    ptx_round round;
    ptx_half half;
    ptx_space space;
    ptx_shuffle shuffle;
    bool to_integer;                        /* cvt.r?i */
    bool flushes, saturates, carries, transposes;
    bool keeps_nan;                         /* of min and max */
    bool waits;                             /* of cp.async: for what is under way */
    bool of_warp;                           /* of bar */
    bool is_to, is_right, clamps;           /* of cvta: to the space; of shf */
    int vector;                             /* of ld and st: elements; of ldmatrix: matrices; of call: results */
    int guard;                              /* slot of a predicate, or -1 */
    bool guard_is_negated;
    int n_operands;
    ptx_operand *operands;                  /* in the order of the text, vectors laid out; not the address */
    int n_addresses;
    ptx_address address[2];                 /* of cp.async: to, from */
    int target;                             /* of bra: an instruction */
    const struct ptx_function *callee;
    int line;                               /* of the source, as .loc says */
    const char *text;                       /* of the instruction, ends in ';' */
} ptx_inst;

typedef struct ptx_function {
    char *name;
    bool is_entry, is_defined;
    int n, cap;
    ptx_inst *code;
    size_t file_bytes;                      /* of a warp's registers */
    unsigned char *file;                    /* as it is when it begins: constants */
    size_t params_bytes, result_bytes, locals_bytes, calls_bytes;   /* .param spaces of its own calls lie behind its locals */
    size_t places[MOST_PARAMS];             /* of its results, then its parameters; of an entry nobody asks */
    int most_threads, exact_threads;
    const struct ptx_module *module;
} ptx_function;

struct ptx_kernel { ptx_function f; };

struct ptx_module {
    char *text;
    int n, cap;
    ptx_function **functions;
    int64_t shared_bytes;                   /* static */
    unsigned char *globals;                 /* .global and .const variables with their values */
    size_t globals_bytes, globals_cap;
    void *arena;                            /* operands */
};

/* Addresses in generic form: each space but global has a window. Locals and parameters have addresses from 0 in theirs. */
#define WINDOW_SHARED ((uint64_t)1 << 60)
#define WINDOW_LOCAL  ((uint64_t)2 << 60)
#define WINDOW_PARAM  ((uint64_t)3 << 60)
#define WINDOW_MASK   ((uint64_t)0xf << 60)

/* Where dynamic shared memory begins in its window: static is at 0, and not known in full where the address is read. */
enum { DYNAMIC_SHARED = 1 << 18 };

/* Special registers are slots that every function has first, in this order; constants of the launch but for tid. */
enum { SPECIAL_TID, SPECIAL_NTID = SPECIAL_TID + 3, SPECIAL_CTAID = SPECIAL_NTID + 3, SPECIAL_NCTAID = SPECIAL_CTAID + 3, SPECIAL_LANE = SPECIAL_NCTAID + 3, N_SPECIAL };
#define SLOT_BYTES(bits) ((size_t)8 + ((bits) == 1 ? 8 : (size_t)LANES * ((bits) < 32 ? 4 : (size_t)(bits) / 8)))
#define SPECIAL_SLOT(i) ((int)(i) * (int)SLOT_BYTES(32))

/* -- what runs ---------------------------------------------------------------------------------------------------- */

typedef struct {
    int index;                              /* in its block */
    uint32_t lanes, alive, waiting;         /* launched; not ended; at a barrier of the block */
    uint32_t held;                          /* at an instruction of the warp, for the others */
    int pc[LANES];
    uint32_t carry;
    uint32_t round;                         /* counts bar.warp.sync */
    unsigned char *file;
    unsigned char *locals;                  /* locals_bytes a lane, of the kernel itself */
} ptx_warp;

typedef struct ptx_machine {
    const ptx_function *kernel;
    const ptx_options *options;
    ptx_counts counts;
    unsigned grid[3], threads, n_warps;
    unsigned block_number;
    const unsigned char *params;
    size_t shared_bytes;
    uint32_t launch, round;                 /* number of the launch; counts barriers of the block */
    ptx_warp *warp;                         /* that is under way, and what it does, for messages */
    const ptx_inst *inst;
    const ptx_function *function;
    uint32_t undefined;                     /* lanes of which an operand was not written */
    jmp_buf failed;
    char *why;
} ptx_machine;

int ptx_bits(ptx_type type);
const char *ptx_op_name(ptx_op op);

/* Ends the launch. */
_Noreturn void ptx_fail(ptx_machine *m, int lane, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* The parameters, results, locals and calls' parameters of a function that runs: bytes of each lane. */
typedef struct {
    unsigned char *params, *own;            /* own: locals, then parameters of its calls */
    size_t params_stride, own_stride;       /* 0: one for all lanes */
} ptx_frame;

/* memory.c. ptx_access: at[l] is where `bytes` of lane l, of the mask, lie on this machine. */
void ptx_memory_block(ptx_machine *m);
void ptx_access(ptx_machine *m, const ptx_frame *frame, uint32_t mask, ptx_space space, const uint64_t *address, int bytes, bool writes, unsigned char **at);
void ptx_copy_later(ptx_machine *m, uint32_t mask, const uint64_t *to, const uint64_t *from, int bytes, const uint32_t *there);
void ptx_copies_wait(ptx_machine *m, uint32_t mask);

/* execute.c: what an instruction does to a warp, but for those that move a lane or wait for others. */
void ptx_execute(ptx_machine *m, const ptx_frame *frame, const ptx_inst *i, uint32_t mask, unsigned char *file);
/* The lanes of the mask that the guard lets. */
uint32_t ptx_guarded(ptx_machine *m, const ptx_inst *i, uint32_t mask, const unsigned char *file);

#endif
