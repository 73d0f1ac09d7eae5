/* Where the intermediates lie: live ranges over the kernels, then offsets in one arena.
 *
 * A buffer lives from the kernel that first touches it to the one that last does. Inside a repeat that is not enough: what comes into the
 * repeat or leaves it, what one iteration hands to the next, and what is taken apart slice by slice live through all of it.
 *
 * A loop whose output has the shape of an input that dies there works in its place: both become one block, which lives as long as the two.
 * Blocks are placed by size, the largest first, each in the smallest gap between those placed before it that live at the same time.
 *
 *     k0: t = ...          t ###
 *     k1: u = f(t, p)      u   ####        in t's place, if p is read elsewhere
 *     k2: v = g(u, w)      v      ##       beside u where u is read at other indices than v is written
 */
#include "ir/kernels.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 64 };

/* -- live ranges -------------------------------------------------------------------------------------------------------- */

typedef struct { int kernel, buffer, root; bool write; } access;
typedef struct {
    const kl_program *program;
    int n, cap, now;
    access *list;              /* in the order of the kernels, reads before writes */
    kl_life *lives;
    int *seen;                 /* by buffer: the repeat that it was last seen in */
} survey;

static void note_access(void *context, const kl_access *a)
{
    survey *s = context;
    s->list = base_grown(s->list, s->n, &s->cap, sizeof(access));
    s->list[s->n++] = (access){ s->now, a->view->buffer, kl_root_buffer(s->program, a->view->buffer), a->write && !a->accumulate };
}

/* The accesses [from, to) are those of the repeat's body. Inner repeats have been here before. */
static void live_through(survey *s, const kl_kernel *kernel, int from, int to, int last_id)
{
    int first_id = kernel->id + 1, stamp = kernel->id + 1;
    for (int i = from; i < to; i++) {
        const access *a = &s->list[i];
        kl_life *life = &s->lives[a->root];
        bool first = s->seen[a->root] != stamp, across = (first && !a->write) || kl_moves_with(s->program, a->buffer, kernel->repeat.id);
        s->seen[a->root] = stamp;
        if (across || life->first < first_id || life->last > last_id) {
            if (life->first >= first_id) {
                life->first = first_id;
                life->born = kernel->id;
            }
            if (life->last <= last_id) {
                life->last = last_id;
                life->done = kernel->id;
            }
        }
    }
}

static void note_list(survey *s, kl_kernel *const *kernels, int n)
{
    for (int i = 0; i < n; i++) {
        int before = s->n;
        s->now = kernels[i]->id;
        kl_visit(kernels[i], note_access, s);
        for (int j = before; j < s->n; j++) {
            kl_life *life = &s->lives[s->list[j].root];
            if (life->last < 0)
                life->first = life->born = s->now;
            life->last = life->done = s->now;
        }
        if (kernels[i]->kind == KL_REPEAT)
            note_list(s, kernels[i]->repeat.body, kernels[i]->repeat.n_body);
    }
}

/* After note_list, which knows of all accesses: reads that come later than a repeat matter to it. */
static int settle_list(survey *s, kl_kernel *const *kernels, int n, int at)
{
    for (int i = 0; i < n; i++) {
        while (at < s->n && s->list[at].kernel <= kernels[i]->id)
            at++;
        if (kernels[i]->kind == KL_REPEAT && kernels[i]->repeat.n_body > 0) {
            int from = at;
            at = settle_list(s, kernels[i]->repeat.body, kernels[i]->repeat.n_body, at);
            live_through(s, kernels[i], from, at, kl_last_id(kernels[i]));
        }
    }
    return at;
}

void kl_lives(const kl_program *program, kl_life *lives)
{
    survey s = { .program = program, .lives = lives };
    s.seen = base_alloc(sizeof *s.seen * (size_t)program->n_buffers);
    for (int i = 0; i < program->n_buffers; i++)
        lives[i] = (kl_life){ INT32_MAX, -1, -1, -1 };
    note_list(&s, program->kernels, program->n_kernels);
    settle_list(&s, program->kernels, program->n_kernels, 0);
    base_free(s.list);
    base_free(s.seen);
}

/* -- blocks ------------------------------------------------------------------------------------------------------------- */

/* Buffers that share memory from one to the next. */
typedef struct { int first, last; int64_t bytes, offset; } block;

typedef struct {
    kl_program *program;
    kl_life *lives;
    int *joined;               /* by buffer: the one whose place it takes, or itself */
    const kl_kernel *kernel;   /* now */
} planner;

static int64_t bytes_of(const kl_program *program, const kl_buffer *buffer)
{
    return base_round_up(kl_bytes(buffer), MAX(program->memory.alignment, ALIGNMENT));
}

static bool is_placed(const planner *p, int buffer) { return p->program->buffers[buffer].kind == KL_TEMP && p->lives[buffer].last >= 0; }

static int block_of(const planner *p, int buffer)
{
    while (p->joined[buffer] != buffer)
        buffer = p->joined[buffer];
    return buffer;
}

typedef struct { const kl_program *program; int buffer, n; } counter;

static void count_access(void *context, const kl_access *a)
{
    counter *c = context;
    c->n += kl_root_buffer(c->program, a->view->buffer) == c->buffer;
}

static bool is_only_access(const planner *p, int buffer)
{
    counter c = { p->program, buffer, 0 };
    kl_visit((kl_kernel *)p->kernel, count_access, &c);
    return c.n == 1;
}

/* The output begins to live here, the input ends, and each element is read where it is written. */
static bool may_take_place(const planner *p, const kl_output *output, const kl_expr *input)
{
    int out = output->view.buffer, in = input->view.buffer, here = p->kernel->id;
    if (!is_placed(p, out) || !is_placed(p, in) || out == in)
        return false;
    const kl_buffer *to = &p->program->buffers[out], *from = &p->program->buffers[in];
    return p->lives[out].born == here && p->lives[in].done == here && p->lives[in].first < here && to->count == from->count &&
           ir_dtype_bytes(to->dtype) == ir_dtype_bytes(from->dtype) && kl_same_view(&output->view, &input->view) &&
           is_only_access(p, in) && is_only_access(p, out);
}

static void work_in_place(planner *p)
{
    const kl_loop *loop = &p->kernel->loop;
    for (int i = 0; i < loop->n_outputs; i++) {
        const kl_output *output = &loop->outputs[i];
        if (output->kind != KL_STORE || output->accumulate)
            continue;
        for (int j = 0; j < loop->n_exprs; j++) {
            const kl_expr *input = &loop->exprs[j];
            if (input->kind != KL_LOAD || !may_take_place(p, output, input))
                continue;
            bool taken = false;                           /* by another output of this loop */
            for (int k = 0; k < i; k++)
                taken |= loop->outputs[k].view.buffer >= 0 && is_placed(p, loop->outputs[k].view.buffer) &&
                         block_of(p, loop->outputs[k].view.buffer) == block_of(p, input->view.buffer);
            if (!taken) {
                p->joined[output->view.buffer] = block_of(p, input->view.buffer);
                break;
            }
        }
    }
}

static void work_in_place_in(planner *p, kl_kernel *const *kernels, int n)
{
    for (int i = 0; i < n; i++) {
        p->kernel = kernels[i];
        if (kernels[i]->kind == KL_LOOP)
            work_in_place(p);
        if (kernels[i]->kind == KL_REPEAT)
            work_in_place_in(p, kernels[i]->repeat.body, kernels[i]->repeat.n_body);
    }
}

/* -- offsets ------------------------------------------------------------------------------------------------------------ */

static int by_size(const void *a, const void *b)
{
    const block *x = *(block *const *)a, *y = *(block *const *)b;
    if (x->bytes != y->bytes)
        return x->bytes > y->bytes ? -1 : 1;
    int mine = x->last - x->first, its = y->last - y->first;         /* of one size, the longest lived first */
    if (mine != its)
        return mine > its ? -1 : 1;
    return x < y ? -1 : x > y;
}

/* What place looks at of a block that has its place: side by side, for it looks at all of them. */
typedef struct { int first, last; int64_t offset, end; } placement;

/* placed is sorted by offset; returns where the block ends and puts it there. */
static int64_t place(block *b, placement *placed, int n_placed)
{
    int64_t end = 0, best = -1, best_gap = INT64_MAX;     /* end: of what lives at the same time and lies below */
    for (int i = 0; i < n_placed; i++) {
        const placement *other = &placed[i];
        if (other->last < b->first || other->first > b->last)
            continue;
        int64_t gap = other->offset - end;
        if (gap >= b->bytes && gap < best_gap) {
            best = end;
            best_gap = gap;
            if (gap == b->bytes)
                break;                                    /* no other is smaller: blocks of one size mostly end here */
        }
        end = MAX(end, other->end);
    }
    b->offset = best >= 0 ? best : end;
    int at = n_placed;
    while (at > 0 && placed[at - 1].offset > b->offset)
        at--;
    memmove(&placed[at + 1], &placed[at], sizeof *placed * (size_t)(n_placed - at));
    placed[at] = (placement){ b->first, b->last, b->offset, b->offset + b->bytes };
    return b->offset + b->bytes;
}

static int64_t place_all(planner *p, bool reuse)
{
    int n = p->program->n_buffers, n_blocks = 0;
    int64_t top = 0;
    block *blocks = base_alloc(sizeof *blocks * (size_t)n);
    block **order = base_alloc(sizeof *order * (size_t)n);
    placement *placed = base_alloc(sizeof *placed * (size_t)n);
    for (int i = 0; i < n; i++) {
        if (!is_placed(p, i))
            continue;
        block *b = &blocks[block_of(p, i)];
        if (!b->bytes) {
            *b = (block){ p->lives[i].first, p->lives[i].last, bytes_of(p->program, &p->program->buffers[i]), 0 };
            order[n_blocks++] = b;
        }
        b->first = MIN(b->first, p->lives[i].first);
        b->last = MAX(b->last, p->lives[i].last);
    }
    if (reuse)
        qsort(order, (size_t)n_blocks, sizeof *order, by_size);
    for (int i = 0; i < n_blocks; i++) {
        if (reuse) {
            top = MAX(top, place(order[i], placed, i));
        } else {
            order[i]->offset = top;
            top += order[i]->bytes;
        }
    }
    for (int i = 0; i < n; i++)
        if (is_placed(p, i))
            p->program->buffers[i].arena_offset = blocks[block_of(p, i)].offset;
    base_free(blocks);
    base_free(order);
    base_free(placed);
    return top;
}

/* -- figures ------------------------------------------------------------------------------------------------------------ */

static void sum_up(planner *p)
{
    kl_program *program = p->program;
    kl_memory *memory = &program->memory;
    int64_t *change = base_alloc(sizeof *change * (size_t)(program->n_ids + 1));
    memory->params_bytes = memory->results_bytes = memory->consts_bytes = memory->temps_bytes = memory->live_bytes = 0;
    memory->peak_kernel = 0;
    for (int i = 0; i < program->n_buffers; i++) {
        const kl_buffer *buffer = &program->buffers[i];
        int64_t bytes = kl_bytes(buffer);
        switch (buffer->kind) {
        case KL_PARAM:  memory->params_bytes += bytes; break;
        case KL_RESULT: memory->results_bytes += buffer->donated < 0 ? bytes : 0; break;
        case KL_CONST:  memory->consts_bytes += bytes; break;
        case KL_TEMP:
            if (is_placed(p, i)) {
                int start = p->lives[i].first + (block_of(p, i) != i);        /* in place: counted once */
                memory->temps_bytes += bytes_of(program, buffer);
                change[start] += bytes_of(program, buffer);
                change[MAX(start, p->lives[i].last + 1)] -= bytes_of(program, buffer);
            }
            break;
        case KL_MOVING: break;
        }
    }
    int64_t live = 0;
    for (int i = 0; i < program->n_ids; i++) {
        live += change[i];
        if (live > memory->live_bytes) {
            memory->live_bytes = live;
            memory->peak_kernel = i;
        }
    }
    base_free(change);
}

void kl_plan_memory(kl_program *program, bool reuse)
{
    planner p = { .program = program };
    p.lives = base_alloc(sizeof *p.lives * (size_t)program->n_buffers);
    p.joined = base_alloc(sizeof *p.joined * (size_t)program->n_buffers);
    for (int i = 0; i < program->n_buffers; i++)
        p.joined[i] = i;
    kl_renumber(program);
    kl_lives(program, p.lives);
    if (reuse)
        work_in_place_in(&p, program->kernels, program->n_kernels);
    sum_up(&p);
    program->memory.arena_bytes = place_all(&p, reuse) + program->memory.workspace_bytes;
    base_free(p.lives);
    base_free(p.joined);
}

/* -- the table ---------------------------------------------------------------------------------------------------------- */

static void print_line(base_text *text, const char *what, int64_t bytes, const char *format, ...) PRINTF_LIKE(4, 5);
static void print_line(base_text *text, const char *what, int64_t bytes, const char *format, ...)
{
    base_text_add(text, "  %-24s %10.2f MiB", what, (double)bytes / (1 << 20));
    if (*format) {
        va_list args;
        va_start(args, format);
        base_text_add(text, "   ");
        base_text_addv(text, format, args);
        va_end(args);
    }
    base_text_add(text, "\n");
}

static const kl_kernel *kernel_by_id(kl_kernel *const *kernels, int n, int id)
{
    for (int i = 0; i < n; i++) {
        if (kernels[i]->id == id)
            return kernels[i];
        if (kernels[i]->kind == KL_REPEAT && id > kernels[i]->id && id <= kl_last_id(kernels[i]))
            return kernel_by_id(kernels[i]->repeat.body, kernels[i]->repeat.n_body, id);
    }
    return NULL;
}

static void print_largest(base_text *text, const kl_program *program)
{
    enum { MOST = 5 };
    int largest[MOST], n = 0;
    kl_life *lives = base_alloc(sizeof *lives * (size_t)program->n_buffers);
    kl_lives(program, lives);
    for (int i = 0; i < program->n_buffers; i++) {
        if (program->buffers[i].kind != KL_TEMP || lives[i].last < 0)
            continue;
        int at = n < MOST ? n++ : MOST;
        for (; at > 0 && bytes_of(program, &program->buffers[largest[at - 1]]) < bytes_of(program, &program->buffers[i]); at--)
            if (at < MOST)
                largest[at] = largest[at - 1];
        if (at < MOST)
            largest[at] = i;
    }
    for (int i = 0; i < n; i++) {
        const kl_buffer *buffer = &program->buffers[largest[i]];
        print_line(text, i ? "" : "largest intermediates", bytes_of(program, buffer), "%s[%lld], kernels %d to %d%s%s%s%.0d", ir_dtype_name(buffer->dtype),
                   (long long)buffer->count, lives[largest[i]].first, lives[largest[i]].last, buffer->place.file ? ", " : "",
                   buffer->place.file ? buffer->place.file : "", buffer->place.file ? ":" : "", buffer->place.file ? buffer->place.line : 0);
    }
    base_free(lives);
}

void kl_print_memory(base_text *text, const kl_program *program)
{
    const kl_memory *m = &program->memory;
    const kl_kernel *peak = kernel_by_id(program->kernels, program->n_kernels, m->peak_kernel);
    int donated = 0;
    for (int i = 0; i < program->n_buffers; i++)
        donated += program->buffers[i].kind == KL_RESULT && program->buffers[i].donated >= 0;
    base_text_add(text, "memory of %s\n", program->name);
    print_line(text, "parameters", m->params_bytes, "%d", program->n_params);
    print_line(text, "results", m->results_bytes, "%d, and %d in the place of parameters", program->n_results - donated, donated);
    print_line(text, "constants", m->consts_bytes, "%s", "");
    print_line(text, "intermediates", m->arena_bytes - m->workspace_bytes, "%.2f MiB without reuse, %.2f MiB live at the peak",
               (double)m->temps_bytes / (1 << 20), (double)m->live_bytes / (1 << 20));
    print_line(text, "workspace", m->workspace_bytes, "%s", "");
    print_line(text, "in all", m->params_bytes + m->results_bytes + m->consts_bytes + m->arena_bytes, "%s", "");
    if (peak && m->live_bytes > 0)
        base_text_add(text, "  peak in kernel %d, %s%s%s%s%.0d\n", peak->id, peak->name, peak->place.file ? ", " : "",
                      peak->place.file ? peak->place.file : "", peak->place.file ? ":" : "", peak->place.file ? peak->place.line : 0);
    print_largest(text, program);
}
