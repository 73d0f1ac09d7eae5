/* The driver of a product: walks the blocks of a plan (gemm.c), task by task, and calls the generated pieces.
 *
 * A task's tiles are visited by depth, by blocks of rows, by panels of B, and down the rows. A panel of B is packed where it is first
 * met, so that it is close to the core while the tiles below it are computed; meanwhile micro-kernels fetch into the second-level
 * cache, a line a step, what the next panel needs, be it of the task that this thread is likely to take next: its source in memory, and
 * the lines of C that its tiles end in. Packing a panel of weights takes a quarter of the time then, and a store that waits for its line
 * holds up no store after it (2 cores of a Zen 4: products with 256 rows of A 5 to 8 % faster).
 *
 * Rows of A that are read in place, or were packed for all, come from far away at the first panel of their block. If nothing else is to be
 * fetched there, and rows lie side by side, a tile fetches the rows of the next one: about as many lines as it has units (16384x384 of A in
 * bf16: 65 columns 20 % faster, 384 columns 5 %). */
#include "backend_cpu/gemm.h"

#include <string.h>

enum { LINE = 64 };

static const char *operand_at(const cpu_gemm *gemm, const cpu_gemm_operand *operand, int64_t batch)
{
    int64_t offset = 0;
    for (int axis = gemm->batch_axes - 1; axis >= 0; axis--) {
        offset += batch % gemm->batch[axis] * operand->batch_stride[axis];
        batch /= gemm->batch[axis];
    }
    return (const char *)operand->at + offset * operand->element_bytes;
}

static int64_t depth_of(const cpu_gemm_plan *plan, int64_t block)
{
    return MIN(plan->block_depth, plan->shape.k - block * plan->block_depth);
}

/* -- packing ------------------------------------------------------------------------------------------------------------ */

static char *shared_panel(const cpu_gemm *gemm, int64_t batch, int64_t depth_block, int64_t panel)
{
    const cpu_gemm_plan *plan = &gemm->plan;
    int64_t panels = base_divide_up(plan->shape.n, plan->tile.columns);
    return (char *)gemm->workspace + ((batch * plan->depth_blocks + depth_block) * panels + panel) * plan->b_panel_bytes;
}

/* So many lines of A or B at this depth, packed to `to` and on. */
static void pack(const cpu_gemm *gemm, const cpu_gemm_operand *o, int64_t batch, int64_t depth_block, int64_t line, int64_t lines, char *to)
{
    bool is_b = o == &gemm->b;
    cpu_gemm_block block = {
        .source = operand_at(gemm, o, batch), .line_stride = o->line_stride, .k_stride = o->k_stride, .user = o->user,
        .batch = batch, .line = line, .lines = lines, .k = depth_block * gemm->plan.block_depth, .depth = depth_of(&gemm->plan, depth_block),
        .to = to, .to_stride = is_b ? gemm->plan.b_panel_bytes : gemm->plan.a_line_bytes };
    (is_b ? gemm->code.pack_b : gemm->code.pack_a)(&block);
}

static char *shared_rows(const cpu_gemm *gemm, int64_t batch, int64_t depth_block, int64_t share)
{
    const cpu_gemm_plan *plan = &gemm->plan;
    int64_t shares = base_divide_up(plan->shape.m, plan->a_share);
    return (char *)gemm->workspace + plan->shared_a + ((batch * plan->depth_blocks + depth_block) * shares + share) * plan->a_share_bytes;
}

/* A panel of B; behind them, a panel or a tile's rows of A. */
static void pack_shared(const cpu_gemm *gemm, int64_t task)
{
    const cpu_gemm_plan *plan = &gemm->plan;
    int64_t columns = plan->tile.columns, panels = plan->b_way == CPU_GEMM_SHARED ? base_divide_up(plan->shape.n, columns) : 0;
    int64_t all = panels + (plan->a_way == CPU_GEMM_SHARED ? base_divide_up(plan->shape.m, plan->a_share) : 0);
    int64_t panel = task % all, depth_block = task / all % plan->depth_blocks, batch = task / all / plan->depth_blocks;
    if (panel < panels) {
        pack(gemm, &gemm->b, batch, depth_block, panel * columns, MIN(columns, plan->shape.n - panel * columns), shared_panel(gemm, batch, depth_block, panel));
        return;
    }
    panel -= panels;
    int64_t row = panel * plan->a_share;
    pack(gemm, &gemm->a, batch, depth_block, row, MIN(plan->a_share, plan->shape.m - row), shared_rows(gemm, batch, depth_block, panel));
}

/* -- a task of the product, and its operands ------------------------------------------------------------------------------ */

/* An operand as the micro-kernel reads it: lines (rows of A, panels of B) and units, in bytes. */
typedef struct { const char *at; int64_t line, unit; } operand_view;

typedef struct {
    const cpu_gemm *gemm;
    char *scratch;
    int64_t batch, row_task;
    int64_t row, rows, column, columns;          /* of C, this task's */
    const char *touched[CPU_GEMM_TOUCHED];       /* of this batch */
} task_state;

/* B at a depth: panel p of the task is at + p * line, once it is packed. */
static operand_view view_b(const task_state *t, int64_t depth_block)
{
    const cpu_gemm *gemm = t->gemm;
    const cpu_gemm_plan *plan = &gemm->plan;
    int64_t packed_unit = (int64_t)plan->tile.columns * plan->unit.bytes;
    switch (plan->b_way) {
    case CPU_GEMM_DIRECT: {
        int64_t offset = depth_block * plan->block_depth * gemm->b.k_stride + t->column * gemm->b.line_stride;
        const char *at = operand_at(gemm, &gemm->b, t->batch) + offset * plan->unit.bytes;
        return (operand_view){at, packed_unit, gemm->b.k_stride * plan->unit.bytes};
    }
    case CPU_GEMM_LOCAL:
        return (operand_view){t->scratch + plan->scratch_b, plan->keeps_panels ? plan->b_panel_bytes : 0, packed_unit};
    case CPU_GEMM_SHARED:
        break;
    }
    return (operand_view){shared_panel(gemm, t->batch, depth_block, t->column / plan->tile.columns), plan->b_panel_bytes, packed_unit};
}

/* Rows row..row+rows-1 of A at a depth, packed if need be. */
static operand_view view_a(const task_state *t, int64_t depth_block, int64_t row, int64_t rows)
{
    const cpu_gemm *gemm = t->gemm;
    const cpu_gemm_plan *plan = &gemm->plan;
    const cpu_gemm_operand *a = &gemm->a;
    int64_t k = depth_block * plan->block_depth, element = plan->unit.bytes / plan->unit.k_per_unit;
    if (plan->a_way == CPU_GEMM_DIRECT) {
        const char *at = operand_at(gemm, a, t->batch) + (k * a->k_stride + row * a->line_stride) * element;
        return (operand_view){at, a->line_stride * element, a->k_stride * plan->unit.bytes};
    }
    /* SHARED: from row 0 on, for a task may begin within a panel. */
    char *to = plan->a_way == CPU_GEMM_SHARED ? shared_rows(gemm, t->batch, depth_block, 0) : t->scratch + plan->scratch_a;
    if (plan->a_way == CPU_GEMM_LOCAL)
        pack(gemm, &gemm->a, t->batch, depth_block, row, rows, to);
    if (plan->packs_rows)
        return (operand_view){to, plan->a_line_bytes, plan->unit.bytes};
    return (operand_view){to, plan->unit.bytes, plan->a_panel * plan->unit.bytes};
}

/* -- what is needed soon ------------------------------------------------------------------------------------------------- */

/* Lines of cache a constant step apart. */
typedef struct { const char *at; int64_t step, lines; } run;
enum { RUNS = 32 };
typedef struct { int next, n; run runs[RUNS]; } soon_list;

static void add_run(soon_list *soon, const char *at, int64_t step, int64_t lines)
{
    if (soon->n < RUNS)
        soon->runs[soon->n++] = (run){at, step, lines};
}

/* So many bytes of each of these rows. A micro-kernel fetches a line at each of its units, whether the run is that long or not: false
 * where that would fetch much that nobody needs. */
static bool add_rows(soon_list *soon, const char *at, int64_t stride, int64_t rows, int64_t bytes, int64_t units)
{
    if (stride >= bytes && stride <= 2 * bytes) {
        add_run(soon, at, LINE, base_divide_up(rows * stride, LINE));
        return true;
    }
    if (2 * rows < units)
        return false;
    for (int64_t byte = -(int64_t)((uintptr_t)at % LINE); byte < bytes; byte += LINE)
        add_run(soon, at + byte, stride, rows);
    return true;
}

/* So many lines of an operand from `line` on, `depth` deep from k on, if either lies side by side in memory. */
static void add_source(soon_list *soon, const cpu_gemm *gemm, const cpu_gemm_operand *o, int64_t batch, int64_t line, int64_t lines, int64_t k, int64_t depth)
{
    int64_t units = base_divide_up(depth, gemm->plan.unit.k_per_unit);
    const char *at = operand_at(gemm, o, batch) + (k * o->k_stride + line * o->line_stride) * o->element_bytes;
    if (o->line_stride == 1)
        add_rows(soon, at, o->k_stride * o->element_bytes, depth, lines * o->element_bytes, units);
    else if (o->k_stride == 1)
        add_rows(soon, at, o->line_stride * o->element_bytes, lines, depth * o->element_bytes, units);
}

/* Where a task is. */
typedef struct { int64_t depth_block, row, panel; } place;

/* What the tiles at a place need: of B what is packed there, or what was, and of C what they end in. Returns whether C is among it. */
static bool add_panel(const task_state *t, place next, soon_list *soon)
{
    const cpu_gemm *gemm = t->gemm;
    const cpu_gemm_plan *plan = &gemm->plan;
    const cpu_gemm_operand *b = &gemm->b;
    int64_t column = t->column + next.panel * plan->tile.columns, columns = MIN(plan->tile.columns, t->column + t->columns - column);
    int64_t k = next.depth_block * plan->block_depth, depth = depth_of(plan, next.depth_block), units = base_divide_up(depth, plan->unit.k_per_unit);
    if (plan->b_way == CPU_GEMM_SHARED) {
        add_run(soon, shared_panel(gemm, t->batch, next.depth_block, column / plan->tile.columns), LINE, plan->b_panel_bytes / LINE);
    } else if (b->at && next.row == 0) {
        add_source(soon, gemm, b, t->batch, column, columns, k, depth);
    }
    if (!plan->fetches || next.depth_block < plan->depth_blocks - 1)
        return false;
    bool all = true;
    for (int i = 0; i < gemm->n_touched; i++) {
        const cpu_gemm_operand *touched = &gemm->touched[i];
        const char *at = t->touched[i] + ((t->row + next.row) * touched->line_stride + column) * touched->element_bytes;
        all &= add_rows(soon, at, touched->line_stride * touched->element_bytes, MIN(plan->block_rows, t->rows - next.row), columns * touched->element_bytes, units);
    }
    return all;
}

/* What a block of rows begins with: its first panel, and what is packed of A. Returns as add_panel. */
static bool add_block(const task_state *t, place next, soon_list *soon)
{
    const cpu_gemm_plan *plan = &t->gemm->plan;
    const cpu_gemm_operand *a = &t->gemm->a;
    bool all = add_panel(t, next, soon);
    if (plan->a_way == CPU_GEMM_LOCAL && a->at)
        add_source(soon, t->gemm, a, t->batch, t->row + next.row, MIN(plan->block_rows, t->rows - next.row), next.depth_block * plan->block_depth,
                   depth_of(plan, next.depth_block));
    return all;
}

static run take_run(soon_list *soon, int64_t units, const char *none)
{
    if (soon->next == soon->n)
        return (run){none, 0, 0};
    run *first = &soon->runs[soon->next], taken = *first;
    first->at += units * first->step;
    first->lines -= units;
    soon->next += first->lines <= 0;
    return taken;
}

/* What nobody fetched while computing another panel. Rows of C that are far apart, by powers of two worst of all, are what no
 * prefetcher foresees. */
static void fetch_touched(const task_state *t, int64_t row, int64_t rows, int64_t column, int64_t columns)
{
    __asm__ volatile("");    /* gcc takes a function of nothing but prefetches for one without effect, and drops its calls */
    for (int i = 0; i < t->gemm->n_touched; i++) {
        const cpu_gemm_operand *touched = &t->gemm->touched[i];
        const char *at = t->touched[i] + (row * touched->line_stride + column) * touched->element_bytes;
        for (int64_t r = 0; r < rows; r++, at += touched->line_stride * touched->element_bytes)
            for (int64_t byte = 0; byte < columns * touched->element_bytes; byte += LINE)
                __builtin_prefetch(at + byte, 1, 3);
    }
}

/* -- tiles --------------------------------------------------------------------------------------------------------------- */

void cpu_gemm_configure_tiles(const cpu_gemm_code *code, int64_t rows)
{
    enum { TILES = 8, FIRST_OF_B = 6, ROWS = 16, ROW_BYTES = 64 };
    _Alignas(64) cpu_gemm_tiles tiles = {.palette = 1};
    for (int i = 0; i < TILES; i++)
        tiles.rows[i] = i < FIRST_OF_B ? (uint8_t)MIN(rows, ROWS) : ROWS, tiles.row_bytes[i] = ROW_BYTES;
    code->configure(&tiles);
}

/* A block of rows of A at a depth, and panel by panel of B. */
typedef struct {
    place at;
    int64_t end_row, units;
    bool resume, last;
    bool fetched;                                /* of C, what this panel's tiles end in */
    operand_view a, b;
} block_state;

/* Height h's micro-kernel for so many columns; NULL where there is none of it. */
static cpu_gemm_micro *micro_of(const task_state *t, const block_state *at, int h, int64_t columns)
{
    const cpu_gemm_plan *plan = &t->gemm->plan;
    const cpu_gemm_code *code = &t->gemm->code;
    if (columns <= plan->narrow)                 /* only the last panel of C is not of all columns, and these are that panel's */
        return h == 0 && at->a.line == plan->unit.bytes ? code->narrow_dense : code->narrow[h];
    return cpu_gemm_micro_of(code, h, columns > plan->tile.lanes ? 2 : 1, at->a.line, plan->unit);
}

/* All rows of a tile that is not of full height, by micro-kernels of as much height as is left. */
static void compute_part(const task_state *t, const block_state *at, const char *a, const char *panel, int64_t rows, int64_t columns, char *sums, run soon)
{
    const cpu_gemm_plan *plan = &t->gemm->plan;
    const cpu_gemm_code *code = &t->gemm->code;
    int64_t row_bytes = plan->tile_bytes / plan->tile.heights[0], row = 0;
    for (int h = 0; h < plan->tile.n_heights; h++) {
        cpu_gemm_micro *micro = micro_of(t, at, h, columns);
        for (int height = plan->tile.heights[h]; micro && rows - row >= height; row += height)
            micro(at->units, a + row * at->a.line, at->a.line, at->a.unit, panel, at->b.unit, sums + row * row_bytes, at->resume, soon.at, soon.step);
    }
    if (row == rows)
        return;
    cpu_gemm_configure_tiles(code, rows - row);  /* the last height computes as many rows as tiles have */
    micro_of(t, at, plan->tile.n_heights - 1, columns)(at->units, a + row * at->a.line, at->a.line, at->a.unit, panel, at->b.unit, sums + row * row_bytes,
                                                       at->resume, soon.at, soon.step);
    cpu_gemm_configure_tiles(code, plan->tile.heights[0]);
}

/* Where column sums of the task's rows go. */
static char *partial_of(const task_state *t)
{
    const cpu_gemm_plan *plan = &t->gemm->plan;
    if (plan->shape.column_sums == 0)
        return NULL;
    int64_t block = t->batch * plan->row_tasks + t->row_task, element = plan->shape.dtype == IR_F64 ? 8 : 4;
    return (char *)t->gemm->workspace + plan->workspace_bytes - plan->partial_bytes + block * plan->shape.column_sums * plan->partial_stride * element;
}

/* The tiles of rows from..to-1 of the task, of one panel. */
static void visit_tiles(const task_state *t, const block_state *at, int64_t from, int64_t to, soon_list *soon)
{
    const cpu_gemm_plan *plan = &t->gemm->plan;
    int64_t height = plan->tile.heights[0], column = at->at.panel * plan->tile.columns, columns = MIN(plan->tile.columns, t->columns - column);
    int64_t kept = plan->depth_blocks > 1 ? plan->tile_bytes : 0;       /* else the sums of all tiles are in one place */
    char *sums = t->scratch + kept * (at->at.panel * base_divide_up(plan->task_rows, height) + from / height);
    const char *panel = at->b.at + at->at.panel * at->b.line;
    cpu_gemm_micro *full = micro_of(t, at, 0, columns);
    cpu_gemm_tile tile = {.user = t->gemm->user, .batch = t->batch, .column = t->column + column, .columns = columns,
                          .partial = partial_of(t), .partial_stride = plan->partial_stride};
    bool by_panels = plan->a_way != CPU_GEMM_DIRECT && !plan->packs_rows, fetch = at->last && plan->fetches && !at->fetched;
    bool touching = plan->a_way == CPU_GEMM_SHARED ? plan->packs_rows : plan->a_way == CPU_GEMM_DIRECT && at->a.line == at->units * plan->unit.bytes;
    bool meets_a = at->at.panel == 0 && touching;
    cpu_gemm_micro *direct = columns == plan->tile.columns && plan->depth_blocks == 1 ? t->gemm->code.direct[at->a.line == plan->unit.bytes] : NULL;
    const cpu_gemm_operand *c = &t->gemm->touched[0];
    int64_t c_row = c->line_stride * c->element_bytes;
    char *tile_c = direct ? (char *)(uintptr_t)t->touched[0] + (t->row + from) * c_row + tile.column * c->element_bytes : NULL;

    for (int64_t i = from; i < to; i += height, sums += kept) {
        int64_t rows = MIN(height, at->end_row - i), line = plan->a_way == CPU_GEMM_SHARED ? t->row + i : i - at->at.row;
        const char *a = at->a.at + (by_panels ? line / plan->a_panel * plan->a_line_bytes + line % plan->a_panel * at->a.line : line * at->a.line);
        run ahead = take_run(soon, at->units, panel);
        if (meets_a && ahead.step == 0)
            ahead = (run){a + height * at->a.line, LINE, at->units};
        if (fetch)
            fetch_touched(t, t->row + i, rows, tile.column, columns);
        if (direct && rows == height && at->units > 0) {
            direct(at->units, a, at->a.line, at->a.unit, panel, at->b.unit, tile_c + (i - from) * c_row, c_row, ahead.at, ahead.step);
            continue;
        }
        if (at->units == 0)
            memset(sums, 0, (size_t)plan->tile_bytes);
        else if (rows == height)
            full(at->units, a, at->a.line, at->a.unit, panel, at->b.unit, sums, at->resume, ahead.at, ahead.step);
        else
            compute_part(t, at, a, panel, rows, columns, sums, ahead);
        if (!at->last)
            continue;
        tile.sums = sums, tile.row = t->row + i, tile.rows = rows, tile.first = i == 0;
        t->gemm->code.epilogue(&tile);
    }
}

/* Tile registers: rows of A stay, and panels of B pass by them. */
static void visit_by_rows(const task_state *t, block_state *at)
{
    const cpu_gemm_plan *plan = &t->gemm->plan;
    soon_list none = {0};
    if (plan->b_way == CPU_GEMM_LOCAL && at->at.row == 0)
        pack(t->gemm, &t->gemm->b, t->batch, at->at.depth_block, t->column, t->columns, t->scratch + plan->scratch_b);
    int64_t height = plan->tile.heights[0], panels = base_divide_up(t->columns, plan->tile.columns);
    for (int64_t i = at->at.row; i < at->end_row; i += height)
        for (at->at.panel = 0; at->at.panel < panels; at->at.panel++)
            visit_tiles(t, at, i, MIN(i + height, at->end_row), &none);
}

static void visit_by_panels(const task_state *t, block_state *at, const task_state *after)
{
    const cpu_gemm_plan *plan = &t->gemm->plan;
    int64_t columns = plan->tile.columns, panels = base_divide_up(t->columns, columns);
    for (int64_t panel = 0; panel < panels; panel++) {
        at->at.panel = panel;
        if (plan->b_way == CPU_GEMM_LOCAL && at->at.row == 0)
            pack(t->gemm, &t->gemm->b, t->batch, at->at.depth_block, t->column + panel * columns, MIN(columns, t->columns - panel * columns),
                   t->scratch + plan->scratch_b + panel * at->b.line);
        place next = at->at;
        if (++next.panel == panels)
            next.panel = 0, next.row = at->end_row;
        if (next.row == t->rows)
            next.row = 0, next.depth_block++;
        soon_list soon = {.n = 0};
        bool fetched = false;
        if (next.depth_block < plan->depth_blocks)
            fetched = next.panel > 0 ? add_panel(t, next, &soon) : add_block(t, next, &soon);
        else if (after)
            add_block(after, (place){0, 0, 0}, &soon);
        visit_tiles(t, at, at->at.row, at->end_row, &soon);
        at->fetched = fetched;
    }
}

static task_state task_of(const cpu_gemm *gemm, int64_t task, char *scratch)
{
    const cpu_gemm_plan *plan = &gemm->plan;
    task_state t = {.gemm = gemm, .scratch = scratch};
    int64_t column_task = task / plan->row_tasks % plan->column_tasks, height = plan->tile.heights[0], width = plan->tile.columns;
    t.row_task = task % plan->row_tasks;
    t.row = cpu_gemm_task_begin(t.row_task, plan->row_tasks, plan->shape.m, height);
    t.rows = cpu_gemm_task_begin(t.row_task + 1, plan->row_tasks, plan->shape.m, height) - t.row;
    t.column = cpu_gemm_task_begin(column_task, plan->column_tasks, plan->shape.n, width);
    t.columns = cpu_gemm_task_begin(column_task + 1, plan->column_tasks, plan->shape.n, width) - t.column;
    t.batch = task / plan->row_tasks / plan->column_tasks;
    for (int i = 0; i < gemm->n_touched; i++)
        t.touched[i] = operand_at(gemm, &gemm->touched[i], t.batch);
    return t;
}

static void multiply(const cpu_gemm *gemm, int64_t task, char *scratch)
{
    const cpu_gemm_plan *plan = &gemm->plan;
    bool more = task + 1 < plan->shape.batch * plan->row_tasks * plan->column_tasks;     /* a thread takes neighbours in turn */
    task_state t = task_of(gemm, task, scratch), after = more ? task_of(gemm, task + 1, scratch) : t;
    if (plan->has_tiles)
        cpu_gemm_configure_tiles(&gemm->code, plan->tile.heights[0]);

    block_state at = {.fetched = false};
    for (int64_t d = 0; d < plan->depth_blocks; d++) {
        at.units = base_divide_up(depth_of(plan, d), plan->unit.k_per_unit);
        at.resume = d > 0, at.last = d == plan->depth_blocks - 1;
        at.b = view_b(&t, d);
        for (int64_t row = 0; row < t.rows; row += plan->block_rows) {
            at.at = (place){d, row, 0};
            at.end_row = MIN(row + plan->block_rows, t.rows);
            at.a = view_a(&t, d, t.row + row, at.end_row - row);
            if (plan->has_tiles)
                visit_by_rows(&t, &at);
            else
                visit_by_panels(&t, &at, more ? &after : NULL);
        }
    }
    if (plan->has_tiles)
        gemm->code.release();
}

/* -- column sums ----------------------------------------------------------------------------------------------------- */

/* Sum task: the blocks in order, then what was there before is added to. */
static void add_blocks(const cpu_gemm *gemm, int64_t task)
{
    const cpu_gemm_plan *plan = &gemm->plan;
    const cpu_gemm_sum *sum = &gemm->sums[task];
    int64_t stride = plan->partial_stride, blocks = plan->shape.batch * plan->row_tasks, step = plan->shape.column_sums * stride;
    const char *partial = (const char *)gemm->workspace + plan->workspace_bytes - plan->partial_bytes;
    double all64 = 0;
    float all32 = 0;
    for (int64_t column = 0; column < plan->shape.n; column++) {
        int64_t at = task * stride + column;
        if (plan->shape.dtype == IR_F64) {
            double total = 0, *to = (double *)sum->to + (sum->all ? 0 : column * sum->stride);
            for (int64_t block = 0; block < blocks; block++)
                total += ((const double *)partial)[block * step + at];
            if (sum->all)
                all64 += total;
            else
                *to = sum->accumulate ? *to + total : total;
        } else {
            float total = 0, *to = (float *)sum->to + (sum->all ? 0 : column * sum->stride);
            for (int64_t block = 0; block < blocks; block++)
                total += ((const float *)partial)[block * step + at];
            if (sum->all)
                all32 += total;
            else
                *to = sum->accumulate ? *to + total : total;
        }
    }
    if (sum->all && plan->shape.dtype == IR_F64)
        *(double *)sum->to = sum->accumulate ? *(double *)sum->to + all64 : all64;
    else if (sum->all)
        *(float *)sum->to = sum->accumulate ? *(float *)sum->to + all32 : all32;
}

void cpu_gemm_run(const cpu_gemm *gemm, int phase, int64_t task, void *scratch)
{
    switch (phase + gemm->plan.first_phase) {
    case 0: pack_shared(gemm, task); break;
    case 1: multiply(gemm, task, scratch); break;
    case 2: add_blocks(gemm, task); break;
    }
}
