/* Independent loops of one form become one kernel, a list of loops:
 *
 *     loop: w0 = w0 - lr g0                   list: w0 = w0 - lr g0
 *     loop: w1 = w1 - lr g1                         w1 = w1 - lr g1
 *     loop: w2 = w2 - lr g2                         w2 = w2 - lr g2
 *
 * So an optimizer is one kernel, whatever the number of parameters: one launch, one function, one plan.
 *
 * Loops of a list run at the time of one of them, so the others move over the kernels between. Two sweeps do that. The first moves loops
 * up to the first of their form: over what they do not depend on. The second moves them down to the last: over what does not
 * depend on them. Within one sweep all move in one direction, and the order of any two kernels that touch the same memory stays:
 * who moves up stays below all that it needs, which moves at most up itself; downwards likewise. What the first sweep has put together the
 * second moves as one.
 *
 * Memory must not suffer. What moves up makes its results earlier: they are small, or not temporary, or there is room for them: at no
 * kernel that they would live through more lives than where most does now. (Weights that are cast for the way forward and for the way
 * back all live in between, where that is.) What moves down needs its operands for longer: they are small, or needed after it anyway,
 * as a gradient is by the update after its norm.
 *
 * Needs axes merged, so that tensors of any shape have one form. Near-linear: loops find their form by a hash. */
#include "ir/kernels.h"

#include <string.h>

enum { LITTLE = 16 << 10 };            /* bytes of a temporary that may live longer */

/* -- forms ---------------------------------------------------------------------------------------------------------------- */

/* 0, 1 or another: what code depends on. */
static int stride_class(int64_t stride) { return stride == 0 ? 0 : stride == 1 ? 1 : 2; }

static bool same_strides(const kl_view *a, const kl_view *b, int n_axes)
{
    if (a->n_dynamic != b->n_dynamic)
        return false;
    for (int i = 0; i < n_axes; i++)
        if (stride_class(a->stride[i]) != stride_class(b->stride[i]))
            return false;
    for (int i = 0; i < a->n_dynamic; i++)
        if (a->dynamic[i].expr != b->dynamic[i].expr)
            return false;
    return true;
}

bool kl_same_form(const kl_loop *a, const kl_loop *b)
{
    if (a->n_axes != b->n_axes || a->n_outer != b->n_outer || a->n_exprs != b->n_exprs || a->n_outputs != b->n_outputs)
        return false;
    for (int i = 0; i < a->n_exprs; i++) {
        const kl_expr *x = &a->exprs[i], *y = &b->exprs[i];
        bool viewed = x->kind == KL_LOAD || x->kind == KL_INDEX || x->kind == KL_RANDOM;
        bool operates = x->kind == KL_OP || x->kind == KL_REDUCE;
        if (x->kind != y->kind || x->dtype != y->dtype || x->row != y->row || x->n_args != y->n_args || (operates && x->op != y->op) ||
            memcmp(x->args, y->args, sizeof(int) * (size_t)x->n_args) || (viewed && !same_strides(&x->view, &y->view, a->n_axes)))
            return false;
    }
    for (int i = 0; i < a->n_outputs; i++) {
        const kl_output *x = &a->outputs[i], *y = &b->outputs[i];
        if (x->kind != y->kind || x->expr != y->expr || x->accumulate != y->accumulate || !same_strides(&x->view, &y->view, a->n_axes))
            return false;
    }
    return true;
}

static uint64_t mixed(uint64_t hash, int64_t n) { return (hash ^ (uint64_t)n) * 0x100000001b3u; }

/* Equal for equal forms. */
static uint64_t hash_of(const kl_loop *loop)
{
    uint64_t hash = mixed(mixed(0xcbf29ce484222325u, loop->n_axes), loop->n_outer);
    for (int i = 0; i < loop->n_exprs; i++) {
        const kl_expr *e = &loop->exprs[i];
        hash = mixed(mixed(hash, e->kind), e->dtype);
        if (e->kind == KL_OP || e->kind == KL_REDUCE)
            hash = mixed(hash, e->op);
        for (int j = 0; j < e->n_args; j++)
            hash = mixed(hash, e->args[j]);
    }
    for (int i = 0; i < loop->n_outputs; i++)
        hash = mixed(mixed(hash, loop->outputs[i].kind), loop->outputs[i].expr);
    return hash ^ hash >> 29;
}

/* By position of a loop, or a list: the next one of its form, or -1; is_first: none comes before. */
typedef struct { int *next; bool *is_first; } forms;

static forms find_forms(kl_kernel *const *kernels, int n)
{
    int size = 16;
    while (size < 2 * n)
        size *= 2;
    int *table = base_alloc(sizeof *table * (size_t)size), *last = base_alloc(sizeof *last * (size_t)n);
    forms f = { base_alloc(sizeof *f.next * (size_t)n), base_alloc(sizeof *f.is_first * (size_t)n) };
    for (int i = 0; i < n; i++) {
        f.next[i] = -1;
        kl_loop *loops, *others;
        if (kl_loops_of(kernels[i], &loops) == 0)
            continue;
        int at = (int)(hash_of(loops) & (uint64_t)(size - 1)), first;
        while ((first = table[at] - 1) >= 0 && kl_loops_of(kernels[first], &others) > 0 && !kl_same_form(others, loops))
            at = (at + 1) & (size - 1);
        if (first < 0) {
            table[at] = i + 1;
            f.is_first[i] = true;
            last[i] = i;
        } else {
            f.next[last[first]] = i;
            last[first] = i;
        }
    }
    base_free(table);
    base_free(last);
    return f;
}

/* -- what depends on what ------------------------------------------------------------------------------------------------- */

typedef struct {
    kl_program *program;
    int *memory;               /* by buffer: buffers of one memory have one number */
    int *before, *after;       /* by position: the nearest kernels before and after it that must stay there; -1 and n: none */
    int *write, *touch;        /* by memory, in a sweep: the last step that did, or -1 */
    int *last;                 /* by memory: the last position that touches it */
    int now, at, nearest;      /* the step, and its position */
    bool note;
    int64_t early, peak, *live;        /* bytes: of a temporary that may be made earlier where there is room; that live at most; and at each kernel, by id */
} survey;

static int *numbers(int n) { return base_alloc(sizeof(int) * (size_t)MAX(n, 1)); }

static void look(void *context, const kl_access *access)
{
    survey *s = context;
    int memory = s->memory[access->view->buffer];
    if (s->note) {
        s->touch[memory] = s->now;
        if (access->write)
            s->write[memory] = s->now;
        s->last[memory] = MAX(s->last[memory], s->at);
    } else {
        s->nearest = MAX(s->nearest, access->write ? s->touch[memory] : s->write[memory]);
    }
}

/* In the order of the list, to find `before`; or the other way round, where steps are counted from its end, to find `after` and `last`. */
static void sweep(survey *s, kl_kernel *const *kernels, int n, bool down)
{
    for (int i = 0; i < s->program->n_buffers; i++)
        s->write[i] = s->touch[i] = s->last[i] = -1;
    for (s->now = 0; s->now < n; s->now++) {
        int at = s->at = down ? s->now : n - 1 - s->now;
        s->nearest = -1;
        s->note = false;
        kl_visit_all(kernels[at], look, s);
        s->note = true;
        kl_visit_all(kernels[at], look, s);
        *(down ? &s->before[at] : &s->after[at]) = down ? s->nearest : n - 1 - s->nearest;
    }
}

/* -- what may move -------------------------------------------------------------------------------------------------------- */

static bool is_little(const survey *s, const kl_view *view)
{
    const kl_buffer *b = &s->program->buffers[kl_root_buffer(s->program, view->buffer)];
    return b->kind != KL_TEMP || kl_bytes(b) <= LITTLE;
}

/* Bytes of temporaries that are made early where `from` runs at the place of `to`, by which the room is less from now on; false: there is none. */
static bool has_room(const survey *s, kl_kernel *from, const kl_kernel *to)
{
    kl_loop *loops;
    int64_t bytes = 0;
    for (int k = kl_loops_of(from, &loops) - 1; k >= 0; k--)
        for (int i = 0; i < loops[k].n_outputs; i++) {
            const kl_buffer *b = &s->program->buffers[kl_root_buffer(s->program, loops[k].outputs[i].view.buffer)];
            int64_t of = is_little(s, &loops[k].outputs[i].view) ? 0 : kl_bytes(b);
            if (of > s->early)
                return false;
            bytes += of;
        }
    for (int id = to->id; bytes && id < from->id; id++)
        if (s->live[id] + bytes > s->peak)
            return false;
    for (int id = to->id; bytes && id < from->id; id++)
        s->live[id] += bytes;
    return true;
}

/* The last position where all that it reads is still needed, but for what is little. */
static int last_use(const survey *s, kl_kernel *kernel)
{
    kl_loop *loops;
    int last = INT32_MAX;
    for (int k = kl_loops_of(kernel, &loops) - 1; k >= 0; k--)
        for (int i = 0; i < loops[k].n_exprs; i++)
            if (loops[k].exprs[i].kind == KL_LOAD && !is_little(s, &loops[k].exprs[i].view))
                last = MIN(last, s->last[s->memory[loops[k].exprs[i].view.buffer]]);
    return last;
}

/* Loops of first's form that may run at its place: they get its position in `lands`. Those that may not begin groups of their own. */
static void move_up(const survey *s, kl_kernel *const *kernels, const forms *f, int first, int *lands)
{
    for (; first >= 0; first = f->next[first]) {
        if (lands[first] != first)
            continue;
        for (int i = f->next[first]; i >= 0; i = f->next[i])
            if (lands[i] == i && s->before[i] < first && has_room(s, kernels[i], kernels[first]))
                lands[i] = first;
    }
}

/* A run of loops, from `first` on, goes down to the last of them that all may go to. */
static void move_down(const survey *s, kl_kernel *const *kernels, const forms *f, int first, int *lands)
{
    while (first >= 0) {
        int end = first, after = s->after[first], last = last_use(s, kernels[first]);
        for (int i = f->next[first]; i >= 0 && i < after && i <= last; i = f->next[i]) {
            end = i;
            after = MIN(after, s->after[i]);
            last = MIN(last, last_use(s, kernels[i]));
        }
        int next = f->next[end];
        for (int i = first; i != next; i = f->next[i])
            lands[i] = end;
        first = next;
    }
}

/* -- moving --------------------------------------------------------------------------------------------------------------- */

static kl_kernel *list_of(kl_program *program, kl_kernel *const *kernels, const forms *f, const int *lands, int first, int target)
{
    kl_kernel *list = ARENA_NEW(program->arena, kl_kernel, 1);
    kl_loop *loops;
    int n = 0;
    for (int i = first; i >= 0; i = f->next[i])
        n += lands[i] == target ? kl_loops_of(kernels[i], &loops) : 0;
    *list = *kernels[first];
    list->kind = KL_LIST;
    list->list = (kl_list){ 0, ARENA_NEW(program->arena, kl_loop, n) };
    for (int i = first; i >= 0; i = f->next[i])
        for (int k = 0, count = lands[i] == target ? kl_loops_of(kernels[i], &loops) : 0; k < count; k++)
            list->list.loops[list->list.n++] = loops[k];
    return list;
}

/* Lists stand where their loops land. */
static void gather(kl_program *program, kl_kernel **kernels, int *n, const forms *f, const int *lands)
{
    int kept = 0;
    kl_kernel **made = ARENA_NEW(program->arena, kl_kernel *, *n);
    for (int i = 0; i < *n; i++) {
        int target = lands[i];
        bool met = made[target];                               /* by the first of them */
        kl_loop *loops;
        if (kl_loops_of(kernels[i], &loops) == 0 || met)
            continue;
        made[target] = kernels[i];
        for (int j = f->next[i]; j >= 0 && made[target] == kernels[i]; j = f->next[j])
            if (lands[j] == target)
                made[target] = list_of(program, kernels, f, lands, i, target);
    }
    for (int i = 0; i < *n; i++) {
        kl_loop *loops;
        kl_kernel *kernel = kl_loops_of(kernels[i], &loops) > 0 ? made[i] : kernels[i];
        if (kernel)
            kernels[kept++] = kernel;
    }
    *n = kept;
}

static void list_in(survey *s, kl_kernel **kernels, int *n, bool up)
{
    for (int i = 0; i < *n; i++)
        if (kernels[i]->kind == KL_REPEAT)
            list_in(s, kernels[i]->repeat.body, &kernels[i]->repeat.n_body, up);
    forms f = find_forms(kernels, *n);
    int *lands = numbers(*n);
    s->before = numbers(*n);
    s->after = numbers(*n);
    sweep(s, kernels, *n, up);
    for (int i = 0; i < *n; i++)
        lands[i] = i;
    for (int i = 0; i < *n; i++)
        if (f.is_first[i])
            (up ? move_up : move_down)(s, kernels, &f, i, lands);
    gather(s->program, kernels, n, &f, lands);
    base_free(lands);
    base_free(s->before);
    base_free(s->after);
    base_free(f.next);
    base_free(f.is_first);
}

/* By kernel, the bytes of temporaries that live. */
static void find_room(survey *s)
{
    kl_program *p = s->program;
    kl_renumber(p);
    kl_life *lives = base_alloc(sizeof *lives * (size_t)MAX(p->n_buffers, 1));
    s->live = base_alloc(sizeof *s->live * (size_t)(p->n_ids + 1));
    kl_lives(p, lives);
    for (int i = 0; i < p->n_buffers; i++)
        if (p->buffers[i].kind == KL_TEMP && lives[i].last >= 0) {
            s->live[lives[i].born] += kl_bytes(&p->buffers[i]);
            s->live[lives[i].done + 1] -= kl_bytes(&p->buffers[i]);
        }
    for (int i = 0; i < p->n_ids; i++) {
        s->live[i] += i ? s->live[i - 1] : 0;
        s->peak = MAX(s->peak, s->live[i]);
    }
    base_free(lives);
}

void kl_list_loops(kl_program *program, int64_t early)
{
    int n = program->n_buffers;
    survey s = { .program = program, .memory = kl_memories(program), .write = numbers(n), .touch = numbers(n), .last = numbers(n), .early = early };
    if (early > 0)
        find_room(&s);
    list_in(&s, program->kernels, &program->n_kernels, true);
    list_in(&s, program->kernels, &program->n_kernels, false);
    kl_renumber(program);
    base_free(s.memory);
    base_free(s.write);
    base_free(s.touch);
    base_free(s.last);
    base_free(s.live);
}
