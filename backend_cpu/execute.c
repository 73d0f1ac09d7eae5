/* Runs a program: all threads of the pool walk one list of stages together.
 *
 * A stage is what may run side by side: tasks of one kernel, or of many that do not touch each other's memory. Kernels go to
 * the earliest stage after all that they depend on, so that the 148 updates of an optimizer are one stage and not 148, and
 * between two stages stands a barrier. A stage that is too small to share runs on thread 0, and needs no barrier before another such
 * stage.
 *
 *     kernels in order           a  b  c  d          a: x -> y    b: z -> w    c: y -> u    d: w -> v
 *     stages                     {a, b}  {c, d}
 *
 * Bodies of repeats are walked as often as they run: each thread has a table of its own of where buffers are, and moves
 * the moving ones itself. In the steady state nothing is allocated or locked. */
#include "backend_cpu/backend.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    const cpu_phase *phase;
    const int64_t *args;
    int kernel;
    bool first_phase;
    int64_t first;                           /* of its tasks, in the stage */
    int64_t *before;                         /* by thread: tasks of the items before it, in the thread's share */
} item;
typedef struct { int first_item, n_items; int64_t tasks, *share; bool serial, barrier; } stage;      /* share: tasks, by thread */

typedef enum { STEP_STAGE, STEP_REPEAT, STEP_END } step_kind;
typedef struct { step_kind kind; int stage; const kl_repeat *repeat; int other; } step;      /* other: the matching end or beginning */

typedef struct { int buffer, repeat; } moving;

/* A buffer that is a parameter or a result. */
typedef struct { int buffer, index; bool result; } given;

/* What one thread has for itself. */
typedef struct { char **buffers; int64_t *iteration; char *scratch; } worker;

/* Stages that are shared out count their tasks in one of three rows, by turn: one in use, one that others may still look at, one
 * being set to zero. A row has a counter for each thread. */
enum { COUNTER_ROWS = 3 };

struct cpu_execution {
    const kl_program *program;
    base_arena *arena;
    int n_steps, n_stages, n_items, cap_steps, cap_stages, cap_items;
    step *steps;
    stage *stages;
    item *items;
    int n_moving;
    moving *moving;
    int n_given;
    given *given;
    int threads;
    worker *workers;
    cpu_tasks *counters;                     /* [COUNTER_ROWS][threads] */
    cpu_grain grain;
    size_t arena_bytes, workspace_bytes, scratch_bytes, total_bytes;
    cpu_arena own, *arena_of;                /* arena_of: NULL before it is allocated */
    char *memory;                            /* where the arena was when the threads' tables were made */
    bool alone;                              /* nothing is worth sharing */
    cpu_profile *profile;                    /* NULL while nobody asks */
    cpu_pool *pool;
    void *const *params, *const *results;    /* of the last run */
    bool again;                              /* the threads' tables have them */
    int64_t began_ns;
};

/* -- which memory a buffer is ---------------------------------------------------------------------------------------------- */

/* Memory as pieces that buffers are made of: the arena cut wherever a buffer begins or ends, then one piece a parameter
 * and one a result. */
typedef struct { int first, end; } pieces;
typedef struct { int n; pieces *of_buffer; int *written, *read; } memory_map;      /* written, read: by piece, the last stage that did */

static int by_value(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static int cut_before(const int64_t *cuts, int n, int64_t at)
{
    int low = 0;
    for (int high = n; low < high;) {
        int middle = (low + high) / 2;
        if (cuts[middle] < at)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static memory_map map_memory(const kl_program *p, base_arena *scratch)
{
    memory_map map = { .of_buffer = ARENA_NEW(scratch, pieces, p->n_buffers) };
    int64_t *cuts = ARENA_NEW(scratch, int64_t, 2 * p->n_buffers + 1);
    int n = 0, unique = 0;
    for (int i = 0; i < p->n_buffers; i++)
        if (p->buffers[i].kind == KL_TEMP) {
            cuts[n++] = p->buffers[i].arena_offset;
            cuts[n++] = p->buffers[i].arena_offset + kl_bytes(&p->buffers[i]);
        }
    qsort(cuts, (size_t)n, sizeof *cuts, by_value);
    for (int i = 0; i < n; i++)
        if (i == 0 || cuts[i] != cuts[i - 1])
            cuts[unique++] = cuts[i];
    map.n = unique + p->n_params + p->n_results;
    for (int i = 0; i < p->n_buffers; i++) {
        const kl_buffer *b = &p->buffers[i];
        pieces *own = &map.of_buffer[i];
        switch (b->kind) {
        case KL_PARAM:  *own = (pieces){ unique + b->index, unique + b->index + 1 }; break;
        case KL_RESULT: own->first = unique + (b->donated >= 0 ? b->donated : p->n_params + b->index), own->end = own->first + 1; break;
        case KL_TEMP:   *own = (pieces){ cut_before(cuts, unique, b->arena_offset), cut_before(cuts, unique, b->arena_offset + kl_bytes(b)) }; break;
        case KL_CONST:  break;
        case KL_MOVING: *own = map.of_buffer[kl_root_buffer(p, i)]; break;
        }
    }
    for (int i = 0; i < p->n_buffers; i++)             /* a base may come after what moves along it */
        if (p->buffers[i].kind == KL_MOVING)
            map.of_buffer[i] = map.of_buffer[kl_root_buffer(p, i)];
    map.written = ARENA_NEW(scratch, int, map.n);
    map.read = ARENA_NEW(scratch, int, map.n);
    return map;
}

/* -- stages ---------------------------------------------------------------------------------------------------------------- */

/* Kernels of one list between repeats, and the stages that they have been given; workspace lives from a kernel's first stage
 * to its last. */
typedef struct { int kernel, first, last; size_t bytes, offset; } placed;
typedef struct {
    cpu_execution *x;
    cpu_plan *plans;
    base_arena *scratch;
    memory_map map;
    int first_stage;                         /* of the segment */
    int n_placed, cap_placed;
    placed *placed;
} scheduler;

typedef struct { memory_map *map; int earliest, stage; bool mark; } visit_state;

static void visit_access(void *context, const kl_access *access)
{
    visit_state *v = context;
    pieces p = v->map->of_buffer[access->view->buffer];
    for (int i = p.first; i < p.end; i++) {
        if (v->mark) {
            int *last = access->write ? &v->map->written[i] : &v->map->read[i];
            *last = MAX(*last, v->stage);
        } else {
            v->earliest = MAX(v->earliest, v->map->written[i] + 1);
            if (access->write)
                v->earliest = MAX(v->earliest, v->map->read[i] + 1);
        }
    }
}

static void begin_segment(scheduler *s)
{
    s->first_stage = s->x->n_stages;
    s->n_placed = 0;
    for (int i = 0; i < s->map.n; i++)
        s->map.written[i] = s->map.read[i] = s->first_stage - 1;
}

static void place_kernel(scheduler *s, kl_kernel *kernel)
{
    const cpu_plan *plan = &s->plans[kernel->id];
    visit_state v = { .map = &s->map, .earliest = s->first_stage };
    kl_visit(kernel, visit_access, &v);
    if (plan->n_phases == 0)
        return;
    v.mark = true;
    v.stage = v.earliest + plan->n_phases - 1;
    kl_visit(kernel, visit_access, &v);
    s->placed = base_arena_grown(s->scratch, s->placed, s->n_placed, &s->cap_placed, sizeof(placed));
    s->placed[s->n_placed++] = (placed){ kernel->id, v.earliest, v.stage, plan->workspace_bytes, 0 };
}

/* The lowest place in workspace beside what lives at the same time. */
static void place_workspace(scheduler *s, int which)
{
    placed *p = &s->placed[which];
    for (bool moved = true; moved;) {
        moved = false;
        for (int i = 0; i < which; i++) {
            const placed *q = &s->placed[i];
            bool together = q->bytes && q->first <= p->last && p->first <= q->last;
            if (together && q->offset < p->offset + p->bytes && p->offset < q->offset + q->bytes) {
                p->offset = q->offset + q->bytes;
                moved = true;
            }
        }
    }
    s->x->workspace_bytes = MAX(s->x->workspace_bytes, p->offset + p->bytes);
}

static void add_step(cpu_execution *x, step st)
{
    x->steps = base_arena_grown(x->arena, x->steps, x->n_steps, &x->cap_steps, sizeof(step));
    x->steps[x->n_steps++] = st;
}

static void move_workspace(cpu_plan *plan, size_t offset)
{
    for (int i = 0; i < plan->n_workspace_args; i++)
        plan->args[plan->workspace_args[i]] += (int64_t)offset;
    for (int i = 0; i < plan->n_parts; i++)
        move_workspace(&plan->parts[i], offset);
}

/* Phase `phase` of the plan, in the stage that is being made. */
static void add_items(cpu_execution *x, stage *st, double *work, const cpu_plan *plan, int phase, int kernel, bool counts)
{
    for (int i = 0; i < plan->n_parts; i++)
        add_items(x, st, work, &plan->parts[i], phase, kernel, counts && i == 0);
    if (plan->n_parts > 0 || phase >= plan->n_phases)
        return;
    const cpu_phase *p = &plan->phases[phase];
    x->items = base_arena_grown(x->arena, x->items, x->n_items, &x->cap_items, sizeof(item));
    x->items[x->n_items++] = (item){ p, plan->args + p->arg_base, kernel, counts && phase == 0, st->tasks, NULL };
    st->n_items++;
    st->tasks += p->tasks;
    *work += p->work;
}

static void end_segment(scheduler *s)
{
    cpu_execution *x = s->x;
    int end = s->first_stage;
    for (int i = 0; i < s->n_placed; i++) {
        cpu_plan *plan = &s->plans[s->placed[i].kernel];
        end = MAX(end, s->placed[i].last + 1);
        if (!plan->workspace_bytes)
            continue;
        place_workspace(s, i);
        move_workspace(plan, s->placed[i].offset);
    }
    int *first = ARENA_NEW(s->scratch, int, end - s->first_stage + 2);       /* by stage: in `there`, its kernels in order */
    for (int i = 0; i < s->n_placed; i++)
        for (int n = s->placed[i].first; n <= s->placed[i].last; n++)
            first[n - s->first_stage + 2]++;
    for (int n = s->first_stage; n < end; n++)
        first[n - s->first_stage + 2] += first[n - s->first_stage + 1];
    const placed **there = ARENA_NEW(s->scratch, const placed *, first[end - s->first_stage + 1]);
    for (int i = 0; i < s->n_placed; i++)
        for (int n = s->placed[i].first; n <= s->placed[i].last; n++)
            there[first[n - s->first_stage + 1]++] = &s->placed[i];
    for (int n = s->first_stage; n < end; n++) {
        stage st = { .first_item = x->n_items };
        double work = 0;
        for (int i = first[n - s->first_stage]; i < first[n - s->first_stage + 1]; i++)
            add_items(x, &st, &work, &s->plans[there[i]->kernel], n - there[i]->first, there[i]->kernel, true);
        st.serial = work < x->grain.shared_ns || st.tasks <= 1;
        st.barrier = true;
        x->stages = base_arena_grown(x->arena, x->stages, x->n_stages, &x->cap_stages, sizeof(stage));
        x->stages[x->n_stages] = st;
        add_step(x, (step){ .kind = STEP_STAGE, .stage = x->n_stages++ });
    }
}

static void schedule(scheduler *s, kl_kernel **kernels, int n)
{
    begin_segment(s);
    for (int i = 0; i < n; i++) {
        if (kernels[i]->kind != KL_REPEAT) {
            place_kernel(s, kernels[i]);
            continue;
        }
        end_segment(s);
        int begin = s->x->n_steps;
        add_step(s->x, (step){ .kind = STEP_REPEAT, .repeat = &kernels[i]->repeat });
        schedule(s, kernels[i]->repeat.body, kernels[i]->repeat.n_body);
        s->x->steps[begin].other = s->x->n_steps;
        add_step(s->x, (step){ .kind = STEP_END, .repeat = &kernels[i]->repeat, .other = begin });
        begin_segment(s);
    }
    end_segment(s);
}

/* Leaves out the barriers that nothing waits for. */
static void drop_barriers(cpu_execution *x)
{
    x->alone = true;
    for (int i = 0; i < x->n_steps; i++) {
        if (x->steps[i].kind != STEP_STAGE)
            continue;
        stage *st = &x->stages[x->steps[i].stage];
        const step *next = i + 1 < x->n_steps ? &x->steps[i + 1] : NULL;
        bool goes_on_alone = next && next->kind == STEP_STAGE && st->serial && x->stages[next->stage].serial;
        st->barrier = next && !goes_on_alone;
        x->alone &= st->serial;
    }
}

/* Where a thread's share of an item begins; thread = threads: its end. What does not go into the threads is given in turn. */
static int64_t begin_of_share(const item *it, int thread, int threads)
{
    return (it->phase->tasks * thread + it->first % threads) / threads;
}

/* Each thread has a share of each item, for tasks of two of them may differ in size a thousandfold. */
static void share_out(cpu_execution *x)
{
    for (int i = 0; i < x->n_stages; i++) {
        stage *st = &x->stages[i];
        st->share = ARENA_NEW(x->arena, int64_t, x->threads);
        for (int j = 0; j < st->n_items; j++) {
            item *it = &x->items[st->first_item + j];
            it->before = ARENA_NEW(x->arena, int64_t, x->threads);
            for (int t = 0; t < x->threads; t++) {
                it->before[t] = st->share[t];
                st->share[t] += begin_of_share(it, t + 1, x->threads) - begin_of_share(it, t, x->threads);
            }
        }
    }
}

/* -- making one ------------------------------------------------------------------------------------------------------------ */

static size_t aligned(size_t n) { return (n + 63) & ~(size_t)63; }

cpu_execution *cpu_execution_new(const kl_program *program, cpu_plan *plans, int threads, cpu_grain grain)
{
    base_arena *arena = base_arena_new(), *scratch = base_arena_new();
    cpu_execution *x = ARENA_NEW(arena, cpu_execution, 1);
    x->program = program;
    x->arena = arena;
    x->threads = threads;
    x->grain = grain;
    scheduler s = { .x = x, .plans = plans, .scratch = scratch, .map = map_memory(program, scratch) };
    schedule(&s, program->kernels, program->n_kernels);
    drop_barriers(x);
    share_out(x);
    for (int i = 0; i < program->n_ids; i++)
        x->scratch_bytes = MAX(x->scratch_bytes, aligned(plans[i].scratch_bytes));
    for (int i = 0; i < program->n_buffers; i++)
        x->n_moving += program->buffers[i].kind == KL_MOVING;
    x->moving = ARENA_NEW(arena, moving, x->n_moving);
    x->given = ARENA_NEW(arena, given, program->n_buffers);
    for (int i = 0, n = 0; i < program->n_buffers; i++) {
        const kl_buffer *b = &program->buffers[i];
        if (b->kind == KL_MOVING)
            x->moving[n++] = (moving){ i, b->repeat };
        if (b->kind == KL_PARAM || b->kind == KL_RESULT)
            x->given[x->n_given++] = (given){ i, b->index, b->kind == KL_RESULT };
    }
    x->arena_bytes = aligned((size_t)program->memory.arena_bytes);
    x->workspace_bytes = aligned(x->workspace_bytes);
    x->total_bytes = x->arena_bytes + x->workspace_bytes + x->scratch_bytes * (size_t)threads;
    base_arena_free(scratch);
    return x;
}

/* In the tables of all threads, all but what a run is given and what moves. */
static void place_intermediates(cpu_execution *x)
{
    const kl_program *p = x->program;
    x->memory = x->arena_of->at;
    for (int i = 0; i < x->threads; i++) {
        worker *w = &x->workers[i];
        for (int j = 0; j < p->n_buffers; j++) {
            const kl_buffer *b = &p->buffers[j];
            if (b->kind == KL_TEMP || b->kind == KL_CONST)
                w->buffers[j] = b->kind == KL_TEMP ? x->memory + b->arena_offset : (char *)(uintptr_t)b->data;
        }
        w->buffers[p->n_buffers] = x->memory + x->arena_bytes;
        w->scratch = x->memory + x->arena_bytes + x->workspace_bytes + x->scratch_bytes * (size_t)i;
    }
}

bool cpu_execution_allocate(cpu_execution *x, cpu_arena *shared)
{
    const kl_program *p = x->program;
    cpu_arena *arena = x->alone ? &x->own : shared;
    if (!cpu_arena_join(arena, x->total_bytes + 64))
        return base_fail(BASE_FAILURE, "%s: %zu MB for intermediates were refused by the system", p->name, x->total_bytes >> 20);
    x->arena_of = arena;
    x->workers = ARENA_NEW(x->arena, worker, x->threads);
    for (int i = 0; i < x->threads; i++) {
        x->workers[i].buffers = ARENA_NEW(x->arena, char *, p->n_buffers + 1 + 16);      /* 16: no line in common */
        x->workers[i].iteration = ARENA_NEW(x->arena, int64_t, p->n_repeats + 16);
    }
    place_intermediates(x);
    x->counters = base_alloc(sizeof(cpu_tasks) * COUNTER_ROWS * (size_t)x->threads);
    return true;
}

void cpu_execution_free(cpu_execution *x)
{
    if (!x)
        return;
    if (x->arena_of)
        cpu_arena_leave(x->arena_of);
    base_free(x->counters);
    cpu_profile_free(x->profile);
    base_arena_free(x->arena);
}

size_t cpu_execution_bytes(const cpu_execution *x) { return x->total_bytes; }
size_t cpu_execution_workspace(const cpu_execution *x) { return x->total_bytes - x->arena_bytes; }

int cpu_execution_stages(const cpu_execution *x)
{
    int n = 0;
    for (int i = 0; i < x->n_stages; i++)
        n += x->stages[i].barrier;
    return n;
}

void cpu_execution_profile(cpu_execution *x, int traced_runs)
{
    if (x->profile)
        return;
    cpu_profile_item *items = ARENA_NEW(x->arena, cpu_profile_item, x->n_items);
    for (int i = 0; i < x->n_stages; i++)
        for (int j = 0; j < x->stages[i].n_items; j++) {
            const item *it = &x->items[x->stages[i].first_item + j];
            items[x->stages[i].first_item + j] = (cpu_profile_item){ it->kernel, i, it->phase->tasks, it->first_phase };
        }
    x->profile = cpu_profile_new(x->alone ? 1 : x->threads, x->n_items, items, x->n_stages, traced_runs);
}

void cpu_execution_read_profile(cpu_execution *x, ir_profile *profile)
{
    for (int i = 0; i < profile->n_kernels; i++)
        profile->kernels[i].runs = 0, profile->kernels[i].busy_ns = profile->kernels[i].idle_ns = 0;
    cpu_profile_read(x->profile, profile->kernels);
    cpu_profile_totals(x->profile, profile);
}

/* -- the walk -------------------------------------------------------------------------------------------------------------- */

static void run_task(cpu_execution *x, const item *it, int64_t task, const worker *w)
{
    if (!x->profile) {
        it->phase->code(it->args, w->buffers, task, w->scratch);
        return;
    }
    int64_t begin = base_now_ns();
    it->phase->code(it->args, w->buffers, task, w->scratch);
    cpu_profile_task(x->profile, (int)(w - x->workers), (int)(it - x->items), begin);
}

/* The item that a task of a thread's share belongs to: the last that begins at or before it. */
static const item *item_of(const cpu_execution *x, const stage *st, int thread, int64_t task)
{
    const item *items = x->items + st->first_item;
    int low = 0;
    for (int high = st->n_items - 1; low < high;) {
        int middle = (low + high + 1) / 2;
        if (items[middle].before[thread] <= task)
            low = middle;
        else
            high = middle - 1;
    }
    return &items[low];
}

/* A share is of neighbouring tasks, so that a thread often finds in its cache what it wrote a stage before; who is done with his takes of
 * the others'. */
static void run_shared(cpu_execution *x, const stage *st, int64_t turn, int thread, int n_threads)
{
    cpu_tasks *row = x->counters + (turn % COUNTER_ROWS) * x->threads;
    const worker *w = &x->workers[thread];
    if (thread == 0)
        for (int i = 0; i < n_threads; i++)
            cpu_tasks_reset(&x->counters[(turn + 1) % COUNTER_ROWS * x->threads + i]);
    for (int i = 0; i < n_threads; i++) {
        int owner = (thread + i) % n_threads;
        if (atomic_load_explicit(&row[owner].next, memory_order_relaxed) >= st->share[owner])
            continue;
        for (int64_t task; (task = cpu_next_task(&row[owner], 1)) < st->share[owner];) {
            const item *it = item_of(x, st, owner, task);
            run_task(x, it, begin_of_share(it, owner, x->threads) + task - it->before[owner], w);
        }
    }
}

static void run_serial(cpu_execution *x, const stage *st, const worker *w)
{
    for (int i = 0; i < st->n_items; i++) {
        const item *it = &x->items[st->first_item + i];
        for (int64_t task = 0; task < it->phase->tasks; task++)
            run_task(x, it, task, w);
    }
}

/* Buffers that move in this repeat, for the iteration that worker is in. */
static void move_buffers(const cpu_execution *x, const kl_repeat *r, worker *w)
{
    int64_t i = w->iteration[r->id], n = r->reverse ? r->count - 1 - i : i;
    for (int j = 0; j < x->n_moving; j++)
        if (x->moving[j].repeat == r->id) {
            const kl_buffer *b = &x->program->buffers[x->moving[j].buffer];
            w->buffers[x->moving[j].buffer] = w->buffers[b->base] + (b->offset + n * b->step) * ir_dtype_bytes(b->dtype);
        }
}

static void set_buffers(const cpu_execution *x, worker *w)
{
    for (int i = 0; i < x->n_given; i++) {
        const given *g = &x->given[i];
        w->buffers[g->buffer] = g->result ? x->results[g->index] : x->params[g->index];
    }
}

static void walk(void *context, int thread, int n_threads)
{
    cpu_execution *x = context;
    worker *w = &x->workers[thread];
    int64_t turn = 0;
    if (!x->again)
        set_buffers(x, w);
    if (thread == 0)
        x->began_ns = base_now_ns();
    for (int at = 0; at < x->n_steps; at++) {
        const step *s = &x->steps[at];
        const stage *st = &x->stages[s->stage];
        int64_t begin = x->profile && s->kind == STEP_STAGE ? base_now_ns() : 0, waits = 0;
        switch (s->kind) {
        case STEP_STAGE:
            if (!st->serial)
                run_shared(x, st, turn++, thread, n_threads);
            else if (thread == 0)
                run_serial(x, st, w);
            break;
        case STEP_REPEAT:
            w->iteration[s->repeat->id] = 0;
            if (s->repeat->count == 0)
                at = s->other;
            else
                move_buffers(x, s->repeat, w);
            break;
        case STEP_END:
            if (++w->iteration[s->repeat->id] < s->repeat->count) {
                move_buffers(x, s->repeat, w);
                at = s->other;
            }
            break;
        }
        if (s->kind == STEP_STAGE && st->barrier && n_threads > 1) {
            waits = x->profile ? base_now_ns() : 0;
            cpu_barrier(x->pool);
        }
        if (begin)
            cpu_profile_stage(x->profile, thread, s->stage, begin, waits);
    }
}

static void execute(cpu_execution *x, cpu_pool *pool, bool again)
{
    x->again = again;
    x->pool = pool;
    if (x->memory != x->arena_of->at)
        place_intermediates(x);
    for (int i = 0; i < x->threads; i++)
        cpu_tasks_reset(&x->counters[i]);
    if (x->profile)
        cpu_profile_begin(x->profile);
    if (x->alone || x->threads == 1)
        walk(x, 0, 1);
    else
        cpu_pool_run(pool, walk, x);
    if (x->profile)
        cpu_profile_end(x->profile);
}

void cpu_execute(cpu_execution *x, cpu_pool *pool, void *const *params, void *const *results)
{
    x->params = params;
    x->results = results;
    execute(x, pool, false);
}

void cpu_execute_again(cpu_execution *x, cpu_pool *pool) { execute(x, pool, true); }
double cpu_execution_began_ms(const cpu_execution *x) { return (double)x->began_ns * 1e-6; }
