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
 * once. Sanitizers watch what malloc gives out, so with them all of it comes from there. */
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

enum { ALIGNMENT = 64, ARENA_CHUNK_BYTES = 64 * 1024 };

/* Before each block. */
typedef struct { _Alignas(ALIGNMENT) size_t mapped; } header;         /* bytes mapped, 0: from malloc */

static atomic_size_t live_blocks, mapped_bytes;
static atomic_long refuse_in = -1;

static void *allocate(size_t bytes)
{
    void *memory = NULL;
    if (bytes > PTRDIFF_MAX - sizeof(header))
        return NULL;
    size_t all = bytes + sizeof(header);
    if (all >= MAPPED_BYTES) {
        memory = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED)
            return NULL;
        madvise(memory, all, MADV_HUGEPAGE);
        ((header *)memory)->mapped = all;
        atomic_fetch_add(&mapped_bytes, all);
    } else {
        if (posix_memalign(&memory, ALIGNMENT, all) != 0)
            return NULL;
        memset(memory, 0, all);
    }
    atomic_fetch_add(&live_blocks, 1);
    return (header *)memory + 1;
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

static void *grow_mapped(header *block, size_t all)
{
    size_t had = block->mapped;
    void *memory = mremap(block, had, all, MREMAP_MAYMOVE);
    if (memory == MAP_FAILED)
        return NULL;
    madvise(memory, all, MADV_HUGEPAGE);
    ((header *)memory)->mapped = all;
    atomic_fetch_add(&mapped_bytes, all - had);
    return (header *)memory + 1;
}

void *base_try_grow(void *old, size_t bytes)
{
    header *block = old ? (header *)old - 1 : NULL;
    size_t had = block ? block->mapped : 0;
    if (!had || bytes > PTRDIFF_MAX - sizeof(header) || bytes + sizeof(header) <= had) {
        void *fresh = base_try_alloc(bytes);
        if (fresh)
            base_free(old);
        return fresh;
    }
    if (atomic_load(&refuse_in) >= 0 && atomic_fetch_sub(&refuse_in, 1) == 0)
        return NULL;
    return there_is_room(bytes + sizeof(header) - had) ? grow_mapped(block, bytes + sizeof(header)) : NULL;
}

static _Noreturn void out_of_memory(size_t bytes)
{
    fprintf(stderr, "rax: out of memory: %zu bytes were asked for\n", bytes);
    exit(BASE_FAILURE);
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

void base_free(void *memory)
{
    if (!memory)
        return;
    atomic_fetch_sub(&live_blocks, 1);
    header *block = (header *)memory - 1;
    if (block->mapped) {
        atomic_fetch_sub(&mapped_bytes, block->mapped);
        munmap(block, block->mapped);
    } else {
        free(block);
    }
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
        size_t size = MAX(bytes, (size_t)ARENA_CHUNK_BYTES);
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

size_t base_arena_bytes(const base_arena *arena) { return arena->bytes; }
