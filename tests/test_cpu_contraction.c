/* Products of the CPU backend, with prologues and epilogues, against the kernel list's own interpreter: random operands, shapes, layouts and
 * outputs, by the generated GEMM and by OpenBLAS, on every instruction set that the machine has.
 *
 * The operands are whole numbers of at most 3, so that the sum over K is exact in any order and in every dtype, and what the epilogue
 * makes of it too. */
#include "tests/random_kernels.h"

enum { PROGRAMS = 14, PRODUCTS = 3 };

/* -- random products ------------------------------------------------------------------------------------------------------ */

static int64_t draw_side(writer *w)
{
    static const int64_t sides[] = { 1, 1, 2, 3, 5, 7, 8, 13, 16, 17, 31, 32, 33, 48, 49, 64, 65, 97 };
    return sides[draw(w, (int)COUNT_OF(sides))];
}

static void draw_shape(writer *w, kl_contraction *c)
{
    static const ir_dtype dtypes[] = { IR_F32, IR_F32, IR_BF16, IR_BF16, IR_F64 };
    static const int64_t batches[] = { 1, 2, 3, 5 };
    c->dtype = dtypes[draw(w, (int)COUNT_OF(dtypes))];
    c->n_batch = draw(w, 2) ? 0 : draw(w, 3);
    int64_t total = 1;
    for (int i = 0; i < c->n_batch; i++)
        total *= c->batch[i] = batches[draw(w, 4)];
    c->m = draw_side(w);
    c->n = draw_side(w);
    c->k = draw(w, 24) ? draw_side(w) : 0;
    if (draw(w, 8) == 0)                                               /* one side is long: blocks are several */
        *(int64_t *[]){ &c->m, &c->n, &c->k }[draw(w, 3)] = 200 + draw(w, 400);
    if (draw(w, 30) == 0)
        *(int64_t *[]){ &c->m, &c->n }[draw(w, 2)] = 0;
    while (total * c->m * c->n * MAX(c->k, 1) > 600000)
        *(c->m > c->n ? &c->m : &c->n) /= 2;
}

static void enter(writer *w, const kl_contraction *c, kl_loop *loop, int64_t rows, int64_t columns)
{
    w->loop = loop;
    loop->n_axes = c->n_batch + 2;
    loop->n_outer = c->n_batch + 1;
    memcpy(loop->extent, c->batch, sizeof(int64_t) * (size_t)c->n_batch);
    loop->extent[c->n_batch] = rows;
    loop->extent[c->n_batch + 1] = columns;
    loop->exprs = ARENA_NEW(w->program->arena, kl_expr, MOST_EXPRS);
    loop->outputs = ARENA_NEW(w->program->arena, kl_output, 6);
}

/* A load as it lies, one that is converted, or anything that is computed of loads. */
static void draw_operand(writer *w, ir_dtype dtype)
{
    int way = draw(w, 4), expr;
    if (way < 2) {
        expr = add_load(w, way == 1 && dtype == IR_BF16 ? IR_F32 : dtype);
    } else {
        for (int n = 1 + draw(w, 3); n > 0; n--)
            add_something(w);
        expr = small(w, any_of(w, dtype));
    }
    if (w->loop->exprs[expr].dtype != dtype)
        expr = add_op(w, OP_cast, dtype, 1, expr, 0, 0);
    w->loop->outputs[w->loop->n_outputs++] = (kl_output){ .kind = KL_STORE, .expr = expr, .view.buffer = -1 };
}

static void draw_epilogue(writer *w, ir_dtype sum)
{
    kl_loop *c = w->loop;
    c->exprs[c->n_exprs++] = (kl_expr){ .kind = KL_PRODUCT, .dtype = sum, .view.buffer = -1 };
    int n = draw(w, 3) ? draw(w, 4) : 0;                              /* a third: the sum and no more */
    if (n && draw(w, 3) == 0)
        add_op(w, OP_cast, IR_BF16, 1, 0, 0, 0);
    for (; n > 0; n--)
        add_something(w);
    bool plain = c->n_exprs == 1;
    for (int outputs = plain ? 1 + (draw(w, 4) == 0) : 1 + draw(w, 4); outputs > 0; outputs--) {
        int expr = draw(w, 2) ? 0 : c->n_exprs - 1 - draw(w, MIN(c->n_exprs, 6));
        add_output(w, expr);
    }
}

static kl_program *random_program(uint64_t seed)
{
    kl_program *p = new_program(PRODUCTS);
    writer w = { .dice = { seed }, .program = p, .plain = true };
    for (int i = 0; i < PRODUCTS; i++) {
        kl_contraction *c = &new_kernel(p, KL_CONTRACTION)->contraction;
        draw_shape(&w, c);
        enter(&w, c, &c->a, c->m, c->k);
        draw_operand(&w, c->dtype);
        enter(&w, c, &c->b, c->k, c->n);
        draw_operand(&w, c->dtype);
        enter(&w, c, &c->c, c->m, c->n);
        draw_epilogue(&w, c->dtype == IR_F64 ? IR_F64 : IR_F32);
    }
    kl_renumber(p);
    return p;
}

/* -- the tests ------------------------------------------------------------------------------------------------------------ */

static void check_products(const char *products, cpu_isa isa, int threads)
{
    setenv("RAX_PRODUCTS", products, true);
    check_all(random_program, PROGRAMS, isa, threads);
    unsetenv("RAX_PRODUCTS");
}

static void test_generated_generic(void **state) { (void)state; check_products("generated", CPU_GENERIC, 2); }
static void test_generated_avx2(void **state) { (void)state; check_products("generated", CPU_AVX2, 2); }
static void test_generated_avx512(void **state) { (void)state; check_products("generated", CPU_AVX512, 2); }
static void test_generated_avx512bf16(void **state) { (void)state; check_products("generated", CPU_AVX512BF16, 2); }
static void test_generated_amx(void **state) { (void)state; check_products("generated", CPU_AMX, 1); }
static void test_generated_amx_three_threads(void **state) { (void)state; check_products("generated", CPU_AMX, 3); }
static void test_openblas_generic(void **state) { (void)state; check_products("openblas", CPU_GENERIC, 2); }
static void test_openblas_avx2(void **state) { (void)state; check_products("openblas", CPU_AVX2, 3); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        GRAPH_TEST(test_generated_generic), GRAPH_TEST(test_generated_avx2), GRAPH_TEST(test_generated_avx512),
        GRAPH_TEST(test_generated_avx512bf16), GRAPH_TEST(test_generated_amx), GRAPH_TEST(test_generated_amx_three_threads),
        GRAPH_TEST(test_openblas_generic), GRAPH_TEST(test_openblas_avx2),
    };
    return run_random_group("products of the CPU backend", tests);
}
