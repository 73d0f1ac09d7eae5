/* State spaces. An access is checked lane by lane: that memory is there, aligned, written before it is read, and that
 * nobody else is at it whom no barrier orders. For that each byte of shared memory, and on request of global memory,
 * keeps who wrote it last and who read it since.
 *
 * Two accesses are ordered where they are one thread's, or a barrier of the block lies between them, or they are one
 * warp's and bar.warp.sync does. Blocks of one launch are never ordered; launches always are. */
#include "tests/ptx/machine.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* -- order -------------------------------------------------------------------------------------------------------- */

enum { LANES_OF_WARP = -1, MANY_WARPS = -2 };
typedef struct {
    uint32_t launch, block, round, warp_round;
    int16_t warp, lane;                     /* lane LANES_OF_WARP: several of it; warp MANY_WARPS */
} mark;
typedef struct { mark writer, reader; int32_t copied_by; } byte_state;     /* copied_by: the thread, from 1, whose cp.async is under way */

static mark mark_of(const ptx_machine *m, int lane)
{
    return (mark){ m->launch, m->block_number, m->round, m->warp->round, (int16_t)m->warp->index, (int16_t)lane };
}

static bool is_of_block(const ptx_machine *m, const mark *k) { return k->launch == m->launch && k->block == m->block_number; }

static bool is_ordered(const ptx_machine *m, const mark *before, int lane)
{
    if (before->launch != m->launch)
        return true;
    if (before->block != m->block_number)
        return false;
    if (before->round < m->round)
        return true;
    return before->warp == m->warp->index && (before->lane == lane || before->warp_round < m->warp->round);
}

static void note_read(const ptx_machine *m, byte_state *s, int lane)
{
    mark *reader = &s->reader;
    bool others = is_of_block(m, reader) && reader->round == m->round;
    if (others && (reader->warp == MANY_WARPS || (reader->warp == m->warp->index && reader->warp_round == m->warp->round &&
                                                  (reader->lane == LANES_OF_WARP || reader->lane == lane))))
        return;                                                    /* as before: most often so */
    mark now = mark_of(m, lane);
    if (reader->launch == m->launch && reader->block != m->block_number) {
        now.warp = MANY_WARPS, now.block = UINT32_MAX;             /* no block's: whoever writes now meets it */
    } else if (others && reader->warp != now.warp)
        now.warp = MANY_WARPS;
    else if (others && reader->lane != lane)
        now.lane = LANES_OF_WARP;
    *reader = now;
}

static const char *check_order(ptx_machine *m, byte_state *s, int lane, bool writes)
{
    if (!is_ordered(m, &s->writer, lane))
        return writes ? "two threads write one byte, and no barrier is between them" : "one thread reads what another writes, and no barrier is between them";
    if (!writes) {
        note_read(m, s, lane);
        return NULL;
    }
    if (!is_ordered(m, &s->reader, lane))
        return "one thread writes what another reads, and no barrier is between them";
    s->writer = mark_of(m, lane);
    return NULL;
}

/* -- shared memory ------------------------------------------------------------------------------------------------ */

static unsigned char *shared;
static byte_state *shared_states;

static struct { int64_t to; const unsigned char *from; int bytes, thread; } *copies;
static int n_copies, cap_copies;

static int thread_of(const ptx_machine *m, int lane) { return m->warp->index * LANES + lane; }

/* Where an address of the window lies in `shared`: static, then dynamic. -1: nowhere. */
static int64_t shared_place(const ptx_machine *m, uint64_t address, int bytes)
{
    uint64_t fixed = (uint64_t)m->kernel->module->shared_bytes, dynamic = m->shared_bytes - fixed;
    if (address >= DYNAMIC_SHARED)
        return address - DYNAMIC_SHARED + (uint64_t)bytes <= dynamic ? (int64_t)(address - DYNAMIC_SHARED + fixed) : -1;
    return address + (uint64_t)bytes <= fixed ? (int64_t)address : -1;
}

static unsigned char *at_shared(ptx_machine *m, int lane, uint64_t address, int bytes, bool writes)
{
    int64_t place = shared_place(m, address, bytes);
    if (place < 0)
        ptx_fail(m, lane, "%d bytes at %" PRIu64 " of shared memory, of which the block has %zu", bytes, address, m->shared_bytes);
    for (int64_t b = place; b < place + bytes; b++) {
        byte_state *s = &shared_states[b];
        const char *why = s->copied_by ? "a byte that cp.async is still bringing" : check_order(m, s, lane, writes);
        if (!why && !writes && !is_of_block(m, &s->writer))
            why = "a byte that nobody wrote";
        if (why)
            ptx_fail(m, lane, "shared memory at %" PRIu64 ": %s (thread %d wrote last)", address + (uint64_t)(b - place), why, s->writer.warp * LANES + s->writer.lane);
    }
    return shared + place;
}

void ptx_memory_block(ptx_machine *m)
{
    if (!shared) {
        shared = aligned_alloc(512, MOST_SHARED);
        shared_states = malloc(MOST_SHARED * sizeof *shared_states);
    }
    memset(shared_states, 0, m->shared_bytes * sizeof *shared_states);
    memset(shared, 0xff, m->shared_bytes);                         /* NaN */
    n_copies = 0;
}

/* -- global memory ------------------------------------------------------------------------------------------------ */

typedef struct region { struct region *next; const char *at; size_t bytes; byte_state *states; } region;
static region *regions;

static byte_state *global_states(const char *begin, size_t bytes)
{
    for (region *r = regions; r; r = r->next)
        if (r->at == begin)
            return r->states;
    region *r = malloc(sizeof *r);
    *r = (region){ regions, begin, bytes, mmap(NULL, bytes * sizeof(byte_state), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) };
    regions = r;
    return r->states;
}

void ptx_forget(const void *at, size_t bytes)
{
    for (region **r = &regions; *r;) {
        region *dead = *r;
        if (dead->at < (const char *)at || dead->at >= (const char *)at + bytes) {
            r = &dead->next;
            continue;
        }
        *r = dead->next;
        munmap(dead->states, dead->bytes * sizeof(byte_state));
        free(dead);
    }
}

static unsigned char *at_global(ptx_machine *m, int lane, uint64_t address, int bytes, bool writes)
{
    const ptx_module *module = m->kernel->module;
    unsigned char *at = (unsigned char *)(uintptr_t)address;
    if (at >= module->globals && at + bytes <= module->globals + module->globals_bytes && !writes)
        return at;
    size_t block_bytes;
    const char *block = m->options->memory(at, (size_t)bytes, &block_bytes);
    if (!block)
        ptx_fail(m, lane, "%d bytes at %#" PRIx64 ", where no memory is", bytes, address);
    if (m->options->orders_blocks) {
        byte_state *states = global_states(block, block_bytes) + ((const char *)at - block);
        for (int b = 0; b < bytes; b++) {
            const char *why = check_order(m, &states[b], lane, writes);
            if (why)
                ptx_fail(m, lane, "global memory, %td bytes from a tensor's beginning or an arena's: %s (block %u, thread %d wrote last)", (const char *)at - block + b, why,
                         states[b].writer.block, states[b].writer.warp * LANES + states[b].writer.lane);
        }
    }
    return at;
}

/* -- what an access costs ----------------------------------------------------------------------------------------- */

static bool add_new(uint64_t *list, int *n, uint64_t value)
{
    for (int i = *n; i-- > 0;)
        if (list[i] == value)
            return false;
    list[(*n)++] = value;
    return true;
}

static void count_global(ptx_machine *m, uint32_t mask, const uint64_t *address, int bytes, bool writes)
{
    uint64_t sectors[2 * LANES], places[LANES];
    int n_sectors = 0, n_places = 0;
    for (int l = 0; l < LANES; l++)
        if (mask >> l & 1 && add_new(places, &n_places, address[l]))
            add_new(sectors, &n_sectors, address[l] / 32);
    m->counts.global_requests++;
    m->counts.sectors += n_sectors;
    m->counts.sectors_least += (n_places * bytes + 31) / 32;
    *(writes ? &m->counts.bytes_written : &m->counts.bytes_read) += n_places * bytes;
}

/* 32 banks of 4 bytes. 8 bytes a lane are read by half a warp at a time, 16 by a quarter. */
static void count_shared(ptx_machine *m, uint32_t mask, const uint64_t *address, int bytes)
{
    int at_once = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8, words = bytes <= 4 ? 1 : bytes / 4;
    m->counts.shared_requests++;
    for (int first = 0; first < LANES; first += at_once) {
        uint64_t in_bank[32][LANES];
        int n[32] = {0}, most = 0;
        for (int l = first; l < first + at_once; l++)
            for (int k = 0; k < words && mask >> l & 1; k++) {
                uint64_t word = address[l] / 4 + (uint64_t)k;
                add_new(in_bank[word % 32], &n[word % 32], word);
                most = n[word % 32] > most ? n[word % 32] : most;
            }
        m->counts.shared_passes += most;
        m->counts.shared_least += most > 0;
    }
}

/* -- accesses ----------------------------------------------------------------------------------------------------- */

static unsigned char *at_param(ptx_machine *m, const ptx_frame *frame, int lane, uint64_t address, int bytes)
{
    const ptx_function *f = m->function;
    size_t given = f->params_bytes + f->result_bytes;
    if (address + (uint64_t)bytes <= given)
        return frame->params + (size_t)lane * frame->params_stride + address;
    if (address + (uint64_t)bytes > given + f->calls_bytes)
        ptx_fail(m, lane, "%d bytes at %" PRIu64 " of parameters, of which there are %zu", bytes, address, given + f->calls_bytes);
    return frame->own + (size_t)lane * frame->own_stride + f->locals_bytes + (address - given);
}

static ptx_space space_of(uint64_t address)
{
    uint64_t window = address & WINDOW_MASK;
    return window == WINDOW_SHARED ? SPACE_SHARED : window == WINDOW_LOCAL ? SPACE_LOCAL : window == WINDOW_PARAM ? SPACE_PARAM : SPACE_GLOBAL;
}

void ptx_access(ptx_machine *m, const ptx_frame *frame, uint32_t mask, ptx_space space, const uint64_t *address, int bytes, bool writes, unsigned char **at)
{
    uint64_t inside[LANES];
    ptx_space first = space;
    for (int l = 0; l < LANES; l++) {
        if (!(mask >> l & 1))
            continue;
        ptx_space s = space == SPACE_GENERIC ? space_of(address[l]) : space;
        first = first == SPACE_GENERIC ? s : first;
        if (s != first)
            ptx_fail(m, l, "lanes of one access are in two spaces");
        inside[l] = space == SPACE_GENERIC ? address[l] & ~WINDOW_MASK : address[l];
        if (inside[l] % (uint64_t)bytes)
            ptx_fail(m, l, "%d bytes at %#" PRIx64 ", which is not aligned", bytes, inside[l]);
        switch (s) {
        case SPACE_SHARED: at[l] = at_shared(m, l, inside[l], bytes, writes); break;
        case SPACE_PARAM:  at[l] = at_param(m, frame, l, inside[l], bytes); break;
        case SPACE_LOCAL:
            if (inside[l] + (uint64_t)bytes > m->function->locals_bytes)
                ptx_fail(m, l, "%d bytes at %" PRIu64 " of locals, of which there are %zu", bytes, inside[l], m->function->locals_bytes);
            at[l] = frame->own + (size_t)l * frame->own_stride + inside[l];
            break;
        default:           at[l] = at_global(m, l, inside[l], bytes, writes);
        }
    }
    if (first == SPACE_GLOBAL)
        count_global(m, mask, inside, bytes, writes);
    else if (first == SPACE_SHARED)
        count_shared(m, mask, inside, bytes);
}

/* -- copies that come later --------------------------------------------------------------------------------------- */

/* there: how many of the bytes are read; zeros stand for the others. */
void ptx_copy_later(ptx_machine *m, uint32_t mask, const uint64_t *to, const uint64_t *from, int bytes, const uint32_t *there)
{
    unsigned char *at[LANES];
    uint32_t reading = 0;
    ptx_access(m, NULL, mask, SPACE_SHARED, to, bytes, true, at);
    for (int l = 0; l < LANES; l++)
        if (mask >> l & 1 && there[l]) {
            if (there[l] != (uint32_t)bytes)
                ptx_fail(m, l, "cp.async of %u of %d bytes", there[l], bytes);
            reading |= 1u << l;
        }
    unsigned char *source[LANES];
    if (reading)
        ptx_access(m, NULL, reading, SPACE_GLOBAL, from, bytes, false, source);
    for (int l = 0; l < LANES; l++) {
        if (!(mask >> l & 1))
            continue;
        if (n_copies == cap_copies)
            copies = realloc(copies, sizeof *copies * (size_t)(cap_copies = cap_copies ? 2 * cap_copies : 1024));
        int64_t place = shared_place(m, to[l], bytes);
        copies[n_copies].to = place, copies[n_copies].from = reading >> l & 1 ? source[l] : NULL;
        copies[n_copies].bytes = bytes, copies[n_copies].thread = thread_of(m, l);
        n_copies++;
        memset(shared + place, 0xff, (size_t)bytes);
        for (int b = 0; b < bytes; b++)
            shared_states[place + b].copied_by = thread_of(m, l) + 1;
    }
}

void ptx_copies_wait(ptx_machine *m, uint32_t mask)
{
    int kept = 0;
    for (int i = 0; i < n_copies; i++) {
        int lane = copies[i].thread - m->warp->index * LANES;
        if (lane < 0 || lane >= LANES || !(mask >> lane & 1)) {
            copies[kept++] = copies[i];
            continue;
        }
        if (copies[i].from)
            memcpy(shared + copies[i].to, copies[i].from, (size_t)copies[i].bytes);
        else
            memset(shared + copies[i].to, 0, (size_t)copies[i].bytes);
        for (int b = 0; b < copies[i].bytes; b++) {
            shared_states[copies[i].to + b].writer = mark_of(m, lane);
            shared_states[copies[i].to + b].copied_by = 0;
        }
    }
    n_copies = kept;
}
