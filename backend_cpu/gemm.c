/* The plan of a product, which gemm_run.c walks.
 *
 * C is cut into tasks of task_rows x task_columns. A task goes over K in blocks; for each it has a block of B in panels of the
 * tile's columns, goes over its rows in blocks of A that stay in the second-level cache, and there over the panels, each of
 * which stays close to the core while the tiles below it are computed:
 *
 *     for depth block                     partial sums of the task's tiles are kept in scratch where there are several
 *       for rows, block_rows at a time
 *         (pack A, where LOCAL)
 *         for panel of B
 *           (pack it, where LOCAL, for the first rows)
 *           for tile                      micro-kernel; after the last depth block, epilogue
 *
 * Who packs B decides how C is cut. LOCAL: a task has all rows (up to a limit) of few columns, so that each element of B is
 * packed once or seldom, by whom will need it, in its own cache; no barrier, no workspace. SHARED: tasks are blocks of rows,
 * and a phase before packs all of B into workspace: for many rows, and a B that the last-level cache can hold. A is packed there, too, where
 * tasks would pack much of it again and again, or where its rows, read in place, push each other out of the first-level cache.
 *
 * Nothing here depends on the number of threads, and no choice here changes a bit of the result. */
#include "backend_cpu/gemm.h"

#include <string.h>

/* -- what the ISA decides -------------------------------------------------------------------------------------------- */

cpu_gemm_unit cpu_gemm_unit_of(cpu_isa isa, ir_dtype dtype)
{
    if (dtype == IR_BF16 && isa >= CPU_AVX512BF16)
        return (cpu_gemm_unit){4, 2};
    return (cpu_gemm_unit){dtype == IR_F64 ? 8 : 4, 1};
}

cpu_gemm_tile_shape cpu_gemm_tile_of(cpu_isa isa, ir_dtype dtype)
{
    int shrink = dtype == IR_F64 ? 2 : 1;
    if (cpu_gemm_has_tiles(isa, dtype))
        return (cpu_gemm_tile_shape){16, 32, {32, 16}, 2};
    switch (isa) {
    case CPU_AVX512: case CPU_AVX512BF16: case CPU_AMX:      /* 24 of 32 registers */
        return (cpu_gemm_tile_shape){16 / shrink, 32 / shrink, {12, 8, 4, 2, 1}, 5};
    case CPU_AVX2:                               /* 12 of 16 */
        return (cpu_gemm_tile_shape){8 / shrink, 16 / shrink, {6, 4, 2, 1}, 4};
    case CPU_GENERIC: case CPU_ISA_COUNT: break;
    }
#if defined(__x86_64__)                          /* 8 of 16, for products need one too */
    return (cpu_gemm_tile_shape){4 / shrink, 8 / shrink, {4, 2, 1}, 3};
#else                                            /* 16 of 32 */
    return (cpu_gemm_tile_shape){4 / shrink, 8 / shrink, {8, 4, 2, 1}, 4};
#endif
}

int cpu_gemm_a_panel(cpu_isa isa, ir_dtype dtype)
{
    cpu_gemm_tile_shape tile = cpu_gemm_tile_of(isa, dtype);
    int rows = tile.heights[0];
    while (rows % tile.lanes != 0)
        rows += tile.heights[0];
    return rows;
}

/* A vector and a half takes as long as two, but for pairs: of f32 the code generator puts an element of A into all lanes twice, once a width. */
int cpu_gemm_narrow_of(cpu_isa isa, ir_dtype dtype, int64_t n)
{
    cpu_gemm_tile_shape tile = cpu_gemm_tile_of(isa, dtype);
    int half = tile.lanes / 2, columns = (int)base_round_up(n % tile.columns, half);
    if (isa < CPU_AVX512 || cpu_gemm_has_tiles(isa, dtype) || columns % tile.lanes == 0)
        return 0;
    return columns < tile.lanes || cpu_gemm_unit_of(isa, dtype).k_per_unit == 2 ? columns : 0;
}

static void find(const cpu_code *loaded, const char *name, void *to)
{
    void *at = cpu_code_find(loaded, name);
    CHECK(at != NULL, "expected the code to have %s", name);
    memcpy(to, &at, sizeof at);
}

void cpu_gemm_find_micro(cpu_gemm_code *code, const cpu_code *loaded, cpu_isa isa, ir_dtype dtype)
{
    cpu_gemm_tile_shape tile = cpu_gemm_tile_of(isa, dtype);
    char name[32];
    for (int h = 0; h < tile.n_heights; h++)
        for (int vectors = 1; vectors <= 2; vectors++)
            find(loaded, cpu_gemm_micro_name(name, dtype, tile.heights[h], vectors * tile.lanes), &code->micro[h][vectors - 1]);
    for (int vectors = 1; vectors <= 2 && !cpu_gemm_has_tiles(isa, dtype); vectors++)
        find(loaded, cpu_gemm_dense_name(name, dtype, vectors * tile.lanes), &code->dense[vectors - 1]);
    if (cpu_gemm_has_tiles(isa, dtype)) {
        find(loaded, CPU_GEMM_CONFIGURE, &code->configure);
        find(loaded, CPU_GEMM_RELEASE, &code->release);
    }
}

void cpu_gemm_find_narrow(cpu_gemm_code *code, const cpu_code *loaded, cpu_isa isa, ir_dtype dtype, int columns)
{
    cpu_gemm_tile_shape tile = cpu_gemm_tile_of(isa, dtype);
    char name[32];
    for (int h = 0; h < tile.n_heights; h += CPU_GEMM_NARROW_STEP)
        find(loaded, cpu_gemm_micro_name(name, dtype, tile.heights[h], columns), &code->narrow[h]);
    find(loaded, cpu_gemm_dense_name(name, dtype, columns), &code->narrow_dense);
}

void cpu_gemm_find_direct(cpu_gemm_code *code, const cpu_code *loaded, ir_dtype dtype, ir_dtype c)
{
    char name[32];
    for (int dense = 0; dense < 2; dense++)
        find(loaded, cpu_gemm_direct_name(name, dtype, c, dense), &code->direct[dense]);
}

/* -- the plan -------------------------------------------------------------------------------------------------------- */

static int64_t clamp(int64_t x, int64_t low, int64_t high) { return MAX(low, MIN(x, high)); }
static size_t align64(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

/* What follows from the tile, and from the depth of blocks: depths are padded to whole squares of the transposition, rows to whole
 * vectors and an odd number of lines of cache, lest rows fall into few sets of it. */
static int64_t depth_units(const cpu_gemm_plan *plan) { return plan->block_depth / plan->unit.k_per_unit; }

static void measure_tile(cpu_gemm_plan *plan)
{
    const cpu_gemm_shape *s = &plan->shape;
    plan->tile = cpu_gemm_tile_of(s->isa, s->dtype);
    plan->unit = cpu_gemm_unit_of(s->isa, s->dtype);
    plan->narrow = cpu_gemm_narrow_of(s->isa, s->dtype, s->n);
    plan->has_tiles = cpu_gemm_has_tiles(s->isa, s->dtype);
    plan->packs_rows = s->a.along_k || plan->has_tiles;
    plan->a_panel = cpu_gemm_a_panel(s->isa, s->dtype);
    plan->tile_bytes = (int64_t)plan->tile.heights[0] * plan->tile.columns * (s->dtype == IR_F64 ? 8 : 4);
    plan->partial_stride = base_round_up(s->n, plan->tile.columns);
}

static void measure_depth(cpu_gemm_plan *plan)
{
    int64_t row = depth_units(plan) * plan->unit.bytes;
    plan->b_panel_bytes = row * plan->tile.columns;
    plan->a_line_bytes = plan->packs_rows ? row | 64 : row * plan->a_panel;
    plan->a_share = plan->packs_rows ? plan->tile.heights[0] : plan->a_panel;
    plan->a_share_bytes = plan->a_line_bytes * (plan->packs_rows ? plan->a_share : 1);
}

/* Scratch holds sums of tiles, then B, then A. */
static void lay_out_scratch(cpu_gemm_plan *plan)
{
    int64_t tiles = 1, panels = base_divide_up(plan->task_columns, plan->tile.columns), lines = plan->block_rows;
    if (plan->depth_blocks > 1)
        tiles = base_divide_up(plan->task_rows, plan->tile.heights[0]) * panels;
    if (!plan->packs_rows)
        lines = base_divide_up(lines, plan->a_panel);
    plan->keeps_panels = plan->task_rows > plan->block_rows || plan->has_tiles;
    plan->scratch_b = align64((size_t)(tiles * plan->tile_bytes));
    plan->scratch_a = plan->scratch_b + (plan->b_way == CPU_GEMM_LOCAL ? align64((size_t)((plan->keeps_panels ? panels : 1) * plan->b_panel_bytes)) : 0);
    plan->scratch_bytes = plan->scratch_a + (plan->a_way == CPU_GEMM_LOCAL ? align64((size_t)(lines * plan->a_line_bytes)) : 0);
}

/* A panel of 768 units takes a twelfth of a second-level cache of 1 MB; sixteen tasks are shared evenly by up to eight threads; one of
 * 4 MFLOP takes 20 us; and a B packed for 1024 rows costs 2 % of their time. */
const cpu_gemm_tuning cpu_gemm_default_tuning = {
    .depth = 768, .tasks = 16, .task_flops = 4000000, .local_rows = 1024, .small_bytes = 32 << 10 };

/* bf16 in memory, f32 for the micro-kernel. */
static bool is_widened(ir_dtype dtype, cpu_gemm_unit unit) { return dtype == IR_BF16 && unit.k_per_unit == 1; }

/* Rows of a tile of A at the same place of a way of the first-level cache (which takes a page): more than there are ways but for what passes
 * by of B, and a line is fetched anew for every element of it that is read. */
static bool rows_collide(const cpu_gemm_shape *s, int64_t l1)
{
    enum { LINE = 64, WAY = 4096, FOR_B = 2 };
    int rows[WAY / LINE] = {0}, most = 0, height = cpu_gemm_tile_of(s->isa, s->dtype).heights[0];
    if (s->a.line_bytes <= 0 || cpu_gemm_has_tiles(s->isa, s->dtype))      /* tiles take whole lines */
        return false;
    for (int i = 0; i < height; i++) {
        int set = (int)(i * s->a.line_bytes % WAY / LINE);
        rows[set]++;
        most = MAX(most, rows[set]);             /* MAX evaluates twice */
    }
    return most > MAX(l1 / WAY - FOR_B, 1);
}

/* In place, if the micro-kernel can, where K lies side by side. Where rows do, every step of k is another page and another line
 * of cache, and lines a power of two apart share few sets of it: that pays for few columns. */
static cpu_gemm_way choose_a(const cpu_gemm_shape *s, cpu_gemm_unit unit, const cpu_gemm_tuning *tuning)
{
    bool along_k = s->a.along_k && s->a.unit_stride;
    if (tuning->share_a)
        return CPU_GEMM_SHARED;
    if (!s->a.plain || tuning->pack_a || is_widened(s->dtype, unit))
        return CPU_GEMM_LOCAL;
    if (unit.k_per_unit == 2)
        return along_k && s->k % (cpu_gemm_has_tiles(s->isa, s->dtype) ? CPU_GEMM_TILES_K : 2) == 0 ? CPU_GEMM_DIRECT : CPU_GEMM_LOCAL;
    return along_k || s->n <= 2 * cpu_gemm_tile_of(s->isa, s->dtype).columns ? CPU_GEMM_DIRECT : CPU_GEMM_LOCAL;
}

/* Where tasks are blocks of rows, each packs its own; else all of A for all, unless it is too much for the last-level cache. */
static cpu_gemm_way way_apart(const cpu_gemm_plan *plan, int64_t l3)
{
    const cpu_gemm_shape *s = &plan->shape;
    if (plan->b_way == CPU_GEMM_SHARED)
        return CPU_GEMM_LOCAL;
    return s->batch * s->m * s->k * plan->unit.bytes / plan->unit.k_per_unit <= l3 / 2 ? CPU_GEMM_SHARED : CPU_GEMM_DIRECT;
}

static cpu_gemm_way choose_b(const cpu_gemm_shape *s, cpu_gemm_unit unit, const cpu_gemm_tuning *tuning, int64_t target, int64_t l3_bytes)
{
    cpu_gemm_tile_shape tile = cpu_gemm_tile_of(s->isa, s->dtype);
    if (tuning->share_b)
        return CPU_GEMM_SHARED;
    bool readable = s->b.plain && !s->b.along_k && s->b.unit_stride && s->dtype != IR_BF16 && s->n % tile.lanes == 0;
    if (readable && (s->m <= 4 * tile.heights[0] || s->k * s->n * unit.bytes <= tuning->small_bytes))
        return CPU_GEMM_DIRECT;
    bool columns_suffice = s->batch * base_divide_up(s->n, 2 * tile.columns) >= target / 2;
    bool fits = s->batch * s->k * s->n * unit.bytes <= l3_bytes;
    if (s->batch >= target || (s->m <= tuning->local_rows && columns_suffice) || !fits || s->m <= 8 * tile.heights[0])
        return CPU_GEMM_LOCAL;
    return CPU_GEMM_SHARED;
}

/* With tile registers the time goes into packing from a much smaller K on, and shallow blocks let one packed stay in the second-level
 * cache beside the sums (2 cores of a Granite Rapids, 384x1536 and 4096 k: 11.5 ms in 16 tasks of 3 blocks, 6.1 in 4 of 16). */
static bool is_tall_for_tiles(const cpu_gemm_shape *s)
{
    return cpu_gemm_has_tiles(s->isa, s->dtype) && s->batch == 1 && s->k >= 1024 && s->k >= 2 * MAX(s->m, s->n);
}

/* K in blocks of even size, whole squares of the transposition each, and rows of A beside them: half of the second-level cache
 * where A is read in place. Where it is packed its source comes through that cache too, and a quarter is better. */
static void cut_depth(cpu_gemm_plan *plan, const cpu_gemm_tuning *tuning, int64_t l2)
{
    const cpu_gemm_shape *s = &plan->shape;
    cpu_gemm_tile_shape tile = plan->tile;
    cpu_gemm_unit unit = plan->unit;
    int64_t units = MAX(base_divide_up(s->k, unit.k_per_unit), 1);
    int64_t depth = is_tall_for_tiles(s) ? MIN(tuning->depth, 128) : tuning->depth;
    plan->block_depth = base_round_up(base_divide_up(units, base_divide_up(units, depth)), tile.lanes) * unit.k_per_unit;
    plan->depth_blocks = MAX(base_divide_up(s->k, plan->block_depth), 1);
    bool packed = plan->a_way == CPU_GEMM_LOCAL;
    int64_t fitting = (packed ? l2 / 4 : l2 / 2) / (depth_units(plan) * unit.bytes);
    int64_t step = packed && !s->a.along_k ? plan->a_panel : tile.heights[0];
    plan->block_rows = MAX((fitting + step / 2) / step, 1) * step;
}

/* Blocks of rows of a task, all of about one size. */
static void even_blocks(cpu_gemm_plan *plan)
{
    int64_t step = plan->a_way == CPU_GEMM_LOCAL && !plan->packs_rows ? plan->a_panel : plan->tile.heights[0];
    int64_t blocks = MAX(base_divide_up(plan->task_rows, plan->block_rows), 1);
    plan->block_rows = MAX(base_round_up(base_divide_up(plan->task_rows, blocks), step), step);
}

/* So many tasks, at most: each has as many tiles as any other, or one less. */
static void cut_rows(cpu_gemm_plan *plan, int64_t tasks)
{
    int64_t tiles = base_divide_up(plan->shape.m, plan->tile.heights[0]);
    plan->row_tasks = clamp(tasks, 1, tiles);
    plan->task_rows = base_divide_up(tiles, plan->row_tasks) * plan->tile.heights[0];
}

static void cut_columns(cpu_gemm_plan *plan, int64_t tasks)
{
    int64_t panels = base_divide_up(plan->shape.n, plan->tile.columns);
    plan->column_tasks = clamp(tasks, 1, panels);
    plan->task_columns = base_divide_up(panels, plan->column_tasks) * plan->tile.columns;
}

/* At least so many tasks, that up to eight threads, by twos, share alike. */
static int64_t shared_alike(int64_t tasks)
{
    int64_t step = 1;
    while (step < tasks && step < 8)
        step *= 2;
    return base_round_up(tasks, step);
}

/* By columns first, so that few pack the same of B; by rows only what columns leave a multiple of to be wanted. */
static void cut_local(cpu_gemm_plan *plan, const cpu_gemm_tuning *tuning, int64_t want, int64_t l2)
{
    const cpu_gemm_shape *s = &plan->shape;
    int64_t most = MAX(l2 / 2 / plan->b_panel_bytes, 1) * plan->tile.columns;      /* B in half of the second-level cache */
    cut_columns(plan, shared_alike(MAX(s->n < 4 * plan->tile.columns ? 1 : want, base_divide_up(s->n, most))));
    cut_rows(plan, MAX(want / plan->column_tasks, base_divide_up(s->m, tuning->local_rows)));
}

/* By rows first; what is still wanted, by columns. */
static void cut_shared(cpu_gemm_plan *plan, int64_t want, int64_t l2)
{
    const cpu_gemm_shape *s = &plan->shape;
    cpu_gemm_tile_shape tile = plan->tile;
    cut_rows(plan, shared_alike(MAX(want, base_divide_up(s->m, plan->block_rows))));
    int64_t columns = s->n;
    if (plan->depth_blocks > 1)                  /* their sums are kept */
        columns = MAX(l2 / (plan->task_rows * 4) / tile.columns, 4) * tile.columns;
    cut_columns(plan, MAX(base_divide_up(want, plan->row_tasks), base_divide_up(s->n, columns)));
}

/* A small C with a large K, as the gradient of weights is: the time goes into fetching operands that no cache holds, by every
 * task that needs them, so that tasks are few and nearly square. Columns cost more, for B is always packed. Likewise where A is
 * packed by every task, of columns no more than fit. */
static bool is_tall(const cpu_gemm_plan *plan)
{
    if (plan->has_tiles)
        return is_tall_for_tiles(&plan->shape);
    return plan->b_way != CPU_GEMM_DIRECT && plan->depth_blocks >= 5 && plan->shape.batch == 1 && plan->shape.m * plan->shape.n <= 16 * 384 * 384;
}

static void cut_squares(cpu_gemm_plan *plan, int64_t want, int64_t most_columns)
{
    const cpu_gemm_shape *s = &plan->shape;
    int64_t least = INT64_MAX;
    for (int64_t by_columns = 1; by_columns <= want; by_columns *= 2) {
        int64_t by_rows = base_divide_up(want, by_columns), fetched = 2 * s->m * by_columns + 3 * s->n * by_rows;
        if (fetched < least && (base_divide_up(s->n, by_columns) <= most_columns || by_columns == want)) {
            least = fetched;
            cut_columns(plan, by_columns);
            cut_rows(plan, by_rows);
        }
    }
}

/* Rows of A that lie side by side are packed by every task that needs them, and a panel is whole, however few of its rows a task has. Of a
 * small C that is much: an element packed takes four times as long as one of C of which K is as deep. There both are packed for all, if
 * they stay in the last-level cache. */
static bool shares_both(const cpu_gemm_plan *plan, int64_t l3)
{
    const cpu_gemm_shape *s = &plan->shape;
    int64_t tasks = plan->row_tasks * plan->column_tasks;
    int64_t packed = tasks * base_round_up(plan->task_rows, plan->a_panel) + (plan->b_way == CPU_GEMM_LOCAL ? plan->row_tasks * s->n : s->n);
    return plan->a_way == CPU_GEMM_LOCAL && plan->b_way != CPU_GEMM_DIRECT && !plan->packs_rows && tasks > 1 &&
           80 * (packed - s->m - s->n) > s->m * s->n && s->batch * (s->m + s->n) * s->k * plan->unit.bytes <= l3 / 4;
}

cpu_gemm_plan cpu_gemm_make_plan(const cpu_gemm_shape *shape, const cpu_machine *machine, const cpu_gemm_tuning *tuning)
{
    const cpu_gemm_shape *s = shape;
    cpu_gemm_plan plan = {.shape = *shape};
    int64_t l2 = (int64_t)MAX(machine->l2_bytes, (size_t)256 << 10), l3 = (int64_t)MAX(machine->l3_bytes, (size_t)8 << 20);
    double flops = 2.0 * (double)s->batch * (double)s->m * (double)s->n * (double)s->k;
    int64_t target = clamp((int64_t)(flops / (double)tuning->task_flops), 1, tuning->tasks), want = shared_alike(base_divide_up(target, MAX(s->batch, 1)));

    measure_tile(&plan);
    cpu_gemm_tile_shape tile = plan.tile;
    cpu_gemm_unit unit = plan.unit;
    plan.a_way = choose_a(s, unit, tuning);
    plan.b_way = choose_b(s, unit, tuning, target, l3);
    if (plan.a_way == CPU_GEMM_DIRECT && rows_collide(s, (int64_t)machine->l1d_bytes) && s->n >= 4 * tile.columns)
        plan.a_way = way_apart(&plan, l3);
    cut_depth(&plan, tuning, l2);
    measure_depth(&plan);
    if (is_tall(&plan) && !tuning->share_b) {
        /* Column sums are added by tasks: there, the number of CPUs may not decide. */
        int64_t threads_want = s->column_sums > 0 ? 8 : clamp(2 * machine->cpus, 4, tuning->tasks);
        plan.b_way = CPU_GEMM_LOCAL;
        cut_squares(&plan, MIN(want, threads_want), s->n);
    } else if (plan.b_way == CPU_GEMM_LOCAL && plan.a_way == CPU_GEMM_LOCAL && s->m > tile.heights[0]) {
        cut_squares(&plan, want, MAX(l2 / 2 / plan.b_panel_bytes, 1) * tile.columns);
    } else if (plan.b_way == CPU_GEMM_LOCAL) {
        cut_local(&plan, tuning, want, l2);
    } else {
        cut_shared(&plan, want, l2);
    }
    even_blocks(&plan);
    if (shares_both(&plan, l3))
        plan.a_way = plan.b_way = CPU_GEMM_SHARED;
    plan.fetches = s->batch * s->m * s->n * unit.bytes > l2 / 2;

    int64_t panels = plan.b_way == CPU_GEMM_SHARED ? base_divide_up(s->n, tile.columns) : 0;
    int64_t a_panels = plan.a_way == CPU_GEMM_SHARED ? base_divide_up(s->m, plan.a_share) : 0;
    plan.shared_a = align64((size_t)(s->batch * plan.depth_blocks * panels * plan.b_panel_bytes));
    size_t shared = plan.shared_a + (size_t)(s->batch * plan.depth_blocks * a_panels * plan.a_share_bytes);
    size_t partial = (size_t)(s->batch * plan.row_tasks * s->column_sums * plan.partial_stride) * (s->dtype == IR_F64 ? 8 : 4);
    plan.partial_bytes = align64(partial);
    plan.workspace_bytes = align64(shared) + plan.partial_bytes;
    lay_out_scratch(&plan);

    plan.first_phase = panels + a_panels > 0 ? 0 : 1;
    plan.phases = (s->column_sums > 0 ? 3 : 2) - plan.first_phase;
    int64_t tasks[] = { s->batch * plan.depth_blocks * (panels + a_panels), s->batch * plan.row_tasks * plan.column_tasks, s->column_sums };
    for (int i = 0; i < plan.phases; i++)
        plan.tasks[i] = tasks[i + plan.first_phase];
    return plan;
}

