/* Loops of the CUDA backend against the kernel list's own interpreter, held to the bit: the kernels' own text is compiled for the CPU and run
 * block by block by the emulator. SEED=n runs that program alone, PROGRAMS=n so many. */
#include "tests/random_loops.h"
#include "tests/cuda_nvrtc.h"
#include "tests/cuda_standin.h"

enum { PROGRAMS = 10, COMPILED = 2 };

static char *on_device(const char *guarded, size_t bytes)
{
    char *memory = cuda_backend.memory_new(bytes + 2 * GUARD);
    assert_non_null(memory);
    assert_true(cuda_backend.upload(memory, guarded - GUARD, bytes + 2 * GUARD));
    return memory + GUARD;
}

static void run_on_device(const kl_program *oracle, ir_executable *e, memory *m)
{
    char **params = room(sizeof(char *) * (size_t)(oracle->n_params + 1)), **results = room(sizeof(char *) * (size_t)(oracle->n_results + 1));
    for (int turn = 0; turn < 2; turn++)      /* parameters first: a result may lie in one */
        for (int i = 0; i < oracle->n_buffers; i++) {
            const kl_buffer *b = &oracle->buffers[i];
            size_t bytes = (size_t)(b->count * ir_dtype_bytes(b->dtype));
            if (b->kind == KL_PARAM && turn == 0)
                params[b->index] = on_device(m->params[b->index], bytes);
            else if (b->kind == KL_RESULT && turn == 1)
                results[b->index] = b->donated >= 0 ? params[b->donated] : on_device(m->results[b->index], bytes);
        }
    if (!cuda_backend.run(e, (void *const *)params, (void *const *)results))
        fail_msg("%s", base_error());
    for (int i = 0; i < oracle->n_buffers; i++) {
        const kl_buffer *b = &oracle->buffers[i];
        size_t bytes = (size_t)(b->count * ir_dtype_bytes(b->dtype)) + 2 * GUARD;
        char *host = b->kind == KL_PARAM ? m->params[b->index] : m->results[b->index], *device = b->kind == KL_PARAM ? params[b->index] : results[b->index];
        if (b->kind == KL_RESULT && b->donated >= 0)
            continue;
        assert_true(cuda_backend.download(host - GUARD, device - GUARD, bytes));
        cuda_backend.memory_free(device - GUARD);
    }
}

static void check_cuda(program_maker *make, uint64_t seed, const cuda_library *nvrtc)
{
    int blocks = made.n;
    kl_program *p = make(seed), *oracle = make(seed);
    ir_compile_report report = {0};
    memory got = new_memory(p, seed), expected = new_memory(p, seed);
    kl_plan_memory(oracle, false);
    assert_true(kl_run(oracle, (void *const *)expected.params, (void *const *)expected.results));
    ir_executable *e = cuda_compile_list(p, &(ir_compile_options){ .name = "random", .verify = true }, &report);
    if (!e)
        fail_at(oracle, "SEED=%llu: %s", (unsigned long long)seed, base_error());
    run_on_device(oracle, e, &got);
    compare(oracle, &got, &expected, seed, "cuda", 1);
    if (nvrtc)
        compile_with_nvrtc(nvrtc, cuda_last_compiler(e), (int[]){ 80, 90 }, 2);
    cuda_backend.free(e);
    kl_program_free(oracle);
    base_text_free(&report.lines);
    forget(blocks);
}

static void test_random(void **state)
{
    (void)state;
    const char *seed = getenv("SEED"), *count = getenv("PROGRAMS");
    uint64_t first = seed ? strtoull(seed, NULL, 10) : 1, n = seed ? 1 : count ? strtoull(count, NULL, 10) : PROGRAMS;
    cuda_library nvrtc;
    bool compiles = nvrtc_is_here(&nvrtc);
    standin_begin("");
    int launches = standin.launches;
    for (uint64_t i = first; i < first + n; i++)
        check_cuda(random_program, i, compiles && i - first < COMPILED ? &nvrtc : NULL);
    assert_true(standin.launches >= launches + LOOPS * (int)n);
    standin_end();
}

int main(void)
{
    const struct CMUnitTest tests[] = { GRAPH_TEST(test_random) };
    return run_random_group("loops of the CUDA backend", tests);
}
