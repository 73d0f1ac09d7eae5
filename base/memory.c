/* One allocator for the whole program, so that a test can count blocks and refuse the nth; and arenas on top of it.
 *
 * Blocks are 64-byte aligned: a cache line, and a vector of AVX-512. */
#include "base/base.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Large blocks are mapped: they come zeroed without being touched, in huge pages where the system gives them, and go back at
 * once. How long they are is noted in a table and not before their first byte: a page that is touched before its neighbours are mapped is a small
 * one, and there is no huge page around it from then on. Blocks that are mapped one after another lie side by side, and share huge pages.
 * Sanitizers watch what malloc gives out, so with them all of it comes from there. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MAPPED_BYTES SIZE_MAX
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define MAPPED_BYTES SIZE_MAX
#endif
#endif
#ifndef MAPPED_BYTES
#define MAPPED_BYTES ((size_t)1 << 20)
#endif

/* An arena that has become large grows by whole huge pages: one fault for each instead of 512. */
enum { ALIGNMENT = 64, ARENA_CHUNK_BYTES = 64 * 1024, ARENA_LARGE_BYTES = 1 << 20, HUGE_PAGE_BYTES = 2 << 20 };

static atomic_size_t live_blocks, mapped_bytes;
static atomic_long refuse_in = -1;

/* -- mapped blocks ---------------------------------------------------------------------------------------------------- */

/* By address, the next free row where it is taken; at most half of the rows are. at NULL: a free row. */
typedef struct { char *at; size_t bytes; } mapping;
static struct { pthread_mutex_t lock; mapping *rows; size_t n, cap; } table = { .lock = PTHREAD_MUTEX_INITIALIZER };     /* cap: 0 or a power of 2 */

static size_t row_for(const mapping *rows, size_t cap, const void *at)
{
    size_t row = ((uintptr_t)at >> 12) * 0x9E3779B97F4A7C15u >> 32 & (cap - 1);
    while (rows[row].at && rows[row].at != at)
        row = (row + 1) & (cap - 1);
    return row;
}

static bool make_room(void)
{
    size_t cap = MAX(2 * table.cap, (size_t)64);
    if (2 * (table.n + 1) <= table.cap)
        return true;
    mapping *rows = calloc(cap, sizeof *rows);
    if (!rows)
        return false;
    for (size_t i = 0; i < table.cap; i++)
        if (table.rows[i].at)
            rows[row_for(rows, cap, table.rows[i].at)] = table.rows[i];
    free(table.rows);
    table.rows = rows;
    table.cap = cap;
    return true;
}

static bool note_mapping(void *at, size_t bytes)
{
    pthread_mutex_lock(&table.lock);
    bool noted = make_room();
    if (noted) {
        table.rows[row_for(table.rows, table.cap, at)] = (mapping){ at, bytes };
        table.n++;
        atomic_fetch_add(&mapped_bytes, bytes);
    }
    pthread_mutex_unlock(&table.lock);
    return noted;
}

/* Of a block; 0: it is none of these. forget: and takes it out. What lies behind its row may belong before it, and is put in anew. */
static size_t mapping_of(const void *at, bool forget)
{
    size_t bytes = 0;
    if ((uintptr_t)at % 4096)
        return 0;
    pthread_mutex_lock(&table.lock);
    if (table.cap) {
        size_t row = row_for(table.rows, table.cap, at);
        bytes = table.rows[row].bytes;
        if (bytes && forget) {
            table.n--;
            atomic_fetch_sub(&mapped_bytes, bytes);
            table.rows[row] = (mapping){0};
            for (row = (row + 1) & (table.cap - 1); table.rows[row].at; row = (row + 1) & (table.cap - 1)) {
                mapping moved = table.rows[row];
                table.rows[row] = (mapping){0};
                table.rows[row_for(table.rows, table.cap, moved.at)] = moved;
            }
        }
    }
    pthread_mutex_unlock(&table.lock);
    return bytes;
}

static void *map(size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    if (!note_mapping(memory, bytes)) {
        munmap(memory, bytes);
        return NULL;
    }
    madvise(memory, bytes, MADV_HUGEPAGE);
    return memory;
}

/* -- blocks ----------------------------------------------------------------------------------------------------------- */

static void *allocate(size_t bytes)
{
    void *memory = NULL;
    if (bytes > PTRDIFF_MAX)
        return NULL;
    if (bytes >= MAPPED_BYTES) {
        memory = map(bytes);
    } else {
        size_t least = MAX(bytes, (size_t)1);
        if (posix_memalign(&memory, ALIGNMENT, least) != 0)
            return NULL;
        memset(memory, 0, least);
    }
    if (memory)
        atomic_fetch_add(&live_blocks, 1);
    return memory;
}

/* Whether the machine has the bytes. Its memory is read again when a quarter of what was left at the last reading is handed out:
 * others take of it too, and a few readings cost less than one for each tensor. A 64th stays free, for what is not asked for here:
 * page tables, stacks, the heap. */
static bool there_is_room(size_t bytes)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static size_t granted;                   /* without a reading */
    pthread_mutex_lock(&lock);
    bool fits = bytes <= granted;
    if (fits) {
        granted -= bytes;
    } else {
        base_memory memory = base_memory_now();
        size_t spare = memory.total_bytes / 64, room = memory.available_bytes - MIN(memory.available_bytes, spare);
        fits = bytes <= room || !memory.total_bytes;
        granted = fits && memory.total_bytes ? (room - bytes) / 4 : 0;
    }
    pthread_mutex_unlock(&lock);
    return fits;
}

void *base_try_alloc(size_t bytes)
{
    if (atomic_load(&refuse_in) >= 0 && atomic_fetch_sub(&refuse_in, 1) == 0)
        return NULL;
    return there_is_room(bytes) ? allocate(bytes) : NULL;
}

static _Noreturn void out_of_memory(size_t bytes)
{
    fprintf(stderr, "rax: out of memory: %zu bytes were asked for\n", bytes);
    exit(BASE_FAILURE);
}

void *base_try_grow(void *old, size_t bytes)
{
    size_t had = mapping_of(old, false);
    if (bytes <= had || !had || bytes > PTRDIFF_MAX) {
        void *fresh = base_try_alloc(bytes);
        if (fresh)
            base_free(old);
        return fresh;
    }
    if (atomic_load(&refuse_in) >= 0 && atomic_fetch_sub(&refuse_in, 1) == 0)
        return NULL;
    if (!there_is_room(bytes - had))
        return NULL;
    mapping_of(old, true);                            /* first: another thread may be given the old place at once */
    void *memory = mremap(old, had, bytes, MREMAP_MAYMOVE);
    bool moved = memory != MAP_FAILED;
    if (!note_mapping(moved ? memory : old, moved ? bytes : had))
        out_of_memory(bytes);
    if (moved)
        madvise(memory, bytes, MADV_HUGEPAGE);
    return moved ? memory : NULL;
}

void *base_alloc(size_t bytes)
{
    void *memory = allocate(bytes);
    if (!memory)
        out_of_memory(bytes);
    return memory;
}

void *base_realloc(void *old, size_t old_bytes, size_t bytes)
{
    void *memory = base_alloc(bytes);
    if (old)
        memcpy(memory, old, MIN(old_bytes, bytes));
    base_free(old);
    return memory;
}

/* A first block: room for a few of what is large, for more of what is small. */
static int least_cap(size_t size) { return size >= 128 ? 4 : 16; }

void *base_grown(void *old, int n, int *cap, size_t size)
{
    if (n < *cap)
        return old;
    size_t before = size * (size_t)*cap;
    *cap = MAX(least_cap(size), 2 * *cap);
    return base_realloc(old, before, size * (size_t)*cap);
}

void base_free(void *memory)
{
    if (!memory)
        return;
    atomic_fetch_sub(&live_blocks, 1);
    size_t mapped = mapping_of(memory, true);
    if (mapped)
        munmap(memory, mapped);
    else
        free(memory);
}

char *base_strdup(const char *text)
{
    size_t bytes = strlen(text) + 1;
    return memcpy(base_alloc(bytes), text, bytes);
}

size_t base_mapped_bytes(void) { return atomic_load(&mapped_bytes); }
size_t base_alloc_count(void) { return atomic_load(&live_blocks); }
void base_alloc_refuse(long nth) { atomic_store(&refuse_in, nth); }

/* -- arenas --------------------------------------------------------------------------------------------------------- */

typedef struct chunk { struct chunk *next; size_t used, size; _Alignas(16) char bytes[]; } chunk;
struct base_arena { chunk *chunks; size_t bytes; };

base_arena *base_arena_new(void) { return base_alloc(sizeof(base_arena)); }

void base_arena_free(base_arena *arena)
{
    if (!arena)
        return;
    for (chunk *c = arena->chunks, *next; c; c = next) {
        next = c->next;
        base_free(c);
    }
    base_free(arena);
}

void *base_arena_alloc(base_arena *arena, size_t bytes)
{
    bytes = (bytes + 15) & ~(size_t)15;
    chunk *c = arena->chunks;
    if (!c || c->size - c->used < bytes) {
        size_t usual = arena->bytes < ARENA_LARGE_BYTES ? ARENA_CHUNK_BYTES : HUGE_PAGE_BYTES - sizeof(chunk);
        size_t size = MAX(bytes, usual);
        c = base_alloc(sizeof(chunk) + size);
        c->size = size;
        c->next = arena->chunks;
        arena->chunks = c;
    }
    void *memory = c->bytes + c->used;
    c->used += bytes;
    arena->bytes += bytes;
    return memory;
}

char *base_arena_text(base_arena *arena, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int len = vsnprintf(NULL, 0, format, args);
    va_end(args);
    char *text = base_arena_alloc(arena, (size_t)len + 1);
    vsnprintf(text, (size_t)len + 1, format, again);
    va_end(again);
    return text;
}

void *base_arena_grown(base_arena *arena, void *old, int n, int *cap, size_t size)
{
    if (n < *cap)
        return old;
    *cap = MAX(least_cap(size), 2 * *cap);
    void *more = base_arena_alloc(arena, size * (size_t)*cap);
    if (n)
        memcpy(more, old, size * (size_t)n);
    return more;
}

base_arena_mark base_arena_now(const base_arena *arena)
{
    return (base_arena_mark){ arena->chunks, arena->chunks ? arena->chunks->used : 0, arena->bytes };
}

void base_arena_rewind(base_arena *arena, base_arena_mark mark)
{
    while (arena->chunks != mark.chunk) {
        chunk *gone = arena->chunks;
        arena->chunks = gone->next;
        base_free(gone);
    }
    if (arena->chunks) {
        memset(arena->chunks->bytes + mark.used, 0, arena->chunks->used - mark.used);
        arena->chunks->used = mark.used;
    }
    arena->bytes = mark.bytes;
}
