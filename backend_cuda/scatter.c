/* Scatter: two launches of device/scatter.cu's parts, in the order that the kernel list states. */
#include "backend_cuda/expressions.h"

enum { THREADS = 256, SORTED = 32, PLACES = 16 };        /* a block's: threads and positions whose place it finds (scatter.cu has both), places that it walks from */

static void plan_sort(cuda_compiler *c, const kl_kernel *kernel, cuda_plan *plan, int64_t sorted)
{
    const kl_scatter *s = &kernel->scatter;
    cuda_writer w = { .compiler = c };
    cuda_param_view(&w, &s->indices, IR_I32, false);
    cuda_param_bytes(&w, c->program->n_buffers, sorted, "int");
    base_text_add(&w.body, "    RAX_SHARED rax_i32x4 shared[RAX_SORT_TILE / 4];\n    rax_scatter_sort(p0, %lld, %lld, %lld, p1, p1 + %lld, shared);\n", (long long)s->indices.stride[0],
                  (long long)s->rows, (long long)s->positions, (long long)s->positions);
    cuda_launch_add(&w, plan, kernel, "scatter", base_divide_up(s->positions, SORTED), THREADS, 0);
}

/* n updates are read, then added in order. */
static void write_batch(const kl_scatter *s, base_text *text, const char *n, const char *where)
{
    base_text_add(text, "            RAX_UNROLL for (int w = 0; w < %s; w++) %sadded[w] = %s(from[where[at + w] * (rax_i64)%lld]);\n",
                  n, where, s->dtype == IR_BF16 ? "rax_from_bf16" : "",
                  (long long)s->updates.stride[1]);
    base_text_add(text, "            RAX_UNROLL for (int w = 0; w < %s; w++) %ssum = %s;\n        }\n", n, where,
                  s->dtype == IR_I32 ? "rax_add_i32(sum, added[w])" : s->dtype == IR_BF16 ? "rax_round_bf16(sum + added[w])" : "sum + added[w]");
}

static void plan_walk(cuda_compiler *c, const kl_kernel *kernel, cuda_plan *plan, int64_t sorted)
{
    const kl_scatter *s = &kernel->scatter;
    const char *memory = cuda_memory_type(s->dtype), *value = cuda_register_type(s->dtype);
    const char *load = s->dtype == IR_BF16 ? "rax_from_bf16" : "", *store = s->dtype == IR_BF16 ? "rax_to_bf16" : "";
    int threads = s->post >= THREADS ? THREADS : s->post > 32 ? 128 : 32;
    int64_t columns = base_divide_up(s->post, threads), places = base_divide_up(s->positions, PLACES);
    cuda_writer w = { .compiler = c };
    cuda_param_bytes(&w, c->program->n_buffers, sorted, "const int");
    cuda_param_view(&w, &s->target, s->dtype, true);
    cuda_param_view(&w, &s->updates, s->dtype, false);
    base_text_add(&w.body, "    enum { POSITIONS = %lld, PLACES = %d };\n    const int *const where = p0, *const row = p0 + POSITIONS;\n", (long long)s->positions, PLACES);
    base_text_add(&w.body, "    const rax_i64 pre = blockIdx.x / %lldu, column = blockIdx.x %% %lldu * %d + threadIdx.x;\n",
                  (long long)(columns * places), (long long)columns, threads);
    base_text_add(&w.body, "    const int first = blockIdx.x / %lldu %% %lldu * PLACES;\n    if (column >= %lld)\n        return;\n",
                  (long long)columns, (long long)places, (long long)s->post);
    base_text_add(&w.body, "    const %s *const from = p2 + pre * %lld + column * %lld;\n", memory, (long long)s->updates.stride[0], (long long)s->updates.stride[2]);
    base_text_add(&w.body, "    for (int i = first; i < first + PLACES && i < POSITIONS; i++) {\n        const int mine = row[i];\n"
                  "        if (i > 0 && row[i - 1] == mine)\n            continue;\n");
    base_text_add(&w.body, "        %s *const to = p1 + pre * %lld + (rax_i64)mine * %lld + column * %lld;\n        %s sum = %s(*to);\n", memory, (long long)s->target.stride[0],
                  (long long)s->target.stride[1], (long long)s->target.stride[2], value, load);
    base_text_add(&w.body, "        int at = i;\n        for (; at + RAX_WALK <= POSITIONS && row[at + RAX_WALK - 1] == mine; at += RAX_WALK) {\n"
                  "            %s added[RAX_WALK];\n", value);
    write_batch(s, &w.body, "RAX_WALK", "");
    base_text_add(&w.body, "        for (; at < POSITIONS && row[at] == mine; at += RAX_LAST) {\n            %s added[RAX_LAST];\n            int mines[RAX_LAST];\n", value);
    base_text_add(&w.body, "            RAX_UNROLL for (int w = 0; w < RAX_LAST; w++) mines[w] = at + w < POSITIONS && row[at + w] == mine;\n");
    write_batch(s, &w.body, "RAX_LAST", "if (mines[w]) ");
    base_text_add(&w.body, "        *to = %s(sum);\n    }\n", store);
    cuda_launch_add(&w, plan, kernel, "scatter", s->pre * places * columns, threads, 0);
}

bool cuda_plan_scatter(cuda_compiler *c, const kl_kernel *kernel, cuda_plan *plan)
{
    const kl_scatter *s = &kernel->scatter;
    if (s->pre * s->positions * s->post == 0)
        return true;
    if (s->positions >= INT32_MAX / 2 || s->rows >= INT32_MAX || s->pre * s->positions * ((s->post + 31) / 32) >= INT32_MAX)
        return base_fail(BASE_FAILURE, "device cuda: a scatter of %lld positions to %lld rows is too large", (long long)s->positions, (long long)s->rows);
    int64_t sorted = cuda_workspace(plan, 8 * s->positions);
    plan_sort(c, kernel, plan, sorted);
    plan_walk(c, kernel, plan, sorted);
    return true;
}
