/* Stores, in a value's place, what its only reader makes of it, where the kernel that makes the value has computed part of that already.
 *
 *     p: u = product; s = sigmoid u; store u; store u s              p: ...; d = s + u s (1 - s); store d; store u s
 *     q: u = load; s = sigmoid u; x = product; store x (s + u s (1 - s))         q: d = load; x = product; store x d
 *
 * So the gradient of gelu computes no exponential again. As much memory as before, the same numbers, less arithmetic.
 *
 * What the reader makes of it must be one expression of the value and of constants, of the value's dtype, with no other use of the value
 * beside it: then it does not matter at which indices the reader loads. */
#include "ir/kernels.h"

#include <string.h>

enum { NONE = -1 };

/* By buffer, through itself or what moves along it: how often it is written and read in the whole program, and the last loops that
 * did; NULL: what did is no loop. */
typedef struct { int writes, reads; kl_loop *writer, *reader; } uses;
typedef struct { const kl_program *program; kl_kind kind; uses *of; } survey;

static void note_access(void *context, const kl_access *access)
{
    survey *s = context;
    uses *u = &s->of[kl_root_buffer(s->program, access->view->buffer)];
    kl_loop *loop = s->kind == KL_LIST ? NULL : access->loop;        /* the loops of a list keep one form */
    if (access->write)
        u->writes++, u->writer = loop;
    if (!access->write || access->accumulate)
        u->reads++, u->reader = loop;
}

static void look_through(survey *s, kl_kernel **kernels, int n)
{
    for (int i = 0; i < n; i++) {
        s->kind = kernels[i]->kind;
        kl_visit(kernels[i], note_access, s);
        if (kernels[i]->kind == KL_REPEAT)
            look_through(s, kernels[i]->repeat.body, kernels[i]->repeat.n_body);
    }
}

/* -- the reader ----------------------------------------------------------------------------------------------------------- */

static bool uses_expr(const kl_view *view, int expr)
{
    for (int i = 0; i < view->n_dynamic; i++)
        if (view->dynamic[i].expr == expr)
            return true;
    return false;
}

/* The one expression through which a loop uses what load reads; NONE: there is none, or it is the load itself. made: which are of it alone. */
static int derived_from(const kl_loop *loop, int load, bool *made)
{
    int which = NONE;
    for (int i = load; i < loop->n_exprs; i++) {
        const kl_expr *e = &loop->exprs[i];
        made[i] = i == load;
        if (e->kind != KL_OP)
            continue;
        bool any = false, all = true;
        for (int j = 0; j < e->n_args; j++) {
            bool from_load = e->args[j] >= load && made[e->args[j]];
            any |= from_load;
            all &= from_load || loop->exprs[e->args[j]].kind == KL_VALUE;
        }
        made[i] = any && all;
    }
    for (int i = load; i < loop->n_exprs; i++) {
        bool leaves = false;
        for (int k = i + 1; made[i] && k < loop->n_exprs; k++) {
            leaves |= uses_expr(&loop->exprs[k].view, i);
            for (int j = 0; j < loop->exprs[k].n_args && !made[k]; j++)
                leaves |= loop->exprs[k].args[j] == i;
        }
        for (int k = 0; made[i] && k < loop->n_outputs; k++)
            leaves |= loop->outputs[k].expr == i || uses_expr(&loop->outputs[k].view, i);
        if (leaves && (which != NONE || i == load))
            return NONE;
        which = leaves ? i : which;
    }
    return which;
}

/* The load stands for expression `which` from now on; what nobody needs any more goes. */
static void read_derived(base_arena *arena, kl_loop *loop, int load, int which)
{
    kl_redirect_expr(arena, loop, loop->n_exprs, which, load);
    kl_tidy_exprs(arena, loop);
}

/* -- the writer ----------------------------------------------------------------------------------------------------------- */

static bool same_expr(const kl_expr *a, const kl_expr *b)
{
    if (a->kind != b->kind || a->dtype != b->dtype || a->n_args != b->n_args)
        return false;
    if (a->kind == KL_VALUE)
        return !memcmp(&a->value, &b->value, sizeof a->value);
    return a->op == b->op && !memcmp(a->args, b->args, sizeof(int) * (size_t)a->n_args);
}

static int find_expr(const kl_loop *loop, const kl_expr *wanted)
{
    for (int i = 0; i < loop->n_exprs; i++)
        if (same_expr(&loop->exprs[i], wanted))
            return i;
    return NONE;
}

/* Gives the loop the reader's expressions up to `which`, `load` being its own `value`. Where it has none of their ops already it stays as it is: NONE. */
static int compute_derived(base_arena *arena, kl_loop *loop, int value, const kl_loop *reader, int load, int which, const bool *made)
{
    kl_loop grown = kl_copy_loop(arena, loop, reader->n_exprs);
    int *name = base_alloc(sizeof *name * (size_t)reader->n_exprs), shared = 0;
    for (int i = 0; i <= which; i++) {
        kl_expr e = reader->exprs[i];
        name[i] = i == load ? value : NONE;
        if (i == load || (e.kind != KL_VALUE && (i < load || !made[i])))
            continue;
        e.row = e.kind == KL_VALUE;
        for (int j = 0; j < e.n_args; j++)
            e.args[j] = name[e.args[j]];
        name[i] = find_expr(&grown, &e);
        shared += name[i] != NONE && e.kind == KL_OP;
        if (name[i] == NONE)
            grown.exprs[name[i] = grown.n_exprs++] = e;
    }
    int derived = name[which];
    base_free(name);
    if (shared == 0)
        return NONE;
    *loop = grown;
    return derived;
}

/* -- both ----------------------------------------------------------------------------------------------------------------- */

static kl_output *output_to(const kl_program *program, kl_loop *loop, int buffer)
{
    int i = 0;
    while (loop->outputs[i].view.buffer < 0 || kl_root_buffer(program, loop->outputs[i].view.buffer) != buffer)
        i++;
    return &loop->outputs[i];
}

static int load_of(const kl_program *program, const kl_loop *loop, int buffer)
{
    int i = 0;
    while (loop->exprs[i].kind != KL_LOAD || kl_root_buffer(program, loop->exprs[i].view.buffer) != buffer)
        i++;
    return i;
}

static void try_buffer(kl_program *program, const uses *u, int buffer)
{
    if (u->writes != 1 || u->reads != 1 || !u->writer || !u->reader || u->writer == u->reader)
        return;
    const kl_output *output = output_to(program, u->writer, buffer);
    if (output->kind != KL_STORE || output->accumulate)
        return;
    int load = load_of(program, u->reader, buffer), value = output->expr;
    bool *made = base_alloc(sizeof *made * (size_t)u->reader->n_exprs);
    int which = derived_from(u->reader, load, made), derived = NONE;
    if (which != NONE && !u->writer->exprs[value].row && !u->reader->exprs[load].row && u->reader->exprs[which].dtype == u->writer->exprs[value].dtype)
        derived = compute_derived(program->arena, u->writer, value, u->reader, load, which, made);
    if (derived != NONE) {
        output_to(program, u->writer, buffer)->expr = derived;
        read_derived(program->arena, u->reader, load, which);
    }
    base_free(made);
}

void kl_store_derived(kl_program *program)
{
    survey s = { .program = program, .of = base_alloc(sizeof(uses) * (size_t)MAX(program->n_buffers, 1)) };
    look_through(&s, program->kernels, program->n_kernels);
    for (int i = 0; i < program->n_buffers; i++)
        if (program->buffers[i].kind == KL_TEMP)
            try_buffer(program, &s.of[i], i);
    base_free(s.of);
}
