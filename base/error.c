/* A user's mistake or a machine's refusal is a value that the thread keeps; our own mistake ends the process. */
#include "base/base.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ERROR_BYTES = 2048 };

static _Thread_local char message[ERROR_BYTES];
static _Thread_local base_error_kind message_kind;

const char *(*base_bug_hook)(void);

/* breaks: a line's end is one. All other control characters are shown as '?': a name in a damaged file may be anything. */
static bool fail(base_error_kind kind, bool breaks, const char *format, va_list args)
{
    char fresh[ERROR_BYTES];                     /* the format may quote the error that it replaces */
    vsnprintf(fresh, sizeof fresh, format, args);
    for (char *at = fresh; *at; at++)
        if (((unsigned char)*at < ' ' && !(breaks && *at == '\n')) || *at == 127)
            *at = '?';
    memcpy(message, fresh, sizeof fresh);
    message_kind = kind;
    return false;
}

bool base_failv(base_error_kind kind, const char *format, va_list args)
{
    return fail(kind, strchr(format, '\n') != NULL, format, args);
}

bool base_fail(base_error_kind kind, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    base_failv(kind, format, args);
    va_end(args);
    return false;
}

bool base_fail_lines(base_error_kind kind, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fail(kind, true, format, args);
    va_end(args);
    return false;
}

const char *base_error(void) { return message; }
base_error_kind base_error_kind_of(void) { return message_kind; }
void base_error_clear(void) { message[0] = '\0'; }

void base_bug(const char *file, int line, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "bug: %s:%d: ", file, line);
    vfprintf(stderr, format, args);
    va_end(args);
    const char *(*hook)(void) = base_bug_hook;
    base_bug_hook = NULL;                        /* a bug inside the hook must not call it again */
    const char *more = hook ? hook() : NULL;
    fprintf(stderr, "%s%s\n", more ? "; " : "", more ? more : "");
    abort();
}
