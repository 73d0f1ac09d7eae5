/* Scatter-add of the CPU backend against a loop with the interpreter's order and roundings, bit for bit; memory around and
 * between what a view reaches must stay as it was. */
#include "tests/cpu_kernels.h"

typedef struct { int64_t pre, positions, rows, post; ir_dtype dtype; int layout; } scatter_case;

static char *describe(const scatter_case *c)
{
    return text_of("%s pre %d positions %d rows %d post %d layout %d", ir_dtype_name(c->dtype), (int)c->pre,
                   (int)c->positions, (int)c->rows, (int)c->post, c->layout);
}

/* [pre, n, post]: 0 contiguous, 1 columns of wider rows, 2 columns apart. */
static tensor tensor_of(const scatter_case *c, int64_t n)
{
    int64_t extent[] = { c->pre, n, c->post };
    switch (c->layout) {
    case 0:  return new_tensor(c->dtype, 3, extent, (int64_t[]){ n * c->post, c->post, 1 }, 0);
    case 1:  return new_tensor(c->dtype, 3, extent, (int64_t[]){ n * (c->post + 5) + 3, c->post + 5, 1 }, 2);
    default: return new_tensor(c->dtype, 3, extent, (int64_t[]){ 1, c->pre, n * c->pre }, 1);
    }
}

static double sum_of(ir_dtype dtype, double a, double b)
{
    switch (dtype) {
    case IR_F32:  return (float)a + (float)b;
    case IR_BF16: return ir_bf16_to_f32(ir_f32_to_bf16((float)a + (float)b));
    case IR_I32:  return (int32_t)((uint32_t)(int32_t)a + (uint32_t)(int32_t)b);
    default:      return a + b;
    }
}

static void check_case(const scatter_case *c, int threads)
{
    tensor target = tensor_of(c, c->rows), updates = tensor_of(c, c->positions);
    tensor indices = new_tensor(IR_I32, 1, &c->positions, (int64_t[]){ 1 + c->layout }, 1);
    dice d = { (uint64_t)(c->positions * 31 + c->post) };
    double size = c->dtype == IR_I32 ? 2e9 : 2;
    fill_tensor(&target, &d, -size, size);
    fill_tensor(&updates, &d, -size, size);
    fill_tensor(&indices, &d, -2, (double)c->rows + 2);          /* some out of range */

    double *expected = room(sizeof(double) * (size_t)(tensor_count(&target) + 1));
    for (int64_t i = 0; i < tensor_count(&target); i++)
        expected[i] = get_element(&target, i);
    for (int64_t pre = 0; pre < c->pre && c->rows > 0; pre++)
        for (int64_t p = 0; p < c->positions; p++) {
            int64_t row = MAX(0, MIN((int64_t)get_element(&indices, p), c->rows - 1));
            for (int64_t post = 0; post < c->post; post++) {
                double *sum = &expected[(pre * c->rows + row) * c->post + post];
                *sum = sum_of(c->dtype, *sum, get_element(&updates, (pre * c->positions + p) * c->post + post));
            }
        }

    one_kernel k = begin_kernel(KL_SCATTER);
    k.kernel->scatter = (kl_scatter){
        .pre = c->pre, .positions = c->positions, .rows = c->rows, .post = c->post, .dtype = c->dtype
    };
    k.kernel->scatter.target = view_of(&k, &target);
    k.kernel->scatter.indices = view_of(&k, &indices);
    k.kernel->scatter.updates = view_of(&k, &updates);
    run_one_kernel(&k, cpu_plan_scatter, threads);
    for (int64_t i = 0; i < tensor_count(&target); i++)
        if (get_element(&target, i) != expected[i])
            fail_msg("%s: element %lld: expected %.9g, got %.9g", describe(c), (long long)i, expected[i],
                     get_element(&target, i));
    check_guards(&target, "%s: target", describe(c));
}

static void at_isa(cpu_isa isa)
{
    static const int64_t sizes[] = { 1, 2, 3, 17, 64, 65, 130, 384 }, rows[] = { 0, 1, 5, 65, 300 };
    static const ir_dtype dtypes[] = { IR_F32, IR_BF16, IR_F64, IR_I32 };
    static const int threads[] = { 1, 2, 3, 7 };
    if (isa > test_machine()->best_isa) {
        print_message("# this CPU has no %s\n", cpu_isa_name(isa));
        skip();
    }
    assert_true(cpu_machine_set_isa(test_machine(), isa));
    dice d = { 5 };
    for (int i = 0; i < 80; i++) {
        scatter_case c = { .pre = roll(&d) < 0.5 ? 1 : 1 + (int)(20 * roll(&d)),
                           .dtype = dtypes[i % 4],
                           .layout = (int)(3 * roll(&d)) };
        c.positions = sizes[(int)(COUNT_OF(sizes) * roll(&d))];
        c.rows = rows[(int)(COUNT_OF(rows) * roll(&d))];
        c.post = sizes[(int)(COUNT_OF(sizes) * roll(&d))];
        check_case(&c, threads[(int)(COUNT_OF(threads) * roll(&d))]);
    }
}

static void scatter_generic(void **state) { (void)state; at_isa(CPU_GENERIC); }
static void scatter_avx2(void **state) { (void)state; at_isa(CPU_AVX2); }
static void scatter_avx512(void **state) { (void)state; at_isa(CPU_AVX512); }
static void scatter_avx512bf16(void **state) { (void)state; at_isa(CPU_AVX512BF16); }
static void scatter_amx(void **state) { (void)state; at_isa(CPU_AMX); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        KERNEL_TEST(scatter_generic), KERNEL_TEST(scatter_avx2), KERNEL_TEST(scatter_avx512), KERNEL_TEST(scatter_avx512bf16), KERNEL_TEST(scatter_amx),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
