/* base/ is what every folder stands on: memory, text, errors. It knows nothing of tensors, and includes no other folder.
 *
 *   memory.c   one allocator for the whole program; arenas
 *   clock.c    what time it is
 *   environment.c                          switches in the environment
 *   limits.c   CPUs and memory that the process may use
 *   text.c     strings that grow
 *   object_cache.c, object_cache.h         compiled code on disk
 *   error.c    a user's mistake and a machine's refusal are values; our own mistake is an assertion
 */
#ifndef BASE_H
#define BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PRINTF_LIKE(text, first) __attribute__((format(printf, text, first)))
#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
static inline int64_t base_divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t base_round_up(int64_t a, int64_t b) { return base_divide_up(a, b) * b; }

/* -- memory.c ------------------------------------------------------------------------------------------------------- */

/* Zeroed memory, 64-byte aligned. base_alloc never returns NULL: where the machine refuses, the process ends with one line
 * and status 1. base_try_alloc is for what may be large (tensors, arenas of a step): it returns NULL, also where the kernel would
 * give what the machine does not have, to end the process once it is written to. */
void *base_alloc(size_t bytes);
void *base_try_alloc(size_t bytes);
/* A larger block in the place of old, whose contents may be lost; of old, what was written to is not taken twice. NULL where it is
 * refused: old is as it was then. */
void *base_try_grow(void *old, size_t bytes);
void *base_realloc(void *old, size_t old_bytes, size_t bytes);    /* what is new is zeroed */
void base_free(void *memory);                                     /* NULL is fine */
/* An array of cap elements, of which n are in use, or one of twice as many in its place where there is no room for another. */
void *base_grown(void *old, int n, int *cap, size_t size);
char *base_strdup(const char *text);

size_t base_alloc_count(void);           /* blocks now allocated, for tests that look for leaks */
void base_alloc_refuse(long nth);        /* the nth base_try_alloc from now returns NULL; -1: none */
size_t base_mapped_bytes(void);          /* of blocks whose pages the kernel gives when they are first written to */

/* An arena hands out zeroed memory that is freed all at once. */
typedef struct base_arena base_arena;
base_arena *base_arena_new(void);
void base_arena_free(base_arena *arena);                           /* NULL is fine */
void *base_arena_alloc(base_arena *arena, size_t bytes);           /* 16-byte aligned */
char *base_arena_text(base_arena *arena, const char *format, ...) PRINTF_LIKE(2, 3);
/* What was handed out since the mark was taken is the arena's again. */
typedef struct { void *chunk; size_t used, bytes; } base_arena_mark;
base_arena_mark base_arena_now(const base_arena *arena);
void base_arena_rewind(base_arena *arena, base_arena_mark mark);
void *base_arena_grown(base_arena *arena, void *old, int n, int *cap, size_t size);      /* as base_grown; the old one stays where it is */
#define ARENA_NEW(arena, type, count) ((type *)base_arena_alloc((arena), sizeof(type) * (size_t)(count)))

/* -- clock.c -------------------------------------------------------------------------------------------------------- */

int64_t base_now_ns(void);                                         /* of CLOCK_MONOTONIC */
double base_now_ms(void);

/* -- environment.c -------------------------------------------------------------------------------------------------- */

bool base_is_set(const char *variable);                            /* a switch: there, and neither empty nor 0 */

/* -- limits.c ------------------------------------------------------------------------------------------------------- */

/* Memory that this process may have, now: the machine's and that of its cgroups. available counts what the kernel would
 * give back (clean page cache), and not what base_alloc has handed out and nobody has touched. */
typedef struct { size_t total_bytes, available_bytes; } base_memory;
base_memory base_memory_now(void);

/* CPUs and memory as the files under root tell, "" for the real ones: /proc/meminfo, /proc/self/cgroup, /sys/fs/cgroup
 * (v1 and v2). cpus is a quota, rounded down but at least 1, or 0 where there is none. */
typedef struct { int cpus; base_memory memory; } base_limits;
base_limits base_limits_read(const char *root);

/* CPUs that this process may use: those that it may run on, and no more than its quota. */
int base_usable_cpus(void);

/* The first bytes of a small file as a string; "" and false where it cannot be read. */
bool base_read_text(const char *path, char *text, size_t size);

/* -- text.c --------------------------------------------------------------------------------------------------------- */

/* A string that grows; {0} is an empty one. at is NULL or ends in '\0' and belongs to the text until taken. */
typedef struct { char *at; size_t len, cap; } base_text;
void base_text_add(base_text *text, const char *format, ...) PRINTF_LIKE(2, 3);
void base_text_addv(base_text *text, const char *format, va_list args);
void base_text_bytes(base_text *text, const void *bytes, size_t count);
char *base_text_take(base_text *text);                            /* the caller frees it; never NULL; the text is empty again */
void base_text_free(base_text *text);

/* -- error.c -------------------------------------------------------------------------------------------------------- */

/* The kind is also the exit status of a program that ends because of it. BASE_NO_MEMORY is a failure that whoever knows what memory was wanted for has more to
 * say of; outside of rax it is one like the others. */
typedef enum { BASE_FAILURE = 1, BASE_MISTAKE = 2, BASE_NO_MEMORY } base_error_kind;

/* Sets the thread's error and returns false, so that `return base_fail(...)` reads as what it is. One line without a full
 * stop, beginning with what is at fault: "configs/a.json: n_head: expected ..."; after a newline in the format, a hint. Control
 * characters in what the arguments quote become '?', line ends too where the format has none. */
bool base_fail(base_error_kind kind, const char *format, ...) PRINTF_LIKE(2, 3);
bool base_failv(base_error_kind kind, const char *format, va_list args);
/* The same where the arguments have line ends of their own, which stay. */
bool base_fail_lines(base_error_kind kind, const char *format, ...) PRINTF_LIKE(2, 3);
const char *base_error(void);                                     /* "" where there is none */
base_error_kind base_error_kind_of(void);
void base_error_clear(void);

/* Our own mistake. The condition is always tested; the message says what was expected and what was found. */
#define CHECK(condition, ...) \
    do { if (__builtin_expect(!(condition), 0)) base_bug(__FILE__, __LINE__, __VA_ARGS__); } while (0)
_Noreturn void base_bug(const char *file, int line, const char *format, ...) PRINTF_LIKE(3, 4);
/* Called once by base_bug before the process ends, to save what helps to run the bug again; its text ends the message. */
extern const char *(*base_bug_hook)(void);

#endif
