/* Attention and its gradient, a tile at a time, as in FlashAttention (arXiv:2205.14135, arXiv:2307.08691).
 *
 *   attention.c             the plan: blocks, tasks, scratch, the code that is asked for
 *   attention_blocks.c      operands and products of a block
 *   attention_tiles.c       generates the pieces that are not products: softmax, its gradient, dropout, stores
 *   attention_forward.c     walks the blocks: out, lse
 *   attention_backward.c    walks the blocks: dq, dk, dv
 *
 * All products are the micro-kernels of gemm.h. Queries are taken a panel at a time: as many as the micro-kernel has
 * columns (W), lying across, with keys going down:
 *
 *     scores^T[key][query] = k[key] . q[query]        A: k as it lies    B: q, transposed
 *     out[query][:] += p^T[key][query] v[key][:]      A: p^T, read along columns    B: v
 *
 * With tile registers, which want A with K side by side, all that is summed up for queries has them across:
 *
 *     out^T[column][query] += v^T[column][key] p^T[key][query]      A: v, transposed    B: p^T, keys in pairs
 *
 * and blocks end in whole tiles: what is beyond the last key or column is zero where it would count.
 *
 * So a row of scores^T is one key for W queries: softmax is vectors over queries and needs no sum or maximum across
 * lanes, its running maximum and sum are vectors too, and four keys of W queries are what one round of Philox gives in
 * W lanes.
 *
 * A result depends on shapes alone: every element is a chain over key blocks (of dk, dv: over panels) in order. */
#ifndef CPU_ATTENTION_H
#define CPU_ATTENTION_H

#include "backend_cpu/backend.h"
#include "backend_cpu/gemm.h"

/* -- pieces of generated code: attention_tiles.c ---------------------------------------------------------------------- */

/* What the code of a piece depends on, beside the ISA. */
typedef struct { ir_dtype dtype, stored; bool dropout; } cpu_attention_class;

/* A panel's scores against a block of keys, [keys][W] in the type of sums (s below). Lane i sees keys to i + diagonal. */
typedef struct {
    void *scores;               /* in: scores^T. out: probabilities, dropped out but not scaled for it, as operand A of
                                   a product over keys (softmax) or over queries (gradient) */
    void *gradients;            /* gradient. in: that of dropped-out probabilities. out: that of scores, as operand A
                                   over queries, */
    void *pairs;                /* and over keys, where that looks different: bf16 in pairs */
    const uint16_t *keep;       /* dropout: [keys][2 vectors], a bit a lane */
    int64_t keys, diagonal;
    double scale, keep_scale;   /* of scores, times log2(e): exponentials are powers of 2; 1/(1-p) */
    void *most, *sum;           /* softmax: s[W], the greatest scaled score so far, and the sum of 2^(score - most) */
    void *outputs, *factors;    /* softmax: s[panels][W][W], what was summed up so far, and room for s[W] */
    int64_t panels, panel_bytes, first;
    const void *lse, *delta;    /* gradient: s[W] */
} cpu_attention_block;

/* The end of softmax: factors = keep_scale / sum, lse = most ln(2) + log(sum), of s[W] each. */
typedef struct { const void *most, *sum; void *factors, *lse; double keep_scale; } cpu_attention_close;

/* to[row][column] = from[column / W][row][column % W] * factors[row], in the stored type. Strides in elements. Across:
 * from[column][row] * factors[row], without stride and panels, for factors of W rows. */
typedef struct {
    const void *from;
    int64_t panel_bytes, rows, columns;
    const void *factors;
    int64_t factor_stride;
    void *to;
    int64_t row_stride;
} cpu_attention_store;

/* to[row] = the sum over columns of a * b; a and b in dtype, to in the type of sums. */
typedef struct { const void *a, *b; int64_t a_stride, b_stride, rows, columns; void *to; } cpu_attention_dots;

/* keep[key][vector] has bit i where the word of random element first + i * query_stride + key is at least threshold. */
typedef struct {
    uint16_t *keep;             /* room for a multiple of four keys */
    int64_t keys, first, query_stride;
    uint32_t seed[2], site, counter, threshold;
} cpu_attention_keep;

typedef void cpu_attention_piece(const void *record);
typedef void cpu_attention_emit(LLVMModuleRef module, cpu_isa isa, const cpu_attention_class *class, const char *name);
cpu_attention_emit cpu_attention_emit_softmax, cpu_attention_emit_gradient, cpu_attention_emit_close,
    cpu_attention_emit_store, cpu_attention_emit_store_across, cpu_attention_emit_dots, cpu_attention_emit_keep;

/* -- the plan: attention.c --------------------------------------------------------------------------------------------- */

/* Where a kernel finds a tensor: its argument, and strides in elements; argument -1: there is none. */
typedef struct { int arg; int64_t stride[4]; } cpu_attention_tensor;

/* The code, once linked. Transposed panels, rows and (bf16 in pairs) interleaved panels are gemm.h's packing. */
typedef struct {
    cpu_gemm_code products;
    cpu_gemm_pack *transpose, *rows, *interleave, *across;
    cpu_attention_piece *softmax, *gradient, *close, *store, *store_across, *dots, *keep;
} cpu_attention_code;

/* The plan. A task takes group heads, one after the other: while one is computed, the next one's memory is fetched. */
typedef struct {
    kl_attention shape;         /* views apart */
    cpu_isa isa;
    cpu_gemm_tile_shape tile;   /* W is tile.columns */
    cpu_gemm_unit unit;
    bool tiles;                 /* cpu_gemm_has_tiles */
    int sum_bytes, element_bytes, grad_bytes;
    int64_t key_block;
    bool keys_in_place;         /* k and v are read as A where they lie */
    int64_t panels, head_panels;                     /* of W: queries, columns of a head */
    int64_t row_bytes, transposed_bytes, sums_bytes; /* of a packed row, of a packed panel of queries, of sums[W][W] */
    int64_t across_bytes;                            /* of a row of a block of keys, transposed */
    int64_t group;                                   /* heads of a task */
    int64_t task_panels, row_tasks;                  /* forward: a task is task_panels of its heads */
    int64_t splits, split_blocks;                    /* backward: a task is split_blocks key blocks of its heads */
    uint32_t threshold;
    double keep_scale;
    cpu_attention_tensor q, k, v, out, lse, dout, dlse, dq, dk, dv, seed, counter;
    int workspace;                                   /* argument: dq of the splits */
    cpu_attention_code code;
} cpu_attention;

/* Phases' code; args[0] is the plan. */
cpu_task cpu_attention_forward, cpu_attention_backward, cpu_attention_add_splits;
size_t cpu_attention_forward_scratch(const cpu_attention *a);
size_t cpu_attention_backward_scratch(const cpu_attention *a);
size_t cpu_attention_backward_workspace(const cpu_attention *a);

/* -- what the walks share: attention_blocks.c -------------------------------------------------------------------------- */

/* Hands out scratch. */
typedef struct { char *at; } cpu_attention_room;
static inline void *cpu_attention_take(cpu_attention_room *room, int64_t bytes)
{
    char *at = room->at;
    room->at += (bytes + 63) & ~(int64_t)63;
    return at;
}

/* Memory that is soon needed. Rows of a head lie far apart, so that the hardware does not see what comes next: products
 * fetch it on their way into the second-level cache, a line for each unit of depth. First come, first fetched; what
 * finds no room in the list, or still stands there when it is cleared, is not fetched. */
enum { CPU_ATTENTION_SPANS = 16 };
typedef struct { const char *at; int64_t stride, rows, bytes; } cpu_attention_span;           /* rows of so many bytes */
typedef struct { int next, n; int64_t row, line; cpu_attention_span spans[CPU_ATTENTION_SPANS]; } cpu_attention_soon;

/* A task being run. */
typedef struct {
    const cpu_attention *a;
    const int64_t *args;
    char *const *buffers;
    int64_t head, end_head;     /* batch * heads + head; where the task's heads end */
    int64_t batch;              /* of the task's heads: all are of one */
    cpu_attention_soon soon;
} cpu_attention_run;

static inline void cpu_attention_begin_heads(cpu_attention_run *run, int64_t head, int64_t end_head)
{
    run->head = head, run->end_head = end_head;
    run->batch = head / run->a->shape.heads;
}

void cpu_attention_expect(cpu_attention_run *run, const cpu_attention_tensor *t, int bytes, int64_t head, int64_t row,
                          int64_t rows);
void cpu_attention_fetch_now(cpu_attention_run *run);            /* all of the list: where nothing was computed before */
static inline void cpu_attention_clear(cpu_attention_run *run)
{
    run->soon.next = run->soon.n = 0, run->soon.row = run->soon.line = 0;
}

/* Where row row of a head of t begins; an element has so many bytes. */
char *cpu_attention_at(const cpu_attention_run *run, const cpu_attention_tensor *t, int bytes, int64_t head, int64_t row);
/* to[i * to_stride] = from[i * from_stride], n numbers of the type of sums. */
void cpu_attention_copy(const cpu_attention *a, void *to, int64_t to_stride, const void *from, int64_t from_stride, int64_t n);

/* Rows row..row+rows-1 of this head with columns side by side: element (i, column) is at[i * row_stride + column].
 * Where they lie, or, columns being apart, copied to staging, [rows][head_dim]. */
typedef struct { const char *at; int64_t row_stride; bool copied; } cpu_attention_matrix;
cpu_attention_matrix cpu_attention_rows(const cpu_attention_run *run, const cpu_attention_tensor *t, int64_t row,
                                        int64_t rows, void *staging);

/* Operands as the micro-kernel reads them, strides in bytes. They are passed by pointer: a struct of words that were written one by one is copied
 * two words at a time, and such a load waits for its stores. */
typedef struct { const char *at; int64_t row, unit; } cpu_attention_left;
typedef struct { const char *at; int64_t panel, unit; } cpu_attention_right;

/* Packs rows as A, with columns as depth, unless they can be read where they lie; a panel of rows as B, with columns as depth; and rows as B with these as
 * depth, unless they can be read where they lie: that takes cpu_attention_right_bytes. */
cpu_attention_left cpu_attention_pack_left(const cpu_attention *a, const cpu_attention_matrix *m, int64_t rows, void *to);
cpu_attention_right cpu_attention_pack_transposed(const cpu_attention *a, const cpu_attention_matrix *m, int64_t rows, void *to);
cpu_attention_right cpu_attention_pack_right(const cpu_attention *a, const cpu_attention_matrix *m, int64_t rows, void *to);
int64_t cpu_attention_right_bytes(const cpu_attention *a, int64_t rows);
/* With tiles: rows, at most a block of keys, as A transposed, with rows as depth; that takes cpu_attention_across_bytes. */
cpu_attention_left cpu_attention_pack_across(const cpu_attention *a, const cpu_attention_matrix *m, int64_t rows, void *to);
int64_t cpu_attention_across_bytes(const cpu_attention *a);
/* With tiles: zeroes lines from..: of so many bytes each, up to a whole tile. */
void cpu_attention_fill_up(void *lines, int64_t from, int64_t to_multiple_of, int64_t bytes);
/* Tile registers, where there are some, for a task. */
static inline void cpu_attention_begin_tiles(const cpu_attention *a)
{
    if (a->tiles)
        cpu_gemm_configure_tiles(&a->code.products, a->tile.heights[0]);
}
static inline void cpu_attention_end_tiles(const cpu_attention *a)
{
    if (a->tiles)
        a->code.products.release();
}

/* scores^T[rows][W] = left right. Lane i sees rows up to i + diagonal; what it does not see may be anything. */
enum { CPU_ATTENTION_FAR = 1 << 30 };                /* further than any diagonal, on shapes that fit in memory */
void cpu_attention_scores(cpu_attention_run *run, const cpu_attention_left *left, const cpu_attention_right *right, int64_t rows,
                          int64_t diagonal, char *scores);

/* sums[panel][rows][W] (+)= left right: rows before begun hold sums to go on from. With tiles, begun is that up to a whole tile. Row r
 * needs depths from r + low to r + high alone: elsewhere left is zero. */
typedef struct {
    cpu_attention_left left;
    cpu_attention_right right;
    char *sums;
    int64_t panel_bytes, rows, columns, depth, low, high, begun;
} cpu_attention_product;
void cpu_attention_multiply(cpu_attention_run *run, const cpu_attention_product *p);

/* store, but for its columns and where to: rows of this head of t from row on, by code.store or code.store_across. */
void cpu_attention_store_rows(const cpu_attention_run *run, cpu_attention_piece *code, const cpu_attention_tensor *t, int bytes,
                              int64_t row, cpu_attention_store *store, void *staging);
/* The dropout mask of the panel at row against keys key..key+keys-1. */
void cpu_attention_fill_keep(const cpu_attention_run *run, int64_t row, int64_t key, int64_t keys, uint16_t *keep);

#endif
