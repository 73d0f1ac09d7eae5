/* Gradients of attention that are only read to be stored in a narrower type are stored in it at once:
 *
 *     attention ... gradients f32                attention ... gradients bf16
 *       dq = t[24,4,12,1]                          dq = u[24,4,12,1]
 *     loop: u = cast(t)
 *
 * All three are of one type, so that it is done for all or none. Needs t to be a temporary that the attention alone writes and the loop
 * alone reads, all of it, and u one that the loop alone writes. Both are row-major: u is laid out as t is. (A product's value is stored
 * in a narrower type by its epilogue: see narrow.c, fuse_epilogues.c.) */
#include "ir/kernels.h"

/* u[i] = bf16 of t[i] for all i of an f32 t, and nothing else. */
static bool is_narrowing(const kl_program *program, const kl_kernel *kernel, int *t, int *u)
{
    const kl_loop *loop = &kernel->loop;
    if (kernel->kind != KL_LOOP || loop->n_exprs != 2 || loop->n_outputs != 1)
        return false;
    const kl_expr *load = &loop->exprs[0], *cast = &loop->exprs[1];
    const kl_output *output = &loop->outputs[0];
    if (load->kind != KL_LOAD || load->dtype != IR_F32 || cast->kind != KL_OP || cast->op != OP_cast || cast->dtype != IR_BF16 ||
        output->expr != 1 || output->kind != KL_STORE || output->accumulate)
        return false;
    *t = load->view.buffer;
    *u = output->view.buffer;
    int64_t count = program->buffers[*t].count;
    return program->buffers[*u].count == count && kl_is_row_major(loop, &load->view, count) && kl_is_row_major(loop, &output->view, count);
}

/* The loop behind list[at] that narrows buffer t, which n stores of list[at] make; -1: none that may go. */
static int narrowing_loop(const kl_uses *u, kl_kernel **list, int n_list, int at, int t, int n, int *to)
{
    int from;
    if (u->program->buffers[t].kind != KL_TEMP || u->reads[t] != 1 || u->writes[t] != n)
        return -1;
    for (int i = at + 1; i < n_list; i++)
        if (is_narrowing(u->program, list[i], &from, to) && from == t)
            return u->program->buffers[*to].kind == KL_TEMP && u->writes[*to] == 1 ? i : -1;
    return -1;
}

static void narrow_gradients(const kl_uses *u, kl_kernel **list, int *n, int at)
{
    kl_attention *a = list[at]->attention;
    kl_view *grads[] = { &a->dq, &a->dk, &a->dv };
    int loops[COUNT_OF(grads)], to[COUNT_OF(grads)];
    for (size_t i = 0; i < COUNT_OF(grads); i++) {
        int stores = 0;
        for (size_t j = 0; j < COUNT_OF(grads); j++)
            stores += grads[j]->buffer == grads[i]->buffer;
        loops[i] = narrowing_loop(u, list, *n, at, grads[i]->buffer, stores, &to[i]);
        if (loops[i] < 0)
            return;
    }
    for (size_t i = 0; i < COUNT_OF(grads); i++) {
        grads[i]->buffer = to[i];
        list[loops[i]] = NULL;                            /* of two in one buffer it is the same loop */
    }
    a->grad_dtype = IR_BF16;
    int left = 0;
    for (int i = 0; i < *n; i++)
        if (list[i])
            list[left++] = list[i];
    *n = left;
}

static void narrow_list(const kl_uses *u, kl_kernel **list, int *n)
{
    for (int i = 0; i < *n; i++) {
        if (list[i]->kind == KL_REPEAT)
            narrow_list(u, list[i]->repeat.body, &list[i]->repeat.n_body);
        if (list[i]->kind == KL_ATTENTION && list[i]->attention->backward && list[i]->attention->grad_dtype == IR_F32)
            narrow_gradients(u, list, n, i);
    }
}

void kl_narrow_stores(kl_program *program)
{
    kl_uses u = kl_count_uses(program);
    narrow_list(&u, program->kernels, &program->n_kernels);
}
