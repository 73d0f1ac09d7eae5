/* Between parse.c and lexer.c: the words of the text form. All but peek, at_text and accept set the error and return false
 * where the text is not what was expected. */
#ifndef IR_LEXER_H
#define IR_LEXER_H

#include "ir/ir.h"

/* The text, its end known, and how far it is read. */
typedef struct {
    const char *file, *text;
    size_t len, at;
    int line;
} ir_lexer;

/* Sets the error "FILE:LINE: ..." and returns false. */
bool ir_lex_wrong(const ir_lexer *p, const char *format, ...) PRINTF_LIKE(2, 3);

int ir_lex_peek(const ir_lexer *p);                                /* the next byte; -1 at the end */
void ir_lex_skip_blanks(ir_lexer *p);                              /* within the line */
void ir_lex_skip_space(ir_lexer *p);                               /* blanks, comments, ends of lines */
bool ir_lex_at_text(ir_lexer *p, const char *text);
bool ir_lex_accept(ir_lexer *p, const char *text);                 /* reads text if it comes next */
bool ir_lex_expect(ir_lexer *p, const char *text);

bool ir_lex_is_word_byte(int c, bool first);
bool ir_lex_word(ir_lexer *p, const char *what, const char **text, size_t *len);      /* within the lexer's text */
bool ir_lex_is_word(const char *text, size_t len, const char *expected);
bool ir_lex_quoted(ir_lexer *p, base_arena *arena, const char **text);                /* a copy in the arena */

bool ir_lex_integer(ir_lexer *p, int64_t low, int64_t high, int64_t *value);
bool ir_lex_small(ir_lexer *p, int low, int high, int *value);
bool ir_lex_boolean(ir_lexer *p, bool *value);
/* nan_bits: of nan(0xBITS), 0 for all else. value_of: as the dtype is written, true and false for bool. */
bool ir_lex_real(ir_lexer *p, double *value, uint64_t *nan_bits);
bool ir_lex_value_of(ir_lexer *p, ir_dtype dtype, double *value, uint64_t *nan_bits);
bool ir_lex_dtype(ir_lexer *p, const char *what, ir_dtype *dtype);                    /* what: "a type", for the error */

/* What stands behind ';' on the line, without moving, and whether it is FILE:LINE. */
bool ir_lex_comment(const ir_lexer *p, const char **text, size_t *len);
bool ir_lex_is_place(const char *text, size_t len, size_t *file_len, int *line);

#endif
