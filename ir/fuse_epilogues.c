/* Loops that read a product as soon as it is made become its epilogue: the product's elements are used while they are in
 * registers, and are not stored unless someone else needs them.
 *
 *     t[m,n] = sum over k of x[m,k] w[k,n]            u[m,n] = t + b[n], g[m,n] = gelu(u)    with t the sum
 *     u[m,n] = t[m,n] + b[n]; g[m,n] = gelu(u[m,n])
 *
 * A loop joins the product before it if
 *
 *   - it visits the product's elements once each, in any order: its axes and the product's (batch, m, n) are refined until
 *     both are runs of the same steps through t, and all its other views step evenly along each of the product's axes;
 *   - it reduces over no rows. Sums over the product's rows are made by the epilogue too;
 *   - it can move up: nothing between the product and the loop writes what the loop reads, or touches what it writes, and it does not
 *     write what the product reads.
 *
 * An accumulation over micro-batches or chunks (acc = acc + t) is a case of this. Which epilogues can be executed is for the backend to say:
 * its legalise step splits off what it has no code for. */
#include "ir/kernels.h"

#include <string.h>

/* -- one loop's axes as another's --------------------------------------------------------------------------------------- */

/* A run of steps that an axis of the product and an axis of the loop have in common. */
typedef struct { int to, from; int64_t extent, to_scale, from_scale; } piece;
enum { MOST_PIECES = 2 * KL_MAX_AXES };

typedef struct { int axis; int64_t extent, stride, scale; } step;

/* The axes that matter, by ascending stride; of equal strides (which do not occur in what is stored once) any order. */
static int sorted_steps(int n_axes, const int64_t *extent, const kl_view *view, step *steps)
{
    int n = 0;
    for (int i = n_axes - 1; i >= 0; i--) {
        if (extent[i] == 1)
            continue;
        step s = { i, extent[i], view->stride[i], 1 };
        int at = n++;
        for (; at > 0 && steps[at - 1].stride > s.stride; at--)
            steps[at] = steps[at - 1];
        steps[at] = s;
    }
    return n;
}

/* Cuts both lists into the same pieces; -1 where they do not walk through the same elements. */
static int match(int n_to, step *to, int n_from, step *from, piece *pieces)
{
    int n = 0, i = 0, j = 0;
    while (i < n_to && j < n_from) {
        step *a = &to[i], *b = &from[j];
        int64_t extent = MIN(a->extent, b->extent);
        if (a->stride != b->stride || a->stride == 0 || a->extent % extent || b->extent % extent || n == MOST_PIECES)
            return -1;
        pieces[n++] = (piece){ a->axis, b->axis, extent, a->scale, b->scale };
        step *both[] = { a, b };
        for (int k = 0; k < 2; k++) {
            both[k]->extent /= extent;
            both[k]->stride *= extent;
            both[k]->scale *= extent;
        }
        /* What is left of an axis goes on where its stride belongs: the next steps of the other list are no smaller. */
        if (a->extent == 1)
            i++;
        if (b->extent == 1)
            j++;
        for (int k = i; k + 1 < n_to && to[k].stride > to[k + 1].stride; k++) {
            step swap = to[k];
            to[k] = to[k + 1];
            to[k + 1] = swap;
        }
        for (int k = j; k + 1 < n_from && from[k].stride > from[k + 1].stride; k++) {
            step swap = from[k];
            from[k] = from[k + 1];
            from[k + 1] = swap;
        }
    }
    return i == n_to && j == n_from ? n : -1;
}

/* The strides of a view of the loop along the product's axes; false where it does not step evenly along one. */
static bool view_along(const kl_view *view, int n_pieces, const piece *pieces, kl_view *along)
{
    bool known[KL_MAX_AXES] = {0};
    if (view->n_dynamic)
        return false;
    *along = (kl_view){ .buffer = view->buffer, .offset = view->offset };
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < n_pieces; i++) {
            const piece *p = &pieces[i];
            int64_t stride = view->stride[p->from] * p->from_scale;
            if (pass == 0 && p->to_scale == 1) {          /* the innermost piece of its axis says how the axis steps */
                along->stride[p->to] = stride;
                known[p->to] = true;
            }
            if (pass == 1 && (!known[p->to] || stride != along->stride[p->to] * p->to_scale))
                return false;
        }
    }
    return true;
}

/* -- joining ------------------------------------------------------------------------------------------------------------ */

/* The view by which the loop reads what `store` wrote, one and the same wherever it does; NULL where it is not, or the loop reduces. */
static const kl_view *only_load(const kl_loop *loop, const kl_view *store)
{
    const kl_view *load = NULL;
    for (int i = 0; i < loop->n_exprs; i++) {
        const kl_expr *expr = &loop->exprs[i];
        if (expr->kind == KL_REDUCE)
            return NULL;
        if (expr->kind != KL_LOAD || expr->view.buffer != store->buffer)
            continue;
        if (load && memcmp(load->stride, expr->view.stride, sizeof load->stride))
            return NULL;
        load = &expr->view;
        if (load->offset != store->offset || load->n_dynamic)
            return NULL;
    }
    return load;
}

/* Whether the loop's rows are the product's, where the loop has something that is of a row. */
static bool rows_agree(const kl_contraction *c, const kl_loop *loop, int n_pieces, const piece *pieces)
{
    bool by_rows = false;
    for (int i = 0; i < loop->n_outputs; i++)
        by_rows |= loop->outputs[i].kind == KL_SUM_OUTER || loop->exprs[loop->outputs[i].expr].row;
    for (int i = 0; i < n_pieces && by_rows; i++)
        if ((pieces[i].from >= loop->n_outer) != (pieces[i].to == c->c.n_axes - 1))
            return false;
    return true;
}

/* The epilogue that the product would have with the loop joined, in place of its reads of the product's output `which`. */
static bool joined(base_arena *arena, const kl_contraction *c, int which, const kl_loop *loop, kl_loop *epilogue)
{
    const kl_loop *old = &c->c;
    const kl_view *store = &old->outputs[which].view;
    step to[KL_MAX_AXES], from[KL_MAX_AXES];
    piece pieces[MOST_PIECES];
    const kl_view *load = only_load(loop, store);
    if (!load)
        return false;
    int n_pieces = match(sorted_steps(old->n_axes, old->extent, store, to), to, sorted_steps(loop->n_axes, loop->extent, load, from), from, pieces);
    if (n_pieces < 0 || !rows_agree(c, loop, n_pieces, pieces))
        return false;

    *epilogue = *old;
    epilogue->n_exprs = 0;
    epilogue->exprs = ARENA_NEW(arena, kl_expr, old->n_exprs + loop->n_exprs);
    for (int i = 0; i < old->n_exprs; i++)
        epilogue->exprs[epilogue->n_exprs++] = old->exprs[i];
    int *name = ARENA_NEW(arena, int, loop->n_exprs);
    for (int i = 0; i < loop->n_exprs; i++) {
        kl_expr expr = loop->exprs[i];
        if (expr.kind == KL_LOAD && expr.view.buffer == store->buffer) {
            name[i] = old->outputs[which].expr;
            continue;
        }
        expr.row = true;
        if (!view_along(&loop->exprs[i].view, n_pieces, pieces, &expr.view))
            return false;
        for (int j = 0; j < expr.n_args; j++) {
            expr.args[j] = name[expr.args[j]];
            expr.row &= epilogue->exprs[expr.args[j]].row;
        }
        expr.row &= expr.view.stride[old->n_axes - 1] == 0 || old->extent[old->n_axes - 1] == 1;
        name[i] = epilogue->n_exprs;
        epilogue->exprs[epilogue->n_exprs++] = expr;
    }
    epilogue->n_outputs = 0;
    epilogue->outputs = ARENA_NEW(arena, kl_output, old->n_outputs + loop->n_outputs);
    for (int i = 0; i < old->n_outputs; i++)
        epilogue->outputs[epilogue->n_outputs++] = old->outputs[i];
    for (int i = 0; i < loop->n_outputs; i++) {
        kl_output output = loop->outputs[i];
        if (!view_along(&loop->outputs[i].view, n_pieces, pieces, &output.view))
            return false;
        output.expr = name[output.expr];
        /* A value of the whole loop that is constant along the product's rows is no row value there: it would be summed too seldom. */
        if (epilogue->exprs[output.expr].row && !loop->exprs[loop->outputs[i].expr].row)
            return false;
        epilogue->outputs[epilogue->n_outputs++] = output;
    }
    return true;
}

/* -- dependences -------------------------------------------------------------------------------------------------------- */

/* What the kernels of a list do, by memory and by buffer. Who has moved up runs at another place than where it stood: at[] says where. */
enum { NONE = -1 };
typedef struct { int kernel, next; } note;
typedef struct {
    const int *memory;
    int *at;                   /* by place in the list */
    int *writes, *reads;       /* by memory: a note of each kernel that does; NONE: no more */
    int *loops;                /* by buffer: of each loop that reads it, in order */
    int n_notes, cap_notes, kernel;
    note *notes;
} list_index;

static void add_note(list_index *index, int *first)
{
    if (*first != NONE && index->notes[*first].kernel == index->kernel)
        return;
    index->notes = base_grown(index->notes, index->n_notes, &index->cap_notes, sizeof(note));
    index->notes[index->n_notes] = (note){ index->kernel, *first };
    *first = index->n_notes++;
}

static void note_access(void *context, const kl_access *access)
{
    list_index *index = context;
    int memory = index->memory[access->view->buffer];
    add_note(index, access->write ? &index->writes[memory] : &index->reads[memory]);
}

static list_index index_list(const kl_program *program, const int *memory, kl_kernel *const *list, int n)
{
    list_index index = { .memory = memory, .at = base_alloc(sizeof(int) * (size_t)MAX(n, 1)) };
    int **chains[] = { &index.writes, &index.reads, &index.loops };
    for (size_t i = 0; i < COUNT_OF(chains); i++) {
        *chains[i] = base_alloc(sizeof(int) * (size_t)program->n_buffers);
        for (int j = 0; j < program->n_buffers; j++)
            (*chains[i])[j] = NONE;
    }
    for (index.kernel = n - 1; index.kernel >= 0; index.kernel--) {         /* from behind: what comes first stands first in a chain */
        kl_kernel *kernel = list[index.kernel];
        index.at[index.kernel] = index.kernel;
        kl_visit_all(kernel, note_access, &index);
        for (int j = 0; kernel->kind == KL_LOOP && j < kernel->loop.n_exprs; j++)
            if (kernel->loop.exprs[j].kind == KL_LOAD)
                add_note(&index, &index.loops[kernel->loop.exprs[j].view.buffer]);
    }
    return index;
}

static void free_index(list_index *index)
{
    base_free(index->at);
    base_free(index->writes);
    base_free(index->reads);
    base_free(index->loops);
    base_free(index->notes);
}

static bool any_between(const list_index *index, int first, int low, int high)
{
    for (int i = first; i != NONE; i = index->notes[i].next)
        if (index->at[index->notes[i].kernel] > low && index->at[index->notes[i].kernel] < high)
            return true;
    return false;
}

/* Whether a kernel between the two writes what the loop reads, or touches what it writes. */
static bool is_cut_off(const list_index *index, const kl_loop *loop, int product, int at)
{
    for (int i = 0; i < loop->n_exprs; i++)
        if (loop->exprs[i].kind == KL_LOAD && any_between(index, index->writes[index->memory[loop->exprs[i].view.buffer]], product, at))
            return true;
    for (int i = 0; i < loop->n_outputs; i++) {
        int memory = index->memory[loop->outputs[i].view.buffer];
        if (any_between(index, index->writes[memory], product, at) || any_between(index, index->reads[memory], product, at))
            return true;
    }
    return false;
}

typedef struct { const int *memory; const kl_loop *loop; bool clash; } mover;

/* Whether an access by a kernel that the loop would pass forbids it to. */
static void against(mover *m, const kl_view *view, bool write)
{
    int memory = m->memory[view->buffer];
    for (int i = 0; i < m->loop->n_exprs && write; i++)
        if (m->loop->exprs[i].kind == KL_LOAD && m->memory[m->loop->exprs[i].view.buffer] == memory)
            m->clash = true;
    for (int i = 0; i < m->loop->n_outputs; i++)
        if (m->memory[m->loop->outputs[i].view.buffer] == memory)
            m->clash = true;
}

/* Of the product itself only its operands stand against the loop, and the other outputs of its epilogue. */
static bool can_move_up(const list_index *index, kl_kernel **list, int product, int loop, int buffer)
{
    mover m = { .memory = index->memory, .loop = &list[loop]->loop };
    const kl_contraction *c = &list[product]->contraction;
    const kl_loop *parts[] = { &c->a, &c->b, &c->c };
    for (size_t k = 0; k < COUNT_OF(parts); k++)
        for (int i = 0; i < parts[k]->n_exprs; i++)
            if (parts[k]->exprs[i].kind == KL_LOAD)
                against(&m, &parts[k]->exprs[i].view, false);
    for (int i = 0; i < c->c.n_outputs; i++)
        if (c->c.outputs[i].view.buffer != buffer)
            against(&m, &c->c.outputs[i].view, true);
    return !m.clash && !is_cut_off(index, m.loop, product, loop);
}

static void drop_output(kl_loop *loop, int which)
{
    memmove(&loop->outputs[which], &loop->outputs[which + 1], sizeof(kl_output) * (size_t)(loop->n_outputs - which - 1));
    loop->n_outputs--;
}

typedef struct { kl_program *program; int *memory; kl_uses uses; } fusion;

/* Lets the product at `at` take one loop more, whose place in the list is NULL from then on. */
static bool fuse_into(const fusion *f, list_index *index, kl_kernel **list, int at)
{
    kl_program *program = f->program;
    kl_contraction *c = &list[at]->contraction;
    for (int which = 0; which < c->c.n_outputs; which++) {
        const kl_output *output = &c->c.outputs[which];
        int buffer = output->view.buffer;
        if (output->kind != KL_STORE || output->accumulate || program->buffers[buffer].kind != KL_TEMP || output->view.n_dynamic)
            continue;
        for (int next = index->loops[buffer]; next != NONE; next = index->notes[next].next) {
            kl_loop fused;
            int i = index->notes[next].kernel;
            if (i < at || !list[i] || !can_move_up(index, list, at, i, buffer) || !joined(program->arena, c, which, &list[i]->loop, &fused))
                continue;
            for (int j = 0; j < list[i]->loop.n_exprs; j++)
                f->uses.reads[buffer] -= list[i]->loop.exprs[j].kind == KL_LOAD && list[i]->loop.exprs[j].view.buffer == buffer;
            c->c = fused;
            list[at]->name = base_arena_text(program->arena, "%s+%s", list[at]->name, list[i]->name);
            list[i] = NULL;
            index->at[i] = at;
            if (f->uses.reads[buffer] == 0)                /* who adds to it later does so for a reader */
                drop_output(&c->c, which);
            return true;
        }
    }
    return false;
}

static void fuse_list(const fusion *f, kl_kernel **list, int *n)
{
    int kept = 0;
    list_index index = index_list(f->program, f->memory, list, *n);
    for (int i = 0; i < *n; i++) {
        if (!list[i])
            continue;
        if (list[i]->kind == KL_REPEAT)
            fuse_list(f, list[i]->repeat.body, &list[i]->repeat.n_body);
        while (list[i]->kind == KL_CONTRACTION && fuse_into(f, &index, list, i)) {
        }
    }
    for (int i = 0; i < *n; i++)
        if (list[i])
            list[kept++] = list[i];
    *n = kept;
    free_index(&index);
}

void kl_fuse_epilogues(kl_program *program)
{
    fusion f = { program, kl_memories(program), kl_count_uses(program) };
    fuse_list(&f, program->kernels, &program->n_kernels);
    base_free(f.memory);
    kl_renumber(program);
}
