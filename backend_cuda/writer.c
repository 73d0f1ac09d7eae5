/* A kernel as it is written: parameters, numbers and a body become the text of a function and the arguments of its launch.
 *
 * A list of loops is written loop by loop, with every number that another loop may have otherwise (extents, strides, constants) as a parameter. Those whose
 * texts come out equal are one launch; what differs between them is a table, the only parameter of the kernel:
 *
 *     at[0..n)                        the first block of each
 *     at[n + i * columns ...]         of loop i: addresses and numbers
 *
 * Numbers that are the same in all stay in the text, and equal columns are one. A block finds its loop by halving. The table lies with the
 * kernel's parameters, in constant memory, so that a graph holds it and nothing has to be copied. */
#include "backend_cuda/backend.h"

#include <stdio.h>
#include <string.h>

/* -- parameters ------------------------------------------------------------------------------------------------------------ */

static int add_arg(cuda_writer *w, cuda_arg arg, const char *type)
{
    int cap = w->cap_args;
    w->args = base_arena_grown(w->compiler->arena, w->args, w->n_args, &cap, sizeof *w->args);
    w->types = base_arena_grown(w->compiler->arena, w->types, w->n_args, &w->cap_args, sizeof *w->types);
    w->args[w->n_args] = arg;
    w->types[w->n_args] = type;
    return w->n_args++;
}

int cuda_param_bytes(cuda_writer *w, int buffer, int64_t bytes, const char *type)
{
    return add_arg(w, (cuda_arg){ buffer, bytes }, base_arena_text(w->compiler->arena, "%s *", type));
}

int cuda_param_value(cuda_writer *w, int64_t value) { return add_arg(w, (cuda_arg){ -1, value }, "rax_i64"); }

int cuda_param_view(cuda_writer *w, const kl_view *view, ir_dtype dtype, bool written)
{
    static const char *const type[2][IR_DTYPES] = {
        { [IR_F32] = "const float", [IR_F64] = "const double", [IR_BF16] = "const rax_u16", [IR_I32] = "const int", [IR_BOOL] = "const unsigned char" },
        { [IR_F32] = "float", [IR_F64] = "double", [IR_BF16] = "rax_u16", [IR_I32] = "int", [IR_BOOL] = "unsigned char" } };
    return cuda_param_bytes(w, view->buffer, view->offset * ir_dtype_bytes(dtype), type[written][dtype]);
}

const char *cuda_number(cuda_writer *w, int64_t value, const char *type)
{
    if (w->listed)
        return base_arena_text(w->compiler->arena, "p%d", add_arg(w, (cuda_arg){ -1, value }, type));
    return base_arena_text(w->compiler->arena, "%lld", (long long)value);
}

/* -- a kernel's steps --------------------------------------------------------------------------------------------------------- */

int64_t cuda_workspace(cuda_plan *plan, int64_t bytes)
{
    size_t at = plan->workspace_bytes;
    plan->workspace_bytes += cuda_rounded((size_t)bytes);
    return (int64_t)at;
}

cuda_step *cuda_step_add(cuda_compiler *c, cuda_plan *plan)
{
    plan->steps = base_arena_grown(c->arena, plan->steps, plan->n_steps, &plan->cap_steps, sizeof *plan->steps);
    return &plan->steps[plan->n_steps++];
}

static void add_launch(cuda_compiler *c, cuda_plan *plan, const kl_kernel *kernel, const char *defines, const char *device, const char *text, cuda_launch launch)
{
    launch.code = cuda_request_add(c, defines, text, device, kernel->name ? kernel->name : "");
    *cuda_step_add(c, plan) = (cuda_step){ .launch = launch };
}

void cuda_launch_add(cuda_writer *w, cuda_plan *plan, const kl_kernel *kernel, const char *device, int64_t grid, int threads, size_t shared_bytes)
{
    base_text text = {0}, entry = {0};
    base_text_add(&text, "RAX_KERNEL(%d) @(", threads);
    for (int i = 0; i < w->n_args; i++) {
        base_text_add(&text, "%s%s p%d", i ? ", " : "", w->types[i], i);
        base_text_add(&entry, ", (%s)p[%d]", w->types[i], i);
    }
    base_text_add(&text, "%s)\n{\n%s}\n#ifdef RAX_EMULATED\nRAX_ENTRY(@%s)\n#endif\n", w->n_args ? "" : "void", w->body.at ? w->body.at : "", entry.at ? entry.at : "");
    if (grid > 0)
        add_launch(w->compiler, plan, kernel, w->defines.at ? w->defines.at : "", device, text.at,
                   (cuda_launch){ .grid = grid, .threads = threads, .shared_bytes = shared_bytes, .n_args = w->n_args, .args = w->args });
    base_text_free(&text);
    base_text_free(&entry);
    cuda_writer_free(w);
}

void cuda_writer_free(cuda_writer *w)
{
    base_text_free(&w->defines);
    base_text_free(&w->body);
}

/* -- a list -------------------------------------------------------------------------------------------------------------------- */

bool cuda_same_text(const cuda_writer *a, const cuda_writer *b)
{
    bool same = a->n_args == b->n_args && a->body.len == b->body.len && !memcmp(a->body.at, b->body.at, a->body.len);
    for (int i = 0; same && i < a->n_args; i++)
        same = !strcmp(a->types[i], b->types[i]);
    return same;
}

/* Two arguments that name one value, whatever the run's addresses: a parameter and the result that has its place are one. */
static bool same_arg(const kl_program *p, cuda_arg a, cuda_arg b)
{
    if (a.value != b.value || a.buffer == b.buffer)
        return a.value == b.value;
    bool fixed = a.buffer >= 0 && b.buffer >= 0 && a.buffer < p->n_buffers && b.buffer < p->n_buffers;
    return fixed && p->buffers[a.buffer].kind != KL_MOVING && p->buffers[b.buffer].kind != KL_MOVING && kl_share_memory(p, a.buffer, b.buffer);
}

enum { IN_TEXT = -1 };

/* By parameter its column of the table. Returns how many columns there are. */
static int find_columns(const cuda_writer *w, int n, int *column)
{
    const kl_program *p = w->compiler->program;
    int columns = 0;
    for (int j = 0; j < w->n_args; j++) {
        bool constant = w->args[j].buffer < 0;
        for (int i = 1; i < n && constant; i++)
            constant = w[i].args[j].value == w->args[j].value;
        column[j] = constant ? IN_TEXT : columns;
        for (int other = 0; other < j && column[j] == columns; other++) {
            bool same = column[other] != IN_TEXT;
            for (int i = 0; i < n && same; i++)
                same = same_arg(p, w[i].args[j], w[i].args[other]);
            if (same)
                column[j] = column[other];
        }
        columns += column[j] == columns;
    }
    return columns;
}

static char *list_text(const cuda_writer *w, int n, int columns, const int *column, int threads)
{
    base_text text = {0};
    int step = 1;
    while (2 * step < n)
        step *= 2;
    base_text_add(&text, "typedef struct { rax_i64 at[%d]; } rax_table;\nRAX_KERNEL(%d) @(RAX_CONSTANT rax_table table)\n{\n", n * (columns + 1), threads);
    base_text_add(&text, "    int item = 0;\n    RAX_UNROLL\n    for (int step = %d; step; step /= 2)\n        if (item + step < %d && table.at[item + step] <= (rax_i64)blockIdx.x) item += step;\n",
                  step, n);
    base_text_add(&text, "    const unsigned bx = blockIdx.x - (unsigned)table.at[item];\n    const int row = %d + item * %d;\n", n, columns);
    for (int j = 0; j < w->n_args; j++) {
        bool bits = !strcmp(w->types[j], "float");
        char from[48];
        snprintf(from, sizeof from, column[j] == IN_TEXT ? "%lldll" : "table.at[row + %lld]", (long long)(column[j] == IN_TEXT ? w->args[j].value : column[j]));
        base_text_add(&text, "    %s const p%d = %s((%s)%s);\n", w->types[j], j, bits ? "rax_f32_of_bits" : "", bits ? "rax_u32" : w->types[j], from);
    }
    base_text_add(&text, "    {\n%s    }\n}\n#ifdef RAX_EMULATED\nRAX_ENTRY(@, *(const rax_table *)p)\n#endif\n", w->body.at);
    return base_text_take(&text);
}

void cuda_launch_add_list(const cuda_writer *w, int n, const int64_t *blocks, cuda_plan *plan, const kl_kernel *kernel, int threads)
{
    base_arena *arena = w->compiler->arena;
    int *column = ARENA_NEW(arena, int, w->n_args), columns = find_columns(w, n, column);
    int most = (int)(w->compiler->machine->params_bytes / sizeof(int64_t)) / (columns + 1);
    CHECK(most > 0, "expected a loop of fewer than %d parameters", columns);
    for (int first = 0; first < n; first += most) {
        int items = MIN(n - first, most);
        cuda_launch launch = { .threads = threads, .n_args = items * (columns + 1) };
        launch.args = ARENA_NEW(arena, cuda_arg, launch.n_args);
        for (int i = 0; i < items; i++) {
            launch.args[i] = (cuda_arg){ -1, launch.grid };
            launch.grid += blocks[first + i];
            for (int j = 0; j < w->n_args; j++)
                if (column[j] != IN_TEXT)
                    launch.args[items + i * columns + column[j]] = w[first + i].args[j];
        }
        char *text = list_text(w, items, columns, column, threads);
        add_launch(w->compiler, plan, kernel, "", NULL, text, launch);
        base_free(text);
    }
}
