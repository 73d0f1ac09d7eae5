/* Loops of the CPU backend, compiled, against the kernel list's own interpreter: forms that no lowering may ever make among them.
 *
 * A program is one random loop, or a few. Each runs on every instruction set that the machine has and on 1, 2, 3 and 7 threads, cut into
 * tasks as small as they get. */
#include "tests/random_kernels.h"

enum { PROGRAMS = 24, LOOPS = 6 };

static int64_t draw_extent(writer *w)
{
    static const int64_t extents[] = { 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 64, 65, 127, 130 };
    return extents[draw(w, (int)COUNT_OF(extents))];
}

static void draw_space(writer *w)
{
    kl_loop *loop = w->loop;
    int64_t total = 1;
    loop->n_axes = 1 + draw(w, 4);
    loop->n_outer = draw(w, loop->n_axes + 1);
    if (loop->n_outer == loop->n_axes)
        loop->n_outer--;
    for (int i = 0; i < loop->n_axes; i++) {
        int64_t extent = draw_extent(w);
        while (total * extent > 9000)
            extent = (extent + 1) / 2;
        total *= loop->extent[i] = extent;
    }
    if (draw(w, 12) == 0) {                                            /* columns enough to be cut, of few rows */
        for (int i = 0; i < loop->n_axes; i++)
            loop->extent[i] = MIN(loop->extent[i], 3);
        loop->extent[loop->n_axes - 1] = 2500 + draw(w, 3000);
    }
}

static kl_program *random_program(uint64_t seed)
{
    base_arena *arena = base_arena_new();
    kl_program *p = ARENA_NEW(arena, kl_program, 1);
    p->arena = arena;
    p->name = "random";
    p->kernels = ARENA_NEW(arena, kl_kernel *, LOOPS);
    writer w = { .dice = { seed }, .program = p };
    for (int i = 0; i < LOOPS; i++) {
        kl_kernel *kernel = p->kernels[p->n_kernels++] = ARENA_NEW(arena, kl_kernel, 1);
        kernel->kind = KL_LOOP;
        kernel->name = "random";
        w.loop = &kernel->loop;
        w.loop->exprs = ARENA_NEW(arena, kl_expr, MOST_EXPRS);
        w.loop->outputs = ARENA_NEW(arena, kl_output, 4);
        draw_space(&w);
        for (int n = 2 + draw(&w, 4); n > 0 && w.loop->n_exprs < MOST_EXPRS - 32; n--)
            add_something(&w);
        for (int n = 1 + draw(&w, 3); n > 0; n--)
            add_output(&w, w.loop->n_exprs - 1 - draw(&w, MIN(w.loop->n_exprs, 6)));
    }
    kl_renumber(p);
    return p;
}

static void test_generic(void **state) { (void)state; check_all(random_program, PROGRAMS, CPU_GENERIC, 2); }
static void test_avx2(void **state) { (void)state; check_all(random_program, PROGRAMS, CPU_AVX2, 2); }
static void test_avx512(void **state) { (void)state; check_all(random_program, PROGRAMS, CPU_AVX512, 2); }
static void test_avx512bf16_one_thread(void **state) { (void)state; check_all(random_program, PROGRAMS, CPU_AVX512BF16, 1); }
static void test_avx512bf16_three_threads(void **state) { (void)state; check_all(random_program, PROGRAMS, CPU_AVX512BF16, 3); }
static void test_avx512bf16_seven_threads(void **state) { (void)state; check_all(random_program, PROGRAMS, CPU_AVX512BF16, 7); }
static void test_amx(void **state) { (void)state; check_all(random_program, PROGRAMS, CPU_AMX, 2); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        GRAPH_TEST(test_avx512), GRAPH_TEST(test_avx512bf16_one_thread), GRAPH_TEST(test_avx512bf16_three_threads),
        GRAPH_TEST(test_avx512bf16_seven_threads), GRAPH_TEST(test_amx), GRAPH_TEST(test_avx2), GRAPH_TEST(test_generic),
    };
    return run_random_group("loops of the CPU backend", tests);
}
