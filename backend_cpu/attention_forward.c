/* out and lse. A task is a few panels of queries of one head:
 *
 *     transpose the panels' q
 *     for block of keys that the last panel sees
 *         pack k, v
 *         for panel that sees some
 *             scores^T = k q^T
 *             p = exp(scores - most); sum; what was summed up before is scaled down where the maximum has grown
 *             sums += p v
 *     out = sums / sum; lse = most + log(sum) */
#include "backend_cpu/attention.h"

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
    r.v = cpu_attention_take(&at, cpu_attention_right_bytes(a, a->key_block));
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

/* One panel, from row row on, against keys key..key+keys-1. */
static void visit_block(const cpu_attention *a, const int64_t *args, char *const *buffers, const room *r, const panel_state *panel,
                        int64_t head, int64_t row, int64_t key, int64_t keys, cpu_attention_left k, cpu_attention_right v)
{
    const kl_attention *s = &a->shape;
    int64_t diagonal = s->causal ? row + s->keys - s->rows - key : CPU_ATTENTION_FAR;
    cpu_attention_scores(a, k, panel->q, keys, diagonal, r->scores);
    if (s->dropout > 0)
        cpu_attention_fill_keep(a, args, buffers, head, row, key, keys, r->keep);
    cpu_attention_block block = {
        .scores = r->scores, .keep = r->keep, .keys = keys, .diagonal = diagonal, .scale = s->scale, .keep_scale = a->keep_scale,
        .most = panel->most, .sum = panel->sum, .outputs = panel->sums, .factors = r->factors,
        .panels = a->head_panels, .panel_bytes = a->sums_bytes, .first = key == 0 };
    a->code.softmax(&block);
    cpu_attention_product product = {
        .left = {r->scores, a->unit.bytes, a->tile.columns * a->unit.bytes}, .right = v, .sums = panel->sums, .panel_bytes = a->sums_bytes,
        .rows = MIN(a->tile.columns, s->rows - row), .columns = s->head_dim, .depth = keys,
        .low = -CPU_ATTENTION_FAR, .high = diagonal, .resume = key > 0 };
    cpu_attention_multiply(a, &product);
}

static void store_panel(const cpu_attention *a, const int64_t *args, char *const *buffers, const room *r, const panel_state *panel,
                        int64_t head, int64_t row)
{
    const kl_attention *s = &a->shape;
    int64_t rows = MIN(a->tile.columns, s->rows - row);
    cpu_attention_close close = {panel->most, panel->sum, r->factors, r->lse, a->keep_scale};
    a->code.close(&close);
    cpu_attention_store store = {.from = panel->sums, .panel_bytes = a->sums_bytes, .rows = rows, .factors = r->factors, .factor_stride = 1};
    cpu_attention_store_rows(a, args, buffers, &a->out, a->element_bytes, head, row, store, r->staging);
    char *lse = cpu_attention_at(a, args, buffers, &a->lse, a->sum_bytes, head, row);
    for (int64_t i = 0; i < rows; i++)
        if (a->sum_bytes == 8)
            ((double *)lse)[i * a->lse.stride[2]] = ((double *)r->lse)[i];
        else
            ((float *)lse)[i * a->lse.stride[2]] = ((float *)r->lse)[i];
}

/* Tasks of all heads with the last panels, which see most keys, come first. */
void cpu_attention_forward(const int64_t *args, char *const *buffers, int64_t task, char *scratch)
{
    const cpu_attention *a = (const cpu_attention *)(intptr_t)args[0];
    const kl_attention *s = &a->shape;
    int64_t heads = s->batch * s->heads, width = a->tile.columns, line = width * a->sum_bytes;
    int64_t head = task % heads, first = (a->row_tasks - 1 - task / heads) * a->task_panels, n = MIN(a->task_panels, a->panels - first);
    size_t bytes;
    room r = lay_out(a, scratch, &bytes);

    for (int64_t i = 0; i < n; i++) {
        int64_t row = (first + i) * width, rows = MIN(width, s->rows - row);
        cpu_attention_matrix q = cpu_attention_rows(a, args, buffers, &a->q, head, row, rows, r.staging);
        panel_state *panel = &r.panels[i];
        panel->q = cpu_attention_pack_transposed(a, q, rows, r.q + i * a->transposed_bytes);
        panel->sums = r.sums + i * a->head_panels * a->sums_bytes;
        panel->most = r.statistics + 2 * i * line, panel->sum = panel->most + line;
    }
    for (int64_t key = 0; key < s->keys; key += a->key_block) {
        int64_t ahead = s->causal ? s->keys - s->rows + width : CPU_ATTENTION_FAR;      /* a panel sees keys below row + ahead */
        int64_t keys = MIN(a->key_block, MIN(s->keys, (first + n - 1) * width + ahead) - key);
        if (keys <= 0)
            break;
        cpu_attention_matrix k = cpu_attention_rows(a, args, buffers, &a->k, head, key, keys, r.staging);
        cpu_attention_left left = cpu_attention_pack_left(a, k, keys, r.k);
        cpu_attention_matrix v = cpu_attention_rows(a, args, buffers, &a->v, head, key, keys, r.staging);
        cpu_attention_right right = cpu_attention_pack_right(a, v, keys, r.v);
        for (int64_t i = 0; i < n; i++) {
            int64_t row = (first + i) * width, seen = MIN(keys, row + ahead - key);
            if (seen > 0)
                visit_block(a, args, buffers, &r, &r.panels[i], head, row, key, seen, left, right);
        }
    }
    for (int64_t i = 0; i < n; i++)
        store_panel(a, args, buffers, &r, &r.panels[i], head, (first + i) * width);
}
