/* out and lse. A task is a few panels of queries of one head:
 *
 *     transpose the panels' q
 *     for block of keys that the last panel sees
 *         pack k, v
 *         for panel that sees some
 *             scores^T = k q^T
 *             p = exp(scores - most); sum; what was summed up before is scaled down where the maximum has grown
 *             sums += p v
 *     out = sums / sum; lse = most + log(sum)
 *
 * With tile registers sums^T += v^T p^T. */
#include "backend_cpu/attention.h"

#include <math.h>

typedef struct { cpu_attention_right q; char *sums, *most, *sum; } panel_state;

typedef struct {
    panel_state *panels;
    char *q, *sums, *statistics;                     /* of all panels */
    char *k, *v, *scores, *factors, *lse, *staging;
    uint16_t *keep;
} room;

static room lay_out(const cpu_attention *a, char *scratch, size_t *bytes)
{
    cpu_attention_room at = {scratch};
    int64_t width = a->tile.columns, line = width * a->sum_bytes, n = a->task_panels;
    int64_t staged = MAX(a->key_block, width) * a->shape.head_dim * MAX(a->element_bytes, a->sum_bytes);
    room r;
    r.panels = cpu_attention_take(&at, n * (int64_t)sizeof *r.panels);
    r.q = cpu_attention_take(&at, n * a->transposed_bytes);
    r.sums = cpu_attention_take(&at, n * a->head_panels * a->sums_bytes);
    r.statistics = cpu_attention_take(&at, n * 2 * line);
    r.k = cpu_attention_take(&at, a->key_block * a->row_bytes);
    r.v = cpu_attention_take(&at, a->tiles ? cpu_attention_across_bytes(a) : cpu_attention_right_bytes(a, a->key_block));
    r.scores = cpu_attention_take(&at, (a->key_block + 1) * line);
    r.factors = cpu_attention_take(&at, line);
    r.lse = cpu_attention_take(&at, line);
    r.keep = cpu_attention_take(&at, (a->key_block + 4) * 2 * (int64_t)sizeof *r.keep);
    r.staging = cpu_attention_take(&at, staged);
    *bytes = (size_t)(at.at - scratch);
    return r;
}

size_t cpu_attention_forward_scratch(const cpu_attention *a)
{
    size_t bytes;
    lay_out(a, NULL, &bytes);
    return bytes;
}

/* v of a block, as it comes into the product. */
typedef struct { cpu_attention_right right; cpu_attention_left across; } values;

typedef struct {
    cpu_attention_run run;
    room room;
    int64_t first_row, end_row;                      /* of this task, in whole panels */
} walk;

static int64_t rows_of(const walk *w, int64_t row) { return MIN(w->run.a->tile.columns, w->run.a->shape.rows - row); }

/* A panel at row sees keys below row + ahead. */
static int64_t ahead_of(const cpu_attention *a)
{
    return a->shape.causal ? a->shape.keys - a->shape.rows + a->tile.columns : CPU_ATTENTION_FAR;
}

/* How many keys of the block at key the task sees; 0 or less: none. */
static int64_t keys_of(const walk *w, int64_t key)
{
    const cpu_attention *a = w->run.a;
    return MIN(a->key_block, MIN(a->shape.keys, w->end_row - a->tile.columns + ahead_of(a)) - key);
}

static void expect(walk *w, const cpu_attention_tensor *t, int64_t head, int64_t row, int64_t rows)
{
    cpu_attention_expect(&w->run, t, w->run.a->element_bytes, head, row, rows);
}

static void expect_keys(walk *w, int64_t head, int64_t key)
{
    expect(w, &w->run.a->k, head, key, keys_of(w, key));
    expect(w, &w->run.a->v, head, key, keys_of(w, key));
}

static void expect_queries(walk *w, const cpu_attention_tensor *t, int64_t head)
{
    expect(w, t, head, w->first_row, MIN(w->end_row, w->run.a->shape.rows) - w->first_row);
}

/* One panel, from row row on, against keys key..key+keys-1. */
static void visit_block(walk *w, const panel_state *panel, int64_t row, int64_t key, int64_t keys, const cpu_attention_left *k,
                        const values *v)
{
    const cpu_attention *a = w->run.a;
    const kl_attention *s = &a->shape;
    const room *r = &w->room;
    int64_t diagonal = s->causal ? row + s->keys - s->rows - key : CPU_ATTENTION_FAR;
    cpu_attention_scores(&w->run, k, &panel->q, keys, diagonal, r->scores);
    if (s->dropout > 0)
        cpu_attention_fill_keep(&w->run, row, key, keys, r->keep);
    cpu_attention_block block = {.scores = r->scores,
                                 .keep = r->keep,
                                 .keys = keys,
                                 .diagonal = diagonal,
                                 .scale = s->scale * M_LOG2E,
                                 .keep_scale = a->keep_scale,
                                 .most = panel->most,
                                 .sum = panel->sum,
                                 .outputs = panel->sums,
                                 .factors = r->factors,
                                 .panels = a->head_panels,
                                 .panel_bytes = a->sums_bytes,
                                 .first = key == 0};
    a->code.softmax(&block);
    cpu_attention_product product = {.left = {r->scores, a->unit.bytes, a->tile.columns * a->unit.bytes},
                                     .right = v->right,
                                     .sums = panel->sums,
                                     .panel_bytes = a->sums_bytes,
                                     .rows = rows_of(w, row),
                                     .columns = s->head_dim,
                                     .depth = keys,
                                     .low = -CPU_ATTENTION_FAR,
                                     .high = diagonal,
                                     .begun = key > 0 ? CPU_ATTENTION_FAR : 0};
    if (a->tiles) {
        cpu_attention_fill_up(r->scores, (keys + 1) / 2, CPU_GEMM_TILES_K / 2, a->tile.columns * a->unit.bytes);
        product.right = (cpu_attention_right){r->scores, 0, a->tile.columns * a->unit.bytes};
        product.left = v->across;
        product.rows = s->head_dim;
        product.columns = rows_of(w, row);
    }
    cpu_attention_multiply(&w->run, &product);
}

static void store_panel(walk *w, const panel_state *panel, int64_t row)
{
    const cpu_attention *a = w->run.a;
    const room *r = &w->room;
    int64_t rows = rows_of(w, row);
    cpu_attention_close close = {panel->most, panel->sum, r->factors, r->lse, a->keep_scale};
    a->code.close(&close);
    cpu_attention_store store = {
        .from = panel->sums, .panel_bytes = a->sums_bytes, .rows = rows, .factors = r->factors, .factor_stride = 1};
    cpu_attention_store_rows(&w->run, a->tiles ? a->code.store_across : a->code.store, &a->out, a->element_bytes, row, &store, r->staging);
    char *lse = cpu_attention_at(&w->run, &a->lse, a->sum_bytes, w->run.head, row);
    cpu_attention_copy(a, lse, a->lse.stride[2], r->lse, 1, rows);
}

static void visit_keys(walk *w, int64_t key)
{
    const cpu_attention *a = w->run.a;
    const room *r = &w->room;
    int64_t keys = keys_of(w, key), width = a->tile.columns;
    cpu_attention_matrix k = cpu_attention_rows(&w->run, &a->k, key, keys, r->staging);
    cpu_attention_left left = cpu_attention_pack_left(a, &k, keys, r->k);
    cpu_attention_matrix v = cpu_attention_rows(&w->run, &a->v, key, keys, r->staging);
    values packed = {{0}, {0}};
    if (a->tiles)
        packed.across = cpu_attention_pack_across(a, &v, keys, r->v);
    else
        packed.right = cpu_attention_pack_right(a, &v, keys, r->v);

    int64_t next = key + a->key_block;
    cpu_attention_clear(&w->run);
    if (keys_of(w, next) > 0) {
        expect_keys(w, w->run.head, next);
    } else {
        expect_queries(w, &a->out, w->run.head);
        if (w->run.head + 1 < w->run.end_head) {
            expect_queries(w, &a->q, w->run.head + 1);
            expect_keys(w, w->run.head + 1, 0);
        }
    }
    for (int64_t row = w->first_row, i = 0; row < w->end_row; row += width, i++) {
        int64_t seen = MIN(keys, row + ahead_of(a) - key);
        if (seen > 0)
            visit_block(w, &r->panels[i], row, key, seen, &left, &packed);
    }
}

static void visit_head(walk *w)
{
    const cpu_attention *a = w->run.a;
    int64_t width = a->tile.columns, line = width * a->sum_bytes;
    for (int64_t row = w->first_row, i = 0; row < w->end_row; row += width, i++) {
        cpu_attention_matrix q = cpu_attention_rows(&w->run, &a->q, row, rows_of(w, row), w->room.staging);
        panel_state *panel = &w->room.panels[i];
        panel->q = cpu_attention_pack_transposed(a, &q, rows_of(w, row), w->room.q + i * a->transposed_bytes);
        panel->sums = w->room.sums + i * a->head_panels * a->sums_bytes;
        panel->most = w->room.statistics + 2 * i * line, panel->sum = panel->most + line;
    }
    for (int64_t key = 0; keys_of(w, key) > 0; key += a->key_block)
        visit_keys(w, key);
    for (int64_t row = w->first_row, i = 0; row < w->end_row; row += width, i++)
        store_panel(w, &w->room.panels[i], row);
}

/* Tasks of all heads with the last panels, which see most keys, come first. */
void cpu_attention_forward(const int64_t *args, char *const *buffers, int64_t task, char *scratch)
{
    const cpu_attention *a = (const cpu_attention *)(intptr_t)args[0];
    int64_t heads = a->shape.batch * a->shape.heads, groups = (heads + a->group - 1) / a->group, width = a->tile.columns;
    size_t bytes;
    walk w = {.run = {.a = a, .args = args, .buffers = buffers}, .room = lay_out(a, scratch, &bytes)};
    cpu_attention_begin_heads(&w.run, task % groups * a->group, MIN(heads, (task % groups + 1) * a->group));
    w.first_row = (a->row_tasks - 1 - task / groups) * a->task_panels * width;
    w.end_row = MIN(w.first_row + a->task_panels * width, a->panels * width);
    expect_queries(&w, &a->q, w.run.head);
    expect_keys(&w, w.run.head, 0);
    cpu_attention_fetch_now(&w.run);
    cpu_attention_begin_tiles(a);
    for (; w.run.head < w.run.end_head; w.run.head++)
        visit_head(&w);
    cpu_attention_end_tiles(a);
}
