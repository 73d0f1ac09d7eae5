/* Strings that grow. */
#include "base/base.h"

#include <stdio.h>
#include <string.h>

static void reserve(base_text *text, size_t more)
{
    size_t need = text->len + more + 1;
    if (need <= text->cap)
        return;
    size_t cap = MAX(need, text->cap * 2);
    text->at = base_realloc(text->at, text->at ? text->len + 1 : 0, cap);
    text->cap = cap;
}

void base_text_addv(base_text *text, const char *format, va_list args)
{
    va_list again;
    va_copy(again, args);
    int len = vsnprintf(NULL, 0, format, again);
    va_end(again);
    reserve(text, (size_t)len);
    vsnprintf(text->at + text->len, (size_t)len + 1, format, args);
    text->len += (size_t)len;
}

void base_text_add(base_text *text, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    base_text_addv(text, format, args);
    va_end(args);
}

void base_text_bytes(base_text *text, const void *bytes, size_t count)
{
    reserve(text, count);
    memcpy(text->at + text->len, bytes, count);
    text->len += count;
    text->at[text->len] = '\0';
}

char *base_text_take(base_text *text)
{
    reserve(text, 0);
    char *at = text->at;
    *text = (base_text){0};
    return at;
}

void base_text_free(base_text *text)
{
    base_free(text->at);
    *text = (base_text){0};
}
