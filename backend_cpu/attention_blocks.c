/* Operands and products of attention's blocks: what lies in memory, what is packed, and how a product is cut into the
 * micro-kernel's tiles. */
#include "backend_cpu/attention.h"

#include <string.h>

/* -- tensors ----------------------------------------------------------------------------------------------------------- */

char *cpu_attention_at(const cpu_attention_run *run, const cpu_attention_tensor *t, int bytes, int64_t head, int64_t row)
{
    int64_t offset = run->batch * t->stride[0] + (head - run->batch * run->a->shape.heads) * t->stride[1] + row * t->stride[2];
    return cpu_pointer(run->args, run->buffers, t->arg) + offset * bytes;
}

/* One element at a time, for heads whose columns do not lie side by side. */
static void copy_elements(char *to, int64_t to_row, int64_t to_column, const char *from, int64_t from_row,
                          int64_t from_column, int64_t rows, int64_t columns, int bytes)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++)
            memcpy(to + (r * to_row + c * to_column) * bytes, from + (r * from_row + c * from_column) * bytes,
                   (size_t)bytes);
}

cpu_attention_matrix cpu_attention_rows(const cpu_attention_run *run, const cpu_attention_tensor *t, int64_t row,
                                        int64_t rows, void *staging)
{
    int64_t columns = run->a->shape.head_dim;
    int bytes = run->a->element_bytes;
    const char *at = cpu_attention_at(run, t, bytes, run->head, row);
    if (t->stride[3] == 1)
        return (cpu_attention_matrix){at, t->stride[2], false};
    copy_elements(staging, columns, 1, at, t->stride[2], t->stride[3], rows, columns, bytes);
    return (cpu_attention_matrix){staging, columns, true};
}

void cpu_attention_copy(const cpu_attention *a, void *to, int64_t to_stride, const void *from, int64_t from_stride, int64_t n)
{
    if (to_stride == 1 && from_stride == 1)
        memcpy(to, from, (size_t)(n * a->sum_bytes));
    else
        copy_elements(to, to_stride, 0, from, from_stride, 0, n, 1, a->sum_bytes);
}

void cpu_attention_store_rows(const cpu_attention_run *run, cpu_attention_piece *code, const cpu_attention_tensor *t, int bytes,
                              int64_t row, cpu_attention_store *store, void *staging)
{
    char *at = cpu_attention_at(run, t, bytes, run->head, row);
    int64_t columns = store->columns = run->a->shape.head_dim;
    bool apart = t->stride[3] != 1;
    store->to = apart ? staging : at;
    store->row_stride = apart ? columns : t->stride[2];
    code(store);
    if (apart)
        copy_elements(at, t->stride[2], t->stride[3], staging, columns, 1, store->rows, columns, bytes);
}

/* -- fetching ahead ---------------------------------------------------------------------------------------------------- */

enum { LINE = 64 };

void cpu_attention_expect(cpu_attention_run *run, const cpu_attention_tensor *t, int bytes, int64_t head, int64_t row,
                          int64_t rows)
{
    cpu_attention_soon *soon = &run->soon;
    if (soon->n == CPU_ATTENTION_SPANS || rows <= 0 || t->stride[3] != 1)
        return;
    soon->spans[soon->n++] = (cpu_attention_span){
        cpu_attention_at(run, t, bytes, head, row), t->stride[2] * bytes, rows, run->a->shape.head_dim * bytes };
}

void cpu_attention_fetch_now(cpu_attention_run *run)
{
    for (int i = run->soon.next; i < run->soon.n; i++) {
        const cpu_attention_span *span = &run->soon.spans[i];
        for (int64_t row = 0; row < span->rows; row++)
            for (int64_t line = 0; line < span->bytes; line += LINE)
                __builtin_prefetch(span->at + row * span->stride + line, 0, 2);
    }
    cpu_attention_clear(run);
}

/* -- operands ---------------------------------------------------------------------------------------------------------- */

static cpu_gemm_block block_of(const cpu_attention *a, const cpu_attention_matrix *m, int64_t rows, void *to, int64_t to_stride)
{
    return (cpu_gemm_block){.source = m->at,
                            .line_stride = m->row_stride,
                            .k_stride = 1,
                            .lines = rows,
                            .depth = a->shape.head_dim,
                            .to = to,
                            .to_stride = to_stride};
}

/* Its transpose: a line is an element of the heads, and rows are K. */
static cpu_gemm_block across_of(const cpu_attention *a, const cpu_attention_matrix *m, int64_t rows, void *to, int64_t to_stride)
{
    return (cpu_gemm_block){.source = m->at,
                            .line_stride = 1,
                            .k_stride = m->row_stride,
                            .lines = a->shape.head_dim,
                            .depth = rows,
                            .to = to,
                            .to_stride = to_stride};
}

cpu_attention_left cpu_attention_pack_left(const cpu_attention *a, const cpu_attention_matrix *m, int64_t rows, void *to)
{
    if (a->tiles && !m->copied && a->shape.head_dim % CPU_GEMM_TILES_K == 0 && rows % a->tile.heights[1] == 0)     /* whole tiles as it lies */
        return (cpu_attention_left){m->at, m->row_stride * a->element_bytes, a->unit.bytes};
    if (a->keys_in_place && !m->copied)
        return (cpu_attention_left){m->at, m->row_stride * a->element_bytes, a->unit.bytes};
    cpu_gemm_block block = block_of(a, m, rows, to, a->row_bytes);
    a->code.rows(&block);
    return (cpu_attention_left){to, a->row_bytes, a->unit.bytes};
}

cpu_attention_right cpu_attention_pack_transposed(const cpu_attention *a, const cpu_attention_matrix *m, int64_t rows, void *to)
{
    cpu_gemm_block block = block_of(a, m, rows, to, a->transposed_bytes);
    if (a->tiles && rows < a->tile.columns)      /* products over queries take all columns: none may hold a NaN */
        memset(to, 0, (size_t)a->transposed_bytes);
    a->code.transpose(&block);
    return (cpu_attention_right){to, a->transposed_bytes, a->tile.columns * a->unit.bytes};
}

static int64_t interleaved_panel(const cpu_attention *a, int64_t rows)
{
    return base_round_up(rows, a->tiles ? CPU_GEMM_TILES_K : 2) / 2 * a->tile.columns * a->unit.bytes;
}

int64_t cpu_attention_across_bytes(const cpu_attention *a)
{
    return a->tiles ? base_round_up(a->shape.head_dim, a->tile.heights[0]) * a->across_bytes : 0;
}

cpu_attention_left cpu_attention_pack_across(const cpu_attention *a, const cpu_attention_matrix *m, int64_t rows, void *to)
{
    cpu_gemm_block block = across_of(a, m, rows, to, a->across_bytes);
    a->code.across(&block);
    return (cpu_attention_left){to, a->across_bytes, a->unit.bytes};
}

void cpu_attention_fill_up(void *lines, int64_t from, int64_t to_multiple_of, int64_t bytes)
{
    memset((char *)lines + from * bytes, 0, (size_t)((base_round_up(from, to_multiple_of) - from) * bytes));
}

int64_t cpu_attention_right_bytes(const cpu_attention *a, int64_t rows)
{
    return a->unit.k_per_unit == 2 ? a->head_panels * interleaved_panel(a, rows) : rows * a->row_bytes;
}

cpu_attention_right cpu_attention_pack_right(const cpu_attention *a, const cpu_attention_matrix *m, int64_t rows, void *to)
{
    int64_t panel = a->tile.columns * a->unit.bytes;
    if (a->unit.k_per_unit == 2) {
        cpu_gemm_block block = across_of(a, m, rows, to, interleaved_panel(a, rows));
        a->code.interleave(&block);
        return (cpu_attention_right){to, block.to_stride, panel};
    }
    if (a->element_bytes == a->unit.bytes && a->shape.head_dim % a->tile.lanes == 0)
        return (cpu_attention_right){m->at, panel, m->row_stride * a->unit.bytes};
    cpu_attention_left packed = cpu_attention_pack_left(a, m, rows, to);
    return (cpu_attention_right){packed.at, panel, packed.row};
}

/* -- products ---------------------------------------------------------------------------------------------------------- */

/* The highest of no more than so many rows, or two that are even; with tiles the lowest of no fewer, for there all rows may be computed. */
static int tile_height(const cpu_attention *a, int64_t rows)
{
    int h = 0;
    if (a->tiles)
        return rows > a->tile.heights[1] ? 0 : 1;
    if (rows == 2 * a->tile.heights[1] && rows > a->tile.heights[0])
        return 1;
    while (a->tile.heights[h] > rows)
        h++;
    return h;
}

/* A tile of so many vectors, and on the way the next lines of what is expected. Operands begin at left and right, with the strides of l and r. */
static inline void multiply_tile(cpu_attention_run *run, int h, int vectors, int64_t units, const char *left, const cpu_attention_left *l,
                                 const char *right, const cpu_attention_right *r, char *sums, int64_t resume)
{
    cpu_attention_soon *soon = &run->soon;
    const char *ahead = right;
    int64_t step = 0;
    if (soon->next < soon->n) {
        const cpu_attention_span *span = &soon->spans[soon->next];
        ahead = span->at + soon->row * span->stride + soon->line;
        step = span->stride;
        soon->row += run->a->tiles ? units * 2 / CPU_GEMM_TILES_K * CPU_GEMM_TILES_SOON : units;
        if (soon->row >= span->rows) {
            soon->row = 0, soon->line += LINE;
            if (soon->line >= span->bytes)
                soon->line = 0, soon->next++;
        }
    }
    cpu_gemm_micro_of(&run->a->code.products, h, vectors, l->row, run->a->unit)(units, left, l->row, l->unit, right, r->unit, sums, resume, ahead, step);
}

void cpu_attention_multiply(cpu_attention_run *run, const cpu_attention_product *p)
{
    const cpu_attention *a = run->a;
    int64_t row_bytes = a->tile.columns * a->sum_bytes;
    int halves = a->unit.k_per_unit - 1;             /* a unit is 1 << halves depths */
    int64_t begun = a->tiles ? base_round_up(p->begun, a->tile.heights[1]) : p->begun;
    for (int64_t row = 0; row < p->rows;) {
        int64_t resume = row < begun;
        int h = tile_height(a, (resume ? MIN(begun, p->rows) : p->rows) - row);
        int64_t height = a->tile.heights[h];
        int64_t from = MAX(row + p->low, 0) >> halves, to = MIN(row + height + p->high, p->depth);
        int64_t units = ((to + halves) >> halves) - from;
        if (a->tiles)
            from = 0, units = base_round_up(p->depth, CPU_GEMM_TILES_K) >> halves;
        const char *left = p->left.at + row * p->left.row + from * p->left.unit, *right = p->right.at + from * p->right.unit;
        char *sums = p->sums + row * row_bytes;
        for (int64_t column = 0; column < p->columns && (units > 0 || !resume); column += a->tile.columns) {
            if (units > 0)
                multiply_tile(run, h, p->columns - column <= a->tile.lanes ? 1 : 2, units, left, &p->left, right, &p->right, sums, resume);
            else
                memset(sums, 0, (size_t)(height * row_bytes));
            right += p->right.panel, sums += p->panel_bytes;
        }
        row += height;
    }
}

void cpu_attention_scores(cpu_attention_run *run, const cpu_attention_left *left, const cpu_attention_right *right, int64_t rows,
                          int64_t diagonal, char *scores)
{
    const cpu_attention *a = run->a;
    int64_t units = (a->shape.head_dim + a->unit.k_per_unit - 1) >> (a->unit.k_per_unit - 1),
            row_bytes = a->tile.columns * a->sum_bytes;
    if (units == 0) {
        memset(scores, 0, (size_t)(rows * row_bytes));
        return;
    }
    const char *second = right->at + a->tile.lanes * a->unit.bytes, *at = left->at;
    int64_t cut = diagonal + a->tile.lanes;          /* from here on, the first vector sees no row */
    for (int64_t row = 0; row < rows;) {
        int h = tile_height(a, (row < cut && !a->tiles ? MIN(cut, rows) : rows) - row);
        if (row >= cut)
            multiply_tile(run, h, 1, units, at, left, second, right, scores + row * row_bytes + a->tile.lanes * a->sum_bytes, 0);
        else
            multiply_tile(run, h, 2, units, at, left, right->at, right, scores + row * row_bytes, 0);
        row += a->tile.heights[h];
        at += a->tile.heights[h] * left->row;
    }
}

/* -- dropout ----------------------------------------------------------------------------------------------------------- */

void cpu_attention_fill_keep(const cpu_attention_run *run, int64_t row, int64_t key, int64_t keys, uint16_t *keep)
{
    const cpu_attention *a = run->a;
    const uint32_t *seed = (const uint32_t *)cpu_pointer(run->args, run->buffers, a->seed.arg);
    const uint32_t *counter = (const uint32_t *)cpu_pointer(run->args, run->buffers, a->counter.arg);
    cpu_attention_keep record = {.keep = keep,
                                 .keys = keys,
                                 .first = (run->head * a->shape.rows + row) * a->shape.keys + key,
                                 .query_stride = a->shape.keys,
                                 .seed = {seed[0], seed[a->seed.stride[0]]},
                                 .site = a->shape.site,
                                 .counter = *counter,
                                 .threshold = a->threshold};
    a->code.keep(&record);
}
