/* Products through OpenBLAS: a task is one tile of one product of the batch. Tiles are cut by shape, and K never, so that results
 * do not depend on the number of threads. What OpenBLAS cannot take has been split off by legalise.c. */
#include "backend_cpu/contraction.h"

#include <limits.h>

/* A tile is to have at least so many operations, and sides that are multiples of these: of register tiles, and of a cache line. */
static const double least_flops = 4e6;
enum { MAX_TILES = 64, ROW_UNIT = 48, COLUMN_UNIT = 64 };

/* -- what it takes ------------------------------------------------------------------------------------------------------- */

/* A matrix as BLAS sees it: rows side by side, or columns (transposed), and how far apart. */
typedef struct { bool transposed; int64_t lead; } blas_form;

static bool form_of(int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride, blas_form *form)
{
    if ((column_stride == 1 || columns <= 1) && (rows <= 1 || row_stride >= columns))
        *form = (blas_form){ false, MAX(rows <= 1 ? columns : row_stride, 1) };
    else if ((row_stride == 1 || rows <= 1) && (columns <= 1 || column_stride >= rows))
        *form = (blas_form){ true, MAX(columns <= 1 ? rows : column_stride, 1) };
    else
        return false;
    return form->lead <= INT_MAX && rows <= INT_MAX && columns <= INT_MAX;
}

static const kl_view *operand_view(const kl_contraction *c, cpu_operand which)
{
    const kl_loop *loop = which == CPU_OPERAND_A ? &c->a : &c->b;
    const kl_expr *e = &loop->exprs[loop->outputs[0].expr];
    return e->kind == KL_LOAD && e->view.n_dynamic == 0 ? &e->view : NULL;
}

static bool operand_form(const kl_contraction *c, cpu_operand which, blas_form *form)
{
    const kl_view *v = operand_view(c, which);
    int64_t rows = which == CPU_OPERAND_A ? c->m : c->k, columns = which == CPU_OPERAND_A ? c->k : c->n;
    return v && form_of(rows, columns, v->stride[c->n_batch], v->stride[c->n_batch + 1], form);
}

bool cpu_blas_takes_operand(const kl_contraction *c, cpu_operand which)
{
    blas_form form;
    return (c->dtype == IR_F32 || c->dtype == IR_F64) && operand_form(c, which, &form);
}

bool cpu_blas_takes_epilogue(const kl_contraction *c)
{
    const kl_output *o = &c->c.outputs[0];
    blas_form form;
    return c->c.n_outputs == 1 && o->kind == KL_STORE && c->c.exprs[o->expr].kind == KL_PRODUCT && o->view.n_dynamic == 0 &&
           form_of(c->m, c->n, o->view.stride[c->n_batch], o->view.stride[c->n_batch + 1], &form);
}

/* -- running ----------------------------------------------------------------------------------------------------------------- */

/* The arguments: a, b and c are views with the offsets of an element in the tile's own units; after BATCH come, for each batch axis, its
 * extent and the three strides. All strides in elements. */
enum { A, B = A + 2, C = B + 2, M = C + 2, N, K, TILE_M, TILE_N, TILES_M, TILES_N, A_TRANSPOSED, A_LEAD, A_ROW, B_TRANSPOSED, B_LEAD,
       B_COLUMN, C_TRANSPOSED, C_LEAD, C_ROW, C_COLUMN, ACCUMULATE, N_BATCH, BATCH };

static const cpu_blas *blas;                /* set by the first plan */

typedef struct { int64_t a, b, c, m, n; } tile;      /* offsets, extents */

static tile tile_of(const int64_t *args, int64_t task)
{
    int64_t column = task % args[TILES_N], row = task / args[TILES_N] % args[TILES_M], batch = task / args[TILES_N] / args[TILES_M];
    int64_t m = row * args[TILE_M], n = column * args[TILE_N];
    tile t = { m * args[A_ROW], n * args[B_COLUMN], m * args[C_ROW] + n * args[C_COLUMN], MIN(args[TILE_M], args[M] - m), MIN(args[TILE_N], args[N] - n) };
    for (int64_t i = args[N_BATCH] - 1; i >= 0; i--) {
        const int64_t *axis = &args[BATCH + 4 * i];
        int64_t index = batch % axis[0];
        batch /= axis[0];
        t.a += index * axis[1];
        t.b += index * axis[2];
        t.c += index * axis[3];
    }
    return t;
}

/* Where C's columns lie side by side, all is seen by columns: what was not transposed then is. */
static enum CBLAS_TRANSPOSE transpose_of(const int64_t *args, int operand)
{
    return args[operand] != args[C_TRANSPOSED] ? CblasTrans : CblasNoTrans;
}

static void run_f32(const int64_t *args, char *const *buffers, int64_t task, char *scratch)
{
    tile t = tile_of(args, task);
    (void)scratch;
    blas->sgemm(args[C_TRANSPOSED] ? CblasColMajor : CblasRowMajor, transpose_of(args, A_TRANSPOSED), transpose_of(args, B_TRANSPOSED),
                (int)t.m, (int)t.n, (int)args[K], 1, (const float *)cpu_pointer(args, buffers, A) + t.a, (int)args[A_LEAD],
                (const float *)cpu_pointer(args, buffers, B) + t.b, (int)args[B_LEAD], args[ACCUMULATE] ? 1 : 0,
                (float *)cpu_pointer(args, buffers, C) + t.c, (int)args[C_LEAD]);
}

static void run_f64(const int64_t *args, char *const *buffers, int64_t task, char *scratch)
{
    tile t = tile_of(args, task);
    (void)scratch;
    blas->dgemm(args[C_TRANSPOSED] ? CblasColMajor : CblasRowMajor, transpose_of(args, A_TRANSPOSED), transpose_of(args, B_TRANSPOSED),
                (int)t.m, (int)t.n, (int)args[K], 1, (const double *)cpu_pointer(args, buffers, A) + t.a, (int)args[A_LEAD],
                (const double *)cpu_pointer(args, buffers, B) + t.b, (int)args[B_LEAD], args[ACCUMULATE] ? 1 : 0,
                (double *)cpu_pointer(args, buffers, C) + t.c, (int)args[C_LEAD]);
}

/* -- planning ------------------------------------------------------------------------------------------------------------------ */

/* Tiles about as wide as they are high, so that little is packed twice. */
static void cut(int64_t m, int64_t n, double wanted, int64_t *tile_m, int64_t *tile_n)
{
    int64_t parts_m = 1, parts_n = 1;
    while ((double)(parts_m * parts_n) < wanted) {
        bool rows = m / parts_m >= n / parts_n;
        if (rows ? m / parts_m < 2 * ROW_UNIT : n / parts_n < 2 * COLUMN_UNIT)
            rows = !rows;
        if (rows ? m / parts_m < 2 * ROW_UNIT : n / parts_n < 2 * COLUMN_UNIT)
            break;
        *(rows ? &parts_m : &parts_n) += 1;
    }
    *tile_m = parts_m == 1 ? m : base_round_up(base_divide_up(m, parts_m), ROW_UNIT);
    *tile_n = parts_n == 1 ? n : base_round_up(base_divide_up(n, parts_n), COLUMN_UNIT);
}

bool cpu_plan_contraction(cpu_compiler *c, const kl_kernel *kernel, cpu_plan *plan)
{
    const kl_contraction *p = &kernel->contraction;
    if (p->algorithm == CPU_PRODUCT_GENERATED)
        return cpu_gemm_plan_contraction(c, kernel, plan);
    if (!(blas = cpu_blas_open()))
        return false;
    const kl_output *o = &p->c.outputs[0];
    const kl_view *a = operand_view(p, CPU_OPERAND_A), *b = operand_view(p, CPU_OPERAND_B), *to = &o->view;
    blas_form form_a, form_b, form_c;
    bool taken = a && b && operand_form(p, CPU_OPERAND_A, &form_a) && operand_form(p, CPU_OPERAND_B, &form_b) &&
                 form_of(p->m, p->n, to->stride[p->n_batch], to->stride[p->n_batch + 1], &form_c);
    CHECK(taken && cpu_blas_takes_epilogue(p), "kernel %d: expected a product that OpenBLAS can take", kernel->id);
    double flops = 2.0 * (double)p->m * (double)p->n * (double)p->k;
    int64_t batch = kl_matrices(p), tile_m, tile_n;
    cut(p->m, p->n, MIN(flops / least_flops, MAX_TILES / (double)MIN(MAX(batch, 1), MAX_TILES)), &tile_m, &tile_n);
    int64_t tiles_m = base_divide_up(p->m, MAX(tile_m, 1)), tiles_n = base_divide_up(p->n, MAX(tile_n, 1));

    cpu_arg_view(c, plan, a, p->dtype);
    cpu_arg_view(c, plan, b, p->dtype);
    cpu_arg_view(c, plan, to, p->dtype);
    int row = p->n_batch, column = row + 1;
    const int64_t rest[] = { p->m, p->n, p->k, tile_m, tile_n, tiles_m, tiles_n, form_a.transposed, form_a.lead, a->stride[row],
                             form_b.transposed, form_b.lead, b->stride[column], form_c.transposed, form_c.lead, to->stride[row],
                             to->stride[column], o->accumulate, p->n_batch };
    for (size_t i = 0; i < COUNT_OF(rest); i++)
        cpu_arg(c, plan, rest[i]);
    CHECK(plan->n_args == BATCH, "expected %d arguments of a product, got %d", BATCH, plan->n_args);
    for (int i = 0; i < p->n_batch; i++) {
        const int64_t axis[] = { p->batch[i], a->stride[i], b->stride[i], to->stride[i] };
        for (size_t j = 0; j < COUNT_OF(axis); j++)
            cpu_arg(c, plan, axis[j]);
    }
    plan->how = base_arena_text(c->arena, "openblas, %lld tiles of %lldx%lld", (long long)(batch * tiles_m * tiles_n), (long long)tile_m, (long long)tile_n);
    plan->phases[plan->n_phases++] = (cpu_phase){ .function = -1, .code = p->dtype == IR_F64 ? run_f64 : run_f32,
                                                  .tasks = batch * tiles_m * tiles_n, .work = flops * (double)batch / 50 + 300.0 * (double)batch };
    return true;
}
