/* A cast to bf16 that products alone read, as their second operand, is done by them while they pack it:
 *
 *     loop: t = cast(w)                                    (w: f32, t: bf16)
 *     contraction a: load x  b: load t  c: ...             contraction a: load x  b: cast(load w)  c: ...
 *     contraction a: load y  b: load t[1,8]  c: ...        contraction a: load y  b: cast(load w[1,8])  c: ...
 *
 * So are the weights of a training step. A pass over them is saved, and memory for half of them. For backends that pack the operand anyway.
 *
 * Needs t to be a temporary that lies as w does, all its readers to follow in the loop's own list (a repeat would cast in every iteration),
 * w to be left alone until the last of them, and to live as long without it: else memory would be lost, w being twice as large as t. */
#include "ir/kernels.h"

typedef struct { int *writes, *reads; const kl_program *program; } totals;      /* by buffer, in the whole program */

static void count_use(void *context, const kl_access *access)
{
    totals *t = context;
    ++(access->write ? t->writes : t->reads)[kl_root_buffer(t->program, access->view->buffer)];
}

/* t = cast(w), element by element in the same places but for an offset, and nothing else. */
static bool is_narrowing(const kl_kernel *kernel, const kl_view **w, const kl_view **t)
{
    const kl_loop *loop = &kernel->loop;
    if (kernel->kind != KL_LOOP || loop->n_exprs != 2 || loop->n_outputs != 1)
        return false;
    const kl_expr *load = &loop->exprs[0], *cast = &loop->exprs[1];
    const kl_output *output = &loop->outputs[0];
    if (load->kind != KL_LOAD || load->dtype != IR_F32 || load->view.n_dynamic || cast->kind != KL_OP || cast->op != OP_cast || cast->dtype != IR_BF16 ||
        output->expr != 1 || output->kind != KL_STORE || output->accumulate || output->view.n_dynamic)
        return false;
    *w = &load->view;
    *t = &output->view;
    for (int i = 0; i < loop->n_axes; i++)
        if (loop->extent[i] > 1 && (*w)->stride[i] != (*t)->stride[i])
            return false;
    return true;
}

/* A product in bf16 whose second operand is t as it lies. */
static bool reads(const kl_kernel *kernel, int t)
{
    const kl_contraction *c = &kernel->contraction;
    return kernel->kind == KL_CONTRACTION && c->dtype == IR_BF16 && c->b.n_exprs == 1 && c->b.exprs[0].kind == KL_LOAD && c->b.exprs[0].view.buffer == t &&
           !c->b.exprs[0].view.n_dynamic;
}

/* Whether w is written to, or read, in the kernels looked at. */
typedef struct { const kl_program *program; int w; bool writes, reads; } search;

static void look(void *context, const kl_access *access)
{
    search *s = context;
    bool meets_w = kl_memory_of(s->program, kl_root_buffer(s->program, access->view->buffer)) == s->w;
    s->writes |= meets_w && access->write;
    s->reads |= meets_w && !access->write;
}

static void read_source(kl_program *program, kl_loop *operand, const kl_view *w, const kl_view *t)
{
    kl_loop cast = kl_copy_loop(program->arena, operand, 1);
    kl_expr *load = &cast.exprs[0];
    cast.exprs[cast.n_exprs++] = (kl_expr){ .kind = KL_OP, .op = OP_cast, .dtype = IR_BF16, .n_args = 1, .args = { 0 }, .view.buffer = -1, .row = load->row };
    load->dtype = IR_F32;
    load->view.buffer = w->buffer;
    load->view.offset += w->offset - t->offset;
    cast.outputs[0].expr = 1;
    *operand = cast;
}

static bool fold(const totals *all, kl_program *program, kl_kernel **list, int n, int at)
{
    const kl_view *w, *t;
    if (!is_narrowing(list[at], &w, &t) || program->buffers[t->buffer].kind != KL_TEMP || all->writes[t->buffer] != 1)
        return false;
    search s = { .program = program, .w = kl_memory_of(program, kl_root_buffer(program, w->buffer)) };
    int last = at, left = all->reads[t->buffer];
    while (left > 0 && !s.writes && ++last < n) {
        left -= reads(list[last], t->buffer);
        kl_visit_all(list[last], look, &s);
    }
    if (left > 0 || s.writes)
        return false;
    s.reads = program->buffers[s.w].kind != KL_TEMP;
    for (int i = last; i < n && !s.reads; i++)
        kl_visit_all(list[i], look, &s);
    if (!s.reads)
        return false;
    for (int i = at + 1; i <= last; i++)
        if (reads(list[i], t->buffer))
            read_source(program, &list[i]->contraction.b, w, t);
    return true;
}

static void fold_list(const totals *all, kl_program *program, kl_kernel **list, int *n)
{
    int kept = 0;
    for (int i = 0; i < *n; i++) {
        if (list[i]->kind == KL_REPEAT)
            fold_list(all, program, list[i]->repeat.body, &list[i]->repeat.n_body);
        if (!fold(all, program, list, *n, i))
            list[kept++] = list[i];
    }
    *n = kept;
}

void kl_fold_casts(kl_program *program)
{
    int n = MAX(program->n_buffers, 1);
    totals all = { base_alloc(sizeof(int) * (size_t)n), base_alloc(sizeof(int) * (size_t)n), program };
    for (int i = 0; i < program->n_kernels; i++)
        kl_visit_all(program->kernels[i], count_use, &all);
    fold_list(&all, program, program->kernels, &program->n_kernels);
    base_free(all.writes);
    base_free(all.reads);
}
