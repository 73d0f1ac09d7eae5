/* dq, dk and dv. A task is a head, or a range of its keys where there are few heads:
 *
 *     delta = sum(dout * out) - dlse, of all queries
 *     for block of keys
 *         pack k, v
 *         for panel of queries that sees some
 *             scores^T = k q^T                dp^T = v dout^T
 *             p = exp(scores - lse)           dscores = p (dp - delta)
 *             dv += p^T dout                  dk += dscores^T q               dq += dscores k
 *         store dk, dv
 *     store dq
 *
 * With tile registers dq^T += k^T dscores^T.
 *
 * dq of all queries is summed up in scratch. Where the keys of a head are split, each task leaves its part in
 * workspace, and a second phase adds them up in order. */
#include "backend_cpu/attention.h"

#include <math.h>
#include <string.h>

typedef struct {
    cpu_attention_run run;
    int64_t first_key, end_key;                      /* this task's keys */
    char *dq;                                        /* sums[panel][head panel][W][W] */
    char *lse, *delta;                               /* s[panels][W] */
    char *k, *k_right, *v, *dk, *dv;                 /* a block of keys */
    char *q, *q_right, *dout, *dout_right;           /* a panel of queries, transposed and as operand B over queries */
    int64_t begun;                                   /* of its keys: those that dk and dv hold sums of */
    char *scores, *gradients, *pairs, *staging[2];
    uint16_t *keep;
} walk;

static walk lay_out(const cpu_attention *a, char *scratch, size_t *bytes)
{
    cpu_attention_room at = {scratch};
    int64_t width = a->tile.columns, line = width * a->sum_bytes, keys = a->key_block;
    int64_t staged = MAX(keys, width) * a->shape.head_dim * MAX(a->element_bytes, a->sum_bytes);
    walk w = {.run.a = a};
    w.dq = cpu_attention_take(&at, a->splits > 1 ? 0 : a->panels * a->head_panels * a->sums_bytes);
    w.lse = cpu_attention_take(&at, a->panels * line);
    w.delta = cpu_attention_take(&at, a->panels * line);
    w.k = cpu_attention_take(&at, keys * a->row_bytes);
    w.k_right = cpu_attention_take(&at, a->tiles ? cpu_attention_across_bytes(a) : a->unit.k_per_unit == 2 ? cpu_attention_right_bytes(a, keys) : 0);
    w.v = cpu_attention_take(&at, keys * a->row_bytes);
    w.dk = cpu_attention_take(&at, a->head_panels * keys * line);
    w.dv = cpu_attention_take(&at, a->head_panels * keys * line);
    w.q = cpu_attention_take(&at, a->transposed_bytes);
    w.dout = cpu_attention_take(&at, a->transposed_bytes);
    w.q_right = cpu_attention_take(&at, cpu_attention_right_bytes(a, width));
    w.dout_right = cpu_attention_take(&at, cpu_attention_right_bytes(a, width));
    w.scores = cpu_attention_take(&at, (keys + 1) * line);
    w.gradients = cpu_attention_take(&at, (keys + 1) * line);
    w.pairs = cpu_attention_take(&at, a->unit.k_per_unit == 2 ? (keys + 1) / 2 * line : 0);
    w.keep = cpu_attention_take(&at, (keys + 4) * 2 * (int64_t)sizeof *w.keep);
    w.staging[0] = cpu_attention_take(&at, staged);
    w.staging[1] = cpu_attention_take(&at, staged);
    *bytes = (size_t)(at.at - scratch);
    return w;
}

size_t cpu_attention_backward_scratch(const cpu_attention *a)
{
    size_t bytes;
    lay_out(a, NULL, &bytes);
    return bytes;
}

static int64_t dq_bytes(const cpu_attention *a) { return a->panels * a->head_panels * a->sums_bytes; }

size_t cpu_attention_backward_workspace(const cpu_attention *a)
{
    return a->splits > 1 ? (size_t)(a->shape.batch * a->shape.heads * a->splits * dq_bytes(a)) : 0;
}

/* Where causal, keys from row + ahead on see nothing of the panel at row. */
static int64_t ahead_of(const cpu_attention *a)
{
    return a->shape.causal ? a->shape.keys - a->shape.rows + a->tile.columns : CPU_ATTENTION_FAR;
}

/* The first panel that sees key. */
static int64_t first_panel(const cpu_attention *a, int64_t key)
{
    int64_t row = key - ahead_of(a) + 1;
    return row <= 0 ? 0 : (row + a->tile.columns - 1) / a->tile.columns;
}

static int64_t rows_of(const walk *w, int64_t panel)
{
    return MIN(w->run.a->tile.columns, w->run.a->shape.rows - panel * w->run.a->tile.columns);
}

static int64_t keys_of(const walk *w, int64_t key) { return MIN(w->run.a->key_block, w->end_key - key); }

static void expect(walk *w, const cpu_attention_tensor *t, int bytes, int64_t head, int64_t row, int64_t rows)
{
    cpu_attention_expect(&w->run, t, bytes, head, row, rows);
}

static void expect_panel(walk *w, int64_t head, int64_t panel, bool with_out)
{
    const cpu_attention *a = w->run.a;
    int64_t row = panel * a->tile.columns, rows = rows_of(w, panel);
    expect(w, &a->q, a->element_bytes, head, row, rows);
    expect(w, &a->dout, a->element_bytes, head, row, rows);
    if (with_out)
        expect(w, &a->out, a->element_bytes, head, row, rows);
}

static void expect_keys(walk *w, int64_t head, int64_t key)
{
    expect(w, &w->run.a->k, w->run.a->element_bytes, head, key, keys_of(w, key));
    expect(w, &w->run.a->v, w->run.a->element_bytes, head, key, keys_of(w, key));
}

/* lse and delta of a panel, side by side. Lanes without a query get an lse of infinity: a probability of 0. */
static void load_statistics(const walk *w, int64_t panel)
{
    const cpu_attention *a = w->run.a;
    const kl_attention *s = &a->shape;
    int64_t width = a->tile.columns, row = panel * width, rows = rows_of(w, panel), at = panel * width;
    cpu_attention_matrix out = cpu_attention_rows(&w->run, &a->out, row, rows, w->staging[0]);
    cpu_attention_matrix dout = cpu_attention_rows(&w->run, &a->dout, row, rows, w->staging[1]);
    cpu_attention_dots dots = {
        dout.at, out.at, dout.row_stride, out.row_stride, rows, s->head_dim, w->delta + at * a->sum_bytes};
    a->code.dots(&dots);
    char *lse = w->lse + at * a->sum_bytes, *delta = w->delta + at * a->sum_bytes;
    cpu_attention_copy(a, lse, 1, cpu_attention_at(&w->run, &a->lse, a->sum_bytes, w->run.head, row), a->lse.stride[2], rows);
    const char *dlse = a->dlse.arg < 0 ? NULL : cpu_attention_at(&w->run, &a->dlse, a->sum_bytes, w->run.head, row);
#define FINISH(type)                                                                     \
    for (int64_t i = 0; dlse && i < rows; i++)                                           \
        ((type *)delta)[i] -= ((const type *)dlse)[i * a->dlse.stride[2]];               \
    for (int64_t i = rows; i < width; i++)                                               \
        ((type *)lse)[i] = INFINITY, ((type *)delta)[i] = 0;
    if (a->sum_bytes == 8) {
        FINISH(double)
    } else {
        FINISH(float)
    }
#undef FINISH
}

/* k of a block as an operand with keys as depth. */
typedef struct { cpu_attention_right right; cpu_attention_left across; } keys_over_depth;

/* One panel against the block of keys from key on, of which it sees `keys`. */
static void visit_panel(walk *w, int64_t panel, int64_t key, int64_t keys, const cpu_attention_left *k,
                        const cpu_attention_left *v, const keys_over_depth *over)
{
    const cpu_attention *a = w->run.a;
    const kl_attention *s = &a->shape;
    int64_t width = a->tile.columns, row = panel * width, rows = rows_of(w, panel), line = width * a->sum_bytes;
    int64_t diagonal = s->causal ? row + s->keys - s->rows - key : CPU_ATTENTION_FAR;
    cpu_attention_matrix q = cpu_attention_rows(&w->run, &a->q, row, rows, w->staging[0]);
    cpu_attention_matrix dout = cpu_attention_rows(&w->run, &a->dout, row, rows, w->staging[1]);

    /* Both at once while their rows are near. */
    cpu_attention_right q_across = cpu_attention_pack_transposed(a, &q, rows, w->q), q_over = cpu_attention_pack_right(a, &q, rows, w->q_right);
    cpu_attention_right dout_across = cpu_attention_pack_transposed(a, &dout, rows, w->dout),
                        dout_over = cpu_attention_pack_right(a, &dout, rows, w->dout_right);
    cpu_attention_scores(&w->run, k, &q_across, keys, diagonal, w->scores);
    cpu_attention_scores(&w->run, v, &dout_across, keys, diagonal, w->gradients);
    if (s->dropout > 0)
        cpu_attention_fill_keep(&w->run, row, key, keys, w->keep);
    cpu_attention_block block = {.scores = w->scores,
                                 .gradients = w->gradients,
                                 .pairs = w->pairs,
                                 .keep = w->keep,
                                 .keys = keys,
                                 .diagonal = diagonal,
                                 .scale = s->scale * M_LOG2E,
                                 .keep_scale = a->keep_scale,
                                 .lse = w->lse + panel * line,
                                 .delta = w->delta + panel * line};
    a->code.gradient(&block);

    if (a->tiles) {
        cpu_attention_fill_up(w->scores, keys, a->tile.heights[0], line / 2);
        cpu_attention_fill_up(w->gradients, keys, a->tile.heights[0], line / 2);
        cpu_attention_fill_up(w->pairs, (keys + 1) / 2, CPU_GEMM_TILES_K / 2, line);
    }
    /* Over queries: those from key - diagonal on see a key. */
    int64_t over_queries = a->unit.k_per_unit == 2 ? line / 2 : line, key_panel = a->key_block * line;
    cpu_attention_product product = {
        .left = {w->scores, over_queries, a->unit.bytes}, .right = dout_over,
        .sums = w->dv, .panel_bytes = key_panel, .rows = keys, .columns = s->head_dim, .depth = rows,
        .low = -diagonal, .high = CPU_ATTENTION_FAR, .begun = w->begun };
    cpu_attention_multiply(&w->run, &product);
    product.left.at = w->gradients;
    product.right = q_over;
    product.sums = w->dk;
    cpu_attention_multiply(&w->run, &product);
    w->begun = keys;                                 /* no panel sees less than the one before */

    product = (cpu_attention_product){
        .left = {a->unit.k_per_unit == 2 ? w->pairs : w->gradients, a->unit.bytes, width * a->unit.bytes},
        .right = over->right,
        .sums = w->dq + panel * a->head_panels * a->sums_bytes,
        .panel_bytes = a->sums_bytes,
        .rows = rows,
        .columns = s->head_dim,
        .depth = keys,
        .low = -CPU_ATTENTION_FAR,
        .high = diagonal,
        .begun = key > w->first_key ? CPU_ATTENTION_FAR : 0};
    if (a->tiles) {
        product.left = over->across;
        product.right = (cpu_attention_right){w->pairs, 0, line};
        product.rows = s->head_dim, product.columns = rows;
    }
    cpu_attention_multiply(&w->run, &product);
}

/* sums[head panel][rows][W] times factor, in the type of sums, to rows of a gradient. */
static void store_gradient(const walk *w, const cpu_attention_tensor *t, int64_t row, int64_t rows, const char *sums,
                           int64_t panel_bytes, double factor)
{
    const cpu_attention *a = w->run.a;
    float f32 = (float)factor;
    cpu_attention_store store = {.from = sums, .panel_bytes = panel_bytes, .rows = rows,
                                 .factors = a->sum_bytes == 8 ? (void *)&factor : (void *)&f32};
    cpu_attention_store_rows(&w->run, a->code.store, t, a->grad_bytes, row, &store, w->staging[0]);
}

static void store_dq(const walk *w, int64_t panel, const char *sums)
{
    const cpu_attention *a = w->run.a;
    if (a->tiles) {
        float factors[64];
        CHECK(a->tile.columns <= (int)COUNT_OF(factors), "expected panels of at most 64 queries, got %d", a->tile.columns);
        for (int i = 0; i < a->tile.columns; i++)
            factors[i] = (float)a->shape.scale;
        cpu_attention_store store = {.from = sums, .rows = rows_of(w, panel), .factors = factors};
        cpu_attention_store_rows(&w->run, a->code.store_across, &a->dq, a->grad_bytes, panel * a->tile.columns, &store, w->staging[0]);
        return;
    }
    store_gradient(w, &w->run.a->dq, panel * w->run.a->tile.columns, rows_of(w, panel), sums, w->run.a->sums_bytes,
                   w->run.a->shape.scale);
}

static void visit_keys(walk *w, int64_t key)
{
    const cpu_attention *a = w->run.a;
    const kl_attention *s = &a->shape;
    int64_t keys = keys_of(w, key), line = a->tile.columns * a->sum_bytes, width = a->tile.columns;
    cpu_attention_matrix m = cpu_attention_rows(&w->run, &a->k, key, keys, w->staging[0]);
    cpu_attention_left k = cpu_attention_pack_left(a, &m, keys, w->k);
    keys_over_depth over = {{k.at, width * a->unit.bytes, k.row}, {0}};
    if (a->tiles)
        over.across = cpu_attention_pack_across(a, &m, keys, w->k_right);
    else if (a->unit.k_per_unit == 2)
        over.right = cpu_attention_pack_right(a, &m, keys, w->k_right);
    m = cpu_attention_rows(&w->run, &a->v, key, keys, w->staging[0]);
    cpu_attention_left v = cpu_attention_pack_left(a, &m, keys, w->v);
    w->begun = 0;

    bool first = key == w->first_key, last = key + a->key_block >= w->end_key;
    for (int64_t panel = first_panel(a, key); panel < a->panels; panel++) {
        cpu_attention_clear(&w->run);
        if (panel + 1 < a->panels) {
            expect_panel(w, w->run.head, panel + 1, first);
        } else {
            expect(w, &a->dk, a->grad_bytes, w->run.head, key, keys);
            expect(w, &a->dv, a->grad_bytes, w->run.head, key, keys);
            int64_t head = last ? w->run.head + 1 : w->run.head, next = last ? w->first_key : key + a->key_block;
            if (head < w->run.end_head) {
                expect_keys(w, head, next);
                expect_panel(w, head, first_panel(a, next), last);
            }
        }
        bool whole = a->splits == 1 &&
                     (last || panel * width + ahead_of(a) <= key + keys); /* the panel sees no later keys */
        if (whole)
            expect(w, &a->dq, a->grad_bytes, w->run.head, panel * width, rows_of(w, panel));
        if (first)
            load_statistics(w, panel);
        visit_panel(w, panel, key, MIN(keys, panel * width + ahead_of(a) - key), &k, &v, &over);
        if (whole)
            store_dq(w, panel, w->dq + panel * a->head_panels * a->sums_bytes);
    }
    if (w->begun == 0) {                             /* there are no queries */
        memset(w->dk, 0, (size_t)(a->head_panels * a->key_block * line));
        memset(w->dv, 0, (size_t)(a->head_panels * a->key_block * line));
    }
    store_gradient(w, &a->dk, key, keys, w->dk, a->key_block * line, s->scale);
    store_gradient(w, &a->dv, key, keys, w->dv, a->key_block * line, a->keep_scale);
}

/* Where causal, the first keys are seen by most queries: the tasks that have them come first. */
void cpu_attention_backward(const int64_t *args, char *const *buffers, int64_t task, char *scratch)
{
    const cpu_attention *a = (const cpu_attention *)(intptr_t)args[0];
    int64_t heads = a->shape.batch * a->shape.heads, groups = (heads + a->group - 1) / a->group, split = task / groups;
    size_t bytes;
    walk w = lay_out(a, scratch, &bytes);
    w.run.args = args, w.run.buffers = buffers;
    cpu_attention_begin_heads(&w.run, task % groups * a->group, MIN(heads, (task % groups + 1) * a->group));
    w.first_key = split * a->split_blocks * a->key_block;
    w.end_key = MIN(a->shape.keys, w.first_key + a->split_blocks * a->key_block);
    expect_keys(&w, w.run.head, w.first_key);
    if (first_panel(a, w.first_key) < a->panels)
        expect_panel(&w, w.run.head, first_panel(a, w.first_key), true);
    cpu_attention_fetch_now(&w.run);
    cpu_attention_begin_tiles(a);
    for (; w.run.head < w.run.end_head; w.run.head++) {
        if (a->splits > 1)
            w.dq = cpu_pointer(args, buffers, a->workspace) + (w.run.head * a->splits + split) * dq_bytes(a);
        for (int64_t key = w.first_key; key < w.end_key; key += a->key_block)
            visit_keys(&w, key);
    }
    cpu_attention_end_tiles(a);
}

/* dq of a panel: the parts of all splits whose first key it sees, added to the first one's. */
void cpu_attention_add_splits(const int64_t *args, char *const *buffers, int64_t task, char *scratch)
{
    const cpu_attention *a = (const cpu_attention *)(intptr_t)args[0];
    size_t bytes;
    walk w = lay_out(a, scratch, &bytes);
    w.run.args = args, w.run.buffers = buffers;
    cpu_attention_begin_heads(&w.run, task / a->panels, task / a->panels + 1);
    int64_t panel = task % a->panels, count = a->head_panels * a->sums_bytes / a->sum_bytes;
    char *part = cpu_pointer(args, buffers, a->workspace) + w.run.head * a->splits * dq_bytes(a) +
                 panel * a->head_panels * a->sums_bytes;
    for (int64_t split = 1; split < a->splits && first_panel(a, split * a->split_blocks * a->key_block) <= panel; split++) {
        const char *other = part + split * dq_bytes(a);
        for (int64_t i = 0; i < count; i++)
            if (a->sum_bytes == 8)
                ((double *)part)[i] += ((const double *)other)[i];
            else
                ((float *)part)[i] += ((const float *)other)[i];
    }
    store_dq(&w, panel, part);
}
