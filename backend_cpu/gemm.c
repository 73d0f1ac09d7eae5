/* The plan of a product, and the driver that walks it.
 *
 * C is cut into tasks of task_rows x task_columns. A task goes over K in blocks; for each it has a block of B in panels of the
 * tile's columns, goes over its rows in blocks of A that stay in the second-level cache, and there over the panels, each of
 * which stays close to the core while the tiles below it are computed:
 *
 *     for depth block                     partial sums of the task's tiles are kept in scratch where there are several
 *       (pack B, where LOCAL)
 *       for rows, block_rows at a time
 *         (pack A, where LOCAL)
 *         for panel of B
 *           for tile                      micro-kernel; after the last depth block, epilogue
 *
 * Who packs B decides how C is cut. LOCAL: a task has all rows (up to a limit) of few columns, so that each element of B is
 * packed once or seldom, by whom will need it, in its own cache; no barrier, no workspace. SHARED: tasks are blocks of rows,
 * and a phase before packs all of B into workspace: for many rows, and a B that the last-level cache can hold.
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

void cpu_gemm_find_micro(cpu_gemm_code *code, const cpu_code *loaded, cpu_isa isa, ir_dtype dtype)
{
    cpu_gemm_tile_shape tile = cpu_gemm_tile_of(isa, dtype);
    char name[32];
    for (int h = 0; h < tile.n_heights; h++)
        for (int vectors = 1; vectors <= 2; vectors++) {
            void *at = cpu_code_find(loaded, cpu_gemm_micro_name(name, dtype, tile.heights[h], vectors));
            CHECK(at != NULL, "expected the code to have %s", name);
            memcpy(&code->micro[h][vectors - 1], &at, sizeof at);
        }
    for (int vectors = 1; vectors <= 2 && !cpu_gemm_has_tiles(isa, dtype); vectors++) {
        void *at = cpu_code_find(loaded, cpu_gemm_dense_name(name, dtype, vectors));
        CHECK(at != NULL, "expected the code to have %s", name);
        memcpy(&code->dense[vectors - 1], &at, sizeof at);
    }
    if (cpu_gemm_has_tiles(isa, dtype)) {
        void *configure = cpu_code_find(loaded, CPU_GEMM_CONFIGURE), *release = cpu_code_find(loaded, CPU_GEMM_RELEASE);
        CHECK(configure && release, "expected the code to have %s and %s", CPU_GEMM_CONFIGURE, CPU_GEMM_RELEASE);
        memcpy(&code->configure, &configure, sizeof configure);
        memcpy(&code->release, &release, sizeof release);
    }
}

/* -- the plan -------------------------------------------------------------------------------------------------------- */

static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }
static int64_t clamp(int64_t x, int64_t low, int64_t high) { return MAX(low, MIN(x, high)); }
static size_t align64(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

/* Bytes of the blocks that the plan decides on. Depths are padded to whole squares of the transposition, rows to whole
 * vectors and a line of cache more, lest all rows fall into one set of it. */
static int64_t depth_units(const cpu_gemm_plan *plan)
{
    return plan->block_depth / cpu_gemm_unit_of(plan->shape.isa, plan->shape.dtype).k_per_unit;
}

static int64_t b_panel_bytes(const cpu_gemm_plan *plan)
{
    const cpu_gemm_shape *s = &plan->shape;
    return depth_units(plan) * cpu_gemm_tile_of(s->isa, s->dtype).columns * cpu_gemm_unit_of(s->isa, s->dtype).bytes;
}

/* A, packed: rows as they lie in memory, or panels of them. */
static bool packs_rows(const cpu_gemm_shape *s) { return s->a.along_k || cpu_gemm_has_tiles(s->isa, s->dtype); }

static int64_t a_line_bytes(const cpu_gemm_plan *plan)       /* of a row, or of a panel */
{
    const cpu_gemm_shape *s = &plan->shape;
    int64_t row = depth_units(plan) * cpu_gemm_unit_of(s->isa, s->dtype).bytes;
    return packs_rows(s) ? row + 64 : row * cpu_gemm_a_panel(s->isa, s->dtype);
}

static int64_t tile_bytes(const cpu_gemm_plan *plan)
{
    cpu_gemm_tile_shape tile = cpu_gemm_tile_of(plan->shape.isa, plan->shape.dtype);
    return (int64_t)tile.heights[0] * tile.columns * (plan->shape.dtype == IR_F64 ? 8 : 4);
}

static int64_t partial_stride(const cpu_gemm_plan *plan)
{
    return round_up(plan->shape.n, cpu_gemm_tile_of(plan->shape.isa, plan->shape.dtype).columns);
}

/* Where scratch holds what: sums of tiles, then B, then A. */
typedef struct { size_t b, a, end; } scratch_layout;
static scratch_layout scratch_of(const cpu_gemm_plan *plan)
{
    cpu_gemm_tile_shape tile = cpu_gemm_tile_of(plan->shape.isa, plan->shape.dtype);
    int64_t tiles = 1, panels = divide_up(plan->task_columns, tile.columns);
    if (plan->depth_blocks > 1)
        tiles = divide_up(plan->task_rows, tile.heights[0]) * panels;
    scratch_layout at;
    at.b = align64((size_t)(tiles * tile_bytes(plan)));
    at.a = at.b + (plan->b_way == CPU_GEMM_LOCAL ? align64((size_t)(panels * b_panel_bytes(plan))) : 0);
    int64_t lines = plan->block_rows;
    if (!packs_rows(&plan->shape))
        lines = divide_up(lines, cpu_gemm_a_panel(plan->shape.isa, plan->shape.dtype));
    at.end = at.a + (plan->a_way == CPU_GEMM_LOCAL ? align64((size_t)(lines * a_line_bytes(plan))) : 0);
    return at;
}

/* A panel of 768 units takes a twelfth of a second-level cache of 1 MB; sixteen tasks are shared evenly by up to eight threads; one of
 * 4 MFLOP takes 20 us; and a B packed for 1024 rows costs 2 % of their time. */
const cpu_gemm_tuning cpu_gemm_default_tuning = {
    .depth = 768, .tasks = 16, .task_flops = 4000000, .local_rows = 1024, .small_bytes = 32 << 10 };

/* bf16 in memory, f32 for the micro-kernel. */
static bool is_widened(ir_dtype dtype, cpu_gemm_unit unit) { return dtype == IR_BF16 && unit.k_per_unit == 1; }

/* In place, if the micro-kernel can, where K lies side by side. Where rows do, every step of k is another page and another line
 * of cache, and lines a power of two apart share few sets of it: that pays for few columns. */
static cpu_gemm_way choose_a(const cpu_gemm_shape *s, cpu_gemm_unit unit, const cpu_gemm_tuning *tuning)
{
    bool along_k = s->a.along_k && s->a.unit_stride;
    if (!s->a.plain || tuning->pack_a || is_widened(s->dtype, unit))
        return CPU_GEMM_LOCAL;
    if (unit.k_per_unit == 2)
        return along_k && s->k % (cpu_gemm_has_tiles(s->isa, s->dtype) ? CPU_GEMM_TILES_K : 2) == 0 ? CPU_GEMM_DIRECT : CPU_GEMM_LOCAL;
    return along_k || s->n <= 2 * cpu_gemm_tile_of(s->isa, s->dtype).columns ? CPU_GEMM_DIRECT : CPU_GEMM_LOCAL;
}

static cpu_gemm_way choose_b(const cpu_gemm_shape *s, cpu_gemm_unit unit, const cpu_gemm_tuning *tuning, int64_t target, int64_t l3_bytes)
{
    cpu_gemm_tile_shape tile = cpu_gemm_tile_of(s->isa, s->dtype);
    if (tuning->share_b)
        return CPU_GEMM_SHARED;
    bool readable = s->b.plain && !s->b.along_k && s->b.unit_stride && s->dtype != IR_BF16 && s->n % tile.lanes == 0;
    if (readable && (s->m <= 4 * tile.heights[0] || s->k * s->n * unit.bytes <= tuning->small_bytes))
        return CPU_GEMM_DIRECT;
    bool columns_suffice = s->batch * divide_up(s->n, 2 * tile.columns) >= target / 2;
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
    cpu_gemm_tile_shape tile = cpu_gemm_tile_of(s->isa, s->dtype);
    cpu_gemm_unit unit = cpu_gemm_unit_of(s->isa, s->dtype);
    int64_t units = MAX(divide_up(s->k, unit.k_per_unit), 1);
    int64_t depth = is_tall_for_tiles(s) ? MIN(tuning->depth, 128) : tuning->depth;
    plan->block_depth = round_up(divide_up(units, divide_up(units, depth)), tile.lanes) * unit.k_per_unit;
    plan->depth_blocks = MAX(divide_up(s->k, plan->block_depth), 1);
    bool packed = plan->a_way == CPU_GEMM_LOCAL;
    int64_t fitting = (packed ? l2 / 4 : l2 / 2) / (depth_units(plan) * unit.bytes);
    int64_t step = packed && !s->a.along_k ? cpu_gemm_a_panel(s->isa, s->dtype) : tile.heights[0];
    plan->block_rows = MAX((fitting + step / 2) / step, 1) * step;
}

/* By columns first, so that few pack the same of B; what is still wanted, by rows. */
static void cut_local(cpu_gemm_plan *plan, const cpu_gemm_tuning *tuning, int64_t want, int64_t l2)
{
    const cpu_gemm_shape *s = &plan->shape;
    cpu_gemm_tile_shape tile = cpu_gemm_tile_of(s->isa, s->dtype);
    int64_t most = MAX(l2 / 2 / b_panel_bytes(plan), 1) * tile.columns;      /* B in half of the second-level cache */
    plan->task_columns = s->n < 4 * tile.columns ? s->n : round_up(divide_up(s->n, want), tile.columns);
    plan->task_columns = MIN(plan->task_columns, most);
    int64_t rows_want = divide_up(want, divide_up(s->n, plan->task_columns));
    plan->task_rows = MIN(MIN(s->m, tuning->local_rows), round_up(divide_up(s->m, rows_want), tile.heights[0]));
}

/* By rows first; what is still wanted, by columns. */
static void cut_shared(cpu_gemm_plan *plan, int64_t want, int64_t l2)
{
    const cpu_gemm_shape *s = &plan->shape;
    cpu_gemm_tile_shape tile = cpu_gemm_tile_of(s->isa, s->dtype);
    plan->task_rows = MIN(plan->block_rows, round_up(divide_up(s->m, want), tile.heights[0]));
    int64_t columns_want = divide_up(want, divide_up(s->m, plan->task_rows));
    plan->task_columns = round_up(divide_up(s->n, columns_want), tile.columns);
    if (plan->depth_blocks > 1)                  /* their sums are kept */
        plan->task_columns = MIN(plan->task_columns, MAX(l2 / (plan->task_rows * 4) / tile.columns, 4) * tile.columns);
}

/* A small C with a large K, as the gradient of weights is: the time goes into fetching operands that no cache holds, by every
 * task that needs them, so that tasks are few and nearly square. Columns cost more, for B is always packed. Likewise where A is
 * packed by every task, of columns no more than fit. */
static bool is_tall(const cpu_gemm_plan *plan)
{
    if (cpu_gemm_has_tiles(plan->shape.isa, plan->shape.dtype))
        return is_tall_for_tiles(&plan->shape);
    return plan->b_way != CPU_GEMM_DIRECT && plan->depth_blocks >= 5 && plan->shape.batch == 1 && plan->shape.m * plan->shape.n <= 16 * 384 * 384;
}

static void cut_squares(cpu_gemm_plan *plan, int64_t want, int64_t most_columns)
{
    const cpu_gemm_shape *s = &plan->shape;
    cpu_gemm_tile_shape tile = cpu_gemm_tile_of(s->isa, s->dtype);
    int64_t least = INT64_MAX;
    for (int64_t by_columns = 1; by_columns <= want; by_columns++) {
        int64_t by_rows = divide_up(want, by_columns), fetched = 2 * s->m * by_columns + 3 * s->n * by_rows;
        if (fetched < least && (divide_up(s->n, by_columns) <= most_columns || by_columns == want)) {
            least = fetched;
            plan->task_columns = round_up(divide_up(s->n, by_columns), tile.columns);
            plan->task_rows = round_up(divide_up(s->m, by_rows), tile.heights[0]);
        }
    }
}

cpu_gemm_plan cpu_gemm_make_plan(const cpu_gemm_shape *shape, const cpu_machine *machine, const cpu_gemm_tuning *tuning)
{
    const cpu_gemm_shape *s = shape;
    cpu_gemm_plan plan = {.shape = *shape};
    cpu_gemm_tile_shape tile = cpu_gemm_tile_of(s->isa, s->dtype);
    cpu_gemm_unit unit = cpu_gemm_unit_of(s->isa, s->dtype);
    int64_t l2 = (int64_t)MAX(machine->l2_bytes, (size_t)256 << 10), l3 = (int64_t)MAX(machine->l3_bytes, (size_t)8 << 20);
    double flops = 2.0 * (double)s->batch * (double)s->m * (double)s->n * (double)s->k;
    int64_t target = clamp((int64_t)(flops / (double)tuning->task_flops), 1, tuning->tasks), want = divide_up(target, MAX(s->batch, 1));

    plan.a_way = choose_a(s, unit, tuning);
    plan.b_way = choose_b(s, unit, tuning, target, l3);
    cut_depth(&plan, tuning, l2);
    if (is_tall(&plan) && !tuning->share_b) {
        /* Column sums are added by tasks: there, the number of CPUs may not decide. */
        int64_t threads_want = s->column_sums > 0 ? 8 : clamp(2 * machine->cpus, 4, tuning->tasks);
        plan.b_way = CPU_GEMM_LOCAL;
        cut_squares(&plan, MIN(want, threads_want), s->n);
    } else if (plan.b_way == CPU_GEMM_LOCAL && plan.a_way == CPU_GEMM_LOCAL && s->m > tile.heights[0]) {
        cut_squares(&plan, want, MAX(l2 / 2 / b_panel_bytes(&plan), 1) * tile.columns);
    } else if (plan.b_way == CPU_GEMM_LOCAL) {
        cut_local(&plan, tuning, want, l2);
    } else {
        cut_shared(&plan, want, l2);
    }
    plan.block_rows = MIN(plan.block_rows, round_up(plan.task_rows, tile.heights[0]));
    plan.fetches = s->batch * s->m * s->n * unit.bytes > l2 / 2;
    plan.row_tasks = divide_up(s->m, plan.task_rows);
    plan.column_tasks = divide_up(s->n, plan.task_columns);

    int64_t panels = divide_up(s->n, tile.columns);
    size_t shared = plan.b_way == CPU_GEMM_SHARED ? (size_t)(s->batch * plan.depth_blocks * panels * b_panel_bytes(&plan)) : 0;
    size_t partial = (size_t)(s->batch * plan.row_tasks * s->column_sums * partial_stride(&plan)) * (s->dtype == IR_F64 ? 8 : 4);
    plan.partial_bytes = align64(partial);
    plan.workspace_bytes = align64(shared) + plan.partial_bytes;
    plan.scratch_bytes = scratch_of(&plan).end;

    plan.first_phase = plan.b_way == CPU_GEMM_SHARED ? 0 : 1;
    plan.phases = (s->column_sums > 0 ? 3 : 2) - plan.first_phase;
    int64_t tasks[] = { s->batch * plan.depth_blocks * panels, s->batch * plan.row_tasks * plan.column_tasks, s->column_sums };
    for (int i = 0; i < plan.phases; i++)
        plan.tasks[i] = tasks[i + plan.first_phase];
    return plan;
}

/* -- packing B for all ------------------------------------------------------------------------------------------------ */

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

static char *shared_panel(const cpu_gemm *gemm, int64_t batch, int64_t depth_block, int64_t panel)
{
    const cpu_gemm_plan *plan = &gemm->plan;
    int64_t panels = divide_up(plan->shape.n, cpu_gemm_tile_of(plan->shape.isa, plan->shape.dtype).columns);
    return (char *)gemm->workspace + ((batch * plan->depth_blocks + depth_block) * panels + panel) * b_panel_bytes(plan);
}

/* Columns column..column+columns-1 of B at this depth, packed to `to` and on. */
static void pack_b(const cpu_gemm *gemm, int64_t batch, int64_t depth_block, int64_t column, int64_t columns, char *to)
{
    cpu_gemm_block block = {
        .source = operand_at(gemm, &gemm->b, batch), .line_stride = gemm->b.line_stride, .k_stride = gemm->b.k_stride,
        .user = gemm->b.user, .batch = batch, .line = column, .lines = columns,
        .k = depth_block * gemm->plan.block_depth, .depth = depth_of(&gemm->plan, depth_block),
        .to = to, .to_stride = b_panel_bytes(&gemm->plan) };
    gemm->code.pack_b(&block);
}

static void pack_shared(const cpu_gemm *gemm, int64_t task)
{
    const cpu_gemm_plan *plan = &gemm->plan;
    int64_t columns = cpu_gemm_tile_of(plan->shape.isa, plan->shape.dtype).columns, panels = divide_up(plan->shape.n, columns);
    int64_t panel = task % panels, depth_block = task / panels % plan->depth_blocks, batch = task / panels / plan->depth_blocks;
    pack_b(gemm, batch, depth_block, panel * columns, MIN(columns, plan->shape.n - panel * columns),
           shared_panel(gemm, batch, depth_block, panel));
}

/* -- a task of the product ------------------------------------------------------------------------------------------- */

/* An operand as the micro-kernel reads it: lines (rows of A, panels of B) and units, in bytes. */
typedef struct { const char *at; int64_t line, unit; } operand_view;

typedef struct {
    const cpu_gemm *gemm;
    cpu_gemm_tile_shape tile;
    cpu_gemm_unit unit;
    scratch_layout layout;
    char *scratch;
    int64_t batch, row_task;
    int64_t row, rows, column, columns;          /* of C, this task's */
    const char *touched[CPU_GEMM_TOUCHED];       /* of this batch */
} task_state;

/* B at a depth: panel p of the task is at + p * line. */
static operand_view view_b(const task_state *t, int64_t depth_block)
{
    const cpu_gemm *gemm = t->gemm;
    const cpu_gemm_plan *plan = &gemm->plan;
    int64_t packed_unit = (int64_t)t->tile.columns * t->unit.bytes;
    switch (plan->b_way) {
    case CPU_GEMM_DIRECT: {
        int64_t offset = depth_block * plan->block_depth * gemm->b.k_stride + t->column * gemm->b.line_stride;
        const char *at = operand_at(gemm, &gemm->b, t->batch) + offset * t->unit.bytes;
        return (operand_view){at, packed_unit, gemm->b.k_stride * t->unit.bytes};
    }
    case CPU_GEMM_LOCAL:
        pack_b(gemm, t->batch, depth_block, t->column, t->columns, t->scratch + t->layout.b);
        return (operand_view){t->scratch + t->layout.b, b_panel_bytes(plan), packed_unit};
    case CPU_GEMM_SHARED:
        break;
    }
    return (operand_view){shared_panel(gemm, t->batch, depth_block, t->column / t->tile.columns), b_panel_bytes(plan), packed_unit};
}

/* Rows row..row+rows-1 of A at a depth: row i of a tile that begins at tile_row is at + offset of tile_row + i * line. */
static operand_view view_a(const task_state *t, int64_t depth_block, int64_t row, int64_t rows)
{
    const cpu_gemm *gemm = t->gemm;
    const cpu_gemm_plan *plan = &gemm->plan;
    const cpu_gemm_operand *a = &gemm->a;
    int64_t k = depth_block * plan->block_depth, element = t->unit.bytes / t->unit.k_per_unit;
    if (plan->a_way == CPU_GEMM_DIRECT) {
        const char *at = operand_at(gemm, a, t->batch) + (k * a->k_stride + row * a->line_stride) * element;
        return (operand_view){at, a->line_stride * element, a->k_stride * t->unit.bytes};
    }
    char *to = t->scratch + t->layout.a;
    cpu_gemm_block block = {
        .source = operand_at(gemm, a, t->batch), .line_stride = a->line_stride, .k_stride = a->k_stride, .user = a->user,
        .batch = t->batch, .line = row, .lines = rows, .k = k, .depth = depth_of(plan, depth_block),
        .to = to, .to_stride = a_line_bytes(plan) };
    gemm->code.pack_a(&block);
    if (packs_rows(&plan->shape))
        return (operand_view){to, a_line_bytes(plan), t->unit.bytes};
    return (operand_view){to, t->unit.bytes, (int64_t)cpu_gemm_a_panel(plan->shape.isa, plan->shape.dtype) * t->unit.bytes};
}

/* Row i of what view_a gave, the first of a tile. */
static const char *tile_of_a(const task_state *t, operand_view a, int64_t i)
{
    const cpu_gemm_plan *plan = &t->gemm->plan;
    if (plan->a_way == CPU_GEMM_DIRECT || packs_rows(&plan->shape))
        return a.at + i * a.line;
    int64_t panel = cpu_gemm_a_panel(plan->shape.isa, plan->shape.dtype);
    return a.at + i / panel * a_line_bytes(plan) + i % panel * a.line;
}

void cpu_gemm_configure_tiles(const cpu_gemm_code *code, int64_t rows)
{
    enum { TILES = 8, FIRST_OF_B = 6, ROWS = 16, ROW_BYTES = 64 };
    _Alignas(64) cpu_gemm_tiles tiles = {.palette = 1};
    for (int i = 0; i < TILES; i++)
        tiles.rows[i] = i < FIRST_OF_B ? (uint8_t)MIN(rows, ROWS) : ROWS, tiles.row_bytes[i] = ROW_BYTES;
    code->configure(&tiles);
}

/* All rows of a tile, by micro-kernels of as much height as is left. */
static void compute_tile(const task_state *t, int64_t units, operand_view a, const char *a_at, operand_view b, const char *b_at,
                         int64_t rows, int64_t columns, char *sums, bool resume, const char *soon, int64_t soon_step)
{
    int64_t row_bytes = tile_bytes(&t->gemm->plan) / t->tile.heights[0];
    int vectors = columns > t->tile.lanes ? 2 : 1;
    if (units == 0) {
        memset(sums, 0, (size_t)(rows * row_bytes));
        return;
    }
    int64_t row = 0;
    for (int h = 0; h < t->tile.n_heights; h++)
        for (int height = t->tile.heights[h]; rows - row >= height; row += height)
            cpu_gemm_micro_of(&t->gemm->code, h, vectors, a.line, t->unit)(units, a_at + row * a.line, a.line, a.unit, b_at, b.unit, sums + row * row_bytes, resume, soon, soon_step);
    if (row == rows)
        return;
    cpu_gemm_configure_tiles(&t->gemm->code, rows - row);        /* the last height computes as many rows as tiles have */
    t->gemm->code.micro[t->tile.n_heights - 1][vectors - 1](units, a_at + row * a.line, a.line, a.unit, b_at, b.unit, sums + row * row_bytes, resume, soon, soon_step);
    cpu_gemm_configure_tiles(&t->gemm->code, t->tile.heights[0]);
}

static void finish_tile(const task_state *t, const char *sums, int64_t row, int64_t rows, int64_t column, int64_t columns)
{
    const cpu_gemm_plan *plan = &t->gemm->plan;
    int64_t stride = partial_stride(plan), element = plan->shape.dtype == IR_F64 ? 8 : 4;
    char *partial = NULL;
    if (plan->shape.column_sums > 0) {
        int64_t block = t->batch * plan->row_tasks + t->row_task;
        partial = (char *)t->gemm->workspace + plan->workspace_bytes - plan->partial_bytes + block * plan->shape.column_sums * stride * element;
    }
    cpu_gemm_tile tile = {
        .sums = sums, .user = t->gemm->user, .batch = t->batch, .row = row, .column = column, .rows = rows, .columns = columns,
        .partial = partial, .partial_stride = stride, .first = row == t->row };
    t->gemm->code.epilogue(&tile);
}

/* Rows of C that are far apart, by powers of two worst of all, are what no prefetcher foresees, and a store that waits for
 * its line holds up all stores after it. */
static void fetch_touched(const task_state *t, int64_t row, int64_t rows, int64_t column, int64_t columns)
{
    __asm__ volatile("");    /* gcc takes a function of nothing but prefetches for one without effect, and drops its calls */
    for (int i = 0; i < t->gemm->n_touched; i++) {
        const cpu_gemm_operand *touched = &t->gemm->touched[i];
        const char *at = t->touched[i] + (row * touched->line_stride + column) * touched->element_bytes;
        for (int64_t r = 0; r < rows; r++, at += touched->line_stride * touched->element_bytes)
            for (int64_t byte = 0; byte < columns * touched->element_bytes; byte += 64)
                __builtin_prefetch(at + byte, 1, 3);
    }
}

/* A block of rows of A at a depth. */
typedef struct { int64_t units; bool resume, last; int64_t row, end_row; operand_view a, b; } block_state;

static void visit_tile(const task_state *t, const block_state *at, int64_t i, int64_t j)
{
    const cpu_gemm_plan *plan = &t->gemm->plan;
    int64_t height = t->tile.heights[0], width = t->tile.columns, tiles_a_panel = divide_up(plan->task_rows, height);
    int64_t rows = MIN(height, at->end_row - i), columns = MIN(width, t->columns - j);
    int64_t kept = plan->depth_blocks > 1 ? j / width * tiles_a_panel + i / height : 0;
    char *sums = t->scratch + kept * tile_bytes(plan);
    const char *panel = at->b.at + j / width * at->b.line, *soon = panel;
    int64_t soon_step = 0, ahead = (i - at->row) / height * at->units * 64;
    if (!cpu_gemm_has_tiles(plan->shape.isa, plan->shape.dtype) && ahead < at->b.line && j + width < t->columns)
        soon = panel + at->b.line + ahead, soon_step = 64;
    if (at->last && plan->fetches)
        fetch_touched(t, t->row + i, rows, t->column + j, columns);
    compute_tile(t, at->units, at->a, tile_of_a(t, at->a, i - at->row), at->b, panel, rows, columns, sums, at->resume, soon, soon_step);
    if (at->last)
        finish_tile(t, sums, t->row + i, rows, t->column + j, columns);
}

static void multiply(const cpu_gemm *gemm, int64_t task, char *scratch)
{
    const cpu_gemm_plan *plan = &gemm->plan;
    task_state t = {.gemm = gemm, .tile = cpu_gemm_tile_of(plan->shape.isa, plan->shape.dtype),
                    .unit = cpu_gemm_unit_of(plan->shape.isa, plan->shape.dtype), .layout = scratch_of(plan), .scratch = scratch};
    t.row_task = task % plan->row_tasks;
    t.row = t.row_task * plan->task_rows;
    t.column = task / plan->row_tasks % plan->column_tasks * plan->task_columns;
    t.batch = task / plan->row_tasks / plan->column_tasks;
    t.rows = MIN(plan->task_rows, plan->shape.m - t.row);
    t.columns = MIN(plan->task_columns, plan->shape.n - t.column);
    for (int i = 0; i < gemm->n_touched; i++)
        t.touched[i] = operand_at(gemm, &gemm->touched[i], t.batch);
    int64_t height = t.tile.heights[0], width = t.tile.columns;
    bool has_tiles = cpu_gemm_has_tiles(plan->shape.isa, plan->shape.dtype);
    if (has_tiles)
        cpu_gemm_configure_tiles(&gemm->code, height);

    for (int64_t d = 0; d < plan->depth_blocks; d++) {
        int64_t units = divide_up(depth_of(plan, d), t.unit.k_per_unit);
        bool last = d == plan->depth_blocks - 1;
        operand_view b = view_b(&t, d);
        for (int64_t block = 0; block < t.rows; block += plan->block_rows) {
            int64_t block_end = MIN(block + plan->block_rows, t.rows);
            operand_view a = view_a(&t, d, t.row + block, block_end - block);
            block_state at = {units, d > 0, last, block, block_end, a, b};
            if (has_tiles) {
                for (int64_t i = block; i < block_end; i += height)
                    for (int64_t j = 0; j < t.columns; j += width)
                        visit_tile(&t, &at, i, j);
                continue;
            }
            for (int64_t j = 0; j < t.columns; j += width)
                for (int64_t i = block; i < block_end; i += height)
                    visit_tile(&t, &at, i, j);
        }
    }
    if (has_tiles)
        gemm->code.release();
}

/* -- column sums ----------------------------------------------------------------------------------------------------- */

/* Sum task: the blocks in order, then what was there before is added to. */
static void add_blocks(const cpu_gemm *gemm, int64_t task)
{
    const cpu_gemm_plan *plan = &gemm->plan;
    const cpu_gemm_sum *sum = &gemm->sums[task];
    int64_t stride = partial_stride(plan), blocks = plan->shape.batch * plan->row_tasks, step = plan->shape.column_sums * stride;
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
