/* Scatter: two launches of device/scatter.cu's parts, in the order that the kernel list states. */
#include "backend_cuda/expressions.h"

enum { THREADS = 256 };

static void plan_chain(cuda_compiler *c, const kl_kernel *kernel, cuda_plan *plan, int64_t links)
{
    const kl_scatter *s = &kernel->scatter;
    cuda_writer w = { .compiler = c };
    cuda_param_view(&w, &s->indices, IR_I32, false);
    cuda_param_bytes(&w, c->program->n_buffers, links, "int");
    base_text_add(&w.body, "    RAX_SHARED int shared[%d];\n    rax_scatter_chain(p0, %lld, %lld, %lld, p1, shared);\n", THREADS, (long long)s->indices.stride[0],
                  (long long)s->rows, (long long)s->positions);
    cuda_launch_add(&w, plan, kernel, "scatter", (s->positions + THREADS - 1) / THREADS, THREADS, 0);
}

static void plan_walk(cuda_compiler *c, const kl_kernel *kernel, cuda_plan *plan, int64_t links)
{
    const kl_scatter *s = &kernel->scatter;
    const char *memory = cuda_memory_type(s->dtype), *value = cuda_register_type(s->dtype);
    const char *load = s->dtype == IR_BF16 ? "rax_from_bf16" : "", *store = s->dtype == IR_BF16 ? "rax_to_bf16" : "", *round = s->dtype == IR_BF16 ? "rax_round_bf16" : "";
    int threads = s->post >= THREADS ? THREADS : s->post > 32 ? 128 : 32;
    int64_t columns = (s->post + threads - 1) / threads;
    cuda_writer w = { .compiler = c };
    cuda_param_view(&w, &s->indices, IR_I32, false);
    cuda_param_bytes(&w, c->program->n_buffers, links, "const int");
    cuda_param_view(&w, &s->target, s->dtype, true);
    cuda_param_view(&w, &s->updates, s->dtype, false);
    base_text_add(&w.body,
        "    const rax_i64 position = blockIdx.x / %lldu %% %lldu, pre = blockIdx.x / %lldu, column = blockIdx.x %% %lldu * %d + threadIdx.x;\n",
        (long long)columns, (long long)s->positions, (long long)(columns * s->positions), (long long)columns, threads);
    base_text_add(&w.body, "    if (!p1[%lld + position] || column >= %lld)\n        return;\n", (long long)s->positions, (long long)s->post);
    base_text_add(&w.body, "    %s *to = p2 + pre * %lld + rax_row(p0, %lld, (int)position, %lld) * (rax_i64)%lld + column * %lld;\n", memory, (long long)s->target.stride[0],
                  (long long)s->indices.stride[0], (long long)s->rows, (long long)s->target.stride[1], (long long)s->target.stride[2]);
    base_text_add(&w.body, "    const %s *from = p3 + pre * %lld + column * %lld;\n    %s sum = %s(*to);\n", memory, (long long)s->updates.stride[0],
                  (long long)s->updates.stride[2], value, load);
    base_text_add(&w.body, "    for (int p = (int)position; p >= 0; p = p1[p])\n        sum = %s(%s);\n    *to = %s(sum);\n", round, s->dtype == IR_I32 ? "rax_add_i32(sum, from[p * (rax_i64)STRIDE])"
                  : s->dtype == IR_BF16 ? "sum + rax_from_bf16(from[p * (rax_i64)STRIDE])" : "sum + from[p * (rax_i64)STRIDE]", store);
    base_text body = w.body;
    w.body = (base_text){0};
    base_text_add(&w.body, "    enum { STRIDE = %lld };\n%s", (long long)s->updates.stride[1], body.at);
    base_text_free(&body);
    cuda_launch_add(&w, plan, kernel, "scatter", s->pre * s->positions * columns, threads, 0);
}

bool cuda_plan_scatter(cuda_compiler *c, const kl_kernel *kernel, cuda_plan *plan)
{
    const kl_scatter *s = &kernel->scatter;
    if (s->pre * s->positions * s->post == 0)
        return true;
    if (s->positions >= INT32_MAX / 2 || s->pre * s->positions * ((s->post + 31) / 32) >= INT32_MAX)
        return base_fail(BASE_FAILURE, "device cuda: a scatter of %lld positions is too large", (long long)s->positions);
    int64_t links = cuda_workspace(plan, 8 * s->positions);
    plan_chain(c, kernel, plan, links);
    plan_walk(c, kernel, plan, links);
    return true;
}
