/* What a loop computes of scalars alone, and at some cost, is computed once, by a kernel of one thread before it:
 *
 *                                            loop [| 1]:  s = pow(0.95, step + 1)
 *     loop [| 38633472]                      loop [| 38633472]
 *       e5 = pow(0.95, step + 1)               e5 = load s
 *
 * A thread of a flat loop has 16 elements, and a pow in f64 costs it more than all of them: a bias correction of AdamW. (Fusion computes again what costs no more reading than
 * a load would.) The loops of a list do so where all of them read the same scalars. */
#include "backend_cuda/backend.h"

enum { LEAST_POINTS = 1 << 14, COSTLY = 40 };      /* COSTLY: of kl_op_cost, a power, a sine, a function in f64 */

/* Whether an expression is one value for the whole loop, and whether it costs. */
typedef struct { bool is, costly; } scalar;

static bool is_one_place(const kl_loop *loop, const kl_view *view)
{
    bool one = view->n_dynamic == 0;
    for (int a = 0; a < loop->n_axes; a++)
        one &= view->stride[a] == 0 || loop->extent[a] == 1;
    return one;
}

static scalar *find_scalars(base_arena *arena, const kl_loop *loop)
{
    scalar *s = ARENA_NEW(arena, scalar, loop->n_exprs + 1);
    for (int i = 0; i < loop->n_exprs; i++) {
        const kl_expr *e = &loop->exprs[i];
        s[i].is = e->kind == KL_VALUE || e->kind == KL_OP || (e->kind == KL_LOAD && is_one_place(loop, &e->view));
        s[i].costly = e->kind == KL_OP && kl_op_cost(e->op, e->dtype) >= COSTLY;
        for (int a = 0; a < e->n_args && s[i].is; a++) {
            s[i].is &= s[e->args[a]].is;
            s[i].costly |= s[e->args[a]].costly;
        }
    }
    return s;
}

/* Scalars that cost, and that something reads which is none. */
static bool *find_hoisted(base_arena *arena, const kl_loop *loop, const scalar *s, int *n)
{
    bool *hoisted = ARENA_NEW(arena, bool, loop->n_exprs + 1);
    *n = 0;
    for (int i = 0; i < loop->n_exprs; i++)
        for (int a = 0; a < loop->exprs[i].n_args && !s[i].is; a++)
            hoisted[loop->exprs[i].args[a]] |= s[loop->exprs[i].args[a]].costly && s[loop->exprs[i].args[a]].is;
    for (int i = 0; i < loop->n_outputs; i++)
        hoisted[loop->outputs[i].expr] |= s[loop->outputs[i].expr].costly && s[loop->outputs[i].expr].is;
    for (int i = 0; i < loop->n_exprs; i++)
        *n += hoisted[i];
    return hoisted;
}

/* Whether a loop of the list computes them of the same places. Its form is the first one's. */
static bool agree(const kl_loop *first, const kl_loop *other, const bool *needed)
{
    for (int i = 0; i < first->n_exprs; i++) {
        const kl_expr *x = &first->exprs[i], *y = &other->exprs[i];
        if (needed[i] && (x->kind != y->kind || (x->kind == KL_LOAD && (x->view.buffer != y->view.buffer || x->view.offset != y->view.offset || !is_one_place(other, &y->view))) ||
                          (x->kind == KL_VALUE && x->value != y->value)))
            return false;
    }
    return true;
}

/* The loop of one thread. place: by expression the buffer that it goes to. */
static kl_kernel *scalar_kernel(kl_program *p, const kl_kernel *kernel, const kl_loop *loop, const bool *hoisted, int n, int *place)
{
    kl_kernel *k = ARENA_NEW(p->arena, kl_kernel, 1);
    kl_loop copy = kl_copy_loop(p->arena, loop, 0);
    *k = (kl_kernel){ .kind = KL_LOOP, .name = "scalars", .place = kernel->place, .loop = { .n_axes = 1, .extent = { 1 }, .n_exprs = copy.n_exprs, .exprs = copy.exprs } };
    k->loop.outputs = ARENA_NEW(p->arena, kl_output, n);
    for (int i = 0; i < loop->n_exprs; i++) {
        kl_expr *e = &k->loop.exprs[i];
        e->row = true;
        if (e->kind == KL_LOAD)
            e->view = (kl_view){ .buffer = e->view.buffer, .offset = e->view.offset };
        if (!hoisted[i])
            continue;
        place[i] = kl_add_buffer(p, (kl_buffer){ .kind = KL_TEMP, .dtype = e->dtype, .count = 1, .donated = -1, .place = kernel->place });
        k->loop.outputs[k->loop.n_outputs++] = (kl_output){ .kind = KL_STORE, .expr = i, .view = { .buffer = place[i] } };
    }
    kl_tidy_exprs(p->arena, &k->loop);
    return k;
}

static double points_of(const kl_loop *loop)
{
    double n = 1;
    for (int a = 0; a < loop->n_axes; a++)
        n *= (double)loop->extent[a];
    return n;
}

/* What is to run before the kernel, or NULL. */
static kl_kernel *hoist(kl_program *p, kl_kernel *kernel)
{
    kl_loop *loops;
    int n_loops = kl_loops_of(kernel, &loops), n = 0;
    double points = 0;
    for (int i = 0; i < n_loops; i++)
        points += points_of(&loops[i]);
    if (points < LEAST_POINTS)
        return NULL;
    const scalar *s = find_scalars(p->arena, loops);
    const bool *hoisted = find_hoisted(p->arena, loops, s, &n);
    bool *needed = ARENA_NEW(p->arena, bool, loops->n_exprs + 1), all = n > 0;
    int *place = ARENA_NEW(p->arena, int, loops->n_exprs + 1);
    for (int i = 0; i < loops->n_exprs; i++)
        if (hoisted[i])
            kl_need_expr(loops, i, needed);
    for (int i = 1; i < n_loops && all; i++)
        all = agree(loops, &loops[i], needed);
    if (!all)
        return NULL;
    kl_kernel *before = scalar_kernel(p, kernel, loops, hoisted, n, place);
    for (int i = 0; i < n_loops; i++) {
        kl_expr *exprs = ARENA_NEW(p->arena, kl_expr, loops[i].n_exprs);
        for (int j = 0; j < loops[i].n_exprs; j++)
            exprs[j] = hoisted[j] ? (kl_expr){ .kind = KL_LOAD, .dtype = loops[i].exprs[j].dtype, .row = true, .view = { .buffer = place[j] } } : loops[i].exprs[j];
        loops[i].exprs = exprs;
    }
    return before;
}

static void hoist_in(kl_program *p, kl_kernel ***list, int *n)
{
    kl_kernel **made = ARENA_NEW(p->arena, kl_kernel *, 2 * *n + 1);
    int count = 0;
    for (int i = 0; i < *n; i++) {
        kl_kernel *kernel = (*list)[i];
        if (kernel->kind == KL_REPEAT)
            hoist_in(p, &kernel->repeat.body, &kernel->repeat.n_body);
        kl_kernel *before = kernel->kind == KL_LOOP || kernel->kind == KL_LIST ? hoist(p, kernel) : NULL;
        if (before)
            made[count++] = before;
        made[count++] = kernel;
    }
    *list = made;
    *n = count;
}

void cuda_hoist_scalars(kl_program *program) { hoist_in(program, &program->kernels, &program->n_kernels); }
