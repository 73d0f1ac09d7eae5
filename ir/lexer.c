/* The words of the text form: bytes whose end is known become names, numbers and punctuation. Nothing here relies on a final
 * '\0'. Functions are named for what they read; they return false once the error is set. */
#include "ir/lexer.h"

#include <ctype.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

bool ir_lex_wrong(const ir_lexer *p, const char *format, ...)
{
    base_text text = {0}, line = {0};
    va_list args;
    va_start(args, format);
    base_text_addv(&text, format, args);
    va_end(args);
    for (const char *c = text.at; *c; c++)                /* a hint has a line of its own; here all is one */
        base_text_add(&line, *c == '\n' ? "; " : (unsigned char)*c < 0x20 ? "?" : "%c", *c);
    base_fail(BASE_MISTAKE, "%s:%d: %s", p->file, p->line, line.at);
    base_text_free(&text);
    base_text_free(&line);
    return false;
}

/* -- bytes and words --------------------------------------------------------------------------------------------------- */

int ir_lex_peek(const ir_lexer *p) { return p->at < p->len ? (unsigned char)p->text[p->at] : -1; }

void ir_lex_skip_blanks(ir_lexer *p)
{
    while (ir_lex_peek(p) == ' ' || ir_lex_peek(p) == '\t')
        p->at++;
}

/* Blanks, comments, ends of lines. */
void ir_lex_skip_space(ir_lexer *p)
{
    for (;;) {
        int c = ir_lex_peek(p);
        if (c == '\n')
            p->line++;
        else if (c == ';') {
            while (ir_lex_peek(p) != -1 && ir_lex_peek(p) != '\n')
                p->at++;
            continue;
        } else if (c != ' ' && c != '\t' && c != '\r')
            return;
        p->at++;
    }
}

bool ir_lex_at_text(ir_lexer *p, const char *text)
{
    ir_lex_skip_space(p);
    size_t n = strlen(text);
    return p->len - p->at >= n && memcmp(p->text + p->at, text, n) == 0;
}

bool ir_lex_accept(ir_lexer *p, const char *text)
{
    if (!ir_lex_at_text(p, text))
        return false;
    p->at += strlen(text);
    return true;
}

bool ir_lex_expect(ir_lexer *p, const char *text)
{
    if (ir_lex_accept(p, text))
        return true;
    if (ir_lex_peek(p) == -1)
        return ir_lex_wrong(p, "expected '%s', got the end", text);
    return ir_lex_wrong(p, isprint(ir_lex_peek(p)) ? "expected '%s', got '%c'" : "expected '%s', got byte %d", text,
                        ir_lex_peek(p));
}

bool ir_lex_is_word_byte(int c, bool first)
{
    return c == '_' || (c != -1 && c < 128 && (isalpha(c) || (!first && isdigit(c))));
}

/* The word is text[0..*len), within the parser's text. */
bool ir_lex_word(ir_lexer *p, const char *what, const char **text, size_t *len)
{
    ir_lex_skip_space(p);
    size_t start = p->at;
    while (ir_lex_is_word_byte(ir_lex_peek(p), p->at == start))
        p->at++;
    *text = p->text + start;
    *len = p->at - start;
    return *len > 0 || ir_lex_wrong(p, "expected %s", what);
}

bool ir_lex_is_word(const char *text, size_t len, const char *expected)
{
    return strlen(expected) == len && memcmp(text, expected, len) == 0;
}

/* Bytes given as \xHH, \" and \\; a zero byte would end the text and is refused. */
bool ir_lex_quoted(ir_lexer *p, base_arena *arena, const char **text)
{
    base_text out = {0};
    bool good = ir_lex_expect(p, "\"");
    while (good && ir_lex_peek(p) != '"') {
        int c = ir_lex_peek(p);
        if (c == -1 || c == '\n') {
            good = ir_lex_wrong(p, "a name has no closing '\"'");
            break;
        }
        p->at++;
        if (c == '\\') {
            c = ir_lex_peek(p);
            p->at++;
            if (c == 'x' && p->len - MIN(p->at, p->len) >= 2 && isxdigit((unsigned char)p->text[p->at]) &&
                isxdigit((unsigned char)p->text[p->at + 1])) {
                char digits[3] = { p->text[p->at], p->text[p->at + 1], '\0' };
                c = (int)strtol(digits, NULL, 16);
                p->at += 2;
            } else if (c != '"' && c != '\\') {
                p->at--;
                good = ir_lex_wrong(p, "expected \\\", \\\\ or \\xHH in a name");
                break;
            }
        }
        if (c == 0) {
            good = ir_lex_wrong(p, "a zero byte in a name");
            break;
        }
        char byte = (char)c;
        base_text_bytes(&out, &byte, 1);
    }
    if (good) {
        p->at++;
        *text = base_arena_text(arena, "%s", out.at ? out.at : "");
    }
    base_text_free(&out);
    return good;
}

/* -- numbers ----------------------------------------------------------------------------------------------------------- */

bool ir_lex_integer(ir_lexer *p, int64_t low, int64_t high, int64_t *value)
{
    ir_lex_skip_space(p);
    bool minus = ir_lex_peek(p) == '-';
    int64_t sum = 0;
    if (minus)
        p->at++;
    if (ir_lex_peek(p) == -1 || !isdigit(ir_lex_peek(p)))
        return ir_lex_wrong(p, "expected an integer");
    for (; ir_lex_peek(p) != -1 && isdigit(ir_lex_peek(p)); p->at++) {
        int digit = ir_lex_peek(p) - '0';
        if (sum > (INT64_MAX - digit) / 10)
            return ir_lex_wrong(p, "an integer of more than 63 bits");
        sum = sum * 10 + digit;
    }
    *value = minus ? -sum : sum;
    return (*value >= low && *value <= high) ||
           ir_lex_wrong(p, "expected %lld to %lld, got %lld", (long long)low, (long long)high, (long long)*value);
}

bool ir_lex_small(ir_lexer *p, int low, int high, int *value)
{
    int64_t wide;
    if (!ir_lex_integer(p, low, high, &wide))
        return false;
    *value = (int)wide;
    return true;
}

bool ir_lex_boolean(ir_lexer *p, bool *value)
{
    const char *text;
    size_t len;
    if (!ir_lex_word(p, "true or false", &text, &len))
        return false;
    *value = ir_lex_is_word(text, len, "true");
    return *value || ir_lex_is_word(text, len, "false") ||
           ir_lex_wrong(p, "expected true or false, got '%.*s'", (int)MIN(len, 40), text);
}

/* A decimal number, inf, nan, or nan(0xBITS), whose bits are the dtype's. */
bool ir_lex_real(ir_lexer *p, double *value, uint64_t *nan_bits)
{
    char digits[64], *end;
    size_t n = 0;
    ir_lex_skip_space(p);
    for (int c; n < sizeof digits - 1 && (c = ir_lex_peek(p)) > 0 && (isalnum(c) || strchr("+-.()", c)); p->at++)
        digits[n++] = (char)c;
    digits[n] = '\0';
    *nan_bits = 0;
    if (strncmp(digits, "nan(0x", 6) == 0) {
        *nan_bits = strtoull(digits + 6, &end, 16);
        *value = NAN;
        return strcmp(end, ")") == 0 || ir_lex_wrong(p, "expected nan(0xBITS), got '%s'", digits);
    }
    *value = strtod(digits, &end);
    return (n > 0 && *end == '\0') || ir_lex_wrong(p, "expected a number, got '%s'", digits);
}

/* A value of the dtype: true, false, a whole number, a real one. */
bool ir_lex_value_of(ir_lexer *p, ir_dtype dtype, double *value, uint64_t *nan_bits)
{
    int64_t whole = 0;
    bool yes = false;
    *nan_bits = 0;
    switch (dtype) {
    case IR_I32:
        if (!ir_lex_integer(p, INT32_MIN, INT32_MAX, &whole))
            return false;
        *value = (double)whole;
        return true;
    case IR_BOOL:
        if (!ir_lex_boolean(p, &yes))
            return false;
        *value = yes;
        return true;
    case IR_F32:
    case IR_F64:
    case IR_BF16:
    case IR_TUPLE: break;
    }
    return ir_lex_real(p, value, nan_bits);
}

bool ir_lex_dtype(ir_lexer *p, const char *what, ir_dtype *dtype)
{
    const char *text;
    size_t len;
    if (!ir_lex_word(p, what, &text, &len))
        return false;
    return ir_dtype_parse(text, len, dtype) || ir_lex_wrong(p, "expected f32, f64, bf16, i32 or bool, got '%.*s'", (int)MIN(len, 40), text);
}

/* -- comments ---------------------------------------------------------------------------------------------------------- */

bool ir_lex_comment(const ir_lexer *p, const char **text, size_t *len)
{
    size_t at = p->at;
    bool in_name = false;
    for (; at < p->len && p->text[at] != '\n' && (in_name || p->text[at] != ';'); at++) {
        if (in_name && p->text[at] == '\\' && at + 1 < p->len && p->text[at + 1] != '\n')
            at++;
        else if (p->text[at] == '"')
            in_name = !in_name;
    }
    if (at >= p->len || p->text[at] != ';')
        return false;
    at++;
    const char *newline = memchr(p->text + at, '\n', p->len - at);
    size_t end = newline ? (size_t)(newline - p->text) : p->len;
    if (at < end && p->text[at] == ' ')
        at++;
    while (end > at && isspace((unsigned char)p->text[end - 1]))
        end--;
    *text = p->text + at;
    *len = end - at;
    return true;
}

bool ir_lex_is_place(const char *text, size_t len, size_t *file_len, int *line)
{
    size_t digits = len;
    while (digits > 0 && isdigit((unsigned char)text[digits - 1]))
        digits--;
    if (digits == len || len - digits > 9 || digits < 2 || text[digits - 1] != ':')
        return false;
    *file_len = digits - 1;
    *line = 0;
    for (size_t i = digits; i < len; i++)
        *line = 10 * *line + (text[i] - '0');
    return *file_len <= INT_MAX && !memchr(text, '\0', *file_len);
}
