/* rax.h: RAX, a tracing just-in-time compiler for tensor programs. The whole public interface. */
#ifndef RAX_H
#define RAX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* == errors and memory ================================================================================================= */

/* What went wrong is a value: functions that can fail return false or NULL and leave a message with the thread. A mistake is
 * the user's (a wrong key, a shape that does not fit), a failure the machine's (memory, a file, a driver). The numbers are
 * also the exit statuses of a program that ends because of one. */
typedef enum { RAX_FAILURE = 1, RAX_MISTAKE = 2 } rax_error_kind;

/* The thread's last error: one line without newline, "" where there is none. Belongs to rax; valid until the next error. */
const char *rax_error(void);
rax_error_kind rax_error_kind_of(void);
void rax_error_clear(void);

/* Sets the thread's error as printf would and returns false: `return rax_fail(RAX_MISTAKE, "%s: ...", path);` */
bool rax_fail(rax_error_kind kind, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Zeroed memory, 64-byte aligned, from rax's one allocator; to be freed with rax_free. rax_alloc ends the process with one
 * line and status 1 where the machine refuses; rax_try_alloc, for what may be large, returns NULL. */
void *rax_alloc(size_t bytes);
void *rax_try_alloc(size_t bytes);
void rax_free(void *memory);

#endif
