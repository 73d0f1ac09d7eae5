/* Strings that grow. */
#include "base/base.h"

#include <stdio.h>
#include <string.h>

static void grow(base_text *text, size_t need)
{
    size_t cap = MAX(MAX(need, text->cap * 2), 256);
    text->at = base_realloc(text->at, text->at ? text->len + 1 : 0, cap);
    text->cap = cap;
}

/* Room for more bytes and the 0 behind them. */
static inline char *reserve(base_text *text, size_t more)
{
    if (text->len + more + 1 > text->cap)
        grow(text, text->len + more + 1);
    return text->at + text->len;
}

/* Most words are shorter than a call of memcpy. */
static inline void add_bytes(base_text *text, const char *bytes, size_t count)
{
    char *to = reserve(text, count);
    if (count < 16)
        for (size_t i = 0; i < count; i++)
            to[i] = bytes[i];
    else
        memcpy(to, bytes, count);
    text->len += count;
}

static void add_number(base_text *text, long long n)
{
    char digits[24], *at = digits + sizeof digits;
    unsigned long long left = n < 0 ? 0 - (unsigned long long)n : (unsigned long long)n;
    do
        *--at = (char)('0' + left % 10);
    while (left /= 10);
    if (n < 0)
        *--at = '-';
    add_bytes(text, at, (size_t)(digits + sizeof digits - at));
}

/* The format from here on, by the C library. Mostly there is room, and one formatting does. */
static void add_formatted(base_text *text, const char *format, va_list args)
{
    size_t room = text->cap - text->len;              /* the caller has reserved some */
    va_list again;
    va_copy(again, args);
    size_t len = (size_t)vsnprintf(text->at + text->len, room, format, again);
    va_end(again);
    if (len >= room) {
        reserve(text, len);
        vsnprintf(text->at + text->len, len + 1, format, args);
    }
    text->len += len;
}

/* The keys of generated code, texts of graphs and lists are made of words and whole numbers by the ten thousand: these are put down here,
 * at a tenth of what the C library takes. */
void base_text_addv(base_text *text, const char *format, va_list args)
{
    va_list left;
    va_copy(left, args);
    for (;;) {
        const char *plain = format;
        while (*format != '%' && *format != '\0')
            format++;
        add_bytes(text, plain, (size_t)(format - plain));
        if (*format == '\0')
            break;
        if (format[1] == 's') {
            const char *word = va_arg(left, const char *);
            word = word ? word : "(null)";
            add_bytes(text, word, strlen(word));
            format += 2;
        } else if (format[1] == 'c') {
            char letter = (char)va_arg(left, int);
            add_bytes(text, &letter, 1);
            format += 2;
        } else if (format[1] == 'd') {
            add_number(text, va_arg(left, int));
            format += 2;
        } else if (!strncmp(format, "%lld", 4)) {
            add_number(text, va_arg(left, long long));
            format += 4;
        } else if (!strncmp(format, "%ld", 3)) {
            add_number(text, va_arg(left, long));
            format += 3;
        } else {
            add_formatted(text, format, left);
            break;
        }
    }
    va_end(left);
    *reserve(text, 0) = '\0';
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
    add_bytes(text, bytes, count);
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
