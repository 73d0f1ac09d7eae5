/* A sum over the rows of a matrix that a product contracts over the same rows is the product's, which reads the matrix anyway: the gradient of a bias comes with the gradient of its
 * weight (cuBLASLt's BGRADA and BGRADB).
 *
 *     loop [16384 | 2304]: g = load dy, sum_outer db = g
 *     contraction m 768 n 2304 k 16384                     contraction m 768 n 2304 k 16384
 *       a: load x  b: load dy  c: store dw = product         a: load x  b: load dy, sum_outer db = dy  c: store dw = product
 *
 * In a list the sum is an output of the operand's loop: over the outer axes of b, whose rows are k, and of a reduction along a's rows. cuBLASLt stores it; what is
 * added to something that is there goes through a vector of its own, which a loop behind the product adds.
 *
 * Needs axes merged. A sum goes to the first product of its list that can have it, over kernels that touch neither it nor, by writing, the matrix. Each product has one. */
#include "backend_cuda/epilogues.h"

enum { NONE = -1 };

/* The loop that does nothing but sum the rows of a matrix: which, and where to. */
typedef struct { const kl_expr *load; const kl_output *output; int64_t rows, columns; } row_sum;

static bool is_row_sum(const kl_kernel *kernel, row_sum *s)
{
    const kl_loop *loop = &kernel->loop;
    if (kernel->kind != KL_LOOP || loop->n_axes != 2 || loop->n_outer != 1 || loop->n_outputs != 1 || loop->n_exprs > 2)
        return false;
    const kl_expr *load = &loop->exprs[0], *value = &loop->exprs[loop->n_exprs - 1];
    *s = (row_sum){ load, &loop->outputs[0], loop->extent[0], loop->extent[1] };
    bool widens = loop->n_exprs == 2 && value->kind == KL_OP && value->op == OP_cast && load->dtype == IR_BF16;
    return load->kind == KL_LOAD && load->view.n_dynamic == 0 && !load->row && (loop->n_exprs == 1 || widens) && value->dtype == IR_F32 && s->output->kind == KL_SUM_OUTER &&
           s->output->expr == loop->n_exprs - 1 && s->output->view.stride[1] == 1;
}

/* Whether the operand is the matrix, with k along its rows' number. */
static bool is_operand(const kl_contraction *c, bool is_b, const row_sum *s)
{
    const kl_loop *loop = is_b ? &c->b : &c->a;
    const kl_expr *e = &loop->exprs[0];
    int k = c->n_batch + !is_b, other = c->n_batch + is_b;
    return loop->n_exprs == 1 && loop->n_outputs == 1 && e->kind == KL_LOAD && e->dtype == s->load->dtype && e->view.n_dynamic == 0 && e->view.buffer == s->load->view.buffer &&
           e->view.offset == s->load->view.offset && e->view.stride[k] == s->load->view.stride[0] && e->view.stride[other] == s->load->view.stride[1] && c->k == s->rows &&
           (is_b ? c->n : c->m) == s->columns && c->m * c->n * c->k > 0;
}

/* The operand's loop with a sum of it over k that goes to `to`. */
static kl_loop summed(base_arena *arena, const kl_contraction *c, bool is_b, kl_view to)
{
    kl_loop loop = kl_copy_loop(arena, is_b ? &c->b : &c->a, 2);
    int at = loop.outputs[0].expr;
    kl_output *outputs = ARENA_NEW(arena, kl_output, 2);
    kl_view along = { .buffer = to.buffer, .offset = to.offset };
    along.stride[c->n_batch + is_b] = 1;
    if (loop.exprs[at].dtype != IR_F32) {
        loop.exprs[loop.n_exprs] = (kl_expr){ .kind = KL_OP, .op = OP_cast, .dtype = IR_F32, .n_args = 1, .args = { at }, .view.buffer = -1 };
        at = loop.n_exprs++;
    }
    if (!is_b) {
        loop.exprs[loop.n_exprs] = (kl_expr){ .kind = KL_REDUCE, .op = OP_reduce_sum, .dtype = IR_F32, .n_args = 1, .args = { at }, .view.buffer = -1, .row = true };
        at = loop.n_exprs++;
    }
    outputs[0] = loop.outputs[0];
    outputs[1] = (kl_output){ .kind = is_b ? KL_SUM_OUTER : KL_STORE, .expr = at, .view = along };
    loop.outputs = outputs;
    loop.n_outputs = 2;
    return loop;
}

/* memory: of the buffers that there were to begin with. */
typedef struct { kl_program *program; int n_memories, *memory; cuda_taker *takes; void *context; } sums;

/* Whether a kernel touches the sum, or writes the matrix. */
typedef struct { const sums *of; int sum, matrix; bool clash; } touch;

static void note_touch(void *context, const kl_access *access)
{
    touch *t = context;
    int memory = access->view->buffer < t->of->n_memories ? t->of->memory[access->view->buffer] : NONE;
    t->clash |= memory == t->sum || (access->write && memory == t->matrix);
}

/* behind: by place what has been put there already. */
static bool can_move(const sums *x, kl_kernel *const *list, kl_kernel *const *behind, int from, int to, const row_sum *s)
{
    touch t = { x, x->memory[s->output->view.buffer], x->memory[s->load->view.buffer], false };
    for (int i = MIN(from, to); i <= MAX(from, to); i++) {
        if (i != from)
            kl_visit_all(list[i], note_touch, &t);
        if (behind[i])
            kl_visit_all(behind[i], note_touch, &t);
    }
    return !t.clash;
}

/* The loop that adds what is in t to where the sum goes. */
static kl_kernel *add_behind(kl_program *p, const kl_kernel *sum, const row_sum *s, int t)
{
    kl_kernel *kernel = ARENA_NEW(p->arena, kl_kernel, 1);
    kl_view to = { .buffer = s->output->view.buffer, .offset = s->output->view.offset, .stride = { 1 } };
    *kernel = (kl_kernel){ .kind = KL_LOOP, .name = "add", .place = sum->place, .loop = { .n_axes = 1, .extent = { s->columns }, .n_exprs = 1, .n_outputs = 1 } };
    kernel->loop.exprs = ARENA_NEW(p->arena, kl_expr, 1);
    kernel->loop.outputs = ARENA_NEW(p->arena, kl_output, 1);
    kernel->loop.exprs[0] = (kl_expr){ .kind = KL_LOAD, .dtype = IR_F32, .view = { .buffer = t, .stride = { 1 } } };
    kernel->loop.outputs[0] = (kl_output){ .kind = KL_STORE, .expr = 0, .view = to, .accumulate = true };
    return kernel;
}

/* Gives the sum at `from` to the product at `to`, behind which may stand more then. False: it stays as it is. */
static bool give(const sums *x, kl_kernel *const *list, kl_kernel **behind, int from, int to, const row_sum *s)
{
    kl_program *p = x->program;
    kl_contraction *c = &list[to]->contraction;
    for (int is_b = 1; is_b >= 0; is_b--) {
        if (!is_operand(c, is_b, s) || !can_move(x, list, behind, from, to, s))
            continue;
        kl_contraction tried = *c;
        kl_view into = s->output->view;
        if (s->output->accumulate)
            into = (kl_view){ .buffer = kl_add_buffer(p, (kl_buffer){ .kind = KL_TEMP, .dtype = IR_F32, .count = s->columns, .donated = -1, .place = list[from]->place }) };
        *(is_b ? &tried.b : &tried.a) = summed(p->arena, c, is_b, into);
        if (!x->takes(x->context, p, &tried))
            continue;
        behind[to] = s->output->accumulate ? add_behind(p, list[from], s, into.buffer) : NULL;
        *c = tried;
        return true;
    }
    return false;
}

static void sum_in(const sums *x, kl_kernel ***list, int *n)
{
    kl_kernel **behind = ARENA_NEW(x->program->arena, kl_kernel *, *n + 1), **at = *list;
    kl_sequence into = { .arena = x->program->arena };
    bool *gone = ARENA_NEW(x->program->arena, bool, *n + 1);
    row_sum s;
    for (int i = 0; i < *n; i++) {
        if (at[i]->kind == KL_REPEAT)
            sum_in(x, &at[i]->repeat.body, &at[i]->repeat.n_body);
        for (int j = 0; is_row_sum(at[i], &s) && j < *n && !gone[i]; j++)
            gone[i] = at[j]->kind == KL_CONTRACTION && give(x, at, behind, i, j, &s);
    }
    for (int i = 0; i < *n; i++) {
        kl_append(&into, gone[i] ? NULL : at[i]);
        kl_append(&into, behind[i]);
    }
    *list = into.at;
    *n = into.n;
}

void cuda_sum_operands(kl_program *program, cuda_taker *takes, void *context)
{
    sums x = { program, program->n_buffers, kl_memories(program), takes, context };
    sum_in(&x, &program->kernels, &program->n_kernels);
    base_free(x.memory);
}
