/* Blocks one after the other, the warps of a block by turns from barrier to barrier. In a warp the lanes that are at
 * the lowest instruction go on, so that those that took another way are met again; an instruction of the whole warp,
 * and a barrier, holds the lanes that come to it until all are there. */
#include "tests/ptx/machine.h"

#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Noreturn void ptx_fail(ptx_machine *m, int lane, const char *format, ...)
{
    enum { ROOM = 1024 };
    char *why = malloc(ROOM);
    va_list args;
    int n = snprintf(why, ROOM, "%s, block %u", m->kernel->name, m->block_number);
    if (m->warp && lane >= 0)
        n += snprintf(why + n, (size_t)(ROOM - n), ", thread %d", m->warp->index * LANES + lane);
    else if (m->warp)
        n += snprintf(why + n, (size_t)(ROOM - n), ", warp %d", m->warp->index);
    if (m->inst)
        n += snprintf(why + n, (size_t)(ROOM - n), ", source line %d, %.*s", m->inst->line, (int)strcspn(m->inst->text, ";\n"), m->inst->text);
    n += snprintf(why + n, (size_t)(ROOM - n), ": ");
    va_start(args, format);
    vsnprintf(why + n, (size_t)(ROOM - n), format, args);
    va_end(args);
    m->why = why;
    longjmp(m->failed, 1);
}

static void count(ptx_machine *m, const ptx_inst *i)
{
    static const char classes[] = {
#define OP(name, text, class) CLASS_##class,
#include "tests/ptx/ops.def"
#undef OP
    };
    ptx_counts *c = &m->counts;
    bool divides = (i->op == OP_div || i->op == OP_rem) && i->type != T_F32 && i->type != T_F64;
    c->instructions++;
    switch ((ptx_class)(divides ? CLASS_SPECIAL : classes[i->op])) {
    case CLASS_ARITHMETIC: c->arithmetic++; break;
    case CLASS_SPECIAL:    c->special++; break;
    case CLASS_PRODUCT:    c->products++; break;
    case CLASS_CONVERSION: c->conversions++; break;
    case CLASS_SHUFFLE:    c->shuffles++; break;
    case CLASS_BRANCH:     c->branches++; break;
    case CLASS_BARRIER:    c->barriers++; break;
    case CLASS_MEMORY: case CLASS_MOVE: break;
    }
}

/* -- functions that kernels call ---------------------------------------------------------------------------------- */

static void run_function(ptx_machine *m, const ptx_function *f, const ptx_frame *frame, uint32_t mask);

static void call(ptx_machine *m, const ptx_function *caller, const ptx_frame *frame, const ptx_inst *i, uint32_t mask)
{
    const ptx_function *f = i->callee;
    size_t given = f->params_bytes + f->result_bytes, own = f->locals_bytes + f->calls_bytes;
    unsigned char *memory = calloc(LANES, given + own + 1);
    ptx_frame inner = { memory, memory + LANES * given, given, own };
    size_t before = caller->params_bytes + caller->result_bytes;
    for (int pass = 0; pass < 2; pass++) {                         /* arguments in, results out */
        for (int k = pass ? 0 : i->vector, end = pass ? i->vector : i->n_operands; k < end; k++) {
            size_t bytes = (size_t)i->operands[k].bits / 8, place = (size_t)i->operands[k].slot - before;
            for (int l = 0; l < LANES; l++)
                if (mask >> l & 1) {
                    unsigned char *outer = frame->own + (size_t)l * frame->own_stride + caller->locals_bytes + place;
                    pass ? memcpy(outer, memory + (size_t)l * given + f->places[k], bytes) : memcpy(memory + (size_t)l * given + f->places[k], outer, bytes);
                }
        }
        if (!pass)
            run_function(m, f, &inner, mask);
    }
    free(memory);
}

/* Lanes that are at the lowest instruction of those that wait for nothing. 0: none is. */
static uint32_t furthest_behind(const int *pc, uint32_t ready)
{
    int least = INT_MAX;
    uint32_t mask = 0;
    for (int l = 0; l < LANES; l++)
        if (ready >> l & 1 && pc[l] <= least) {
            mask = pc[l] < least ? 0 : mask;
            least = pc[l];
            mask |= 1u << l;
        }
    return mask;
}

static void set_pc(int *pc, uint32_t mask, int to)
{
    for (int l = 0; l < LANES; l++)
        if (mask >> l & 1)
            pc[l] = to;
}

/* From its first instruction until all lanes have returned. It has no barriers. */
static void run_function(ptx_machine *m, const ptx_function *f, const ptx_frame *frame, uint32_t mask)
{
    int pc[LANES] = {0};
    unsigned char *file = malloc(f->file_bytes);
    const ptx_inst *outer_inst = m->inst;
    const ptx_function *outer = m->function;
    memcpy(file, f->file, f->file_bytes);
    m->function = f;
    for (uint32_t alive = mask; alive;) {
        uint32_t now = furthest_behind(pc, alive);
        int at = pc[__builtin_ctz(now)];
        if (at >= f->n)
            ptx_fail(m, __builtin_ctz(now), "%s has no end", f->name);
        const ptx_inst *i = m->inst = &f->code[at];
        uint32_t taken = ptx_guarded(m, i, now, file);
        count(m, i);
        set_pc(pc, now, at + 1);
        if (i->op == OP_bra)
            set_pc(pc, taken, i->target);
        else if (i->op == OP_ret)
            alive &= ~taken;
        else if (i->op == OP_call && taken)
            call(m, f, frame, i, taken);
        else if (taken)
            ptx_execute(m, frame, i, taken, file);
    }
    m->function = outer;
    m->inst = outer_inst;
    free(file);
}

/* -- a warp ------------------------------------------------------------------------------------------------------- */

static bool is_of_warp(const ptx_inst *i) { return i->op == OP_bar || i->op == OP_shfl || i->op == OP_mma || i->op == OP_ldmatrix; }

/* Lanes that are together, until they part, end, wait, or reach where others are (`meeting`). all_held: those that an
 * instruction of the warp still misses will not come. */
static void run_together(ptx_machine *m, ptx_warp *w, uint32_t now, int meeting, bool all_held)
{
    const ptx_function *f = m->kernel;
    const ptx_frame frame = { (unsigned char *)m->params, w->locals, 0, f->locals_bytes + f->calls_bytes };
    int at = w->pc[__builtin_ctz(now)];
    while (at < meeting) {
        if (at >= f->n)
            ptx_fail(m, __builtin_ctz(now), "the kernel has no end");
        const ptx_inst *i = m->inst = &f->code[at];
        bool of_warp = is_of_warp(i);
        if (of_warp && w->alive & ~now) {
            if (all_held)
                ptx_fail(m, __builtin_ctz(w->alive & ~now), "lanes %#x are at an instruction of the whole warp, to which this one does not come", now);
            w->held |= now;
            break;
        }
        uint32_t taken = ptx_guarded(m, i, now, w->file);
        if (of_warp) {
            w->held = 0;
            if (taken != now)
                ptx_fail(m, __builtin_ctz(now & ~taken), "an instruction of the whole warp, of which a guard keeps this lane");
            if (i->op != OP_shfl && !i->of_warp && now != w->lanes)
                ptx_fail(m, __builtin_ctz(w->lanes & ~now), "an instruction of the whole warp, and this lane has ended");
        }
        count(m, i);
        at++;
        if (i->op == OP_bra && taken != 0 && taken != now) {
            set_pc(w->pc, now, at);
            set_pc(w->pc, taken, i->target);
            return;
        }
        if (i->op == OP_bra)
            at = taken ? i->target : at;
        else if (i->op == OP_ret || i->op == OP_exit) {
            w->alive &= ~taken;
            now &= ~taken;
            if (!now)
                return;
        } else if (i->op == OP_bar && i->of_warp)
            w->round++;
        else if (i->op == OP_bar) {
            w->waiting = now;
            break;
        } else if (i->op == OP_trap && taken)
            ptx_fail(m, __builtin_ctz(taken), "trap");
        else if (i->op == OP_call && taken)
            call(m, f, &frame, i, taken);
        else if (taken)
            ptx_execute(m, &frame, i, taken, w->file);
    }
    set_pc(w->pc, now, at);
}

/* Until all its lanes have ended, or are at a barrier of the block. */
static void run_warp(ptx_machine *m, ptx_warp *w)
{
    m->warp = w;
    m->function = m->kernel;
    while (w->alive & ~w->waiting) {
        uint32_t ready = w->alive & ~w->held, now = furthest_behind(w->pc, ready ? ready : w->held), others = ready & ~now;
        uint32_t nearest = furthest_behind(w->pc, others);
        run_together(m, w, now, nearest ? w->pc[__builtin_ctz(nearest)] : INT_MAX, !ready);
    }
    m->warp = NULL;
    m->inst = NULL;
}

/* -- blocks ------------------------------------------------------------------------------------------------------- */

static void set_special(unsigned char *file, int which, uint32_t value)
{
    for (int l = 0; l < LANES; l++)
        memcpy(file + SPECIAL_SLOT(which) + 8 + 4 * l, &value, 4);
}

static void begin_warp(const ptx_machine *m, ptx_warp *w)
{
    const ptx_function *f = m->kernel;
    unsigned first = (unsigned)w->index * LANES, n = m->threads - first;
    w->lanes = w->alive = n >= LANES ? ALL_LANES : (1u << n) - 1;
    w->waiting = w->held = w->carry = 0;
    w->round = 0;
    memset(w->pc, 0, sizeof w->pc);
    memcpy(w->file, f->file, f->file_bytes);
    for (int k = 0; k < 3; k++) {
        unsigned block[3] = { m->block_number % m->grid[0], m->block_number / m->grid[0] % m->grid[1], m->block_number / m->grid[0] / m->grid[1] };
        set_special(w->file, SPECIAL_TID + k, 0);
        set_special(w->file, SPECIAL_NTID + k, k ? 1 : m->threads);
        set_special(w->file, SPECIAL_CTAID + k, block[k]);
        set_special(w->file, SPECIAL_NCTAID + k, m->grid[k]);
    }
    for (uint32_t l = 0; l < LANES; l++) {
        uint32_t thread = first + l;
        memcpy(w->file + SPECIAL_SLOT(SPECIAL_TID) + 8 + 4 * l, &thread, 4);
        memcpy(w->file + SPECIAL_SLOT(SPECIAL_LANE) + 8 + 4 * l, &l, 4);
    }
}

static void run_block(ptx_machine *m, ptx_warp *warps)
{
    int n = (int)m->n_warps;
    for (int k = 0; k < n; k++)
        begin_warp(m, &warps[k]);
    m->round++;                             /* what the block before did is past */
    ptx_memory_block(m);
    for (bool running = true; running;) {
        running = false;
        for (int k = 0; k < n; k++)
            run_warp(m, &warps[m->options->backwards ? n - 1 - k : k]);
        for (int k = 0; k < n; k++) {       /* all are at a barrier, or have ended */
            running |= warps[k].alive != 0;
            warps[k].waiting = 0;
        }
        m->round++;
    }
    m->counts.blocks++;
}

/* Of all blocks, where only some ran: as if the others were like them. */
static void add_counts(ptx_counts *to, const ptx_counts *c, int64_t blocks)
{
    int64_t *sums = (int64_t *)to;
    const int64_t *numbers = (const int64_t *)c;
    for (size_t k = 0; k < sizeof *c / sizeof *numbers; k++)
        sums[k] += c->blocks ? numbers[k] * blocks / c->blocks : 0;
}

static void run_blocks(ptx_machine *m, ptx_warp *warps)
{
    const ptx_options *o = m->options;
    unsigned blocks = m->grid[0] * m->grid[1] * m->grid[2], every = 1;
    for (unsigned k = 0; k < blocks; k++) {
        if (k % every != 0 && k != blocks - 1)
            continue;
        m->block_number = o->backwards ? blocks - 1 - k : k;
        run_block(m, warps);
        if (o->sampled && k == 0 && (m->counts.bytes_read + m->counts.bytes_written) * blocks > o->most_moved && blocks > (unsigned)o->sampled)
            every = blocks / (unsigned)o->sampled;
    }
}

char *ptx_launch(const ptx_kernel *kernel, const unsigned grid[3], unsigned threads, unsigned shared_bytes, const void *params,
                 size_t params_bytes, const ptx_options *options)
{
    static uint32_t launches;
    const ptx_function *f = &kernel->f;
    ptx_machine m = { .kernel = f, .options = options, .grid = { grid[0], grid[1], grid[2] }, .threads = threads, .n_warps = (threads + LANES - 1) / LANES, .params = params,
                      .shared_bytes = (size_t)f->module->shared_bytes + shared_bytes, .launch = ++launches };
    size_t own = LANES * (f->locals_bytes + f->calls_bytes);
    ptx_warp *warps = calloc(m.n_warps, sizeof *warps);
    for (unsigned k = 0; k < m.n_warps; k++)
        warps[k] = (ptx_warp){ .index = (int)k, .file = malloc(f->file_bytes), .locals = calloc(own + 1, 1) };
    if (!setjmp(m.failed)) {
        if (threads > (unsigned)f->most_threads || (f->exact_threads && threads != (unsigned)f->exact_threads))
            ptx_fail(&m, -1, "%u threads, compiled for %d", threads, f->most_threads);
        if (params_bytes != f->params_bytes)
            ptx_fail(&m, -1, "%zu bytes of parameters, of which it has %zu", params_bytes, f->params_bytes);
        if (m.shared_bytes > MOST_SHARED)
            ptx_fail(&m, -1, "%zu bytes of shared memory", m.shared_bytes);
        run_blocks(&m, warps);
    }
    if (options->counts)
        add_counts(options->counts, &m.counts, (int64_t)grid[0] * grid[1] * grid[2]);
    for (unsigned k = 0; k < m.n_warps; k++)
        free(warps[k].file), free(warps[k].locals);
    free(warps);
    return m.why;
}
