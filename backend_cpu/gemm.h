/* Products of matrices, with what stands before and after them fused in:
 *
 *     C[batch, m, n] = epilogue( sum over k of a(A[batch, m, k]) * b(B[batch, k, n]) )
 *
 * The compiler generates four small pieces of code, each a function, and a driver in C walks blocks and calls them:
 *
 *   gemm_micro.c      the micro-kernels: a tile of C in registers, over one block of K; the same for every product of a dtype
 *   gemm_amx.c        those of bf16 for CPUs with tile registers
 *   gemm_pack.c       packing: copies a block of A or B for the micro-kernel, with a prologue of the caller's on the way
 *   gemm_epilogue.c   what becomes of a finished tile, by a callback of the caller's
 *   gemm.c            the plan of blocks
 *   gemm_run.c        the driver; both call no LLVM, so that a start without compilation does without
 *
 * Shapes, strides and pointers are arguments at run time: one compiled piece serves all shapes. What is compiled in is the
 * ISA, the dtypes, which axis of an operand lies side by side in memory, and the callbacks.
 *
 * dtype f32: products and sums by fused multiply-add in f32. bf16: operands are rounded to bf16, sums are f32 (TDPBF16PS on AMX
 * or dpbf16ps where there is one, which take k in pairs, and subnormals as 0; else widened to f32 while packing). f64: plain, for tests.
 *
 * Determinism: an element of C is one chain of multiply-adds with k ascending from 0, whatever the blocks, tiles and threads;
 * where K is cut, the partial sum is kept in f32 and continued. On AMX a link of the chain is 32 k: their even and their odd
 * products are summed up from 0, ascending, and both sums are added to the chain; blocks of K are whole links, and the last one is
 * filled up with zeros. How work is cut into tasks follows from shape and machine. */
#ifndef CPU_GEMM_H
#define CPU_GEMM_H

#include <llvm-c/Types.h>

#include "backend_cpu/runtime.h"
#include "backend_cpu/vector_math.h"
#include "ir/ir.h"

enum { CPU_GEMM_BATCH_AXES = 12, CPU_GEMM_SUMS = 4, CPU_GEMM_TOUCHED = 6, CPU_GEMM_HEIGHTS = 5, CPU_GEMM_PHASES = 3 };

/* -- the pieces, as they are called ---------------------------------------------------------------------------------- */

/* The element type of panels, and how many steps of k go in one unit of it: pairs for bf16 with dpbf16ps. */
typedef struct { int bytes, k_per_unit; } cpu_gemm_unit;
cpu_gemm_unit cpu_gemm_unit_of(cpu_isa isa, ir_dtype dtype);

/* The register tile: columns are two vectors; heights[0] rows is the full tile, smaller ones end a block. */
typedef struct { int lanes, columns, heights[CPU_GEMM_HEIGHTS], n_heights; } cpu_gemm_tile_shape;
cpu_gemm_tile_shape cpu_gemm_tile_of(cpu_isa isa, ir_dtype dtype);
int cpu_gemm_a_panel(cpu_isa isa, ir_dtype dtype);      /* rows of a panel of A: whole tiles and whole vectors */

/* With tile registers A is read by rows with K side by side, whatever it is in memory, and K is taken CPU_GEMM_TILES_K at a time:
 * packing fills it up with zeros. A step of that many fetches CPU_GEMM_TILES_SOON lines of soon, not one a unit. */
enum { CPU_GEMM_TILES_K = 32, CPU_GEMM_TILES_SOON = 4 };
static inline bool cpu_gemm_has_tiles(cpu_isa isa, ir_dtype dtype) { return isa == CPU_AMX && dtype == IR_BF16; }

/* How many columns of a tile the narrow kernels have that end a C of n columns: their last vector is of half the lanes. 0: whole vectors
 * fit as well, or half a one takes as long as one. They are there for the first height and every second after it, the last one too: what
 * the others would save, at the end of a block and of C, is less than compiling them. */
enum { CPU_GEMM_NARROW_STEP = 2 };
int cpu_gemm_narrow_of(cpu_isa isa, ir_dtype dtype, int64_t n);

/* tile[row][column] (+)= the sum over units units of K. tile has the full number of columns a row, also for kernels of
 * less. Strides in bytes: A's from row to row and from unit to unit, B's from unit to unit. resume: tile holds a sum
 * to go on from. units >= 1. */
typedef void cpu_gemm_micro(int64_t units, const void *a, int64_t a_row, int64_t a_unit, const void *b, int64_t b_unit,
                            void *tile, int64_t resume, const void *soon, int64_t soon_step);

/* A block of an operand to be packed. A line is a row of A or a column of B.
 *   rows:   to[line][unit], lines to_stride bytes apart; with tile registers there is room for a multiple of 16 lines
 *   panels: to[line / width][unit][line % width]; panels to_stride bytes apart; width is the tile's columns, of A cpu_gemm_a_panel */
typedef struct {
    const void *source;                          /* the element of line 0, k 0 of this batch, for plain loads */
    int64_t line_stride, k_stride;               /* in elements */
    void *user;
    int64_t batch, line, lines, k, depth;        /* lines line..line+lines-1, k..k+depth-1 */
    void *to;
    int64_t to_stride;
} cpu_gemm_block;
typedef void cpu_gemm_pack(const cpu_gemm_block *block);

/* A finished tile. */
typedef struct {
    const void *sums;                            /* [rows][columns of the full tile], f32 or f64 */
    void *user;
    int64_t batch, row, column, rows, columns;   /* where in C it lies */
    void *partial;                               /* column sums of this block of rows: [number of the sum][partial_stride] */
    int64_t partial_stride;                      /* in elements */
    int64_t first;                               /* the block's first tile: partial holds nothing yet */
} cpu_gemm_tile;
typedef void cpu_gemm_epilogue(const cpu_gemm_tile *tile);

/* -- generating them: gemm_micro.c, gemm_pack.c, gemm_epilogue.c ----------------------------------------------------- */

/* All micro-kernels of a dtype, under the names that cpu_gemm_micro_name gives. */
void cpu_gemm_emit_micro(LLVMModuleRef module, cpu_isa isa, ir_dtype dtype);
void cpu_gemm_emit_narrow(LLVMModuleRef module, cpu_isa isa, ir_dtype dtype, int columns);      /* columns: of cpu_gemm_narrow_of */
const char *cpu_gemm_micro_name(char name[32], ir_dtype dtype, int height, int columns);
const char *cpu_gemm_dense_name(char name[32], ir_dtype dtype, int columns);      /* the full height, rows of A side by side; not of tile registers */
/* Two of the full tile, for A as it lies and dense, that store it to C in this dtype: tile is C's place, resume the bytes from row to row, and
 * sums begin at 0. Not of tile registers. */
void cpu_gemm_emit_direct(LLVMModuleRef module, cpu_isa isa, ir_dtype dtype, ir_dtype c);
const char *cpu_gemm_direct_name(char name[32], ir_dtype dtype, ir_dtype c, bool dense);
void cpu_gemm_emit_amx(LLVMModuleRef module, cpu_isa isa);      /* what that does where there are tile registers */

/* Where a prologue is: lanes are elements along k, or along lines, from (line, k) on. */
typedef struct {
    const cpu_vector_env *vector;
    LLVMValueRef user, source, line_stride, k_stride, batch, line, k;      /* the fields of cpu_gemm_block */
    bool along_k;
    LLVMValueRef count, mask;                    /* lanes that exist; count an i64; mask NULL where all do */
    ir_dtype source_dtype;
    bool unit_stride;
} cpu_gemm_source;

/* The operand at this place: a vector of f32 (f64 for f64), or i16 lanes of bf16 as they are. Lanes beyond count may be
 * anything. May add blocks. NULL for a plain load. */
typedef struct { void *context; LLVMValueRef (*load)(void *context, const cpu_gemm_source *at); } cpu_gemm_prologue;
LLVMValueRef cpu_gemm_load_plain(void *context, const cpu_gemm_source *at);     /* source[line*line_stride + k*k_stride], unconverted */

typedef enum { CPU_GEMM_A, CPU_GEMM_B } cpu_gemm_side;
typedef struct {
    cpu_isa isa;
    ir_dtype dtype;                              /* of the product's operands */
    cpu_gemm_side side;
    bool along_k;                                /* the axis that lies side by side in memory: K, or rows of A, columns of B */
    bool unit_stride;                            /* false: neither does, and elements are gathered */
    ir_dtype source;                             /* in memory, for plain loads */
    const cpu_gemm_prologue *prologue;           /* NULL: plain */
    bool fetched;                                /* the caller sees to it that memory is near */
} cpu_gemm_pack_class;
LLVMValueRef cpu_gemm_emit_pack(LLVMModuleRef module, const cpu_gemm_pack_class *class, const char *name);

/* Where an epilogue is: lanes are columns from column on, of one row. */
typedef struct {
    const cpu_vector_env *vector;
    LLVMValueRef user, batch, row, column;       /* the fields of cpu_gemm_tile; row of this row, column of lane 0 */
    LLVMValueRef mask;                           /* columns that exist; NULL where all do */
} cpu_gemm_place;

typedef struct {
    void *context;
    int column_sums;                             /* how many column sums it makes; at most CPU_GEMM_SUMS */
    int row_sums;                                /* how many row sums; at most CPU_GEMM_SUMS */
    /* Stores what is to be stored of one row's vector, and sets columns[i] and rows[i] to the terms of the sums. sum is f32,
     * or f64 for f64. */
    void (*element)(void *context, const cpu_gemm_place *at, LLVMValueRef sum, LLVMValueRef *columns, LLVMValueRef *rows);
    /* The sums over this row's columns of one tile, scalars; tile: i64, which of the row's tiles. NULL without row_sums. */
    void (*row_end)(void *context, const cpu_gemm_place *at, LLVMValueRef tile, LLVMValueRef *sums);
} cpu_gemm_finish;
LLVMValueRef cpu_gemm_emit_epilogue(LLVMModuleRef module, cpu_isa isa, ir_dtype dtype, const cpu_gemm_finish *finish, const char *name);

/* The plain epilogue: C = sum, or C += sum. user points to a cpu_gemm_c; context to a cpu_gemm_store_class. */
typedef struct { void *at; int64_t row_stride, batch_stride; } cpu_gemm_c;      /* in elements; columns side by side */
typedef struct { ir_dtype dtype; bool accumulate; } cpu_gemm_store_class;
void cpu_gemm_store_plain(void *context, const cpu_gemm_place *at, LLVMValueRef sum, LLVMValueRef *columns, LLVMValueRef *rows);

/* -- running them: gemm.c, gemm_run.c ------------------------------------------------------------------------------------ */

/* How the micro-kernel comes to an operand. */
typedef enum {
    CPU_GEMM_DIRECT,     /* reads it where it lies */
    CPU_GEMM_LOCAL,      /* each task packs its block into scratch */
    CPU_GEMM_SHARED      /* a phase before packs all of it into workspace */
} cpu_gemm_way;

/* What the plan must know of an operand. */
typedef struct {
    bool plain;          /* no prologue, and memory has the dtype of the product */
    bool along_k, unit_stride;
    int64_t line_bytes;  /* from line to line in memory; 0: not known */
} cpu_gemm_layout;

typedef struct {
    cpu_isa isa;
    ir_dtype dtype;
    cpu_gemm_layout a, b;
    int column_sums;
    int64_t batch, m, n, k;                      /* batch: the number of products */
} cpu_gemm_shape;

/* Blocks, and what memory they take. Follows from shape, ISA and caches alone. */
typedef struct {
    cpu_gemm_shape shape;
    cpu_gemm_way a_way, b_way;
    int64_t task_rows, task_columns;             /* of C, a task, at most: tasks differ by a tile where tiles do not go into them */
    int64_t block_rows, block_depth;             /* of A, that stay in the second-level cache */
    int64_t row_tasks, column_tasks, depth_blocks;
    bool fetches;                                /* what the epilogue touches is more than lies in the second-level cache anyway */
    cpu_gemm_tile_shape tile;                    /* what follows from these, for the driver: */
    int narrow;                                  /* cpu_gemm_narrow_of */
    cpu_gemm_unit unit;
    bool has_tiles, packs_rows;                  /* of A, packed: rows as they lie, or panels of a_panel rows */
    bool keeps_panels;                           /* of B, packed by a task: all, for blocks of rows come back to them; or one at a time */
    int64_t a_panel, a_line_bytes, b_panel_bytes;    /* of a row or a panel of A; of a panel of B */
    int64_t a_share, a_share_bytes;              /* rows that are packed together for all: a tile's or a panel's */
    int64_t tile_bytes, partial_stride;
    size_t scratch_b, scratch_a;                 /* where they are in scratch, behind the sums of tiles */
    size_t shared_a;                             /* where shared panels of A begin, behind those of B */
    size_t workspace_bytes;                      /* of the product, 64-byte aligned: shared panels, then */
    size_t partial_bytes;                        /* the partial column sums */
    size_t scratch_bytes;                        /* of each thread, likewise */
    int phases;                                  /* with a barrier after each */
    int64_t tasks[CPU_GEMM_PHASES];
    int first_phase;                             /* 0 where there is packing to be shared, else 1 */
} cpu_gemm_plan;

/* Where task i of so many begins, in rows or columns: whole tiles each, as evenly as can be. Tasks 0 to i-1 have that many together. */
static inline int64_t cpu_gemm_task_begin(int64_t i, int64_t tasks, int64_t all, int64_t tile)
{
    return MIN(i * base_divide_up(all, tile) / tasks * tile, all);
}

/* What the plan is made by. Tests shrink it; any values give the same bits. */
typedef struct {
    int64_t depth;                               /* units of K in a block */
    int64_t tasks, task_flops;                   /* tasks that are wanted, and how large each should at least be */
    int64_t local_rows;                          /* rows of a task that packs its own B, at most */
    int64_t small_bytes;                         /* a B that is read where it lies */
    bool pack_a, share_a, share_b;               /* A LOCAL or SHARED, B SHARED, whatever the shape */
} cpu_gemm_tuning;
extern const cpu_gemm_tuning cpu_gemm_default_tuning;
cpu_gemm_plan cpu_gemm_make_plan(const cpu_gemm_shape *shape, const cpu_machine *machine, const cpu_gemm_tuning *tuning);

/* Tile registers are configured before the micro-kernels are called, and released after: NULL where there are none. */
#define CPU_GEMM_CONFIGURE "gemm_configure_tiles"
#define CPU_GEMM_RELEASE "gemm_release_tiles"
typedef struct { uint8_t palette, start, reserved[14]; uint16_t row_bytes[16]; uint8_t rows[16]; } cpu_gemm_tiles;    /* as LDTILECFG reads it */

typedef struct {
    cpu_gemm_micro *micro[CPU_GEMM_HEIGHTS][2];  /* by height and vectors less one */
    cpu_gemm_micro *dense[2];                    /* the first height's, where rows of A are a unit apart */
    cpu_gemm_micro *narrow[CPU_GEMM_HEIGHTS], *narrow_dense;      /* likewise; NULL where there is none */
    cpu_gemm_micro *direct[2];                   /* by density: for whole tiles of which nothing is made but touched[0]; NULL where there is more */
    void (*configure)(const cpu_gemm_tiles *tiles), (*release)(void);
    cpu_gemm_pack *pack_a, *pack_b;              /* NULL where the operand is never packed */
    cpu_gemm_epilogue *epilogue;
} cpu_gemm_code;
/* Tile registers of 16 rows, or of fewer for A and C. */
void cpu_gemm_configure_tiles(const cpu_gemm_code *code, int64_t rows);
/* Height h's, for rows of A so many bytes apart. */
static inline cpu_gemm_micro *cpu_gemm_micro_of(const cpu_gemm_code *code, int h, int vectors, int64_t a_row, cpu_gemm_unit unit)
{
    return h == 0 && a_row == unit.bytes && code->dense[vectors - 1] ? code->dense[vectors - 1] : code->micro[h][vectors - 1];
}
/* The micro-kernels out of loaded code. */
void cpu_gemm_find_micro(cpu_gemm_code *code, const cpu_code *loaded, cpu_isa isa, ir_dtype dtype);
void cpu_gemm_find_direct(cpu_gemm_code *code, const cpu_code *loaded, ir_dtype dtype, ir_dtype c);
void cpu_gemm_find_narrow(cpu_gemm_code *code, const cpu_code *loaded, cpu_isa isa, ir_dtype dtype, int columns);

typedef struct {
    const void *at;
    int64_t line_stride, k_stride;               /* in elements; lines: rows of A, columns of B */
    int64_t batch_stride[CPU_GEMM_BATCH_AXES];
    int element_bytes;                           /* in memory */
    void *user;                                  /* for the prologue */
} cpu_gemm_operand;

/* A column sum: to[column * stride] = (accumulate: += ) its sum over all rows of all batches, blocks of rows in order; where
 * all is set, to[0] = the sum of these over the columns. f32, or f64 for f64. */
typedef struct { void *to; int64_t stride; bool accumulate, all; } cpu_gemm_sum;

typedef struct {
    cpu_gemm_plan plan;
    cpu_gemm_code code;
    cpu_gemm_operand a, b;
    int batch_axes;
    int64_t batch[CPU_GEMM_BATCH_AXES];          /* extents, row-major */
    void *user;                                  /* for the epilogue */
    cpu_gemm_sum sums[CPU_GEMM_SUMS];
    void *workspace;
    /* What the epilogue reads and writes at each element of C, columns side by side and line_stride from row to row: fetched
     * while the tile is computed. Where rows are a multiple of 1024 floats apart this is worth a fifth of the time. */
    int n_touched;
    cpu_gemm_operand touched[CPU_GEMM_TOUCHED];
} cpu_gemm;

/* Task task of phase phase, 0 <= phase < plan.phases. Phases are run in order, all tasks of one before the next. */
void cpu_gemm_run(const cpu_gemm *gemm, int phase, int64_t task, void *scratch);

#endif
