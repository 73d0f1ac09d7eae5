/* Loops of the CPU backend, compiled, against the kernel list's own interpreter: forms that no lowering may ever make among them.
 *
 * A program is one random loop, or a few. Each runs on every instruction set that the machine has and on 1, 2, 3 and 7 threads, cut into
 * tasks as small as they get. */
#include "tests/random_loops.h"

enum { PROGRAMS = 24 };

static void test_generic(void **state) { (void)state; check_all(random_program, PROGRAMS, CPU_GENERIC, 2); }
static void test_avx2(void **state) { (void)state; check_all(random_program, PROGRAMS, CPU_AVX2, 2); }
static void test_avx512(void **state) { (void)state; check_all(random_program, PROGRAMS, CPU_AVX512, 2); }
static void test_avx512bf16_one_thread(void **state) { (void)state; check_all(random_program, PROGRAMS, CPU_AVX512BF16, 1); }
static void test_avx512bf16_three_threads(void **state) { (void)state; check_all(random_program, PROGRAMS, CPU_AVX512BF16, 3); }
static void test_avx512bf16_seven_threads(void **state) { (void)state; check_all(random_program, PROGRAMS, CPU_AVX512BF16, 7); }
static void test_amx(void **state) { (void)state; check_all(random_program, PROGRAMS, CPU_AMX, 2); }

static void test_rows_in_place(void **state)
{
    static const uint64_t columns[] = { 3, 40, 1500, 5000 };
    (void)state;
    configure(NULL, 2);
    for (size_t i = 0; i < COUNT_OF(columns); i++)
        check_program(negated_rows, columns[i], "", 2);
    cpu_backend.shutdown();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        GRAPH_TEST(test_avx512), GRAPH_TEST(test_avx512bf16_one_thread), GRAPH_TEST(test_avx512bf16_three_threads),
        GRAPH_TEST(test_avx512bf16_seven_threads), GRAPH_TEST(test_amx), GRAPH_TEST(test_avx2), GRAPH_TEST(test_generic), GRAPH_TEST(test_rows_in_place),
    };
    return run_random_group("loops of the CPU backend", tests);
}
